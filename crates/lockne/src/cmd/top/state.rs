//! What `top` shows, and what keys change.

use std::collections::BTreeMap;

use lockne_core::{
    api::TunnelStatus,
    policy::{PolicyId, Terms},
};
use ratatui::crossterm::event::{KeyCode, KeyEvent, KeyModifiers};

use super::{
    draw::Look,
    ledger::{Ledger, Live, Sums, Who},
};
use crate::flow::Book;

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
    Help,
}

/// What a key asks for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Wish {
    Nothing,
    Quit,
    Move(Vec<u32>, String),
    Block(Vec<u32>),
    Reset(Vec<u32>, Box<Terms>),
}

pub(super) struct State {
    pub(super) ledger: Ledger,
    pub(super) look: Look,
    pub(super) rows: Vec<Row>,
    pub(super) connections: Vec<Live>,
    pub(super) tunnels: Vec<TunnelStatus>,
    pub(super) has_daemon: bool,
    pub(super) selected: usize,
    pub(super) sort: Sort,
    pub(super) filter: String,
    pub(super) typed: String,
    pub(super) mode: Mode,
    pub(super) is_paused: bool,
    pub(super) answer: Option<String>,
    pub(super) lost: u64,
    groups: BTreeMap<Option<PolicyId>, (String, u64)>,
}

impl State {
    pub(super) fn new(look: Look) -> Self {
        Self {
            ledger: Ledger::default(),
            look,
            rows: Vec::new(),
            connections: Vec::new(),
            tunnels: Vec::new(),
            has_daemon: false,
            selected: 0,
            sort: Sort::Rate,
            filter: String::new(),
            typed: String::new(),
            mode: Mode::Keys,
            is_paused: false,
            answer: None,
            lost: 0,
            groups: BTreeMap::new(),
        }
    }

    /// Shows what the ledger has now, unless somebody wants to read first.
    pub(super) fn show(&mut self, book: &Book, lost: u64) {
        if self.is_paused {
            return;
        }
        self.lost = lost;
        self.has_daemon = book.status.is_some();
        self.tunnels = book
            .status
            .iter()
            .flat_map(|status| status.tunnels.clone())
            .collect();
        self.groups.clear();
        for policy in book.status.iter().flat_map(|status| &status.policies) {
            let terms = policy.terms.to_string();
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
        let wanted = self.filter.to_lowercase();
        for (who, sums) in &self.ledger.processes {
            let label = self.groups.get(&who.policy).map_or("", |(label, _)| label);
            let text = format!("{label} {} {}", who.program, who.pid).to_lowercase();
            if text.contains(&wanted) {
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
                let label = if name.is_empty() { "kernel" } else { name };
                let mut program = row(1, label.to_owned());
                program.program = Some(name.to_owned());
                let mut pids: Vec<Row> = Vec::new();
                for (pid, sums) in processes {
                    program.sums.add(sums);
                    let mut process = row(2, pid.to_string());
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
        let before = self.rows.get(self.selected).cloned();
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
        self.selected = same
            .unwrap_or(self.selected)
            .min(self.rows.len().saturating_sub(1));
        self.choose();
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
        let Some(row) = self.rows.get(self.selected) else {
            self.connections.clear();
            return;
        };
        let live = self.ledger.live.iter();
        self.connections = live.filter(|it| row.has(&it.who)).cloned().collect();
        self.connections
            .sort_by_key(|it| (u64::MAX - it.rate, it.connection.remote.clone()));
    }

    /// The processes of the selected program.
    fn pids(&self) -> Vec<u32> {
        let Some(row) = self.rows.get(self.selected).filter(|row| row.depth > 0) else {
            return Vec::new();
        };
        let processes = self.ledger.processes.keys();
        let mut pids: Vec<u32> = processes
            .filter(|who| row.has(who) && who.pid != 0)
            .map(|who| who.pid)
            .filter(|pid| std::path::Path::new(&format!("/proc/{pid}")).exists())
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
            Mode::Filter | Mode::Tunnel => return self.type_key(key.code),
            Mode::Keys => return self.command(key.code),
        }
        Wish::Nothing
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
            KeyCode::Char('q') | KeyCode::Esc => return Wish::Quit,
            KeyCode::Down | KeyCode::Char('j') => self.select(self.selected + 1),
            KeyCode::Up | KeyCode::Char('k') => self.select(self.selected.saturating_sub(1)),
            KeyCode::Home => self.select(0),
            KeyCode::End => self.select(usize::MAX),
            KeyCode::Char('?') => self.mode = Mode::Help,
            KeyCode::Char(' ') => self.is_paused = !self.is_paused,
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
            'b' => Wish::Block(pids),
            _ => {
                let policy = self.rows.get(self.selected).and_then(|row| row.policy);
                if let Some(terms) = policy.and_then(|policy| self.ledger.terms.get(&policy)) {
                    Wish::Reset(pids, Box::new(terms.clone()))
                } else {
                    self.answer = Some("only connections under a policy are cut".to_owned());
                    Wish::Nothing
                }
            }
        }
    }

    fn select(&mut self, row: usize) {
        self.selected = row.min(self.rows.len().saturating_sub(1));
        self.choose();
    }
}
