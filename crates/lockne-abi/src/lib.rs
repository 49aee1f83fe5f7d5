//! The contract between the kernel programs and the daemon.
//!
//! Every type here lives in a BPF map or in the read-only data of the programs. So each one is
//! `repr(C)`, has no padding and no pointers, and is valid for every bit pattern: the kernel hands
//! back whatever bytes were stored. An all-zero value is always the safe one.

#![no_std]

mod endpoint;
pub mod flow;
pub mod name;
pub mod observe;
mod rules;

pub use endpoint::{
    Endpoint, Rename, Renames, Resolver, Resolvers, Words, is_loopback, is_mapped, is_unspecified,
    words,
};
pub use rules::{
    Executable, Filter, Group, GroupName, Hash, InForce, Outline, Place, RuleBits, RuleSet, Script,
    Seen, Unnamed, User, look, user_bit,
};

/// Rules decided at exec.
pub use rules::{
    MAX_GROUP_NAME, MAX_PLACE_NAME, MAX_RULES, MAX_SCRIPT_NAME, RULE_WORDS, SHORT_NAME,
    UNNAMED_GROUPS, node,
};

/// How many values a policy id can have. Id 0 stands for "no policy".
pub const POLICIES: u32 = 256;

/// How many processes one entry of [`name::PROCESSES`] holds.
///
/// An array map rounds each value up to eight bytes, so single words would waste six of eight.
pub const PROCESSES_PER_PAGE: u32 = 64;

/// How many programs count in [`name::FORKS`], each for itself.
pub const FORK_COUNTERS: u32 = 3;

/// How many destination prefixes all policies together can let through to the local network.
pub const MAX_LAN_PREFIXES: u32 = 1024;

/// How many devices can be stamped on ingress.
pub const MAX_DEVICES: u32 = 256;

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

/// Under what a process stands: its policy, and whether somebody chose it by hand.
///
/// What was chosen by hand, no rule changes: neither for the process nor for its children.
#[repr(transparent)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Member(pub u16);

impl Member {
    /// No policy; a rule may give it one.
    pub const FREE: Self = Self(0);
    const CHOSEN: u16 = 0x100;

    /// Policy `id`, by a rule; 0 stands for none.
    #[must_use]
    pub const fn by_rule(id: u8) -> Self {
        Self(id as u16)
    }

    /// Policy `id`, by hand; 0 stands for none, whatever rules say.
    #[must_use]
    pub const fn chosen(id: u8) -> Self {
        Self(id as u16 | Self::CHOSEN)
    }

    /// The policy id, or 0.
    #[must_use]
    pub const fn policy(self) -> u8 {
        (self.0 & 0xff) as u8
    }

    /// Whether rules leave it as it is.
    #[must_use]
    pub const fn is_chosen(self) -> bool {
        self.0 & Self::CHOSEN != 0
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

/// What a policy's sockets have sent beside loopback, what arrived by its tunnel, and what was refused.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counters {
    /// Packets that left.
    pub tx_packets: u64,
    /// Bytes of the packets that left, from the IP header on.
    pub tx_bytes: u64,
    /// IP packets that arrived; where policies share the tunnel, those of TCP and UDP for a socket of this one.
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
    /// Byte offset of `task_struct.self_exec_id`.
    pub task_exec_id: u32,
    /// 1 where the kernel may pass over a program on a tracepoint (Linux 7.0), else 0.
    pub has_misses: u32,
    /// Byte offset of `signal_struct.live`.
    pub signal_live: u32,
    /// Byte offset of `sock_common.skc_net`.
    pub sock_net: u32,
    /// Byte offset of `net.net_cookie`.
    pub net_cookie: u32,
    /// 1 where `bpf_set_retval` exists (Linux 5.18), else 0.
    pub has_set_retval: u32,
    /// Byte offset of `bpf_sock_addr_kern.uaddr`.
    pub unix_address: u32,
    /// Byte offset of `bpf_sock_addr_kern.uaddrlen`; 0 where there is no such thing (before Linux 6.7).
    pub unix_length: u32,
    /// Byte offset of `task_struct.cgroups`.
    pub task_cgroups: u32,
    /// Byte offset of `css_set.dfl_cgrp`.
    pub css_set_cgroup: u32,
    /// Byte offset of `cgroup.kn`.
    pub cgroup_node: u32,
    /// Byte offset of the parent in `struct kernfs_node`.
    pub node_parent: u32,
    /// Byte offset of `kernfs_node.name`.
    pub node_name: u32,
    /// Byte offset of `linux_binprm.file`.
    pub exec_file: u32,
    /// Byte offset of `linux_binprm.filename`.
    pub exec_filename: u32,
    /// Byte offset of `linux_binprm.interp`.
    pub exec_interpreter: u32,
    /// Byte offset of `file.f_inode`.
    pub file_inode: u32,
    /// Byte offset of `file.f_path.dentry`.
    pub file_dentry: u32,
    /// Byte offset of `inode.i_ino`.
    pub inode_number: u32,
    /// Byte offset of `inode.i_sb`.
    pub inode_super: u32,
    /// Byte offset of `super_block.s_dev`.
    pub super_device: u32,
    /// Byte offset of `dentry.d_parent`.
    pub dentry_parent: u32,
    /// Byte offset of `dentry.d_inode`.
    pub dentry_inode: u32,
    /// Byte offset of `dentry.d_name.name`.
    pub dentry_name: u32,
    /// Byte offset of `dentry.d_name.len`.
    pub dentry_length: u32,
    /// Byte offset of `dentry.d_shortname`, which was `d_iname` before Linux 6.14.
    pub dentry_short_name: u32,
    /// Byte offset of `task_struct.cred`.
    pub task_cred: u32,
    /// Byte offset of `cred.cap_permitted`.
    pub cred_permitted: u32,
    /// Byte offset of `cred.user_ns`.
    pub cred_user_ns: u32,
    /// Byte offset of `user_namespace.level`.
    pub user_ns_level: u32,
    /// 1 if programs at `setsockopt` may ask for the id of the process (`bpf_get_current_pid_tgid`, Linux 6.1).
    pub has_option_pid: u32,
}

const _: () = assert!(size_of::<Policy>() == 12);
const _: () = assert!(size_of::<Counters>() == 40);
const _: () = assert!(size_of::<LanKey>() == 17);
const _: () = assert!(size_of::<Config>() == 152);

#[cfg(feature = "user")]
mod user {
    use crate::{Config, Counters, LanKey, Policy, Renames, Resolvers};

    // SAFETY: three `u32`, so no padding; every bit pattern is valid.
    unsafe impl aya::Pod for Policy {}
    // SAFETY: five `u64`, so no padding; every bit pattern is valid.
    unsafe impl aya::Pod for Counters {}
    // SAFETY: bytes only, so no padding; every bit pattern is valid.
    unsafe impl aya::Pod for LanKey {}
    // SAFETY: 28 `u32`, so no padding; every bit pattern is valid.
    unsafe impl aya::Pod for Resolvers {}
    // SAFETY: 20 `u32`, so no padding; every bit pattern is valid.
    unsafe impl aya::Pod for Renames {}
    // SAFETY: a `u64` and thirty-two `u32`, so no hidden padding; every bit pattern is valid.
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
    fn choice_by_hand_is_told_from_a_rules() {
        assert!(Member::chosen(255).is_chosen() && !Member::by_rule(255).is_chosen());
        assert_eq!(Member::chosen(7).policy(), Member::by_rule(7).policy());
        assert!(Member::chosen(0).is_chosen() && Member::chosen(0).policy() == 0);
    }

    #[test]
    fn field_beyond_the_mark_is_refused() {
        assert!(MarkField::new(24).is_some() && MarkField::new(25).is_none());
    }
}
