//! Sockets that are older than the policy of who uses them.

use std::{
    io::{Read as _, Write as _},
    net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener, TcpStream},
    os::{
        fd::{AsFd as _, AsRawFd as _, BorrowedFd},
        unix::process::CommandExt as _,
    },
    process::{Command, Stdio},
};

use lockne_lab::{
    origin::{ADDRESS_PORT, HTTP_PORT},
    probe::{Action, Outcome, Probe, Running, SocketFrom},
};
use socket2::{Domain, Protocol, Socket, Type};

use crate::{
    home::{Home, text, wait_until},
    tests,
    way::{self, KINDS, ORIGIN, assert_answered, probe},
};

tests! {
    inherited_socket_takes_the_new_way,
    inherited_connection_is_cut_and_silent,
    user_is_told_how_many_connections_were_cut,
    inherited_connection_to_this_machine_stays,
    socket_from_another_process_is_marked_before_it_connects,
    first_datagram_by_a_socket_from_another_process_is_refused,
    inherited_socket_cannot_take_its_mark_off_by_datagram needs ["python3"],
    daemon_keeps_nothing_open_of_the_program_that_started_it,
}

/// An unpoliced socket at home for this kind of traffic.
pub(crate) fn socket(home: &Home, action: Action, to: IpAddr) -> Socket {
    let domain = Domain::for_address(SocketAddr::new(to, 0));
    let icmp = if to.is_ipv4() {
        Protocol::ICMPV4
    } else {
        Protocol::ICMPV6
    };
    let (kind, protocol) = match action {
        Action::Tcp => (Type::STREAM, Protocol::TCP),
        Action::Ping => (Type::DGRAM, icmp),
        Action::RawPing => (Type::RAW, icmp),
        _ => (Type::DGRAM, Protocol::UDP),
    };
    home.lab
        .home
        .run(|| Socket::new(domain, kind, Some(protocol)).unwrap())
        .unwrap()
}

/// Lets the program have `fd` under the number that it has here.
pub(crate) fn leave_open(command: &mut Command, fd: BorrowedFd<'_>) {
    let number = fd.as_raw_fd();
    // SAFETY: `fd` is open until the command is started, which all callers do at once; the closure
    // makes one system call.
    unsafe {
        command.pre_exec(move || {
            let fd = BorrowedFd::borrow_raw(number);
            Ok(rustix::io::fcntl_setfd(fd, rustix::io::FdFlags::empty())?)
        });
    }
}

fn start_with(home: &Home, socket: &Socket, probe: &Probe) -> Running {
    let mut command = home.lockne(["run", "--via", "a", "--"]);
    leave_open(&mut command, socket.as_fd());
    probe.start_behind(command).unwrap()
}

fn inherited_socket_takes_the_new_way() {
    let home = Home::with_tunnels();
    let tunnel = way::client(&home.lab.provider_a);
    for (action, _) in KINDS {
        for to in ORIGIN {
            let socket = socket(&home, action, to);
            let probe = probe(action, to).on(SocketFrom::Inherited(socket.as_raw_fd()));

            let report = start_with(&home, &socket, &probe).finish().unwrap();

            assert_answered(&report, to, tunnel, &probe);
        }
    }
    home.assert_no_leak();
}

fn inherited_connection_is_cut_and_silent() {
    let home = Home::with_tunnels();
    // The web server says nothing unless it is asked, so that the connection is at rest.
    let kinds = [
        (Action::Tcp, HTTP_PORT, "ECONNRESET"),
        (Action::UdpConnected, ADDRESS_PORT, "EDESTADDRREQ"),
    ];
    for (action, port, errno) in kinds {
        for to in ORIGIN {
            let socket = socket(&home, action, to);
            socket.connect(&SocketAddr::new(to, port).into()).unwrap();
            let probe = probe(action, to).on(SocketFrom::InheritedConnected(socket.as_raw_fd()));
            home.wire.settle().unwrap();
            home.wire.clear();

            let report = start_with(&home, &socket, &probe).finish().unwrap();

            assert!(
                matches!(&report.outcome, Outcome::Refused { errno: it, .. } if it == errno),
                "{probe:?}: {report:?}"
            );
            home.assert_no_leak();
        }
    }
}

fn user_is_told_how_many_connections_were_cut() {
    let home = Home::with_tunnels();
    let sockets: Vec<_> = ORIGIN
        .into_iter()
        .map(|to| {
            let socket = socket(&home, Action::UdpConnected, to);
            socket
                .connect(&SocketAddr::new(to, ADDRESS_PORT).into())
                .unwrap();
            socket
        })
        .collect();
    let mut command = home.lockne(["run", "--block", "--", "true"]);
    for socket in &sockets {
        leave_open(&mut command, socket.as_fd());
    }

    let output = command.output().unwrap();

    assert!(output.status.success(), "{}", text(&output));
    assert!(
        text(&output).contains("2 open connections of this program were cut"),
        "{}",
        text(&output)
    );
}

fn inherited_connection_to_this_machine_stays() {
    let home = Home::with_tunnels();
    let bind = || TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let listener = home.lab.home.run(bind).unwrap();
    let server = listener.local_addr().unwrap();
    let connect = || TcpStream::connect(server).unwrap();
    let stream = Socket::from(home.lab.home.run(connect).unwrap());
    let (mut accepted, caller) = listener.accept().unwrap();
    let probe =
        Probe::new(Action::Tcp, server).on(SocketFrom::InheritedConnected(stream.as_raw_fd()));

    let running = start_with(&home, &stream, &probe);
    writeln!(accepted, "{} {}", caller.ip(), caller.port()).unwrap();
    let report = running.finish().unwrap();

    assert_eq!(report.outcome, Outcome::Answered { saw: Some(caller) });
}

fn hand_over(home: &Home, socket: &Socket, action: Action, to: IpAddr) -> (Probe, Outcome) {
    let probe = probe(action, to).on(SocketFrom::Received);
    let mut running = home.start(["--via", "a"], &probe);
    running.wait_until_ready().unwrap();
    running.hand_over(socket).unwrap();
    let report = running.finish().unwrap();
    if matches!(report.outcome, Outcome::Answered { .. }) {
        assert_answered(&report, to, way::client(&home.lab.provider_a), &probe);
    }
    (probe, report.outcome)
}

fn socket_from_another_process_is_marked_before_it_connects() {
    let home = Home::with_tunnels();
    for action in [Action::Tcp, Action::UdpConnected] {
        for to in ORIGIN {
            let socket = socket(&home, action, to);

            let (probe, outcome) = hand_over(&home, &socket, action, to);

            assert!(
                matches!(outcome, Outcome::Answered { .. }),
                "{probe:?}: {outcome:?}"
            );
        }
    }
    home.assert_no_leak();
}

fn first_datagram_by_a_socket_from_another_process_is_refused() {
    let home = Home::with_tunnels();
    for to in ORIGIN {
        let socket = socket(&home, Action::UdpUnconnected, to);

        let (_, first) = hand_over(&home, &socket, Action::UdpUnconnected, to);
        let (probe, second) = hand_over(&home, &socket, Action::UdpUnconnected, to);

        // The error is one that asks for another try.
        assert_eq!(first, Outcome::Silence, "{probe:?}");
        assert!(
            matches!(second, Outcome::Answered { .. }),
            "{probe:?}: {second:?}"
        );
    }
    home.assert_no_leak();
    assert!(
        home.lab.origin.seen().iter().all(|visit| visit.times == 1),
        "only the second ones arrive"
    );
}

/// Of a program that makes no socket of its own, so that nothing but its rights tell what it can do.
fn inherited_socket_cannot_take_its_mark_off_by_datagram() {
    const MARKED: &str = r#"
import array, socket, sys
s = socket.socket(fileno=int(sys.argv[1]))
mark = [(socket.SOL_SOCKET, socket.SO_MARK, array.array("I", [0]))]
for _ in range(2):
    try:
        s.sendmsg([b"a"], mark, 0, ("198.18.77.1", 7))
    except OSError as error:
        print(error)
print("tried")
"#;
    let home = Home::with_tunnels();
    let socket = socket(&home, Action::UdpUnconnected, ORIGIN[0]);
    let mut command = home.lockne(["run", "--via", "a", "--"]);
    let number = socket.as_raw_fd().to_string();
    command.args(["python3", "-c", MARKED, &number]);
    leave_open(&mut command, socket.as_fd());

    let output = command.output().unwrap();

    assert!(text(&output).contains("tried"), "{}", text(&output));
    home.assert_no_leak();
}

fn daemon_keeps_nothing_open_of_the_program_that_started_it() {
    let home = Home::new();
    let conf = home.conf("a", &home.lab.provider_a);
    let (mut reader, writer) = std::io::pipe().unwrap();
    let mut command = home.lockne(["run", "--via", conf.to_str().unwrap(), "--", "cat"]);
    leave_open(&mut command, writer.as_fd());
    // Keeps the daemon alive after the program.
    let waiting = probe(Action::Tcp, ORIGIN[0]).on(SocketFrom::AfterGo);

    let mut program = command.stdin(Stdio::piped()).spawn().unwrap();
    wait_until("the daemon is there", || {
        home.status().is_some_and(|it| !it.tunnels.is_empty())
    });
    let mut alive = home.start(["--via", "a"], &waiting);
    alive.wait_until_ready().unwrap();
    drop(writer);
    drop(program.stdin.take());

    assert!(program.wait().unwrap().success());
    rustix::io::ioctl_fionbio(&reader, true).unwrap();
    wait_until("nobody holds the pipe", || {
        matches!(reader.read(&mut [0]), Ok(0))
    });
    assert!(home.status().is_some());
}
