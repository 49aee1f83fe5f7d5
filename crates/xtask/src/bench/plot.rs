//! The plots: each measure a panel, each way or load a bar from zero, with a line from the least to the most.

use std::path::Path;

use anyhow::{Result, anyhow};
use plotters::{
    coord::Shift,
    prelude::*,
    style::text_anchor::{HPos, Pos, VPos},
};

use super::{
    measure::Measure,
    page::short,
    result::{Figures, Subject},
};

const OURS: RGBColor = RGBColor(0x1f, 0x77, 0x4d);
const BASE: RGBColor = RGBColor(0x55, 0x55, 0x55);
const OTHER: RGBColor = RGBColor(0xb0, 0xb8, 0xc4);
const WIDTH: u32 = 860;
const LABELS: i32 = 280;
const BAR: i32 = 18;
const HEAD: i32 = 34;

/// Draws what is known of `subjects` into `file`.
pub(crate) fn draw<S: Subject>(file: &Path, figures: &Figures<S>, subjects: &[S]) -> Result<()> {
    let panels: Vec<_> = Measure::ALL
        .into_iter()
        .filter(|&measure| figures.knows(subjects, measure))
        .collect();
    let bars = i32::try_from(subjects.len())?;
    let panel = HEAD + bars * BAR;
    let height = u32::try_from(i32::try_from(panels.len())? * panel + 10)?;
    let area = SVGBackend::new(file, (WIDTH, height)).into_drawing_area();
    area.fill(&WHITE).map_err(failed)?;
    for (number, &measure) in (0..).zip(&panels) {
        let top = number * panel;
        draw_panel(&area, top, figures, measure, subjects)?;
    }
    area.present().map_err(failed)
}

fn draw_panel<S: Subject>(
    area: &DrawingArea<SVGBackend<'_>, Shift>,
    top: i32,
    figures: &Figures<S>,
    measure: Measure,
    subjects: &[S],
) -> Result<()> {
    let font = |size: i32| ("sans-serif", size).into_font();
    let left = font(12).color(&BLACK);
    let right = left.pos(Pos::new(HPos::Right, VPos::Center));
    let left = left.pos(Pos::new(HPos::Left, VPos::Center));
    let better = if measure.is_more_better() {
        "more is better"
    } else {
        "less is better"
    };
    let title = format!("{}, {} ({better})", measure.name(), measure.unit());
    area.draw_text(&title, &font(14).color(&BLACK), (8, top + 12))
        .map_err(failed)?;

    let known = subjects
        .iter()
        .filter_map(|&subject| figures.spread(subject, measure));
    let most = known
        .map(|spread| spread.max)
        .fold(f64::MIN_POSITIVE, f64::max);
    let room = f64::from(WIDTH) - f64::from(LABELS) - 90.0;
    #[expect(clippy::cast_possible_truncation, reason = "it is within the picture")]
    let x = |value: f64| LABELS + (value / most * room) as i32;
    for (row, &subject) in (0..).zip(subjects) {
        let middle = top + HEAD + row * BAR + BAR / 2;
        area.draw_text(&subject.title(), &right, (LABELS - 8, middle))
            .map_err(failed)?;
        let Some(spread) = figures.spread(subject, measure) else {
            area.draw_text("none", &left, (LABELS + 4, middle))
                .map_err(failed)?;
            continue;
        };
        let colour = match subject {
            _ if subject == subject.base() => BASE,
            _ if subject.is_ours() => OURS,
            _ => OTHER,
        };
        let half = BAR / 2 - 3;
        let bar = [(LABELS, middle - half), (x(spread.median), middle + half)];
        area.draw(&Rectangle::new(bar, colour.filled()))
            .map_err(failed)?;
        let line = vec![(x(spread.min), middle), (x(spread.max), middle)];
        area.draw(&PathElement::new(line, BLACK)).map_err(failed)?;
        let after = x(spread.max).max(x(spread.median)) + 6;
        area.draw_text(&short(spread.median), &left, (after, middle))
            .map_err(failed)?;
    }
    Ok(())
}

fn failed(error: impl std::fmt::Display) -> anyhow::Error {
    anyhow!("cannot draw: {error}")
}
