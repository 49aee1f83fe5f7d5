//! Memory that belongs to a socket, goes with it, and is copied to the sockets that a listener accepts.
//!
//! `aya-ebpf` 0.2 has this map for one type of program alone, so its definition is here: the kernel learns the types
//! of key and value from the debug information of these fields, whose values do not matter.

use core::{ffi::c_void, ptr::null};

use aya_ebpf::{
    bindings::{BPF_F_CLONE, BPF_F_NO_PREALLOC, bpf_map_type::BPF_MAP_TYPE_SK_STORAGE},
    helpers::generated::bpf_sk_storage_get,
};

const KIND: usize = BPF_MAP_TYPE_SK_STORAGE as usize;
const FLAGS: usize = (BPF_F_NO_PREALLOC | BPF_F_CLONE) as usize;
/// Make it if the socket has none.
const CREATE: u64 = 1;

/// A `T` for each socket.
#[repr(C)]
pub(crate) struct SocketStorage<T> {
    r#type: *const [i32; KIND],
    key: *const i32,
    value: *const T,
    max_entries: *const [i32; 0],
    map_flags: *const [i32; FLAGS],
}

// SAFETY: the fields are never used as pointers, and the kernel guards the map.
unsafe impl<T> Sync for SocketStorage<T> {}

impl<T> SocketStorage<T> {
    pub(crate) const fn new() -> Self {
        Self {
            r#type: null(),
            key: null(),
            value: null(),
            max_entries: null(),
            map_flags: null(),
        }
    }

    /// The value of a socket, null if it has none.
    ///
    /// # Safety
    ///
    /// `socket` is a socket that the kernel gave, and not null.
    #[inline(always)]
    pub(crate) unsafe fn get(&self, socket: *mut c_void) -> *mut T {
        // SAFETY: by the caller's promise.
        unsafe { self.find(socket, 0) }
    }

    /// The same, zero at first; null if there is no memory.
    ///
    /// # Safety
    ///
    /// As above.
    #[inline(always)]
    pub(crate) unsafe fn get_or_create(&self, socket: *mut c_void) -> *mut T {
        // SAFETY: by the caller's promise.
        unsafe { self.find(socket, CREATE) }
    }

    #[inline(always)]
    unsafe fn find(&self, socket: *mut c_void, flags: u64) -> *mut T {
        let map = core::ptr::from_ref(self).cast_mut().cast();
        // SAFETY: this is a map, and the caller vouches for the socket.
        unsafe { bpf_sk_storage_get(map, socket, core::ptr::null_mut(), flags) }.cast()
    }
}
