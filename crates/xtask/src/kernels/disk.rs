//! What a machine finds when it boots: the tests, the programs they start, and all of this machine's
//! libraries that these need.

use std::{
    collections::BTreeSet,
    env, fs,
    io::BufWriter,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context as _, Result, bail};

use super::{
    archive::Archive,
    debian::{run, unpack_with_dependencies},
    guest::{MODULES, PLAN, Plan},
    module,
    suite::{Built, MODULES as MODULES_SUITE, SERVICE},
    systemd,
};

/// Programs of others that tests start.
const TOOLS: [&str; 55] = [
    "basename",
    "bash",
    "bpftool",
    "busybox",
    "bwrap",
    "cat",
    "chmod",
    "cp",
    "curl",
    "cut",
    "dig",
    "dirname",
    "dnsmasq",
    "env",
    "false",
    "getent",
    "grep",
    "head",
    "hey",
    "id",
    "ip",
    "iperf3",
    "kill",
    "ln",
    "ls",
    "mkdir",
    "mount",
    "nft",
    "nsenter",
    "ping",
    "ps",
    "python3",
    "readlink",
    "rm",
    "script",
    "sed",
    "setpriv",
    "setsid",
    "sh",
    "sleep",
    "sort",
    "ss",
    "stat",
    "sysctl",
    "tail",
    "tc",
    "tee",
    "touch",
    "true",
    "umount",
    "uname",
    "unshare",
    "wg",
    "wg-quick",
    "wireguard-go",
];

/// Small files that programs expect.
const FILES: [(&str, &str); 6] = [
    (
        "/etc/group",
        "root:x:0:\nsystemd-resolve:x:998:\nnogroup:x:65534:\n",
    ),
    ("/etc/hostname", "kernel\n"),
    (
        "/etc/hosts",
        "127.0.0.1 localhost kernel\n::1 localhost kernel\n",
    ),
    ("/etc/nsswitch.conf", "hosts: files dns\n"),
    (
        "/etc/passwd",
        "root:x:0:0:root:/root:/bin/sh\nsystemd-resolve:x:998:998:resolver:/:/bin/sh\nnobody:x:65534:65534:nobody:/:/bin/sh\n",
    ),
    // Nobody answers there, and says so at once.
    ("/etc/resolv.conf", "nameserver 127.0.0.1\n"),
];

/// Where systemd-resolved is unpacked, in the cache: to install it would change how this machine finds names.
const RESOLVED: &str = "resolved";

/// Fetches systemd-resolved, and what makes libc ask it. Returns its root, and the files of it
/// that are needed: where they belong, and where they are.
fn resolved(place: &Path) -> Result<(PathBuf, Vec<(PathBuf, PathBuf)>)> {
    const SERVER: &str = "usr/lib/systemd/systemd-resolved";
    let own = Path::new("/");
    let root = if own.join(SERVER).exists() {
        own.to_owned()
    } else {
        place.join(RESOLVED)
    };
    if !root.exists() {
        let packages = ["systemd-resolved", "libnss-resolve"];
        unpack_with_dependencies(&packages, &place.join("apt").join(RESOLVED), &root)
            .context("cannot fetch systemd-resolved")?;
    }
    let candidates = [
        SERVER,
        "lib/systemd/systemd-resolved",
        "usr/lib/x86_64-linux-gnu/libnss_resolve.so.2",
        "lib/x86_64-linux-gnu/libnss_resolve.so.2",
    ];
    let found = candidates
        .into_iter()
        .map(|path| (own.join(path), root.join(path)))
        .filter(|(_, path)| path.is_file());
    let found = found.collect();
    Ok((root, found))
}

/// Writes what is the same on every kernel. Returns which tools this machine lacks.
pub(crate) fn write(built: &Built, place: &Path, file: &Path) -> Result<Vec<&'static str>> {
    let needs_resolved = built.tests.iter().any(|(suite, _)| *suite == MODULES_SUITE);
    let resolved = if needs_resolved {
        resolved(place)?
    } else {
        (PathBuf::from("/"), Vec::new())
    };
    let mut disk = Disk::new(file)?;
    disk.archive.link(Path::new("/bin"), "usr/bin")?;
    disk.archive.link(Path::new("/sbin"), "usr/sbin")?;
    disk.archive.link(Path::new("/lib"), "usr/lib")?;
    disk.archive.link(Path::new("/lib64"), "usr/lib64")?;
    disk.archive.link(Path::new("/var/run"), "/run")?;
    for folder in [
        "/dev",
        "/proc",
        "/root",
        "/run",
        "/sys",
        "/tmp",
        "/var/tmp",
        "/usr/sbin",
    ] {
        disk.archive.folder(Path::new(folder))?;
    }
    for (path, text) in FILES {
        disk.archive.file(Path::new(path), 0o644, text.as_bytes())?;
    }
    disk.archive.link(Path::new("/etc/mtab"), "/proc/mounts")?;

    let init = env::current_exe().context("cannot find this program")?;
    let own = built.tests.iter().map(|(_, path)| path);
    let stripped = place.join("stripped");
    fs::create_dir_all(&stripped).with_context(|| format!("cannot make {}", stripped.display()))?;
    for (at, program) in own
        .chain(&built.programs)
        .map(|path| (path.as_path(), path))
        .chain([(Path::new("/init"), &init)])
    {
        // What only a debugger reads is most of it.
        let name = program.file_name().context("a program without a name")?;
        let small = stripped.join(name);
        run(Command::new("strip")
            .arg("--strip-debug")
            .arg("-o")
            .args([&small, program]))?;
        disk.program(at, &small)?;
    }
    let (root, files) = resolved;
    for (at, from) in files {
        disk.program_of(&root, &at, &from)?;
    }
    let mut missing = Vec::new();
    for tool in TOOLS {
        match find(tool) {
            Some(path) => disk.program(&path, &path)?,
            None => missing.push(tool),
        }
    }
    disk.python()?;
    if built.tests.iter().any(|(suite, _)| *suite == SERVICE) {
        missing.extend(disk.systemd()?);
    }
    disk.finish()?;
    Ok(missing)
}

/// Writes what depends on the kernel, behind a copy of what does not.
pub(crate) fn write_for(modules: &Path, plan: &mut Plan, base: &Path, file: &Path) -> Result<()> {
    fs::copy(base, file).with_context(|| format!("cannot write {}", file.display()))?;
    let out = fs::File::options()
        .append(true)
        .open(file)
        .with_context(|| format!("cannot write {}", file.display()))?;
    let mut archive = Archive::new(BufWriter::new(out));
    for module in module::closure(modules)? {
        let path = Path::new(MODULES).join(&module.name);
        archive.file(&path, 0o644, &module.content)?;
        plan.modules.push(module.name);
    }
    let plan = serde_json::to_vec(plan)?;
    archive.file(Path::new(PLAN), 0o644, &plan)?;
    archive.finish()?;
    Ok(())
}

struct Disk {
    archive: Archive<BufWriter<fs::File>>,
    libraries: BTreeSet<PathBuf>,
}

impl Disk {
    fn new(file: &Path) -> Result<Self> {
        let out =
            fs::File::create(file).with_context(|| format!("cannot write {}", file.display()))?;
        Ok(Self {
            archive: Archive::new(BufWriter::new(out)),
            libraries: BTreeSet::new(),
        })
    }

    /// Adds a program with its libraries.
    fn program(&mut self, at: &Path, from: &Path) -> Result<()> {
        self.program_of(Path::new("/"), at, from)
    }

    /// The same, with libraries below `root` before those of this machine.
    fn program_of(&mut self, root: &Path, at: &Path, from: &Path) -> Result<()> {
        let at = settled(at);
        if self.archive.has(&at) {
            return Ok(());
        }
        let from =
            fs::canonicalize(from).with_context(|| format!("cannot find {}", from.display()))?;
        self.archive.copy(&at, &from)?;
        for library in libraries(root, &from)? {
            if self.libraries.insert(library.clone()) {
                let at = library.strip_prefix(root).unwrap_or(&library);
                self.archive
                    .copy(&settled(&Path::new("/").join(at)), &library)?;
            }
        }
        Ok(())
    }

    /// Adds systemd. Returns what this machine lacks of it.
    fn systemd(&mut self) -> Result<Vec<&'static str>> {
        let mut missing = Vec::new();
        for program in systemd::PROGRAMS {
            let path = Path::new(program);
            if path.exists() {
                self.program(path, path)?;
            } else {
                missing.push(program);
            }
        }
        for unit in systemd::UNITS {
            let path = Path::new(systemd::FOLDER).join(unit);
            if path.exists() {
                self.archive.copy(&path, &path)?;
            }
        }
        Ok(missing)
    }

    /// Adds what Python finds beside it: its library.
    fn python(&mut self) -> Result<()> {
        const PYTHON: &str = "/usr/bin/python3";
        let Ok(program) = fs::canonicalize(PYTHON) else {
            return Ok(());
        };
        let name = program.file_name().context("a program without a name")?;
        self.folder(&Path::new("/usr/lib").join(name))
    }

    /// Adds a folder of this machine, but not what nobody imports who tests.
    fn folder(&mut self, path: &Path) -> Result<()> {
        const NOT: [&str; 7] = [
            "config-3",
            "dist-packages",
            "ensurepip",
            "idlelib",
            "lib2to3",
            "pydoc_data",
            "tkinter",
        ];
        let cannot = || format!("cannot read {}", path.display());
        for entry in fs::read_dir(path).with_context(cannot)? {
            let entry = entry.with_context(cannot)?;
            let name = entry.file_name();
            if NOT
                .iter()
                .any(|not| name.to_string_lossy().starts_with(not))
            {
                continue;
            }
            let path = entry.path();
            if path.is_dir() {
                self.folder(&path)?;
            } else if path.is_file() {
                self.archive.copy(&path, &path)?;
            }
        }
        Ok(())
    }

    fn finish(self) -> Result<()> {
        self.archive.finish().map(drop)
    }
}

/// The path below `/usr`, where the folders of the root lead to.
fn settled(path: &Path) -> PathBuf {
    let moved = ["/bin", "/sbin", "/lib", "/lib64"];
    if moved.into_iter().any(|folder| path.starts_with(folder)) {
        return Path::new("/usr").join(path.strip_prefix("/").unwrap_or(path));
    }
    path.to_owned()
}

/// The libraries that the dynamic linker loads for a program, below `root` or this machine's.
fn libraries(root: &Path, program: &Path) -> Result<Vec<PathBuf>> {
    let mut ldd = Command::new("ldd");
    if root != Path::new("/") {
        let folders = ["usr/lib", "lib"].map(|lib| root.join(lib).join("x86_64-linux-gnu"));
        let private = folders.clone().map(|folder| folder.join("systemd"));
        ldd.env(
            "LD_LIBRARY_PATH",
            env::join_paths(folders.iter().chain(&private))?,
        );
    }
    let output = ldd.arg(program).output().context("cannot run ldd")?;
    let text = String::from_utf8_lossy(&output.stdout);
    // `ldd` fails on a program that needs none.
    let mut found = Vec::new();
    for line in text.lines() {
        if line.contains("not found") {
            bail!("{}: {}", program.display(), line.trim());
        }
        let path = line.split_whitespace().find(|word| word.starts_with('/'));
        found.extend(path.map(PathBuf::from));
    }
    Ok(found)
}

/// Debian's own come first: what somebody has put before them may be a script, for another version of the program.
fn find(tool: &str) -> Option<PathBuf> {
    let debian = ["/usr/bin", "/usr/sbin"].map(|folder| Path::new(folder).join(tool));
    if let Some(program) = debian.into_iter().find(|program| program.is_file()) {
        return Some(program);
    }
    which::which(tool).ok()
}
