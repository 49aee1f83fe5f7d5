//! The place that the pages tell to make.

use crate::traffic::alone;

const PLACE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/place");

crate::tests! {
    pair_of_the_pages_is_made_and_taken_away,
    balancer_of_the_pages_is_made_and_taken_away,
}

fn pair_of_the_pages_is_made_and_taken_away() {
    sandboxed(
        "before=$(ip link) && $0 pair && $0 in near ping -c 1 192.0.2.2 && $0 in far ping -c 1 2001:db8::1 \
         && test \"$(ip link)\" = \"$before\" && $0 in near ip link show near0 \
         && $0 down && test -z \"$(ip netns)\"",
    );
}

fn balancer_of_the_pages_is_made_and_taken_away() {
    sandboxed(
        "$0 balancer && $0 in client ping -c 1 10.1.0.2 && $0 in client ping -c 1 10.2.0.2 \
         && { $0 in first sleep 1000 & } && $0 down && wait && test -z \"$(ip netns)\"",
    );
}

/// Runs a script where names of namespaces are nobody else's.
fn sandboxed(script: &str) {
    let own_names = "mkdir -p /run/netns && mount -t tmpfs place /run/netns";
    let output = alone()
        .command("unshare")
        .args(["--mount", "sh", "-c"])
        .arg(format!("{own_names} && {script}"))
        .arg(PLACE)
        .output()
        .unwrap();
    assert!(output.status.success(), "{script}: {output:?}");
}
