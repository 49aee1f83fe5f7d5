//! What the loader said. It freezes `.rodata`, so the verifier takes every value for a constant.

use core::ptr::read_volatile;

use lockne_abi::observe::Config;

#[unsafe(no_mangle)]
static OBSERVE: Config = Config {
    capture: 0,
    needs_owner: 0,
    task_tgid: 0,
    task_comm: 0,
    task_leader: 0,
    task_parent: 0,
    task_signal: 0,
    task_mm: 0,
    task_exit_code: 0,
    signal_live: 0,
    mm_arg_start: 0,
    mm_arg_end: 0,
    program_filename: 0,
};

macro_rules! fields {
    ($($name:ident,)*) => {$(
        #[inline(always)]
        pub(crate) fn $name() -> u32 {
            // SAFETY: a valid, aligned static. Volatile, because the loader changes what the compiler
            // would fold.
            unsafe { read_volatile(&raw const OBSERVE.$name) }
        }
    )*};
}

fields! {
    capture,
    needs_owner,
    task_tgid,
    task_comm,
    task_leader,
    task_parent,
    task_signal,
    task_mm,
    task_exit_code,
    signal_live,
    mm_arg_start,
    mm_arg_end,
    program_filename,
}
