//! What was measured, kept in a file, as `bench/README.md` describes it.

use std::{fs, path::Path, thread};

use anyhow::{Context as _, Result};
use serde_json::{Value, json};

/// One measured number.
#[derive(Clone, Debug)]
pub struct Figure {
    /// What was measured.
    pub name: String,
    /// In what, such as `ns per packet`.
    pub unit: &'static str,
    /// Which number it is of those that were measured.
    pub statistic: Statistic,
    /// The number.
    pub value: f64,
}

/// How one number stands for many.
#[derive(Clone, Copy, Debug)]
pub enum Statistic {
    /// Their sum by their count.
    Mean,
    /// The least one, which nothing disturbed.
    Least,
}

/// Writes the figures, and the machine they are of, to `path`.
///
/// # Errors
///
/// If the file cannot be written.
pub fn keep(path: &Path, command: &str, figures: &[Figure]) -> Result<()> {
    let release = fs::read_to_string("/proc/sys/kernel/osrelease")?;
    let cpus = fs::read_to_string("/proc/cpuinfo")?;
    let model = cpus.lines().find(|line| line.starts_with("model name"));
    let figures: Vec<Value> = figures.iter().map(Figure::json).collect();
    let result = json!({
        "command": command,
        "kernel": release.trim(),
        "cpu": model.and_then(|line| line.split(": ").nth(1)),
        "cpus": thread::available_parallelism()?,
        "figures": figures,
    });
    fs::write(path, format!("{result:#}\n"))
        .with_context(|| format!("cannot write {}", path.display()))
}

impl Figure {
    fn json(&self) -> Value {
        let statistic = match self.statistic {
            Statistic::Mean => "mean",
            Statistic::Least => "min",
        };
        json!({ "name": self.name, "unit": self.unit, statistic: self.value })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kept_figure_says_which_number_it_is() {
        let file = tempfile::NamedTempFile::new().expect("there is a temporary folder");
        let figure = |name: &str, statistic| Figure {
            name: name.to_owned(),
            unit: "ns",
            statistic,
            value: 4.0,
        };
        let figures = [figure("a", Statistic::Mean), figure("b", Statistic::Least)];

        keep(file.path(), "10-maps", &figures).expect("the file is ours");

        let text = fs::read(file.path()).expect("it was written");
        let kept: Value = serde_json::from_slice(&text).expect("it is JSON");
        assert_eq!(kept["command"], "10-maps");
        assert_eq!(
            kept["figures"][0],
            json!({ "name": "a", "unit": "ns", "mean": 4.0 })
        );
        assert_eq!(
            kept["figures"][1],
            json!({ "name": "b", "unit": "ns", "min": 4.0 })
        );
    }
}
