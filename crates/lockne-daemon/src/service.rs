//! What a service manager gives the daemon, and hears of it (`sd_listen_fds(3)`, `sd_notify(3)`).

use std::{
    io,
    os::fd::{FromRawFd as _, OwnedFd, RawFd},
    path::Path,
    time::Duration,
};

use sd_notify::NotifyState;
use tokio::net::UnixListener;

/// The control socket, if the service manager has made it.
///
/// It must be the one at `path`, where clients look.
pub(crate) fn listener(path: &Path) -> io::Result<Option<UnixListener>> {
    let mut handed = sd_notify::listen_fds()?;
    let Some(fd) = handed.next() else {
        return Ok(None);
    };
    if handed.next().is_some() {
        return Err(io::Error::other(
            "the service manager gives more than one socket",
        ));
    }
    let listener = take(fd)?;
    listener.set_nonblocking(true)?;
    let address = listener.local_addr()?;
    if address.as_pathname() != Some(path) {
        return Err(io::Error::other(format!(
            "the service manager listens on {address:?} instead"
        )));
    }
    UnixListener::from_std(listener).map(Some)
}

fn take(fd: RawFd) -> io::Result<std::os::unix::net::UnixListener> {
    // SAFETY: `LISTEN_PID` says that the descriptor is for us, and nobody else here has taken it.
    let fd = unsafe { OwnedFd::from_raw_fd(fd) };
    rustix::io::fcntl_setfd(&fd, rustix::io::FdFlags::CLOEXEC)?;
    Ok(fd.into())
}

/// Says that the daemon serves.
pub(crate) fn ready() {
    tell(&[NotifyState::Ready]);
}

/// Says what it does, in the line that `systemctl status` shows.
pub(crate) fn status(text: &str) {
    tell(&[NotifyState::Status(text)]);
}

/// Says that it ends.
pub(crate) fn stopping() {
    tell(&[NotifyState::Stopping]);
}

/// Says that the loop still turns.
pub(crate) fn alive() {
    tell(&[NotifyState::Watchdog]);
}

/// How often [`alive`] is to be said, where somebody listens: twice in the time allowed.
pub(crate) fn watchdog() -> Option<Duration> {
    sd_notify::watchdog_enabled().map(|time| time / 2)
}

fn tell(state: &[NotifyState<'_>]) {
    if let Err(error) = sd_notify::notify(state) {
        tracing::debug!(%error, "the service manager does not listen");
    }
}
