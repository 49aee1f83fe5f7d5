//! Programs that start and end.

use std::{
    collections::{BTreeMap, BTreeSet},
    process::Command,
    thread,
    time::{Duration, Instant},
};

use lockne_daemon::{
    kernel::version,
    observe::{Life, Run},
};
use lockne_lab::program::{self, Killed};

const STARTS: usize = 10_000;

/// Others on this machine start programs too, so the name is one of our own.
pub(crate) fn storm_of_ten_thousand_starts_is_seen_whole_or_its_loss_is_told() {
    let folder = tempfile::tempdir().unwrap();
    let program = folder.path().join("storm");
    program::copy("/bin/true".as_ref(), &program).unwrap();
    let mut life = Life::start().unwrap();

    // One shell, which starts them as fast as it can.
    let script = format!(
        "i=0; while [ $i -lt {STARTS} ]; do '{}' $i; i=$((i+1)); done",
        program.display()
    );
    let shell = Command::new("sh").args(["-c", &script]).spawn();
    let mut shell = Killed(shell.unwrap());

    let path = program.to_str().unwrap();
    let mut running = BTreeMap::new();
    let (mut numbers, mut ended, mut lost) = (BTreeSet::new(), 0, 0);
    let deadline = Instant::now() + Duration::from_mins(2);
    let mut is_over = false;
    while ended + lost < STARTS || !is_over {
        assert!(
            Instant::now() < deadline,
            "{ended} of {STARTS} ended, {lost} lost"
        );
        thread::sleep(Duration::from_millis(10));
        // Before the records are read: those of the last are among them then.
        is_over = is_over || shell.0.try_wait().unwrap().is_some();
        life.drain(|run| {
            match run {
                Run::Starts(exec) if exec.path.starts_with(path.as_bytes()) => {
                    let text = &exec.arguments[..exec.arguments_len as usize];
                    let mut words = text.split(|byte| *byte == 0);
                    assert_eq!(words.next(), Some(path.as_bytes()));
                    let number = std::str::from_utf8(words.next().unwrap()).unwrap();
                    numbers.insert(number.parse::<usize>().unwrap());
                    assert_eq!(&exec.name[..6], b"storm\0");
                    running.insert(exec.pid, exec.time);
                }
                Run::Ends(exit) => {
                    if let Some(started) = running.remove(&exit.pid) {
                        assert_eq!((exit.status, exit.started), (0, started));
                        assert!(exit.time > started);
                        ended += 1;
                    }
                }
                Run::Starts(_) => {}
            }
            true
        });
        lost = usize::try_from(life.counts().unwrap().lost).unwrap();
    }
    assert!(shell.0.wait().unwrap().success());
    assert!(
        numbers.len() + lost >= STARTS,
        "{} starts, {lost} lost",
        numbers.len()
    );
    assert!(ended <= STARTS && numbers.len() <= STARTS);
    if !may_lose() {
        assert_eq!(lost, 0);
    }
}

/// Since Linux 7.0, and what it was brought back to, programs of the kernel are preempted, and passed over meanwhile.
fn may_lose() -> bool {
    version().unwrap() >= (6, 19)
}
