//! A process that has many sockets or children, for benchmarks: what others pay must not grow with them.

use std::{
    io::{self, Read as _, Write as _},
    net::{IpAddr, Ipv4Addr, UdpSocket},
    ptr,
};

use rustix::process::{Resource, Rlimit, setrlimit};

/// What is held.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Thing {
    /// UDP sockets, bound to the loopback.
    Sockets,
    /// Children that do nothing.
    Processes,
}

/// Of each address, less than the ports that the kernel gives out there.
const SOCKETS_PER_ADDRESS: u32 = 20_000;

/// Beside what is held.
const DESCRIPTORS: u64 = 100;

/// For a process that does nothing.
const STACK: usize = 4096;

#[derive(Clone)]
#[repr(align(16))]
struct Stack(#[expect(dead_code, reason = "only the kernel uses it")] [u8; STACK]);

/// Holds `count` of them in this process, says `ready`, and lets go when its input ends.
///
/// # Errors
///
/// If there cannot be so many.
pub fn until_end_of_input(thing: Thing, count: u32) -> io::Result<()> {
    match thing {
        Thing::Sockets => {
            let _sockets = sockets(count)?;
            wait_for_end()
        }
        Thing::Processes => {
            let children = Children::start(count)?;
            let done = wait_for_end();
            drop(children);
            done
        }
    }
}

fn wait_for_end() -> io::Result<()> {
    io::stdout().write_all(b"ready\n")?;
    io::stdout().flush()?;
    io::stdin().read_to_end(&mut Vec::new()).map(drop)
}

fn sockets(count: u32) -> io::Result<Vec<UdpSocket>> {
    let most = Some(u64::from(count) + DESCRIPTORS);
    let limit = Rlimit {
        current: most,
        maximum: most,
    };
    setrlimit(Resource::Nofile, limit)?;
    let first = u32::from(Ipv4Addr::LOCALHOST);
    (0..count)
        .map(|number| {
            let address = Ipv4Addr::from(first + number / SOCKETS_PER_ADDRESS);
            UdpSocket::bind((IpAddr::V4(address), 0))
        })
        .collect()
}

/// Children that end before their stacks do.
struct Children {
    ids: Vec<libc::pid_t>,
    stacks: Vec<Stack>,
}

impl Children {
    fn start(count: u32) -> io::Result<Self> {
        // They share their memory: copies of it would take minutes to end, one behind the other.
        let stacks = vec![Stack([0; STACK]); count as usize];
        let mut children = Self {
            ids: Vec::with_capacity(stacks.len()),
            stacks,
        };
        for stack in &mut children.stacks {
            let top = (&raw mut *stack).wrapping_add(1).cast();
            let flags = libc::CLONE_VM | libc::SIGCHLD;
            // SAFETY: each has a stack of its own, which lives for longer, and touches nothing else.
            let id = unsafe { libc::clone(wait, top, flags, ptr::null_mut()) };
            if id < 0 {
                return Err(io::Error::last_os_error());
            }
            children.ids.push(id);
        }
        Ok(children)
    }
}

impl Drop for Children {
    fn drop(&mut self) {
        // All of them, before anybody is waited for.
        for id in &self.ids {
            // SAFETY: a child of this process, which nobody has waited for.
            unsafe { libc::kill(*id, libc::SIGKILL) };
        }
        for id in &self.ids {
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
