//! A program that forks all the time while it is attached.

use std::{os::unix::process::CommandExt as _, process::Stdio, time::Duration};

use lockne_lab::{
    origin::ADDRESS_PORT,
    packet::{Content, Flow, Transport},
    program::Killed,
};
use rustix::process::{Pid, Signal};

use super::{Holder, attach, detach, forget};
use crate::{
    home::{Home, wait_until},
    way::ORIGIN,
};

/// Several shells, each of which starts children without end, that send something a while later: one that was
/// missed is seen.
pub(super) fn no_child_of_a_fork_storm_escapes() {
    const ROUNDS: u32 = 5;
    /// Long enough for hundreds of children.
    const WATCHED: Duration = Duration::from_millis(200);
    const STORM: &str = "\
        one() { n=0; while :; do (sleep 0.1; echo x >/dev/udp/$1/7777) 2>/dev/null & \
        n=$((n + 1)); [ $((n % 20)) = 0 ] && wait; done; }\n\
        for i in 1 2 3; do one $1 & one $2 & done; wait";
    let home = Home::new();
    let _link = home.add_corp0();
    let _daemon = home.daemon();
    let mut command = home.lab.home.command("bash");
    let [v4, v6] = ORIGIN.map(|it| it.to_string());
    command.args(["-c", STORM, "storm", &v4, &v6]);
    command.process_group(0);
    let storm = Holder(Killed(command.stdin(Stdio::null()).spawn().unwrap()));
    let all = Storm(&storm);
    for _ in 0..ROUNDS {
        forget(&home);
        wait_until("the storm rages at home", || home.leaks().len() >= 2);

        attach(&home, storm.pid(), ["--via", "corp0"]);

        let sent = || home.status().unwrap().policies[0].traffic.tx_packets;
        let before = sent();
        forget(&home);
        wait_until("the storm rages in the tunnel", || sent() > before + 10);
        std::thread::sleep(WATCHED);
        let asked = datagrams_to_the_server(&home);
        assert!(asked.is_empty(), "leaked: {asked:#?}");

        detach(&home, storm.pid(), []);
    }
    drop(all);
}

/// What left the home for the server. Late answers of the server, and what the kernel says to them as nobody waits
/// for them any more, do not count.
fn datagrams_to_the_server(home: &Home) -> Vec<Flow> {
    let asks = |flow: &Flow| match &flow.packet.content {
        Content::Ip(ip) => matches!(
            ip.transport,
            Transport::Udp {
                destination: ADDRESS_PORT,
                ..
            }
        ),
        _ => false,
    };
    home.leaks().into_iter().filter(asks).collect()
}

/// A storm that ends with all its shells.
struct Storm<'a>(&'a Holder);

impl Drop for Storm<'_> {
    fn drop(&mut self) {
        // Its first shell ends the others, which are its process group's.
        let group = Pid::from_raw(self.0.pid().cast_signed()).unwrap();
        let _gone = rustix::process::kill_process_group(group, Signal::KILL);
    }
}
