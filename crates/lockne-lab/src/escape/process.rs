//! Processes that try to lose their policy, and then simply send.

use std::{
    fs,
    io::{self, ErrorKind},
    os::unix::process::CommandExt,
    path::PathBuf,
    process::{Command, Stdio},
    thread,
};

use super::{
    Attempt, Batch, Family, Result, WORD, Way, Who,
    socket::{PAYLOAD, check},
};
use crate::probe::Call;

const V4: &[Family] = &[Family::V4];

pub(super) const WAYS: &[Way] = &[
    Way::new("plain", "a datagram", |it| it.plain()),
    Way::new("plain-tcp", "a connection", |it| it.connect(&it.tcp()?)),
    Way::new(
        "fork-storm",
        "two hundred children that send at once",
        |it| {
            for _ in 0..200 {
                in_child(libc::SIGCHLD, || it.plain())?;
            }
            Ok(())
        },
    ),
    Way::new("orphan", "a grandchild in a session of its own", |it| {
        in_child(libc::SIGCHLD, || {
            // SAFETY: changes the session of this process.
            check(unsafe { libc::setsid() }, "setsid")?;
            in_child(libc::SIGCHLD, || it.plain())
        })
    }),
    Way::new("thread", "a second thread", |it| {
        thread::scope(|scope| scope.spawn(|| it.plain()).join())
            .unwrap_or_else(|_| Err(io::Error::other("it panicked")).call("thread"))
    }),
    Way::new(
        "sibling",
        "a child that is its parent's sibling (`CLONE_PARENT`)",
        |it| {
            in_child(libc::SIGCHLD, || {
                in_child(libc::CLONE_PARENT | libc::SIGCHLD, || it.plain()).or_else(|failed| {
                    // Its parent is the one above, who waits for both.
                    match failed.error.raw_os_error() {
                        Some(libc::ECHILD) => Ok(()),
                        _ => Err(failed),
                    }
                })
            })?;
            // The sibling is this process's own child.
            // SAFETY: waits for any child.
            unsafe { libc::waitpid(-1, std::ptr::null_mut(), libc::__WALL) };
            Ok(())
        },
    ),
    Way::new("exec", "another program", |it| {
        it.program("plain", Command::new("/proc/self/exe"))
    }),
    Way::new(
        "thread-exec",
        "another program, started by a thread that is not the first",
        |it| {
            in_child(libc::SIGCHLD, || {
                thread::scope(|scope| {
                    let exec = || -> Result {
                        let mut command = Command::new("/proc/self/exe");
                        command.args(it.arguments("plain"));
                        Err(command.exec()).call("execve")
                    };
                    scope.spawn(exec).join().unwrap_or(Ok(()))
                })
            })
        },
    ),
    Way::new(
        "setuid-program",
        "a program with the set-user-ID bit sends a raw packet",
        |it| {
            let env = it
                .scene
                .setuid_env
                .as_ref()
                .ok_or(ErrorKind::NotFound)
                .call("env")?;
            let own = std::env::current_exe().call("readlink")?;
            let mut command = Command::new(env);
            command.arg(own);
            it.program("raw-header-bound", command)
        },
    ),
    Way::new(
        "setuid-mark",
        "a program with the set-user-ID bit takes its mark away",
        |it| {
            let env = it
                .scene
                .setuid_env
                .as_ref()
                .ok_or(ErrorKind::NotFound)
                .call("env")?;
            let own = std::env::current_exe().call("readlink")?;
            let mut command = Command::new(env);
            command.arg(own);
            it.program("mark-datagram", command)
        },
    ),
    Way::new(
        "recycled-id",
        "a child with the process id of one that has ended (`clone3`)",
        |it| {
            let dead = in_child_with_id(None, || Ok(()))?;
            in_child_with_id(Some(dead), || it.plain()).map(drop)
        },
    ),
    Way::new(
        "user-namespace",
        "a process that is root in a user namespace of its own",
        |it| {
            unshare(libc::CLONE_NEWUSER)?;
            let socket = it.udp()?;
            it.bind_device(&socket)?;
            it.send(&socket)
        },
    ),
    Way::new(
        "process-namespace",
        "a child in a process namespace of its own",
        |it| {
            unshare(libc::CLONE_NEWUSER | libc::CLONE_NEWPID)?;
            in_child(libc::SIGCHLD, || it.plain())
        },
    ),
    Way::new(
        "mount-namespace",
        "a process that sees another /sys and /run",
        |it| {
            unshare(libc::CLONE_NEWUSER | libc::CLONE_NEWNS)?;
            for place in [c"/sys", c"/run"] {
                let (tmpfs, none) = (c"tmpfs".as_ptr(), std::ptr::null());
                // SAFETY: strings that end; in a namespace of this process alone.
                let mounted = unsafe { libc::mount(tmpfs, place.as_ptr(), tmpfs, 0, none) };
                check(mounted, "mount")?;
            }
            it.plain()
        },
    ),
    Way::new(
        "cgroup-namespace",
        "a process in a cgroup namespace of its own",
        |it| {
            unshare(libc::CLONE_NEWUSER | libc::CLONE_NEWCGROUP)?;
            it.plain()
        },
    ),
    Way::new(
        "namespace-left",
        "a socket that is taken along into a new network namespace",
        |it| {
            let socket = it.udp()?;
            it.bind_device(&socket)?;
            unshare(libc::CLONE_NEWUSER | libc::CLONE_NEWNET)?;
            it.send(&socket)
        },
    ),
    Way::new(
        "cgroup-move",
        "a process that moves to a cgroup of its own",
        |it| {
            let name = format!("lockne-escape-{}", std::process::id());
            let group = cgroups().call("cgroup2")?.join(name);
            fs::create_dir(&group).call("mkdir")?;
            let sent = in_child(libc::SIGCHLD, || {
                fs::write(group.join("cgroup.procs"), "0").call("move")?;
                it.plain()
            });
            fs::remove_dir(&group).call("rmdir")?;
            sent
        },
    )
    .in_the_lab(),
    Way::new(
        "network-namespace",
        "a network namespace of its own, routed by this machine",
        |it| {
            let port = it.to.port();
            let (near, far) = (format!("esc{port}"), format!("esc{port}f"));
            let net = format!("10.{}.{}", 100 + port % 100, port / 256);
            fs::write("/proc/sys/net/ipv4/ip_forward", "1").call("ip_forward")?;
            let parent = std::process::id();
            in_child(libc::SIGCHLD, || {
                unshare(libc::CLONE_NEWNET)?;
                let own = std::process::id();
                sh(&format!(
                    "nsenter -t {parent} -n sh -ec '
                   ip link add {near} type veth peer name {far} netns {own}
                   ip address add {net}.1/24 dev {near}; ip link set {near} up'
                 ip address add {net}.2/24 dev {far}; ip link set {far} up
                 ip route add default via {net}.1"
                ))?;
                // The first one waits for the router's link address.
                it.plain()?;
                thread::sleep(std::time::Duration::from_millis(100));
                it.plain()
            })
        },
    )
    .only(V4)
    .in_the_lab()
    .open_for(&[Who::Root]),
];

/// Where cgroup2 is mounted.
///
/// # Errors
///
/// When it is not.
pub fn cgroups() -> io::Result<PathBuf> {
    let mounts = fs::read_to_string("/proc/self/mounts")?;
    let mut mounts = mounts.lines().map(|line| line.split(' '));
    let found = mounts.find_map(|mut words| {
        let place = words.nth(1)?;
        (words.next() == Some("cgroup2")).then(|| place.into())
    });
    found.ok_or_else(|| ErrorKind::NotFound.into())
}

impl Attempt<'_> {
    fn arguments(&self, way: &str) -> [String; 3] {
        let mut case = self.case.clone();
        way.clone_into(&mut case.way);
        let batch = Batch {
            who: None,
            scene: self.scene.clone(),
            cases: vec![case],
        };
        let json = serde_json::to_string(&batch).expect("a batch is plain data");
        [WORD.to_owned(), "one".to_owned(), json]
    }

    /// Lets `command`, which starts this program, go another way.
    fn program(&self, way: &str, mut command: Command) -> Result {
        let status = command
            .args(self.arguments(way))
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .status()
            .call("execve")?;
        if status.success() {
            return Ok(());
        }
        Err(io::Error::from_raw_os_error(
            status.code().unwrap_or(libc::EIO),
        ))
        .call("program")
    }
}

/// Does `work` in a child, made by clone(2) with these flags, and waits for it.
fn in_child(flags: libc::c_int, work: impl FnOnce() -> Result) -> Result {
    // SAFETY: without a stack of its own it is fork(2), and this process has one thread.
    let child = unsafe { libc::syscall(libc::SYS_clone, flags, 0, 0, 0, 0) };
    finish(check(child, "clone")?, work)
}

/// The same, for a child with this process id.
fn in_child_with_id(id: Option<i32>, work: impl FnOnce() -> Result) -> Result<i32> {
    let wanted = id.unwrap_or_default();
    // `struct clone_args`: the signal is the fifth word, the ids and their number the ninth and tenth.
    let mut arguments = [0_u64; 11];
    arguments[4] = u64::from(libc::SIGCHLD.unsigned_abs());
    if id.is_some() {
        arguments[8] = (&raw const wanted) as u64;
        arguments[9] = 1;
    }
    // SAFETY: the arguments are valid for their length; it is fork(2), and this process has one thread.
    let child = unsafe {
        libc::syscall(
            libc::SYS_clone3,
            arguments.as_mut_ptr(),
            size_of_val(&arguments),
        )
    };
    let child = check(child, "clone3")?;
    finish(child, work)?;
    Ok(i32::try_from(child).expect("process ids are small"))
}

fn finish(child: i64, work: impl FnOnce() -> Result) -> Result {
    if child == 0 {
        let code = work().map_or_else(
            |failed| failed.error.raw_os_error().unwrap_or(libc::EIO),
            |()| 0,
        );
        // SAFETY: ends this process and touches nothing.
        unsafe { libc::_exit(code) }
    }
    let child = libc::pid_t::try_from(child).expect("process ids are small");
    let mut status = 0;
    // SAFETY: waits for the child, and writes how it ended.
    let ended = unsafe { libc::waitpid(child, &raw mut status, libc::__WALL) };
    check(ended, "waitpid")?;
    match libc::WEXITSTATUS(status) {
        _ if !libc::WIFEXITED(status) => Err(io::Error::other("it was killed")).call("child"),
        0 => Ok(()),
        code => Err(io::Error::from_raw_os_error(code)).call("child"),
    }
}

fn unshare(flags: libc::c_int) -> Result {
    // SAFETY: of this process, which has one thread.
    check(unsafe { libc::unshare(flags) }, "unshare").map(drop)
}

fn sh(script: &str) -> Result {
    let status = Command::new("sh")
        .args(["-ec", script])
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .status()
        .call("sh")?;
    if status.success() {
        return Ok(());
    }
    Err(io::Error::other(format!(
        "{status}: {}",
        String::from_utf8_lossy(PAYLOAD)
    )))
    .call("sh")
}
