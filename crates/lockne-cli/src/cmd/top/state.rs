//! What `top` shows, and what keys change.

use std::{
    cmp::Reverse,
    collections::{BTreeMap, BTreeSet},
};

use lockne_core::{api::TunnelStatus, policy::PolicyId};
use ratatui::{
    crossterm::event::{KeyCode, KeyEvent, KeyModifiers, MouseButton, MouseEvent, MouseEventKind},
    layout::{Position, Rect},
    widgets::TableState,
};

use super::{
    act,
    draw::Look,
    ledger::{Inside, Ledger, Live, Sums, Who},
};
use crate::{flow::Book, output};

/// Lines that a page or a turn of the wheel is.
const PAGE: usize = 10;
const NOTCH: usize = 3;

/// A line of the tree.
#[derive(Clone, Debug)]
pub(super) struct Row {
    pub(super) depth: u16,
    pub(super) label: String,
    pub(super) policy: Option<PolicyId>,
    pub(super) program: Option<String>,
    pub(super) pid: Option<u32>,
    pub(super) sums: Sums,
    /// Packets and calls that were refused to the policy.
    pub(super) refused: Option<u64>,
}

impl Row {
    fn has(&self, who: &Who) -> bool {
        self.policy == who.policy
            && self.program.as_ref().is_none_or(|it| *it == who.program)
            && self.pid.is_none_or(|pid| pid == who.pid)
    }
}

/// What rows are sorted by.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Sort {
    Rate,
    Total,
    Name,
}

/// What typed letters are for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Mode {
    Keys,
    Filter,
    Tunnel,
    /// A yes is waited for.
    Sure,
    Help,
}

/// What a key asks for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Wish {
    Nothing,
    Quit,
    Move(Vec<u32>, String),
    Block(Vec<u32>),
    /// The cookies of the sockets.
    Reset(BTreeSet<u64>),
}

/// What keys turn on and off.
#[derive(Default)]
pub(super) struct Switches {
    /// Whether it is the rates that are split into ways, or the totals.
    pub(super) splits_rates: bool,
    /// Whether other ends are shown without their names.
    pub(super) shows_addresses: bool,
    pub(super) is_paused: bool,
}

pub(super) struct State {
    pub(super) ledger: Ledger,
    pub(super) look: Look,
    pub(super) rows: Vec<Row>,
    pub(super) connections: Vec<Live>,
    /// The first of them that is shown.
    pub(super) first: usize,
    pub(super) tunnels: Vec<(TunnelStatus, Inside)>,
    pub(super) has_daemon: bool,
    /// Which row is selected, and which is the first that is shown.
    pub(super) table: TableState,
    /// Where the rows are on the screen.
    pub(super) place: Rect,
    pub(super) switches: Switches,
    /// When the figures were taken, in nanoseconds.
    pub(super) now: u64,
    pub(super) sort: Sort,
    pub(super) filter: String,
    pub(super) typed: String,
    pub(super) mode: Mode,
    pub(super) answer: Option<String>,
    pub(super) lost: u64,
    /// Packets of connections that found no place.
    pub(super) unmetered: u64,
    /// What a yes would do, and how that is asked.
    asked: Option<(Wish, String)>,
    groups: BTreeMap<Option<PolicyId>, (String, u64)>,
}

impl State {
    pub(super) fn new(look: Look) -> Self {
        Self {
            ledger: Ledger::default(),
            look,
            rows: Vec::new(),
            connections: Vec::new(),
            first: 0,
            tunnels: Vec::new(),
            has_daemon: false,
            table: TableState::new().with_selected(0),
            place: Rect::ZERO,
            switches: Switches::default(),
            now: 0,
            sort: Sort::Rate,
            filter: String::new(),
            typed: String::new(),
            mode: Mode::Keys,
            answer: None,
            lost: 0,
            unmetered: 0,
            asked: None,
            groups: BTreeMap::new(),
        }
    }

    /// Shows what the ledger has now, unless somebody wants to read first.
    pub(super) fn show(&mut self, book: &Book, lost: u64, now: u64) {
        if self.switches.is_paused {
            return;
        }
        self.lost = lost;
        self.now = now;
        self.has_daemon = book.status.is_some();
        self.tunnels = book
            .status
            .iter()
            .flat_map(|status| status.tunnels.clone())
            .map(|tunnel| {
                let inside = tunnel
                    .ifindex
                    .and_then(|index| self.ledger.tunnels.get(&index));
                let inside = inside.cloned().unwrap_or_default();
                (tunnel, inside)
            })
            .collect();
        self.groups.clear();
        for policy in book.status.iter().flat_map(|status| &status.policies) {
            let mut terms = policy.terms.to_string();
            if policy.direct_now {
                terms += " (direct now, as no tunnel of it is healthy)";
            }
            let label = match book.rule(policy.id) {
                Some(rule) => format!("{rule}: {terms}"),
                None => terms,
            };
            self.groups
                .insert(Some(policy.id), (label, policy.traffic.refused));
        }
        self.arrange();
    }

    fn arrange(&mut self) {
        type Programs<'a> = BTreeMap<&'a str, Vec<(u32, &'a Sums)>>;
        let mut tree: BTreeMap<Option<PolicyId>, Programs<'_>> = BTreeMap::new();
        for (who, sums) in &self.ledger.processes {
            if self.is_wanted(who) {
                let programs = tree.entry(who.policy).or_default();
                let processes = programs.entry(&who.program).or_default();
                processes.push((who.pid, sums));
            }
        }
        let mut groups = Vec::new();
        for (policy, programs) in tree {
            let (label, refused) = match self.groups.get(&policy) {
                Some((label, refused)) => (label.clone(), Some(*refused)),
                None => ("no policy".to_owned(), None),
            };
            let row = |depth, label: String| Row {
                depth,
                label,
                policy,
                program: None,
                pid: None,
                sums: Sums::default(),
                refused: None,
            };
            let mut group = row(0, label);
            group.refused = refused;
            let mut below = Vec::new();
            for (name, processes) in programs {
                let is_kernel = name.is_empty();
                let label = if is_kernel { "kernel" } else { name };
                let mut program = row(1, label.to_owned());
                program.program = Some(name.to_owned());
                let mut pids: Vec<Row> = Vec::new();
                for (pid, sums) in processes {
                    program.sums.add(sums);
                    let label = match pid {
                        0 if is_kernel => "-".to_owned(),
                        0 => "ended".to_owned(),
                        pid => pid.to_string(),
                    };
                    let mut process = row(2, label);
                    process.program = Some(name.to_owned());
                    process.pid = Some(pid);
                    process.sums = sums.clone();
                    pids.push(process);
                }
                group.sums.add(&program.sums);
                self.sort_rows(&mut pids, |row| row);
                below.push((program, pids));
            }
            self.sort_rows(&mut below, |(program, _)| program);
            groups.push((group, below));
        }
        self.sort_rows(&mut groups, |(group, _)| group);
        let before = self.selected().cloned();
        self.rows = groups
            .into_iter()
            .flat_map(|(group, below)| {
                let below = below
                    .into_iter()
                    .flat_map(|(program, pids)| std::iter::once(program).chain(pids));
                std::iter::once(group).chain(below)
            })
            .collect();
        // What is selected stays so where it moved to.
        let same = before.and_then(|before| {
            self.rows.iter().position(|row| {
                (row.policy, &row.program, row.pid) == (before.policy, &before.program, before.pid)
            })
        });
        let selected = same.or(self.table.selected()).unwrap_or(0);
        self.table
            .select(Some(selected.min(self.rows.len().saturating_sub(1))));
        self.choose();
    }

    /// Whether the filter takes it.
    fn is_wanted(&self, who: &Who) -> bool {
        if self.filter.is_empty() {
            return true;
        }
        let label = self.groups.get(&who.policy).map_or("", |(label, _)| label);
        let text = format!("{label} {} {}", who.program, who.pid).to_lowercase();
        text.contains(&self.filter.to_lowercase())
    }

    fn selected(&self) -> Option<&Row> {
        self.rows.get(self.table.selected()?)
    }

    fn sort_rows<T>(&self, rows: &mut [T], row: impl Fn(&T) -> &Row) {
        let sum = |by_way: &[u64; 4]| u64::MAX - by_way.iter().sum::<u64>();
        rows.sort_by_cached_key(|of| {
            let Row { sums, label, .. } = row(of);
            let figure = match self.sort {
                Sort::Rate => sum(&sums.rate),
                Sort::Total => sum(&sums.total),
                Sort::Name => 0,
            };
            (figure, label.clone())
        });
    }

    /// The connections of the selected row.
    fn choose(&mut self) {
        let live = self.ledger.live.iter();
        let mut connections: Vec<_> = match self.selected() {
            Some(row) => live
                .filter(|it| row.has(&it.who) && self.is_wanted(&it.who))
                .cloned()
                .collect(),
            None => Vec::new(),
        };
        let bytes = |it: &Live| it.flow.tx_bytes + it.flow.rx_bytes;
        connections.sort_by_key(|it| (Reverse((it.rate, bytes(it))), it.flow.cookie));
        self.connections = connections;
        self.scroll(self.first);
    }

    fn scroll(&mut self, first: usize) {
        self.first = first.min(self.connections.len().saturating_sub(1));
    }

    /// The processes of the selected program.
    fn pids(&self) -> Vec<u32> {
        let Some(row) = self.selected().filter(|row| row.depth > 0) else {
            return Vec::new();
        };
        let processes = self.ledger.processes.keys();
        let mut pids: Vec<u32> = processes
            .filter(|who| row.has(who) && self.is_wanted(who) && who.runs())
            .map(|who| who.pid)
            .collect();
        pids.dedup();
        pids
    }

    /// Does what a key means.
    pub(super) fn press(&mut self, key: KeyEvent) -> Wish {
        if key.code == KeyCode::Char('c') && key.modifiers.contains(KeyModifiers::CONTROL) {
            return Wish::Quit;
        }
        match self.mode {
            Mode::Help => self.mode = Mode::Keys,
            // A line feed, which is what pasted lines end with.
            Mode::Filter | Mode::Tunnel if key.modifiers.contains(KeyModifiers::CONTROL) => {
                if key.code == KeyCode::Char('j') {
                    return self.type_key(KeyCode::Enter);
                }
            }
            Mode::Filter | Mode::Tunnel => return self.type_key(key.code),
            Mode::Sure => return self.decide(key.code),
            Mode::Keys => return self.command(key.code),
        }
        Wish::Nothing
    }

    /// Does what a click or the wheel means.
    pub(super) fn point(&mut self, event: MouseEvent) {
        let is_tree = self.place.contains(Position::new(event.column, event.row));
        match event.kind {
            MouseEventKind::Down(MouseButton::Left) if is_tree => {
                let line = usize::from(event.row - self.place.y);
                let row = self.table.offset() + line;
                if row < self.rows.len() {
                    self.select(row);
                }
            }
            MouseEventKind::ScrollDown if is_tree => self.step(NOTCH),
            MouseEventKind::ScrollUp if is_tree => self.step_back(NOTCH),
            MouseEventKind::ScrollDown => self.scroll(self.first + NOTCH),
            MouseEventKind::ScrollUp => self.scroll(self.first.saturating_sub(NOTCH)),
            _ => {}
        }
    }

    /// What the question is that is open.
    pub(super) fn question(&self) -> Option<&str> {
        self.asked.as_ref().map(|(_, text)| text.as_str())
    }

    fn decide(&mut self, key: KeyCode) -> Wish {
        self.mode = Mode::Keys;
        let asked = self.asked.take();
        if let (KeyCode::Char('y' | 'Y'), Some((wish, _))) = (key, asked) {
            return wish;
        }
        self.answer = Some("nothing was changed".to_owned());
        Wish::Nothing
    }

    /// Asks before what cannot be taken back.
    fn ask(&mut self, what: &str, count: usize, of: &str, wish: Wish) {
        let whose = self.selected().and_then(|row| row.program.as_deref());
        let whose = whose.unwrap_or_default();
        let count = output::count(count as u64, of);
        self.asked = Some((wish, format!("{what} {whose} ({count})? y or n")));
        self.mode = Mode::Sure;
    }

    fn type_key(&mut self, key: KeyCode) -> Wish {
        match key {
            KeyCode::Char(letter) => self.typed.push(letter),
            KeyCode::Backspace => drop(self.typed.pop()),
            KeyCode::Esc => {
                self.typed.clear();
                if self.mode == Mode::Filter {
                    self.filter.clear();
                    self.arrange();
                }
                self.mode = Mode::Keys;
                return Wish::Nothing;
            }
            KeyCode::Enter => {
                let mode = std::mem::replace(&mut self.mode, Mode::Keys);
                let typed = std::mem::take(&mut self.typed);
                if mode == Mode::Tunnel && !typed.is_empty() {
                    return Wish::Move(self.pids(), typed);
                }
                return Wish::Nothing;
            }
            _ => {}
        }
        if self.mode == Mode::Filter {
            self.filter.clone_from(&self.typed);
            self.arrange();
        }
        Wish::Nothing
    }

    fn command(&mut self, key: KeyCode) -> Wish {
        self.answer = None;
        match key {
            KeyCode::Esc if !self.filter.is_empty() => {
                self.filter.clear();
                self.arrange();
            }
            KeyCode::Char('q') | KeyCode::Esc => return Wish::Quit,
            KeyCode::Down | KeyCode::Char('j') => self.step(1),
            KeyCode::Up | KeyCode::Char('k') => self.step_back(1),
            KeyCode::PageDown => self.scroll(self.first + PAGE),
            KeyCode::PageUp => self.scroll(self.first.saturating_sub(PAGE)),
            KeyCode::Char('v') => self.switches.splits_rates = !self.switches.splits_rates,
            KeyCode::Char('n') => self.switches.shows_addresses = !self.switches.shows_addresses,
            KeyCode::Home => self.select(0),
            KeyCode::End => self.select(usize::MAX),
            KeyCode::Char('?') => self.mode = Mode::Help,
            KeyCode::Char(' ') => self.switches.is_paused = !self.switches.is_paused,
            KeyCode::Char('/') => {
                self.typed.clone_from(&self.filter);
                self.mode = Mode::Filter;
            }
            KeyCode::Char('s') => {
                self.sort = match self.sort {
                    Sort::Rate => Sort::Total,
                    Sort::Total => Sort::Name,
                    Sort::Name => Sort::Rate,
                };
                self.arrange();
            }
            KeyCode::Char(letter @ ('m' | 'b' | 'r')) => return self.change(letter),
            _ => {}
        }
        Wish::Nothing
    }

    fn change(&mut self, letter: char) -> Wish {
        let pids = self.pids();
        if pids.is_empty() {
            self.answer = Some("select a program or process that runs".to_owned());
            return Wish::Nothing;
        }
        match letter {
            'm' => {
                self.typed.clear();
                self.mode = Mode::Tunnel;
                Wish::Nothing
            }
            'b' => {
                self.ask("block", pids.len(), "process", Wish::Block(pids));
                Wish::Nothing
            }
            _ => {
                let live = self.connections.iter().filter(|it| it.ended.is_none());
                let cookies: BTreeSet<u64> = live.map(|it| it.flow.cookie).collect();
                if cookies.is_empty() {
                    self.answer = Some("it has no connection to cut".to_owned());
                } else {
                    let count = cookies.len();
                    self.ask(
                        "cut what there is of",
                        count,
                        "connection",
                        Wish::Reset(cookies),
                    );
                }
                Wish::Nothing
            }
        }
    }

    /// Where a program can be moved.
    pub(super) fn targets(&self) -> String {
        let names = self.tunnels.iter().map(|(it, _)| it.name.to_string());
        let names: Vec<_> = names.chain([act::DIRECT.to_owned()]).collect();
        names.join(", ")
    }

    fn step(&mut self, rows: usize) {
        self.select(self.table.selected().unwrap_or(0) + rows);
    }

    fn step_back(&mut self, rows: usize) {
        self.select(self.table.selected().unwrap_or(0).saturating_sub(rows));
    }

    fn select(&mut self, row: usize) {
        self.table
            .select(Some(row.min(self.rows.len().saturating_sub(1))));
        self.first = 0;
        self.choose();
    }
}
