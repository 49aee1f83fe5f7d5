//! What was measured against what was wanted.

use anyhow::{Context as _, Result};
use serde_json::{Value, json};

/// One measured quantity.
pub(crate) struct Figure {
    pub(crate) name: &'static str,
    pub(crate) unit: &'static str,
    /// The most that it should be.
    pub(crate) goal: Option<f64>,
    pub(crate) values: Vec<f64>,
}

impl Figure {
    /// Nothing measured yet.
    pub(crate) fn new(name: &'static str, unit: &'static str, goal: Option<f64>) -> Self {
        Self {
            name,
            unit,
            goal,
            values: Vec::new(),
        }
    }

    /// Adds what a round has measured. Who runs first also pays for cold caches, so that one figure is of a
    /// round of each kind.
    pub(crate) fn add(&mut self, round: usize, value: f64) {
        match self.values.last_mut() {
            Some(first) if round % 2 == 1 => *first = f64::midpoint(*first, value),
            _ => self.values.push(value),
        }
    }

    fn spread(&self) -> Result<[f64; 3]> {
        let least = self.values.iter().copied().reduce(f64::min);
        let most = self.values.iter().copied().reduce(f64::max);
        let (least, most) = least
            .zip(most)
            .with_context(|| format!("nothing measured for `{}`", self.name))?;
        Ok([least, median(self.values.clone()), most])
    }

    fn verdict(&self, median: f64) -> &'static str {
        match self.goal {
            Some(goal) if median <= goal => "met",
            Some(_) => "MISSED",
            None => "",
        }
    }

    /// A line of the table.
    pub(crate) fn line(&self) -> Result<String> {
        let [least, median, most] = self.spread()?;
        let goal = self.goal.map_or(String::new(), |goal| goal.to_string());
        Ok(format!(
            "{:<42} {:>9.2} {:>9.2} {:>9.2} {:>4} {:>6} {:<3} {}",
            self.name,
            median,
            least,
            most,
            self.values.len(),
            goal,
            self.unit,
            self.verdict(median)
        ))
    }

    pub(crate) fn json(&self) -> Result<Value> {
        let [least, median, most] = self.spread()?;
        Ok(json!({
            "name": self.name,
            "unit": self.unit,
            "median": median,
            "min": least,
            "max": most,
            "rounds": self.values.len(),
            "goal": self.goal,
            "met": self.goal.map(|goal| median <= goal),
        }))
    }
}

/// The heads of the columns of [`Figure::line`].
pub(crate) fn heading() -> String {
    format!(
        "{:<42} {:>9} {:>9} {:>9} {:>4} {:>6}",
        "", "median", "min", "max", "n", "goal"
    )
}

/// The middle one of some; not of none.
pub(crate) fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    f64::midpoint(values[(values.len() - 1) / 2], values[values.len() / 2])
}
