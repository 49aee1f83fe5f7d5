//! Whether the guard looks at sockets, when a daemon takes over from another.
//!
//! The guard reads variables, and those are new with each load. So where there were programs before, it is
//! loaded strict, and goes on so until those are out of the way, and what they have noted is known.

use std::fs;

use aya::{Ebpf, maps::Array};
use lockne_abi::{Member, name};
use rustix::thread::CapabilitySet;

use super::{Error, rules};
use crate::process;

/// Lets the guard be quick again, if no program under a policy has been seen that can mark packets. The hooks
/// must have been attached.
pub(super) fn settle(ebpf: &mut Ebpf) -> Result<(), Error> {
    if !is_set(ebpf, name::DATA)? {
        return Ok(());
    }
    rules::wait_for_readers();
    let noted: Array<_, u32> = Array::try_from(ebpf.map(name::STRICT).expect("it is there"))
        .map_err(Error::map(name::STRICT))?;
    if noted.get(&0, 0).map_err(Error::map(name::STRICT))? != 0 {
        return Ok(());
    }
    // Whoever notes it from now on says so in a variable of the programs' own.
    let assumed = ebpf.map_mut(name::DATA).expect("it is there");
    let mut assumed: Array<_, u32> = Array::try_from(assumed).map_err(Error::map(name::ASSUMED))?;
    assumed.set(0, 0, 0).map_err(Error::map(name::ASSUMED))
}

/// Makes the guard look at sockets if a process that was put where it stands can mark packets: it may have
/// sockets already. What it executes from then on, the kernel's programs see.
pub(super) fn consider(ebpf: &mut Ebpf, pid: u32, member: Member) -> Result<(), Error> {
    if member.policy() == 0 || is_on(ebpf)? || !can_mark(pid) {
        return Ok(());
    }
    for (map, variable) in [(name::STRICT, name::STRICT), (name::DATA, name::ASSUMED)] {
        let words = ebpf.map_mut(map).expect("it is there");
        let mut words: Array<_, u32> = Array::try_from(words).map_err(Error::map(variable))?;
        words.set(0, 1, 0).map_err(Error::map(variable))?;
    }
    Ok(())
}

/// Whether a thread of it may have one of the rights, outside of user namespaces of its own. One that has ended
/// has none.
fn can_mark(pid: u32) -> bool {
    let users = |pid| process::namespace(pid, "user");
    if let (Ok(its), Ok(own)) = (users(pid), users(std::process::id()))
        && its != own
    {
        return false;
    }
    let threads = fs::read_dir(format!("/proc/{pid}/task"));
    let mut threads = threads.into_iter().flatten().filter_map(Result::ok);
    threads.any(|thread| {
        let status = fs::read_to_string(thread.path().join("status")).unwrap_or_default();
        let permitted = status.lines().find_map(|line| line.strip_prefix("CapPrm:"));
        let permitted = permitted.and_then(|it| u64::from_str_radix(it.trim(), 16).ok());
        permitted.is_some_and(|bits| {
            CapabilitySet::from_bits_retain(bits)
                .intersects(CapabilitySet::NET_ADMIN | CapabilitySet::NET_RAW)
        })
    })
}

/// Whether the guard looks at sockets.
pub(super) fn is_on(ebpf: &Ebpf) -> Result<bool, Error> {
    Ok(is_set(ebpf, name::DATA)? || is_set(ebpf, name::BSS)?)
}

fn is_set(ebpf: &Ebpf, map: &'static str) -> Result<bool, Error> {
    let variable = ebpf.map(map).expect("it is there");
    let variable: Array<_, u32> = Array::try_from(variable).map_err(Error::map(map))?;
    Ok(variable.get(&0, 0).map_err(Error::map(map))? != 0)
}
