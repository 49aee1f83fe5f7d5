//! Reports each command that starts.
//!
//! Hook: the tracepoint `sched/sched_process_exec`. Idea: a place in the kernel's code with a name, and
//! arguments that are promised to stay.

#![cfg_attr(target_arch = "bpf", no_std, no_main)]

use aya_ebpf::{
    EbpfContext as _,
    helpers::{
        bpf_get_current_comm, bpf_get_current_pid_tgid, bpf_get_current_uid_gid,
        bpf_probe_read_kernel_str_bytes,
    },
    macros::{map, tracepoint},
    maps::{PerCpuArray, RingBuf},
    programs::TracePointContext,
};
use demos_ebpf::{process_tracker::Exec, report};

demos_ebpf::program!();

#[map]
static EXECS: RingBuf = RingBuf::with_byte_size(1 << 20, 0);

#[map]
static LOST: PerCpuArray<u64> = PerCpuArray::with_max_entries(1, 0);

/// Where the record has the place of the file name.
///
/// From `/sys/kernel/tracing/events/sched/sched_process_exec/format`:
/// `field:__data_loc char[] filename; offset:8; size:4`.
const FILENAME: usize = 8;

#[tracepoint]
fn exec(ctx: TracePointContext) -> u32 {
    // 280 bytes are too many for a stack of 512, so the record is made where it will be read.
    let Some(mut entry) = EXECS.reserve::<Exec>(0) else {
        report::count(&LOST, 0, 1);
        return 0;
    };
    let exec = entry.write(Exec::default());
    exec.pid = (bpf_get_current_pid_tgid() >> 32) as u32;
    exec.uid = bpf_get_current_uid_gid() as u32;
    exec.name = bpf_get_current_comm().unwrap_or_default();
    read_filename(&ctx, &mut exec.filename);
    entry.submit(0);
    0
}

#[inline(always)]
fn read_filename(ctx: &TracePointContext, to: &mut [u8]) {
    // SAFETY: the field is there, and the helper checks every address it is given.
    unsafe {
        let Ok(place) = ctx.read_at::<u32>(FILENAME) else {
            return;
        };
        // The low half says where in the record the text is, the high half how long.
        let text = ctx.as_ptr().cast::<u8>().add((place & 0xffff) as usize);
        // On an error the text stays empty.
        let _ = bpf_probe_read_kernel_str_bytes(text, to);
    }
}
