//! What came out, and how it is kept.

use std::collections::BTreeMap;

use serde_json::{Value, json};

use super::measure::Measure;

/// What is measured: a way, or a way under a load.
pub(crate) trait Subject: Copy + Ord {
    /// Its key in the results.
    fn key(self) -> String;

    /// What it is, in words.
    fn title(self) -> String;

    /// What it is compared with.
    fn base(self) -> Self;

    /// Whether it is one of lockne's.
    fn is_ours(self) -> bool;

    /// How it has to stand to what it is compared with, if that was asked for.
    fn goal(self, measure: Measure) -> Option<f64>;
}

/// The figures of all rounds: of each subject and measure one per round.
pub(crate) struct Figures<S>(BTreeMap<(S, Measure), BTreeMap<u32, f64>>);

impl<S> Default for Figures<S> {
    fn default() -> Self {
        Self(BTreeMap::new())
    }
}

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

impl<S: Subject> Figures<S> {
    /// Adds what a round measured.
    pub(crate) fn add(&mut self, round: u32, subject: S, measure: Measure, value: f64) {
        self.0
            .entry((subject, measure))
            .or_default()
            .insert(round, value);
    }

    /// How many rounds there were.
    pub(crate) fn rounds(&self) -> usize {
        self.0.values().map(BTreeMap::len).max().unwrap_or(0)
    }

    /// What was measured over all rounds.
    pub(crate) fn spread(&self, subject: S, measure: Measure) -> Option<Spread> {
        let rounds = self.0.get(&(subject, measure))?;
        Spread::of(&rounds.values().copied().collect::<Vec<_>>())
    }

    /// Whether something was measured of one of these.
    pub(crate) fn knows(&self, subjects: &[S], measure: Measure) -> bool {
        subjects
            .iter()
            .any(|&subject| self.spread(subject, measure).is_some())
    }

    /// How one stands to another, round by round: what disturbs a round disturbs both.
    pub(crate) fn ratio(&self, subject: S, to: S, measure: Measure) -> Option<Spread> {
        let rounds = self.0.get(&(subject, measure))?;
        let others = self.0.get(&(to, measure))?;
        let ratios = rounds
            .iter()
            .filter_map(|(round, value)| Some(value / others.get(round)?));
        Spread::of(&ratios.collect::<Vec<_>>())
    }

    /// All of it, as `bench/README.md` describes it.
    pub(crate) fn json(&self) -> Vec<Value> {
        let figures = self.0.iter().filter_map(|(&(subject, measure), rounds)| {
            let spread = self.spread(subject, measure)?;
            let base = subject.base();
            let ratio = self.ratio(subject, base, measure);
            let goal = subject.goal(measure);
            let mut figure = json!({
                "name": format!("{}, {}", subject.key(), measure.name()),
                "way": subject.key(),
                "measure": measure.name(),
                "unit": measure.unit(),
                "median": spread.median,
                "min": spread.min,
                "max": spread.max,
                "rounds": rounds.values().collect::<Vec<_>>(),
            });
            if let Some(ratio) = ratio.filter(|_| base != subject) {
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
        figures.collect()
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
    use super::{super::way::Way, *};

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
