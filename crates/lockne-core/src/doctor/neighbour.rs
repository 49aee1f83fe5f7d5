//! Others who change the network of this machine.

use super::{Facts, Finding, Level, finding};
use crate::plan::Family;

/// Who uses which bits of the mark, as their documentation or source says; and the priorities of their rules.
struct Known {
    name: &'static str,
    /// Units by which it is seen.
    services: &'static [&'static str],
    /// Value and mask.
    mark: (u32, u32),
}

const KNOWN: [Known; 6] = [
    Known {
        name: "Tailscale",
        services: &["tailscaled.service"],
        mark: (0x8_0000, 0xff_0000),
    },
    Known {
        name: "wg-quick",
        services: &[],
        mark: (0xca6c, u32::MAX),
    },
    Known {
        name: "Mullvad",
        services: &["mullvad-daemon.service"],
        mark: (0x6d6f_6c65, u32::MAX),
    },
    Known {
        name: "Cilium",
        services: &["cilium.service"],
        mark: (0x200, 0xf00),
    },
    Known {
        name: "Kubernetes (masquerade)",
        services: &["kubelet.service", "k3s.service"],
        mark: (0x4000, 0x4000),
    },
    Known {
        name: "Kubernetes (drop)",
        services: &["kubelet.service", "k3s.service"],
        mark: (0x8000, 0x8000),
    },
];

impl Known {
    fn bits(&self) -> u32 {
        self.mark.0 & self.mark.1
    }
}

/// The rules of others, and whose bits of the mark are ours.
pub(super) fn marks(facts: &Facts) -> Vec<Finding> {
    let ours = facts.mark_mask;
    let other_bits = match free_bits(facts) {
        Some(bit) => format!("start the daemon with other bits: `lockne daemon --mark-bit {bit}`"),
        None => "no eight bits of the mark are free of it: lockne cannot run beside it".to_owned(),
    };
    let mut findings = Vec::new();
    for rule in &facts.rules {
        let (mark, bits) = rule.mark;
        if bits == 0 {
            continue;
        }
        let known = KNOWN.iter().find(|known| known.bits() == mark);
        let by = known.map_or_else(
            || "somebody".to_owned(),
            |known| format!("{} (by its mark)", known.name),
        );
        let family = match rule.family {
            Family::V4 => "IPv4",
            Family::V6 => "IPv6",
        };
        let found = format!("{by} has the {family} rule `{}`", rule.text);
        findings.push(if mark & ours != 0 {
            finding("mark", Level::Failure, found)
                .means("its mark uses bits that lockne uses, so each would take the other's packets for its own")
                .remedy(other_bits.clone())
        } else {
            finding("mark", Level::Note, found)
                .means("its bits of the mark are others than lockne's; policed programs pass it by")
        });
    }
    for known in &KNOWN {
        let runs = known.services.iter().any(|it| facts.services.contains(*it));
        let said = findings.iter().any(|it| it.found.starts_with(known.name));
        if runs && !said && known.bits() & ours != 0 {
            findings.push(
                finding(
                    "mark",
                    Level::Warning,
                    format!("{} runs, and marks packets with {:#x}", known.name, known.mark.0),
                )
                .means("once it makes its rules, the daemon does not start with these bits of the mark")
                .remedy(other_bits.clone()),
            );
        }
    }
    if facts
        .rules
        .iter()
        .any(|rule| rule.priority == 0 && !rule.text.contains("lookup local"))
    {
        findings.push(
            finding(
                "priority",
                Level::Warning,
                "a rule of somebody else stands at priority 0",
            )
            .means("nothing can be put before it: what it takes, policed programs do not get")
            .remedy("move it behind with `ip rule`, to any number from 1 on"),
        );
    }
    if findings.iter().all(|it| it.level == Level::Note) {
        findings.insert(
            0,
            finding(
                "mark",
                Level::Good,
                format!("nobody else uses the bits {ours:#x} of the mark"),
            ),
        );
    }
    findings
}

/// The highest bit from which on eight are used by nobody who is seen.
fn free_bits(facts: &Facts) -> Option<u32> {
    let rules = facts.rules.iter().map(|rule| rule.mark.0);
    let running = KNOWN.iter().filter(|known| {
        let mut services = known.services.iter();
        services.any(|it| facts.services.contains(*it))
    });
    let used = rules
        .chain(running.map(Known::bits))
        .fold(0, |used, bits| used | bits);
    (0..=24).rev().find(|bit| used & (0xff << bit) == 0)
}

/// Programs that change the network too.
pub(super) fn services(facts: &Facts) -> Vec<Finding> {
    let runs = |service: &str| facts.services.contains(service);
    let mut findings = Vec::new();
    if runs("tailscaled.service") {
        findings.push(
            finding("tailscale", Level::Note, "Tailscale runs")
                .means("`--via tailscale0` needs an exit node to reach more than the tailnet"),
        );
    }
    if runs("mullvad-daemon.service") {
        findings.push(
            finding("mullvad", Level::Note, "the Mullvad daemon runs")
                .means("its firewall drops what does not go through its own tunnel, lockne's tunnels too, while it is connected or locked down")
                .remedy("disconnect it, or use its interface: `--via wg0-mullvad`"),
        );
    }
    if runs("firewalld.service") {
        findings.push(
            finding("firewalld", Level::Note, "firewalld runs")
                .means("a new interface falls into the default zone; what a zone drops, a tunnel does not carry")
                .remedy("if a tunnel stays silent: `firewall-cmd --zone=trusted --add-interface=NAME`"),
        );
    }
    if runs("NetworkManager.service") {
        findings.push(
            finding("network-manager", Level::Note, "NetworkManager runs")
                .means("it lists lockne's tunnels as external, and leaves them alone"),
        );
    }
    for service in ["docker.service", "kubelet.service", "k3s.service"] {
        if runs(service) {
            findings.push(
                finding("containers", Level::Note, format!("{service} runs")).means(
                    "containers have network namespaces of their own, where no policy holds",
                ),
            );
            break;
        }
    }
    findings
}
