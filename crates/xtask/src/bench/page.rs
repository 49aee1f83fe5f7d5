//! The page with the tables and the plots.

use std::{fmt::Write as _, fs, path::Path};

use anyhow::Result;
use serde_json::Value;

use super::{
    measure::Measure,
    result::{Figures, Spread},
    way::Way,
};

/// Writes `bench.md` into `out`.
pub(crate) fn write(out: &Path, result: &Value, figures: &Figures) -> Result<()> {
    let mut page = String::from("# Benchmarks\n\n");
    writeln!(
        page,
        "Written by `{}` in {} s: {} rounds, one way after the other in each. {}, {} CPUs, Linux {}; load before: {}.\n",
        text(&result["command"]),
        result["seconds"],
        result["rounds"],
        text(&result["cpu"]),
        result["cpus"],
        text(&result["kernel"]),
        result["load_before"],
    )?;
    for left_out in result["left_out"].as_array().into_iter().flatten() {
        let (way, why) = (text(&left_out["way"]), text(&left_out["why"]));
        writeln!(page, "Left out: {way}; {}.\n", why.replace('\n', " "))?;
    }
    for (title, ways) in [("Paths", &Way::PATHS[..]), ("Tunnels", &Way::TUNNELS[..])] {
        if figures.spread(ways[0], Measure::Tcp).is_none() {
            continue;
        }
        let plot = format!("bench-{}.svg", title.to_lowercase());
        super::plot::draw(&out.join(&plot), figures, ways)?;
        writeln!(page, "## {title}\n\n![{title}]({plot})\n")?;
        let known = |&measure: &Measure| figures.knows(ways, measure);
        for measure in Measure::ALL.into_iter().filter(known) {
            table(&mut page, figures, measure, ways)?;
        }
    }
    fs::write(out.join("bench.md"), page)?;
    Ok(())
}

fn table(page: &mut String, figures: &Figures, measure: Measure, ways: &[Way]) -> Result<()> {
    writeln!(
        page,
        "| {}, {} | median | least to most | ratio | least to most | goal |",
        measure.name(),
        measure.unit()
    )?;
    writeln!(page, "|---|---|---|---|---|---|")?;
    for &way in ways {
        let Some(value) = figures.spread(way, measure) else {
            continue;
        };
        let ratio = figures.ratio(way, ways[0], measure);
        let goal = measure.goal(way).zip(ratio).map(|(goal, ratio)| {
            let sign = if measure.is_more_better() {
                "≥"
            } else {
                "≤"
            };
            let met = if measure.meets(ratio.median, goal) {
                "met"
            } else {
                "**missed**"
            };
            format!("{sign} {goal}: {met}")
        });
        let Spread { median, min, max } = value;
        write!(
            page,
            "| {} | {} | {} to {} ",
            way.title(),
            short(median),
            short(min),
            short(max)
        )?;
        match ratio {
            Some(ratio) => write!(
                page,
                "| {:.3} | {:.3} to {:.3} ",
                ratio.median, ratio.min, ratio.max
            )?,
            None => write!(page, "| | ")?,
        }
        writeln!(page, "| {} |", goal.unwrap_or_default())?;
    }
    writeln!(page)?;
    Ok(())
}

/// Three digits that mean something.
pub(crate) fn short(value: f64) -> String {
    if value >= 100.0 {
        format!("{value:.0}")
    } else {
        format!("{value:.1}")
    }
}

fn text(value: &Value) -> &str {
    value.as_str().unwrap_or("unknown")
}
