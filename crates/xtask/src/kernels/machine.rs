//! The tests on one kernel.

use std::{
    collections::BTreeMap,
    fmt, fs,
    io::{Read, Write as _},
    path::Path,
    process::Child,
    sync::{Arc, Mutex, mpsc},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result};

use super::{
    disk,
    guest::{Plan, Run},
    kernel::Unpacked,
    qemu::Qemu,
    results::OfKernel,
    watch::{Log, News, Outcome},
};
use crate::ebpf::say;

/// The suite of a kernel that is too old.
pub(crate) const REFUSAL: &str = "refusal";
/// What lockne says there.
const REFUSES: &str = "Linux has it since";

/// What it takes to run.
pub(crate) struct Machine<'a> {
    pub(crate) name: &'a str,
    pub(crate) files: &'a Unpacked,
    pub(crate) qemu: &'a Qemu,
    /// The part of its file system that is the same on every kernel.
    pub(crate) base: &'a Path,
    pub(crate) runs: &'a [Run],
    /// Tests that are left out, with the reason.
    pub(crate) lacks: &'a [(String, String)],
    /// Where its logs go.
    pub(crate) folder: &'a Path,
    /// How long it may take.
    pub(crate) limit: Duration,
}

/// What came of it.
pub(crate) struct Report {
    /// As `uname -r` says it.
    pub(crate) release: String,
    pub(crate) tests: BTreeMap<String, Outcome>,
    troubles: Vec<String>,
    endless: Vec<String>,
    /// Tests that failed before they passed.
    second_chance: Vec<String>,
    took: Duration,
}

impl Machine<'_> {
    /// Runs them; once more if the kernel crashed in the emulator. The few that failed get a second chance, since
    /// an emulator on a busy machine may stand still for longer than a test is patient; the report tells of it.
    pub(crate) fn run(&self) -> Result<Report> {
        let (mut report, has_crashed) = self.boot("", self.runs)?;
        if has_crashed {
            self.tell("the kernel crashed, which can be the emulator's fault: once more");
            report = self.boot(".again", self.runs)?.0;
        }
        let again = self.again(&report);
        if !again.is_empty() {
            self.tell("the tests that failed, once more");
            let (second, _) = self.boot(".failed", &again)?;
            report.amend(second);
        }
        Ok(report)
    }

    /// One run for each test that failed, if it is worth it.
    fn again(&self, report: &Report) -> Vec<Run> {
        const FEW: usize = 3;
        let failed: Vec<_> = report.failed().collect();
        if failed.len() > FEW || !report.troubles.is_empty() {
            return Vec::new();
        }
        let run = |test: &&String| {
            let (suite, name) = test.split_once('/')?;
            let run = self.runs.iter().find(|run| run.suite == suite)?;
            let arguments = ["--format=json", "--test-threads=1", "--exact", name];
            (suite != REFUSAL).then(|| Run {
                arguments: arguments.map(ToOwned::to_owned).to_vec(),
                finds: Some(name.to_owned()),
                ..run.clone()
            })
        };
        failed.iter().filter_map(run).collect()
    }

    /// Also whether the kernel crashed before any test failed. `which` tells its logs from those of the other boots.
    fn boot(&self, which: &str, runs: &[Run]) -> Result<(Report, bool)> {
        let initrd = self.folder.join(format!("{}.cpio", self.name));
        let mut plan = Plan {
            runs: runs.to_vec(),
            ..Plan::default()
        };
        disk::write_for(&self.files.modules, &mut plan, self.base, &initrd)?;
        let result = self.watch(which, &initrd, runs);
        // As large as everything in it.
        fs::remove_file(&initrd).with_context(|| format!("cannot remove {}", initrd.display()))?;
        result
    }

    fn watch(&self, which: &str, initrd: &Path, runs: &[Run]) -> Result<(Report, bool)> {
        let start = Instant::now();
        let log = |kind| self.folder.join(format!("{}{which}.{kind}.log", self.name));
        let (console, file) = (log("console"), log("tests"));
        let mut file =
            fs::File::create(&file).with_context(|| format!("cannot write {}", file.display()))?;
        let mut child = self.qemu.boot(self.files, initrd, &console)?;
        let out = child.stdout.take().context("no stdout")?;
        let (child, timer) = self.limit(child);

        let mut log = Log::default();
        let mut refuses = false;
        let mut copy = Copy {
            from: out,
            to: &mut file,
        };
        let mut last = start;
        log.read(&mut copy, |news| {
            let took = std::mem::replace(&mut last, Instant::now()).elapsed();
            self.show(&news, start.elapsed(), took);
            if let News::Text(text) = news {
                refuses |= text.contains(REFUSES);
            }
        });
        drop(timer);
        if let Ok(mut child) = child.lock() {
            child.wait().context("cannot wait for QEMU")?;
        }

        let took = start.elapsed();
        let mut troubles = std::mem::take(&mut log.troubles);
        let said = fs::read(&console).unwrap_or_default();
        let said = String::from_utf8_lossy(&said);
        let has_crashed = !log.is_done && said.contains("Kernel panic");
        if !log.is_done {
            let why = if has_crashed {
                "the kernel crashed"
            } else if took >= self.limit {
                "it took too long"
            } else {
                "it ended too early"
            };
            troubles.push(format!("{why}: see {}", console.display()));
        }
        if runs.iter().any(|run| run.suite == REFUSAL) {
            let outcome = if refuses {
                Outcome::Passed
            } else {
                Outcome::Failed
            };
            log.tests
                .insert(format!("{REFUSAL}/is_said_in_words"), outcome);
        }
        for run in runs {
            if let Some(start) = run.finds.as_ref().filter(|_| log.is_done) {
                let start = format!("{}/{start}", run.suite);
                if !log.tests.keys().any(|test| test.starts_with(&start)) {
                    troubles.push(format!("there is no test {start}"));
                }
            }
        }
        for (test, reason) in self.lacks {
            let lack = Outcome::Missing(reason.clone());
            log.tests.entry(test.clone()).or_insert(lack);
        }
        let has_failed = log.tests.values().any(|test| *test == Outcome::Failed);
        let report = Report {
            release: log.release.unwrap_or_default(),
            tests: log.tests,
            troubles,
            endless: log.endless,
            second_chance: Vec::new(),
            took,
        };
        Ok((report, has_crashed && !has_failed))
    }

    /// Turns it off when its time is over, unless the sender is dropped before.
    fn limit(&self, child: Child) -> (Arc<Mutex<Child>>, mpsc::Sender<()>) {
        let child = Arc::new(Mutex::new(child));
        let (sender, receiver) = mpsc::channel::<()>();
        let (theirs, limit) = (Arc::clone(&child), self.limit);
        thread::spawn(move || {
            if receiver.recv_timeout(limit) == Err(mpsc::RecvTimeoutError::Timeout)
                && let Ok(mut child) = theirs.lock()
            {
                // It may have ended by itself.
                drop(child.kill());
            }
        });
        (child, sender)
    }

    /// `at` is when it was, `took` the time since the last news.
    fn show(&self, news: &News, at: Duration, took: Duration) {
        const LONG: Duration = Duration::from_secs(10);
        match news {
            News::Suite(suite) => self.tell(&format!("{:3} s {suite}", at.as_secs())),
            News::Test(test, Outcome::Failed) => self.tell(&format!("{test} FAILED")),
            News::Test(test, Outcome::Ignored) => self.tell(&format!("{test} ignored")),
            News::Test(test, _) if took > LONG => {
                self.tell(&format!("{test} took {} s", took.as_secs()));
            }
            News::Text(_) | News::Test(..) => {}
        }
    }

    fn tell(&self, text: &str) {
        say(&format!("{:>7}  {text}", self.name));
    }
}

impl Report {
    /// What is kept of it: what did not come to its end says nothing.
    pub(crate) fn result(&self) -> OfKernel {
        let mut tests = self.tests.clone();
        tests.retain(|test, _| !self.endless.contains(test));
        OfKernel {
            release: self.release.clone(),
            tests,
        }
    }

    /// Whether nothing failed and nothing was left out without a reason.
    pub(crate) fn is_good(&self) -> bool {
        let bad = [Outcome::Failed, Outcome::Ignored];
        self.troubles.is_empty() && !self.tests.values().any(|test| bad.contains(test))
    }

    fn failed(&self) -> impl Iterator<Item = &String> {
        let failed = |(_, outcome): &(&String, &Outcome)| **outcome == Outcome::Failed;
        self.tests.iter().filter(failed).map(|(test, _)| test)
    }

    /// Takes over what came of the tests that failed.
    fn amend(&mut self, second: Self) {
        self.took += second.took;
        self.troubles.extend(second.troubles);
        let failed: Vec<_> = self.failed().cloned().collect();
        for test in failed {
            if second.tests.get(&test) == Some(&Outcome::Passed) {
                self.tests.insert(test.clone(), Outcome::Passed);
                self.second_chance.push(test);
            }
        }
    }

    fn count(&self, is_it: impl Fn(&Outcome) -> bool) -> usize {
        self.tests.values().filter(|test| is_it(test)).count()
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{}: {} passed, {} failed, {} ignored, {} not on this kernel, in {} s",
            self.release,
            self.count(|test| *test == Outcome::Passed),
            self.count(|test| *test == Outcome::Failed),
            self.count(|test| *test == Outcome::Ignored),
            self.count(|test| matches!(test, Outcome::Missing(_))),
            self.took.as_secs(),
        )?;
        for test in &self.second_chance {
            write!(f, "\n    {test} failed, and passed when it ran again")?;
        }
        for trouble in &self.troubles {
            write!(f, "\n    {trouble}")?;
        }
        Ok(())
    }
}

/// Keeps what is read.
struct Copy<'a, R> {
    from: R,
    to: &'a mut fs::File,
}

impl<R: Read> Read for Copy<'_, R> {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        let length = self.from.read(buffer)?;
        self.to.write_all(&buffer[..length])?;
        Ok(length)
    }
}
