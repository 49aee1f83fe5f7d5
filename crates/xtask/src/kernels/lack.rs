//! What cannot work on a kernel, and why.

/// Tests that need another kernel.
struct Lack {
    /// What the tests' names begin with, as `suite/module::name`.
    tests: &'static [&'static str],
    /// The first after it on which they must be right.
    since: (u32, u32),
    reason: &'static str,
}

/// Each of them. Above its version, nothing is excused.
const LACKS: [Lack; 9] = [
    Lack {
        tests: &[
            "kernel/mark::multipath_tcp_is_refused_so_that_applications_fall_back",
            "kernel/remark::older_socket_loses_one_datagram_and_then_is_marked",
            "kernel/remark::connect_of_a_socket_bound_to_a_wrong_device_fails_at_once",
            "kernel/guard::nothing_leaves_by_a_wrong_device",
        ],
        since: (5, 18),
        // What is refused is refused all the same.
        reason: "the kernel lets no program choose the error, so it is EPERM",
    },
    Lack {
        tests: &[
            "kernel/mark::process_without_a_policy_is_left_alone",
            "kernel/mark::socket_in_another_namespace_is_left_alone",
        ],
        since: (6, 1),
        reason: "a socket of multipath TCP does not tell its mark",
    },
    Lack {
        tests: &["kernel/guard::namespace_with_the_number_of_a_dead_one_is_left_alone"],
        since: NEVER,
        reason: "an emulator does not make enough namespaces in a minute to get a number again",
    },
    Lack {
        tests: &["kernel/family::thirty_two_thousand_processes_each_have_their_policy"],
        since: NEVER,
        reason: "32 000 processes need more memory than the machine has",
    },
    Lack {
        tests: &["lab/family::children_that_send_at_once_are_tunnelled_from_the_first_packet"],
        since: NEVER,
        reason: "30 000 processes take too long in an emulator",
    },
    Lack {
        tests: &["lab/attach::no_child_of_a_fork_storm_escapes"],
        since: NEVER,
        reason: "a storm of processes takes too long in an emulator",
    },
    Lack {
        tests: &["observe/storm_of_ten_thousand_starts_is_seen_whole_or_its_loss_is_told"],
        since: NEVER,
        reason: "10 000 programs take too long in an emulator",
    },
    Lack {
        tests: &[
            "lab/dns::every_program_with_every_resolv_conf_asks_the_tunnels_resolver",
            "lab/metrics::prometheus_scrapes_what_programs_did_and_every_metric_is_there",
            "lab/monitor::capture_tells_tshark_the_process",
        ],
        since: NEVER,
        // They have nothing of the kernel in them.
        reason: "the program it asks is too large for the memory",
    },
    Lack {
        tests: &["lab/dns::sockets_of_resolvers_refuse_policed_programs"],
        since: (6, 7),
        reason: "the kernel does not ask about Unix sockets; they are hidden instead",
    },
];

/// Later than every kernel.
const NEVER: (u32, u32) = (u32::MAX, 0);

/// The first version that lockne works on.
pub(crate) const MINIMUM: (u32, u32) = (5, 14);

/// What cannot be right on a kernel, by the names of the tests of a suite, each with its reason.
pub(crate) fn of(suite: &str, version: (u32, u32)) -> Vec<(&'static str, &'static str)> {
    let lacks = LACKS.iter().filter(|lack| version < lack.since);
    let tests = lacks.flat_map(|lack| lack.tests.iter().map(|test| (*test, lack.reason)));
    tests
        .filter_map(|(test, reason)| Some((test.strip_prefix(suite)?.strip_prefix('/')?, reason)))
        .collect()
}

/// Whether this is what a newer kernel would have.
pub(crate) fn needs_newer(reason: &str) -> bool {
    let mut lacks = LACKS.iter().filter(|lack| lack.reason == reason);
    lacks.any(|lack| lack.since != NEVER)
}

/// The two numbers that a version begins with.
pub(crate) fn version(release: &str) -> (u32, u32) {
    let mut numbers = release
        .split(['.', '-', '+'])
        .map(|part| part.parse().unwrap_or(0));
    (numbers.next().unwrap_or(0), numbers.next().unwrap_or(0))
}
