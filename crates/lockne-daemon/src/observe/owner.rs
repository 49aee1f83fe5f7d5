//! Whose sockets are whose: a hook for new ones, and a walk through `/proc` for those that are there.

use std::{
    fs, io,
    os::{
        fd::{AsFd as _, BorrowedFd},
        unix::fs::MetadataExt as _,
    },
};

use aya::{
    Ebpf,
    maps::{MapData, SkStorage},
    programs::{CgroupAttachMode, CgroupSock},
};
use lockne_abi::observe::{Owner, name};
use rustix::process::{PidfdGetfdFlags, pidfd_getfd};

use crate::kernel::{Error, cgroup, patiently};
use crate::process;

/// The kernel's answer stays if there is one: it is the younger.
const IF_NEW: u64 = 1;

/// Notes the owner of each socket from now on, and of all that exist.
pub(super) fn watch(ebpf: &mut Ebpf) -> Result<(), Error> {
    let program: &mut CgroupSock = ebpf
        .program_mut(name::OWN_SOCKET)
        .expect("the object has the program")
        .try_into()
        .expect("it is a program for sockets");
    let root = cgroup::root()?;
    patiently(|| program.load())
        .and_then(|()| program.attach(root, CgroupAttachMode::Single))
        .map_err(|error| Error::program(name::OWN_SOCKET, error))?;
    let owners = ebpf.map_mut(name::OWNERS).expect("the object has the map");
    let mut owners = SkStorage::try_from(owners).map_err(Error::map(name::OWNERS))?;
    note_existing(&mut owners);
    Ok(())
}

/// Processes and sockets that go away meanwhile are none.
fn note_existing(owners: &mut SkStorage<&mut MapData, Owner>) {
    for pid in process::eldest_first().unwrap_or_default() {
        let _ended_or_not = note_process(owners, pid);
    }
}

fn note_process(owners: &mut SkStorage<&mut MapData, Owner>, pid: u32) -> io::Result<()> {
    let mut handle = None;
    let mut owner = None;
    for entry in fs::read_dir(format!("/proc/{pid}/fd"))?.flatten() {
        let is_socket = fs::read_link(entry.path()).is_ok_and(|target| {
            target
                .as_os_str()
                .as_encoded_bytes()
                .starts_with(b"socket:")
        });
        let number = entry
            .file_name()
            .to_str()
            .and_then(|name| name.parse().ok());
        let (true, Some(number)) = (is_socket, number) else {
            continue;
        };
        if handle.is_none() {
            handle = Some(process::open(pid)?);
        }
        let Some(handle) = &handle else {
            continue;
        };
        let Ok(socket) = pidfd_getfd(handle, number, PidfdGetfdFlags::empty()) else {
            continue;
        };
        if has_packets(socket.as_fd()) {
            let owner = match owner {
                Some(owner) => owner,
                None => *owner.insert(owner_of(pid)?),
            };
            let _noted_already = owners.insert(&socket, owner, IF_NEW);
        }
    }
    Ok(())
}

pub(super) fn owner_of(pid: u32) -> io::Result<Owner> {
    let text = fs::read(format!("/proc/{pid}/comm"))?;
    let mut name = [0; 16];
    let length = text
        .iter()
        .position(|byte| *byte == b'\n')
        .unwrap_or(text.len())
        .min(15);
    name[..length].copy_from_slice(&text[..length]);
    let uid = fs::metadata(format!("/proc/{pid}"))?.uid();
    Ok(Owner {
        name,
        pid,
        uid,
        metered: 0,
    })
}

/// Whether what is sent by the socket are packets of the network.
fn has_packets(socket: BorrowedFd<'_>) -> bool {
    let domain = socket2::SockRef::from(&socket).domain();
    let packet = socket2::Domain::from(libc::AF_PACKET);
    domain.is_ok_and(|domain| {
        [socket2::Domain::IPV4, socket2::Domain::IPV6, packet].contains(&domain)
    })
}
