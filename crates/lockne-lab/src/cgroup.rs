//! Cgroups of tests.

use std::{fs, path::Path, thread, time::Duration};

/// Removes a cgroup when the last that was in it has ended: what ended a moment ago may be in it still. After five
/// seconds it stays where it is.
pub fn remove(cgroup: &Path) {
    for _ in 0..500 {
        if fs::remove_dir(cgroup).is_ok() {
            return;
        }
        thread::sleep(Duration::from_millis(10));
    }
}
