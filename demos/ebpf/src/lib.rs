//! What the demos' programs share: with user space, the types in maps; with each other, a few lines.
//!
//! Everything a demo is about is in its own file below `src/bin`.

#![no_std]

pub mod cgroup_skb;
pub mod kprobe_uprobe;
pub mod packet;
pub mod packet_monitor;
pub mod ping_monitor;
pub mod process_tracker;
pub mod report;
pub mod socket_cookie;
pub mod storage;
pub mod syscall_tracer;
pub mod tc_shaper;
pub mod xdp_balancer;
pub mod xdp_filter;

/// Declares types that cross from the kernel to user space: plain bytes without padding, any of them valid.
///
/// Padding would carry a program's stack to user space, so the verifier refuses a map value or a record with any.
#[macro_export]
macro_rules! shared {
    ($($(#[$attribute:meta])* struct $name:ident { $($(#[$doc:meta])* $field:ident: $type:ty),* $(,)? })*) => {$(
        $(#[$attribute])*
        #[repr(C)]
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub struct $name { $($(#[$doc])* pub $field: $type),* }

        impl Default for $name {
            #[inline(always)]
            fn default() -> Self {
                // SAFETY: integers and arrays of them may be zero.
                unsafe { core::mem::zeroed() }
            }
        }

        const _: () = assert!(size_of::<$name>() == 0 $(+ size_of::<$type>())*, "padding");

        // SAFETY: `repr(C)`, and the assertion says that there is no padding; integers take any bits.
        #[cfg(feature = "user")]
        unsafe impl aya::Pod for $name {}
    )*};
}

/// What a program needs and nobody wants to read: its licence, and an empty `main` for the host,
/// where the file is checked but never run.
#[macro_export]
macro_rules! program {
    () => {
        /// Most helpers of the kernel are for GPL programs only.
        #[unsafe(link_section = "license")]
        #[unsafe(no_mangle)]
        static LICENSE: [u8; 13] = *b"Dual MIT/GPL\0";

        /// Never runs: the verifier rejects a program that could reach it.
        #[cfg(target_arch = "bpf")]
        #[panic_handler]
        fn panic(_: &core::panic::PanicInfo<'_>) -> ! {
            loop {}
        }

        #[cfg(not(target_arch = "bpf"))]
        fn main() {}
    };
}
