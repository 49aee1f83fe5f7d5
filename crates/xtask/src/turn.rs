//! What would disturb each other takes turns.

use std::{
    fs::{self, File, TryLockError},
    path::Path,
};

use anyhow::{Context as _, Result};

use crate::ebpf::say;

/// As long as this is there, it is ours; it goes with the process, however that ends.
pub(crate) struct Turn(#[expect(dead_code, reason = "held for its lock")] File);

impl Turn {
    /// Waits until no other `cargo xtask bench` or `kernels` is at work in this `target` folder: they share what they
    /// fetch, and what one measures would be the other.
    pub(crate) fn wait(target: &Path) -> Result<Self> {
        let path = target.join("xtask.lock");
        let failed = || format!("cannot lock {}", path.display());
        fs::create_dir_all(target).with_context(failed)?;
        let file = File::create(&path).with_context(failed)?;
        match file.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => {
                say(
                    "another `cargo xtask bench` or `kernels` is at work here; waiting for its end",
                );
                file.lock().with_context(failed)?;
            }
            Err(TryLockError::Error(error)) => return Err(error).with_context(failed),
        }
        Ok(Self(file))
    }
}

#[cfg(test)]
mod tests {
    use std::{sync::mpsc, thread, time::Duration};

    use super::*;

    #[test]
    fn second_waits_for_the_first() {
        let target = tempfile::tempdir().unwrap();
        let first = Turn::wait(target.path()).unwrap();
        let path = target.path().to_owned();
        let (done, second) = mpsc::channel();
        let waiting = thread::spawn(move || {
            let turn = Turn::wait(&path).unwrap();
            done.send(()).unwrap();
            drop(turn);
        });

        assert!(second.recv_timeout(Duration::from_millis(200)).is_err());
        drop(first);

        second.recv_timeout(Duration::from_secs(30)).unwrap();
        waiting.join().unwrap();
    }
}
