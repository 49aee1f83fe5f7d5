//! Processes as `/proc` shows them: who descends from whom.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
};

use crate::process;

/// What one line of `/proc/PID/stat` says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Stat {
    pub(crate) name: String,
    pub(crate) parent: u32,
    pub(crate) threads: u32,
    /// When it was started, in ticks since boot.
    pub(crate) started: u64,
    /// Whether it is a part of the kernel.
    pub(crate) is_kernel: bool,
    /// Whether it has ended, and waits for its parent to notice.
    pub(crate) has_ended: bool,
}

impl Stat {
    /// Reads that of a living process; `None` if there is none, or `pid` is the number of a thread.
    pub(crate) fn read(pid: u32) -> Option<Self> {
        // Threads can be opened below `/proc`, but are not listed there.
        let status = fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
        let leader = status.lines().find_map(|line| line.strip_prefix("Tgid:"))?;
        if leader.trim() != pid.to_string() {
            return None;
        }
        Self::parse(&fs::read_to_string(format!("/proc/{pid}/stat")).ok()?)
    }

    fn parse(line: &str) -> Option<Self> {
        /// `include/linux/sched.h`.
        const PF_KTHREAD: u64 = 0x0020_0000;
        // The name comes second, in brackets, and can have brackets and blanks in it.
        let (head, rest) = line.rsplit_once(')')?;
        let (_, name) = head.split_once('(')?;
        let words: Vec<&str> = rest.split_whitespace().collect();
        let flags: u64 = words.get(6)?.parse().ok()?;
        let threads = words.get(17)?.parse().ok()?;
        Some(Self {
            name: name.to_owned(),
            parent: words.get(1)?.parse().ok()?,
            threads,
            started: words.get(19)?.parse().ok()?,
            is_kernel: flags & PF_KTHREAD != 0,
            // A leader may end before its threads; then it is a zombie that still has some.
            has_ended: matches!(words.first(), Some(&("Z" | "X"))) && threads <= 1,
        })
    }
}

/// `roots` and all that descends from them now, parents before their children.
pub(crate) fn with_descendants(roots: &[u32]) -> Vec<u32> {
    let mut children: BTreeMap<u32, Vec<u32>> = BTreeMap::new();
    for pid in process::all().unwrap_or_default() {
        let line = fs::read_to_string(format!("/proc/{pid}/stat"));
        if let Some(stat) = line.ok().as_deref().and_then(Stat::parse) {
            children.entry(stat.parent).or_default().push(pid);
        }
    }
    closure(roots, &children)
}

fn closure(roots: &[u32], children: &BTreeMap<u32, Vec<u32>>) -> Vec<u32> {
    let mut found: Vec<u32> = Vec::new();
    let mut seen = BTreeSet::new();
    found.extend(roots.iter().filter(|root| seen.insert(**root)));
    let mut next = 0;
    while let Some(parent) = found.get(next) {
        let born = children.get(parent).into_iter().flatten();
        let born: Vec<u32> = born.filter(|pid| seen.insert(**pid)).copied().collect();
        found.extend(born);
        next += 1;
    }
    found
}

/// Whether a process is called `name`, by its executable or as the kernel shows it.
pub(crate) fn is_called(pid: u32, name: &str) -> bool {
    /// `TASK_COMM_LEN` of the kernel, without the byte that ends it.
    const LONGEST: usize = 15;
    let shown = fs::read_to_string(format!("/proc/{pid}/comm"));
    let shown = shown.is_ok_and(|shown| {
        let shown = shown.trim_end_matches('\n');
        shown == name
            || shown.len() == LONGEST && name.as_bytes().get(..LONGEST) == Some(shown.as_bytes())
    });
    shown
        || fs::read_link(format!("/proc/{pid}/exe")).is_ok_and(|path| {
            // As the kernel says it of a file that an update has replaced.
            let file = path.file_name().unwrap_or_default().to_string_lossy();
            file.strip_suffix(" (deleted)").unwrap_or(&file) == name
        })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nasty_names_are_read_whole() {
        let line = "7 (a) R (1) S 3 7 7 0 -1 4194304 1 2 3 4 5 6 7 8 20 0 12 0 99 1";

        let stat = Stat::parse(line).unwrap();

        assert_eq!(
            (stat.name.as_str(), stat.parent, stat.threads),
            ("a) R (1", 3, 12)
        );
        assert!(!stat.is_kernel && !stat.has_ended);
    }

    #[test]
    fn leader_that_ended_before_its_threads_lives() {
        let line =
            |threads| format!("7 (a) Z 3 7 7 0 -1 4194304 1 2 3 4 5 6 7 8 20 0 {threads} 0 99 1");

        assert!(Stat::parse(&line(1)).unwrap().has_ended);
        assert!(!Stat::parse(&line(2)).unwrap().has_ended);
    }

    #[test]
    fn thread_is_no_process() {
        let thread = std::thread::spawn(|| {
            let me = rustix::thread::gettid().as_raw_nonzero().get();
            Stat::read(u32::try_from(me).unwrap())
        });

        assert!(Stat::read(std::process::id()).is_some());
        assert_eq!(thread.join().unwrap(), None);
    }

    #[test]
    fn parents_come_before_their_children_and_nobody_comes_twice() {
        let children = BTreeMap::from([(1, vec![2, 9]), (2, vec![5]), (5, vec![3])]);

        assert_eq!(closure(&[2, 3], &children), [2, 3, 5]);
        assert_eq!(closure(&[1], &children), [1, 2, 9, 5, 3]);
    }

    #[test]
    fn process_is_known_by_its_executable_too() {
        let exe = std::env::current_exe().unwrap();
        let me = std::process::id();

        assert!(is_called(me, exe.file_name().unwrap().to_str().unwrap()));
        assert!(!is_called(me, "no-such-name"));
    }
}
