//! What the watching programs and whoever started them tell each other.
//!
//! They are an object of their own, loaded while somebody watches and gone when they stop.

/// Names under which maps and programs are found in the object.
pub mod name {
    /// The read-only [`Config`](super::Config).
    pub const CONFIG: &str = "OBSERVE";
    /// Ring buffer of what was seen.
    pub const RECORDS: &str = "RECORDS";
    /// Per-CPU array of [`Counts`](super::Counts), one entry.
    pub const COUNTS: &str = "COUNTS";
    /// Per-CPU array of the packet that is being looked at, one entry.
    pub const SCRATCH: &str = "SCRATCH";
    /// Program array: the filter, then what reports a packet that it took.
    pub const STAGES: &str = "STAGES";
    /// Socket storage of [`Owner`](super::Owner).
    pub const OWNERS: &str = "OWNERS";
    /// Hash of echo ids and the [`Owner`](super::Owner) that sent a request with it.
    pub const ECHOES: &str = "ECHOES";
    /// Hash of the addresses whose pings are refused, as [`Packet::source`](super::Packet) has them.
    pub const REFUSED: &str = "REFUSED";
    /// Hash from process id to when it began to run its program.
    pub const RUNS: &str = "RUNS";

    /// Classifiers that see packets with an Ethernet header come in, and go out.
    pub const ETHERNET: [&str; 2] = ["ethernet_in", "ethernet_out"];
    /// The same for packets that start with the IP header.
    pub const BARE: [&str; 2] = ["bare_in", "bare_out"];
    /// What the filter hands a packet to.
    pub const REPORT: &str = "report";
    /// Classifiers for pings: with an Ethernet header, and without.
    pub const PINGS: [&str; 2] = ["ethernet_ping", "bare_ping"];
    /// Program on `cgroup/sock_create`.
    pub const OWN_SOCKET: &str = "own_socket";
    /// Program on `tp_btf/sched_process_exec`.
    pub const SEE_EXEC: &str = "see_exec";
    /// Program on `tp_btf/sched_process_exit`.
    pub const SEE_EXIT: &str = "see_exit";
}

/// The place of the filter in [`name::STAGES`].
pub const FILTER: u32 = 0;
/// The place of [`name::REPORT`] in [`name::STAGES`].
pub const REPORT: u32 = 1;

/// How many bytes of a packet can be copied at most.
pub const MAX_CAPTURE: u32 = 1 << 14;

/// The program arguments of an exec that are kept, in bytes.
pub const ARGUMENTS: usize = 512;

/// The bytes of a path that are kept.
pub const PATH: usize = 256;

/// What is known of a packet. Filters decide on this alone.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Packet {
    /// When it was seen: nanoseconds of `CLOCK_MONOTONIC`.
    pub time: u64,
    /// Who sends, in network order; IPv4 addresses are v4-mapped. For ARP, the sender's IPv4 address.
    pub source: [u8; 16],
    /// Who is to get it.
    pub destination: [u8; 16],
    /// The name of the process, filled up with zeros.
    pub name: [u8; 16],
    /// The process that the packet belongs to, or 0.
    pub pid: u32,
    /// The mark of the packet.
    pub mark: u32,
    /// The device it was seen at.
    pub ifindex: u32,
    /// Its length with the link's header.
    pub length: u32,
    /// The protocol behind the link's header and VLAN tags.
    pub ethertype: u16,
    /// The source port, where [`PORTS`](Self::PORTS) is set.
    pub source_port: u16,
    /// The destination port, where [`PORTS`](Self::PORTS) is set. For ICMP echo, the id.
    pub destination_port: u16,
    /// The VLAN tag that the device keeps apart from the packet, or 0.
    pub vlan: u16,
    /// The protocol in the IP header.
    pub protocol: u8,
    /// The protocol behind an IPv6 fragment header; without one, as `protocol`.
    pub behind: u8,
    /// [`PORTS`](Self::PORTS), [`INCOMING`](Self::INCOMING) and so on.
    pub flags: u8,
    /// The flags of TCP, or the type of ICMP.
    pub kind: u8,
    /// The sequence number of an ICMP echo.
    pub sequence: u16,
    /// Fills up the struct.
    pub unused: u16,
}

impl Packet {
    /// The packet has ports, as tcpdump counts it: not a later fragment, no IPv6 extension headers.
    pub const PORTS: u8 = 1;
    /// The packet came in by the device.
    pub const INCOMING: u8 = 2;
    /// The packet has an Ethernet header.
    pub const ETHERNET: u8 = 4;
    /// The packet was refused.
    pub const REFUSED: u8 = 8;
    /// The packet is TCP or ICMP with its header whole, so that `kind` says something.
    pub const KIND: u8 = 16;
    /// The VLAN tag of the packet is one of a provider (802.1ad).
    pub const PROVIDER_TAG: u8 = 32;
    /// There is a VLAN tag apart from the packet.
    pub const TAGGED: u8 = 64;

    /// Whether a flag is set.
    #[must_use]
    pub const fn has(&self, flag: u8) -> bool {
        self.flags & flag != 0
    }
}

/// A process that made a socket.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Owner {
    /// Its name, filled up with zeros.
    pub name: [u8; 16],
    /// Its id.
    pub pid: u32,
    /// Its user.
    pub uid: u32,
    /// 1 once a packet of the socket was metered.
    pub metered: u32,
}

/// How much was seen.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// Packets that the filter was asked about.
    pub seen: u64,
    /// Records that found room.
    pub kept: u64,
    /// Records that found none, and what programs of the kernel did not run for.
    pub lost: u64,
    /// Packets of connections that found no place among the flows.
    pub unmetered: u64,
}

/// A program that was started.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Exec {
    /// [`Self::TAG`].
    pub tag: u32,
    /// The process.
    pub pid: u32,
    /// Its parent.
    pub parent: u32,
    /// The user that it runs as.
    pub uid: u32,
    /// Nanoseconds of `CLOCK_MONOTONIC`.
    pub time: u64,
    /// The name of the process, filled up with zeros.
    pub name: [u8; 16],
    /// The file as it was given to `execve`, filled up with zeros.
    pub path: [u8; PATH],
    /// The arguments, each with a zero behind it.
    pub arguments: [u8; ARGUMENTS],
    /// How many bytes of `arguments` there are; more than [`ARGUMENTS`] if it was cut.
    pub arguments_len: u32,
    /// Fills up the struct.
    pub unused: u32,
}

impl Exec {
    /// What a record of this kind starts with.
    pub const TAG: u32 = 1;
}

/// A process that ended after its program was seen to start.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Exit {
    /// [`Self::TAG`].
    pub tag: u32,
    /// The process.
    pub pid: u32,
    /// When, in nanoseconds of `CLOCK_MONOTONIC`.
    pub time: u64,
    /// When its program was started.
    pub started: u64,
    /// How it ended, as `wait(2)` tells it.
    pub status: u32,
    /// Fills up the struct.
    pub unused: u32,
}

impl Exit {
    /// What a record of this kind starts with.
    pub const TAG: u32 = 2;
}

/// What the programs are told when they are loaded.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Config {
    /// How many bytes of each packet are copied, at most [`MAX_CAPTURE`].
    pub capture: u32,
    /// 1 if the filter asks for the process.
    pub needs_owner: u32,
    /// Byte offset of `task_struct.tgid`.
    pub task_tgid: u32,
    /// Byte offset of `task_struct.comm`.
    pub task_comm: u32,
    /// Byte offset of `task_struct.group_leader`.
    pub task_leader: u32,
    /// Byte offset of `task_struct.real_parent`.
    pub task_parent: u32,
    /// Byte offset of `task_struct.signal`.
    pub task_signal: u32,
    /// Byte offset of `task_struct.mm`.
    pub task_mm: u32,
    /// Byte offset of `task_struct.exit_code`.
    pub task_exit_code: u32,
    /// Byte offset of `signal_struct.live`.
    pub signal_live: u32,
    /// Byte offset of `mm_struct.arg_start`.
    pub mm_arg_start: u32,
    /// Byte offset of `mm_struct.arg_end`.
    pub mm_arg_end: u32,
    /// Byte offset of `linux_binprm.filename`.
    pub program_filename: u32,
}

const _: () = assert!(size_of::<Packet>() == 88);
const _: () = assert!(size_of::<Owner>() == 28);
const _: () = assert!(size_of::<Exec>() == 48 + PATH + ARGUMENTS);
const _: () = assert!(size_of::<Exit>() == 32);
const _: () = assert!(size_of::<Config>() == 52);

#[cfg(feature = "user")]
mod user {
    use super::{Config, Counts, Exec, Exit, Owner, Packet};

    // SAFETY: integers that fill the struct, so no padding; every bit pattern is valid.
    unsafe impl aya::Pod for Packet {}
    // SAFETY: as above.
    unsafe impl aya::Pod for Owner {}
    // SAFETY: as above.
    unsafe impl aya::Pod for Counts {}
    // SAFETY: as above.
    unsafe impl aya::Pod for Exec {}
    // SAFETY: as above.
    unsafe impl aya::Pod for Exit {}
    // SAFETY: as above.
    unsafe impl aya::Pod for Config {}
}
