//! What the daemon may do, once it runs: no more than it needs, so that a fault in it is not a fault in everything.

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use rustix::thread::{
    CapabilitySet, capabilities, capability_is_in_bounding_set,
    remove_capability_from_bounding_set, set_capabilities,
};

/// What it needs: the same as `CapabilityBoundingSet=` of the unit, and `CAP_SYS_ADMIN` to mount the file system of
/// its pins, and to unmount it at the end. Under systemd somebody else does that.
const NEEDED: CapabilitySet = CapabilitySet::BPF
    .union(CapabilitySet::NET_ADMIN)
    .union(CapabilitySet::NET_BIND_SERVICE)
    // Pings ask whether anybody is behind a tunnel; sockets for them are not allowed to everybody everywhere.
    .union(CapabilitySet::NET_RAW)
    .union(CapabilitySet::PERFMON)
    .union(CapabilitySet::SYS_PTRACE)
    .union(CapabilitySet::DAC_READ_SEARCH)
    .union(CapabilitySet::SYS_ADMIN);

/// Takes as many open files as it is allowed: each executable that rules name is one.
pub(crate) fn raise_open_files() {
    let limit = getrlimit(Resource::Nofile);
    let raised = Rlimit {
        current: limit.maximum,
        ..limit
    };
    if let Err(error) = setrlimit(Resource::Nofile, raised) {
        tracing::debug!(%error, "cannot raise the limit of open files");
    }
}

/// Gives up everything else for good, for this thread and all it will start.
///
/// Who may not give up something may not use it either, or has less than root already: that is no failure.
pub(crate) fn keep_needed() {
    for capability in CapabilitySet::all().difference(NEEDED).iter() {
        if capability_is_in_bounding_set(capability).unwrap_or(false)
            && let Err(error) = remove_capability_from_bounding_set(capability)
        {
            tracing::debug!(?capability, %error, "stays within reach");
        }
    }
    let kept = capabilities(None).and_then(|mut sets| {
        sets.permitted &= NEEDED;
        sets.effective &= NEEDED;
        sets.inheritable &= NEEDED;
        set_capabilities(None, sets)
    });
    if let Err(error) = kept {
        tracing::warn!(%error, "cannot give up privileges that are not needed");
    }
}
