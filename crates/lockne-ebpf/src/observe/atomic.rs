//! What `core` does not have for this target: it takes every BPF machine for the oldest one.

/// Adds to what others may add to.
///
/// # Safety
///
/// `to` points to a number of a map.
#[inline(always)]
pub(crate) unsafe fn add(to: *mut u64, number: u64) {
    #[cfg(target_arch = "bpf")]
    // SAFETY: by the caller's promise.
    unsafe {
        core::arch::asm!("lock *(u64 *)({0} + 0) += {1}", in(reg) to, in(reg) number);
    }
    #[cfg(not(target_arch = "bpf"))]
    // SAFETY: as above, and aligned.
    unsafe { core::sync::atomic::AtomicU64::from_ptr(to) }
        .fetch_add(number, core::sync::atomic::Ordering::Relaxed);
}

/// Puts `number` in the place of a zero, and returns what was there. Needs Linux 5.12.
///
/// # Safety
///
/// As above.
#[inline(always)]
pub(crate) unsafe fn replace_zero(to: *mut u64, number: u64) -> u64 {
    #[cfg(target_arch = "bpf")]
    // SAFETY: by the caller's promise. The instruction is `r0 = cmpxchg_64(r1 + 0, r0, r2)`, which the
    // assembler does not take for the oldest machine.
    unsafe {
        let was: u64;
        core::arch::asm!(
            ".8byte 0x000000f1000021db",
            in("r1") to,
            in("r2") number,
            inlateout("r0") 0_u64 => was,
        );
        was
    }
    #[cfg(not(target_arch = "bpf"))]
    {
        use core::sync::atomic::{AtomicU64, Ordering::Relaxed};
        // SAFETY: as above, and aligned.
        let place = unsafe { AtomicU64::from_ptr(to) };
        match place.compare_exchange(0, number, Relaxed, Relaxed) {
            Ok(was) | Err(was) => was,
        }
    }
}
