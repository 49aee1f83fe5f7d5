//! A program that sends by every way, and does what it is told: a shell that forks all the time.

use std::{
    io::Write as _,
    net::{Ipv4Addr, SocketAddr},
    os::unix::process::CommandExt as _,
    path::Path,
    process::{Child, Command, Stdio},
    time::Duration,
};

use lockne_lab::probe::{Action, Probe, WORD};
use rustix::process::{Pid, Signal, kill_process_group};

use super::hosts::DOOR;
use crate::way::ORIGIN;

/// Sends by an old socket and by new ones, itself and by children; forks, executes itself anew and ends on demand.
const SCRIPT: &str = r#"
port=$1
own=198.18.$((port / 256 - 78)).$((port % 256))
send() {
    for to in $ORIGINS; do echo "$1" >/dev/udp/$to/$port; done
}
# Each goes on until it is cut; then another one is made.
again() {
    local -n job=$1
    kill -0 "$job" 2>/dev/null && return
    "${@:2}" &
    job=$!
}
talk() {
    exec 4<>/dev/tcp/$own/$DOOR || exit
    while echo data >&4; do sleep 0.2; done
}
exec 3<>/dev/udp/${ORIGINS%% *}/$port
while :; do
    send new
    echo old >&3
    (send child)
    again connection talk
    again pings "$PING" -q -i 0.3 -w 5 "$own"
    again raw "$PROBE" "$PROBE_WORD" "${RAW/0.0.0.0/$own}"
    read -r -t 0.1 -n 1 word
    case $?:$word in
        0:e) exec "$BASH" -c "$SCRIPT" order "$port" ;;
        0:f) (for _ in {1..30}; do send grandchild; sleep 0.1; done) & ;;
        0:x | 1:*) exit ;;
    esac
done
"#;

/// A program with its children.
pub(super) struct Program {
    child: Child,
    pub(super) port: u16,
}

impl Program {
    /// `ping` is a program that is setuid.
    pub(super) fn start(mut command: Command, port: u16, ping: &Path) -> Self {
        let origins = ORIGIN.map(|it| it.to_string()).join(" ");
        let raw = Probe::new(
            Action::RawPing,
            SocketAddr::from((Ipv4Addr::UNSPECIFIED, 0)),
        );
        let raw = raw.waiting(Duration::from_secs(3)).arguments().unwrap();
        let child = command
            .args(["-c", SCRIPT, "order", &port.to_string()])
            .env("SCRIPT", SCRIPT)
            .env("ORIGINS", origins)
            .env("DOOR", DOOR.to_string())
            .env("PING", ping)
            .env("PROBE", &raw[0])
            .env("PROBE_WORD", WORD)
            .env("RAW", &raw[2])
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .process_group(0)
            .spawn();
        Self {
            child: child.unwrap(),
            port,
        }
    }

    pub(super) fn pid(&self) -> String {
        self.child.id().to_string()
    }

    /// It may have ended.
    pub(super) fn say(&mut self, word: &str) {
        let stdin = self.child.stdin.as_mut().unwrap();
        drop(stdin.write_all(word.as_bytes()));
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        // Its children too.
        let _ended = kill_process_group(Pid::from_child(&self.child), Signal::KILL);
        drop(self.child.wait());
    }
}
