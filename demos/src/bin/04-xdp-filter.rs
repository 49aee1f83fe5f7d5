//! Drops packets by sender and port, as told on the command line and on stdin.

use std::{
    io::{self, ErrorKind, IsTerminal as _, Write as _, stdout},
    net::IpAddr,
    process::ExitCode,
    str::FromStr,
};

use anyhow::{Context as _, Result, bail};
use aya::{
    Ebpf,
    maps::{MapData, MapError, PerCpuArray, PerCpuHashMap, PerCpuValues},
    programs::XdpMode,
    util::nr_cpus,
};
use clap::Parser;
use demos::{Interface, Length, Stop, address, bytes, program};
use demos_ebpf::xdp_filter::{DROPPED, PASSED, Rule};
use tokio::io::{AsyncBufReadExt as _, BufReader, stdin};

/// Drop packets by sender and port
///
/// While it runs, type `drop 192.0.2.1`, `drop 2001:db8::1 443`, `drop any 53`, `allow` with the same, or
/// `list`; or write these lines into its stdin. It goes on when they end.
#[derive(Parser)]
struct Options {
    #[command(flatten)]
    iface: Interface,
    #[command(flatten)]
    length: Length,
    /// Drop from the start, such as `192.0.2.1` or `any 53`
    #[arg(long, value_name = "RULE")]
    drop: Vec<String>,
}

fn main() -> ExitCode {
    demos::run(demo)
}

async fn demo(options: Options) -> Result<()> {
    let mut ebpf = Ebpf::load(demos::object!("04-xdp-filter"))?;
    let mut filter = Filter::take(&mut ebpf)?;
    for rule in &options.drop {
        filter.obey(&format!("drop {rule}"))?;
    }
    let iface = &options.iface.name;
    let link = program::attach_xdp(&mut ebpf, "filter", iface, XdpMode::Default)?;
    let mut stop = Stop::new(options.length)?;
    demos::ready(
        &format!("filtering what arrives at {iface}"),
        options.length,
    );
    if io::stdin().is_terminal() {
        writeln!(
            stdout(),
            "type `drop ADDRESS`, `drop any PORT`, `allow` with the same, or `list`"
        )?;
    }
    let_reading_fail_in_the_background();

    let mut lines = BufReader::new(stdin()).lines();
    let mut is_open = true;
    loop {
        tokio::select! {
            typed = lines.next_line(), if is_open => match typed {
                Ok(Some(command)) => {
                    if let Err(error) = filter.obey(&command) {
                        writeln!(stdout(), "{error:#}")?;
                    }
                }
                // Nobody types any more, or it is in the background.
                Ok(None) | Err(_) => is_open = false,
            },
            () = stop.wait() => break,
        }
    }
    drop(link);
    filter.obey("list")
}

/// Otherwise the terminal would stop a demo that was started with `&`, as soon as it reads.
fn let_reading_fail_in_the_background() {
    // SAFETY: ignoring a signal runs no code.
    unsafe { libc::signal(libc::SIGTTIN, libc::SIG_IGN) };
}

struct Filter {
    rules: PerCpuHashMap<MapData, Rule, u64>,
    counters: PerCpuArray<MapData, u64>,
}

impl Filter {
    fn take(ebpf: &mut Ebpf) -> Result<Self> {
        let rules = ebpf
            .take_map("RULES")
            .context("the object has no `RULES`")?;
        let counters = ebpf
            .take_map("COUNTERS")
            .context("the object has no `COUNTERS`")?;
        Ok(Self {
            rules: rules.try_into()?,
            counters: counters.try_into()?,
        })
    }

    fn obey(&mut self, line: &str) -> Result<()> {
        match line.split_once(' ').unwrap_or((line, "")) {
            ("drop", rule) => {
                let zeros = vec![0; nr_cpus().map_err(|(_, error)| error)?];
                let zeros = PerCpuValues::try_from(zeros)?;
                self.rules.insert(parse(rule)?, zeros, 0)?;
                writeln!(stdout(), "dropping {rule}")?;
            }
            ("allow", rule) => match self.rules.remove(&parse(rule)?) {
                Ok(()) => writeln!(stdout(), "allowing {rule}")?,
                Err(MapError::SyscallError(error))
                    if error.io_error.kind() == ErrorKind::NotFound =>
                {
                    bail!("there is no rule `{rule}`")
                }
                Err(error) => return Err(error.into()),
            },
            ("list", _) => self.list()?,
            ("", _) => {}
            (other, _) => bail!("`{other}` is none of drop, allow, list"),
        }
        Ok(())
    }

    fn list(&self) -> Result<()> {
        for entry in &self.rules {
            let (rule, drops) = entry?;
            let drops: u64 = drops.iter().sum();
            writeln!(stdout(), "{}: {drops} dropped", show(rule))?;
        }
        let sum = |index| -> Result<u64> { Ok(self.counters.get(&index, 0)?.iter().sum()) };
        writeln!(
            stdout(),
            "{} passed, {} dropped",
            sum(PASSED)?,
            sum(DROPPED)?
        )?;
        Ok(())
    }
}

fn parse(text: &str) -> Result<Rule> {
    let mut words = text.split_whitespace();
    let source = match words.next() {
        None => bail!("drop what? An address, or `any` and a port"),
        Some("any") => [0; 16],
        Some(word) => {
            bytes(IpAddr::from_str(word).with_context(|| format!("`{word}` is not an address"))?)
        }
    };
    let port = match words.next() {
        None => 0,
        Some(word) => u16::from_str(word).with_context(|| format!("`{word}` is not a port"))?,
    };
    let rule = Rule { source, port };
    if rule == Rule::default() {
        bail!("`{text}` is everything");
    }
    Ok(rule)
}

fn show(rule: Rule) -> String {
    let source = match rule.source {
        source if source == [0; 16] => "any".to_owned(),
        source => address(source).to_string(),
    };
    match rule.port {
        0 => source,
        port => format!("{source} {port}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rule_reads_as_it_was_written() {
        for text in ["192.0.2.1", "2001:db8::1 443", "any 53"] {
            assert_eq!(show(parse(text).unwrap()), text);
        }
    }

    #[test]
    fn nonsense_is_refused() {
        for text in ["", "any", "somebody", "any port", "192.0.2.1 70000"] {
            assert!(parse(text).is_err(), "{text}");
        }
    }
}
