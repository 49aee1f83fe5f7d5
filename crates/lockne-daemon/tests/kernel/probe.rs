//! An application under test: this same binary, told what to do line by line.

use std::{
    env,
    io::{self, BufRead as _, BufReader, Write as _},
    mem::MaybeUninit,
    net::SocketAddr,
    process::{Child, ChildStdin, ChildStdout, Command, ExitCode, Stdio},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
        mpsc,
    },
    thread,
    time::Duration,
};

use lockne_core::policy::PolicyId;
use socket2::{Domain, Protocol, Socket, Type};

use crate::{crowd::Crowd, world::World};

/// A process that waits for commands, in the network namespace of the thread that started it.
pub struct Probe {
    child: Child,
    input: ChildStdin,
    output: BufReader<ChildStdout>,
}

impl Probe {
    /// One under a policy.
    pub fn under(world: &mut World, policy: PolicyId) -> Self {
        let probe = Self::start();
        let kernel = world.kernel();
        kernel.set_process(probe.pid(), Some(policy)).unwrap();
        probe
    }

    pub fn start() -> Self {
        let mut child = Command::new(env::current_exe().unwrap())
            .arg("probe")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        Self {
            input: child.stdin.take().unwrap(),
            output: BufReader::new(child.stdout.take().unwrap()),
            child,
        }
    }

    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Has a command done and returns the answer: a value, `ok`, or the number of the error.
    pub fn ask(&mut self, command: &str) -> String {
        self.tell(command);
        self.answer()
    }

    pub fn tell(&mut self, command: &str) {
        writeln!(self.input, "{command}").unwrap();
    }

    pub fn answer(&mut self) -> String {
        let mut line = String::new();
        self.output.read_line(&mut line).unwrap();
        assert!(!line.is_empty(), "the probe died");
        line.trim_end().to_owned()
    }

    /// Makes a socket, and says which mark it has.
    pub fn mark_of(&mut self, kind: &str) -> String {
        let made = self.ask(&format!("socket {kind}"));
        if made == "ok" { self.ask("mark") } else { made }
    }

    /// Waits until it has ended.
    pub fn end(mut self) {
        self.tell("end");
        self.child.wait().unwrap();
    }
}

impl Drop for Probe {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

pub fn main() -> ExitCode {
    // Commands are run by a second thread, so that the first one can leave early.
    let (leave, leaves) = mpsc::channel();
    thread::spawn(move || {
        let mut state = State {
            socket: None,
            leave,
            hammer: None,
            kept: Vec::new(),
            crowd: Crowd::default(),
        };
        for line in io::stdin().lines() {
            let line = line.unwrap();
            if line == "end" {
                break;
            }
            let answer = state.run(&line);
            let text = match answer {
                Ok(text) => text,
                Err(error) => error.raw_os_error().unwrap_or(-1).to_string(),
            };
            let mut out = io::stdout();
            writeln!(out, "{text}").unwrap();
            out.flush().unwrap();
        }
        std::process::exit(0);
    });
    let _ = leaves.recv();
    // SAFETY: ends this thread alone; it holds nothing.
    unsafe { libc::syscall(libc::SYS_exit, 0) };
    unreachable!("the thread has ended");
}

struct State {
    socket: Option<Socket>,
    leave: mpsc::Sender<()>,
    hammer: Option<(Arc<AtomicBool>, thread::JoinHandle<String>)>,
    kept: Vec<Child>,
    crowd: Crowd,
}

impl State {
    fn run(&mut self, line: &str) -> io::Result<String> {
        let words: Vec<_> = line.split(' ').collect();
        let ok = |()| "ok".to_owned();
        match *words {
            ["socket", kind] => {
                let socket = make(kind)?;
                socket.set_read_timeout(Some(Duration::from_secs(20)))?;
                socket.set_write_timeout(Some(Duration::from_secs(20)))?;
                self.socket = Some(socket);
                Ok("ok".to_owned())
            }
            ["mark"] => Ok(format!("{:#x}", self.socket().mark()?)),
            ["set-mark", mark] => self.socket().set_mark(mark.parse().unwrap()).map(ok),
            ["bind-device", name] => self.socket().bind_device(Some(name.as_bytes())).map(ok),
            ["connect", to] => self.socket().connect(&address(to).into()).map(ok),
            ["send-to", to, text] => {
                let to = address(to).into();
                self.socket()
                    .send_to(text.as_bytes(), &to)
                    .map(|_| "ok".to_owned())
            }
            ["receive"] => {
                let mut buffer = [MaybeUninit::uninit(); 2048];
                self.socket()
                    .recv(&mut buffer)
                    .map(|length| length.to_string())
            }
            ["of-thread"] => thread::spawn(mark_of_new).join().unwrap(),
            ["of-child"] => forked(mark_of_new),
            ["of-grandchild"] => forked(|| forked(mark_of_new)),
            // The standard library starts programs as vfork does.
            ["of-program"] => {
                let output = Command::new("/proc/self/exe")
                    .arg("probe")
                    .stdin(Stdio::piped())
                    .stdout(Stdio::piped())
                    .spawn()?;
                output
                    .stdin
                    .as_ref()
                    .unwrap()
                    .write_all(b"socket udp4\nmark\n")?;
                let output = output.wait_with_output()?;
                let text = String::from_utf8_lossy(&output.stdout).into_owned();
                Ok(text.lines().last().unwrap_or_default().to_owned())
            }
            // A program that lives until this one ends, and has its standard input from it.
            ["keep", program] => {
                let child = Command::new(program)
                    .arg("probe")
                    .stdin(Stdio::piped())
                    .stdout(Stdio::null())
                    .spawn()?;
                let pid = child.id();
                self.kept.push(child);
                Ok(pid.to_string())
            }
            ["exec", program] => {
                use std::os::unix::process::CommandExt as _;
                Err(Command::new(program).arg("probe").exec())
            }
            ["forks", count] => forks(count.parse().unwrap()),
            ["crowd", count] => self.crowd.gather(count.parse().unwrap()),
            ["disperse"] => self.crowd.disperse().map(ok),
            ["fork-until", pid] => fork_until(pid.parse().unwrap()),
            ["leader-leaves"] => {
                let _ = self.leave.send(());
                Ok("ok".to_owned())
            }
            ["hammer", to] => {
                let stop = Arc::new(AtomicBool::new(false));
                let (flag, to) = (Arc::clone(&stop), address(to));
                self.hammer = Some((stop, thread::spawn(move || hammer(&flag, to))));
                Ok("ok".to_owned())
            }
            ["hammer-stop"] => {
                let (stop, thread) = self.hammer.take().unwrap();
                stop.store(true, Ordering::Relaxed);
                Ok(thread.join().unwrap())
            }
            _ => panic!("a probe does not understand `{line}`"),
        }
    }

    fn socket(&self) -> &Socket {
        self.socket.as_ref().unwrap()
    }
}

fn make(kind: &str) -> io::Result<Socket> {
    let mptcp = Some(Protocol::from(262));
    let (domain, kind, protocol) = match kind {
        "udp4" => (Domain::IPV4, Type::DGRAM, None),
        "udp6" => (Domain::IPV6, Type::DGRAM, None),
        "tcp4" => (Domain::IPV4, Type::STREAM, None),
        "tcp6" => (Domain::IPV6, Type::STREAM, None),
        "raw4" => (Domain::IPV4, Type::RAW, Some(Protocol::ICMPV4)),
        "raw6" => (Domain::IPV6, Type::RAW, Some(Protocol::ICMPV6)),
        "mptcp4" => (Domain::IPV4, Type::STREAM, mptcp),
        "mptcp6" => (Domain::IPV6, Type::STREAM, mptcp),
        _ => panic!("no such kind of socket"),
    };
    Socket::new(domain, kind, protocol)
}

fn address(text: &str) -> SocketAddr {
    text.parse().unwrap()
}

pub fn mark_of_new() -> io::Result<String> {
    Ok(format!("{:#x}", make("udp4")?.mark()?))
}

/// The answer of a forked child.
fn forked(work: impl FnOnce() -> io::Result<String>) -> io::Result<String> {
    let (reader, writer) = io::pipe()?;
    // SAFETY: the child does nothing but `work`; no other thread holds a lock that it needs.
    let pid = unsafe { libc::fork() };
    if pid == 0 {
        let text = work().unwrap_or_else(|error| error.raw_os_error().unwrap_or(-1).to_string());
        let _ = (&writer).write_all(text.as_bytes());
        // SAFETY: ends the child without running what belongs to the parent.
        unsafe { libc::_exit(0) };
    }
    drop(writer);
    let text = io::read_to_string(reader)?;
    reap(pid);
    Ok(text)
}

fn reap(pid: libc::pid_t) -> i32 {
    let mut status = 0;
    // SAFETY: a child of ours.
    unsafe { libc::waitpid(pid, &raw mut status, 0) };
    libc::WEXITSTATUS(status)
}

/// How many of `count` children made their first socket without the parent's mark.
fn forks(count: u32) -> io::Result<String> {
    let wanted = mark_of_new()?;
    let mut misses = 0;
    for _ in 0..count {
        // SAFETY: the child makes a socket and ends.
        let pid = unsafe { libc::fork() };
        if pid == 0 {
            let is_right = mark_of_new().is_ok_and(|mark| mark == wanted);
            // SAFETY: as in `forked`.
            unsafe { libc::_exit((!is_right).into()) };
        }
        misses += reap(pid);
    }
    Ok(misses.to_string())
}

/// What a child answers whose process id is at least `pid`.
fn fork_until(pid: u32) -> io::Result<String> {
    loop {
        let text = forked(|| {
            if std::process::id() < pid {
                Ok("before".to_owned())
            } else {
                mark_of_new()
            }
        })?;
        if text != "before" {
            return Ok(text);
        }
    }
}

/// Makes sockets and sends with them until told to stop: how many, how many without a mark, and how
/// many datagrams were not refused.
fn hammer(stop: &AtomicBool, to: SocketAddr) -> String {
    let (mut sockets, mut unmarked, mut sent) = (0_u64, 0_u64, 0_u64);
    while !stop.load(Ordering::Relaxed) {
        let socket = make("udp4").unwrap();
        sockets += 1;
        unmarked += u64::from(socket.mark().unwrap() == 0);
        sent += u64::from(socket.send_to(b"leak", &to.into()).is_ok());
    }
    format!("{} {unmarked} {sent}", u8::from(sockets > 100))
}
