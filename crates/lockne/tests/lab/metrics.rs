//! Metrics, as Prometheus itself sees them.

use std::{
    collections::BTreeSet,
    fmt::Write as _,
    fs,
    io::{self, Read as _, Write as _},
    net::{Shutdown, TcpListener, TcpStream},
    path::PathBuf,
    process::{Command, Stdio},
    time::Duration,
};

use lockne_lab::{
    probe::{Action, Options, Outcome},
    program::Killed,
};
use serde_json::Value;

use crate::{
    home::{Daemon, Home, wait_until},
    tests,
    way::{ORIGIN, probe},
};

tests! {
    prometheus_scrapes_what_programs_did_and_every_metric_is_there needs ["prometheus", "promtool"],
    page_moves_with_the_configuration_and_a_busy_port_is_told,
    greedy_and_slow_scrapers_disturb_nobody,
}

const ADDRESS: &str = "127.0.0.1:9108";

/// A home whose configuration has tunnels `a` and `b`, and something more.
struct Measured {
    home: Home,
    file: PathBuf,
}

impl Measured {
    fn new() -> Self {
        let home = Home::new();
        let file = home.write("lockne.toml", "");
        Self { home, file }
    }

    fn write(&self, more: &str) {
        let mut text = String::new();
        for (name, provider) in [
            ("a", &self.home.lab.provider_a),
            ("b", &self.home.lab.provider_b),
        ] {
            let conf = self.home.conf(name, provider);
            writeln!(text, "[tunnels.{name}]\nconfig = \"{}\"", conf.display()).unwrap();
        }
        let next = self.home.write("next", &(text + more));
        fs::rename(next, &self.file).unwrap();
    }

    fn daemon(&self, mark_bit: &str) -> Daemon {
        let file = self.file.to_str().unwrap();
        self.home
            .daemon_with(&["--mark-bit", mark_bit, "--config", file])
    }

    fn connect(&self, address: &str) -> Option<TcpStream> {
        let connect = || TcpStream::connect(address).ok();
        self.home.lab.home.run(connect).unwrap()
    }

    /// The answer to a request; `None` if nobody listens, or not any more.
    fn ask(&self, address: &str, request: &str) -> Option<String> {
        let mut stream = self.connect(address)?;
        stream
            .set_read_timeout(Some(Duration::from_secs(30)))
            .unwrap();
        let mut answer = String::new();
        let asked = stream
            .write_all(request.as_bytes())
            .and_then(|()| stream.read_to_string(&mut answer));
        match asked {
            Ok(_) => Some(answer),
            // Who listened was replaced before it took the connection.
            Err(error) if error.kind() == io::ErrorKind::ConnectionReset => None,
            Err(error) => panic!("{error}"),
        }
    }

    fn page(&self, address: &str) -> Option<String> {
        let answer = self.ask(
            address,
            &format!("GET /metrics HTTP/1.1\r\nHost: {address}\r\n\r\n"),
        )?;
        let (head, page) = answer.split_once("\r\n\r\n").unwrap();
        assert!(head.starts_with("HTTP/1.1 200 "), "{answer}");
        assert!(head.contains("text/plain; version=0.0.4"), "{head}");
        Some(page.to_owned())
    }

    fn wait_for_page(&self, address: &str) -> String {
        let mut page = None;
        wait_until("somebody serves metrics", || {
            page = self.page(address);
            page.is_some()
        });
        page.unwrap()
    }

    fn problem(&self) -> Option<String> {
        self.home.status()?.config?.metrics?.problem
    }
}

/// The metrics that the docs list.
fn documented() -> BTreeSet<String> {
    let docs = include_str!("../../../../docs/metrics.md");
    let rows = docs.lines().filter_map(|line| line.strip_prefix("| `"));
    rows.map(|row| row.split('`').next().unwrap().to_owned())
        .collect()
}

/// The metrics that a page has values of.
fn exported(page: &str) -> BTreeSet<String> {
    let values = page.lines().filter(|line| !line.starts_with('#'));
    let name = |line: &str| line.split(['{', ' ']).next().unwrap().to_owned();
    values.map(name).collect()
}

fn prometheus_scrapes_what_programs_did_and_every_metric_is_there() {
    const PACKETS: usize = 12;
    let measured = Measured::new();
    measured.write(&format!(
        "[[rule]]\nname = \"shop\"\nexe = \"/nowhere/shop\"\nvia = [\"a\", \"b\"]\n\
         [metrics]\nlisten = \"{ADDRESS}\"\n"
    ));
    let home = &measured.home;
    let _daemon = measured.daemon("20");
    // Counted to the packet. By `--via a` alone the daemon itself asks whether the tunnel works.
    let by_hand = ["--via", "a", "--lan", "198.51.100.0/24"];
    for to in ORIGIN {
        for _ in 0..PACKETS {
            let report = home.run(by_hand, &probe(Action::UdpUnconnected, to));
            assert!(
                matches!(report.outcome, Outcome::Answered { .. }),
                "{report:?}"
            );
        }
    }
    let past = Options {
        bind_device: Some("eth0".to_owned()),
        ..Options::default()
    };
    let _stats = aya::sys::enable_stats(aya::sys::Stats::RunTime).unwrap();
    for to in ORIGIN {
        home.run(
            by_hand,
            &probe(Action::UdpUnconnected, to).with(past.clone()),
        );
    }

    wait_until("the tunnels are looked at", || {
        measured
            .wait_for_page(ADDRESS)
            .contains("lockne_tunnel_healthy{")
    });
    let page = measured.page(ADDRESS).unwrap();

    assert_eq!(exported(&page), documented(), "{page}");
    assert_well_written(&page);

    let prometheus = Prometheus::start(home);
    let policies = home.status().unwrap().policies;
    let mut policies = policies.iter();
    let policy = policies.find(|it| !it.terms.lan.is_empty()).unwrap();
    let by_hand = format!("{{rule=\"\",via=\"a\",policy=\"{}\"}}", policy.id);
    for (query, value) in [
        (
            format!("lockne_policy_transmit_packets_total{by_hand}"),
            2 * PACKETS as u64,
        ),
        (
            format!("lockne_policy_receive_bytes_total{by_hand}"),
            policy.traffic.rx_bytes,
        ),
        (format!("lockne_policy_refused_total{by_hand}"), 2),
        (
            "sum(lockne_policy_tunnel_active{rule=\"shop\"})".to_owned(),
            1,
        ),
        ("lockne_rule_active{rule=\"shop\"}".to_owned(), 0),
        ("lockne_tunnel_up{tunnel=\"a\"}".to_owned(), 1),
        (
            "time() - lockne_tunnel_peer_last_handshake_timestamp_seconds{tunnel=\"a\"} < bool 180"
                .to_owned(),
            1,
        ),
        ("scrape_samples_scraped > bool 30".to_owned(), 1),
    ] {
        prometheus.wait_for(&query, &value.to_string());
    }
    assert_understood(&prometheus);
    home.assert_no_leak();
}

/// Asserts that Prometheus' own judge has nothing to say of a page.
fn assert_well_written(page: &str) {
    let mut check = Command::new("promtool");
    let mut check = check
        .args(["check", "metrics"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    check
        .stdin
        .take()
        .unwrap()
        .write_all(page.as_bytes())
        .unwrap();
    let complaints = check.wait_with_output().unwrap();
    assert!(
        complaints.status.success() && complaints.stderr.is_empty(),
        "{complaints:?}"
    );
}

/// Asserts that Prometheus understands what the dashboard asks, and the alerts of the docs.
fn assert_understood(prometheus: &Prometheus<'_>) {
    let dashboard = include_str!("../../../../packaging/grafana/lockne.json");
    let dashboard: Value = serde_json::from_str(dashboard).unwrap();
    let panels = dashboard["panels"].as_array().unwrap();
    let targets = panels
        .iter()
        .flat_map(|panel| panel["targets"].as_array().unwrap());
    for target in targets {
        let query = target["expr"].as_str().unwrap();
        let query = query
            .replace("$__rate_interval", "1m")
            .replace("$job", ".*")
            .replace("$instance", ".*");
        let answer = prometheus.query(&query);
        assert_eq!(answer["status"], "success", "{query}: {answer}");
    }
    let docs = include_str!("../../../../docs/metrics.md");
    let rules = docs.rsplit("```yaml\n").next().unwrap();
    let place = tempfile::tempdir().unwrap();
    let file = place.path().join("alerts.yaml");
    fs::write(&file, rules.split("```").next().unwrap()).unwrap();
    let mut check = Command::new("promtool");
    let checked = check.args(["check", "rules"]).arg(file).output().unwrap();
    assert!(checked.status.success(), "{checked:?}");
}

/// A Prometheus at home.
struct Prometheus<'a> {
    home: &'a Home,
    _server: Killed,
    _place: tempfile::TempDir,
}

impl<'a> Prometheus<'a> {
    fn start(home: &'a Home) -> Self {
        // Beside the configuration it would be news for the daemon.
        let place = tempfile::tempdir().unwrap();
        let config = place.path().join("prometheus.yml");
        let text = format!(
            "global: {{scrape_interval: 1s}}\nscrape_configs:\n  - job_name: lockne\n    \
             static_configs: [{{targets: [\"{ADDRESS}\"]}}]\n"
        );
        fs::write(&config, text).unwrap();
        let mut command = home.lab.home.command("prometheus");
        let server = command
            .arg(format!("--config.file={}", config.display()))
            .arg(format!(
                "--storage.tsdb.path={}",
                config.with_file_name("tsdb").display()
            ))
            .args(["--web.listen-address=127.0.0.1:9090", "--log.level=error"])
            .stdin(Stdio::null())
            .spawn()
            .unwrap();
        Self {
            home,
            _server: Killed(server),
            _place: place,
        }
    }

    fn query(&self, query: &str) -> Value {
        let mut encoded = String::new();
        for byte in query.bytes() {
            write!(encoded, "%{byte:02X}").unwrap();
        }
        let ask = || {
            let mut stream = TcpStream::connect("127.0.0.1:9090").ok()?;
            let request = format!("GET /api/v1/query?query={encoded} HTTP/1.0\r\n\r\n");
            stream.write_all(request.as_bytes()).ok()?;
            let mut answer = String::new();
            stream.read_to_string(&mut answer).ok()?;
            serde_json::from_str(answer.split_once("\r\n\r\n")?.1).ok()
        };
        self.home.lab.home.run(ask).unwrap().unwrap_or_default()
    }

    fn wait_for(&self, query: &str, value: &str) {
        let mut answer = Value::Null;
        let mut left = 600;
        while answer["data"]["result"][0]["value"][1] != value {
            left -= 1;
            assert!(left > 0, "{query} is not {value}: {answer}");
            std::thread::sleep(Duration::from_millis(100));
            answer = self.query(query);
        }
    }
}

fn page_moves_with_the_configuration_and_a_busy_port_is_told() {
    let measured = Measured::new();
    measured.write("");
    let home = &measured.home;
    let _daemon = measured.daemon("16");
    assert!(measured.connect(ADDRESS).is_none(), "off by default");

    let listen = |address: &str| measured.write(&format!("[metrics]\nlisten = \"{address}\"\n"));
    listen(ADDRESS);
    let page = measured.wait_for_page(ADDRESS);
    assert!(
        page.contains("lockne_config_last_reload_successful 1\n"),
        "{page}"
    );
    listen("[::1]:9109");
    measured.wait_for_page("[::1]:9109");
    assert!(measured.connect(ADDRESS).is_none());

    // A port that is taken is told, keeps no rule from being in force, and is used once it is free.
    let bind = || TcpListener::bind(ADDRESS).unwrap();
    let taken = home.lab.home.run(bind).unwrap();
    measured.write(&format!(
        "[[rule]]\nname = \"x\"\nexe = \"/nowhere/x\"\nvia = \"block\"\n[metrics]\nlisten = \"{ADDRESS}\"\n"
    ));
    wait_until("the problem is told", || measured.problem().is_some());
    let problem = measured.problem().unwrap();
    assert!(
        problem.contains(ADDRESS) && problem.contains("another program has that port"),
        "{problem}"
    );
    let shown = home.must(["status"]);
    assert!(
        shown.contains(&problem) && shown.contains("exe /nowhere/x"),
        "{shown}"
    );
    drop(taken);
    measured.wait_for_page(ADDRESS);
    assert_eq!(measured.problem(), None);

    // A file with a mistake: what was before holds, and that is told by a metric.
    measured.write("[metrics]\nlisten = \"192.0.2.1:9108\"\n");
    wait_until("the mistake is told", || {
        let page = measured.page(ADDRESS);
        page.is_some_and(|page| page.contains("lockne_config_last_reload_successful 0\n"))
    });
    // Pages of a browser that come by a name of their own.
    let stranger = "GET /metrics HTTP/1.1\r\nHost: evil.example\r\n\r\n";
    let answer = measured.ask(ADDRESS, stranger).unwrap();
    assert!(answer.starts_with("HTTP/1.1 421 "), "{answer}");
    let modern = "GET /metrics HTTP/1.1\r\nHost: localhost\r\nAccept: application/openmetrics-text;version=1.0.0\r\n\r\n";
    let answer = measured.ask(ADDRESS, modern).unwrap();
    assert!(
        answer.contains("application/openmetrics-text; version=1.0.0")
            && answer.ends_with("# EOF\n"),
        "{answer}"
    );

    measured.write("");
    wait_until("nobody listens", || measured.connect(ADDRESS).is_none());
}

fn greedy_and_slow_scrapers_disturb_nobody() {
    let measured = Measured::new();
    measured.write(&format!("[metrics]\nlisten = \"{ADDRESS}\"\n"));
    let home = &measured.home;
    let daemon = measured.daemon("16");
    measured.wait_for_page(ADDRESS);

    // Silent, in the middle of a request, endless, and with an answer that is not read.
    let endless = vec![b'x'; 1 << 16];
    let mut open = Vec::new();
    for number in 0..200 {
        let mut stream = measured.connect(ADDRESS).unwrap();
        let begun: &[u8] = match number % 4 {
            0 => b"",
            1 => b"GET /metrics HT",
            2 => &endless,
            _ => b"GET /metrics HTTP/1.1\r\nHost: localhost\r\n\r\n",
        };
        // Who sends too much is hung up on.
        drop(stream.write_all(begun));
        open.push(stream);
    }

    measured.page(ADDRESS).unwrap();
    // It came to this one behind all those.
    let held = fs::read_dir(format!("/proc/{}/fd", daemon.pid())).unwrap();
    assert!(held.count() < 150, "as many as there are scrapers");
    assert!(home.status().is_some());
    for method in ["POST", "DELETE", "CONNECT"] {
        let request =
            format!("{method} /metrics HTTP/1.1\r\nHost: localhost\r\nContent-Length: 0\r\n\r\n");
        let answer = measured.ask(ADDRESS, &request).unwrap();
        assert!(answer.starts_with("HTTP/1.1 4"), "{method}: {answer}");
    }
    // The oldest had to go.
    let mut oldest = open.remove(0);
    oldest
        .set_read_timeout(Some(Duration::from_secs(30)))
        .unwrap();
    assert_eq!(oldest.read(&mut [0]).unwrap_or(0), 0);
    drop(oldest.shutdown(Shutdown::Both));
}
