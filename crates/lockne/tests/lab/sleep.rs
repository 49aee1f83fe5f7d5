//! A machine that sleeps and wakes up, with everything on it.
//!
//! `cargo xtask kernels` boots machines that may be put to sleep, and is alone in asking for these tests.

use std::{
    fs,
    time::{Duration, Instant},
};

use rustix::time::{ClockId, clock_gettime};

use crate::{
    failover::addresses,
    fault::Hammers,
    home::{Home, wait_until},
    tests,
};

tests! {
    machine_that_wakes_up_leaks_nothing_and_its_tunnel_carries_again,
}

const ALARM: &str = "/sys/class/rtc/rtc0/wakealarm";

/// Sleeps as a closed notebook does, but for the memory without power, and says when it woke up.
fn sleep(seconds: u32) -> Instant {
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
    // Else the serial lines stay silent.
    fs::write("/sys/module/printk/parameters/console_suspend", "N").unwrap();
    fs::write("/sys/power/mem_sleep", "deep").unwrap();
    fs::write("/sys/power/state", "mem").unwrap();

    let more = slept().saturating_sub(before);
    let least = Duration::from_secs(u64::from(seconds) / 2);
    assert!(more > least, "it slept for {more:?} only");
    Instant::now()
}

/// A sleep longer than WireGuard's sessions, which are over after three minutes, and than the 15 seconds of silence
/// after which a tunnel has failed. Only one: in QEMU, the alarm that has rung is never over, and ends the next one.
fn machine_that_wakes_up_leaks_nothing_and_its_tunnel_carries_again() {
    let home = Home::new();
    let _daemon = home.daemon();
    home.tunnels_up();
    let hammers = Hammers::start(&home, "a,b", addresses(&home.lab.provider_a));

    let awake = sleep(200);

    // It fails if anything came by the second tunnel.
    hammers.wait_until_they_arrive();
    eprintln!(
        "all kinds of traffic {:?} after it woke up",
        awake.elapsed()
    );
    wait_until("the daemon has noticed", || {
        home.said().contains("the machine was asleep")
    });
    hammers.finish();
}
