//! What cannot work on a kernel, and why.

/// A test that needs a newer kernel.
struct Lack {
    /// What the test's name begins with, as `suite/module::name`.
    test: &'static str,
    /// The first version on which it must be right.
    since: (u32, u32),
    reason: &'static str,
}

/// Each of them. Above its version, nothing is excused.
const LACKS: [Lack; 1] = [Lack {
    test: "lab/family::children_that_send_at_once_are_tunnelled_from_the_first_packet",
    since: NEVER,
    reason: "30 000 processes take too long in an emulator",
}];

/// Later than every kernel.
const NEVER: (u32, u32) = (u32::MAX, 0);

/// The first version that lockne works on.
pub(crate) const MINIMUM: (u32, u32) = (5, 14);

/// What cannot be right on a kernel, by the names of the tests of a suite, each with its reason.
pub(crate) fn of(suite: &str, version: (u32, u32)) -> Vec<(&'static str, &'static str)> {
    let lacks = LACKS.iter().filter(|lack| version < lack.since);
    lacks
        .filter_map(|lack| {
            Some((
                lack.test.strip_prefix(suite)?.strip_prefix('/')?,
                lack.reason,
            ))
        })
        .collect()
}

/// The two numbers that a version begins with.
pub(crate) fn version(release: &str) -> (u32, u32) {
    let mut numbers = release
        .split(['.', '-', '+'])
        .map(|part| part.parse().unwrap_or(0));
    (numbers.next().unwrap_or(0), numbers.next().unwrap_or(0))
}
