//! Where the programs of an order send to.

use std::{
    io::{ErrorKind, Read as _},
    net::{IpAddr, Ipv4Addr, TcpListener},
    sync::mpsc,
    thread,
    time::Duration,
};

use crate::home::Home;

/// Where connections lead.
pub(super) const DOOR: u16 = 7_000;

/// One host on the internet for each program. They take connections, and whatever is sent by them, until dropped.
pub(super) struct Hosts(Option<(mpsc::Sender<()>, thread::JoinHandle<()>)>);

impl Hosts {
    pub(super) fn start(home: &Home) -> Self {
        let mut ip = home.lab.internet.command("ip");
        let output = ip
            .args("route add local 198.18.0.0/15 dev lo".split(' '))
            .output();
        assert!(output.unwrap().status.success());
        let listen = || TcpListener::bind((Ipv4Addr::UNSPECIFIED, DOOR));
        let listener = home.lab.internet.run(listen).unwrap().unwrap();
        listener.set_nonblocking(true).unwrap();
        let (stop, stopped) = mpsc::channel();
        let serve = move || {
            let mut streams = Vec::new();
            while stopped.recv_timeout(Duration::from_millis(20))
                == Err(mpsc::RecvTimeoutError::Timeout)
            {
                while let Ok((stream, _)) = listener.accept() {
                    stream.set_nonblocking(true).unwrap();
                    streams.push(stream);
                }
                streams.retain_mut(|stream| match stream.read(&mut [0; 4096]) {
                    Ok(length) => length > 0,
                    Err(error) => error.kind() == ErrorKind::WouldBlock,
                });
            }
        };
        Self(Some((stop, thread::spawn(serve))))
    }

    /// The port of the program whose host this is.
    pub(super) fn port(address: IpAddr) -> Option<u16> {
        match address {
            IpAddr::V4(address) if address.octets()[..2] == [198, 18] => {
                let [_, _, high, low] = address.octets();
                Some(u16::from_be_bytes([high + 78, low]))
            }
            _ => None,
        }
    }
}

impl Drop for Hosts {
    fn drop(&mut self) {
        if let Some((stop, thread)) = self.0.take() {
            drop(stop);
            drop(thread.join());
        }
    }
}
