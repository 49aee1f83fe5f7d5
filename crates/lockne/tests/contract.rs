//! The leak contract names tests; each of them must be there.

use std::{collections::BTreeSet, fs, io, path::Path};

#[test]
fn every_test_that_the_contract_names_is_there() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
    let contract = fs::read_to_string(root.join("docs/leaks.md")).unwrap();
    let places = [
        ("kernel/", "crates/lockne-daemon/tests/kernel"),
        ("interpreter/", "crates/lockne-daemon/tests/interpreter"),
        ("plan/", "crates/lockne-core/src/plan"),
        ("cli/", "crates/lockne/tests/cli"),
        ("", "crates/lockne/tests/lab"),
    ];

    let named: BTreeSet<&str> = contract
        .split('`')
        .skip(1)
        .step_by(2)
        .filter(|word| word.contains("::") || word.starts_with("plan/"))
        .collect();
    assert!(named.len() > 30, "the contract names only {named:?}");
    let is_missing = |name: &str| {
        let mut places = places.iter();
        let (prefix, place) = places.find(|(prefix, _)| name.starts_with(prefix)).unwrap();
        let test = &name[prefix.len()..];
        let (module, function) = test.split_once("::").unwrap_or(("*", test));
        let entries = fs::read_dir(root.join(place)).unwrap();
        let paths = entries.map(|entry| entry.unwrap().path());
        let mut meant = paths
            .filter(|path| module == "*" || path.file_stem().is_some_and(|stem| stem == module));
        let head = format!("fn {function}(");
        !meant.any(|path| has(&path, &head).unwrap())
    };
    let missing: Vec<&str> = named.into_iter().filter(|name| is_missing(name)).collect();
    assert!(missing.is_empty(), "there are no tests {missing:?}");
}

/// Whether a file, or one of a directory, has the text.
fn has(path: &Path, text: &str) -> io::Result<bool> {
    if !path.is_dir() {
        return Ok(fs::read_to_string(path)?.contains(text));
    }
    for entry in fs::read_dir(path)? {
        if has(&entry?.path(), text)? {
            return Ok(true);
        }
    }
    Ok(false)
}
