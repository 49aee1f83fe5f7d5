//! A machine that sleeps and wakes up, with everything on it.
//!
//! `cargo xtask kernels` boots machines that may be put to sleep, and is alone in asking for these tests.

use std::{
    fs,
    time::{Duration, Instant},
};

use rustix::time::{ClockId, clock_gettime};

use crate::{failover::addresses, fault::Hammers, home::Home, tests};

tests! {
    machine_that_wakes_up_leaks_nothing_and_its_tunnel_carries_again,
    sleep_that_outlasts_a_session_is_no_failure_of_the_tunnel,
}

const ALARM: &str = "/sys/class/rtc/rtc0/wakealarm";

/// Sleeps, and says when it woke up.
fn sleep(how: &str, seconds: u32) -> Instant {
    let slept = || {
        let [all, awake] = [ClockId::Boottime, ClockId::Monotonic].map(|clock| {
            let time = clock_gettime(clock);
            Duration::from_secs(time.tv_sec.unsigned_abs())
        });
        all.saturating_sub(awake)
    };
    let before = slept();
    fs::write(ALARM, "0").unwrap();
    fs::write(ALARM, format!("+{seconds}")).unwrap();
    fs::write("/sys/power/state", how).unwrap();

    let more = slept().saturating_sub(before);
    let least = Duration::from_secs(u64::from(seconds) / 2);
    assert!(more > least, "{how}: it slept for {more:?} only");
    Instant::now()
}

fn machine_that_wakes_up_leaks_nothing_and_its_tunnel_carries_again() {
    let kinds = fs::read_to_string("/sys/power/state").unwrap();
    for how in kinds
        .split_whitespace()
        .filter(|how| ["freeze", "mem"].contains(how))
    {
        let home = Home::new();
        let _daemon = home.daemon();
        home.tunnels_up();
        let hammers = Hammers::through_a(&home);

        let awake = sleep(how, 10);

        hammers.wait_until_they_arrive();
        eprintln!(
            "{how}: all kinds of traffic {:?} after it woke up",
            awake.elapsed()
        );
        hammers.finish();
    }
}

/// WireGuard's sessions are over after three minutes, and a tunnel counts as failed after 15 seconds of silence.
fn sleep_that_outlasts_a_session_is_no_failure_of_the_tunnel() {
    let home = Home::new();
    let _daemon = home.daemon();
    home.tunnels_up();
    let hammers = Hammers::start(&home, "a,b", addresses(&home.lab.provider_a));

    let awake = sleep("freeze", 200);

    // It fails if anything came by the second one.
    hammers.wait_until_they_arrive();
    eprintln!(
        "all kinds of traffic {:?} after it woke up",
        awake.elapsed()
    );
    let said = home.said();
    assert!(said.contains("slept"), "{said}");
    hammers.finish();
}
