//! Files of wg-quick: what is taken says the same when it is written and read again.
#![no_main]

use libfuzzer_sys::fuzz_target;
use lockne_core::wgquick::Config;

fuzz_target!(|bytes: &[u8]| {
    let config = match Config::parse(bytes) {
        Ok(config) => config,
        Err(error) => {
            let _told = error.to_string();
            return;
        }
    };
    let text = config.to_conf_with_secrets();
    let mut again = Config::parse(text.as_bytes()).expect("what we write we read");
    // Where things stood is not what they say.
    let mut config = config;
    for config in [&mut config, &mut again] {
        config.warnings.clear();
        config.hooks.iter_mut().for_each(|hook| hook.line = 0);
        config.peers.iter_mut().for_each(|peer| peer.line = 0);
        // All hooks of a phase stay in order; phases are written as they come.
    }
    assert!(
        config == again,
        "written and read again, it says something else"
    );
});
