//! What is drawn for a state that is made up.

use lockne_core::{
    api::{PeerStatus, Status, TunnelKind},
    policy::Action,
};
use lockne_daemon::observe::{Answer, Flow};
use ratatui::{
    Terminal,
    backend::TestBackend,
    crossterm::event::{KeyCode, KeyEvent, KeyModifiers, MouseButton, MouseEvent, MouseEventKind},
};

use super::*;
use crate::{cmd::top::state::Wish, flow::Book};

const PLAIN: Look = Look { has_colour: false };

fn status() -> Status {
    let policy = |id: u8, action: Action, device: Option<&str>, refused: u64| {
        serde_json::json!({
            "id": id,
            "action": action,
            "mark": u32::from(id) << 24,
            "table": null,
            "device": device,
            "processes": [],
            "traffic": {
                "tx_packets": 0, "tx_bytes": 0, "rx_packets": 0, "rx_bytes": 0,
                "refused": refused,
            },
        })
    };
    let mut status: Status = serde_json::from_value(serde_json::json!({
        "daemon": {"state": "gone"},
        "state_dir": "/run/lockne",
        "mark_mask": 0xff00_0000_u32,
        "policies": [
            policy(1, Action::Via("work".parse().unwrap()), Some("work"), 0),
            policy(2, Action::Block, None, 7),
        ],
        "tunnels": [],
    }))
    .unwrap();
    status.tunnels.push(TunnelStatus {
        name: "work".parse().unwrap(),
        kind: TunnelKind::WireguardEmbedded,
        state: TunnelState::Up,
        ifindex: Some(5),
        mtu: Some(1420),
        addresses: std::collections::BTreeSet::new(),
        dns: Vec::new(),
        peers: vec![PeerStatus {
            public_key: String::new(),
            endpoint: None,
            allowed_ips: Vec::new(),
            handshake_age_seconds: Some(42),
            rx_bytes: 5 << 20,
            tx_bytes: 1 << 20,
        }],
    });
    status
}

fn flow(key: u64, policy: u32, pid: u32, name: &str, bytes: u64) -> Flow {
    let mut text = [0; 16];
    text[..name.len()].copy_from_slice(name.as_bytes());
    Flow {
        key,
        cookie: key,
        tx_packets: 10,
        tx_bytes: bytes,
        mark: policy << 24,
        ifindex: if policy == 1 { 5 } else { 2 },
        // Such high numbers are no processes.
        pid: pid + (1 << 30),
        started: 1_000_000_000,
        remote: "2001:db8::1"
            .parse::<std::net::Ipv6Addr>()
            .unwrap()
            .octets(),
        remote_port: 443,
        protocol: 6,
        state: 1,
        name: text,
        ..Flow::default()
    }
}

fn state() -> State {
    let mut state = State::new(PLAIN);
    let mut book = Book::of(status(), "work", 5);
    for round in 1..=3 {
        let flows = [
            flow(1, 1, 10, "firefox", 4_000_000 * round),
            flow(2, 1, 10, "firefox", 1000),
            flow(3, 1, 11, "curl", 70_000),
            flow(4, 2, 12, "spy", 60),
            flow(5, 0, 13, "sshd", 12_000),
        ];
        state.ledger.tick(&flows, &mut book);
        state.show(&book, 0, 65_000_000_000);
    }
    state
}

fn shown(state: &mut State) -> String {
    shown_at(state, 80, 24)
}

fn shown_at(state: &mut State, width: u16, height: u16) -> String {
    let mut terminal = Terminal::new(TestBackend::new(width, height)).unwrap();
    terminal.draw(|frame| draw(frame, state)).unwrap();
    terminal.backend().to_string()
}

fn press(state: &mut State, code: KeyCode) -> Wish {
    state.press(KeyEvent::new(code, KeyModifiers::NONE))
}

#[test]
fn tree_connections_and_tunnels_fit_a_small_terminal() {
    insta::assert_snapshot!(shown(&mut state()));
}

#[test]
fn help_lists_the_keys() {
    let mut state = state();
    press(&mut state, KeyCode::Char('?'));

    insta::assert_snapshot!(shown(&mut state));
}

/// An answer to a process with this mark: `2001:db8::1` is `www.a-name-that-is-longer-than-a-column.example`.
fn answer(pid: u32, mark: u32) -> (Answer, Vec<u8>) {
    let mut packet = vec![0; 48];
    packet[0] = 0x60;
    packet.extend([0, 7, 0x81, 0x80, 0, 1, 0, 1, 0, 0, 0, 0]);
    for label in ["www", "a-name-that-is-longer-than-a-column", "example"] {
        packet.push(label.len().try_into().unwrap());
        packet.extend(label.bytes());
    }
    packet.extend([0, 0, 28, 0, 1]);
    packet.extend([0xc0, 12, 0, 28, 0, 1, 0, 0, 0, 60, 0, 16]);
    packet.extend(flow(0, 0, 0, "", 0).remote);
    let answer = Answer {
        pid,
        mark,
        ..Answer::default()
    };
    (answer, packet)
}

#[test]
fn other_ends_have_the_names_that_were_asked_for() {
    let mut state = State::new(PLAIN);
    let mut book = Book::of(status(), "work", 5);
    let (answer, packet) = answer(10 + (1 << 30), 1 << 24);
    book.hear(&answer, &packet);
    let flows = [flow(1, 1, 10, "firefox", 1000), flow(2, 0, 13, "sshd", 10)];
    state.ledger.tick(&flows, &mut book);
    state.show(&book, 0, 65_000_000_000);

    let wide = shown_at(&mut state, 120, 24);
    assert!(
        wide.contains("www.a-name-that-is-longer-than-a-column.example:443"),
        "{wide}"
    );
    let text = shown(&mut state);
    assert!(
        text.contains("…ger-than-a-column.example:443 1m 4s"),
        "{text}"
    );
    press(&mut state, KeyCode::Char('n'));
    let text = shown(&mut state);
    assert!(text.contains("[2001:db8::1]:443"), "{text}");
    // Who did not ask, and has another policy, is shown no name.
    press(&mut state, KeyCode::Char('n'));
    let row = state.rows.iter().position(|row| row.label == "sshd");
    state.table.select(row);
    state.show(&book, 0, 65_000_000_000);
    let text = shown(&mut state);
    assert!(
        text.contains("[2001:db8::1]:443") && !text.contains("example"),
        "{text}"
    );
}

#[test]
fn escape_takes_the_filter_away_before_it_ends_anything() {
    let mut state = state();
    for code in [KeyCode::Char('/'), KeyCode::Char('c'), KeyCode::Enter] {
        press(&mut state, code);
    }
    assert!(!shown(&mut state).contains("firefox"));

    assert_eq!(press(&mut state, KeyCode::Esc), Wish::Nothing);
    assert!(shown(&mut state).contains("firefox"));
    assert_eq!(press(&mut state, KeyCode::Esc), Wish::Quit);
}

#[test]
fn filter_leaves_what_has_the_text() {
    let mut state = state();
    press(&mut state, KeyCode::Char('/'));
    for letter in "cur".chars() {
        press(&mut state, KeyCode::Char(letter));
    }

    let text = shown(&mut state);

    assert!(text.contains("curl") && !text.contains("firefox"), "{text}");
    // Also below the policy, which others have too.
    assert_eq!(state.table.selected(), Some(0));
    assert!(text.contains(" 1 connection "), "{text}");
    press(&mut state, KeyCode::Esc);
    assert!(shown(&mut state).contains("firefox"));
}

#[test]
fn pause_holds_the_figures() {
    let mut state = state();
    press(&mut state, KeyCode::Char(' '));
    let before = shown(&mut state);

    let mut book = Book::of(status(), "work", 5);
    let flows = [flow(9, 0, 14, "late", 1)];
    state.ledger.tick(&flows, &mut book);
    state.show(&book, 0, 66_000_000_000);

    assert_eq!(shown(&mut state), before);
    assert!(before.contains("PAUSED"));
}

#[test]
fn what_was_lost_or_found_no_place_is_told() {
    let mut state = state();
    assert!(!shown(&mut state).contains("lost"));
    (state.lost, state.unmetered) = (3, 1234);

    let text = shown(&mut state);

    assert!(
        text.contains("3 events lost  1234 packets not counted"),
        "{text}"
    );
}

#[test]
fn small_window_does_not_panic() {
    let mut state = state();
    state.mode = Mode::Help;
    for (width, height) in [(1, 1), (10, 3), (200, 60)] {
        let mut terminal = Terminal::new(TestBackend::new(width, height)).unwrap();
        terminal.draw(|frame| draw(frame, &mut state)).unwrap();
    }
}

#[test]
fn narrow_and_low_terminal_shows_what_matters_most() {
    insta::assert_snapshot!(shown_at(&mut state(), 40, 10));
}

#[test]
fn rates_are_split_into_ways_when_asked() {
    let mut state = state();
    press(&mut state, KeyCode::Char('v'));

    let text = shown(&mut state);

    let line = text.lines().find(|line| line.contains("via work")).unwrap();
    assert_eq!(line.matches("3.8 MiB/s").count(), 2, "{text}");
}

#[test]
fn colours_are_not_all_that_tells_a_line_from_others() {
    let mut state = state();
    let mut terminal = Terminal::new(TestBackend::new(80, 24)).unwrap();
    terminal.draw(|frame| draw(frame, &mut state)).unwrap();

    let cells = terminal.backend().buffer().content();
    assert!(cells.iter().all(|cell| cell.fg == Color::Reset));
    let reversed = cells
        .iter()
        .filter(|cell| cell.modifier.contains(Modifier::REVERSED));
    assert_eq!(reversed.count(), 80);
}

#[test]
fn click_selects_the_line_below_it() {
    let mut state = state();
    shown(&mut state);
    state.point(MouseEvent {
        kind: MouseEventKind::Down(MouseButton::Left),
        column: 4,
        row: 4,
        modifiers: KeyModifiers::NONE,
    });

    assert_eq!(state.table.selected(), Some(2));
    assert!(shown(&mut state).contains("2 connections"));
}

#[test]
fn many_connections_are_scrolled() {
    let mut state = state();
    press(&mut state, KeyCode::PageDown);

    let text = shown(&mut state);

    assert!(text.contains("3 connections, from 3 on"), "{text}");
}

#[test]
fn connection_that_came_and_went_is_shown_once() {
    let mut state = state();
    let mut book = Book::of(status(), "work", 5);
    let short = flow(9, 0, 14, "short", 1000);
    state.ledger.end(&short, 1_000_000_500, &mut book);
    state.ledger.tick(&[], &mut book);
    state.show(&book, 0, 66_000_000_000);
    let row = state.rows.iter().position(|row| row.label == "short");
    state.table.select(row);
    state.show(&book, 0, 66_000_000_000);

    let text = shown(&mut state);

    assert!(text.contains("closed") && text.contains("1000 B"), "{text}");
    state.ledger.tick(&[], &mut book);
    state.show(&book, 0, 67_000_000_000);
    assert!(shown(&mut state).contains("0 connections"));
}

#[test]
fn processes_that_ended_long_ago_are_one_line() {
    let mut state = state();
    let mut book = Book::of(status(), "work", 5);
    for _ in 0..=HISTORY {
        state.ledger.tick(&[], &mut book);
    }
    state.show(&book, 0, 66_000_000_000);

    assert!(state.ledger.processes.keys().all(|who| who.pid == 0));
    assert!(shown(&mut state).contains("11.4 MiB"));
}

#[test]
fn nobody_is_blocked_without_a_yes() {
    let mut state = state();
    // This very process is one that runs.
    let mut flow = flow(6, 1, 0, "own", 10);
    flow.pid = std::process::id();
    let mut book = Book::of(status(), "work", 5);
    state.ledger.tick(&[flow], &mut book);
    state.show(&book, 0, 66_000_000_000);
    let row = state.rows.iter().position(|row| row.pid == Some(flow.pid));
    state.table.select(row);

    for (key, question, wish) in [
        (
            'b',
            ["block ", " (1 process)? y or n"],
            Wish::Block(vec![flow.pid]),
        ),
        (
            'r',
            ["cut what there is of ", " (1 connection)? y or n"],
            Wish::Reset([6].into()),
        ),
    ] {
        assert_eq!(press(&mut state, KeyCode::Char(key)), Wish::Nothing);
        let text = shown(&mut state);
        let asks = question.iter().all(|part| text.contains(part));
        assert!(asks, "{text}");
        assert_eq!(press(&mut state, KeyCode::Char('n')), Wish::Nothing);
        press(&mut state, KeyCode::Char(key));
        assert_eq!(press(&mut state, KeyCode::Enter), Wish::Nothing);
        press(&mut state, KeyCode::Char(key));
        assert_eq!(press(&mut state, KeyCode::Char('y')), wish);
    }
    press(&mut state, KeyCode::Char('m'));
    assert!(shown(&mut state).contains("move to (work, direct): _"));
}

#[test]
fn group_is_not_blocked_as_a_whole() {
    let mut state = state();

    assert_eq!(press(&mut state, KeyCode::Char('b')), Wish::Nothing);
    assert!(state.answer.is_some());
}
