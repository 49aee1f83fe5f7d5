//! Attaching, with errors that say what could not be attached where.

use anyhow::{Context as _, Result};
use aya::{
    Ebpf,
    programs::{
        Program, ProgramError, SchedClassifier, TcAttachType, TracePoint, Xdp, XdpMode,
        tc::{SchedClassifierLink, TcError, qdisc_add_clsact},
        trace_point::TracePointLink,
        xdp::XdpLink,
    },
    util::KernelVersion,
};
use rustix::net::{AddressFamily, SocketType, netdevice::name_to_index, socket};

use crate::failure::Hint;

/// The index of the device.
///
/// # Errors
///
/// When there is none with this name.
pub fn device(name: &str) -> Result<u32> {
    let socket = socket(AddressFamily::INET, SocketType::DGRAM, None)?;
    name_to_index(&socket, name)
        .context(Hint("`ip link` lists the devices there are".to_owned()))
        .with_context(|| format!("there is no network device `{name}`"))
}

/// The program `name`, as the type that its hook takes.
///
/// # Errors
///
/// When there is none with that name, or it is of another type.
pub fn find<'a, P>(ebpf: &'a mut Ebpf, name: &str) -> Result<P>
where
    P: TryFrom<&'a mut Program, Error = ProgramError>,
{
    let program = ebpf
        .program_mut(name)
        .with_context(|| format!("the object has no program `{name}`"))?;
    P::try_from(program).with_context(|| format!("`{name}` is of another type"))
}

/// Loads the classifier `name` and attaches it to the device, by TCX from Linux 6.6 on, else as a
/// filter of the queueing discipline `clsact`.
///
/// Dropping the link detaches it.
///
/// # Errors
///
/// When the verifier refuses the program, or there is no such device.
pub fn attach_tc(
    ebpf: &mut Ebpf,
    name: &str,
    iface: &str,
    direction: TcAttachType,
) -> Result<SchedClassifierLink> {
    device(iface)?;
    let program: &mut SchedClassifier = find(ebpf, name)?;
    program
        .load()
        .with_context(|| format!("the kernel refuses the program `{name}`"))?;
    log(name, &program.info()?);
    if KernelVersion::current()? < KernelVersion::new(6, 6, 0) {
        // Somebody else may have put it there; without filters it costs nothing, so it stays.
        match qdisc_add_clsact(iface) {
            Ok(()) | Err(TcError::AlreadyAttached) => {}
            Err(error) => return Err(error).with_context(|| attaching(name, iface)),
        }
    }
    let id = program
        .attach(iface, direction)
        .with_context(|| attaching(name, iface))?;
    program
        .take_link(id)
        .with_context(|| attaching(name, iface))
}

/// Loads the program `name` and attaches it to the tracepoint `category/event`.
///
/// Dropping the link detaches it.
///
/// # Errors
///
/// When the verifier refuses the program, or the kernel has no such tracepoint.
pub fn attach_tracepoint(
    ebpf: &mut Ebpf,
    name: &str,
    category: &str,
    event: &str,
) -> Result<TracePointLink> {
    let program: &mut TracePoint = find(ebpf, name)?;
    program
        .load()
        .with_context(|| format!("the kernel refuses the program `{name}`"))?;
    log(name, &program.info()?);
    let attaching = || format!("cannot attach `{name}` to the tracepoint `{category}/{event}`");
    let id = program.attach(category, event).with_context(attaching)?;
    program.take_link(id).with_context(attaching)
}

/// Loads the XDP program `name` and attaches it to the device.
///
/// Dropping the link detaches it.
///
/// # Errors
///
/// When the verifier refuses the program, there is no such device, or it has an XDP program already.
pub fn attach_xdp(ebpf: &mut Ebpf, name: &str, iface: &str, mode: XdpMode) -> Result<XdpLink> {
    device(iface)?;
    let program: &mut Xdp = find(ebpf, name)?;
    program
        .load()
        .with_context(|| format!("the kernel refuses the program `{name}`"))?;
    log(name, &program.info()?);
    let id = program
        .attach(iface, mode)
        .with_context(|| attaching(name, iface))?;
    program
        .take_link(id)
        .with_context(|| attaching(name, iface))
}

/// Logs what the kernel made of a program, for `RUST_LOG=debug`.
pub fn log(name: &str, info: &aya::programs::ProgramInfo) {
    tracing::debug!(
        id = info.id(),
        verified_instructions = info.verified_instruction_count(),
        translated_bytes = info.size_translated(),
        jitted_bytes = info.size_jitted(),
        "loaded `{name}`"
    );
}

fn attaching(name: &str, iface: &str) -> String {
    format!("cannot attach `{name}` to the device `{iface}`")
}
