//! What the kernel says of programs and maps, and programs that do nothing to compare with.

use std::{
    collections::BTreeSet,
    ffi::{CStr, CString},
    fs, io,
    os::fd::{AsFd, AsRawFd as _, FromRawFd as _, OwnedFd},
    path::Path,
};

use anyhow::{Context as _, Result};
use rustix::{
    fs::{Mode, OFlags},
    mount::{FsMountFlags, FsOpenFlags, MountAttrFlags},
};

/// Commands of bpf(2).
const PROG_LOAD: i32 = 5;
const OBJ_GET: i32 = 7;
const PROG_GET_FD_BY_ID: i32 = 13;
const RAW_TRACEPOINT_OPEN: i32 = 17;
const LINK_CREATE: i32 = 28;

/// Kinds of program, `enum bpf_prog_type`.
const CGROUP_SKB: u32 = 8;
const CGROUP_SOCK: u32 = 9;
const RAW_TRACEPOINT: u32 = 17;
const CGROUP_SOCK_ADDR: u32 = 18;
const CGROUP_SOCKOPT: u32 = 25;

/// `r0 = 1; exit`.
const EMPTY: [u64; 2] = [0x0000_0001_0000_00b7, 0x95];

/// Where one of our programs is attached.
#[derive(Clone, Copy)]
pub(crate) enum Hook {
    /// Packets that leave.
    Packet,
    /// New sockets.
    Socket,
    /// Calls with an address, by `enum bpf_attach_type`.
    Call(u32),
    /// `setsockopt`.
    Option,
    /// This tracepoint. Ours has typed arguments, which the empty one does without.
    Tracepoint(&'static CStr),
}

/// A program that does nothing, attached until it is dropped.
pub(crate) struct Empty {
    program: OwnedFd,
    _link: OwnedFd,
}

impl Empty {
    pub(crate) fn attach(hook: Hook) -> Result<Self> {
        let (kind, at) = match hook {
            Hook::Packet => (CGROUP_SKB, 1),
            Hook::Socket => (CGROUP_SOCK, 2),
            Hook::Call(at) => (CGROUP_SOCK_ADDR, at),
            Hook::Option => (CGROUP_SOCKOPT, 22),
            Hook::Tracepoint(_) => (RAW_TRACEPOINT, 0),
        };
        // The layouts are those of `union bpf_attr`, as 64-bit words of a little-endian machine.
        let mut load = [0_u64; 9];
        load[0] = u64::from(kind) | (EMPTY.len() as u64) << 32;
        load[1] = EMPTY.as_ptr() as u64;
        load[2] = c"GPL".as_ptr() as u64;
        load[8] = u64::from(at) << 32;
        let program = bpf(PROG_LOAD, &load).context("cannot load an empty program")?;
        let fd = word(&program);
        let link = match hook {
            Hook::Tracepoint(name) => bpf(RAW_TRACEPOINT_OPEN, &[name.as_ptr() as u64, fd]),
            _ => bpf(
                LINK_CREATE,
                &[fd | word(&cgroup_root()?) << 32, u64::from(at)],
            ),
        };
        Ok(Self {
            program,
            _link: link.context("cannot attach an empty program")?,
        })
    }
}

/// The program behind a pinned link.
pub(crate) fn program_of_link(pin: &Path) -> Result<OwnedFd> {
    let link = open_pin(pin)?;
    Ok(bpf(PROG_GET_FD_BY_ID, &[field(&link, "prog_id")?, 0])?)
}

fn open_pin(path: &Path) -> Result<OwnedFd> {
    let name = CString::new(path.as_os_str().as_encoded_bytes())?;
    bpf(OBJ_GET, &[name.as_ptr() as u64, 0]).with_context(|| path.display().to_string())
}

/// A program of ours beside one that does nothing.
pub(crate) struct Pair<'a> {
    pub(crate) ours: &'a OwnedFd,
    pub(crate) empty: &'a Empty,
    /// How often it has to run, so that it is believed.
    pub(crate) least: usize,
    pub(crate) name: &'static str,
}

/// What ours take longer for each run than those that do nothing, in nanoseconds, while something is done.
pub(crate) fn net(pairs: &[Pair<'_>], work: impl FnOnce() -> Result<()>) -> Result<Vec<f64>> {
    let read = || -> Result<Vec<_>> {
        let both = |it: &Pair<'_>| Ok((Runs::of(it.ours)?, Runs::of(&it.empty.program)?));
        pairs.iter().map(both).collect()
    };
    let earlier = read()?;
    work()?;
    let later = read()?;
    let each = pairs.iter().zip(earlier.iter().zip(&later));
    each.map(|(pair, (earlier, later))| {
        let ours = later.0.each_since(earlier.0, pair.least);
        let none = later.1.each_since(earlier.1, pair.least);
        let net = ours.zip(none).map(|(ours, none)| ours - none);
        net.with_context(|| format!("{} ran too rarely", pair.name))
    })
    .collect()
}

/// How long a program ran, in nanoseconds, and how often.
#[derive(Clone, Copy)]
struct Runs {
    time: u64,
    count: u64,
}

impl Runs {
    fn of(program: &impl AsFd) -> Result<Self> {
        Ok(Self {
            time: field(program, "run_time_ns")?,
            count: field(program, "run_cnt")?,
        })
    }

    /// Nanoseconds for each run since `earlier`; `None` if there were fewer than `least`.
    #[expect(clippy::cast_precision_loss, reason = "small numbers")]
    fn each_since(self, earlier: Self, least: usize) -> Option<f64> {
        let count = self.count - earlier.count;
        (count >= least as u64).then(|| (self.time - earlier.time) as f64 / count as f64)
    }
}

/// Bytes of memory that maps take: those pinned in `pins`, and those of the programs that run there.
pub(crate) fn map_memory(pins: &Path) -> Result<u64> {
    let mut maps = BTreeSet::new();
    let mut programs = BTreeSet::new();
    for pin in fs::read_dir(pins)? {
        // The root of a bpffs has files of the kernel's own, too, which are no pins.
        let Ok(pin) = open_pin(&pin?.path()) else {
            continue;
        };
        maps.extend(field(&pin, "map_id").ok());
        programs.extend(field(&pin, "prog_id").ok());
    }
    for program in aya::programs::loaded_programs() {
        // Others may be unloaded meanwhile.
        let Ok(program) = program else { continue };
        if programs.contains(&u64::from(program.id())) {
            let of_program = program.map_ids()?.unwrap_or_default();
            maps.extend(of_program.into_iter().map(u64::from));
        }
    }
    let memory = |id| -> Result<u64> {
        let map = aya::maps::MapInfo::from_id(u32::try_from(id)?)?;
        field(map.fd()?.as_fd(), "memlock")
    };
    maps.into_iter().map(memory).sum()
}

/// A number from `/proc/self/fdinfo`.
fn field(fd: impl AsFd, name: &str) -> Result<u64> {
    let path = format!("/proc/self/fdinfo/{}", fd.as_fd().as_raw_fd());
    let text = fs::read_to_string(&path)?;
    let value = text
        .lines()
        .find_map(|line| line.strip_prefix(name)?.strip_prefix(':'))
        .with_context(|| format!("no `{name}` in {path}"))?;
    Ok(value.trim().parse()?)
}

/// Mounted nowhere, so that it does not matter where others mount it.
fn cgroup_root() -> Result<OwnedFd> {
    let fs = rustix::mount::fsopen("cgroup2", FsOpenFlags::FSOPEN_CLOEXEC)?;
    rustix::mount::fsconfig_create(&fs)?;
    let flags = FsMountFlags::FSMOUNT_CLOEXEC;
    let mount = rustix::mount::fsmount(&fs, flags, MountAttrFlags::empty())?;
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    Ok(rustix::fs::openat(&mount, c".", flags, Mode::empty())?)
}

fn word(fd: &OwnedFd) -> u64 {
    u64::try_from(fd.as_raw_fd()).expect("an open descriptor is not negative")
}

fn bpf(command: i32, attributes: &[u64]) -> io::Result<OwnedFd> {
    // SAFETY: the kernel reads the attributes, and what they point to lives in the caller.
    let fd = unsafe {
        libc::syscall(
            libc::SYS_bpf,
            command,
            attributes.as_ptr(),
            size_of_val(attributes),
        )
    };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    let fd = i32::try_from(fd).expect("a descriptor is an int");
    // SAFETY: a new descriptor that nobody else knows; all commands used here return one.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}
