//! Bodies of requests to the daemon: what is taken says the same when it is written and read again, and the
//! file of a tunnel is read as the daemon reads it. Whole requests go to a real daemon in
//! `crates/lockne/tests/cli/control.rs`.
#![no_main]

use libfuzzer_sys::fuzz_target;
use lockne_core::{
    api::{Attach, Detach, Refusal, Run, Status, TunnelUp},
    wgquick::Config,
};
use serde::{Serialize, de::DeserializeOwned};

fuzz_target!(|bytes: &[u8]| {
    let run = read::<Run>(bytes);
    let attach = read::<Attach>(bytes);
    read::<Detach>(bytes);
    let up = read::<TunnelUp>(bytes);
    // The client reads these.
    read::<Status>(bytes);
    read::<Refusal>(bytes);

    let terms = run.iter().map(|run| &run.terms);
    for terms in terms.chain(attach.iter().map(|attach| &attach.terms)) {
        let _named = terms.tunnels().count();
    }
    let tunnels = [
        up,
        run.and_then(|run| run.tunnel),
        attach.and_then(|it| it.tunnel),
    ];
    for tunnel in tunnels.into_iter().flatten() {
        let _either = Config::parse(tunnel.config.as_bytes());
        let _hooks = tunnel.hooks();
    }
});

fn read<T: Serialize + DeserializeOwned>(bytes: &[u8]) -> Option<T> {
    let value: T = serde_json::from_slice(bytes).ok()?;
    let written = serde_json::to_vec(&value).expect("what is read is written");
    let again: T = serde_json::from_slice(&written).expect("what is written is read");
    let again = serde_json::to_vec(&again).expect("what is read is written");
    assert_eq!(written, again);
    Some(value)
}
