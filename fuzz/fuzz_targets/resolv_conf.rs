//! `/etc/resolv.conf`, as `lockne run` reads it.
#![no_main]

use libfuzzer_sys::fuzz_target;

#[expect(dead_code, reason = "only what reads the text is meant")]
#[path = "../../crates/lockne-cli/src/resolv_conf.rs"]
mod resolv_conf;

fuzz_target!(|text: &str| {
    let _first = resolv_conf::first(text);
});
