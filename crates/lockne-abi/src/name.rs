//! Names under which the daemon finds maps and programs in the BPF object.

/// Array from process id divided by [`PROCESSES_PER_PAGE`](crate::PROCESSES_PER_PAGE) to the
/// [`Member`](crate::Member)s of so many processes, two bytes each.
pub const PROCESSES: &str = "PROCESSES";
/// Array from process id divided by [`PROCESSES_PER_PAGE`](crate::PROCESSES_PER_PAGE) to what so many processes
/// executed last, as far as it was seen: a byte each. One entry where [`Config::has_misses`](crate::Config) is 0.
pub const EXECS: &str = "EXECS";
/// Array from policy id to [`Policy`](crate::Policy).
pub const POLICIES: &str = "POLICIES";
/// Array of one number: not 0 once a child of a process with a policy got an id beyond
/// [`PROCESSES`], so that it could not be recorded.
pub const OVERFLOW: &str = "OVERFLOW";
/// Array of one number: not 0 once a process under a policy that can mark packets has made a
/// socket, so that the guard must ask sockets for their marks.
pub const STRICT: &str = "STRICT";
/// The variable by which the daemon makes the guard ask, until it has read [`STRICT`].
pub const ASSUMED: &str = "ASSUMED";
/// The map that the loader makes of what the daemon writes: [`ASSUMED`].
pub const DATA: &str = ".data";
/// The map that the loader makes of what the programs write: whether one of them has set [`STRICT`].
pub const BSS: &str = ".bss";
/// Per-CPU array of [`FORK_COUNTERS`](crate::FORK_COUNTERS) numbers: how many children have inherited a policy so far,
/// and how many programs got one from a rule.
pub const FORKS: &str = "FORKS";
/// Per-CPU array from policy id to [`Counters`](crate::Counters).
pub const COUNTERS: &str = "COUNTERS";
/// Longest-prefix map of [`LanKey`](crate::LanKey): what a policy lets through past its tunnel.
pub const LAN: &str = "LAN";
/// Hash from device index to the policy id stamped on what arrives there.
pub const DEVICES: &str = "DEVICES";
/// Array from policy id to [`Resolvers`](crate::Resolvers).
pub const RESOLVERS: &str = "RESOLVERS";
/// Storage of a socket: [`Renames`](crate::Renames), whom it was told that it asks.
pub const NAMES: &str = "NAMES";
/// The read-only [`Config`](crate::Config).
pub const CONFIG: &str = "CONFIG";
/// Array of one [`Config`](crate::Config), a copy that the next daemon can read.
pub const LOADED: &str = "LOADED";

/// Array of one [`InForce`](crate::InForce).
pub const IN_FORCE: &str = "IN_FORCE";
/// Array from slot to [`RuleSet`](crate::RuleSet).
pub const RULES: &str = "RULES";
/// Hash from [`Executable`](crate::Executable) to [`RuleBits`](crate::RuleBits).
pub const EXECUTABLES: &str = "EXECUTABLES";
/// Hash from [`Place`](crate::Place) to [`RuleBits`](crate::RuleBits).
pub const PLACES: &str = "PLACES";
/// Hash from [`Script`](crate::Script) to [`RuleBits`](crate::RuleBits).
pub const SCRIPTS: &str = "SCRIPTS";
/// Hash from [`User`](crate::User) to [`RuleBits`](crate::RuleBits).
pub const USERS: &str = "USERS";
/// Hash from [`GroupName`](crate::GroupName) to [`Group`](crate::Group).
pub const GROUPS: &str = "GROUPS";
/// Hash from [`Seen`](crate::Seen) to [`RuleBits`](crate::RuleBits): what the walk over a cgroup's
/// names came to.
pub const SEEN: &str = "SEEN";
/// Array from slot to [`Unnamed`](crate::Unnamed).
pub const UNNAMED: &str = "UNNAMED";

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
/// Program on `cgroup/recvmsg4`.
pub const RECVMSG4: &str = "recvmsg4";
/// Program on `cgroup/recvmsg6`.
pub const RECVMSG6: &str = "recvmsg6";
/// Program on `cgroup/getpeername4`.
pub const GETPEERNAME4: &str = "getpeername4";
/// Program on `cgroup/getpeername6`.
pub const GETPEERNAME6: &str = "getpeername6";
/// Program on `cgroup/connect_unix`, which not every kernel has.
pub const CONNECT_UNIX: &str = "connect_unix";
/// Program on `cgroup/setsockopt`.
pub const KEEP_MARK: &str = "keep_mark";
/// Program on `cgroup_skb/egress`.
pub const GUARD_EGRESS: &str = "guard_egress";
/// Program on `tp_btf/sched_wakeup_new`.
pub const FOLLOW_FORK: &str = "follow_fork";
/// Program on `tp_btf/sched_process_exec`.
pub const DECIDE_EXEC: &str = "decide_exec";
/// Another on `tp_btf/sched_process_exec`, for what the first one missed. Only where
/// [`Config::has_misses`](crate::Config) is 1.
pub const DECIDE_MISSED: &str = "decide_missed";
/// Program on `tp_btf/sched_process_exit`.
pub const FORGET_EXIT: &str = "forget_exit";
/// Another on `tp_btf/sched_process_exit`, as [`DECIDE_MISSED`].
pub const FORGET_MISSED: &str = "forget_missed";
/// Classifier on the ingress of each tunnel device.
pub const STAMP_REPLY: &str = "stamp_reply";
