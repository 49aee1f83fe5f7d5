//! The daemon's stub between a program and a resolver, over real sockets in a network of its own: whatever
//! they say, an answer with the question's number comes back as it was, and the stub goes on.
//! Needs root, for that network and for marks.
#![no_main]

use std::{
    io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket},
    num::NonZeroU8,
    process::Command,
    sync::{Mutex, OnceLock},
    time::Duration,
};

use libfuzzer_sys::fuzz_target;
use lockne_abi::MarkField;
use lockne_core::policy::PolicyId;
use rustix::thread::{UnshareFlags, unshare_unsafe};
use socket2::SockRef;

use stub::Stub;

#[path = "../../crates/lockne-daemon/src/dns/stub.rs"]
mod stub;

// What the stub takes from its parent.
const DNS: u16 = 53;
const fn loopback(is_v6: bool) -> IpAddr {
    if is_v6 {
        IpAddr::V6(Ipv6Addr::LOCALHOST)
    } else {
        IpAddr::V4(Ipv4Addr::LOCALHOST)
    }
}

const LAST: &[u8] = b"\xaa\xaathe last answer";

/// How long an answer is waited for: longer than the stub waits.
const PATIENCE: Duration = Duration::from_secs(5);
/// How often a question is asked, on a machine that does other things, too.
const TRIES: u32 = 20;

const FIELD: MarkField = MarkField::DEFAULT;

struct World {
    client: UdpSocket,
    resolver: UdpSocket,
    stub: SocketAddr,
}

impl World {
    /// A program of the policy.
    fn client(stub: SocketAddr) -> UdpSocket {
        let client = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).expect("a client");
        SockRef::from(&client)
            .set_mark(FIELD.mark(1))
            .expect("a mark, as root");
        client.connect(stub).expect("connected");
        client.set_read_timeout(Some(PATIENCE)).expect("patience");
        client
    }

    /// Asks once. `None` if nothing comes, as the stub has given up by then.
    fn ask(&self, question: &[u8], said: &[u8]) -> Option<()> {
        let mut buffer = vec![0; 70_000];
        self.client.send(question).expect("asked");
        let stub = loop {
            let (heard, stub) = heard(|| self.resolver.recv_from(&mut buffer))?;
            // Another one is from a try before.
            if &buffer[..heard] == question {
                break stub;
            }
        };
        self.resolver.send_to(said, stub).expect("said");
        let answer = if said.get(..2) == Some(&question[..2]) {
            said.to_vec()
        } else {
            // That was none; this one is.
            let answer = [&question[..2], LAST].concat();
            self.resolver.send_to(&answer, stub).expect("answered");
            answer
        };
        let heard = heard(|| self.client.recv(&mut buffer))?;
        assert_eq!(&buffer[..heard], answer);
        Some(())
    }
}

fn world() -> &'static Mutex<World> {
    static WORLD: OnceLock<Mutex<World>> = OnceLock::new();
    WORLD.get_or_init(|| {
        // SAFETY: a network namespace for this thread only; no descriptors or memory are unshared.
        unsafe { unshare_unsafe(UnshareFlags::NEWNET) }.expect("a network of its own, as root");
        let up = Command::new("ip")
            .args(["link", "set", "lo", "up"])
            .status();
        assert!(up.is_ok_and(|status| status.success()), "lo is up");
        let id = PolicyId(NonZeroU8::MIN);
        let resolver = UdpSocket::bind((Ipv4Addr::LOCALHOST, DNS)).expect("a resolver");
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .expect("a runtime");
        let stub = runtime.block_on(async {
            let stub = Stub::open(FIELD, id).expect("a stub");
            stub.ask(&[Ipv4Addr::LOCALHOST.into()]);
            stub
        });
        let port = stub.port(false).expect("a port");
        assert!(stub.port(true).is_some());
        resolver.set_read_timeout(Some(PATIENCE)).expect("patience");
        let address = SocketAddr::new(loopback(false), port);
        let client = World::client(address);
        // Threads inherit the network.
        std::thread::spawn(move || {
            let _stub = stub;
            runtime.block_on(std::future::pending::<()>());
        });
        Mutex::new(World {
            client,
            resolver,
            stub: address,
        })
    })
}

/// What arrives, if it does in time. The fuzzer's clock is a signal, which breaks into what waits.
fn heard<T>(mut receive: impl FnMut() -> io::Result<T>) -> Option<T> {
    loop {
        match receive() {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return None,
            result => return Some(result.expect("it arrives")),
        }
    }
}

// The first byte says how long the question is; the rest is what the resolver says.
fuzz_target!(|bytes: &[u8]| {
    let Some((length, rest)) = bytes.split_first() else {
        return;
    };
    let (question, said) = rest.split_at(usize::from(*length).min(rest.len()));
    // Nobody can answer what has no number.
    if question.len() < 2 {
        return;
    }
    let mut world = world().lock().expect("nobody failed before");
    let is_answered = (0..TRIES).any(|_| {
        let is_answered = world.ask(question, said).is_some();
        if !is_answered {
            // So that it hears no late answers.
            world.client = World::client(world.stub);
        }
        is_answered
    });
    assert!(is_answered, "the stub does not answer");
});
