//! Programs that tests start.
//!
//! Some are written by tests and started at once. What this process has open for writing, a child that another thread
//! starts has open too until it has become its program, and for so long nobody can start it: `ETXTBSY`.

use std::{
    io::{self, Write as _},
    path::Path,
    process::{Child, Command, ExitStatus, Stdio},
};

/// A program that ends when this is dropped, also when a test fails.
#[derive(Debug)]
pub struct Killed(pub Child);

impl Drop for Killed {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ended = self.0.kill();
        let _ended = self.0.wait();
    }
}

/// Puts a copy of the program `from` at `to`, with the same permissions.
///
/// # Errors
///
/// Those of starting `cp`, and that it failed.
pub fn copy(from: &Path, to: &Path) -> io::Result<()> {
    let status = Command::new("cp").arg(from).arg(to).status()?;
    succeeded("cp", status)
}

/// Writes a program that everybody may start.
///
/// # Errors
///
/// Those of starting `sh` and of writing to it, and that it failed.
pub fn write(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let mut sh = Command::new("sh")
        .args(["-c", r#"cat > "$0" && chmod 755 "$0""#])
        .arg(path)
        .stdin(Stdio::piped())
        .spawn()?;
    sh.stdin.take().expect("it is a pipe").write_all(bytes)?;
    succeeded("sh", sh.wait()?)
}

fn succeeded(program: &str, status: ExitStatus) -> io::Result<()> {
    if status.success() {
        return Ok(());
    }
    Err(io::Error::other(format!("{program}: {status}")))
}
