//! Where the members of the kernel's structs are, from the kernel's own description of its types.
//!
//! Aya keeps its parser to itself, so this reads as much of the format as that takes:
//! `Documentation/bpf/btf.rst` of Linux.

use std::{fs, path::Path};

use super::Error;

/// Where the kernel describes its types.
pub(crate) const PATH: &str = "/sys/kernel/btf/vmlinux";

const MAGIC: u16 = 0xeb9f;

const STRUCT: u32 = 4;
const UNION: u32 = 5;
/// Typedef, volatile, const, restrict, and type tag: names for, or remarks on, another type.
const REMARKS: [u32; 5] = [8, 9, 10, 11, 18];

/// A description of types.
pub(crate) struct Btf {
    data: Vec<u8>,
    /// The place of each type in `data`; the first is `void` and has none.
    types: Vec<usize>,
    strings: usize,
}

impl Btf {
    /// Reads the running kernel's types.
    pub(crate) fn of_kernel() -> Result<Self, Error> {
        let path = Path::new(PATH);
        let data = fs::read(path).map_err(|source| Error::NoBtf {
            path: path.to_owned(),
            source,
        })?;
        Self::parse(data).ok_or_else(|| Error::UnknownType {
            member: "anything".to_owned(),
        })
    }

    fn parse(data: Vec<u8>) -> Option<Self> {
        let mut btf = Self {
            data,
            types: vec![0],
            strings: 0,
        };
        if u16::from_ne_bytes(btf.data.get(..2)?.try_into().ok()?) != MAGIC {
            return None;
        }
        let header = btf.word(4)?;
        let mut at = header + btf.word(8)?;
        let end = at + btf.word(12)?;
        btf.strings = header + btf.word(16)?;
        while at < end {
            btf.types.push(at);
            at += 12 + trailer(btf.kind(at)?, btf.length(at)?)?;
        }
        Some(btf)
    }

    /// The byte offset of `member` in `structure`; a dot leads into a member that is a struct itself.
    /// Members of anonymous structs and unions count as their parent's, as in C.
    pub(crate) fn offset(&self, structure: &str, member: &str) -> Result<u32, Error> {
        self.types
            .iter()
            .skip(1)
            .filter(|at| {
                self.kind(**at) == Some(STRUCT) && self.name(**at) == Some(structure.as_bytes())
            })
            .find_map(|at| self.path(*at, member))
            .and_then(|bits| u32::try_from(bits / 8).ok())
            .ok_or_else(|| Error::UnknownType {
                member: format!("{structure}.{member}"),
            })
    }

    /// In bits.
    fn path(&self, structure: usize, path: &str) -> Option<usize> {
        match path.split_once('.') {
            None => Some(self.member(structure, path)?.0),
            Some((first, rest)) => {
                let (offset, inner) = self.member(structure, first)?;
                Some(offset + self.path(self.resolve(inner)?, rest)?)
            }
        }
    }

    /// The offset in bits and the type of a member.
    fn member(&self, structure: usize, name: &str) -> Option<(usize, usize)> {
        // A bit field has its size in the upper bits of its offset.
        let has_bit_fields = self.word(structure + 4)? >> 31 == 1;
        (0..self.length(structure)?).find_map(|i| {
            let at = structure + 12 + 12 * i;
            let (kind, raw) = (self.word(at + 4)?, self.word(at + 8)?);
            let offset = if has_bit_fields {
                raw & 0x00ff_ffff
            } else {
                raw
            };
            match self.name(at)? {
                found if found == name.as_bytes() => Some((offset, kind)),
                b"" => {
                    let (inner, kind) = self.member(self.resolve(kind)?, name)?;
                    Some((offset + inner, kind))
                }
                _ => None,
            }
        })
    }

    /// The struct or union that a type is.
    fn resolve(&self, mut id: usize) -> Option<usize> {
        loop {
            let at = *self.types.get(id).filter(|at| **at != 0)?;
            match self.kind(at)? {
                STRUCT | UNION => return Some(at),
                kind if REMARKS.contains(&kind) => id = self.word(at + 8)?,
                _ => return None,
            }
        }
    }

    fn kind(&self, at: usize) -> Option<u32> {
        u32::try_from(self.word(at + 4)? >> 24 & 0x1f).ok()
    }

    /// How many members a type has.
    fn length(&self, at: usize) -> Option<usize> {
        Some(self.word(at + 4)? & 0xffff)
    }

    /// The name that the word at `at` points to.
    fn name(&self, at: usize) -> Option<&[u8]> {
        let text = self.data.get(self.strings + self.word(at)?..)?;
        text.split(|byte| *byte == 0).next()
    }

    fn word(&self, at: usize) -> Option<usize> {
        let bytes = self.data.get(at..at + 4)?.try_into().ok()?;
        usize::try_from(u32::from_ne_bytes(bytes)).ok()
    }
}

/// How many bytes follow the twelve that each type has.
fn trailer(kind: u32, length: usize) -> Option<usize> {
    Some(match kind {
        // Pointer, forward, typedef, volatile, const, restrict, function, float, type tag.
        2 | 7..=12 | 16 | 18 => 0,
        // Integer, variable, declaration tag.
        1 | 14 | 17 => 4,
        // Array.
        3 => 12,
        // Enum, prototype.
        6 | 13 => 8 * length,
        // Struct, union, section, 64-bit enum.
        STRUCT | UNION | 15 | 19 => 12 * length,
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// `struct outer { int a; struct { union { int b; const inner c; }; }; int d:3; }` and
    /// `typedef struct { int x; int y; } inner`.
    fn sample() -> Vec<u8> {
        const STRINGS: &[u8] = b"\0int\0outer\0a\0b\0c\0d\0inner\0x\0y\0";
        let name = |name: &str| {
            let whole = format!("\0{name}\0");
            let at = STRINGS
                .windows(whole.len())
                .position(|w| w == whole.as_bytes());
            u32::try_from(at.unwrap() + 1).unwrap()
        };
        let words = [
            // 1: int
            vec![name("int"), 1 << 24, 4, 32],
            // 2: struct { int x; int y; }
            vec![0, 4 << 24 | 2, 8, name("x"), 1, 0, name("y"), 1, 32],
            // 3: typedef inner, 4: const inner
            vec![name("inner"), 8 << 24, 2],
            vec![0, 10 << 24, 3],
            // 5: union { int b; const inner c; }
            vec![0, 5 << 24 | 2, 8, name("b"), 1, 0, name("c"), 4, 0],
            // 6: struct { union; } after a hole
            vec![0, 4 << 24 | 1, 12, 0, 5, 32],
            // 7: outer, which has a bit field
            vec![
                name("outer"),
                1 << 31 | 4 << 24 | 3,
                20,
                name("a"),
                1,
                0,
                0,
                6,
                32,
                name("d"),
                1,
                3 << 24 | 128,
            ],
        ]
        .concat();
        let length = u32::try_from(words.len() * 4).unwrap();
        let mut data = 0xeb9f_u16.to_ne_bytes().to_vec();
        data.extend([1, 0]);
        let strings = u32::try_from(STRINGS.len()).unwrap();
        for word in [24, 0, length, length, strings].into_iter().chain(words) {
            data.extend(word.to_ne_bytes());
        }
        data.extend(STRINGS);
        data
    }

    #[test]
    fn members_of_anonymous_structs_are_found() {
        let btf = Btf::parse(sample()).unwrap();

        assert_eq!(btf.offset("outer", "a").unwrap(), 0);
        assert_eq!(btf.offset("outer", "b").unwrap(), 8);
        assert_eq!(btf.offset("outer", "c.y").unwrap(), 12);
        assert_eq!(btf.offset("outer", "d").unwrap(), 16);
    }

    #[test]
    fn missing_member_is_named() {
        let btf = Btf::parse(sample()).unwrap();

        let error = btf.offset("outer", "c.z").unwrap_err();

        assert_eq!(
            error.to_string(),
            "cannot find `outer.c.z` in the kernel's types"
        );
    }

    #[test]
    fn cut_off_description_is_refused_without_a_panic() {
        let whole = sample();
        for length in 0..whole.len() {
            let btf = Btf::parse(whole[..length].to_vec());

            if let Some(btf) = btf {
                let _ = btf.offset("outer", "c.y");
            }
        }
    }

    #[test]
    fn running_kernel_has_what_the_programs_read() {
        if !Path::new(PATH).exists() {
            eprintln!("ignored: {PATH} does not exist");
            return;
        }
        let btf = Btf::of_kernel().unwrap();

        let (tgid, pid) = (
            btf.offset("task_struct", "tgid").unwrap(),
            btf.offset("task_struct", "pid").unwrap(),
        );

        assert_eq!(tgid, pid + 4, "neighbours since Linux 2.6");
        assert!(btf.offset("sock", "__sk_common.skc_net.net").unwrap() < 128);
        assert!(btf.offset("net", "net_cookie").unwrap() > 0);
    }
}
