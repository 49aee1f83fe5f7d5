//! Configuration files as providers write them, and as nobody should.

#![expect(
    clippy::unwrap_used,
    reason = "a test may panic, in its strategies too"
)]

mod files;
mod property;
mod refused;
