//! A cgroup for one command.

use std::{
    fs,
    os::unix::{fs::MetadataExt as _, process::CommandExt as _},
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::{Context as _, Result};
use tokio::process::{Child, Command};

use crate::failure::Hint;

/// A new cgroup. Dropping it ends what still runs in it and removes it.
#[derive(Debug)]
pub struct Cgroup {
    path: PathBuf,
}

impl Cgroup {
    /// Makes one below the root, named after the demo and this process.
    ///
    /// # Errors
    ///
    /// When the cgroup2 file system is not mounted or not writable.
    pub fn create(demo: &str) -> Result<Self> {
        let path = root()?.join(format!("{demo}-{}", std::process::id()));
        fs::create_dir(&path)
            .with_context(|| format!("cannot make the cgroup {}", path.display()))?;
        Ok(Self { path })
    }

    /// Where it is.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The number by which the kernel's programs know it: that of its directory.
    ///
    /// # Errors
    ///
    /// When it is gone.
    pub fn id(&self) -> Result<u64> {
        Ok(fs::metadata(&self.path)?.ino())
    }

    /// Starts a command inside, so that not even its first packet is missed.
    ///
    /// # Errors
    ///
    /// When there is no such command.
    pub fn start(&self, command: &[String]) -> Result<Child> {
        let (program, arguments) = command.split_first().context("there is no command")?;
        let procs = self.path.join("cgroup.procs");
        let mut command = std::process::Command::new(program);
        command.args(arguments);
        // SAFETY: opens and writes a file, which is allowed between fork and exec; "0" is who writes.
        unsafe { command.pre_exec(move || fs::write(&procs, "0")) };
        Command::from(command)
            .spawn()
            .with_context(|| format!("cannot start `{program}`"))
    }
}

impl Drop for Cgroup {
    fn drop(&mut self) {
        // Before Linux 5.14 there is no such file; then what runs on keeps the cgroup, which is said below.
        drop(fs::write(self.path.join("cgroup.kill"), "1"));
        for _ in 0..100 {
            if fs::remove_dir(&self.path).is_ok() {
                return;
            }
            // The killed need a moment to leave.
            std::thread::sleep(Duration::from_millis(10));
        }
        tracing::warn!("{} is still in use and stays", self.path.display());
    }
}

/// Where the cgroup2 hierarchy is mounted.
///
/// # Errors
///
/// When it is not.
pub fn root() -> Result<PathBuf> {
    let mounts =
        fs::read_to_string("/proc/self/mounts").context("cannot read /proc/self/mounts")?;
    mounts
        .lines()
        .map(|line| line.split(' ').collect::<Vec<_>>())
        .find(|fields| fields[2] == "cgroup2")
        .map(|fields| PathBuf::from(fields[1]))
        .context(Hint(
            "`mount -t cgroup2 none /sys/fs/cgroup` mounts it".to_owned(),
        ))
        .context("the cgroup2 hierarchy is not mounted")
}
