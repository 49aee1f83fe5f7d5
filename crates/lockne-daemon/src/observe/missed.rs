//! What a program on a tracepoint did not run for.
//!
//! The kernel passes over such a program while it runs already on the same processor: an interrupt came in between, or,
//! since Linux 7.0, another task. It counts how often (`recursion_misses`, shown for a program's descriptor since 5.12).

use std::{
    fs,
    os::fd::{AsFd as _, AsRawFd as _},
};

use aya::{Ebpf, programs::Program};

use super::Error;

/// How many events these programs have missed: as many are not in the records, or fewer.
pub(super) fn missed(ebpf: &Ebpf, programs: &[&str]) -> Result<u64, Error> {
    let programs = programs.iter().filter_map(|name| ebpf.program(name));
    programs.map(of).sum()
}

fn of(program: &Program) -> Result<u64, Error> {
    let Ok(fd) = program.fd() else {
        return Ok(0);
    };
    let path = format!("/proc/self/fdinfo/{}", fd.as_fd().as_raw_fd());
    match fs::read_to_string(&path) {
        Ok(text) => Ok(read(&text)),
        Err(source) => Err(Error::Read {
            path: path.into(),
            source,
        }),
    }
}

/// None in it means none missed: kernels that do not say it do not preempt either.
fn read(text: &str) -> u64 {
    let mut lines = text.lines();
    lines
        .find_map(|line| line.strip_prefix("recursion_misses:")?.trim().parse().ok())
        .unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn number_is_found_among_the_others() {
        let text = "pos:\t0\nflags:\t02000002\nprog_type:\t26\nrun_cnt:\t9\nrecursion_misses:\t266\nverified_insns:\t7\n";
        assert_eq!(read(text), 266);
        assert_eq!(read("pos:\t0\n"), 0);
    }
}
