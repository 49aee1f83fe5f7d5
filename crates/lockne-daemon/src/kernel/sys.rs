//! The calls of bpf(2) around links that Aya has not, and pins.
//!
//! Aya 0.14 cannot replace the program of a cgroup link, nor detach a link, nor give the descriptor of
//! one away.

use std::{
    ffi::{CStr, CString},
    io,
    os::{
        fd::{AsRawFd as _, BorrowedFd, FromRawFd as _, OwnedFd, RawFd},
        unix::ffi::OsStrExt as _,
    },
    path::Path,
};

use aya_obj::generated::bpf_insn;

const PROG_LOAD: i64 = 5;
const OBJ_PIN: i64 = 6;
const OBJ_GET: i64 = 7;
const OBJ_GET_INFO_BY_FD: i64 = 15;
const RAW_TRACEPOINT_OPEN: i64 = 17;
const LINK_CREATE: i64 = 28;
const LINK_UPDATE: i64 = 29;
const LINK_DETACH: i64 = 34;

/// Where a link goes, and the number of the hook there (`enum bpf_attach_type`).
pub(super) enum Target<'a> {
    Cgroup(BorrowedFd<'a>, u32),
    /// The ingress of a device by TCX.
    Ingress(u32),
    /// The tracepoint that the program was loaded for.
    Tracepoint,
}

/// Loads a program for a hook on an address, by the number of the hook.
pub(super) fn load(instructions: &[bpf_insn], name: &CStr, hook: u32) -> io::Result<OwnedFd> {
    const CGROUP_SOCK_ADDR: u32 = 18;
    const NAME: usize = 16;
    let count = u32::try_from(instructions.len()).map_err(io::Error::other)?;
    let [code_low, code_high] = halves(instructions.as_ptr());
    let [license_low, license_high] = halves(c"GPL".as_ptr());
    let mut attr = [0_u32; 18];
    attr[..6].copy_from_slice(&[
        CGROUP_SOCK_ADDR,
        count,
        code_low,
        code_high,
        license_low,
        license_high,
    ]);
    // Past the log and the flags.
    let mut bytes = [0; NAME];
    let length = name.count_bytes().min(NAME - 1);
    bytes[..length].copy_from_slice(&name.to_bytes()[..length]);
    for (word, part) in attr[12..16].iter_mut().zip(bytes.as_chunks().0) {
        *word = u32::from_ne_bytes(*part);
    }
    attr[17] = hook;
    let fd = call(PROG_LOAD, &mut attr)?;
    // SAFETY: a new descriptor, which nobody else knows.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// Attaches a program.
pub(super) fn attach(program: BorrowedFd<'_>, target: &Target<'_>) -> io::Result<OwnedFd> {
    const TCX_INGRESS: u32 = 46;
    let fd = match *target {
        Target::Cgroup(cgroup, hook) => {
            // The flags stay 0: links are always "multi", and the kernel refuses to be told so.
            call(LINK_CREATE, &mut [number(program), number(cgroup), hook, 0])?
        }
        Target::Ingress(device) => call(
            LINK_CREATE,
            &mut [number(program), device, TCX_INGRESS, 0, 0, 0, 0, 0],
        )?,
        Target::Tracepoint => call(RAW_TRACEPOINT_OPEN, &mut [0, 0, number(program), 0])?,
    };
    // SAFETY: a new descriptor, which nobody else knows.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// Puts a program into a link in place of the one that is there, at once.
pub(super) fn replace(link: BorrowedFd<'_>, program: BorrowedFd<'_>) -> io::Result<()> {
    call(LINK_UPDATE, &mut [number(link), number(program), 0, 0]).map(drop)
}

/// Takes a link's program off its hook at once; tracepoints do not have this.
pub(super) fn detach(link: BorrowedFd<'_>) -> io::Result<()> {
    call(LINK_DETACH, &mut [number(link)]).map(drop)
}

/// Makes a map or link live on at `path`.
pub(super) fn pin(object: BorrowedFd<'_>, path: &Path) -> io::Result<()> {
    let path = c_path(path)?;
    let [low, high] = halves(path.as_ptr());
    call(OBJ_PIN, &mut [low, high, number(object), 0]).map(drop)
}

/// Opens what is pinned at `path`.
pub(super) fn open_pin(path: &Path) -> io::Result<OwnedFd> {
    let path = c_path(path)?;
    let [low, high] = halves(path.as_ptr());
    let fd = call(OBJ_GET, &mut [low, high, 0, 0])?;
    // SAFETY: a new descriptor, which nobody else knows.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// The device of a TCX link; 0 once it is gone.
pub(super) fn device_of(link: BorrowedFd<'_>) -> io::Result<u32> {
    // `struct bpf_link_info`: type, id, program, padding, then the index of the device.
    let mut info = [0_u32; 16];
    let [low, high] = halves(info.as_mut_ptr());
    let length = u32::try_from(size_of_val(&info)).expect("64 bytes");
    call(OBJ_GET_INFO_BY_FD, &mut [number(link), length, low, high])?;
    Ok(info[4])
}

fn call(command: i64, attr: &mut [u32]) -> io::Result<RawFd> {
    // SAFETY: `attr` is as long as the length says, and the addresses in it outlive the call.
    let result =
        unsafe { libc::syscall(libc::SYS_bpf, command, attr.as_mut_ptr(), size_of_val(attr)) };
    if result < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(RawFd::try_from(result).expect("the kernel returns a descriptor or 0"))
}

fn number(fd: BorrowedFd<'_>) -> u32 {
    u32::try_from(fd.as_raw_fd()).expect("a borrowed descriptor is never negative")
}

/// An address as two words, lower one first: the kernel object is for little-endian machines only.
fn halves<T>(pointer: *const T) -> [u32; 2] {
    let address = pointer as u64;
    [(address & 0xffff_ffff) as u32, (address >> 32) as u32]
}

fn c_path(path: &Path) -> io::Result<CString> {
    Ok(CString::new(path.as_os_str().as_bytes())?)
}
