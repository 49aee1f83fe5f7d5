//! Benchmark results, as `bench/README.md` describes them.

use std::{collections::BTreeMap, fmt::Write as _, fs, path::Path};

use anyhow::{Context as _, Result, ensure};
use serde::Deserialize;

/// All results, by the names of their files.
#[derive(Clone)]
pub(super) struct Results(BTreeMap<String, Measured>);

#[derive(Clone, Deserialize)]
struct Measured {
    #[serde(default)]
    command: Option<String>,
    kernel: String,
    cpu: String,
    cpus: u32,
    figures: Vec<Figure>,
}

#[derive(Clone, Default, Deserialize)]
struct Figure {
    name: String,
    unit: String,
    #[serde(default)]
    median: Option<f64>,
    #[serde(default)]
    mean: Option<f64>,
    #[serde(default)]
    min: Option<f64>,
    #[serde(default)]
    max: Option<f64>,
}

impl Figure {
    /// The number that stands for all that were measured.
    fn value(&self) -> Result<f64> {
        let value = self.median.or(self.mean).or(self.min);
        value.with_context(|| format!("`{}` has no number", self.name))
    }
}

/// How many characters the longest bar has.
const WIDTH: f64 = 40.0;

impl Results {
    /// Reads every `*.json` in a folder.
    pub(super) fn read(folder: &Path) -> Result<Self> {
        let mut results = BTreeMap::new();
        let listed = fs::read_dir(folder);
        for entry in listed.with_context(|| format!("cannot list {}", folder.display()))? {
            let path = entry?.path();
            if path.extension().is_none_or(|extension| extension != "json") {
                continue;
            }
            let text = fs::read_to_string(&path)
                .with_context(|| format!("cannot read {}", path.display()))?;
            let measured: Measured = serde_json::from_str(&text)
                .with_context(|| format!("{} has another shape", path.display()))?;
            let name = path.file_stem().unwrap_or_default();
            results.insert(name.to_string_lossy().into_owned(), measured);
        }
        Ok(Self(results))
    }

    pub(super) fn has(&self, name: &str) -> bool {
        self.0.contains_key(name)
    }

    /// One number and its unit.
    pub(super) fn value(&self, name: &str, figure: &str) -> Result<String> {
        let figures = &self.get(name)?.figures;
        let of = figures
            .iter()
            .find(|of| of.name == figure)
            .with_context(|| format!("the result `{name}` has no figure `{figure}`"))?;
        Ok(format!("{} {}", number(of.value()?), of.unit))
    }

    /// Where it was measured, and how to do it again.
    pub(super) fn machine(&self, name: &str) -> Result<String> {
        let measured = self.get(name)?;
        // What comes after the version is a distribution's or a machine's.
        let kernel = measured.kernel.split('-').next().unwrap_or_default();
        let command = measured
            .command
            .iter()
            .map(|command| format!("`{command}`: "));
        let command: String = command.collect();
        Ok(format!(
            "_{command}Linux {kernel}, {} CPUs, {}_",
            measured.cpus, measured.cpu
        ))
    }

    /// A bar for each figure in this unit, or for `only` those that are named.
    pub(super) fn chart(&self, name: &str, unit: &str, only: &[String]) -> Result<String> {
        let measured = &self.get(name)?.figures;
        for wanted in only {
            let is_there = measured.iter().any(|figure| figure.name == *wanted);
            ensure!(is_there, "the result `{name}` has no `{wanted}`");
        }
        let is_shown = |figure: &&Figure| {
            figure.unit == unit && (only.is_empty() || only.contains(&figure.name))
        };
        let figures: Vec<_> = measured.iter().filter(is_shown).collect();
        ensure!(
            !figures.is_empty(),
            "the result `{name}` has nothing in {unit}"
        );
        let values: Vec<_> = figures
            .iter()
            .map(|figure| figure.value())
            .collect::<Result<_>>()?;
        let longest = figures
            .iter()
            .map(|figure| figure.name.chars().count())
            .max();
        let longest = longest.unwrap_or(0);
        let most = values.iter().copied().fold(0.0, f64::max);
        let mut chart = format!("```text\n{:<longest$} {:>7} {unit}\n\n", "", "");
        for (figure, value) in figures.iter().zip(values) {
            let share = if most > 0.0 {
                value.max(0.0) / most
            } else {
                0.0
            };
            #[expect(
                clippy::cast_possible_truncation,
                clippy::cast_sign_loss,
                reason = "between 0 and the width"
            )]
            let bar = "█".repeat((share * WIDTH).round() as usize);
            let spread = match (figure.median, figure.min, figure.max) {
                (Some(_), Some(min), Some(max)) => {
                    format!(" ({} to {})", number(min), number(max))
                }
                _ => String::new(),
            };
            let value = number(value);
            let line = format!("{:<longest$} {value:>7} {bar}{spread}", figure.name);
            writeln!(chart, "{}", line.trim_end())?;
        }
        Ok(chart + "```")
    }

    fn get(&self, name: &str) -> Result<&Measured> {
        self.0
            .get(name)
            .with_context(|| format!("there is no result `{name}`"))
    }
}

/// As many digits as mean something.
fn number(value: f64) -> String {
    if value == 0.0 || value.abs() >= 100.0 || value.fract() == 0.0 {
        format!("{value:.0}")
    } else {
        format!("{value:.1}")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn chart_has_a_bar_for_each_figure_of_its_unit_in_proportion() {
        let text = r#"{
            "kernel": "6.1.0-9-amd64", "cpu": "a", "cpus": 2,
            "figures": [
                { "name": "a", "unit": "ns", "median": 50.25, "min": 50, "max": 51 },
                { "name": "memory", "unit": "MiB", "median": 9 },
                { "name": "long", "unit": "ns", "min": 100.4 }
            ]
        }"#;
        let measured = serde_json::from_str(text).expect("it has the shape");
        let results = Results(BTreeMap::from([("cost".to_owned(), measured)]));

        let chart = results.chart("cost", "ns", &[]).expect("it is there");

        let bars: Vec<_> = chart
            .lines()
            .map(|line| line.matches('█').count())
            .collect();
        assert_eq!(bars, [0, 0, 0, 20, 40, 0]);
        assert!(
            chart.contains("50.2 ████████████████████ (50 to 51)\n"),
            "{chart}"
        );
        let only = |name: &str| results.chart("cost", "ns", &[name.to_owned()]);
        assert_eq!(only("long").expect("it is there").matches('(').count(), 0);
        assert!(only("short").is_err());
        assert_eq!(results.value("cost", "a").expect("it is there"), "50.2 ns");
        assert!(results.value("cost", "b").is_err() && results.chart("cost", "s", &[]).is_err());
        assert_eq!(
            results.machine("cost").expect("it is there"),
            "_Linux 6.1.0, 2 CPUs, a_"
        );
    }
}
