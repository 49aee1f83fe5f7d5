//! What the kernel has of what lockne takes.

use super::{Facts, Finding, Level, Symbol, finding};

/// A feature that is there, or is missing with this consequence.
fn feature(
    subject: &'static str,
    name: &str,
    is_there: bool,
    missing: (Level, &str, &str),
) -> Finding {
    if is_there {
        return finding(subject, Level::Good, name);
    }
    let (level, means, remedy) = missing;
    finding(subject, level, format!("no {name}"))
        .means(means)
        .remedy(remedy)
}

const NEWER: &str = "use a kernel of 6.1 or newer, as a distribution of 2023 or later has it";

fn has(facts: &Facts, symbol: Symbol) -> bool {
    let symbols = facts.symbols.as_ref();
    symbols.is_some_and(|symbols| symbols.contains(&symbol))
}

/// What lockne cannot do without.
pub(super) fn needed(facts: &Facts) -> Vec<Finding> {
    let release = format!("Linux {}", facts.release);
    let mut findings = vec![if version(&facts.release) < Some((6, 1)) {
        finding("kernel", Level::Warning, release)
            .means("lockne is tested from 6.1 on; before it some promises may not hold")
            .remedy(NEWER)
    } else {
        finding("kernel", Level::Good, release)
    }];
    findings.push(feature(
        "btf",
        "kernel types (BTF)",
        facts.symbols.is_some(),
        (
            Level::Failure,
            "the kernel programs cannot be loaded",
            "use a kernel with CONFIG_DEBUG_INFO_BTF, as every large distribution has it",
        ),
    ));
    findings.push(feature(
        "cgroup2",
        "cgroup2",
        facts.cgroup2,
        (
            Level::Failure,
            "there is nowhere to attach the kernel programs",
            "boot with `systemd.unified_cgroup_hierarchy=1`, or mount cgroup2",
        ),
    ));
    findings.push(feature(
        "netns-cookie",
        "network namespace cookies",
        facts.netns_cookie,
        (
            Level::Failure,
            "the programs cannot tell containers from this machine",
            NEWER,
        ),
    ));
    // Without types nothing of this is known.
    if facts.symbols.is_some() {
        findings.push(feature(
            "cgroup-link",
            "links at cgroups",
            has(facts, Symbol::CgroupLink),
            (Level::Failure, "rules cannot outlive the daemon", NEWER),
        ));
    }
    findings
}

/// What makes it better.
pub(super) fn useful(facts: &Facts) -> Vec<Finding> {
    let mut findings = Vec::new();
    if facts.symbols.is_some() {
        findings.push(feature(
            "set-retval",
            "error codes from hooks",
            has(facts, Symbol::SetRetval),
            (
                Level::Note,
                "refused programs see only `EPERM`",
                "nothing; from 5.18 on the kernel has it",
            ),
        ));
        findings.push(feature(
            "tcx",
            "TCX",
            has(facts, Symbol::TcxLink),
            (
                Level::Note,
                "what arrives by a tunnel is stamped by clsact, which other tools can remove",
                "nothing; from 6.6 on the kernel has it",
            ),
        ));
        findings.push(feature(
            "connect-unix",
            "hooks at Unix sockets",
            has(facts, Symbol::ConnectUnix),
            (
                Level::Note,
                "programs that ask a resolver by a Unix socket cannot be stopped at it; the socket is hidden from those that root \
                 starts by `lockne run`",
                "nothing; from 6.7 on the kernel has it",
            ),
        ));
    }
    findings.push(feature(
        "tun",
        "/dev/net/tun",
        facts.tun,
        if facts.wireguard {
            (
                Level::Note,
                "only the kernel's WireGuard can make tunnels",
                "`modprobe tun` if the embedded one is wanted",
            )
        } else {
            (
                Level::Warning,
                "lockne can make no tunnels itself, only use those of others",
                "`modprobe tun`",
            )
        },
    ));
    findings.push(feature(
        "wireguard",
        "WireGuard in the kernel",
        facts.wireguard,
        (
            Level::Note,
            "lockne uses its embedded one, whose tunnels fall silent while no daemon runs",
            "`modprobe wireguard` if the distribution has it",
        ),
    ));
    if let Some(has) = facts.sock_destroy {
        findings.push(feature(
            "sock-destroy",
            "cutting of sockets",
            has,
            (
                Level::Warning,
                "old connections of a program cannot be cut when its policy changes",
                "use a kernel with CONFIG_INET_DIAG_DESTROY",
            ),
        ));
    }
    findings
}

/// Who is at the root of the cgroups already.
pub(super) fn hooks(facts: &Facts) -> Vec<Finding> {
    let mut findings = Vec::new();
    match facts.exclusive_hooks.as_deref() {
        Some([]) => findings.push(finding(
            "cgroup-programs",
            Level::Good,
            "nobody keeps the root of the cgroups for himself",
        )),
        Some(hooks) => findings.push(
            finding(
                "cgroup-programs",
                Level::Failure,
                format!("a program of somebody else allows none beside it at {}", hooks.join(", ")),
            )
            .means("the kernel refuses lockne's programs")
            .remedy("find it with `bpftool cgroup show /sys/fs/cgroup`, and stop what has attached it without BPF_F_ALLOW_MULTI"),
        ),
        None => findings.push(
            finding("cgroup-programs", Level::Note, "other programs at the root of the cgroups are seen by root only")
                .remedy("run `sudo lockne doctor`"),
        ),
    }
    findings
}

/// Major and minor number of a kernel's release, such as `6.12.9-amd64`; `None` where it does not begin with them.
#[must_use]
pub fn version(release: &str) -> Option<(u32, u32)> {
    let mut numbers = release.split(|c: char| !c.is_ascii_digit());
    Some((numbers.next()?.parse().ok()?, numbers.next()?.parse().ok()?))
}
