//! Processes as `/proc` shows them: who descends from whom.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
};

use crate::process::{self, Stat};

/// `roots` and all that descends from them now, parents before their children.
pub(crate) fn with_descendants(roots: &[u32]) -> Vec<u32> {
    let mut children: BTreeMap<u32, Vec<u32>> = BTreeMap::new();
    for pid in process::all().unwrap_or_default() {
        if let Some(stat) = Stat::of_task(pid) {
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
