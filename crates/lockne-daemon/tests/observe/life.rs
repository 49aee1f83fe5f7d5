//! Programs that start and end.

use std::{
    collections::BTreeMap,
    process::Command,
    thread,
    time::{Duration, Instant},
};

use lockne_daemon::observe::{Life, Run};
use lockne_lab::program;

const STARTS: usize = 10_000;

/// Others on this machine start programs too, so the name is one of our own.
pub(crate) fn storm_of_ten_thousand_starts_is_seen_whole() {
    let folder = tempfile::tempdir().unwrap();
    let program = folder.path().join("storm");
    program::copy("/bin/true".as_ref(), &program).unwrap();
    let mut life = Life::start().unwrap();

    // One shell, which starts them as fast as it can.
    let script = format!(
        "i=0; while [ $i -lt {STARTS} ]; do '{}' $i; i=$((i+1)); done",
        program.display()
    );
    let mut shell = Command::new("sh").args(["-c", &script]).spawn().unwrap();

    let path = program.to_str().unwrap();
    let mut running = BTreeMap::new();
    let (mut arguments, mut ended) = (vec![false; STARTS], 0);
    let deadline = Instant::now() + Duration::from_mins(2);
    while ended < STARTS {
        assert!(Instant::now() < deadline, "{ended} of {STARTS} ended");
        thread::sleep(Duration::from_millis(10));
        life.drain(|run| {
            match run {
                Run::Starts(exec) if exec.path.starts_with(path.as_bytes()) => {
                    let text = &exec.arguments[..exec.arguments_len as usize];
                    let mut words = text.split(|byte| *byte == 0);
                    assert_eq!(words.next(), Some(path.as_bytes()));
                    let number = std::str::from_utf8(words.next().unwrap()).unwrap();
                    arguments[number.parse::<usize>().unwrap()] = true;
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
    }
    assert!(shell.wait().unwrap().success());
    assert!(arguments.iter().all(|seen| *seen));
    assert_eq!(life.counts().unwrap().lost, 0);
}
