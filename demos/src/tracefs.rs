//! The file system that numbers the kernel's tracepoints.

use std::path::Path;

use anyhow::{Context as _, Result};
use rustix::{
    mount::{MountFlags, MountPropagationFlags, mount, mount_change},
    thread::{UnshareFlags, unshare_unsafe},
};

const PLACES: [&str; 2] = ["/sys/kernel/tracing", "/sys/kernel/debug/tracing"];

/// Makes sure that tracefs can be read.
///
/// Where nobody has mounted it, it is mounted for this process alone: other processes do not see it,
/// and the kernel takes it away when this one ends.
///
/// # Errors
///
/// When the kernel has no tracefs, or does not let us mount it.
pub fn ensure() -> Result<()> {
    if PLACES
        .iter()
        .any(|place| Path::new(place).join("events").exists())
    {
        return Ok(());
    }
    let place = PLACES[0];
    tracing::info!("tracefs is not mounted; mounting it at {place}, for this process alone");
    let what = || format!("cannot mount tracefs at {place}");
    // SAFETY: a mount namespace of our own shares no memory or descriptors in another way.
    unsafe { unshare_unsafe(UnshareFlags::NEWNS) }.with_context(what)?;
    mount_change(
        "/",
        MountPropagationFlags::PRIVATE | MountPropagationFlags::REC,
    )
    .with_context(what)?;
    mount("tracefs", place, "tracefs", MountFlags::empty(), None).with_context(what)
}
