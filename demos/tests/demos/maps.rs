//! Demo 10.

use std::time::{Duration, Instant};

use crate::{
    run::Demo,
    traffic::{alone, assert_untouched},
};

const PATH: &str = env!("CARGO_BIN_EXE_10-maps");

crate::tests! {
    each_map_counts_each_packet,
    its_time_cuts_it_short,
    interrupt_cuts_it_short,
}

fn each_map_counts_each_packet() {
    let alone = alone();

    let ended = Demo::start(&alone, PATH, &["--packets", "2500", "--sockets", "5"])
        .finish()
        .well();

    for (map, entries) in [
        ("nothing", 0),
        ("array", 1),
        ("per_cpu_array", 1),
        ("hash", 5),
        ("per_cpu_hash", 5),
        ("lru", 5),
        ("lpm", 1),
        ("ring", 0),
        ("storage", 5),
    ] {
        let row = ended
            .out
            .iter()
            .find(|line| line.starts_with(&format!("{map} ")));
        let row = row.unwrap_or_else(|| panic!("no {map}: {ended:#?}"));
        let words: Vec<_> = row.split_whitespace().rev().take(4).collect();
        assert_eq!(
            (words[3], words[2]),
            ("2500", &*entries.to_string()),
            "{row}"
        );
    }
    assert!(ended.out.last().unwrap().starts_with("reading the packet"));
    // All happened in a namespace of its own.
    assert_untouched(&alone, "lo");
}

fn its_time_cuts_it_short() {
    let start = Instant::now();

    let ended = Demo::start(
        &alone(),
        PATH,
        &["--packets", "4000000000", "--duration", "300ms"],
    )
    .finish()
    .well();

    assert!(start.elapsed() < Duration::from_mins(1));
    assert_eq!(ended.count("nothing"), 0, "{ended:#?}");
}

fn interrupt_cuts_it_short() {
    let demo = Demo::start(&alone(), PATH, &["--packets", "4000000000"]);

    drop(demo.interrupt().well());
}
