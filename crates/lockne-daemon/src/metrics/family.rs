//! Every metric that there is.
//!
//! `docs/metrics.md` lists them too, and the dashboard uses them; tests hold the three together.

/// A metric, with a value for each set of labels.
#[derive(Debug)]
pub(super) struct Family {
    pub(super) name: &'static str,
    pub(super) kind: Kind,
    pub(super) labels: &'static [&'static str],
    pub(super) help: &'static str,
}

/// How its values change.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    /// It only grows, but for when it begins anew.
    Counter,
    /// It goes up and down.
    Gauge,
}

macro_rules! families {
    ($($constant:ident $kind:ident $name:literal $labels:expr, $help:literal;)*) => {
        $(pub(super) static $constant: Family = Family {
            name: $name,
            kind: Kind::$kind,
            labels: &$labels,
            help: $help,
        };)*
        /// All of them, in the order in which they are told.
        pub(super) static ALL: &[&Family] = &[$(&$constant),*];
    };
}

/// What tells policies apart: the number, the first rule with it, and its tunnels or what else it says.
const POLICY: [&str; 3] = ["policy", "rule", "via"];
const PEER: [&str; 2] = ["tunnel", "public_key"];

families! {
    BUILD_INFO Gauge "lockne_build_info" ["version"],
        "Always 1, with the version of the daemon";
    RELOAD_OK Gauge "lockne_config_last_reload_successful" [],
        "Whether what the files say now is in force";
    RELOAD_TIME Gauge "lockne_config_last_reload_success_timestamp_seconds" [],
        "When the configuration in force was applied";
    RULE_INFO Gauge "lockne_rule_info" POLICY,
        "Always 1, for each rule with its policy; rules with the same terms share one";
    RULE_ACTIVE Gauge "lockne_rule_active" ["rule"],
        "Whether what the rule names is there, so that it can decide something";

    TRANSMIT_PACKETS Counter "lockne_policy_transmit_packets_total" POLICY,
        "Packets that programs sent, without loopback";
    TRANSMIT_BYTES Counter "lockne_policy_transmit_bytes_total" POLICY,
        "Bytes that programs sent, from the IP header on, without loopback";
    RECEIVE_PACKETS Counter "lockne_policy_receive_packets_total" POLICY,
        "Packets that arrived by its tunnel; where policies share one, those of TCP and UDP for sockets of this one; not for direct";
    RECEIVE_BYTES Counter "lockne_policy_receive_bytes_total" POLICY,
        "The bytes of these, from the IP header on; not for direct";
    REFUSED Counter "lockne_policy_refused_total" POLICY,
        "Packets and calls that were refused, so that nothing leaked";
    PROCESSES Gauge "lockne_policy_processes" POLICY,
        "Living processes";
    POLICY_TUNNEL Gauge "lockne_policy_tunnel_active" ["policy", "rule", "tunnel"],
        "Whether programs use this one of their tunnels now";
    SWITCHES Counter "lockne_policy_tunnel_switches_total" POLICY,
        "How often programs went to another of their tunnels since the daemon started";

    TUNNEL_INFO Gauge "lockne_tunnel_info" ["tunnel", "kind"],
        "Always 1, with who makes the tunnel: interface, wireguard-kernel or wireguard-embedded";
    TUNNEL_UP Gauge "lockne_tunnel_up" ["tunnel"],
        "Whether the interface is there and up";
    TUNNEL_HEALTHY Gauge "lockne_tunnel_healthy" ["tunnel"],
        "Whether the tunnel works, where it stands in for another or another for it";
    HEALTH_CHANGES Counter "lockne_tunnel_health_changes_total" ["tunnel"],
        "How often such a tunnel failed or worked again since the daemon started";
    TUNNEL_TRANSMIT_PACKETS Counter "lockne_tunnel_transmit_packets_total" ["tunnel"],
        "Packets that went into the interface, of whomever";
    TUNNEL_TRANSMIT_BYTES Counter "lockne_tunnel_transmit_bytes_total" ["tunnel"],
        "Bytes that went into the interface, of whomever";
    TUNNEL_RECEIVE_PACKETS Counter "lockne_tunnel_receive_packets_total" ["tunnel"],
        "Packets that came out of the interface";
    TUNNEL_RECEIVE_BYTES Counter "lockne_tunnel_receive_bytes_total" ["tunnel"],
        "Bytes that came out of the interface";
    HANDSHAKE Gauge "lockne_tunnel_peer_last_handshake_timestamp_seconds" PEER,
        "When the last WireGuard handshake was; missing if there was none";
    PEER_TRANSMIT_BYTES Counter "lockne_tunnel_peer_transmit_bytes_total" PEER,
        "Encrypted bytes that were sent to the WireGuard peer";
    PEER_RECEIVE_BYTES Counter "lockne_tunnel_peer_receive_bytes_total" PEER,
        "Encrypted bytes that came from the WireGuard peer";

    MAP_ENTRIES Gauge "lockne_map_entries" ["map"],
        "How much of a table in the kernel is used";
    MAP_MAX_ENTRIES Gauge "lockne_map_max_entries" ["map"],
        "How much room that table has";
    OVERFLOWED Gauge "lockne_processes_overflowed" [],
        "Whether kernel.pid_max was raised beyond the table of processes, so that some get no sockets";
    STRICT Gauge "lockne_guard_strict" [],
        "Whether each packet is asked for its socket, as a policed program was seen that can mark packets";
    RUN_SECONDS Counter "lockne_program_run_seconds_total" ["program"],
        "How long a kernel program ran; only while kernel.bpf_stats_enabled is 1";
    RUNS Counter "lockne_program_runs_total" ["program"],
        "How often a kernel program ran; only while kernel.bpf_stats_enabled is 1";

    START_TIME Gauge "process_start_time_seconds" [],
        "When the daemon started";
    CPU_SECONDS Counter "process_cpu_seconds_total" [],
        "Processor time that the daemon used";
    RESIDENT_BYTES Gauge "process_resident_memory_bytes" [],
        "Memory that the daemon holds";
}

#[cfg(test)]
mod tests {
    use std::{collections::BTreeSet, fs};

    use super::*;

    fn file(name: &str) -> String {
        let root = concat!(env!("CARGO_MANIFEST_DIR"), "/../..");
        fs::read_to_string(format!("{root}/{name}")).unwrap()
    }

    /// The metrics of lockne's own that a text names.
    fn named(text: &str) -> BTreeSet<&str> {
        let words = text.split(|c: char| !c.is_ascii_alphanumeric() && c != '_');
        words.filter(|word| word.starts_with("lockne_")).collect()
    }

    #[test]
    fn page_of_the_docs_lists_each_metric_and_no_other() {
        let told = ALL.iter().map(|family| {
            let labels: Vec<_> = family.labels.iter().map(|it| format!("`{it}`")).collect();
            let kind = match family.kind {
                Kind::Counter => "counter",
                Kind::Gauge => "gauge",
            };
            let labels = labels.join(", ");
            format!(
                "| `{}` | {kind} | {labels} | {} |",
                family.name, family.help
            )
        });
        let docs = file("docs/metrics.md");
        let listed = docs.lines().filter(|line| line.starts_with("| `"));

        assert!(
            listed.eq(told.collect::<Vec<_>>()),
            "write docs/metrics.md as ALL says"
        );
        let all: BTreeSet<&str> = ALL.iter().map(|family| family.name).collect();
        let unknown: Vec<_> = named(&docs)
            .into_iter()
            .filter(|it| !all.contains(it))
            .collect();
        assert!(unknown.is_empty(), "{unknown:?}");
    }

    #[test]
    fn dashboard_shows_only_metrics_that_there_are() {
        let dashboard = file("packaging/grafana/lockne.json");
        let all: BTreeSet<&str> = ALL.iter().map(|family| family.name).collect();

        let shown = named(&dashboard);

        assert!(shown.len() > 10, "{shown:?}");
        assert!(shown.is_subset(&all), "{:?}", shown.difference(&all));
        serde_json::from_str::<serde_json::Value>(&dashboard).unwrap();
    }

    #[test]
    fn names_say_what_is_counted() {
        for family in ALL {
            let is_total = family.name.ends_with("_total");
            assert_eq!(is_total, family.kind == Kind::Counter, "{}", family.name);
            assert!(!family.help.ends_with('.'), "{}", family.name);
        }
    }
}
