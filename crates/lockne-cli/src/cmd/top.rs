//! `lockne top`: who uses the network, which way, and how much.

mod act;
mod draw;
mod ledger;
mod screen;
mod state;

use std::{
    process::ExitCode,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use clap::Args;
use lockne_daemon::observe::{Flows, Turn};
use ratatui::crossterm::event::{self, Event, KeyEventKind};
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};

use self::{
    draw::Look,
    screen::Screen,
    state::{State, Wish},
};
use crate::{
    cli::Place,
    cmd::monitor::failed,
    failure::{Failure, Result},
    flow::Book,
};

/// How often the figures change.
const ROUND: Duration = Duration::from_secs(1);
/// How long a signal may wait.
const SOON: Duration = Duration::from_millis(200);

#[derive(Args, Debug)]
#[command(after_help = "Press ? in it for its keys.")]
pub(crate) struct Top {
    /// Leave the mouse to the terminal, which then selects text
    #[arg(long)]
    no_mouse: bool,
}

pub(crate) fn top(place: &Place, args: &Top) -> Result<ExitCode> {
    let stop = Arc::new(AtomicBool::new(false));
    for signal in [SIGINT, SIGTERM, SIGHUP] {
        signal_hook::flag::register(signal, Arc::clone(&stop))
            .map_err(|error| Failure::new("cannot wait for signals").because(&error))?;
    }
    let mut book = Book::read(place);
    let mut flows = Flows::start().map_err(failed)?;
    let no_terminal = |error: std::io::Error| {
        Failure::new("cannot use the terminal")
            .because(&error)
            .hint("`lockne flows --follow` prints lines, wherever they go")
    };
    let mut screen = Screen::take(!args.no_mouse).map_err(no_terminal)?;
    let mut state = State::new(Look::of_environment());
    let mut next = Instant::now();
    loop {
        if Instant::now() >= next {
            next = Instant::now() + ROUND;
            book.refresh(place);
            let ledger = &mut state.ledger;
            flows
                .drain(|turn| match turn {
                    Turn::Begins(flow) => book.learn(flow.mark, place),
                    Turn::Ends { flow, time } => ledger.end(flow, time, &mut book),
                    Turn::Answers { answer, packet } => book.hear(answer, packet),
                })
                .map_err(failed)?;
            let live: Vec<_> = flows.live().collect();
            let counts = flows.counts().map_err(failed)?;
            state.ledger.tick(&live, &mut book);
            state.unmetered = counts.unmetered;
            state.show(&book, counts.lost, Flows::now());
        }
        screen
            .draw(|frame| draw::draw(frame, &mut state))
            .map_err(no_terminal)?;
        // Draw again only when something changed.
        loop {
            if stop.load(Ordering::Relaxed) {
                return Ok(ExitCode::SUCCESS);
            }
            let left = next.saturating_duration_since(Instant::now());
            if left.is_zero() {
                break;
            }
            if !event::poll(left.min(SOON)).map_err(no_terminal)? {
                continue;
            }
            match event::read().map_err(no_terminal)? {
                Event::Key(key) if key.kind == KeyEventKind::Press => match state.press(key) {
                    Wish::Nothing => {}
                    Wish::Quit => return Ok(ExitCode::SUCCESS),
                    wish => state.answer = Some(act::act(place, wish)),
                },
                Event::Mouse(event) => state.point(event),
                // Also back to what it was: the terminal has cut what did not fit meanwhile.
                Event::Resize(..) => screen.clear().map_err(no_terminal)?,
                _ => continue,
            }
            break;
        }
    }
}
