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

use aya::Pod;
use aya_obj::generated::{bpf_insn, bpf_prog_info};

const MAP_UPDATE: i64 = 2;
const PROG_LOAD: i64 = 5;
const OBJ_PIN: i64 = 6;
const OBJ_GET: i64 = 7;
const OBJ_GET_INFO_BY_FD: i64 = 15;
const PROG_QUERY: i64 = 16;
const RAW_TRACEPOINT_OPEN: i64 = 17;
const LINK_CREATE: i64 = 28;
const LINK_UPDATE: i64 = 29;
const MAP_UPDATE_BATCH: i64 = 26;
const MAP_DELETE_BATCH: i64 = 27;
const LINK_DETACH: i64 = 34;

/// Where a link goes, and the number of the hook there (`enum bpf_attach_type`).
pub(crate) enum Target<'a> {
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
pub(crate) fn attach(program: BorrowedFd<'_>, target: &Target<'_>) -> io::Result<OwnedFd> {
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
pub(crate) fn replace(link: BorrowedFd<'_>, program: BorrowedFd<'_>) -> io::Result<()> {
    call(LINK_UPDATE, &mut [number(link), number(program), 0, 0]).map(drop)
}

/// Takes a link's program off its hook at once; tracepoints do not have this.
pub(crate) fn detach(link: BorrowedFd<'_>) -> io::Result<()> {
    call(LINK_DETACH, &mut [number(link)]).map(drop)
}

/// Makes a map or link live on at `path`.
pub(crate) fn pin(object: BorrowedFd<'_>, path: &Path) -> io::Result<()> {
    let path = c_path(path)?;
    let [low, high] = halves(path.as_ptr());
    call(OBJ_PIN, &mut [low, high, number(object), 0]).map(drop)
}

/// Opens what is pinned at `path`.
pub(crate) fn open_pin(path: &Path) -> io::Result<OwnedFd> {
    let path = c_path(path)?;
    let [low, high] = halves(path.as_ptr());
    let fd = call(OBJ_GET, &mut [low, high, 0, 0])?;
    // SAFETY: a new descriptor, which nobody else knows.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// The device of a TCX link; 0 once it is gone.
pub(crate) fn device_of(link: BorrowedFd<'_>) -> io::Result<u32> {
    // `struct bpf_link_info`: type, id, program, padding, then the index of the device.
    let mut info = [0_u32; 16];
    let [low, high] = halves(info.as_mut_ptr());
    let length = u32::try_from(size_of_val(&info)).expect("64 bytes");
    call(OBJ_GET_INFO_BY_FD, &mut [number(link), length, low, high])?;
    Ok(info[4])
}

/// For how many nanoseconds a program ran, and how often; 0 where the kernel keeps no count.
pub(super) fn runs(program: BorrowedFd<'_>) -> io::Result<(u64, u64)> {
    // SAFETY: it consists of numbers, which may be 0, and the addresses among them say that nothing is asked for.
    let mut info: bpf_prog_info = unsafe { std::mem::zeroed() };
    let [low, high] = halves(&raw mut info);
    let length = u32::try_from(size_of_val(&info)).expect("some hundred bytes");
    call(
        OBJ_GET_INFO_BY_FD,
        &mut [number(program), length, low, high],
    )?;
    Ok((info.run_time_ns, info.run_cnt))
}

/// Loads a classifier made of these instructions. The second part of an error is the verifier's log.
pub(crate) fn load_classifier(
    name: &str,
    instructions: &[u64],
) -> Result<OwnedFd, (io::Error, String)> {
    const SCHED_CLS: u32 = 3;
    const NAME: usize = 15;
    let count = u32::try_from(instructions.len()).expect("programs are short");
    let mut text = [0_u8; NAME + 1];
    let length = name.len().min(NAME);
    text[..length].copy_from_slice(&name.as_bytes()[..length]);
    let load = |level: u32, log: &mut [u8]| {
        let [low, high] = halves(instructions.as_ptr());
        let [license_low, license_high] = halves(c"GPL".as_ptr());
        let room = u32::try_from(log.len()).expect("a small buffer");
        let [log_low, log_high] = match level {
            0 => [0, 0],
            _ => halves(log.as_mut_ptr()),
        };
        let word =
            |at: usize| u32::from_ne_bytes([text[at], text[at + 1], text[at + 2], text[at + 3]]);
        let mut attr = [
            SCHED_CLS,
            count,
            low,
            high,
            license_low,
            license_high,
            level,
            if level == 0 { 0 } else { room },
            log_low,
            log_high,
            0,
            0,
            word(0),
            word(4),
            word(8),
            word(12),
        ];
        loop {
            match call(PROG_LOAD, &mut attr) {
                // A signal came while the verifier was at work.
                Err(error) if error.raw_os_error() == Some(libc::EAGAIN) => {}
                result => return result,
            }
        }
    };
    match load(0, &mut []) {
        // SAFETY: a new descriptor, which nobody else knows.
        Ok(fd) => Ok(unsafe { OwnedFd::from_raw_fd(fd) }),
        Err(error) => {
            let mut log = vec![0_u8; 1 << 20];
            if let Ok(fd) = load(1, &mut log) {
                // SAFETY: as above.
                return Ok(unsafe { OwnedFd::from_raw_fd(fd) });
            }
            let end = log.iter().position(|byte| *byte == 0).unwrap_or(0);
            Err((error, String::from_utf8_lossy(&log[..end]).into_owned()))
        }
    }
}

/// Puts a program into a program array.
pub(crate) fn set_program(
    map: BorrowedFd<'_>,
    index: u32,
    program: BorrowedFd<'_>,
) -> io::Result<()> {
    let (key, value) = (index, number(program));
    let [key_low, key_high] = halves(&raw const key);
    let [value_low, value_high] = halves(&raw const value);
    let mut attr = [
        number(map),
        0,
        key_low,
        key_high,
        value_low,
        value_high,
        0,
        0,
    ];
    call(MAP_UPDATE, &mut attr).map(drop)
}

/// Whether a hook at a cgroup holds a program that lets no other attach there.
pub(super) fn is_exclusive(cgroup: BorrowedFd<'_>, hook: u32) -> io::Result<bool> {
    // `union bpf_attr`, `query`: target, hook, flags of the query, of the attachment, address of ids, their count.
    let mut attr = [number(cgroup), hook, 0, 0, 0, 0, 0, 0];
    call(PROG_QUERY, &mut attr)?;
    let [.., flags, _, _, count, _] = attr;
    Ok(flags == 0 && count > 0)
}

/// Puts all of these into a map. `keys` and `values` are as long as each other, and of the map's sizes.
pub(super) fn update_batch<K: Pod, V: Pod>(
    map: BorrowedFd<'_>,
    keys: &[K],
    values: &[V],
) -> io::Result<()> {
    debug_assert_eq!(keys.len(), values.len());
    batch(MAP_UPDATE_BATCH, map, keys, values.as_ptr().cast()).1
}

/// Takes these keys out of a map, whichever are there.
pub(super) fn delete_batch<K: Pod>(map: BorrowedFd<'_>, mut keys: &[K]) -> io::Result<()> {
    while !keys.is_empty() {
        match batch(MAP_DELETE_BATCH, map, keys, std::ptr::null()) {
            (_, Ok(())) => break,
            // The kernel stops at the first that is not there.
            (done, Err(error)) if error.kind() == io::ErrorKind::NotFound => {
                keys = keys.get(done + 1..).unwrap_or_default();
            }
            (_, Err(error)) => return Err(error),
        }
    }
    Ok(())
}

/// Returns how many were done, too.
fn batch<K: Pod>(
    command: i64,
    map: BorrowedFd<'_>,
    keys: &[K],
    values: *const u8,
) -> (usize, io::Result<()>) {
    const COUNT: usize = 8;
    if keys.is_empty() {
        return (0, Ok(()));
    }
    let count = u32::try_from(keys.len()).expect("maps are smaller");
    let [keys_low, keys_high] = halves(keys.as_ptr());
    let [values_low, values_high] = halves(values);
    let mut attr = [0_u32; 14];
    attr[4..8].copy_from_slice(&[keys_low, keys_high, values_low, values_high]);
    attr[COUNT] = count;
    attr[COUNT + 1] = number(map);
    let result = call(command, &mut attr).map(drop);
    (attr[COUNT] as usize, result)
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
