//! Errors as the user sees them: what, why, and what to do.

use std::{io, process::ExitCode};

use aya::programs::ProgramError;

/// How many of the verifier's lines are shown; the reason is among the last.
const VERIFIER_LINES: usize = 12;

/// Says what went wrong and returns the exit code for it.
#[expect(clippy::print_stderr, reason = "the last words of the demo")]
pub(crate) fn exit(error: &anyhow::Error) -> ExitCode {
    if is(error, io::ErrorKind::BrokenPipe) {
        // Whoever read our output has seen enough, as in `| head`.
        return ExitCode::SUCCESS;
    }
    let hint = hint(error);
    eprintln!("error: {error}");
    for cause in error.chain().skip(1) {
        match cause.downcast_ref::<ProgramError>() {
            Some(ProgramError::LoadError { verifier_log, .. }) => {
                let log = verifier_log.to_string();
                let lines: Vec<_> = log.lines().collect();
                for line in &lines[lines.len().saturating_sub(VERIFIER_LINES)..] {
                    eprintln!("  verifier: {line}");
                }
            }
            _ if hint == Some(cause.to_string()) => {}
            _ => eprintln!("  cause: {cause}"),
        }
    }
    if let Some(hint) = hint {
        eprintln!("hint: {hint}");
    }
    ExitCode::FAILURE
}

/// What the user can do about it.
fn hint(error: &anyhow::Error) -> Option<String> {
    if let Some(Hint(hint)) = error.downcast_ref() {
        return Some(hint.clone());
    }
    if !rustix::process::geteuid().is_root() && is(error, io::ErrorKind::PermissionDenied) {
        return Some("eBPF programs are for root: try again with sudo".to_owned());
    }
    None
}

fn is(error: &anyhow::Error, kind: io::ErrorKind) -> bool {
    error.chain().any(|cause| {
        cause
            .downcast_ref::<io::Error>()
            .is_some_and(|error| error.kind() == kind)
    })
}

/// Advice, attached to an error as its context.
#[derive(Debug)]
pub struct Hint(pub String);

impl std::fmt::Display for Hint {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for Hint {}
