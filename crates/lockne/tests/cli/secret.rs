//! A private key is never printed, whatever is wrong with the file that holds it.

use std::process::Output;

use crate::{
    place::{PRIVATE_KEY, Place, conf},
    tests,
};

tests! { TESTS: key_in_a_broken_file_is_not_printed }
tests! { ROOTED: key_in_use_is_not_printed }

fn assert_kept(output: &Output) {
    for stream in [&output.stdout, &output.stderr] {
        assert_not_in(&String::from_utf8_lossy(stream));
    }
}

fn assert_not_in(text: &str) {
    for part in [
        &PRIVATE_KEY[..12],
        &PRIVATE_KEY[16..28],
        &PRIVATE_KEY[30..43],
    ] {
        assert!(!text.contains(part), "{text}");
    }
}

fn key_in_a_broken_file_is_not_printed() {
    let place = Place::anywhere();
    let good = conf();
    let line = format!("PrivateKey = {PRIVATE_KEY}");
    let breaks = [
        format!("PrivateKey = {PRIVATE_KEY}x"),
        format!("PrivateKey = {}", &PRIVATE_KEY[..40]),
        format!("PrivateKey = {PRIVATE_KEY} {PRIVATE_KEY}"),
        format!("PrivateKey {PRIVATE_KEY}"),
        format!("PrivateKey: {PRIVATE_KEY}"),
        format!("PrivateKeey = {PRIVATE_KEY}"),
        format!("= {PRIVATE_KEY}"),
        format!("[{PRIVATE_KEY}]"),
        format!("{PRIVATE_KEY} = x"),
        PRIVATE_KEY.to_owned(),
        format!("{line}\nAddress = {PRIVATE_KEY}"),
        format!("{line}\nMTU = {PRIVATE_KEY}"),
        format!("{line}\nFwMark = {PRIVATE_KEY}"),
        format!("{line}\nListenPort = {PRIVATE_KEY}"),
        format!("{line}\nTable = {PRIVATE_KEY}"),
    ];
    for broken in breaks {
        place.write("work.conf", &good.replace(&line, &broken));
        for arguments in [
            &["tunnel", "up", "work.conf"][..],
            &["run", "--via", "./work.conf", "true"],
        ] {
            let output = place.run(arguments);

            assert!(!output.status.success(), "{broken}");
            assert_kept(&output);
        }
    }
}

fn key_in_use_is_not_printed() {
    let place = Place::new();
    let log = place.path().join("log");
    let mut daemon = place
        .lockne(&["daemon"])
        .env("RUST_LOG", "trace")
        .stderr(std::fs::File::create(&log).unwrap())
        .spawn()
        .unwrap();
    crate::place::wait_until("the daemon serves", || {
        place.must(&["status", "--json"]).trim() != "null"
    });
    place.conf("work.conf");
    place.write("hook.conf", &conf().replace("DNS", "PostUp = false\nDNS"));

    for arguments in [
        &["tunnel", "up", "work.conf"][..],
        &["tunnel", "up", "work.conf"],
        &["tunnel", "up", "hook.conf"],
        &["tunnel", "up", "hook.conf", "--allow-hooks"],
        &["tunnel", "up", "hook.conf", "--name", "work"],
        &["tunnel", "show", "work", "--json"],
        &["status", "--json"],
        &["down"],
    ] {
        assert_kept(&place.run(arguments));
    }
    daemon.wait().unwrap();
    let log = std::fs::read_to_string(log).unwrap();
    assert!(!log.is_empty());
    assert_not_in(&log);
}
