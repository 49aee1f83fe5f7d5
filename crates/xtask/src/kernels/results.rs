//! What works where: kept as JSON, and shown as a page.

use std::{collections::BTreeMap, fmt::Write as _, fs, path::Path};

use anyhow::{Context as _, Result};
use serde::{Deserialize, Serialize};

use super::{kernel::KERNELS, lack, machine::REFUSAL, watch::Outcome};

const KEPT: &str = "docs/kernels.json";
const PAGE: &str = "docs/kernels.md";

/// What came of one kernel.
#[derive(Deserialize, Serialize)]
pub(crate) struct OfKernel {
    /// As `uname -r` says it.
    pub(crate) release: String,
    /// Tests as `suite/module::name`.
    pub(crate) tests: BTreeMap<String, Outcome>,
}

/// All kernels by their names.
type Results = BTreeMap<String, OfKernel>;

/// What a user wants to know, and how the names of the tests begin that say it.
const FEATURES: [(&str, &[&str]); 36] = [
    ("sockets get the mark of their process", &["kernel/mark::"]),
    (
        "older sockets are marked when they are used",
        &["kernel/remark::"],
    ),
    (
        "children inherit, the dead are forgotten",
        &["kernel/family::", "kernel/crowd::"],
    ),
    ("rules name executables", &["kernel/exec::"]),
    (
        "the guard drops what leaves by another device",
        &["kernel/guard::"],
    ),
    (
        "replies are stamped, by TCX or else by clsact",
        &["kernel/stamp::"],
    ),
    (
        "a new daemon takes over without a gap",
        &["kernel/lifetime::"],
    ),
    ("the kernel programs tell what they see", &["observe/"]),
    ("routes and routing rules", &["route/"]),
    (
        "embedded WireGuard",
        &[
            "wireguard/embedded_",
            "wireguard/two_tunnels",
            "wireguard/ipv6_carries",
        ],
    ),
    (
        "the kernel's WireGuard as lockne's own",
        &[
            "wireguard/kernel_tunnel_is",
            "wireguard/port_in_use_is_said_by",
            "wireguard/deleted_kernel",
        ],
    ),
    (
        "embedded WireGuard to the kernel's",
        &["wireguard/kernel_tunnel_talks"],
    ),
    ("whole programs go by their tunnel", &["lab/path::"]),
    (
        "names are asked through the tunnel",
        &[
            "lab/dns::program",
            "lab/dns::questions",
            "lab/dns::resolver_",
            "lab/dns::socket_of",
            "lab/dns::stub",
            "lab/dns::without",
            "lab/dns::blocked",
            "lab/dns::direct",
            "lab/dns::older",
            "lab/dns::multicast",
            "lab/dns::search",
        ],
    ),
    (
        "resolvers' sockets are refused",
        &["lab/dns::sockets_of_resolvers_refuse"],
    ),
    (
        "resolvers' sockets are hidden where they cannot be refused",
        &["lab/dns::sockets_of_resolvers_are_hidden"],
    ),
    (
        "rules, and users' own programs",
        &["lab/rule::", "lab/attach::"],
    ),
    (
        "blocked, direct, local prefixes; hostile networks",
        &["lab/action::", "lab/network::"],
    ),
    (
        "every way out that is known, tried: none is open",
        &["escape/"],
    ),
    (
        "sockets that are older, bound elsewhere, of many children",
        &["lab/hole::", "lab/family::", "lab/older::"],
    ),
    (
        "faults of tunnels and daemons",
        &["lab/fault::", "lab/survival::"],
    ),
    ("another tunnel where one is dead", &["lab/failover::"]),
    (
        "networks that change under traffic; what others undo",
        &["lab/event::", "lab/mend::", "lab/order::"],
    ),
    (
        "users without any right, and with every one",
        &["lab/user::"],
    ),
    (
        "sandboxes, scopes, and programs moved between cgroups",
        &["lab/desktop::"],
    ),
    (
        "monitor, flows, top, metrics, counters",
        &[
            "lab/monitor::",
            "lab/flows::",
            "lab/top::",
            "lab/metrics::",
            "lab/counter::",
            "lab/remote::",
        ],
    ),
    (
        "trace, explain, leaktest",
        &["lab/trace::", "lab/explain::", "lab/leaktest::"],
    ),
    (
        "as a service of systemd: started on demand, restarted, rules by unit",
        &["service/"],
    ),
    ("a machine that slept for minutes", &["sleep/"]),
    ("beside wireguard-go, iperf3, curl", &["lab/peer::"]),
    (
        "beside nftables: firewalld's filter of ways back, conntrack",
        &["lab/network::firewalld"],
    ),
    (
        "beside wg-quick's script with the kernel's WireGuard",
        &["lab/network::vpn_that_wg_quick"],
    ),
    ("beside a VRF", &["modules/module::vrf"]),
    (
        "beside fq on every device",
        &["modules/module::fair", "modules/module::uplink"],
    ),
    (
        "demo 08: kernel probes",
        &["demos/kprobe_uprobe::each_connection"],
    ),
    ("demo 05: pacing by fq", &["demos/tc_shaper::packets_wait"]),
];

/// Adds to what is kept, and writes the page anew.
pub(crate) fn write(root: &Path, new: Results) -> Result<()> {
    let kept = root.join(KEPT);
    let mut results: Results = match fs::read(&kept) {
        Ok(bytes) => {
            serde_json::from_slice(&bytes).with_context(|| format!("cannot read {KEPT}"))?
        }
        Err(_) => Results::new(),
    };
    for (name, new) in new {
        if new.release.is_empty() {
            // It did not get as far as to say what it is, so nothing is known of its tests.
            continue;
        }
        match results.get_mut(&name) {
            Some(old) if old.release == new.release => old.tests.extend(new.tests),
            _ => drop(results.insert(name, new)),
        }
    }
    let mut text = serde_json::to_string_pretty(&results)?;
    text.push('\n');
    fs::write(&kept, text).with_context(|| format!("cannot write {KEPT}"))?;
    fs::write(root.join(PAGE), page(&results)?).with_context(|| format!("cannot write {PAGE}"))
}

fn page(results: &Results) -> Result<String> {
    let columns: Vec<_> = KERNELS
        .iter()
        .filter_map(|kernel| results.get(kernel.name))
        .collect();
    let mut page = String::from(
        "# Kernels\n\nWhat works on which kernel: lockne's own tests, run by `cargo xtask kernels --write` on Debian's kernels\n\
         (5.15: Ubuntu's) in QEMU, which also wrote this page. Root and QEMU's processor, emulated, so nothing here says how fast it is.\n\
         Where a line changes from one column to the next, the first release that has it lies somewhere between.\n\n",
    );
    let numbers = columns.iter().map(|column| number(&column.release));
    writeln!(page, "| | {} |", numbers.collect::<Vec<_>>().join(" | "))?;
    writeln!(page, "|---|{}", "---|".repeat(columns.len()))?;
    let mut notes = Vec::new();
    for (title, tests) in FEATURES {
        let cells = columns.iter().map(|column| cell(column, tests, &mut notes));
        let cells: Vec<_> = cells.collect();
        writeln!(page, "| {title} | {} |", cells.join(" | "))?;
    }
    let cells = columns.iter().map(|column| {
        let passed = column
            .tests
            .values()
            .filter(|test| **test == Outcome::Passed);
        format!("{} of {}", passed.count(), column.tests.len())
    });
    writeln!(
        page,
        "| tests passed | {} |",
        cells.collect::<Vec<_>>().join(" | ")
    )?;
    page.push_str("\n`-`: not run there.");
    for (index, note) in notes.iter().enumerate() {
        write!(page, " ({}) {note}.", index + 1)?;
    }
    page.push_str("\n\n## Tests that did not pass\n\n");
    let mut none = true;
    for column in &columns {
        for (test, outcome) in &column.tests {
            let why = match outcome {
                Outcome::Passed => continue,
                Outcome::Failed => "failed",
                Outcome::Ignored => "ignored",
                Outcome::Missing(reason) => reason,
            };
            none = false;
            writeln!(page, "- {} `{test}`: {why}", number(&column.release))?;
        }
    }
    if none {
        page.push_str("None.\n");
    }
    Ok(page)
}

fn cell(column: &OfKernel, tests: &[&str], notes: &mut Vec<String>) -> String {
    if column.tests.keys().any(|test| test.starts_with(REFUSAL)) {
        return "too old, and says so".to_owned();
    }
    let outcomes = column
        .tests
        .iter()
        .filter(|(test, _)| tests.iter().any(|start| test.starts_with(start)))
        .map(|(_, outcome)| outcome);
    let outcomes: Vec<_> = outcomes.collect();
    let has_it = match outcomes.iter().all(|it| matches!(it, Outcome::Missing(_))) {
        false => "yes",
        true if outcomes.iter().any(|it| is_too_old(it)) => "no",
        true => return "-".to_owned(),
    };
    if outcomes
        .iter()
        .any(|it| matches!(it, Outcome::Failed | Outcome::Ignored))
    {
        return "**no**".to_owned();
    }
    let lacks = outcomes.iter().filter_map(|it| match it {
        Outcome::Missing(reason) => Some(reason.clone()),
        _ => None,
    });
    let mut marks = String::new();
    for reason in lacks {
        let at = notes.iter().position(|note| *note == reason);
        let at = at.unwrap_or_else(|| {
            notes.push(reason);
            notes.len() - 1
        });
        let mark = format!(" ({})", at + 1);
        if !marks.contains(&mark) {
            marks.push_str(&mark);
        }
    }
    format!("{has_it}{marks}")
}

/// Whether it is the kernel's fault, not the emulator's.
fn is_too_old(outcome: &Outcome) -> bool {
    matches!(outcome, Outcome::Missing(reason) if lack::needs_newer(reason))
}

/// The version without what Debian adds to it.
fn number(release: &str) -> &str {
    release.split(['-', '+']).next().unwrap_or(release)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn results(release: &str, test: &str, outcome: Outcome) -> Results {
        let of = OfKernel {
            release: release.to_owned(),
            tests: BTreeMap::from([(test.to_owned(), outcome)]),
        };
        Results::from([("6.12".to_owned(), of)])
    }

    #[test]
    fn what_is_kept_is_added_to_and_survives_a_kernel_that_did_not_start() {
        let root = tempfile::tempdir().unwrap();
        fs::create_dir(root.path().join("docs")).unwrap();
        let kept = || -> Results {
            serde_json::from_slice(&fs::read(root.path().join(KEPT)).unwrap()).unwrap()
        };

        write(
            root.path(),
            results("6.12.1", "kernel/mark::a", Outcome::Passed),
        )
        .unwrap();
        write(
            root.path(),
            results("6.12.1", "kernel/mark::b", Outcome::Passed),
        )
        .unwrap();
        write(root.path(), results("", "kernel/mark::c", Outcome::Failed)).unwrap();

        let tests = kept().remove("6.12").unwrap().tests;
        assert_eq!(
            tests.keys().collect::<Vec<_>>(),
            ["kernel/mark::a", "kernel/mark::b"]
        );
    }
}
