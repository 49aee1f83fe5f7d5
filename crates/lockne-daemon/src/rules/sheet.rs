//! From rules to what the kernel looks up.

use std::{
    collections::{BTreeMap, HashMap},
    ffi::CString,
    fs::File,
    io::{self, Read as _},
    os::{fd::OwnedFd, unix::ffi::OsStrExt as _},
    path::{Component, Path, PathBuf},
};

use lockne_abi::{
    Group, MAX_GROUP_NAME, MAX_PLACE_NAME, MAX_SCRIPT_NAME, RuleBits, look, node, user_bit,
};
use lockne_core::rule::{Match, User};

use super::{
    CompiledRule, Error, Fallback, Missing,
    path::{Mounts, Ways, hold},
};
use crate::kernel::Sheet;

/// What became of a set of rules.
pub(super) struct Written {
    pub(super) sheet: Sheet,
    pub(super) missing: Vec<Missing>,
    /// The files and directories that it means by their numbers.
    pub(super) held: Held,
}

/// Files by device and inode, which no others can have while these are held.
pub(super) type Held = BTreeMap<(u32, u64), OwnedFd>;

/// Looks up everything that the rules name. What cannot be found is said, and matches nothing.
pub(super) fn write(rules: &[CompiledRule], fallback: Option<&Fallback>) -> Result<Written, Error> {
    let mut writer = Writer {
        sheet: Sheet::default(),
        mounts: Mounts::of("thread-self").map_err(|source| Error::Read {
            path: "/proc/thread-self/mountinfo".into(),
            source,
        })?,
        nodes: node::FIRST,
        ways: Ways::default(),
        directories: HashMap::new(),
        held: Held::new(),
    };
    let mut missing = Vec::new();
    for (at, compiled) in rules.iter().enumerate() {
        let matches = &compiled.rule.matches;
        let asked = [
            matches.unit.is_some(),
            matches.cgroup.is_some(),
            matches.flatpak.is_some(),
            matches.snap.is_some(),
        ];
        if asked.into_iter().filter(|asked| *asked).count() > 1 {
            return Err(Error::TwoGroups {
                rule: compiled.rule.name.clone(),
            });
        }
        writer.sheet.set.policies[at] = compiled.policy.get();
        for what in writer.add(at, matches) {
            missing.push(Missing {
                rule: compiled.rule.name.clone(),
                what,
            });
        }
    }
    let sheet = &mut writer.sheet;
    // Who asks for the root of the cgroups asks for nothing.
    let everybody =
        (0..rules.len()).find(|rule| sheet.set.any.iter().all(|any| any.contains(*rule)));
    let outline = &mut sheet.outline;
    outline.everybody = everybody.map_or(0, |rule| sheet.set.policies[rule]);
    outline.users = sheet.users.keys().fold(0, |bits, id| bits | user_bit(*id));
    outline.words = u8::try_from(rules.len().div_ceil(64)).unwrap_or(u8::MAX);
    outline.fallback = fallback.map_or(0, |it| it.policy.get());
    Ok(Written {
        sheet: writer.sheet,
        missing,
        held: writer.held,
    })
}

struct Writer {
    sheet: Sheet,
    mounts: Mounts,
    /// The next free one.
    nodes: u32,
    ways: Ways,
    /// Those that hold programs; often most programs are in one.
    directories: HashMap<PathBuf, (u32, u64)>,
    held: Held,
}

impl Writer {
    /// Adds a rule; says what of it is missing.
    fn add(&mut self, rule: usize, matches: &Match) -> Vec<String> {
        let mut missing = Vec::new();
        let group = matches.unit.is_some()
            || matches.cgroup.is_some()
            || matches.flatpak.is_some()
            || matches.snap.is_some();
        let asks = [
            (look::EXECUTABLE, matches.exe.is_some()),
            (look::USER, matches.user.is_some()),
            (look::GROUP, group),
            (look::SCRIPT, matches.exe.is_some() && matches.script),
        ];
        // A rule that asks for nothing names nobody.
        if !asks.iter().any(|(_, asks)| *asks) {
            return missing;
        }
        for (look, asks) in asks {
            if asks {
                self.sheet.outline.looks |= 1 << look;
            } else {
                self.sheet.set.any[look].insert(rule);
            }
        }
        if let Some(path) = &matches.exe {
            let found = if matches.script {
                self.script(rule, path)
            } else {
                self.program(rule, path)
            };
            missing.extend(found.err());
        }
        if let Some(user) = &matches.user {
            match number(user) {
                Some(id) => self.sheet.users.entry(id).or_default().insert(rule),
                None => missing.push(format!("no user `{}`", shown(user))),
            }
        }
        if group {
            missing.extend(self.group(rule, matches).err());
        }
        missing
    }

    fn program(&mut self, rule: usize, path: &Path) -> Result<(), String> {
        let end = self.file(rule, path)?;
        match interpreter(&end) {
            Ok(Some(_)) => Err(format!(
                "`{}` is a script, so what is executed is its interpreter; `script = true` takes that",
                path.display()
            )),
            _ => Ok(()),
        }
    }

    /// The interpreter, when it is called by a script of this name.
    fn script(&mut self, rule: usize, path: &Path) -> Result<(), String> {
        let end = self
            .ways
            .end(path)
            .filter(|end| end.exists())
            .ok_or_else(|| format!("no file `{}`", path.display()))?;
        let interpreter = interpreter(&end)
            .map_err(|error| format!("cannot read `{}`: {error}", path.display()))?
            .ok_or_else(|| format!("`{}` is no script", path.display()))?;
        for name in [path.file_name(), end.file_name()].into_iter().flatten() {
            let name = name.as_bytes().to_vec();
            if name.len() >= MAX_SCRIPT_NAME {
                return Err(format!("the name of `{}` is too long", path.display()));
            }
            self.sheet.scripts.entry(name).or_default().insert(rule);
        }
        self.file(rule, &interpreter).map(drop)
    }

    /// The file by its inode, and its place by name: there the next version of it will be.
    fn file(&mut self, rule: usize, path: &Path) -> Result<PathBuf, String> {
        let none = || format!("no file `{}`", path.display());
        let end = self.ways.end(path).ok_or_else(none)?;
        if let (Some(directory), Some(name)) = (end.parent(), end.file_name())
            && let Ok((device, inode)) = self.directory(directory)
            // One that fills the room could be the beginning of a longer one.
            && name.len() + 1 < MAX_PLACE_NAME
        {
            let key = (device, inode, name.as_bytes().to_vec());
            self.sheet.places.entry(key).or_default().insert(rule);
        }
        let key = self.hold(&end).map_err(|_| none())?;
        self.sheet.executables.entry(key).or_default().insert(rule);
        Ok(end)
    }

    fn directory(&mut self, path: &Path) -> io::Result<(u32, u64)> {
        if let Some(known) = self.directories.get(path) {
            return Ok(*known);
        }
        let found = self.hold(path)?;
        self.directories.insert(path.to_owned(), found);
        Ok(found)
    }

    fn hold(&mut self, path: &Path) -> io::Result<(u32, u64)> {
        let (found, file) = hold(path, &self.mounts)?;
        let key = (found.device, found.inode);
        self.held.insert(key, file);
        Ok(key)
    }

    fn group(&mut self, rule: usize, matches: &Match) -> Result<(), String> {
        if let Some(unit) = &matches.unit {
            let unit = if unit.contains('.') {
                unit.clone()
            } else {
                format!("{unit}.service")
            };
            self.name(rule, node::UNIT, &unit)?;
        }
        if let Some(id) = &matches.flatpak {
            self.name(rule, node::STEM, &format!("app-flatpak-{}", escaped(id)))?;
        }
        if let Some(snap) = &matches.snap {
            self.name(rule, node::STEM, &format!("snap.{snap}"))?;
        }
        let Some(path) = &matches.cgroup else {
            return Ok(());
        };
        let parts: Vec<_> = path
            .components()
            .filter_map(|part| match part {
                Component::Normal(name) => Some(name),
                _ => None,
            })
            .collect();
        let Some((last, above)) = parts.split_last() else {
            // Everything is in the root.
            self.sheet.set.any[look::GROUP].insert(rule);
            return Ok(());
        };
        let mut at = node::ROOT;
        for part in above {
            at = self.node(at, part.as_bytes())?;
        }
        self.node(at, last.as_bytes())?;
        let key = (at, last.as_bytes().to_vec());
        self.sheet.groups.entry(key).or_default().bits.insert(rule);
        Ok(())
    }

    fn name(&mut self, rule: usize, parent: u32, name: &str) -> Result<(), String> {
        fits(name.as_bytes())?;
        let key = (parent, name.as_bytes().to_vec());
        self.sheet.groups.entry(key).or_default().bits.insert(rule);
        Ok(())
    }

    /// The node of the path that goes on from `parent` by `name`.
    fn node(&mut self, parent: u32, name: &[u8]) -> Result<u32, String> {
        fits(name)?;
        let group: &mut Group = self
            .sheet
            .groups
            .entry((parent, name.to_vec()))
            .or_default();
        if group.node == node::NONE {
            group.node = self.nodes;
            self.nodes += 1;
        }
        Ok(group.node)
    }
}

fn fits(name: &[u8]) -> Result<(), String> {
    // One that fills the room could be the beginning of a longer one.
    if name.len() + 1 < MAX_GROUP_NAME {
        return Ok(());
    }
    Err(format!(
        "`{}` is too long for a cgroup's name",
        String::from_utf8_lossy(name)
    ))
}

/// The interpreter of a script; `None` if the file is none.
fn interpreter(path: &Path) -> io::Result<Option<PathBuf>> {
    // As much as the kernel reads (`BINPRM_BUF_SIZE`).
    const HEAD: usize = 256;
    let mut head = Vec::with_capacity(HEAD);
    File::open(path)?.take(HEAD as u64).read_to_end(&mut head)?;
    let Some(line) = head.strip_prefix(b"#!") else {
        return Ok(None);
    };
    let line = line.split(|byte| *byte == b'\n').next().unwrap_or_default();
    let mut words = line
        .split(|byte| byte.is_ascii_whitespace() || *byte == 0)
        .filter(|word| !word.is_empty());
    Ok(words
        .next()
        .map(|word| PathBuf::from(std::ffi::OsStr::from_bytes(word))))
}

/// As systemd writes it in the name of a unit, and Flatpak after it.
fn escaped(id: &str) -> String {
    use std::fmt::Write as _;
    let mut text = String::new();
    for (at, byte) in id.bytes().enumerate() {
        if byte.is_ascii_alphanumeric() || byte == b':' || byte == b'_' || byte == b'.' && at > 0 {
            text.push(byte.into());
        } else {
            let _ = write!(text, "\\x{byte:02x}");
        }
    }
    text
}

fn shown(user: &User) -> String {
    match user {
        User::Id(id) => id.to_string(),
        User::Name(name) => name.clone(),
    }
}

/// The number of a user, as the system's own data bases have it.
fn number(user: &User) -> Option<u32> {
    let name = match user {
        User::Id(id) => return Some(*id),
        User::Name(name) => CString::new(name.as_str()).ok()?,
    };
    let mut buffer = vec![0; 16 << 10];
    // SAFETY: all zero is a valid value of this C struct.
    let mut entry: libc::passwd = unsafe { std::mem::zeroed() };
    let mut found = std::ptr::null_mut();
    // SAFETY: the name ends with a zero, and the buffer is as long as it is said to be.
    let failed = unsafe {
        libc::getpwnam_r(
            name.as_ptr(),
            &raw mut entry,
            buffer.as_mut_ptr(),
            buffer.len(),
            &raw mut found,
        )
    };
    (failed == 0 && !found.is_null()).then_some(entry.pw_uid)
}

/// Which rule names what has these bits in each look, if it is looked at.
pub(super) fn first(sheet: &Sheet, bits: &[RuleBits; look::COUNT]) -> Option<usize> {
    (0..sheet.outline.words.into()).find_map(|word| {
        let mut hit = u64::MAX;
        for (at, bits) in bits.iter().enumerate() {
            if sheet.outline.looks >> at & 1 == 1 {
                hit &= sheet.set.any[at].words[word] | bits.words[word];
            }
        }
        (hit != 0).then(|| word * 64 + hit.trailing_zeros() as usize)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn identifier_is_written_as_systemd_writes_it() {
        assert_eq!(escaped("org.mozilla.firefox"), "org.mozilla.firefox");
        assert_eq!(escaped("com.my-app"), r"com.my\x2dapp");
    }

    #[test]
    fn root_has_the_number_nought() {
        assert_eq!(number(&User::Name("root".into())), Some(0));
        assert_eq!(number(&User::Name("no such user".into())), None);
    }
}
