//! `lockne rule`: which programs get which way without being asked.

mod edit;
mod test;

use std::{net::IpAddr, path::PathBuf, process::ExitCode};

use clap::{Args, Subcommand, ValueEnum, ValueHint};
use hyper::Method;
use ipnet::IpNet;
use lockne_core::{
    api::{RuleStatus, Status},
    config::Config,
};
use lockne_daemon::config::{self, Files};

use crate::{
    cli::{Json, Place, prefix},
    client::Client,
    failure::{Failure, Result},
    output,
};

#[derive(Debug, Subcommand)]
pub(crate) enum Rule {
    /// List the rules in their order; the first that matches decides
    List {
        #[command(flatten)]
        file: File,
        #[command(flatten)]
        json: Json,
    },
    /// Add a rule to the file, as the last one
    Add(Box<Add>),
    /// Remove a rule from the file
    Remove {
        /// Its name
        name: String,
        #[command(flatten)]
        file: File,
    },
    /// Say which rule would decide for a program, and why those before it do not
    Test(Test),
}

/// Which configuration is meant.
#[expect(clippy::doc_markdown, reason = "it is the text of a help")]
#[derive(Args, Clone, Debug)]
pub(crate) struct File {
    /// The configuration [default: $LOCKNE_CONFIG or /etc/lockne/lockne.toml]
    #[arg(long, value_name = "FILE", value_hint = ValueHint::FilePath)]
    config: Option<PathBuf>,
}

impl File {
    /// The files that are meant. A file that is not named may be missing.
    pub(crate) fn files(&self) -> Files {
        let named = self.config.clone();
        let variable = || {
            let value = std::env::var_os("LOCKNE_CONFIG")?;
            (!value.is_empty()).then(|| PathBuf::from(value))
        };
        named
            .or_else(variable)
            .map_or_else(Files::usual, |path| Files::new(&path))
    }
}

#[derive(Args, Debug)]
#[command(
    override_usage = "lockne rule add NAME <PROGRAMS> <--via TUNNEL|--direct|--block> [OPTIONS]"
)]
pub(crate) struct Add {
    /// What to call it
    pub(super) name: String,
    #[command(flatten)]
    pub(super) programs: Programs,
    #[command(flatten)]
    pub(super) action: Way,
    /// Reach this prefix directly (again for more)
    #[arg(long, value_name = "PREFIX", conflicts_with = "direct", value_parser = prefix)]
    pub(super) lan: Vec<IpNet>,
    /// Ask this resolver by the tunnel (again for more)
    #[arg(long, value_name = "ADDRESS", requires = "via")]
    pub(super) dns: Vec<IpAddr>,
    /// `keep` or `reset` open connections [default: reset]
    #[arg(long, value_enum, value_name = "WHAT", hide_possible_values = true)]
    pub(super) existing: Option<ExistingArg>,
    /// Put it before this rule instead of at the end
    #[arg(long, value_name = "RULE")]
    pub(super) before: Option<String>,
    #[command(flatten)]
    pub(super) file: File,
}

/// Which way they go.
#[derive(Args, Debug)]
#[group(id = "way", required = true, multiple = false)]
pub(crate) struct Way {
    /// Go through this tunnel of the file (again for another in need)
    #[arg(long, value_name = "TUNNEL", value_delimiter = ',')]
    pub(super) via: Vec<String>,
    /// Go past every tunnel
    #[arg(long)]
    pub(super) direct: bool,
    /// Reach nothing but this machine itself
    #[arg(long)]
    pub(super) block: bool,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
pub(crate) enum ExistingArg {
    Keep,
    Reset,
}

/// Which programs a rule means: those for which every condition holds.
#[derive(Args, Debug)]
#[group(required = true, multiple = true)]
pub(crate) struct Programs {
    /// The executable, by its path or as found in PATH
    #[arg(long, value_name = "PATH", value_hint = ValueHint::ExecutablePath)]
    pub(super) exe: Option<PathBuf>,
    /// The executable is a script
    #[arg(long, requires = "exe")]
    pub(super) script: bool,
    /// The user, by name or number
    #[arg(long)]
    pub(super) user: Option<String>,
    /// The systemd unit, such as `x.service`
    #[arg(long)]
    pub(super) unit: Option<String>,
    /// The cgroup with all below it, such as `/user.slice`
    #[arg(long, value_name = "PATH")]
    pub(super) cgroup: Option<PathBuf>,
    /// The id of a Flatpak, such as `org.mozilla.firefox`
    #[arg(long, value_name = "ID")]
    pub(super) flatpak: Option<String>,
    /// The name of a Snap
    #[arg(long, value_name = "NAME")]
    pub(super) snap: Option<String>,
}

#[derive(Args, Debug)]
pub(crate) struct Test {
    /// The program, by its path or as found in PATH
    #[arg(value_hint = ValueHint::CommandName)]
    pub(super) program: PathBuf,
    /// Run by this user, by name or number [default: you]
    #[arg(long)]
    pub(super) user: Option<String>,
    /// In this systemd unit
    #[arg(long)]
    pub(super) unit: Option<String>,
    /// In this cgroup
    #[arg(long, value_name = "PATH")]
    pub(super) cgroup: Option<PathBuf>,
    /// Of this Flatpak
    #[arg(long, value_name = "ID")]
    pub(super) flatpak: Option<String>,
    /// Of this Snap
    #[arg(long, value_name = "NAME")]
    pub(super) snap: Option<String>,
    #[command(flatten)]
    pub(super) file: File,
    #[command(flatten)]
    pub(super) json: Json,
}

pub(crate) fn rule(place: &Place, command: &Rule) -> Result<ExitCode> {
    match command {
        Rule::List { file, json } => list(place, file, *json),
        Rule::Add(args) => edit::add(args),
        Rule::Remove { name, file } => edit::remove(name, file),
        Rule::Test(args) => test::test(args),
    }
    .map(|()| ExitCode::SUCCESS)
}

fn load(files: &Files) -> Result<Config> {
    files.load().map_err(|error| wrong(&error, files))
}

fn wrong(error: &config::Error, files: &Files) -> Failure {
    match error {
        config::Error::Wrong(wrong) => {
            Failure::new("the configuration has mistakes").lines(wrong.to_string())
        }
        config::Error::Read { source, .. } => {
            let failure = Failure::new(error.to_string()).because(source);
            if source.kind() == std::io::ErrorKind::NotFound {
                failure.hint(format!(
                    "`lockne rule add --config {} …` writes one",
                    files.main().display()
                ))
            } else {
                failure
            }
        }
    }
}

fn list(place: &Place, file: &File, json: Json) -> Result<()> {
    let files = file.files();
    let config = load(&files)?;
    // Without a daemon, or without the permission to ask it, the file says enough.
    let status = Client::new(place)
        .and_then(|client| client.ask::<Status>(Method::GET, "/v1/status", &()))
        .ok()
        .flatten();
    let running = status
        .and_then(|status| status.config)
        .filter(|running| running.file == files.main());
    let in_force = |rule: &lockne_core::rule::Rule| {
        let rules = running.iter().flat_map(|running| &running.rules);
        let mut rules = rules.filter(|it| it.name == rule.name && it.terms == rule.terms);
        rules.next().and_then(|it| it.policy)
    };
    let rules: Vec<RuleStatus> = config
        .rules
        .iter()
        .map(|rule| RuleStatus::new(&config, rule, in_force(rule)))
        .collect();
    if json.json {
        return output::json(&rules);
    }
    if rules.is_empty() {
        output::line("no rules; add one with `lockne rule add`")?;
    } else {
        output::print_table(&table(&rules))?;
    }
    if let Some(default) = &config.default {
        output::line(&format!("what no rule means goes {}", default.terms))?;
    }
    if let Some(problem) = running.and_then(|running| running.problem) {
        output::notice(&format!("the daemon uses older rules: {problem}"));
    }
    Ok(())
}

/// One line for each rule.
pub(crate) fn table(rules: &[RuleStatus]) -> comfy_table::Table {
    let mut table = output::table(&["RULE", "PROGRAMS", "GO", "POLICY"]);
    for rule in rules {
        table.add_row([
            rule.name.to_string(),
            rule.matches.to_string(),
            rule.terms.to_string(),
            match (rule.policy, &rule.missing) {
                (_, Some(missing)) => missing.clone(),
                (Some(policy), None) => policy.to_string(),
                (None, None) => "-".to_owned(),
            },
        ]);
    }
    table
}
