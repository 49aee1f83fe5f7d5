//! Whether the guard looks at sockets, when a daemon takes over from another.
//!
//! The guard reads variables, and those are new with each load. So where there were programs before, it is
//! loaded strict, and goes on so until those are out of the way, and what they have noted is known.

use aya::{Ebpf, maps::Array};
use lockne_abi::name;

use super::{Error, rules};

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

/// Whether the guard looks at sockets.
pub(super) fn is_on(ebpf: &Ebpf) -> Result<bool, Error> {
    Ok(is_set(ebpf, name::DATA)? || is_set(ebpf, name::BSS)?)
}

fn is_set(ebpf: &Ebpf, map: &'static str) -> Result<bool, Error> {
    let variable = ebpf.map(map).expect("it is there");
    let variable: Array<_, u32> = Array::try_from(variable).map_err(Error::map(map))?;
    Ok(variable.get(&0, 0).map_err(Error::map(map))? != 0)
}
