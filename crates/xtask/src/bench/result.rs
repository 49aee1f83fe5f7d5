//! What came out, and how it is kept.

use std::collections::BTreeMap;

use serde_json::{Value, json};

use super::{measure::Measure, way::Way};

/// The figures of all rounds: of each way and measure one per round.
#[derive(Default)]
pub(crate) struct Figures(BTreeMap<(Way, Measure), BTreeMap<u32, f64>>);

/// A middle with the least and the most.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Spread {
    pub(crate) median: f64,
    pub(crate) min: f64,
    pub(crate) max: f64,
}

impl Spread {
    fn of(values: &[f64]) -> Option<Self> {
        (!values.is_empty()).then(|| Self {
            median: median(values),
            min: values.iter().copied().fold(f64::INFINITY, f64::min),
            max: values.iter().copied().fold(f64::NEG_INFINITY, f64::max),
        })
    }
}

impl Figures {
    /// Adds what a round measured.
    pub(crate) fn add(&mut self, round: u32, way: Way, measure: Measure, value: f64) {
        self.0
            .entry((way, measure))
            .or_default()
            .insert(round, value);
    }

    /// What was measured over all rounds.
    pub(crate) fn spread(&self, way: Way, measure: Measure) -> Option<Spread> {
        let rounds = self.0.get(&(way, measure))?;
        Spread::of(&rounds.values().copied().collect::<Vec<_>>())
    }

    /// Whether something was measured on one of these ways.
    pub(crate) fn knows(&self, ways: &[Way], measure: Measure) -> bool {
        ways.iter().any(|&way| self.spread(way, measure).is_some())
    }

    /// How a way stands to another, round by round: what disturbs a round disturbs both.
    pub(crate) fn ratio(&self, way: Way, to: Way, measure: Measure) -> Option<Spread> {
        let rounds = self.0.get(&(way, measure))?;
        let others = self.0.get(&(to, measure))?;
        let ratios = rounds
            .iter()
            .filter_map(|(round, value)| Some(value / others.get(round)?));
        Spread::of(&ratios.collect::<Vec<_>>())
    }

    /// All of it, as `bench/README.md` describes it.
    pub(crate) fn json(&self) -> Value {
        let figures = self.0.iter().filter_map(|(&(way, measure), rounds)| {
            let spread = self.spread(way, measure)?;
            let base = way.base();
            let ratio = self.ratio(way, base, measure);
            let goal = measure.goal(way);
            let mut figure = json!({
                "name": format!("{}, {}", way.key(), measure.name()),
                "way": way.key(),
                "measure": measure.name(),
                "unit": measure.unit(),
                "median": spread.median,
                "min": spread.min,
                "max": spread.max,
                "rounds": rounds.values().collect::<Vec<_>>(),
            });
            if let Some(ratio) = ratio.filter(|_| base != way) {
                figure["against"] = base.key().into();
                figure["ratio"] =
                    json!({ "median": ratio.median, "min": ratio.min, "max": ratio.max });
                if let Some(goal) = goal {
                    figure["goal"] = goal.into();
                    figure["met"] = measure.meets(ratio.median, goal).into();
                }
            }
            Some(figure)
        });
        Value::Array(figures.collect())
    }
}

/// The middle one.
pub(crate) fn median(values: &[f64]) -> f64 {
    let mut values = values.to_vec();
    values.sort_by(f64::total_cmp);
    let middle = values.len() / 2;
    match values.len() {
        0 => f64::NAN,
        length if length % 2 == 1 => values[middle],
        _ => f64::midpoint(values[middle - 1], values[middle]),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ratio_is_that_of_the_same_round() {
        let mut figures = Figures::default();
        for (round, direct, via) in [(0, 100.0, 98.0), (1, 10.0, 10.0), (2, 50.0, 25.0)] {
            figures.add(round, Way::Direct, Measure::Tcp, direct);
            figures.add(round, Way::Via, Measure::Tcp, via);
        }
        // A round without the other is none.
        figures.add(3, Way::Via, Measure::Tcp, 1.0);

        let ratio = figures.ratio(Way::Via, Way::Direct, Measure::Tcp);

        let expected = Spread {
            median: 0.98,
            min: 0.5,
            max: 1.0,
        };
        assert_eq!(ratio, Some(expected));
    }

    #[test]
    fn median_is_the_middle_of_any_order() {
        assert!((median(&[3.0, 1.0, 2.0]) - 2.0).abs() < 1e-9);
        assert!((median(&[4.0, 1.0, 2.0, 3.0]) - 2.5).abs() < 1e-9);
    }
}
