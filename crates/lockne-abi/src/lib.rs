//! The contract between the kernel programs and the daemon.
//!
//! Every type here lives in a BPF map or in the read-only data of the programs. So each one is
//! `repr(C)`, has no padding and no pointers, and is valid for every bit pattern: the kernel hands
//! back whatever bytes were stored. An all-zero value is always the safe one.

#![no_std]

pub mod flow;
pub mod observe;

/// How many values a policy id can have. Id 0 stands for "no policy".
pub const POLICIES: u32 = 256;

/// How many processes one entry of [`name::PROCESSES`] holds.
///
/// An array map rounds each value up to eight bytes, so single bytes would waste seven of eight.
pub const PROCESSES_PER_PAGE: u32 = 64;

/// How many destination prefixes all policies together can let through to the local network.
pub const MAX_LAN_PREFIXES: u32 = 1024;

/// How many devices can be stamped on ingress.
pub const MAX_DEVICES: u32 = 256;

/// Names under which the daemon finds maps and programs in the BPF object.
pub mod name {
    /// Array from process id divided by [`PROCESSES_PER_PAGE`](crate::PROCESSES_PER_PAGE) to the
    /// policy ids of so many processes, one byte each.
    pub const PROCESSES: &str = "PROCESSES";
    /// Array from policy id to [`Policy`](crate::Policy).
    pub const POLICIES: &str = "POLICIES";
    /// Array of one number: not 0 once a child of a process with a policy got an id beyond
    /// [`PROCESSES`], so that it could not be recorded.
    pub const OVERFLOW: &str = "OVERFLOW";
    /// Array of one number: not 0 once a process under a policy that can mark packets has made a
    /// socket, so that the guard must ask sockets for their marks.
    pub const STRICT: &str = "STRICT";
    /// Per-CPU array of one number: how many children have inherited a policy so far.
    pub const FORKS: &str = "FORKS";
    /// Per-CPU array from policy id to [`Counters`](crate::Counters).
    pub const COUNTERS: &str = "COUNTERS";
    /// Longest-prefix map of [`LanKey`](crate::LanKey): what a policy lets through past its tunnel.
    pub const LAN: &str = "LAN";
    /// Hash from device index to the policy id stamped on what arrives there.
    pub const DEVICES: &str = "DEVICES";
    /// The read-only [`Config`](crate::Config).
    pub const CONFIG: &str = "CONFIG";
    /// Array of one [`Config`](crate::Config), a copy that the next daemon can read.
    pub const LOADED: &str = "LOADED";

    /// Program on `cgroup/sock_create`.
    pub const MARK_SOCKET: &str = "mark_socket";
    /// Program on `cgroup/connect4`.
    pub const CONNECT4: &str = "connect4";
    /// Program on `cgroup/connect6`.
    pub const CONNECT6: &str = "connect6";
    /// Program on `cgroup/sendmsg4`.
    pub const SENDMSG4: &str = "sendmsg4";
    /// Program on `cgroup/sendmsg6`.
    pub const SENDMSG6: &str = "sendmsg6";
    /// Program on `cgroup/setsockopt`.
    pub const KEEP_MARK: &str = "keep_mark";
    /// Program on `cgroup_skb/egress`.
    pub const GUARD_EGRESS: &str = "guard_egress";
    /// Program on `cgroup_skb/ingress`.
    pub const COUNT_INGRESS: &str = "count_ingress";
    /// Program on `tp_btf/sched_process_fork`.
    pub const FOLLOW_FORK: &str = "follow_fork";
    /// Program on `tp_btf/sched_process_exit`.
    pub const FORGET_EXIT: &str = "forget_exit";
    /// Classifier on the ingress of each tunnel device.
    pub const STAMP_REPLY: &str = "stamp_reply";
}

/// The eight bits of a socket's mark that carry the policy id.
///
/// The other 24 bits belong to other programs and are never changed.
#[repr(transparent)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MarkField {
    shift: u32,
}

impl MarkField {
    /// Bits 24 to 31: free of wg-quick's `0xca6c`, Tailscale's bits 16 to 23 and Kubernetes' 14 and 15.
    pub const DEFAULT: Self = Self { shift: 24 };

    /// Creates the field that starts at bit `shift`, or `None` if it would not fit in 32 bits.
    #[must_use]
    pub const fn new(shift: u32) -> Option<Self> {
        if shift <= 24 {
            Some(Self { shift })
        } else {
            None
        }
    }

    /// The number of the field's lowest bit.
    #[must_use]
    pub const fn shift(self) -> u32 {
        self.shift
    }

    /// The bits of the mark that this field owns.
    #[must_use]
    pub const fn mask(self) -> u32 {
        0xff << self.shift
    }

    /// The field's bits for policy `id`, all others zero.
    #[must_use]
    pub const fn mark(self, id: u8) -> u32 {
        (id as u32) << self.shift
    }

    /// The policy id in `mark`; 0 if it names none.
    #[must_use]
    pub const fn policy(self, mark: u32) -> u8 {
        (mark >> self.shift & 0xff) as u8
    }

    /// `mark` with its policy id replaced by `id`.
    #[must_use]
    pub const fn stamp(self, mark: u32, id: u8) -> u32 {
        mark & !self.mask() | self.mark(id)
    }
}

/// What a policy lets out. Zeroed memory blocks everything but loopback.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Policy {
    action: u32,
    ifindex: u32,
    flags: u32,
}

const ACTION_TUNNEL: u32 = 1;
const ACTION_DIRECT: u32 = 2;
const FLAG_SHARED: u32 = 1;

impl Policy {
    /// Lets nothing out but loopback.
    pub const BLOCK: Self = Self {
        action: 0,
        ifindex: 0,
        flags: 0,
    };

    /// Lets packets out by any device.
    pub const DIRECT: Self = Self {
        action: ACTION_DIRECT,
        ..Self::BLOCK
    };

    /// Lets packets out by the device `ifindex` only.
    #[must_use]
    pub const fn tunnel(ifindex: u32) -> Self {
        Self {
            action: ACTION_TUNNEL,
            ifindex,
            ..Self::BLOCK
        }
    }

    /// Says that another policy uses the same device, so that a packet's own mark does not tell
    /// whose it is on ingress.
    #[must_use]
    pub const fn shared(self) -> Self {
        Self {
            flags: self.flags | FLAG_SHARED,
            ..self
        }
    }

    /// Whether packets may leave by the device `ifindex`.
    #[must_use]
    pub const fn allows(self, ifindex: u32) -> bool {
        match self.action {
            ACTION_TUNNEL => self.ifindex == ifindex && ifindex != 0,
            ACTION_DIRECT => true,
            _ => false,
        }
    }

    /// The tunnel's device, or 0 if the policy has none.
    #[must_use]
    pub const fn ifindex(self) -> u32 {
        self.ifindex
    }

    /// Whether the policy lets everything out.
    #[must_use]
    pub const fn is_direct(self) -> bool {
        self.action == ACTION_DIRECT
    }

    /// Whether another policy uses the same device.
    #[must_use]
    pub const fn is_shared(self) -> bool {
        self.flags & FLAG_SHARED != 0
    }
}

/// What a policy's sockets have sent and received beside loopback, and what was refused.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counters {
    /// Packets that left.
    pub tx_packets: u64,
    /// Bytes of the packets that left, from the IP header on.
    pub tx_bytes: u64,
    /// Packets that arrived.
    pub rx_packets: u64,
    /// Bytes of the packets that arrived, from the IP header on.
    pub rx_bytes: u64,
    /// Packets and calls that were refused.
    pub refused: u64,
}

/// A destination that a policy may reach past its tunnel. IPv4 addresses are v4-mapped.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LanKey {
    /// The policy id.
    pub policy: u8,
    /// The address in network order.
    pub address: [u8; 16],
}

impl LanKey {
    /// The bits before an IPv6 prefix: the policy id.
    pub const V6_OFFSET: u32 = 8;
    /// The bits before an IPv4 prefix: the policy id and `::ffff:0:0/96`.
    pub const V4_OFFSET: u32 = Self::V6_OFFSET + 96;
}

/// What the daemon tells the programs when it loads them.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Config {
    /// The cookie of the network namespace the programs act in.
    pub netns_cookie: u64,
    /// The inode of the same namespace.
    pub netns_inode: u32,
    /// [`MarkField::shift`].
    pub mark_shift: u32,
    /// How many process ids [`name::PROCESSES`] has room for.
    pub max_processes: u32,
    /// Byte offset of `task_struct.tgid`.
    pub task_tgid: u32,
    /// Byte offset of `task_struct.pid`.
    pub task_pid: u32,
    /// Byte offset of `task_struct.signal`.
    pub task_signal: u32,
    /// Byte offset of `signal_struct.live`.
    pub signal_live: u32,
    /// Byte offset of `sock_common.skc_net`.
    pub sock_net: u32,
    /// Byte offset of the namespace inode in `struct net`.
    pub net_inode: u32,
    /// 1 where `bpf_set_retval` exists (Linux 5.18), else 0.
    pub has_set_retval: u32,
    /// Byte offset of `task_struct.cred`.
    pub task_cred: u32,
    /// Byte offset of `cred.cap_effective`.
    pub cred_effective: u32,
    /// Byte offset of `cred.user_ns`.
    pub cred_user_ns: u32,
    /// Byte offset of `user_namespace.level`.
    pub user_ns_level: u32,
}

const _: () = assert!(size_of::<Policy>() == 12);
const _: () = assert!(size_of::<Counters>() == 40);
const _: () = assert!(size_of::<LanKey>() == 17);
const _: () = assert!(size_of::<Config>() == 64);

#[cfg(feature = "user")]
mod user {
    use crate::{Config, Counters, LanKey, Policy};

    // SAFETY: three `u32`, so no padding; every bit pattern is valid.
    unsafe impl aya::Pod for Policy {}
    // SAFETY: five `u64`, so no padding; every bit pattern is valid.
    unsafe impl aya::Pod for Counters {}
    // SAFETY: bytes only, so no padding; every bit pattern is valid.
    unsafe impl aya::Pod for LanKey {}
    // SAFETY: a `u64` and fourteen `u32`, so no padding; every bit pattern is valid.
    unsafe impl aya::Pod for Config {}
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn zeroed_policy_lets_nothing_out() {
        // SAFETY: `Policy` is three `u32`.
        let zeroed: Policy = unsafe { core::mem::zeroed() };

        assert_eq!(zeroed, Policy::BLOCK);
        assert!(!zeroed.allows(0) && !zeroed.allows(2));
    }

    #[test]
    fn tunnel_without_a_device_lets_nothing_out() {
        assert!(!Policy::tunnel(0).allows(0));
        assert!(Policy::tunnel(3).allows(3) && !Policy::tunnel(3).allows(2));
    }

    #[test]
    fn unknown_action_lets_nothing_out() {
        let unknown = Policy {
            action: 77,
            ifindex: 3,
            flags: 0,
        };

        assert!(!unknown.allows(3));
    }

    #[test]
    fn stamp_keeps_the_bits_of_others() {
        let field = MarkField::new(8).unwrap();

        let mark = field.stamp(0xabcd_ef01, 0x42);

        assert_eq!(mark, 0xabcd_4201);
        assert_eq!(field.policy(mark), 0x42);
        assert_eq!(field.stamp(mark, 0), 0xabcd_0001);
    }

    #[test]
    fn field_beyond_the_mark_is_refused() {
        assert!(MarkField::new(24).is_some() && MarkField::new(25).is_none());
    }
}
