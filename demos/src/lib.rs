//! What all demos do alike: options, logs, Ctrl-C, errors that help.
//!
//! A demo's own file in `src/bin` has only what is special about it.

pub mod cgroup;
pub mod classic;
pub mod events;
pub mod failure;
pub mod histogram;
pub mod namespace;
pub mod program;
pub mod queue;
pub mod results;
pub mod stop;
pub mod tracefs;

use std::{
    env,
    io::{self, IsTerminal as _},
    net::{IpAddr, Ipv6Addr},
    process::ExitCode,
    time::Duration,
};

use clap::{Args, Parser};
use tracing_subscriber::{
    filter::{LevelFilter, Targets},
    fmt,
    layer::SubscriberExt as _,
    util::SubscriberInitExt as _,
};

pub use crate::{events::Events, stop::Stop};

/// The kernel's side of the demo with this name, for [`aya::Ebpf::load`].
#[macro_export]
macro_rules! object {
    ($name:literal) => {
        aya::include_bytes_aligned!(concat!(env!("OUT_DIR"), "/", $name))
    };
}

/// How long it runs.
#[derive(Args, Clone, Copy, Debug)]
pub struct Length {
    /// How long to run, such as `10` (seconds) or `2m`; until Ctrl-C if not given
    #[arg(long, value_name = "TIME", value_parser = parse_duration)]
    pub duration: Option<Duration>,
}

/// Where it looks.
#[derive(Args, Clone, Debug)]
pub struct Interface {
    /// The network device
    #[arg(long = "iface", value_name = "NAME", default_value = "lo")]
    pub name: String,
}

/// Parses the options, sets up logs, runs `demo`, and says what went wrong.
///
/// `RUST_LOG` sets what is logged; `debug` shows what the kernel made of the programs.
pub fn run<Options: Parser>(demo: impl AsyncFnOnce(Options) -> anyhow::Result<()>) -> ExitCode {
    let options = Options::parse();
    let wanted = env::var("RUST_LOG").ok().and_then(|text| text.parse().ok());
    let log = fmt::layer()
        .with_writer(io::stderr)
        .with_ansi(io::stderr().is_terminal())
        .without_time();
    tracing_subscriber::registry()
        .with(log)
        .with(wanted.unwrap_or(Targets::new().with_default(LevelFilter::INFO)))
        .init();

    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build();
    let result = runtime.map_err(anyhow::Error::from).and_then(|runtime| {
        let result = runtime.block_on(demo(options));
        // Does not wait for somebody to type a last line.
        runtime.shutdown_background();
        result
    });
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => failure::exit(&error),
    }
}

/// Says that the demo works from now on, and how it ends.
#[expect(clippy::print_stderr, reason = "for whoever waits in front of it")]
pub fn ready(what: &str, length: Length) {
    match length.duration {
        Some(duration) => {
            let duration = humantime::format_duration(duration);
            eprintln!("{what} for {duration}; Ctrl-C ends it sooner");
        }
        None => eprintln!("{what}; Ctrl-C ends it"),
    }
}

/// The address that the kernel's side gave as 16 bytes: an IPv4 one if it is mapped.
#[must_use]
pub fn address(bytes: [u8; 16]) -> IpAddr {
    Ipv6Addr::from(bytes).to_canonical()
}

/// An address as the kernel's side has it: IPv4 mapped into IPv6.
#[must_use]
pub const fn bytes(address: IpAddr) -> [u8; 16] {
    match address {
        IpAddr::V4(address) => address.to_ipv6_mapped().octets(),
        IpAddr::V6(address) => address.octets(),
    }
}

/// The text that the kernel's side gave as bytes up to a zero, fit for a terminal.
#[must_use]
pub fn text(bytes: &[u8]) -> String {
    let end = bytes.iter().position(|byte| *byte == 0);
    let text = String::from_utf8_lossy(&bytes[..end.unwrap_or(bytes.len())]);
    text.escape_debug().to_string()
}

/// The name of an IP protocol, or its number.
#[must_use]
pub fn protocol(number: u8) -> String {
    use demos_ebpf::packet::protocol::{ICMP, ICMPV6, TCP, UDP};

    match number {
        ICMP => "icmp".to_owned(),
        TCP => "tcp".to_owned(),
        UDP => "udp".to_owned(),
        ICMPV6 => "icmpv6".to_owned(),
        other => format!("protocol {other}"),
    }
}

fn parse_duration(text: &str) -> Result<Duration, humantime::DurationError> {
    match text.parse() {
        Ok(seconds) => Ok(Duration::from_secs(seconds)),
        Err(_) => humantime::parse_duration(text),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn plain_number_is_seconds() {
        assert_eq!(parse_duration("10"), Ok(Duration::from_secs(10)));
        assert_eq!(parse_duration("2m"), Ok(Duration::from_mins(2)));
        assert!(parse_duration("soon").is_err());
    }

    #[test]
    fn address_survives_its_bytes() {
        for text in ["192.0.2.1", "2001:db8::1"] {
            let given: IpAddr = text.parse().unwrap();

            assert_eq!(address(bytes(given)), given);
        }
    }
}
