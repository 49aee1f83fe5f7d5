//! Names of the other ends, from the answers that programs got.

use std::process::Stdio;

use serde_json::Value;

use crate::{
    dns::bench::{Bench, FAR_ANSWER, HOME_ANSWER},
    home::{text, wait_until},
    monitor::Watcher,
    terminal::Terminal,
    tests,
    top::top,
};

tests! {
    other_end_has_the_name_that_was_asked_for needs ["dnsmasq", "python3"],
    top_shows_names_instead_of_addresses needs ["dnsmasq", "python3", "setsid"],
}

/// Looks up the name, sends a datagram to a port of what was found, and says which process it is. Then waits for the
/// end of its input.
const CALL: &str = r#"
import os, socket, sys
port, family = int(sys.argv[1]), socket.AF_INET
address = socket.getaddrinfo("test.example", port, family, socket.SOCK_DGRAM)[0][4]
s = socket.socket(family, socket.SOCK_DGRAM)
s.connect(address)
s.send(b"text")
print(os.getpid(), flush=True)
sys.stdin.read()
"#;

/// The same by a child that asks, as browsers have it.
const CALL_BY_ANOTHER: &str = r#"
import os, socket, subprocess, sys
port, family = int(sys.argv[1]), socket.AF_INET
found = subprocess.run(["getent", "ahostsv4", "test.example"], capture_output=True, text=True)
s = socket.socket(family, socket.SOCK_DGRAM)
s.connect((found.stdout.split()[0], port))
s.send(b"text")
print(os.getpid(), flush=True)
"#;

fn other_end_has_the_name_that_was_asked_for() {
    let bench = Bench::new();
    let _daemon = bench.home.daemon();
    bench.home.tunnels_up();
    let watcher = Watcher::start(bench.home.lockne(["flows", "--follow", "--json"]));
    let lan = "nameserver 192.0.2.50\n";
    let local = "nameserver 127.0.0.53\n";
    let v6 = "nameserver 2001:db8:2::50\n";
    let cases: [(&[&str], &str, &str); 7] = [
        (&["--via", "a"], lan, CALL),
        // The stub asks for it.
        (&["--via", "a"], v6, CALL),
        (&["--via", "a"], local, CALL_BY_ANOTHER),
        (&["--direct"], local, CALL),
        (&[], local, CALL),
        (&[], v6, CALL),
        (&[], lan, CALL_BY_ANOTHER),
    ];
    let mut expected = Vec::new();
    for (port, (arguments, resolv_conf, script)) in (4201_u16..).zip(cases) {
        let program = ["python3", "-c", script, &port.to_string()];
        let (output, address) = match arguments {
            [] => (bench.run_free(resolv_conf, &program), HOME_ANSWER),
            ["--direct"] => (bench.run(arguments, resolv_conf, &program), HOME_ANSWER),
            _ => (bench.run(arguments, resolv_conf, &program), FAR_ANSWER),
        };
        assert!(output.status.success(), "{arguments:?}: {}", text(&output));
        let pid: u32 = String::from_utf8_lossy(&output.stdout)
            .trim()
            .parse()
            .unwrap();
        expected.push((pid, format!("{address}:{port}")));
    }
    let (printed, _) = watcher.interrupt();

    let events: Vec<Value> = printed
        .lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect();
    for (pid, remote) in expected {
        let named: Vec<_> = events
            .iter()
            .filter(|it| it["pid"] == pid && it["remote"] == remote)
            .map(|it| &it["remote_name"])
            .collect();
        assert_eq!(named.len(), 2, "{remote}: {printed}");
        assert!(
            named.iter().all(|name| *name == "test.example"),
            "{remote}: {named:?}"
        );
    }
    // Nobody asked for the resolvers.
    let resolvers = events
        .iter()
        .filter(|it| it["remote"] == "192.0.2.50:53" || it["remote"] == "127.0.0.53:53");
    for event in resolvers {
        assert_eq!(event["remote_name"], Value::Null, "{event}");
    }
}

fn top_shows_names_instead_of_addresses() {
    let bench = Bench::new();
    let _daemon = bench.home.daemon();
    bench.home.tunnels_up();
    let state_dir = bench.home.state_dir();
    let command = top(&bench.home.lab.home, state_dir.to_str().unwrap());
    let mut terminal = Terminal::start(command, 80, 24);
    terminal.wait_for("its head", |text| text.contains("APPLICATION"));

    let mut command = bench.command(
        &["--via", "a"],
        "nameserver 192.0.2.50\n",
        &["python3", "-c", CALL, "4210"],
    );
    let mut child = command
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .spawn()
        .unwrap();
    // Before lockne made it what it is, it was of no policy.
    terminal.press("/via a\r");
    terminal.wait_for("its policy", |text| {
        text.lines().any(|line| line.starts_with("via a "))
    });
    terminal.press("\x1b[H");
    terminal.wait_for("the name", |text| text.contains("test.example:4210"));
    terminal.press("n");
    terminal.wait_for("the address", |text| {
        text.contains(&format!("{FAR_ANSWER}:4210")) && !text.contains("test.example")
    });
    terminal.press("n");
    terminal.wait_for("the name again", |text| text.contains("test.example:4210"));

    // What `Esc` does first is to show all.
    terminal.press("\x1b");
    terminal.wait_for("no filter", |text| !text.contains("filter `"));
    drop(child.stdin.take());
    wait_until("the program ends", || child.try_wait().unwrap().is_some());
    terminal.press("q");
    assert!(terminal.end().success());
}
