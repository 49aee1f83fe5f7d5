//! What a machine offers lockne and what stands in its way: facts in, findings out.

mod kernel;
mod neighbour;

use std::collections::{BTreeMap, BTreeSet};

use serde::Serialize;

pub use self::kernel::version;
use crate::{api::Room, plan::Family};

/// What was seen of a machine. Nothing that is `None` could be seen.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[expect(clippy::struct_excessive_bools, reason = "facts, each by itself")]
pub struct Facts {
    /// The kernel's release, such as `6.12.9-amd64`.
    pub release: String,
    /// What the kernel's types name; `None` without them.
    pub symbols: Option<BTreeSet<Symbol>>,
    /// Whether there is a cgroup2 hierarchy.
    pub cgroup2: bool,
    /// Whether the kernel tells the cookie of a network namespace.
    pub netns_cookie: bool,
    /// Whether there is a `/dev/net/tun`.
    pub tun: bool,
    /// Whether the kernel has WireGuard, built in or as a module.
    pub wireguard: bool,
    /// Whether sockets can be cut.
    pub sock_destroy: Option<bool>,
    /// Hooks at the root of the cgroups that hold a program which lets no other beside it.
    pub exclusive_hooks: Option<Vec<String>>,
    /// The bits of the mark that lockne uses.
    pub mark_mask: u32,
    /// The rules of others.
    pub rules: Vec<ForeignRule>,
    /// Services that run, by the name of their unit.
    pub services: BTreeSet<String>,
    /// `rp_filter` by interface, and for `all`.
    pub rp_filter: BTreeMap<String, u8>,
    /// The `hosts` line of nsswitch.conf, without its name.
    pub hosts: Option<String>,
    /// Whether nscd answers.
    pub nscd: bool,
    /// Whether the machine has IPv6.
    pub ipv6: bool,
    /// How many process ids lockne has room for, where it is active.
    pub room: Option<Room>,
    /// What policies say whose programs go direct now, as none of their tunnels works.
    pub direct_now: Vec<String>,
}

/// A rule that somebody else has made.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ForeignRule {
    /// Its family.
    pub family: Family,
    /// Where it stands.
    pub priority: u32,
    /// The mark it asks for, and which bits of that.
    pub mark: (u32, u32),
    /// In the words of `ip rule`.
    pub text: String,
}

/// Something that the kernel's types name if it has it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Symbol {
    /// Links that hold programs at cgroups.
    CgroupLink,
    /// Links that hold programs at devices.
    TcxLink,
    /// Error codes other than EPERM from a hook at a cgroup.
    SetRetval,
    /// Hooks at `connect` of Unix sockets.
    ConnectUnix,
}

impl Symbol {
    /// All of them, with the word in the kernel's types.
    pub const ALL: [(Self, &'static str); 4] = [
        (Self::CgroupLink, "BPF_LINK_TYPE_CGROUP"),
        (Self::TcxLink, "BPF_TCX_INGRESS"),
        (Self::SetRetval, "BPF_FUNC_set_retval"),
        (Self::ConnectUnix, "BPF_CGROUP_UNIX_CONNECT"),
    ];
}

/// How much a finding matters.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Level {
    /// As it should be.
    Good,
    /// Worth knowing.
    Note,
    /// Something does not work as it could.
    Warning,
    /// lockne cannot work.
    Failure,
}

/// One thing that was found.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Finding {
    /// What was looked at; part of the interface.
    pub subject: &'static str,
    /// How much it matters.
    pub level: Level,
    /// What was found.
    pub found: String,
    /// What follows from it.
    pub means: Option<String>,
    /// What to do.
    pub remedy: Option<String>,
}

/// All that was found.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Diagnosis {
    /// Whether lockne can work here.
    pub works: bool,
    /// What was found, in the order in which it is looked at.
    pub findings: Vec<Finding>,
}

/// Says what the facts mean.
#[must_use]
pub fn examine(facts: &Facts) -> Diagnosis {
    let mut findings = kernel::needed(facts);
    findings.extend(kernel::useful(facts));
    findings.extend(kernel::hooks(facts));
    findings.extend(neighbour::marks(facts));
    findings.extend(neighbour::services(facts));
    findings.extend(network(facts));
    findings.extend(names(facts));
    findings.extend(facts.room.as_ref().map(room));
    findings.extend(facts.direct_now.iter().map(|terms| past(terms)));
    Diagnosis {
        works: findings.iter().all(|it| it.level != Level::Failure),
        findings,
    }
}

fn finding(subject: &'static str, level: Level, found: impl Into<String>) -> Finding {
    Finding {
        subject,
        level,
        found: found.into(),
        means: None,
        remedy: None,
    }
}

impl Finding {
    fn means(mut self, means: &str) -> Self {
        self.means = Some(means.to_owned());
        self
    }

    fn remedy(mut self, remedy: impl Into<String>) -> Self {
        self.remedy = Some(remedy.into());
        self
    }
}

fn network(facts: &Facts) -> Vec<Finding> {
    const STRICT: u8 = 1;
    let mut findings = Vec::new();
    let strict: Vec<&str> = facts
        .rp_filter
        .iter()
        .filter(|(_, value)| **value == STRICT)
        .map(|(name, _)| name.as_str())
        .collect();
    if !strict.is_empty() {
        findings.push(
            finding(
                "rp-filter",
                Level::Note,
                format!("the reverse path filter is strict for {}", strict.join(", ")),
            )
            .means("lockne sets `src_valid_mark` on its tunnels, so that answers pass; on other interfaces it stays as it is"),
        );
    }
    if !facts.ipv6 {
        findings.push(
            finding("ipv6", Level::Note, "IPv6 is off")
                .means("tunnels carry IPv4 only; nothing can leak by IPv6"),
        );
    }
    findings
}

fn past(terms: &str) -> Finding {
    finding(
        "fail-over",
        Level::Warning,
        format!("programs that go {terms} go direct now, as no tunnel of it is healthy"),
    )
    .means("what they send leaves by this machine's own routes, until a tunnel of it is healthy again")
    .remedy("see with `lockne tunnel` what is wrong; without `direct` behind the tunnels they would be silent")
}

fn room(room: &Room) -> Finding {
    match room.warning() {
        Some((warning, remedy)) => finding("process-ids", Level::Warning, warning).remedy(remedy),
        None => finding(
            "process-ids",
            Level::Good,
            format!("room for each of {} process ids", room.pid_max),
        ),
    }
}

fn names(facts: &Facts) -> Vec<Finding> {
    // Where its kernel types cannot be seen, lockne cannot work at all, and says so.
    let symbols = facts.symbols.as_ref();
    let refuses = symbols.is_some_and(|has| has.contains(&Symbol::ConnectUnix));
    // What follows from somebody who answers by a socket.
    let asked = |finding: Finding| {
        if refuses {
            finding.means("a policed program is refused its socket, and asks by itself")
        } else {
            finding.means(
                "a policed program hands its questions to it, and they leave by its own way; only from what root starts \
                 by `lockne run` its socket is hidden",
            )
        }
    };
    let level = if refuses { Level::Note } else { Level::Warning };
    let mut findings = Vec::new();
    if facts.nscd {
        let mut found = asked(finding("nscd", level, "nscd answers for names"));
        if !refuses {
            found = found.remedy(
                "`systemctl disable --now nscd`, or `enable-cache hosts no` in /etc/nscd.conf",
            );
        }
        findings.push(found);
    }
    let words: Vec<&str> = facts
        .hosts
        .as_deref()
        .unwrap_or_default()
        .split_whitespace()
        .collect();
    if let Some(resolve) = words.iter().position(|word| *word == "resolve") {
        let rest = &words[resolve + 1..];
        let stops = rest
            .first()
            .is_some_and(|word| word.eq_ignore_ascii_case("[!UNAVAIL=return]"));
        let found = "systemd-resolved answers for names (`resolve` in nsswitch.conf)";
        findings.push(asked(finding("names", level, found)));
        if stops && !rest.contains(&"dns") {
            findings.push(
                finding(
                    "names-fallback",
                    Level::Warning,
                    "`resolve [!UNAVAIL=return]` is not followed by `dns` in nsswitch.conf",
                )
                .means("where a policed program may not ask systemd-resolved, it finds no names at all: \"Name or service not known\"")
                .remedy("put `dns` behind it in the `hosts` line of /etc/nsswitch.conf"),
            );
        }
    } else if findings.is_empty() {
        findings.push(finding(
            "names",
            Level::Good,
            "programs ask for names themselves",
        ));
    }
    let answers = |service: &str| facts.services.contains(&format!("{service}.service"));
    for (service, name) in [
        ("systemd-resolved", "systemd-resolved (`resolve1`)"),
        ("avahi-daemon", "Avahi"),
    ] {
        if answers(service) {
            findings.push(
                finding("names-dbus", Level::Note, format!("{name} answers for names on the system bus"))
                    .means("a policed program that asks there gets past its policy: few do, as `resolvectl`; libc does not"),
            );
        }
    }
    findings
}

#[cfg(test)]
mod tests {
    use std::fmt::Write as _;

    use insta::assert_snapshot;

    use super::*;

    /// A machine where all is well.
    fn machine() -> Facts {
        Facts {
            release: "6.12.9-amd64".to_owned(),
            symbols: Some(Symbol::ALL.map(|(symbol, _)| symbol).into()),
            cgroup2: true,
            netns_cookie: true,
            tun: true,
            wireguard: true,
            sock_destroy: Some(true),
            exclusive_hooks: Some(Vec::new()),
            mark_mask: 0xff00_0000,
            hosts: Some("files dns".to_owned()),
            ipv6: true,
            ..Facts::default()
        }
    }

    fn rule(mark: (u32, u32), priority: u32, text: &str) -> ForeignRule {
        ForeignRule {
            family: Family::V4,
            priority,
            mark,
            text: text.to_owned(),
        }
    }

    fn text(facts: &Facts) -> String {
        let diagnosis = examine(facts);
        let mut text = format!("works: {}\n", diagnosis.works);
        for it in diagnosis
            .findings
            .iter()
            .filter(|it| it.level != Level::Good)
        {
            writeln!(text, "{:?} {}: {}", it.level, it.subject, it.found).unwrap();
            for (word, more) in [("means", &it.means), ("remedy", &it.remedy)] {
                if let Some(more) = more {
                    writeln!(text, "  {word}: {more}").unwrap();
                }
            }
        }
        text
    }

    #[test]
    fn machine_where_all_is_well_has_no_complaint() {
        assert_eq!(text(&machine()), "works: true\n");
    }

    #[test]
    fn each_thing_that_is_missing_is_told_with_what_follows() {
        let bare = Facts {
            release: "5.10.0".to_owned(),
            mark_mask: 0xff00_0000,
            ..Facts::default()
        };
        let old = Facts {
            release: "6.1.0-13-amd64".to_owned(),
            symbols: Some([Symbol::CgroupLink].into()),
            wireguard: false,
            exclusive_hooks: Some(vec!["connect4".to_owned()]),
            sock_destroy: Some(false),
            hosts: Some("files resolve dns".to_owned()),
            nscd: true,
            ..machine()
        };

        assert_snapshot!(format!("# bare\n{}\n# old\n{}", text(&bare), text(&old)));
    }

    #[test]
    fn everyone_who_is_in_the_way_is_told_with_what_to_do() {
        let busy = Facts {
            rules: vec![
                rule(
                    (0x8_0000, 0xff_0000),
                    5210,
                    "5210: from all fwmark 0x80000/0xff0000 lookup main",
                ),
                rule(
                    (0xca6c, u32::MAX),
                    32764,
                    "32764: not from all fwmark 0xca6c lookup 51820",
                ),
                rule(
                    (0x200, 0xf00),
                    9,
                    "9: from all fwmark 0x200/0xf00 lookup 2004",
                ),
                rule(
                    (0x6d6f_6c65, u32::MAX),
                    32763,
                    "32763: not from all fwmark 0x6d6f6c65 lookup 1836018789",
                ),
                rule((0, 0), 0, "0: from all lookup 7"),
            ],
            services: [
                "tailscaled",
                "mullvad-daemon",
                "firewalld",
                "NetworkManager",
                "docker",
                "systemd-resolved",
            ]
            .map(|name| format!("{name}.service"))
            .into(),
            rp_filter: [("all".to_owned(), 1), ("eth0".to_owned(), 2)].into(),
            hosts: Some("mymachines resolve [!UNAVAIL=return] files myhostname".to_owned()),
            nscd: true,
            ipv6: false,
            room: Some(Room {
                ids: 32_768,
                pid_max: 65_536,
                exceeded: true,
            }),
            direct_now: vec!["via work, else direct".to_owned()],
            ..machine()
        };

        assert_snapshot!(text(&busy));
    }

    #[test]
    fn other_bits_of_the_mark_clash_with_others() {
        let facts = |mark_mask| Facts {
            mark_mask,
            rules: vec![rule((0x8_0000, 0xff_0000), 5210, "tailscale")],
            ..machine()
        };

        assert!(examine(&facts(0xff00_0000)).works);
        let clash = examine(&facts(0xff << 12));
        assert!(!clash.works);
        let remedy = clash.findings.iter().find_map(|it| it.remedy.as_deref());
        assert!(
            remedy.unwrap().ends_with("`lockne daemon --mark-bit 24`"),
            "{remedy:?}"
        );
    }

    #[test]
    fn arch_line_that_falls_back_to_dns_is_fine() {
        let facts = Facts {
            hosts: Some("resolve [!UNAVAIL=return] files myhostname dns".to_owned()),
            ..machine()
        };

        let findings = examine(&facts).findings;
        assert!(findings.iter().all(|it| it.subject != "names-fallback"));
        assert!(
            findings
                .iter()
                .any(|it| it.subject == "names" && it.level == Level::Note)
        );
    }
}
