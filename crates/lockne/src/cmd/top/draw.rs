//! How it looks.

use lockne_core::api::{TunnelState, TunnelStatus};
use ratatui::{
    Frame,
    layout::{Constraint, Layout, Rect},
    style::{Color, Modifier, Style},
    text::{Line, Span},
    widgets::{Block, Clear, Paragraph, Row as TableRow, Table, TableState},
};

use super::{
    ledger::{DIRECT, HISTORY, LOCAL, REFUSED, TUNNELLED},
    state::{Mode, Row, Sort, State},
};
use crate::output;

/// Colours, or none where the user wants none.
#[derive(Clone, Copy, Debug)]
pub(super) struct Look {
    has_colour: bool,
}

impl Look {
    /// See <https://no-color.org>.
    pub(super) fn of_environment() -> Self {
        let is_set = std::env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty());
        Self {
            has_colour: !is_set,
        }
    }

    fn colour(self, colour: Color) -> Style {
        if self.has_colour {
            Style::new().fg(colour)
        } else {
            Style::new()
        }
    }
}

const STRONG: Style = Style::new().add_modifier(Modifier::BOLD);

pub(super) fn draw(frame: &mut Frame<'_>, state: &State) {
    let tunnels = u16::try_from(state.tunnels.len()).unwrap_or(u16::MAX);
    let [head, tree, connections, below, foot] = Layout::vertical([
        Constraint::Length(1),
        Constraint::Fill(3),
        Constraint::Fill(2),
        Constraint::Length(if tunnels == 0 { 0 } else { tunnels.min(4) + 1 }),
        Constraint::Length(1),
    ])
    .areas(frame.area());
    frame.render_widget(heading(state), head);
    draw_tree(frame, state, tree);
    draw_connections(frame, state, connections);
    draw_tunnels(frame, state, below);
    frame.render_widget(footer(state), foot);
    if state.mode == Mode::Help {
        draw_help(frame);
    }
}

fn heading(state: &State) -> Line<'_> {
    let sort = match state.sort {
        Sort::Rate => "rate",
        Sort::Total => "total",
        Sort::Name => "name",
    };
    let mut parts = vec![
        Span::styled("lockne top", STRONG),
        Span::raw(format!("  by {sort}")),
    ];
    if !state.filter.is_empty() {
        parts.push(Span::raw(format!("  filter `{}`", state.filter)));
    }
    if !state.has_daemon {
        parts.push(Span::raw("  lockne is not active"));
    }
    if state.is_paused {
        parts.push(Span::styled("  PAUSED", state.look.colour(Color::Yellow)));
    }
    if state.lost > 0 {
        let lost = format!("  {} lost", output::count(state.lost, "event"));
        parts.push(Span::styled(lost, state.look.colour(Color::Yellow)));
    }
    Line::from(parts)
}

fn draw_tree(frame: &mut Frame<'_>, state: &State, area: Rect) {
    let head = ["APPLICATION", "RATE", "TUNNEL", "DIRECT", "REFUSED", ""];
    let rows = state.rows.iter().map(|row| tree_row(state, row));
    let widths = [
        Constraint::Fill(1),
        Constraint::Length(11),
        Constraint::Length(10),
        Constraint::Length(10),
        Constraint::Length(10),
        Constraint::Length(u16::try_from(HISTORY).unwrap_or(12)),
    ];
    let table = Table::new(rows, widths)
        .header(TableRow::new(head).style(STRONG))
        .row_highlight_style(Style::new().add_modifier(Modifier::REVERSED));
    let mut selected = TableState::new().with_selected(state.selected);
    frame.render_stateful_widget(table, area, &mut selected);
}

fn tree_row<'a>(state: &State, row: &'a Row) -> TableRow<'a> {
    let bytes = |count: u64| match count {
        0 => "-".to_owned(),
        count => output::bytes(count),
    };
    let look = state.look;
    let total = &row.sums.total;
    let refused = match row.refused {
        Some(packets) if packets > 0 => format!("{packets} pkts"),
        _ => bytes(total[REFUSED]),
    };
    let label = format!("{}{}", "  ".repeat(row.depth.into()), row.label);
    let style = if row.depth == 0 { STRONG } else { Style::new() };
    let rate: u64 = row.sums.rate.iter().sum();
    TableRow::new([
        Span::styled(label, style),
        Span::raw(match rate {
            0 => "-".to_owned(),
            rate => format!("{}/s", output::bytes(rate)),
        }),
        Span::styled(bytes(total[TUNNELLED]), look.colour(Color::Green)),
        Span::raw(bytes(total[DIRECT] + total[LOCAL])),
        Span::styled(refused, look.colour(Color::Red)),
        Span::styled(spark(&row.sums.history), look.colour(Color::Cyan)),
    ])
}

/// A sparkline: eight heights, the highest is the most of them.
fn spark<'a>(history: impl IntoIterator<Item = &'a u64>) -> String {
    const BARS: [char; 9] = [' ', '▁', '▂', '▃', '▄', '▅', '▆', '▇', '█'];
    let values: Vec<u64> = history.into_iter().copied().collect();
    let most = values.iter().copied().max().unwrap_or(0).max(1);
    values
        .into_iter()
        .map(|value| {
            let height = u128::from(value) * 8;
            BARS[usize::try_from(height.div_ceil(most.into())).unwrap_or(8)]
        })
        .collect()
}

fn draw_connections(frame: &mut Frame<'_>, state: &State, area: Rect) {
    let head = ["PROTO", "REMOTE", "STATE", "AGE", "SENT", "RECEIVED"];
    let rows = state.connections.iter().map(|live| {
        let it = &live.connection;
        TableRow::new([
            it.protocol.clone(),
            it.remote.clone(),
            it.state.to_owned(),
            output::duration(live.age),
            output::bytes(it.tx_bytes),
            output::bytes(it.rx_bytes),
        ])
    });
    let widths = [
        Constraint::Length(5),
        Constraint::Fill(1),
        Constraint::Length(12),
        Constraint::Length(9),
        Constraint::Length(10),
        Constraint::Length(10),
    ];
    let title = format!(
        " {} ",
        output::count(state.connections.len() as u64, "connection")
    );
    let table = Table::new(rows, widths)
        .header(TableRow::new(head).style(STRONG))
        .block(
            Block::new()
                .borders(ratatui::widgets::Borders::TOP)
                .title(title),
        );
    frame.render_widget(table, area);
}

fn draw_tunnels(frame: &mut Frame<'_>, state: &State, area: Rect) {
    let mut lines = vec![Line::styled("TUNNELS", STRONG)];
    lines.extend(
        state
            .tunnels
            .iter()
            .map(|tunnel| tunnel_line(state, tunnel)),
    );
    frame.render_widget(Paragraph::new(lines), area);
}

fn tunnel_line<'a>(state: &State, tunnel: &'a TunnelStatus) -> Line<'a> {
    /// WireGuard makes a new one after two minutes, if there is traffic.
    const OLD: u64 = 180;
    let (word, colour) = match tunnel.state {
        TunnelState::Up => ("up", Color::Green),
        TunnelState::Down => ("down", Color::Red),
        TunnelState::Gone => ("gone", Color::Red),
    };
    let peers = &tunnel.peers;
    let youngest = peers.iter().filter_map(|it| it.handshake_age_seconds).min();
    let (handshake, health) = match youngest {
        _ if peers.is_empty() => (String::new(), Color::Reset),
        None => ("  no handshake yet".to_owned(), Color::Yellow),
        Some(age) => (
            format!("  handshake {} ago", output::duration(age)),
            if age > OLD {
                Color::Yellow
            } else {
                Color::Green
            },
        ),
    };
    let sent: u64 = peers.iter().map(|it| it.tx_bytes).sum();
    let received: u64 = peers.iter().map(|it| it.rx_bytes).sum();
    let mut parts = vec![
        Span::raw(format!("{:<16}", tunnel.name)),
        Span::styled(format!("{word:<5}"), state.look.colour(colour)),
        Span::styled(handshake, state.look.colour(health)),
    ];
    if !peers.is_empty() {
        parts.push(Span::raw(format!(
            "  sent {}  received {}",
            output::bytes(sent),
            output::bytes(received)
        )));
    }
    Line::from(parts)
}

fn footer(state: &State) -> Line<'_> {
    match (state.mode, &state.answer) {
        (Mode::Filter, _) => Line::raw(format!("filter: {}_", state.typed)),
        (Mode::Tunnel, _) => Line::raw(format!("move to the tunnel: {}_", state.typed)),
        (_, Some(answer)) => Line::styled(answer.as_str(), state.look.colour(Color::Yellow)),
        _ => Line::raw("? help  s sort  / filter  space pause  m move  b block  r reset  q quit"),
    }
}

fn draw_help(frame: &mut Frame<'_>) {
    const HELP: &str = "\
up, down   choose a line; below are its connections
s          sort by rate, total, name
/          show what has this text; Esc shows all
space      stop the figures, and let them go on
m          move the program into a tunnel
b          block the program
r          cut its connections
q          quit

Bytes are those since this was started. TUNNEL went
into the tunnel, DIRECT past it or to this machine.";
    let area = frame.area();
    let width = 55.min(area.width);
    let height = 13.min(area.height);
    let middle = Rect {
        x: (area.width - width) / 2,
        y: (area.height - height) / 2,
        width,
        height,
    };
    frame.render_widget(Clear, middle);
    let help = Paragraph::new(HELP).block(Block::bordered().title(" keys "));
    frame.render_widget(help, middle);
}

#[cfg(test)]
mod tests {
    use lockne_core::{
        api::{PeerStatus, Status, TunnelKind},
        policy::Action,
    };
    use lockne_daemon::observe::Flow;
    use ratatui::{
        Terminal,
        backend::TestBackend,
        crossterm::event::{KeyCode, KeyEvent, KeyModifiers},
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
            state.ledger.tick(&flows, &mut book, 65_000_000_000);
            state.show(&book, 0);
        }
        state
    }

    fn shown(state: &State) -> String {
        let mut terminal = Terminal::new(TestBackend::new(80, 24)).unwrap();
        terminal.draw(|frame| draw(frame, state)).unwrap();
        terminal.backend().to_string()
    }

    fn press(state: &mut State, code: KeyCode) -> Wish {
        state.press(KeyEvent::new(code, KeyModifiers::NONE))
    }

    #[test]
    fn tree_connections_and_tunnels_fit_a_small_terminal() {
        insta::assert_snapshot!(shown(&state()));
    }

    #[test]
    fn help_lists_the_keys() {
        let mut state = state();
        press(&mut state, KeyCode::Char('?'));

        insta::assert_snapshot!(shown(&state));
    }

    #[test]
    fn filter_leaves_what_has_the_text() {
        let mut state = state();
        press(&mut state, KeyCode::Char('/'));
        for letter in "cur".chars() {
            press(&mut state, KeyCode::Char(letter));
        }

        let text = shown(&state);

        assert!(text.contains("curl") && !text.contains("firefox"), "{text}");
        press(&mut state, KeyCode::Esc);
        assert!(shown(&state).contains("firefox"));
    }

    #[test]
    fn pause_holds_the_figures() {
        let mut state = state();
        press(&mut state, KeyCode::Char(' '));
        let before = shown(&state);

        let mut book = Book::of(status(), "work", 5);
        let flows = [flow(9, 0, 14, "late", 1)];
        state.ledger.tick(&flows, &mut book, 66_000_000_000);
        state.show(&book, 0);

        assert_eq!(shown(&state), before);
        assert!(before.contains("PAUSED"));
    }

    #[test]
    fn small_window_does_not_panic() {
        let mut state = state();
        state.mode = Mode::Help;
        for (width, height) in [(1, 1), (10, 3), (200, 60)] {
            let mut terminal = Terminal::new(TestBackend::new(width, height)).unwrap();
            terminal.draw(|frame| draw(frame, &state)).unwrap();
        }
    }

    #[test]
    fn group_is_not_blocked_as_a_whole() {
        let mut state = state();

        assert_eq!(press(&mut state, KeyCode::Char('b')), Wish::Nothing);
        assert!(state.answer.is_some());
    }
}
