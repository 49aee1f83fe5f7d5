//! The command line.

use std::{ffi::OsString, net::IpAddr, path::PathBuf};

use clap::{Args, Parser, Subcommand, ValueHint};
use clap_complete::Shell;
use ipnet::IpNet;
use lockne_daemon::state_dir::StateDir;

use crate::{
    cmd::{
        self, attach, doctor, explain,
        rule::{File, Rule},
    },
    failure::{Failure, Result},
};

/// Each application gets the tunnel you chose for it, and nothing of it leaves another way
#[derive(Debug, Parser)]
#[command(
    name = "lockne",
    version,
    max_term_width = 100,
    arg_required_else_help = true
)]
#[command(after_help = "\
First steps:
  sudo lockne demo                  see it work, in namespaces of its own
  sudo lockne run --via ./work.conf -- curl URL
  sudo lockne run --via tun0 -- sudo -u $USER firefox")]
pub(crate) struct Cli {
    #[command(flatten)]
    pub(crate) place: Place,
    #[command(subcommand)]
    pub(crate) command: Command,
}

/// Which lockne is meant, where several live beside each other.
///
/// The environment is read by hand: clap would count a variable as an argument, and so `lockne` alone
/// would no longer print its help.
#[expect(clippy::doc_markdown, reason = "it is the text of a help")]
#[derive(Args, Clone, Debug)]
#[command(next_help_heading = "Global options")]
pub(crate) struct Place {
    /// Where it keeps its state [default: $LOCKNE_STATE_DIR or /run/lockne]
    #[arg(long, global = true, value_name = "DIR", value_hint = ValueHint::DirPath)]
    state_dir: Option<PathBuf>,
    /// Its socket [default: $LOCKNE_SOCKET or DIR/lockne.sock]
    #[arg(long, global = true, value_name = "PATH", value_hint = ValueHint::FilePath)]
    socket: Option<PathBuf>,
}

impl Place {
    /// The directory of the daemon's state.
    pub(crate) fn state(&self) -> StateDir {
        let path = self
            .state_dir
            .clone()
            .or_else(|| path_of("LOCKNE_STATE_DIR"));
        StateDir::new(&path.unwrap_or_else(|| PathBuf::from("/run/lockne")))
    }

    /// The socket of the daemon.
    pub(crate) fn socket(&self) -> Result<PathBuf> {
        /// `sun_path` of unix(7), without the byte that ends it.
        const LONGEST: usize = 107;
        let path = self.socket.clone().or_else(|| path_of("LOCKNE_SOCKET"));
        let path = path.map_or_else(
            || self.state().socket(),
            |path| std::path::absolute(&path).unwrap_or(path),
        );
        let length = path.as_os_str().len();
        if length > LONGEST {
            return Err(Failure::new(format!(
                "the path of the socket has {length} bytes, and a socket takes {LONGEST}: `{}`",
                path.display()
            ))
            .hint("give a shorter one with `--socket`"));
        }
        Ok(path)
    }
}

fn path_of(variable: &str) -> Option<PathBuf> {
    let value = std::env::var_os(variable)?;
    (!value.is_empty()).then(|| PathBuf::from(value))
}

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Run a program under a policy, then be that program
    Run(Run),
    /// Put a program that runs already under a policy
    Attach(attach::Attach),
    /// Let a program that runs go as if lockne were not there
    Detach(attach::Detach),
    /// Tell why a program is on the way that it is on
    Explain(explain::Explain),
    /// Bring tunnels up and down, and look at them
    #[command(subcommand)]
    Tunnel(Tunnel),
    /// Choose the way of programs wherever they are started from
    #[command(subcommand)]
    Rule(Rule),
    /// Show policies, processes, traffic and tunnels
    Status(Json),
    /// Try the ways past a tunnel, and say where each went
    Leaktest(crate::cmd::Leaktest),
    /// Take back everything that lockne did
    Down(Json),
    /// Look at what this machine offers lockne, and what stands in its way
    Doctor(doctor::Doctor),
    /// Show the main job on a small internet in network namespaces
    Demo(Json),
    /// Show packets, and the process each one belongs to
    Monitor(cmd::Monitor),
    /// Watch programs start, or pings come in
    #[command(subcommand)]
    Trace(cmd::Trace),
    /// Show every connection: program, tunnel, bytes
    Flows(cmd::FlowsArgs),
    /// Watch who uses the network, which way, and how much
    Top(cmd::Top),
    /// Serve the clients in the foreground
    Daemon(Daemon),
    /// Print a completion script
    Completions {
        /// For which shell
        shell: Shell,
    },
    /// Print the manual page
    Man,
}

#[derive(Args, Clone, Copy, Debug)]
pub(crate) struct Json {
    /// Print one JSON document instead of text
    #[arg(long)]
    pub(crate) json: bool,
}

#[derive(Args, Debug)]
#[command(override_usage = "lockne run <--via TUNNEL|--direct|--block> [OPTIONS] PROGRAM [ARG]...")]
#[command(after_help = "\
The program keeps your terminal, environment, directory and user; its children
share its policy. The exit code is the program's own; 125 if lockne failed
before it, 126 if it cannot be executed, 127 if it is not found.

Which of several `--via` it uses is decided anew by the daemon only: should that
die, the program stays on the way that it is on, `direct` too.")]
pub(crate) struct Run {
    #[command(flatten)]
    pub(crate) action: ActionArgs,
    /// Reach this prefix directly, past the tunnel (again for more)
    #[arg(long, value_name = "PREFIX", conflicts_with = "direct", value_parser = prefix)]
    pub(crate) lan: Vec<IpNet>,
    /// Ask this resolver, through the tunnel, instead of the one in its file (again for more)
    #[arg(long, value_name = "ADDRESS", requires = "via")]
    pub(crate) dns: Vec<IpAddr>,
    /// Let commands in the file (`PostUp` and the like) run as root
    #[arg(long)]
    pub(crate) allow_hooks: bool,
    /// Program to run, and its arguments
    #[arg(required = true, trailing_var_arg = true, value_name = "PROGRAM")]
    #[arg(value_hint = ValueHint::CommandWithArguments)]
    pub(crate) program: Vec<OsString>,
}

#[derive(Args, Debug)]
#[group(required = true, multiple = false)]
pub(crate) struct ActionArgs {
    /// Go through this: a tunnel that is up, a network interface, or a wg-quick file
    /// (again for one to use in need; `direct` may be the last)
    #[arg(long, value_name = "TUNNEL", value_delimiter = ',')]
    pub(crate) via: Vec<String>,
    /// Go past every tunnel, even where the default route is one
    #[arg(long)]
    pub(crate) direct: bool,
    /// Reach nothing but this machine itself
    #[arg(long)]
    pub(crate) block: bool,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Tunnel {
    /// Bring a tunnel up from a wg-quick file
    Up {
        /// The wg-quick file
        #[arg(value_hint = ValueHint::FilePath)]
        file: PathBuf,
        /// What to call it [default: the file's name without `.conf`]
        #[arg(long)]
        name: Option<String>,
        /// Let commands in the file (`PostUp` and the like) run as root
        #[arg(long)]
        allow_hooks: bool,
    },
    /// Take a tunnel down; programs that use it fall silent
    Down {
        /// Its name
        name: String,
    },
    /// List the tunnels
    List(Json),
    /// Show one tunnel: endpoint, handshake, bytes
    Show {
        /// Its name
        name: String,
        #[command(flatten)]
        json: Json,
    },
}

#[derive(Args, Debug)]
pub(crate) struct Daemon {
    /// Lowest of the 8 bits of the socket mark that carry the policy
    #[arg(long, value_name = "BIT", default_value_t = 24)]
    #[arg(value_parser = clap::value_parser!(u32).range(0..=24))]
    pub(crate) mark_bit: u32,
    #[command(flatten)]
    pub(crate) file: File,
    /// End with the last job, as `run` starts it
    #[arg(long, hide = true)]
    pub(crate) ephemeral: bool,
    /// Grants for users other than root, as JSON
    #[arg(long, hide = true, value_name = "FILE")]
    pub(crate) grants: Option<PathBuf>,
    /// Do without what the kernel has, as on one that has it not
    #[arg(long, hide = true, value_name = "FEATURE")]
    pub(crate) without: Vec<lockne_daemon::kernel::Feature>,
}

/// A prefix; an address alone means that address only.
pub(crate) fn prefix(text: &str) -> std::result::Result<IpNet, &'static str> {
    let address = || text.parse::<IpAddr>().ok().map(IpNet::from);
    text.parse()
        .ok()
        .or_else(address)
        .map(|prefix: IpNet| prefix.trunc())
        .ok_or("not a prefix such as `192.168.1.0/24` or `fd00::/8`")
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory as _;

    use super::*;

    #[test]
    fn command_line_is_consistent() {
        Cli::command().debug_assert();
    }
}
