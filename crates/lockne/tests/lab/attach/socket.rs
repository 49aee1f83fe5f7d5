//! What becomes of single sockets: connections that go on or are cut, listeners, those that cannot be moved.

use std::{
    io::{ErrorKind, Read as _},
    net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener, TcpStream},
    time::Duration,
};

use lockne_core::api::{Counts, Status};
use lockne_lab::{
    origin::HTTP_PORT,
    probe::{Action, Outcome, Probe, SocketFrom},
};
use socket2::{Domain, SockRef, Socket, Type};

use super::{Holder, attach, detach, start};
use crate::{
    home::{Home, wait_until},
    older::socket,
    way::{HOME, ORIGIN},
};

pub(super) fn detached_connection_goes_on_through_the_tunnel_or_is_cut() {
    let home = Home::with_tunnels();
    let to = SocketAddr::new(ORIGIN[0], HTTP_PORT);
    let hold = || {
        let mut running = home.start(["--via", "a"], &Probe::new(Action::Hold, to));
        running.wait_until_ready().unwrap();
        running
    };
    let (kept, cut) = (hold(), hold());

    let moved = detach(&home, kept.pid(), []);
    assert_eq!(
        moved.counts,
        Counts {
            kept: 1,
            ..Counts::default()
        }
    );
    let moved = detach(&home, cut.pid(), ["--existing", "reset"]);
    assert_eq!(
        moved.counts,
        Counts {
            cut: 1,
            ..Counts::default()
        }
    );

    let report = cut.finish().unwrap();
    assert!(
        matches!(&report.outcome, Outcome::Ended { why, .. } if why == "ECONNABORTED"),
        "{report:?}"
    );
    let received = |status: Status| status.policies[0].traffic.rx_bytes;
    let before = received(home.status().unwrap());
    wait_until("the download goes on through the tunnel", || {
        received(home.status().unwrap()) > before
    });
    home.assert_no_leak();
}

pub(super) fn listener_follows_and_its_waiting_connections_are_cut() {
    let home = Home::with_tunnels();
    for any in ["0.0.0.0:0", "[::]:0"] {
        let listener = home
            .lab
            .home
            .run(|| TcpListener::bind(any).unwrap())
            .unwrap();
        let port = listener.local_addr().unwrap().port();
        let family = usize::from(any.starts_with('['));
        let server = SocketAddr::new(HOME[family], port);
        let connect = || TcpStream::connect_timeout(&server, Duration::from_secs(5)).unwrap();
        let mut waiting = home.lab.internet.run(connect).unwrap();
        let holder = Holder::start(&home, &[&listener]);

        let moved = attach(&home, holder.pid(), ["--via", "a"]);

        assert_eq!(moved.counts.moved, 1, "{moved:#?}");
        assert_eq!(moved.sockets[0].socket.state, "listen");
        waiting
            .set_read_timeout(Some(Duration::from_secs(5)))
            .unwrap();
        let error = waiting.read(&mut [0]).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::ConnectionReset);
        let here: IpAddr = match family {
            0 => Ipv4Addr::LOCALHOST.into(),
            _ => std::net::Ipv6Addr::LOCALHOST.into(),
        };
        let here = SocketAddr::new(here, port);
        let near = home
            .lab
            .home
            .run(|| TcpStream::connect(here).unwrap())
            .unwrap();
        loop {
            // What was cut is still to be accepted.
            let (accepted, peer) = listener.accept().unwrap();
            if peer == near.local_addr().unwrap() {
                assert_eq!(SockRef::from(&accepted).mark().unwrap(), moved.mark);
                break;
            }
        }
    }
}

pub(super) fn connection_to_this_machine_goes_on() {
    let home = Home::with_tunnels();
    let bind = || TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let listener = home.lab.home.run(bind).unwrap();
    let server = listener.local_addr().unwrap();
    let probe = Probe::new(Action::Tcp, server).on(SocketFrom::ConnectedBeforeGo);
    let mut running = start(&home, &probe);
    let (mut accepted, caller) = listener.accept().unwrap();

    let moved = attach(&home, running.pid(), ["--block"]);

    assert_eq!(
        moved.counts,
        Counts {
            near: 1,
            ..Counts::default()
        }
    );
    running.go().unwrap();
    std::io::Write::write_all(
        &mut accepted,
        format!("{} {}\n", caller.ip(), caller.port()).as_bytes(),
    )
    .unwrap();
    let report = running.finish().unwrap();
    assert_eq!(report.outcome, Outcome::Answered { saw: Some(caller) });
}

pub(super) fn socket_that_somebody_else_has_too_is_told() {
    let home = Home::with_tunnels();
    let shared = socket(&home, Action::UdpUnconnected, ORIGIN[0]);
    let (mine, other) = (
        Holder::start(&home, &[&shared]),
        Holder::start(&home, &[&shared]),
    );

    let moved = attach(&home, mine.pid(), ["--via", "a"]);

    let told = moved.notices.iter().find(|it| it.contains("share"));
    assert!(
        told.is_some_and(|it| it.contains(&format!("sleep {}", other.pid()))),
        "{moved:#?}"
    );
}

pub(super) fn socket_that_writes_frames_is_named_as_stuck() {
    let home = Home::with_tunnels();
    let frames = || Socket::new(Domain::PACKET, Type::DGRAM, None).unwrap();
    let frames = home.lab.home.run(frames).unwrap();
    let elsewhere = Socket::new(Domain::IPV4, Type::DGRAM, None).unwrap();
    let holder = Holder::start(&home, &[&frames, &elsewhere]);

    let moved = attach(&home, holder.pid(), ["--block"]);

    assert_eq!(
        moved.counts,
        Counts {
            stuck: 2,
            ..Counts::default()
        }
    );
    let reasons: Vec<_> = moved
        .sockets
        .iter()
        .filter_map(|it| it.reason.as_deref())
        .collect();
    assert!(reasons.iter().any(|it| it.contains("frames")), "{moved:#?}");
    assert!(
        reasons.iter().any(|it| it.contains("namespace")),
        "{moved:#?}"
    );
    // In its own namespace the bits are not ours.
    assert_eq!(elsewhere.mark().unwrap(), 0);
    let output = home.must(["attach", "--pid", &holder.pid().to_string(), "--block"]);
    assert!(
        output.contains("cannot be moved: it writes frames"),
        "{output}"
    );
}
