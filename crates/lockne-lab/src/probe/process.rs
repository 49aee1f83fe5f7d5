//! Who acts: the process itself, a thread, or somebody it forks.

use std::{
    io::{self, Write},
    os::fd::{AsFd as _, AsRawFd, BorrowedFd, FromRawFd, OwnedFd},
    process::{Command, ExitCode},
    thread,
    time::Duration,
};

use nix::{
    cmsg_space,
    errno::Errno,
    poll::{PollFd, PollFlags, PollTimeout, poll},
    sys::{
        socket::{ControlMessage, ControlMessageOwned, MsgFlags, recvmsg, sendmsg},
        wait::{WaitStatus, waitpid},
    },
    unistd::{ForkResult, Pid, fork, getppid, setsid},
};

use super::{Actor, Probe, act};

/// The line that says so.
pub(super) const READY: &str = "ready";

/// Acts as the right actor and prints the report.
pub(super) fn act(probe: &Probe) -> ExitCode {
    match probe.actor {
        Actor::Itself => report(probe),
        Actor::Thread => thread::scope(|scope| {
            let joined = scope.spawn(|| report(probe)).join();
            joined.unwrap_or(ExitCode::FAILURE)
        }),
        Actor::Program => in_program(probe),
        Actor::Child => in_child(|| report(probe)),
        Actor::Orphan => in_child(|| {
            let session = setsid().expect("a new child leads no process group");
            // The middle process only makes the grandchild.
            // SAFETY: this process has one thread, so no lock can be held by another.
            match unsafe { fork() } {
                Ok(ForkResult::Parent { .. }) => ExitCode::SUCCESS,
                Ok(ForkResult::Child) => {
                    while getppid() == session {
                        thread::yield_now();
                    }
                    report(probe)
                }
                Err(errno) => failed("fork", errno),
            }
        }),
    }
}

/// Says that the probe is ready for what comes next.
pub(super) fn say_ready() {
    say(READY);
}

/// Waits for a byte, and the socket beside it if one comes.
pub(super) fn wait_for_go() -> io::Result<Option<OwnedFd>> {
    receive_fd(&io::stdin())
}

/// Whether it is told to go on, or nobody is left who could, within this time.
pub(super) fn is_told_to_go(within: Duration) -> bool {
    let stdin = io::stdin();
    let mut word = [PollFd::new(stdin.as_fd(), PollFlags::POLLIN)];
    let within = PollTimeout::try_from(within).unwrap_or(PollTimeout::ZERO);
    poll(&mut word, within).is_ok_and(|ready| ready > 0)
}

/// Sends a byte, and a descriptor beside it.
pub(crate) fn give_fd(stream: &impl AsRawFd, fd: BorrowedFd<'_>) -> io::Result<()> {
    let fds = [fd.as_raw_fd()];
    let byte = [io::IoSlice::new(b"!")];
    let message = [ControlMessage::ScmRights(&fds)];
    let flags = MsgFlags::MSG_NOSIGNAL;
    sendmsg::<()>(stream.as_raw_fd(), &byte, &message, flags, None)?;
    Ok(())
}

/// Waits for a byte, and the descriptor beside it if one comes.
pub(crate) fn receive_fd(stream: &impl AsRawFd) -> io::Result<Option<OwnedFd>> {
    let mut byte = [0];
    let mut byte = [io::IoSliceMut::new(&mut byte)];
    let mut space = cmsg_space!([i32; 1]);
    let message = recvmsg::<()>(
        stream.as_raw_fd(),
        &mut byte,
        Some(&mut space),
        MsgFlags::MSG_CMSG_CLOEXEC,
    )?;
    if message.bytes == 0 {
        return Err(io::ErrorKind::UnexpectedEof.into());
    }
    let sockets = message.cmsgs()?.find_map(|control| match control {
        ControlMessageOwned::ScmRights(sockets) => sockets.first().copied(),
        _ => None,
    });
    // SAFETY: the kernel has just made this descriptor for us, and nobody else knows of it.
    Ok(sockets.map(|socket| unsafe { OwnedFd::from_raw_fd(socket) }))
}

/// Forks, and gives how `child` ended; `None` if it was killed.
pub(super) fn fork_and_wait(child: impl FnOnce() -> u8) -> nix::Result<Option<u8>> {
    // SAFETY: this process has one thread, so no lock can be held by another.
    match unsafe { fork() }? {
        ForkResult::Child => {
            let code = child();
            // SAFETY: it ends this process and touches nothing; what is buffered is the parent's.
            unsafe { libc::_exit(code.into()) }
        }
        ForkResult::Parent { child } => wait_for(child),
    }
}

/// Starts this very program anew, which the standard library does by `posix_spawn`.
fn in_program(probe: &Probe) -> ExitCode {
    let started = probe.clone().by(Actor::Itself).arguments().and_then(|it| {
        let (program, arguments) = it.split_first().expect("the program is always there");
        Command::new(program).args(arguments).status()
    });
    match started {
        Ok(status) if status.success() => ExitCode::SUCCESS,
        Ok(_) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("posix_spawn: {error}");
            ExitCode::FAILURE
        }
    }
}

fn in_child(work: impl FnOnce() -> ExitCode) -> ExitCode {
    let outcome = fork_and_wait(|| u8::from(work() != ExitCode::SUCCESS));
    match outcome {
        Ok(Some(0)) => ExitCode::SUCCESS,
        Ok(_) => ExitCode::FAILURE,
        Err(errno) => failed("fork", errno),
    }
}

fn wait_for(child: Pid) -> nix::Result<Option<u8>> {
    loop {
        match waitpid(child, None) {
            Ok(WaitStatus::Exited(_, code)) => return Ok(u8::try_from(code).ok()),
            Ok(_) => return Ok(None),
            Err(Errno::EINTR) => {}
            Err(errno) => return Err(errno),
        }
    }
}

fn report(probe: &Probe) -> ExitCode {
    let report = act::act(probe);
    say(&serde_json::to_string(&report).expect("a report is plain data"));
    ExitCode::SUCCESS
}

fn say(line: &str) {
    let mut output = io::stdout().lock();
    // Nobody listens any more if it fails.
    let _ = writeln!(output, "{line}").and_then(|()| output.flush());
}

fn failed(call: &str, errno: Errno) -> ExitCode {
    eprintln!("{call}: {errno}");
    ExitCode::FAILURE
}
