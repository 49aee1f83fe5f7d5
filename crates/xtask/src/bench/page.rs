//! The page with the tables and the plots.

use std::{fmt::Write as _, fs, path::Path};

use anyhow::Result;
use serde_json::Value;

use super::{
    load::Load,
    measure::Measure,
    result::{Figures, Spread, Subject},
    way::Way,
};

/// Writes `bench.md` into `out`, and the plots that are on it.
pub(crate) fn write(
    out: &Path,
    result: &Value,
    ways: &Figures<Way>,
    loads: &Figures<Load>,
    cost: Option<&Value>,
) -> Result<()> {
    let mut page = String::from("# Benchmarks\n\n");
    writeln!(
        page,
        "Written by `{}` in {} s: {} rounds of ways, {} of loads, one after the other in each. {}, {} CPUs, Linux {}; load before: {}.\n",
        text(&result["command"]),
        result["seconds"],
        result["rounds"],
        result["load_rounds"],
        text(&result["cpu"]),
        result["cpus"],
        text(&result["kernel"]),
        result["load_before"],
    )?;
    for left_out in result["left_out"].as_array().into_iter().flatten() {
        let (way, why) = (text(&left_out["way"]), text(&left_out["why"]));
        writeln!(page, "Left out: {way}; {}.\n", why.replace('\n', " "))?;
    }
    section(&mut page, out, "Paths", ways, &Way::PATHS)?;
    section(&mut page, out, "Tunnels", ways, &Way::TUNNELS)?;
    section(&mut page, out, "Loads", loads, &Load::ALL)?;
    if let Some(cost) = cost {
        statistics(&mut page, cost)?;
    }
    fs::write(out.join("bench.md"), page)?;
    Ok(())
}

fn section<S: Subject>(
    page: &mut String,
    out: &Path,
    title: &str,
    figures: &Figures<S>,
    subjects: &[S],
) -> Result<()> {
    if figures.spread(subjects[0], Measure::Tcp).is_none() {
        return Ok(());
    }
    let plot = format!("bench-{}.svg", title.to_lowercase());
    super::plot::draw(&out.join(&plot), figures, subjects)?;
    writeln!(page, "## {title}\n\n![{title}]({plot})\n")?;
    let known = |&measure: &Measure| figures.knows(subjects, measure);
    for measure in Measure::ALL.into_iter().filter(known) {
        table(page, figures, measure, subjects)?;
    }
    Ok(())
}

/// What the kernel itself says of lockne's programs, as `cargo bench --bench cost` has written it.
fn statistics(page: &mut String, cost: &Value) -> Result<()> {
    writeln!(
        page,
        "## By the kernel's statistics\n\n| | median | least to most | goal |\n|---|---|---|---|"
    )?;
    for figure in cost["figures"].as_array().into_iter().flatten() {
        let number = |field: &str| figure[field].as_f64().map_or_else(String::new, short);
        let met = match figure["met"].as_bool() {
            Some(true) => "met",
            Some(false) => "**missed**",
            None => "",
        };
        writeln!(
            page,
            "| {}, {} | {} | {} to {} | {} |",
            text(&figure["name"]),
            text(&figure["unit"]),
            number("median"),
            number("min"),
            number("max"),
            figure["goal"]
                .as_f64()
                .map_or_else(String::new, |goal| format!("≤ {goal}: {met}")),
        )?;
    }
    Ok(())
}

fn table<S: Subject>(
    page: &mut String,
    figures: &Figures<S>,
    measure: Measure,
    subjects: &[S],
) -> Result<()> {
    writeln!(
        page,
        "| {}, {} | median | least to most | ratio | least to most | goal |",
        measure.name(),
        measure.unit()
    )?;
    writeln!(page, "|---|---|---|---|---|---|")?;
    for &subject in subjects {
        let Some(value) = figures.spread(subject, measure) else {
            continue;
        };
        let ratio = figures.ratio(subject, subjects[0], measure);
        let goal = subject.goal(measure).zip(ratio).map(|(goal, ratio)| {
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
            subject.title(),
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
