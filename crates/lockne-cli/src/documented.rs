//! Whether the docs name the fields that are printed as JSON, and no others.

use std::collections::BTreeSet;

use serde_json::Value;

/// Asserts that the first column of the table behind `heading` in `docs/PAGE` names exactly the fields of
/// `values`, which together have every field.
pub(crate) fn assert_fields(page: &str, heading: &str, values: &[Value]) {
    let path = format!("{}/../../docs/{page}", env!("CARGO_MANIFEST_DIR"));
    let text = std::fs::read_to_string(path).unwrap();
    let (_, behind) = text.split_once(heading).unwrap();
    let table = behind
        .lines()
        .skip_while(|line| !line.starts_with('|'))
        .take_while(|line| line.starts_with('|'))
        .skip(2);
    let first = table.filter_map(|row| row.split('|').nth(1));
    let mut named: BTreeSet<&str> = first
        .flat_map(|cell| cell.split('`').skip(1).step_by(2))
        .collect();
    named.remove("null");
    let fields = values
        .iter()
        .flat_map(|value| value.as_object().unwrap().keys());
    let printed: BTreeSet<&str> = fields.map(String::as_str).collect();
    assert_eq!(named, printed, "docs/{page}: {heading}");
}

#[test]
fn docs_name_every_field_of_a_connection() {
    use crate::{
        flow::{Book, Connection},
        stream::Clock,
    };

    let flow = lockne_daemon::observe::Flow::default();
    let connection = Connection::new(&flow, None, &mut Book::default(), Clock::EPOCH);
    let mut value = serde_json::to_value(&connection).unwrap();
    // With `--follow`.
    value["event"] = "begin".into();

    assert_fields("flows.md", "`lockne flows --json`", &[value]);
}
