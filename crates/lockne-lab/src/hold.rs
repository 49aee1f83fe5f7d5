//! A process that has many sockets or children, for benchmarks: what others pay must not grow with them.

use std::{
    io::{self, Read as _, Write as _},
    net::{IpAddr, Ipv4Addr, UdpSocket},
    ptr,
};

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

/// What is held.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Thing {
    /// UDP sockets, bound to the loopback.
    Sockets,
    /// Children that do nothing.
    Processes,
}

/// Less than the descriptors that a process may have, and than the ports that the kernel gives out at an address.
const SOCKETS_PER_CHILD: usize = 10_000;

/// For a process that does nothing.
const STACK: usize = 4096;

#[repr(align(16))]
struct Stack(#[expect(dead_code, reason = "only the kernel uses it")] [u8; STACK]);

/// Holds `count` of them in this process, says `ready`, and lets go when its input ends.
///
/// # Errors
///
/// If there cannot be so many.
pub fn until_end_of_input(thing: Thing, count: u32) -> io::Result<()> {
    let _held = match thing {
        Thing::Sockets => sockets(count)?,
        Thing::Processes => {
            let mut children = Children::default();
            (0..count).try_for_each(|_| children.start())?;
            children
        }
    };
    io::stdout().write_all(b"ready\n")?;
    io::stdout().flush()?;
    io::stdin().read_to_end(&mut Vec::new()).map(drop)
}

/// Each child holds some, since one process may not have all.
fn sockets(count: u32) -> io::Result<Children> {
    let limit = getrlimit(Resource::Nofile);
    let most = Rlimit {
        current: limit.maximum,
        ..limit
    };
    setrlimit(Resource::Nofile, most)?;
    let first = u32::from(Ipv4Addr::LOCALHOST);
    let mut children = Children::default();
    for (number, from) in (0..).zip((0..count).step_by(SOCKETS_PER_CHILD)) {
        let address = IpAddr::V4(Ipv4Addr::from(first + number));
        let some = (from..count).take(SOCKETS_PER_CHILD);
        let sockets: Vec<_> = some
            .map(|_| UdpSocket::bind((address, 0)))
            .collect::<Result<_, _>>()?;
        // It has the descriptors that its parent has now.
        children.start()?;
        drop(sockets);
    }
    Ok(children)
}

/// Children that end before their stacks do.
#[derive(Default)]
struct Children(Vec<(libc::pid_t, Box<Stack>)>);

impl Children {
    fn start(&mut self) -> io::Result<()> {
        let mut stack = Box::new(Stack([0; STACK]));
        let top = (&raw mut *stack).wrapping_add(1).cast();
        // They share their memory: copies of it would take minutes to end, one behind the other.
        let flags = libc::CLONE_VM | libc::SIGCHLD;
        // SAFETY: each has a stack of its own, which lives for longer, and touches nothing else.
        let id = unsafe { libc::clone(wait, top, flags, ptr::null_mut()) };
        if id < 0 {
            return Err(io::Error::last_os_error());
        }
        self.0.push((id, stack));
        Ok(())
    }
}

impl Drop for Children {
    fn drop(&mut self) {
        // All of them, before anybody is waited for.
        for (id, _) in &self.0 {
            // SAFETY: a child of this process, which nobody has waited for.
            unsafe { libc::kill(*id, libc::SIGKILL) };
        }
        for (id, _) in &self.0 {
            // SAFETY: as above; it wants no status.
            unsafe { libc::waitpid(*id, ptr::null_mut(), 0) };
        }
    }
}

/// All that such a process does; it ends with its parent.
extern "C" fn wait(_: *mut libc::c_void) -> libc::c_int {
    // SAFETY: two system calls that touch no memory.
    unsafe {
        libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL);
        loop {
            libc::pause();
        }
    }
}
