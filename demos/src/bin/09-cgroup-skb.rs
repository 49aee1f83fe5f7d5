//! Runs a command, counts its traffic, and refuses it some networks.

use std::{
    io::{Write as _, stdout},
    net::IpAddr,
    process::ExitCode,
};

use anyhow::{Context as _, Result};
use aya::{
    Ebpf,
    maps::{LpmTrie, MapData, PerCpuArray, lpm_trie::Key},
    programs::{CgroupAttachMode, CgroupSkb, CgroupSkbAttachType},
};
use clap::Parser;
use demos::{Length, Stop, bytes, cgroup::Cgroup, program};
use demos_ebpf::cgroup_skb::{EGRESS, INGRESS, Traffic};
use ipnet::IpNet;

/// Run a command, count its traffic, and refuse it some networks
#[derive(Parser)]
struct Options {
    #[command(flatten)]
    length: Length,
    /// Refuse this address or network, such as `192.0.2.0/24`; may be given often
    #[arg(long, value_name = "NETWORK", value_parser = parse)]
    refuse: Vec<IpNet>,
    /// The command
    #[arg(last = true, required = true, value_name = "COMMAND")]
    command: Vec<String>,
}

fn main() -> ExitCode {
    demos::run(demo)
}

async fn demo(options: Options) -> Result<()> {
    let cgroup = Cgroup::create("cgroup-skb")?;
    let mut ebpf = Ebpf::load(demos::object!("09-cgroup-skb"))?;
    refuse(&mut ebpf, &options.refuse)?;
    let directory = std::fs::File::open(cgroup.path())?;
    for (name, direction) in [
        ("leave", CgroupSkbAttachType::Egress),
        ("arrive", CgroupSkbAttachType::Ingress),
    ] {
        let program: &mut CgroupSkb = program::find(&mut ebpf, name)?;
        program
            .load()
            .with_context(|| format!("the kernel refuses the program `{name}`"))?;
        program::log(name, &program.info()?);
        program
            .attach(&directory, direction, CgroupAttachMode::Single)
            .with_context(|| format!("cannot attach `{name}` to {}", cgroup.path().display()))?;
    }
    let mut stop = Stop::new(options.length)?;
    demos::ready(
        &format!("watching `{}`", options.command.join(" ")),
        options.length,
    );

    let mut command = cgroup.start(&options.command)?;
    tokio::select! {
        status = command.wait() => tracing::info!("the command ended: {}", status?),
        () = stop.wait() => {}
    }
    let traffic: PerCpuArray<&MapData, Traffic> = ebpf
        .map("TRAFFIC")
        .context("the object has no `TRAFFIC`")?
        .try_into()?;
    for (name, index) in [("out", EGRESS), ("in", INGRESS)] {
        let Traffic {
            packets,
            bytes,
            refused,
        } = sum_up(&traffic.get(&index, 0)?);
        writeln!(
            stdout(),
            "{name:>3}: {packets} packets, {bytes} bytes, {refused} refused"
        )?;
    }
    Ok(())
}

fn refuse(ebpf: &mut Ebpf, networks: &[IpNet]) -> Result<()> {
    let mut refused: LpmTrie<&mut MapData, [u8; 16], u8> = ebpf
        .map_mut("REFUSED")
        .context("the object has no `REFUSED`")?
        .try_into()?;
    for network in networks {
        // Mapped into IPv6, the first 96 bits of each IPv4 address are the same.
        let mapping = if network.addr().is_ipv4() { 96 } else { 0 };
        let length = mapping + u32::from(network.prefix_len());
        refused.insert(&Key::new(length, bytes(network.network())), 1, 0)?;
    }
    Ok(())
}

fn sum_up(cpus: &[Traffic]) -> Traffic {
    cpus.iter().fold(Traffic::default(), |sum, cpu| Traffic {
        packets: sum.packets + cpu.packets,
        bytes: sum.bytes + cpu.bytes,
        refused: sum.refused + cpu.refused,
    })
}

fn parse(text: &str) -> Result<IpNet, ipnet::AddrParseError> {
    match text.parse::<IpAddr>() {
        Ok(address) => Ok(address.into()),
        Err(_) => text.parse(),
    }
}
