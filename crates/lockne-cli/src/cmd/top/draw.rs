//! How it looks.

use lockne_core::api::{TunnelState, TunnelStatus};
use ratatui::{
    Frame,
    layout::{Constraint, Layout, Rect},
    style::{Color, Modifier, Style},
    text::{Line, Span},
    widgets::{Block, Borders, Clear, Paragraph, Row as TableRow, Table},
};

use super::{
    ledger::{DIRECT, HISTORY, Inside, LOCAL, Live, REFUSED, TUNNELLED},
    state::{Mode, Row, Sort, State},
};
use crate::{flow, output};

#[cfg(test)]
mod tests;

/// Below these widths and heights, what matters least is left out.
const NO_SPARK: u16 = 70;
const NARROW: u16 = 58;
const LOW: u16 = 14;
/// Tunnels beside the tree.
const TUNNELS: usize = 4;

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

pub(super) fn draw(frame: &mut Frame<'_>, state: &mut State) {
    let area = frame.area();
    let tunnels = match state.tunnels.len() {
        0 => 0,
        _ if area.height < LOW => 1,
        count => u16::try_from(count.min(TUNNELS)).unwrap_or(1) + 1,
    };
    let [head, tree, connections, below, foot] = Layout::vertical([
        Constraint::Length(1),
        Constraint::Fill(3),
        Constraint::Fill(2),
        Constraint::Length(tunnels),
        Constraint::Length(1),
    ])
    .areas(area);
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
    let warning = |text: String| Span::styled(text, state.look.colour(Color::Yellow));
    let mut parts = vec![Span::styled("lockne top", STRONG)];
    // What a narrow terminal must not hide comes first.
    if state.switches.is_paused {
        parts.push(warning("  PAUSED".to_owned()));
    }
    if !state.has_daemon {
        parts.push(warning("  lockne is not active".to_owned()));
    }
    if state.lost > 0 {
        parts.push(warning(format!(
            "  {} lost",
            output::count(state.lost, "event")
        )));
    }
    if state.unmetered > 0 {
        parts.push(warning(format!(
            "  {} not counted",
            output::count(state.unmetered, "packet")
        )));
    }
    let split = if state.switches.splits_rates {
        "rates"
    } else {
        "totals"
    };
    parts.push(Span::raw(format!("  by {sort}  {split}")));
    if !state.filter.is_empty() {
        parts.push(Span::raw(format!("  filter `{}`", state.filter)));
    }
    Line::from(parts)
}

fn draw_tree(frame: &mut Frame<'_>, state: &mut State, area: Rect) {
    let (is_narrow, has_spark) = (area.width < NARROW, area.width >= NO_SPARK);
    let mut head = vec!["APPLICATION", "RATE", "TUNNEL", "DIRECT", "REFUSED", ""];
    let mut widths = vec![
        Constraint::Fill(1),
        Constraint::Length(11),
        Constraint::Length(10),
        Constraint::Length(10),
        Constraint::Length(10),
        Constraint::Length(u16::try_from(HISTORY).unwrap_or(12)),
    ];
    let rows = state.rows.iter().map(|row| {
        let mut cells = cells(state, row);
        leave_out(&mut cells, is_narrow, has_spark);
        TableRow::new(cells)
    });
    leave_out(&mut head, is_narrow, has_spark);
    leave_out(&mut widths, is_narrow, has_spark);
    let table = Table::new(rows.collect::<Vec<_>>(), widths)
        .header(TableRow::new(head).style(STRONG))
        .row_highlight_style(Style::new().add_modifier(Modifier::REVERSED));
    state.place = Rect {
        y: area.y + area.height.min(1),
        height: area.height.saturating_sub(1),
        ..area
    };
    let mut selected = state.table;
    frame.render_stateful_widget(table, area, &mut selected);
    state.table = selected;
}

/// Of the columns of the tree, those that there is no room for.
fn leave_out<T>(columns: &mut Vec<T>, is_narrow: bool, has_spark: bool) {
    if !has_spark {
        columns.truncate(5);
    }
    if is_narrow {
        columns.truncate(4);
        // It is the sum of the others.
        columns.remove(1);
    }
}

fn cells<'a>(state: &State, row: &'a Row) -> Vec<Span<'a>> {
    let look = state.look;
    let (split, rate) = if state.switches.splits_rates {
        (&row.sums.rate, "/s")
    } else {
        (&row.sums.total, "")
    };
    let bytes = |count: u64, unit: &str| match count {
        0 => "-".to_owned(),
        count => output::bytes(count) + unit,
    };
    let refused = match row.refused {
        Some(packets) if packets > 0 && !state.switches.splits_rates => format!("{packets} pkts"),
        _ => bytes(split[REFUSED], rate),
    };
    let label = format!("{}{}", "  ".repeat(row.depth.into()), row.label);
    let style = if row.depth == 0 { STRONG } else { Style::new() };
    vec![
        Span::styled(label, style),
        Span::raw(bytes(row.sums.rate.iter().sum(), "/s")),
        Span::styled(bytes(split[TUNNELLED], rate), look.colour(Color::Green)),
        Span::raw(bytes(split[DIRECT] + split[LOCAL], rate)),
        Span::styled(refused, look.colour(Color::Red)),
        Span::styled(spark(&row.sums.history), look.colour(Color::Cyan)),
    ]
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
    let is_narrow = area.width < NO_SPARK;
    let mut head = vec!["REMOTE", "AGE", "PROTO", "STATE", "SENT", "RECEIVED"];
    let mut widths = vec![
        Constraint::Fill(1),
        Constraint::Length(8),
        Constraint::Length(5),
        Constraint::Length(12),
        Constraint::Length(10),
        Constraint::Length(10),
    ];
    if is_narrow {
        head.truncate(2);
        widths.truncate(2);
    }
    // The other columns, and a space behind each of this and them.
    let others = if is_narrow { 9 } else { 50 };
    let room = usize::from(area.width.saturating_sub(others));
    let fit = usize::from(area.height.saturating_sub(2));
    let rows = state.connections.iter().skip(state.first).take(fit);
    let rows = rows.map(|live| {
        let mut cells = connection(state, live, room);
        cells.truncate(widths.len());
        TableRow::new(cells)
    });
    let count = state.connections.len();
    let title = output::count(count as u64, "connection");
    let title = match state.first {
        0 => format!(" {title} "),
        first => format!(" {title}, from {} on ", first + 1),
    };
    let table = Table::new(rows.collect::<Vec<_>>(), widths.clone())
        .header(TableRow::new(head).style(STRONG))
        .block(Block::new().borders(Borders::TOP).title(title));
    frame.render_widget(table, area);
}

/// The other end: its name, of which the end matters most, and its port.
fn remote(state: &State, live: &Live, room: usize) -> String {
    let it = &live.flow;
    let Some(name) = live
        .name
        .as_ref()
        .filter(|_| !state.switches.shows_addresses)
    else {
        return flow::address(it.remote, it.remote_port);
    };
    let text = match it.remote_port {
        0 => name.to_string(),
        port => format!("{name}:{port}"),
    };
    // Names have ASCII letters only.
    match text.len().checked_sub(room) {
        Some(more @ 1..) => format!("…{}", text.get(more + 1..).unwrap_or_default()),
        _ => text,
    }
}

fn connection(state: &State, live: &Live, room: usize) -> Vec<String> {
    let it = &live.flow;
    let until = live.ended.unwrap_or(state.now);
    let age = until.saturating_sub(it.started) / 1_000_000_000;
    let word = match live.ended {
        Some(_) => "closed",
        None => flow::state(it),
    };
    vec![
        remote(state, live, room),
        output::duration(age),
        flow::protocol(it.protocol),
        word.to_owned(),
        output::bytes(it.tx_bytes),
        output::bytes(it.rx_bytes),
    ]
}

fn draw_tunnels(frame: &mut Frame<'_>, state: &State, area: Rect) {
    let mut lines = Vec::new();
    if area.height > 1 {
        let more = match state.tunnels.len().saturating_sub(TUNNELS) {
            0 => "TUNNELS".to_owned(),
            more => format!("TUNNELS, and {more} more"),
        };
        lines.push(Line::styled(more, STRONG));
    }
    let tunnels = state.tunnels.iter().take(TUNNELS);
    lines.extend(tunnels.map(|(tunnel, inside)| tunnel_line(state, tunnel, inside)));
    frame.render_widget(Paragraph::new(lines), area);
}

fn tunnel_line<'a>(state: &State, tunnel: &TunnelStatus, inside: &Inside) -> Line<'a> {
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
        None => ("no handshake yet".to_owned(), Color::Yellow),
        Some(age) => (
            format!("handshake {} ago", output::duration(age)),
            if age > OLD {
                Color::Yellow
            } else {
                Color::Green
            },
        ),
    };
    let rate = match inside.rate {
        0 => "-".to_owned(),
        rate => format!("{}/s", output::bytes(rate)),
    };
    Line::from(vec![
        Span::raw(format!("{:<15} ", tunnel.name)),
        Span::styled(format!("{word:<5}"), state.look.colour(colour)),
        Span::styled(format!("{handshake:<24} "), state.look.colour(health)),
        Span::raw(format!("{rate:<12} ")),
        Span::styled(spark(&inside.history), state.look.colour(Color::Cyan)),
    ])
}

fn footer(state: &State) -> Line<'_> {
    match (state.mode, &state.answer) {
        (Mode::Filter, _) => Line::raw(format!("filter: {}_", state.typed)),
        (Mode::Tunnel, _) => Line::raw(format!("move to ({}): {}_", state.targets(), state.typed)),
        (Mode::Sure, _) => Line::styled(
            state.question().unwrap_or_default(),
            state.look.colour(Color::Yellow),
        ),
        (_, Some(answer)) => Line::styled(answer.as_str(), state.look.colour(Color::Yellow)),
        _ => Line::raw(
            "? help  q quit  s sort  v view  / filter  space pause  m move  b block  r reset",
        ),
    }
}

fn draw_help(frame: &mut Frame<'_>) {
    const HELP: &str = "\
up, down   choose a line; below are its connections
page keys  show more of its connections
s          sort by rate, total, name
v          ways of the totals, or of the rates
n          names of the other ends, or addresses
/          show what has this text; Esc shows all
space      stop the figures, and let them go on
m          move the program into a tunnel
b          block the program
r          cut its connections that are shown
q          quit

The mouse chooses lines, too, unless --no-mouse.
Bytes are those since this was started. TUNNEL went
into the tunnel, DIRECT past it or to this machine.
Names are from answers that the programs got.";
    let area = frame.area();
    let width = 55.min(area.width);
    let height = 18.min(area.height);
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
