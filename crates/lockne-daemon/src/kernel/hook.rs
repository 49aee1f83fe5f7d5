//! Where the programs sit, and how one takes the place of its predecessor.

use std::{
    fs, io,
    os::fd::{AsFd as _, BorrowedFd},
    path::{Path, PathBuf},
};

use aya::Ebpf;
use lockne_abi::name;

use super::{
    Error, cgroup, object,
    sys::{self, Target},
};

/// Number of the hook at a cgroup, `enum bpf_attach_type`; `None` for tracepoints.
pub(super) type Hook = Option<u32>;

/// Every program that is attached once, in the order in which they begin to act: who is policed is
/// known before sockets are marked, and what is marked is guarded.
pub(super) const HOOKS: [(&str, Hook); 16] = [
    (name::FOLLOW_FORK, None),
    (name::FORGET_EXIT, None),
    (name::FORGET_MISSED, None),
    (name::DECIDE_EXEC, None),
    (name::DECIDE_MISSED, None),
    (name::GUARD_EGRESS, Some(1)),
    (name::MARK_SOCKET, Some(2)),
    (name::KEEP_MARK, Some(22)),
    (name::CONNECT4, Some(10)),
    (name::CONNECT6, Some(11)),
    (name::SENDMSG4, Some(14)),
    (name::SENDMSG6, Some(15)),
    (name::RECVMSG4, Some(19)),
    (name::RECVMSG6, Some(20)),
    (name::GETPEERNAME4, Some(29)),
    (name::GETPEERNAME6, Some(30)),
];

/// Those that this kernel needs.
pub(super) fn needed() -> impl Iterator<Item = (&'static str, Hook)> {
    HOOKS
        .into_iter()
        .filter(|(name, _)| object::is_needed(name))
}

/// Attaches all of them and pins their links, or puts them where their predecessors are.
pub(super) fn attach(ebpf: &Ebpf, pins: &Path) -> Result<(), Error> {
    let root = cgroup::root()?;
    for (name, hook) in needed() {
        let program = program_fd(ebpf, name)?;
        let pin = pins.join(name);
        match hook {
            None => trace(program, name, &pin)?,
            Some(hook) => sit(root.as_fd(), program, (name, hook), &pin)?,
        }
    }
    Ok(())
}

/// Attaches a program to a hook of the root, or puts it where its predecessor is.
fn sit(
    root: BorrowedFd<'_>,
    program: BorrowedFd<'_>,
    (name, hook): (&'static str, u32),
    pin: &Path,
) -> Result<(), Error> {
    match sys::open_pin(pin) {
        Ok(link) => sys::replace(link.as_fd(), program).map_err(failed("replace", name)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            let target = Target::Cgroup(root, hook);
            let link = sys::attach(program, &target).map_err(|source| occupied(source, name))?;
            sys::pin(link.as_fd(), pin).map_err(failed("pin", name))
        }
        Err(error) => Err(failed("find", name)(error)),
    }
}

/// Attaches a program that Aya has not loaded.
pub(super) fn attach_one(
    program: BorrowedFd<'_>,
    hook: (&'static str, u32),
    pins: &Path,
) -> Result<(), Error> {
    let root = cgroup::root()?;
    sit(root.as_fd(), program, hook, &pins.join(hook.0))
}

/// The kernel cannot replace the program of a tracepoint: the new one begins before the old one ends.
/// Both do the same to the same bytes.
fn trace(program: BorrowedFd<'_>, name: &'static str, pin: &Path) -> Result<(), Error> {
    let link = sys::attach(program, &Target::Tracepoint).map_err(failed("attach", name))?;
    let new = replacement(pin);
    if new.exists() {
        // Left by a daemon that died right here.
        fs::remove_file(&new).map_err(failed("unpin", name))?;
    }
    sys::pin(link.as_fd(), &new).map_err(failed("pin", name))?;
    fs::rename(&new, pin).map_err(failed("pin", name))
}

/// Where the successor of a tracepoint's link waits for its place. The file system allows no dots.
pub(super) fn replacement(pin: &Path) -> PathBuf {
    let mut name = pin.as_os_str().to_owned();
    name.push("-new");
    name.into()
}

/// The loaded program `name`.
pub(super) fn program_fd<'a>(ebpf: &'a Ebpf, name: &str) -> Result<BorrowedFd<'a>, Error> {
    let program = ebpf.program(name).expect("the object has the program");
    let fd = program.fd().map_err(|error| Error::program(name, error))?;
    Ok(fd.as_fd())
}

fn failed(action: &'static str, program: &str) -> impl FnOnce(io::Error) -> Error {
    let program = program.to_owned();
    move |source| Error::Link {
        action,
        program,
        source,
    }
}

/// The programs are loaded by now, so it is not for a lack of privileges that the kernel says `EPERM`.
fn occupied(source: io::Error, program: &'static str) -> Error {
    if source.kind() == io::ErrorKind::PermissionDenied {
        Error::Occupied { program }
    } else {
        failed("attach", program)(source)
    }
}
