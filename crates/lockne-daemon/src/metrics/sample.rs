//! Values at one moment, and how they are written.

use std::{collections::BTreeSet, fmt, fmt::Write as _, sync::Arc};

use prometheus_client::{
    collector::Collector,
    encoding::{DescriptorEncoder, MetricEncoder, NoLabelSet, text},
    metrics::MetricType,
    registry::Registry,
};

use super::family::{self, Family, Kind};

/// All values at one moment.
#[derive(Debug, Default)]
pub(crate) struct Samples(Vec<Sample>);

#[derive(Debug)]
struct Sample {
    family: &'static Family,
    labels: Vec<String>,
    value: Value,
}

/// A number, exact where it counts something.
#[derive(Clone, Copy, Debug)]
pub(super) enum Value {
    Whole(u64),
    Real(f64),
}

impl From<u64> for Value {
    fn from(value: u64) -> Self {
        Self::Whole(value)
    }
}

impl From<bool> for Value {
    fn from(value: bool) -> Self {
        Self::Whole(value.into())
    }
}

impl From<f64> for Value {
    fn from(value: f64) -> Self {
        Self::Real(value)
    }
}

impl Samples {
    /// Adds a value of a metric, with its labels in their order.
    pub(super) fn add(
        &mut self,
        family: &'static Family,
        labels: &[&str],
        value: impl Into<Value>,
    ) {
        debug_assert_eq!(labels.len(), family.labels.len(), "{}", family.name);
        self.0.push(Sample {
            family,
            labels: labels.iter().map(|it| (*it).to_owned()).collect(),
            value: value.into(),
        });
    }

    /// As [OpenMetrics](https://prometheus.io/docs/specs/om/open_metrics_spec) has it.
    pub(crate) fn open_metrics(self: Arc<Self>) -> String {
        let mut registry = Registry::default();
        registry.register_collector(Box::new(Exposed(self)));
        let mut page = String::new();
        text::encode(&mut page, &registry).expect("a text takes everything");
        page
    }
}

/// The same page as Prometheus wrote it before `OpenMetrics`, for whoever does not ask for that.
pub(crate) fn plain(page: &str) -> String {
    let counters: BTreeSet<&str> = family::ALL
        .iter()
        .filter_map(|family| family.name.strip_suffix("_total"))
        .collect();
    let mut plain = String::with_capacity(page.len());
    for line in page.lines().filter(|line| *line != "# EOF") {
        let mut words = line.splitn(4, ' ');
        let told = match (words.next(), words.next(), words.next(), words.next()) {
            // What is a counter's name there is only the beginning of it here.
            (Some("#"), Some(what), Some(name), Some(rest)) if counters.contains(name) => {
                writeln!(plain, "# {what} {name}_total {rest}")
            }
            _ => writeln!(plain, "{line}"),
        };
        told.expect("a text takes everything");
    }
    plain
}

#[derive(Debug)]
struct Exposed(Arc<Samples>);

impl Collector for Exposed {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        for family in family::ALL {
            let own = |sample: &&Sample| std::ptr::eq(sample.family, *family);
            let mut samples = self.0.0.iter().filter(own).peekable();
            if samples.peek().is_none() {
                continue;
            }
            let (name, kind) = match family.kind {
                Kind::Counter => (
                    family.name.strip_suffix("_total").unwrap_or(family.name),
                    MetricType::Counter,
                ),
                Kind::Gauge => (family.name, MetricType::Gauge),
            };
            let mut metric = encoder.encode_descriptor(name, family.help, None, kind)?;
            for sample in samples {
                let labels = family.labels.iter().copied();
                let labels: Vec<(&str, &str)> = labels
                    .zip(sample.labels.iter().map(String::as_str))
                    .collect();
                if labels.is_empty() {
                    write(&mut metric, family.kind, sample.value)?;
                } else {
                    write(
                        &mut metric.encode_family(&labels)?,
                        family.kind,
                        sample.value,
                    )?;
                }
            }
        }
        Ok(())
    }
}

fn write(metric: &mut MetricEncoder<'_>, kind: Kind, value: Value) -> fmt::Result {
    match (kind, value) {
        (Kind::Counter, Value::Whole(it)) => metric.encode_counter::<NoLabelSet, _, u64>(&it, None),
        (Kind::Counter, Value::Real(it)) => metric.encode_counter::<NoLabelSet, _, u64>(&it, None),
        (Kind::Gauge, Value::Whole(it)) => metric.encode_gauge(&it),
        (Kind::Gauge, Value::Real(it)) => metric.encode_gauge(&it),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn page() -> String {
        let mut samples = Samples::default();
        samples.add(&family::REFUSED, &["1", "a\"b\\c\nd", "work"], 12_345_u64);
        samples.add(&family::STRICT, &[], true);
        samples.add(&family::CPU_SECONDS, &[], 0.25);
        Arc::new(samples).open_metrics()
    }

    #[test]
    fn values_are_written_as_open_metrics_has_them() {
        let expected = r#"# HELP lockne_policy_refused Packets and calls that were refused, so that nothing leaked
# TYPE lockne_policy_refused counter
lockne_policy_refused_total{policy="1",rule="a\"b\\c\nd",via="work"} 12345
# HELP lockne_guard_strict Whether each packet is asked for its socket, as a policed program was seen that can mark packets
# TYPE lockne_guard_strict gauge
lockne_guard_strict 1
# HELP process_cpu_seconds Processor time that the daemon used
# TYPE process_cpu_seconds counter
process_cpu_seconds_total 0.25
# EOF
"#;
        assert_eq!(page(), expected);
    }

    #[test]
    fn older_form_has_counters_by_their_whole_name_and_no_end() {
        let plain = plain(&page());

        assert!(
            plain.contains("# TYPE lockne_policy_refused_total counter\n"),
            "{plain}"
        );
        assert!(
            plain.contains("# HELP process_cpu_seconds_total Processor"),
            "{plain}"
        );
        assert!(plain.contains("\nlockne_guard_strict 1\n"), "{plain}");
        assert!(!plain.contains("EOF"), "{plain}");
    }
}
