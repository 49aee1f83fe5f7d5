//! As many processes as there can be, each as small as it can be.

use std::{
    io,
    sync::atomic::{AtomicU32, AtomicU64, Ordering::SeqCst},
};

use crate::probe::mark_of_new;

/// Children share the memory of their parent: without it, each would take a hundred KiB of page tables.
const FLAGS: i32 = libc::CLONE_VM | libc::CLONE_FS | libc::SIGCHLD;

/// How much stack a child takes that makes a socket and waits.
const STACK: usize = 8 << 10;

/// The mark that sockets of the parent have.
static WANTED: AtomicU32 = AtomicU32::new(0);
/// Children whose first socket had it.
static RIGHT: AtomicU64 = AtomicU64::new(0);
/// Children that have made their first socket.
static READY: AtomicU64 = AtomicU64::new(0);

/// Processes that wait.
#[derive(Default)]
pub struct Crowd {
    children: Vec<libc::pid_t>,
    stacks: Vec<u8>,
}

impl Crowd {
    /// Starts them; says how many live, and how many of these had a first socket with their parent's mark.
    pub fn gather(&mut self, count: usize) -> io::Result<String> {
        let mark = mark_of_new()?;
        let mark = u32::from_str_radix(mark.trim_start_matches("0x"), 16).unwrap();
        WANTED.store(mark, SeqCst);
        self.stacks = vec![0; count * STACK];
        for stack in self.stacks.chunks_exact_mut(STACK) {
            // Stacks grow down.
            let top = stack.as_mut_ptr_range().end;
            // SAFETY: a stack of its own, which lives as long as the child; see `child`.
            let pid = unsafe { libc::clone(child, top.cast(), FLAGS, std::ptr::null_mut()) };
            if pid < 0 {
                break;
            }
            self.children.push(pid);
        }
        while READY.load(SeqCst) < self.children.len() as u64 {
            std::thread::yield_now();
        }
        Ok(format!("{} {}", self.children.len(), RIGHT.load(SeqCst)))
    }

    /// Ends them.
    pub fn disperse(&mut self) -> io::Result<()> {
        for pid in &self.children {
            // SAFETY: a child of ours that nobody has waited for.
            if unsafe { libc::kill(*pid, libc::SIGKILL) } < 0 {
                return Err(io::Error::last_os_error());
            }
        }
        for pid in self.children.drain(..) {
            // SAFETY: as above.
            unsafe { libc::waitpid(pid, std::ptr::null_mut(), 0) };
        }
        Ok(())
    }
}

/// Has memory and thread-local storage of its parent, so it calls nothing that takes locks or allocates. The number of
/// the error is the only thing that both write.
extern "C" fn child(_: *mut libc::c_void) -> i32 {
    let mut mark = 0_u32;
    // As large as the mark.
    let mut length: libc::socklen_t = 4;
    // SAFETY: system calls with arguments that live here.
    unsafe {
        // The parent may be killed.
        libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL);
        let socket = libc::socket(libc::AF_INET, libc::SOCK_DGRAM | libc::SOCK_CLOEXEC, 0);
        let read = libc::getsockopt(
            socket,
            libc::SOL_SOCKET,
            libc::SO_MARK,
            (&raw mut mark).cast(),
            &raw mut length,
        );
        libc::close(socket);
        if read == 0 && mark == WANTED.load(SeqCst) {
            RIGHT.fetch_add(1, SeqCst);
        }
    }
    READY.fetch_add(1, SeqCst);
    loop {
        // SAFETY: waits for a signal.
        unsafe { libc::pause() };
    }
}
