//! The object of the watching programs.

use aya::{Btf, Ebpf, EbpfLoader};
use lockne_abi::{
    flow::{self, SLOTS, WAYS},
    observe::{Config, name},
};

use crate::kernel::{Error, btf};

/// Puts the maps into the kernel, with so many bytes of room for records.
pub(super) fn load(capture: u32, needs_owner: bool, room: u32) -> Result<Ebpf, Error> {
    load_for(capture, needs_owner, room, WAYS)
}

/// The same, with room for flows.
pub(super) fn load_metering(room: u32) -> Result<Ebpf, Error> {
    load_for(0, false, room, SLOTS)
}

fn load_for(capture: u32, needs_owner: bool, room: u32, flows: u32) -> Result<Ebpf, Error> {
    let types = btf::Btf::of_kernel()?;
    let config = Config {
        capture,
        needs_owner: needs_owner.into(),
        task_tgid: types.offset("task_struct", "tgid")?,
        task_comm: types.offset("task_struct", "comm")?,
        task_leader: types.offset("task_struct", "group_leader")?,
        task_parent: types.offset("task_struct", "real_parent")?,
        task_signal: types.offset("task_struct", "signal")?,
        task_mm: types.offset("task_struct", "mm")?,
        task_exit_code: types.offset("task_struct", "exit_code")?,
        signal_live: types.offset("signal_struct", "live")?,
        mm_arg_start: types.offset("mm_struct", "arg_start")?,
        mm_arg_end: types.offset("mm_struct", "arg_end")?,
        program_filename: types.offset("linux_binprm", "filename")?,
    };
    let types = kernel_types()?;
    let object = aya::include_bytes_aligned!(concat!(env!("OUT_DIR"), "/observe.bpf.o"));
    EbpfLoader::new()
        .btf(Some(&types))
        .override_global(name::CONFIG, &config, true)
        .map_max_entries(name::RECORDS, room)
        .map_max_entries(flow::name::FLOWS, flows)
        .load(object)
        .map_err(Error::load)
}

/// The kernel's types as Aya has them.
pub(super) fn kernel_types() -> Result<Btf, Error> {
    Btf::from_sys_fs().map_err(|error| Error::load(error.into()))
}
