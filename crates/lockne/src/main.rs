//! `lockne`: each application gets the tunnel its user chose.
//!
//! Apart from its commands, since whoever links all of it decides how fast the packets in it are: see the profile.

use std::process::ExitCode;

fn main() -> ExitCode {
    lockne_cli::main()
}
