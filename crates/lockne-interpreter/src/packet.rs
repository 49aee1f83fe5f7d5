//! A packet at an address that fits in 32 bits.

use std::{ffi::c_void, ptr, slice};

use rustix::mm::{MapFlags, ProtFlags, mmap_anonymous, munmap};

use crate::Error;

/// Bytes that a program can reach through the 32-bit fields `data` and `data_end`.
///
/// The kernel replaces loads of these fields by loads of real pointers; an interpreter of plain
/// bytecode cannot, so the packet has to lie where 32 bits can point to it.
#[derive(Debug)]
pub struct Packet {
    start: *mut c_void,
    room: usize,
    len: usize,
}

/// Where the kernel is asked to put a packet: below 4 GiB and above what programs are linked to.
const PLACES: std::ops::Range<usize> = 0x1000_0000..0xf000_0000;
const STEP: usize = 0x40_0000;

impl Packet {
    /// Copies `bytes` to a place of their own.
    ///
    /// # Errors
    ///
    /// If there is no room below 4 GiB.
    pub fn new(bytes: &[u8]) -> Result<Self, Error> {
        let room = bytes.len().max(1);
        let mut last = None;
        for hint in PLACES.step_by(STEP) {
            // SAFETY: without MAP_FIXED the hint never replaces a mapping.
            let mapped = unsafe {
                mmap_anonymous(
                    ptr::without_provenance_mut(hint),
                    room,
                    ProtFlags::READ | ProtFlags::WRITE,
                    MapFlags::PRIVATE,
                )
            };
            let start = match mapped {
                Ok(start) => start,
                Err(error) => {
                    last = Some(error.into());
                    continue;
                }
            };
            let mut packet = Self {
                start,
                room,
                len: bytes.len(),
            };
            if u32::try_from(packet.start.addr() + room).is_ok() {
                packet.bytes_mut().copy_from_slice(bytes);
                return Ok(packet);
            }
        }
        Err(Error::Memory {
            len: room,
            source: last,
        })
    }

    /// What is in the packet now.
    #[must_use]
    pub fn bytes(&self) -> &[u8] {
        // SAFETY: the mapping is ours, readable and that long.
        unsafe { slice::from_raw_parts(self.start.cast(), self.len) }
    }

    /// As [`bytes`](Self::bytes), to change it.
    pub fn bytes_mut(&mut self) -> &mut [u8] {
        // SAFETY: the mapping is ours, writable and that long, and borrowed as `self` is.
        unsafe { slice::from_raw_parts_mut(self.start.cast(), self.len) }
    }

    /// Where the packet starts and ends, as contexts have it.
    #[must_use]
    #[expect(
        clippy::cast_possible_truncation,
        reason = "checked when it was mapped"
    )]
    pub fn range(&self) -> (u32, u32) {
        let start = self.start.addr() as u32;
        (start, start + self.len as u32)
    }
}

impl Drop for Packet {
    fn drop(&mut self) {
        // SAFETY: the mapping is ours, and no slice of it outlives `self`.
        let unmapped = unsafe { munmap(self.start, self.room) };
        debug_assert!(unmapped.is_ok(), "the mapping is ours");
    }
}
