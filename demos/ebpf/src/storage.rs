//! Memory that belongs to a socket, and goes with it.
//!
//! `aya-ebpf` 0.2 has this map for one type of program alone, so its definition is here: the kernel learns the types
//! of key and value from the debug information of these fields, whose values do not matter.

use core::{ffi::c_void, ptr::null};

use aya_ebpf::{
    bindings::{BPF_F_NO_PREALLOC, bpf_map_type::BPF_MAP_TYPE_SK_STORAGE},
    helpers::generated::bpf_sk_storage_get,
};

const KIND: usize = BPF_MAP_TYPE_SK_STORAGE as usize;
const FLAGS: usize = BPF_F_NO_PREALLOC as usize;
/// Make it if the socket has none.
const CREATE: u64 = 1;

/// A `T` for each socket.
#[repr(C)]
pub struct SocketStorage<T> {
    r#type: *const [i32; KIND],
    key: *const i32,
    value: *const T,
    max_entries: *const [i32; 0],
    map_flags: *const [i32; FLAGS],
}

// SAFETY: the fields are never used as pointers, and the kernel guards the map.
unsafe impl<T> Sync for SocketStorage<T> {}

impl<T> SocketStorage<T> {
    /// The definition of the map.
    #[expect(clippy::new_without_default, reason = "only ever a static")]
    #[must_use]
    pub const fn new() -> Self {
        Self {
            r#type: null(),
            key: null(),
            value: null(),
            max_entries: null(),
            map_flags: null(),
        }
    }

    /// The value of a socket, zero at first; null if there is no memory.
    ///
    /// # Safety
    ///
    /// `socket` is what the kernel gave as a packet's socket, and not null.
    #[inline(always)]
    pub unsafe fn get(&self, socket: *mut c_void) -> *mut T {
        let map = core::ptr::from_ref(self).cast_mut().cast();
        // SAFETY: this is a map, and the caller vouches for the socket.
        unsafe { bpf_sk_storage_get(map, socket, core::ptr::null_mut(), CREATE) }.cast()
    }
}
