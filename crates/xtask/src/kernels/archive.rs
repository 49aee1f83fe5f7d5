//! The initial file system of a machine: a cpio archive in the format `newc`.

use std::{
    collections::BTreeSet,
    fs,
    io::Write,
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result};

/// An archive that is being written.
pub(crate) struct Archive<W> {
    out: W,
    /// Number of the next file; two with the same would be one.
    next: u32,
    present: BTreeSet<PathBuf>,
}

const FOLDER: u32 = 0o040_755;
const LINK: u32 = 0o120_777;
const FILE: u32 = 0o100_000;

impl<W: Write> Archive<W> {
    /// An empty one. The kernel takes several, one behind the other.
    pub(crate) fn new(out: W) -> Self {
        Self {
            out,
            next: 1,
            present: BTreeSet::new(),
        }
    }

    /// Adds a folder, with those above it.
    pub(crate) fn folder(&mut self, path: &Path) -> Result<()> {
        let folders: Vec<_> = path.ancestors().collect();
        for folder in folders.into_iter().rev() {
            if folder.file_name().is_some() && self.present.insert(folder.to_owned()) {
                self.entry(folder, FOLDER, b"")?;
            }
        }
        Ok(())
    }

    /// Adds a symbolic link.
    pub(crate) fn link(&mut self, path: &Path, target: &str) -> Result<()> {
        self.put(path, LINK, target.as_bytes())
    }

    /// Adds a file.
    pub(crate) fn file(&mut self, path: &Path, mode: u32, content: &[u8]) -> Result<()> {
        self.put(path, FILE | mode & 0o7777, content)
    }

    /// Adds a file of this machine, at `path`.
    pub(crate) fn copy(&mut self, path: &Path, from: &Path) -> Result<()> {
        if self.has(path) {
            return Ok(());
        }
        let cannot = || format!("cannot read {}", from.display());
        let content = fs::read(from).with_context(cannot)?;
        let mode = fs::metadata(from)
            .with_context(cannot)?
            .permissions()
            .mode();
        self.file(path, mode, &content)
    }

    /// Whether something is there.
    pub(crate) fn has(&self, path: &Path) -> bool {
        self.present.contains(path)
    }

    /// Ends it.
    pub(crate) fn finish(mut self) -> Result<W> {
        self.entry(Path::new("TRAILER!!!"), 0, b"")?;
        Ok(self.out)
    }

    fn put(&mut self, path: &Path, mode: u32, content: &[u8]) -> Result<()> {
        if let Some(parent) = path.parent() {
            self.folder(parent)?;
        }
        if self.present.insert(path.to_owned()) {
            self.entry(path, mode, content)?;
        }
        Ok(())
    }

    fn entry(&mut self, path: &Path, mode: u32, content: &[u8]) -> Result<()> {
        let name = path.strip_prefix("/").unwrap_or(path);
        let name = name.to_str().context("a name that is no text")?;
        let size = u32::try_from(content.len()).context("a file beyond 4 GiB")?;
        let name_size = u32::try_from(name.len() + 1)?;
        // Magic, then: inode, mode, user, group, links, time, size, device, its device, name, checksum.
        let fields = [self.next, mode, 0, 0, 1, 0, size, 0, 0, 0, 0, name_size, 0];
        self.next += 1;
        write!(self.out, "070701")?;
        for field in fields {
            write!(self.out, "{field:08x}")?;
        }
        self.out.write_all(name.as_bytes())?;
        self.out.write_all(b"\0")?;
        self.pad(110 + name.len() + 1)?;
        self.out.write_all(content)?;
        self.pad(content.len())
    }

    fn pad(&mut self, length: usize) -> Result<()> {
        Ok(self.out.write_all(&[0; 3][..length.wrapping_neg() % 4])?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cpio_reads_what_is_written() {
        let mut archive = Archive::new(Vec::new());
        archive.file(Path::new("/a/b/c"), 0o755, b"hello").unwrap();
        archive.link(Path::new("/l"), "a/b").unwrap();
        let bytes = archive.finish().unwrap();

        assert_eq!(bytes.len() % 4, 0);
        let text = String::from_utf8_lossy(&bytes);
        let names: Vec<_> = text
            .split("070701")
            .skip(1)
            .map(|entry| entry[104..].split('\0').next().unwrap())
            .collect();
        assert_eq!(names, ["a", "a/b", "a/b/c", "l", "TRAILER!!!"]);
    }
}
