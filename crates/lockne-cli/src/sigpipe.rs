//! What SIGPIPE did when lockne was started, for the program that lockne becomes.
//!
//! Rust ignores the signal before `main` and gives it its default again before `exec`. But whoever
//! started lockne may have had it ignored, as systemd does for its services, and the program shall find
//! everything as if lockne had not been there.

use std::{
    os::unix::process::CommandExt as _,
    process::Command,
    sync::atomic::{AtomicBool, Ordering},
};

static IGNORED: AtomicBool = AtomicBool::new(false);

/// The loader calls this before Rust's own start.
#[used]
#[unsafe(link_section = ".init_array")]
static BEFORE_MAIN: extern "C" fn() = look;

extern "C" fn look() {
    // SAFETY: `sigaction` is plain data, for which zeros are valid.
    let mut action: libc::sigaction = unsafe { std::mem::zeroed() };
    // SAFETY: a null pointer changes nothing; the other one points to what we own.
    let result = unsafe { libc::sigaction(libc::SIGPIPE, std::ptr::null(), &raw mut action) };
    let ignored = result == 0 && action.sa_sigaction == libc::SIG_IGN;
    IGNORED.store(ignored, Ordering::Relaxed);
}

/// Lets `command` find SIGPIPE as lockne found it.
pub(crate) fn keep(command: &mut Command) {
    if !IGNORED.load(Ordering::Relaxed) {
        return;
    }
    let ignore = || {
        // SAFETY: `SIG_IGN` is a valid handler, and signal(2) may be called at any time.
        unsafe { libc::signal(libc::SIGPIPE, libc::SIG_IGN) };
        Ok(())
    };
    // SAFETY: the closure only calls signal(2), which is async-signal-safe.
    unsafe { command.pre_exec(ignore) };
}
