//! Filters mean what they mean to tcpdump, on random packets: as a program, and as instructions.

#![allow(
    clippy::unwrap_used,
    clippy::print_stderr,
    reason = "a test, which clippy does not see without the usual harness"
)]

mod sample;

use std::process::ExitCode;

use libtest_mimic::{Arguments, Failed, Trial};
use lockne_abi::observe::Packet;
use lockne_core::filter::{Code, Expression, Program, Tunnel, packet};
use proptest::{
    prelude::*,
    test_runner::{Config, TestCaseError, TestRunner},
};

use crate::sample::{filter, frame, packets, tcpdump};

fn main() -> ExitCode {
    let missing = which::which("tcpdump").is_err();
    let on_ci = std::env::var_os("CI").is_some_and(|value| value == "true");
    if missing {
        eprintln!("ignored: tcpdump is not installed");
    }
    let trial = Trial::test("filter_takes_what_tcpdump_takes", move || {
        if missing {
            return Err(Failed::from("tcpdump is not installed"));
        }
        filter_takes_what_tcpdump_takes();
        Ok(())
    });
    let trial = trial.with_ignored_flag(missing && !on_ci);
    libtest_mimic::run(&Arguments::from_args(), vec![trial]).exit_code()
}

fn filter_takes_what_tcpdump_takes() {
    let folder = tempfile::tempdir().unwrap();
    let cases = frame().prop_flat_map(|frame| (Just(frame), packets(frame), filter()));

    TestRunner::new(Config {
        cases: 400,
        failure_persistence: None,
        ..Config::default()
    })
    .run(&cases, |(frame, packets, text)| {
        let expression: Expression = text
            .parse()
            .map_err(|error| TestCaseError::fail(format!("{error}")))?;
        let program = Program::new(&expression, &|_| Tunnel::default()).unwrap();
        let code = Code::function(&program);

        let theirs = tcpdump(folder.path(), frame, &packets, &text);

        for (bytes, theirs) in packets.iter().zip(theirs) {
            let known = packet(bytes, frame.link());
            prop_assert_eq!(program.wants(&known), theirs, "{:02x?}", bytes);
            prop_assert_eq!(interpreted(&code, &known), theirs, "{:02x?}", bytes);
        }
        Ok(())
    })
    .unwrap();
}

/// What the instructions say.
fn interpreted(code: &Code, packet: &Packet) -> bool {
    let instructions: Vec<u8> = code
        .instructions()
        .iter()
        .flat_map(|instruction| instruction.to_le_bytes())
        .collect();
    let mut memory = bytes_of(packet);
    let machine = rbpf::EbpfVmRaw::new(Some(&instructions)).unwrap();
    machine.execute_program(&mut memory).unwrap() == 1
}

/// The struct as it lies in memory, put together by hand: this crate has no `unsafe`.
fn bytes_of(packet: &Packet) -> Vec<u8> {
    let mut bytes = packet.time.to_ne_bytes().to_vec();
    bytes.extend(packet.source);
    bytes.extend(packet.destination);
    bytes.extend(packet.name);
    for word in [packet.pid, packet.mark, packet.ifindex, packet.length] {
        bytes.extend(word.to_ne_bytes());
    }
    for half in [
        packet.ethertype,
        packet.source_port,
        packet.destination_port,
        packet.vlan,
    ] {
        bytes.extend(half.to_ne_bytes());
    }
    bytes.extend([packet.protocol, packet.behind, packet.flags, packet.kind]);
    bytes.extend([0; 4]);
    assert_eq!(bytes.len(), size_of::<Packet>());
    bytes
}
