//! What a lockne leaves on a machine: all that it could have changed, as text that can be compared.

use std::{collections::BTreeSet, fmt::Write as _, fs, path::Path, process::Command};

use lockne_lab::Namespace;

use crate::home::{Home, text, wait_until};

/// Rules, routes, links, addresses, settings and mounts of a home.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Footprint(String);

impl Footprint {
    /// Looks around in `home`; needs `ip`.
    pub(crate) fn of(home: &Home) -> Self {
        let namespace = &home.lab.home;
        let mut seen = String::new();
        for arguments in [
            "-4 rule show",
            "-6 rule show",
            "-4 route show table all",
            "-6 route show table all",
            "-o link show",
            "-o address show",
        ] {
            let mut ip: Command = namespace.command("ip");
            let output = ip.args(arguments.split(' ')).output().unwrap();
            assert!(output.status.success(), "ip {arguments}: {}", text(&output));
            let lines = String::from_utf8(output.stdout).unwrap();
            // The order of routes of one table means nothing.
            let lines: BTreeSet<&str> = lines.lines().collect();
            for line in lines {
                writeln!(seen, "ip {arguments}: {line}").unwrap();
            }
        }
        settings(namespace, &mut seen);
        let place = home.state_dir();
        let mounts = fs::read_to_string("/proc/self/mounts").unwrap();
        for mount in mounts.lines() {
            if mount.contains(place.to_str().unwrap()) {
                writeln!(seen, "mount: {mount}").unwrap();
            }
        }
        writeln!(seen, "state directory: {}", place.exists()).unwrap();
        Self(seen)
    }

    /// Fails with what is new and what is gone.
    pub(crate) fn assert_same(&self, after: &Self) {
        let (before, after): (BTreeSet<_>, BTreeSet<_>) =
            (self.0.lines().collect(), after.0.lines().collect());
        let new: Vec<_> = after.difference(&before).collect();
        let gone: Vec<_> = before.difference(&after).collect();
        assert!(
            new.is_empty() && gone.is_empty(),
            "new: {new:#?}\ngone: {gone:#?}"
        );
    }
}

fn settings(namespace: &Namespace, seen: &mut String) {
    let read = || {
        let mut settings = BTreeSet::new();
        for family in ["ipv4", "ipv6"] {
            walk(Path::new(&format!("/proc/sys/net/{family}")), &mut settings);
        }
        settings
    };
    for setting in namespace.run(read).unwrap() {
        writeln!(seen, "{setting}").unwrap();
    }
}

fn walk(directory: &Path, settings: &mut BTreeSet<String>) {
    // An interface may go while its settings are read, and some settings can only be written.
    for entry in fs::read_dir(directory).into_iter().flatten().flatten() {
        let path = entry.path();
        if path.is_dir() {
            walk(&path, settings);
        } else if let Ok(value) = fs::read_to_string(&path) {
            settings.insert(format!("{}: {}", path.display(), value.trim_end()));
        }
    }
}

/// The kernel programs and maps that a lockne has pinned; needs `bpftool`.
#[derive(Debug)]
pub(crate) struct InKernel {
    programs: BTreeSet<u64>,
    maps: BTreeSet<u64>,
}

impl InKernel {
    /// Those of `home`.
    pub(crate) fn of(home: &Home) -> Self {
        let pins = home.state_dir().join("bpf");
        let mut found = Self {
            programs: BTreeSet::new(),
            maps: BTreeSet::new(),
        };
        for entry in fs::read_dir(pins).unwrap() {
            let path = entry.unwrap().path();
            let id = |object, key| {
                let mut bpftool = Command::new("bpftool");
                bpftool.args(["-j", object, "show", "pinned"]).arg(&path);
                let output = bpftool.output().unwrap();
                let json = serde_json::from_slice::<serde_json::Value>(&output.stdout);
                json.ok().and_then(|json| json[key].as_u64())
            };
            // A pin does not say what it is of.
            if let Some(program) = id("link", "prog_id") {
                found.programs.insert(program);
            } else if let Some(map) = id("map", "id") {
                found.maps.insert(map);
            }
        }
        assert!(
            found.programs.len() >= 9 && found.maps.len() >= 7,
            "{found:?}"
        );
        found
    }

    /// Waits until none of them is there any more; the kernel frees them a moment after the last user.
    pub(crate) fn wait_until_gone(&self) {
        for (object, ids) in [("prog", &self.programs), ("map", &self.maps)] {
            for id in ids {
                wait_until("a kernel object is freed", || {
                    let mut bpftool = Command::new("bpftool");
                    bpftool.args([object, "show", "id", &id.to_string()]);
                    !bpftool.output().unwrap().status.success()
                });
            }
        }
    }
}
