//! The kernel's helpers, as far as the programs here call them.
//!
//! A program that gets here has passed the kernel's verifier, which knows of each helper how long the
//! memory behind each pointer must be. So pointers from the program are used as they come.

use std::{cell::Cell, ptr, slice};

use crate::{World, table::Kind};

type Helper = fn(u64, u64, u64, u64, u64) -> u64;

/// Every helper, by its number in `include/uapi/linux/bpf.h`.
pub(crate) const ALL: &[(u32, Helper)] = &[
    (1, map_lookup_elem),
    (2, map_update_elem),
    (3, map_delete_elem),
    (5, ktime_get_ns),
    (14, get_current_pid_tgid),
    (26, skb_load_bytes),
    (35, get_current_task),
    (46, get_socket_cookie),
    (49, setsockopt),
    (68, skb_load_bytes),
    (84, sk_lookup),
    (85, sk_lookup),
    (86, sk_release),
    (95, sk_fullsock),
    (107, sk_storage_get),
    (113, probe_read_kernel),
    (122, get_netns_cookie),
    (130, ringbuf_output),
    (158, get_current_task),
    (187, set_retval),
];

const EFAULT: i64 = 14;
const ENOENT: i64 = 2;
const E2BIG: i64 = 7;

thread_local! {
    static WORLD: Cell<*mut World> = const { Cell::new(ptr::null_mut()) };
}

/// Runs `body` with helpers that act on `world`.
pub(crate) fn with<T>(world: &mut World, body: impl FnOnce() -> T) -> T {
    WORLD.set(world);
    let result = body();
    WORLD.set(ptr::null_mut());
    result
}

fn on_world<T>(act: impl FnOnce(&mut World) -> T) -> T {
    let world = WORLD.get();
    assert!(!world.is_null(), "helpers are called inside of `with` only");
    // SAFETY: `with` borrows it for as long as the program runs, and helpers do not nest.
    act(unsafe { &mut *world })
}

/// Bytes of the program.
///
/// # Safety
///
/// As the verifier promises: `address` is `len` bytes of the program's memory.
unsafe fn bytes<'a>(address: u64, len: usize) -> &'a [u8] {
    // SAFETY: by the caller's promise.
    unsafe { slice::from_raw_parts(pointer(address), len) }
}

/// Copies bytes to the program.
///
/// # Safety
///
/// As the verifier promises: `address` is as many writable bytes of the program's memory.
unsafe fn give(address: u64, bytes: &[u8]) {
    // SAFETY: by the caller's promise; the program's memory is not ours.
    unsafe { ptr::copy_nonoverlapping(bytes.as_ptr(), pointer(address), bytes.len()) };
}

#[expect(clippy::cast_possible_truncation, reason = "addresses of this process")]
fn pointer(address: u64) -> *mut u8 {
    ptr::with_exposed_provenance_mut(address as usize)
}

fn failure(errno: i64) -> u64 {
    (-errno).cast_unsigned()
}

#[expect(clippy::cast_possible_truncation, reason = "32-bit arguments")]
fn narrow(argument: u64) -> u32 {
    argument as u32
}

fn map_lookup_elem(map: u64, key: u64, _: u64, _: u64, _: u64) -> u64 {
    on_world(|world| {
        let Some(table) = world.by_handle(map) else {
            return 0;
        };
        // SAFETY: the verifier checked that the key is as long as the map's keys.
        let key = unsafe { bytes(key, table.key_size()) };
        table.address(key)
    })
}

fn map_update_elem(map: u64, key: u64, value: u64, _: u64, _: u64) -> u64 {
    on_world(|world| {
        let Some(table) = world.by_handle(map) else {
            return failure(ENOENT);
        };
        // SAFETY: the verifier checked that both are as long as the map's.
        let (key, value) = unsafe {
            (
                bytes(key, table.key_size()),
                bytes(value, table.value_size()),
            )
        };
        if table.set(key, value) {
            0
        } else {
            failure(E2BIG)
        }
    })
}

fn map_delete_elem(map: u64, key: u64, _: u64, _: u64, _: u64) -> u64 {
    on_world(|world| {
        let Some(table) = world.by_handle(map) else {
            return failure(ENOENT);
        };
        // SAFETY: the verifier checked that the key is as long as the map's keys.
        let key = unsafe { bytes(key, table.key_size()) };
        if table.remove(key) {
            0
        } else {
            failure(ENOENT)
        }
    })
}

fn ktime_get_ns(_: u64, _: u64, _: u64, _: u64, _: u64) -> u64 {
    on_world(|world| world.now)
}

/// A process of one thread.
fn get_current_pid_tgid(_: u64, _: u64, _: u64, _: u64, _: u64) -> u64 {
    on_world(|world| u64::from(world.process) << 32 | u64::from(world.process))
}

fn get_current_task(_: u64, _: u64, _: u64, _: u64, _: u64) -> u64 {
    on_world(|world| world.task)
}

/// Also `bpf_skb_load_bytes_relative`: packets here have no header of a device.
fn skb_load_bytes(_: u64, offset: u64, to: u64, len: u64, _: u64) -> u64 {
    on_world(|world| {
        let (offset, len) = (narrow(offset) as usize, narrow(len) as usize);
        let found = offset
            .checked_add(len)
            .and_then(|end| world.packet.get(offset..end));
        match found {
            // SAFETY: the verifier checked that there is so much room.
            Some(found) => unsafe { give(to, found) },
            None => return failure(EFAULT),
        }
        0
    })
}

fn get_socket_cookie(_: u64, _: u64, _: u64, _: u64, _: u64) -> u64 {
    on_world(|world| world.socket_cookie)
}

fn setsockopt(_: u64, level: u64, option: u64, value: u64, len: u64) -> u64 {
    on_world(|world| {
        if world.setsockopt_result == 0 {
            // SAFETY: the verifier checked the length.
            let value = unsafe { bytes(value, narrow(len) as usize) };
            let key = (narrow(level).cast_signed(), narrow(option).cast_signed());
            world.socket_options.insert(key, value.to_vec());
        }
        i64::from(world.setsockopt_result).cast_unsigned()
    })
}

/// For TCP and UDP alike.
fn sk_lookup(_: u64, tuple: u64, len: u64, _: u64, _: u64) -> u64 {
    on_world(|world| {
        // SAFETY: the verifier checked the length.
        let tuple = unsafe { bytes(tuple, narrow(len) as usize) };
        world.sockets.get(tuple).copied().unwrap_or(0)
    })
}

fn sk_release(_: u64, _: u64, _: u64, _: u64, _: u64) -> u64 {
    0
}

/// Every socket here is a full one.
fn sk_fullsock(socket: u64, _: u64, _: u64, _: u64, _: u64) -> u64 {
    socket
}

fn probe_read_kernel(to: u64, len: u64, from: u64, _: u64, _: u64) -> u64 {
    on_world(|world| {
        let len = narrow(len) as usize;
        match world.kernel_memory(from, len) {
            // SAFETY: the verifier checked that there is so much room.
            Some(found) => unsafe { give(to, found) },
            None => return failure(EFAULT),
        }
        0
    })
}

/// With no value to start from, a new one is zero.
fn sk_storage_get(map: u64, _: u64, _: u64, flags: u64, _: u64) -> u64 {
    const CREATE: u64 = 1;
    on_world(|world| {
        let Some(table) = world.by_handle(map) else {
            return 0;
        };
        if flags & CREATE != 0 && table.get(&[]).is_none() {
            let value = vec![0; table.value_size()];
            table.set(&[], &value);
        }
        table.address(&[])
    })
}

fn get_netns_cookie(_: u64, _: u64, _: u64, _: u64, _: u64) -> u64 {
    on_world(|world| world.netns_cookie)
}

fn ringbuf_output(ring: u64, record: u64, len: u64, _: u64, _: u64) -> u64 {
    on_world(|world| {
        let is_ring = world
            .by_handle(ring)
            .is_some_and(|table| table.kind() == Kind::Ring);
        if !is_ring {
            return failure(ENOENT);
        }
        // SAFETY: the verifier checked the length.
        let record = unsafe { bytes(record, narrow(len) as usize) };
        world.records.push(record.to_vec());
        0
    })
}

fn set_retval(value: u64, _: u64, _: u64, _: u64, _: u64) -> u64 {
    on_world(|world| world.retval = Some(narrow(value).cast_signed()));
    0
}
