//! The same socket filter twice: in the instructions of 1993, and in Rust.

use std::{
    io::{self, Write as _, stdout},
    mem::MaybeUninit,
    process::ExitCode,
};

use anyhow::{Context as _, Result};
use aya::{EbpfLoader, programs::SocketFilter};
use clap::Parser;
use demos::{Interface, Length, Stop, classic, program};
use socket2::{Domain, SockAddr, SockAddrStorage, Socket, Type};
use tokio::io::{Interest, unix::AsyncFd};

/// See the UDP packets for one port twice: by a classic filter, and by its eBPF twin
#[derive(Parser)]
struct Options {
    #[command(flatten)]
    iface: Interface,
    #[command(flatten)]
    length: Length,
    /// The port
    #[arg(long, default_value_t = 53)]
    port: u16,
    /// Print the classic program first, as `tcpdump -d` would
    #[arg(long)]
    show: bool,
}

fn main() -> ExitCode {
    demos::run(demo)
}

async fn demo(options: Options) -> Result<()> {
    let index = program::device(&options.iface.name)?;
    let filter = classic::udp_to(options.port);
    if options.show {
        write!(stdout(), "{}", classic::show(&filter))?;
    }
    let mut ebpf = EbpfLoader::new()
        .override_global("PORT", &options.port, true)
        .load(demos::object!("07-socket-filter"))?;
    let program: &mut SocketFilter = program::find(&mut ebpf, "twin")?;
    program
        .load()
        .context("the kernel refuses the program `twin`")?;
    program::log("twin", &program.info()?);

    // Bound to the device only when the filter is there, so that nothing slips through before.
    let old = Ear::open()?;
    old.socket().attach_filter(&filter)?;
    let new = Ear::open()?;
    program.attach(new.socket())?;
    let (mut old, mut new) = (old.listen(index)?, new.listen(index)?);
    let mut stop = Stop::new(options.length)?;
    let what = format!(
        "listening to UDP port {} at {}",
        options.port, options.iface.name
    );
    demos::ready(&what, options.length);

    loop {
        tokio::select! {
            result = old.hear() => result?,
            result = new.hear() => result?,
            () = stop.wait() => break,
        }
    }
    for (name, mut ear) in [("classic", old), ("eBPF", new)] {
        ear.finish()?;
        writeln!(
            stdout(),
            "{name:>8}: {} packets, {} bytes",
            ear.packets,
            ear.bytes
        )?;
    }
    Ok(())
}

/// A socket that gets what passes a device, and counts it.
struct Ear {
    socket: AsyncFd<Socket>,
    packets: u64,
    bytes: u64,
}

impl Ear {
    fn open() -> Result<Self> {
        let socket =
            Socket::new(Domain::PACKET, Type::RAW, None).context("cannot open a packet socket")?;
        socket.set_nonblocking(true)?;
        // SAFETY: the socket owns its descriptor and never changes it.
        let socket = unsafe { AsyncFd::register_with_interest(socket, Interest::READABLE) }?;
        Ok(Self {
            socket,
            packets: 0,
            bytes: 0,
        })
    }

    fn socket(&self) -> &Socket {
        self.socket.get_ref()
    }

    fn listen(self, index: u32) -> Result<Self> {
        self.socket()
            .bind(&everything_at(index)?)
            .context("cannot listen to the device")?;
        Ok(self)
    }

    async fn hear(&mut self) -> Result<()> {
        let mut guard = self.socket.readable().await?;
        match guard.try_io(|socket| receive(socket.get_ref())) {
            Ok(received) => self.count(received?),
            Err(_would_block) => {}
        }
        Ok(())
    }

    /// Counts what waits in the socket.
    fn finish(&mut self) -> Result<()> {
        loop {
            match receive(self.socket()) {
                Ok(received) => self.count(received),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(()),
                Err(error) => return Err(error.into()),
            }
        }
    }

    fn count(&mut self, received: Option<usize>) {
        if let Some(len) = received {
            self.packets += 1;
            self.bytes += len as u64;
        }
    }
}

/// The length of the next packet, or `None` if it is one that leaves: on `lo` each would be seen twice.
fn receive(socket: &Socket) -> io::Result<Option<usize>> {
    let mut buffer = [MaybeUninit::uninit(); 64];
    let (len, from) = socket.recv_from_with_flags(&mut buffer, libc::MSG_TRUNC)?;
    // SAFETY: a `SockAddr` has room for any address, and every bit pattern is a `sockaddr_ll`.
    let from = unsafe { from.as_ptr().cast::<libc::sockaddr_ll>().read_unaligned() };
    Ok((from.sll_pkttype != libc::PACKET_OUTGOING).then_some(len))
}

/// The address of all packets at a device.
fn everything_at(index: u32) -> Result<SockAddr> {
    let mut storage = SockAddrStorage::zeroed();
    let size = libc::socklen_t::try_from(size_of::<libc::sockaddr_ll>())?;
    // SAFETY: a storage is larger than any address, and any bits are a `sockaddr_ll`.
    let address = unsafe { storage.view_as::<libc::sockaddr_ll>() };
    address.sll_family = libc::sa_family_t::try_from(libc::AF_PACKET)?;
    address.sll_protocol = u16::try_from(libc::ETH_P_ALL)?.to_be();
    address.sll_ifindex = i32::try_from(index)?;
    // SAFETY: it was just made an address of this size.
    Ok(unsafe { SockAddr::new(storage, size) })
}
