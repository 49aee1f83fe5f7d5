//! `lockne top` in a terminal.

use std::{
    collections::BTreeSet,
    fs,
    net::SocketAddr,
    path::PathBuf,
    process::{Command, Stdio},
};

use lockne_lab::{
    Namespace,
    origin::{ADDRESS_PORT, HTTP_PORT},
    probe::{Action, Outcome, Probe, Running},
    program::{self, Killed},
};

use crate::{
    home::{Home, text, wait_until},
    monitor::lonely,
    terminal::Terminal,
    tests,
    way::{ORIGIN, client},
};

tests! {
    program_is_moved_and_blocked_by_keys needs ["bash", "setsid"],
    downloads_are_moved_cut_and_blocked_by_keys needs ["setsid"],
    terminal_of_any_size_is_used_and_given_back needs ["ip", "setsid"],
    kernel_meters_only_while_somebody_watches needs ["ip", "setsid"],
    without_a_terminal_it_says_what_else_there_is needs ["ip"],
}

/// The terminal becomes its own, so that it hears of new sizes: setsid(1) does that, and then is the command.
pub(crate) fn top(namespace: &Namespace, state_dir: &str) -> Command {
    let mut command = namespace.command("setsid");
    command
        .arg("--ctty")
        .arg(env!("CARGO_BIN_EXE_lockne"))
        .args(["--state-dir", state_dir, "top"])
        .env_remove("LOCKNE_SOCKET")
        .env_remove("NO_COLOR");
    command
}

/// Sends datagrams until it is killed, and notes those that it cannot.
struct Sender {
    child: Killed,
    failures: PathBuf,
}

impl Sender {
    /// By bash under a name of its own, started by `command`.
    fn start(home: &Home, mut command: Command, name: &str) -> Self {
        let program = home.beside(name);
        program::copy(&which::which("bash").unwrap(), &program).unwrap();
        let failures = home.beside("top-failures");
        let script = format!(
            "while :; do echo > /dev/udp/{}/{ADDRESS_PORT} || echo >> {}; read -t 0.1 < /dev/udp/127.0.0.1/9; done",
            ORIGIN[0],
            failures.display()
        );
        let child = command.arg(program).args(["-c", &script]);
        let child = child.stderr(Stdio::null()).spawn().unwrap();
        Self {
            child: Killed(child),
            failures,
        }
    }

    /// How many datagrams it could not send so far.
    fn failures(&self) -> usize {
        fs::read(&self.failures).map_or(0, |lines| lines.len())
    }
}

fn program_is_moved_and_blocked_by_keys() {
    let home = Home::with_tunnels();
    let mut command = home.lockne(["run"]);
    command.args(["--via", "a", "--"]);
    let sender = Sender::start(&home, command, "top-sender");
    let state_dir = home.state_dir();
    let command = top(&home.lab.home, state_dir.to_str().unwrap());
    let mut terminal = Terminal::start(command, 80, 24);
    let arrives_from = |from| {
        home.lab.origin.clear();
        wait_until("datagrams come from there", || {
            let seen = home.lab.origin.seen();
            !seen.is_empty() && seen.iter().all(|it| it.source == from)
        });
    };

    terminal.wait_for("its head", |text| text.contains("APPLICATION"));
    terminal.press("/top-sender\r");
    let pid = sender.child.0.id().to_string();
    terminal.wait_for("the sender below its policy", |text| {
        let line = |of: &str| {
            text.lines()
                .position(|line| line.trim_start().starts_with(of))
        };
        let lines = (line("via a"), line("top-sender"), line(&pid));
        matches!(lines, (Some(a), Some(b), Some(c)) if a < b && b < c)
    });
    terminal.wait_for("both tunnels", |text| {
        text.contains("handshake") && text.lines().any(|line| line.starts_with("b   "))
    });
    arrives_from(client(&home.lab.provider_a)[0]);

    // Home first: what was selected before may be of another group.
    terminal.press("\x1b[Hjj");
    terminal.wait_for("its connections, as many as there is room for", |text| {
        ORIGIN.iter().any(|to| text.contains(&to.to_string()))
    });
    terminal.press("m");
    terminal.wait_for("the tunnels to choose from", |text| {
        text.contains("move to (a, b, direct): _")
    });
    terminal.press("b\r");
    terminal.wait_for("what came of it", |text| text.contains("via b: 1 process"));
    arrives_from(client(&home.lab.provider_b)[0]);
    terminal.wait_for("the sender below another policy", |text| {
        text.lines().any(|line| line.starts_with("via b"))
    });

    terminal.press("/\x7f\x7f\x7f\x7f\x7f\x7f\x7f\x7f\x7f\x7fvia b\r");
    terminal.wait_for("only the new policy, and the sender as its first", |text| {
        let mut lines = text.lines().skip_while(|line| !line.starts_with("via "));
        lines.next().is_some_and(|line| line.starts_with("via b"))
            && lines.next().is_some_and(|line| line.contains("top-sender"))
    });
    // Home, and one down: the application.
    terminal.press("\x1b[Hj");
    terminal.press("b");
    let question = "block top-sender (1 process)? y or n";
    terminal.wait_for("a question", |text| text.contains(question));
    terminal.press("n");
    terminal.wait_for("that nothing was done", |text| {
        text.contains("nothing was changed")
    });
    arrives_from(client(&home.lab.provider_b)[0]);
    terminal.press("b");
    terminal.wait_for("a question", |text| text.contains(question));
    terminal.press("y");
    terminal.wait_for("what came of it", |text| text.contains("block: 1 process"));
    home.lab.origin.clear();
    let before = sender.failures();
    wait_until("it cannot send", || sender.failures() > before + 3);
    assert!(home.lab.origin.seen().is_empty());

    terminal.press("q");
    assert!(terminal.end().success());
    home.assert_no_leak();
}

/// A download that goes on by itself until it is cut.
fn download(home: &Home, arguments: &[&str]) -> Running {
    let hold = Probe::new(Action::Hold, SocketAddr::new(ORIGIN[0], HTTP_PORT));
    let mut running = if arguments.is_empty() {
        hold.start(&home.lab.home).unwrap()
    } else {
        let mut command = home.lockne(["run"]);
        command.args(arguments).arg("--");
        hold.start_behind(command).unwrap()
    };
    running.wait_until_ready().unwrap();
    running
}

fn downloads_are_moved_cut_and_blocked_by_keys() {
    let home = Home::with_tunnels();
    let state_dir = home.state_dir();
    let command = top(&home.lab.home, state_dir.to_str().unwrap());
    let mut terminal = Terminal::start(command, 80, 24);
    terminal.wait_for("its head", |text| text.contains("APPLICATION"));
    let to = SocketAddr::new(ORIGIN[0], HTTP_PORT).to_string();
    let mut filter = String::new();
    // Shows the process alone and selects it.
    let mut select = |terminal: &mut Terminal, pid: u32| {
        let erase = "\x7f".repeat(filter.len());
        filter = pid.to_string();
        terminal.press(&format!("/{erase}{filter}\r"));
        terminal.wait_for("its line", |text| {
            text.lines()
                .any(|line| line.trim_start().starts_with(&format!("{filter} ")))
        });
        terminal.press("\x1b[Hjj");
        terminal.wait_for("its connection, established", |text| {
            text.contains(&format!("filter `{filter}`"))
                && text.contains(" 1 connection ")
                && text
                    .lines()
                    .any(|line| line.starts_with(&to) && line.contains("established"))
        });
    };
    let ends = |running: Running| {
        let report = running.finish().unwrap();
        assert!(
            matches!(&report.outcome, Outcome::Ended { bytes: 1.., why } if why == "ECONNABORTED"),
            "{report:?}"
        );
    };

    // Whatever its policy, or without one.
    for arguments in [&["--via", "a"][..], &["--direct"], &[]] {
        let kept = download(&home, arguments);
        let cut = download(&home, arguments);
        select(&mut terminal, cut.pid());
        terminal.press("r");
        terminal.wait_for("a question", |text| text.contains("(1 connection)? y or n"));
        terminal.press("y");
        terminal.wait_for("what came of it", |text| text.contains("cut: 1 connection"));
        ends(cut);
        // Only what was selected.
        select(&mut terminal, kept.pid());
    }

    for (keys, answer) in [("mb\r", "via b: 1 process"), ("by", "block: 1 process")] {
        let running = download(&home, &["--via", "a"]);
        select(&mut terminal, running.pid());
        terminal.press(keys);
        terminal.wait_for("what came of it", |text| text.contains(answer));
        ends(running);
    }
    terminal.press("q");
    assert!(terminal.end().success());
}

fn terminal_of_any_size_is_used_and_given_back() {
    let namespace = lonely();
    let mut plain = top(&namespace, "/nonexistent");
    plain.env("NO_COLOR", "1");
    let mut small = Terminal::start(plain, 40, 10);
    let mut other = Terminal::start(top(&namespace, "/nonexistent"), 80, 24);

    small.wait_for("that there is no lockne", |text| {
        text.contains("lockne is not active") && text.contains("APPLICATION")
    });
    assert!(small.text().contains("DIRECT") && !small.text().contains("REFUSED"));
    assert!(!small.takes_lines());
    small.resize(80, 24);
    small.wait_for("more columns", |text| text.contains("REFUSED"));
    small.press("?");
    small.wait_for("help", |text| text.contains("cut its connections"));
    small.press("?");
    small.press(" ");
    small.wait_for("a pause", |text| text.contains("PAUSED"));
    small.resize(1, 1);
    small.resize(80, 24);
    small.wait_for("a pause again", |text| text.contains("PAUSED"));
    for colour in ["\x1b[32m", "\x1b[38;5;"] {
        assert!(!small.printed().contains(colour), "{:?}", small.printed());
    }
    // The wheel and a click, as terminals tell of them.
    other.wait_for("its head", |text| text.contains("APPLICATION"));
    other.press("\x1b[<65;5;5M\x1b[<0;5;5M");
    other.press("s");
    other.wait_for("another order", |text| text.contains("by total"));
    assert!(other.printed().contains("\x1b[?1000h"));

    for (terminal, keys) in [(&mut small, "q"), (&mut other, "\x03")] {
        terminal.press(keys);
        let status = terminal.end();
        assert!(status.success(), "{status}");
        assert!(terminal.takes_lines());
        wait_until("the screen is given back", || {
            let printed = terminal.printed();
            ["\x1b[?1049l", "\x1b[?1000l", "\x1b[?25h"]
                .iter()
                .all(|reset| printed.contains(reset))
        });
    }
}

/// The numbers of the kernel programs that a process holds.
fn programs_of(pid: u32) -> BTreeSet<u32> {
    let mut programs = BTreeSet::new();
    for info in fs::read_dir(format!("/proc/{pid}/fdinfo"))
        .unwrap()
        .flatten()
    {
        let text = fs::read_to_string(info.path()).unwrap_or_default();
        let number = text.lines().find_map(|line| line.strip_prefix("prog_id:"));
        programs.extend(number.map(|it| it.trim().parse::<u32>().unwrap()));
    }
    programs
}

/// All that are in the kernel.
fn loaded() -> BTreeSet<u32> {
    aya::programs::loaded_programs()
        .flatten()
        .map(|program| program.id())
        .collect()
}

fn kernel_meters_only_while_somebody_watches() {
    let home = Home::with_tunnels();
    let pins = fs::read_dir(home.state_dir().join("bpf")).unwrap();
    for pin in pins.flatten() {
        let name = pin.file_name().into_string().unwrap();
        assert!(
            !name.contains("meter"),
            "{name} is there though nobody watches"
        );
    }
    let before = loaded();
    let state_dir = home.state_dir();
    let command = top(&home.lab.home, state_dir.to_str().unwrap());
    let mut terminal = Terminal::start(command, 80, 24);
    terminal.wait_for("the tunnels", |text| text.contains("TUNNELS"));

    let ours = programs_of(terminal.pid());
    assert!(ours.len() >= 5, "{ours:?}");
    assert!(ours.is_disjoint(&before));
    assert!(ours.is_subset(&loaded()));

    terminal.press("q");
    assert!(terminal.end().success());
    wait_until("its programs are out of the kernel", || {
        ours.is_disjoint(&loaded())
    });

    // The same where it gets no time to take them out.
    let command = top(&home.lab.home, state_dir.to_str().unwrap());
    let terminal = Terminal::start(command, 80, 24);
    terminal.wait_for("the tunnels", |text| text.contains("TUNNELS"));
    let ours = programs_of(terminal.pid());
    assert!(ours.len() >= 5, "{ours:?}");
    terminal.kill();
    wait_until("its programs are out of the kernel", || {
        ours.is_disjoint(&loaded())
    });
}

fn without_a_terminal_it_says_what_else_there_is() {
    let namespace = lonely();
    let mut command = namespace.command(env!("CARGO_BIN_EXE_lockne"));
    command.args(["--state-dir", "/nonexistent", "top"]);
    let output = command.stdin(Stdio::null()).output().unwrap();

    let said = text(&output);
    assert_eq!(output.status.code(), Some(1), "{said}");
    assert!(said.contains("cannot use the terminal"), "{said}");
    assert!(said.contains("lockne flows --follow"), "{said}");
    assert!(!said.contains("\x1b["), "{said}");
}
