//! Spreads the connections to one address over two back ends.

use std::{
    io::{Write as _, stdout},
    net::UdpSocket,
    net::{IpAddr, SocketAddr},
    process::ExitCode,
};

use anyhow::{Context as _, Result, bail};
use aya::{
    EbpfLoader,
    maps::{Array, PerCpuArray},
    programs::XdpMode,
};
use clap::Parser;
use demos::{Interface, Length, Stop, bytes, program};
use demos_ebpf::xdp_balancer::{BACKENDS, LOST, Service};

/// Spread the connections to one address over two back ends
///
/// The back ends have the service's address too, on their loopback, and answer the client themselves.
#[derive(Parser)]
struct Options {
    #[command(flatten)]
    iface: Interface,
    #[command(flatten)]
    length: Length,
    /// What is balanced, such as `192.0.2.100:80`
    #[arg(long, value_name = "ADDRESS:PORT")]
    service: SocketAddr,
    /// A back end's own address; give it twice
    #[arg(long, value_name = "ADDRESS")]
    backend: Vec<IpAddr>,
}

fn main() -> ExitCode {
    demos::run(demo)
}

async fn demo(options: Options) -> Result<()> {
    if options.backend.len() != BACKENDS as usize {
        bail!(
            "there must be {BACKENDS} back ends, not {}",
            options.backend.len()
        );
    }
    let service = Service {
        address: bytes(options.service.ip()),
        port: options.service.port(),
    };
    let mut ebpf = EbpfLoader::new()
        .override_global("SERVICE", &service, true)
        .load(demos::object!("04-xdp-balancer"))?;
    let mut addresses: Array<_, [u8; 16]> = ebpf
        .take_map("ADDRESSES")
        .context("the object has no `ADDRESSES`")?
        .try_into()?;
    for (index, backend) in (0..).zip(&options.backend) {
        addresses.set(index, bytes(*backend), 0)?;
        greet(*backend)?;
    }
    let counters: PerCpuArray<_, u64> = ebpf
        .take_map("COUNTERS")
        .context("the object has no `COUNTERS`")?
        .try_into()?;
    let iface = &options.iface.name;
    // The driver's own mode would hand packets to other drivers, and not each of them takes any.
    let link = program::attach_xdp(&mut ebpf, "balance", iface, XdpMode::Skb)?;
    let mut stop = Stop::new(options.length)?;
    let what = format!("balancing {} that arrives at {iface}", options.service);
    demos::ready(&what, options.length);

    stop.wait().await;
    drop(link);
    let sum = |index| -> Result<u64> { Ok(counters.get(&index, 0)?.iter().sum()) };
    for (index, backend) in (0..).zip(&options.backend) {
        writeln!(stdout(), "{backend}: {} packets", sum(index)?)?;
    }
    writeln!(stdout(), "{} lost", sum(LOST)?)?;
    Ok(())
}

/// Sends a datagram to nobody, so that the kernel asks for the back end's Ethernet address: the program can
/// only look it up.
fn greet(backend: IpAddr) -> Result<()> {
    let any: IpAddr = match backend {
        IpAddr::V4(_) => [0; 4].into(),
        IpAddr::V6(_) => [0_u16; 8].into(),
    };
    UdpSocket::bind((any, 0))
        .and_then(|socket| socket.send_to(b"", (backend, 9)))
        .with_context(|| format!("cannot reach the back end {backend}"))?;
    Ok(())
}
