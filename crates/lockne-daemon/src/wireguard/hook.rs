//! The commands that a configuration wants to be run as root.

use std::process::Stdio;

use lockne_core::{
    tunnel::TunnelName,
    wgquick::{Hook, Phase, redact},
};
use tokio::process::Command;

use super::Error;

/// Runs the commands of `phase` one after the other, until one fails.
pub(super) async fn run(hooks: &[Hook], phase: Phase, name: &TunnelName) -> Result<(), Error> {
    for hook in hooks.iter().filter(|hook| hook.phase == phase) {
        run_one(hook, name).await?;
    }
    Ok(())
}

async fn run_one(hook: &Hook, name: &TunnelName) -> Result<(), Error> {
    let &Hook { phase, line, .. } = hook;
    tracing::info!(tunnel = %name, %phase, line, "run a command of the configuration");
    let output = Command::new("sh")
        .arg("-c")
        .arg(hook.command.replace("%i", name.as_str()))
        .stdin(Stdio::null())
        .kill_on_drop(true)
        .output()
        .await;
    let output = output.map_err(|source| Error::HookStart {
        phase,
        line,
        source,
    })?;
    for bytes in [&output.stdout, &output.stderr] {
        for text in String::from_utf8_lossy(bytes).lines() {
            tracing::info!(tunnel = %name, %phase, line, output = %redact(text));
        }
    }
    if !output.status.success() {
        let status = output.status;
        return Err(Error::HookFailed {
            phase,
            line,
            status,
        });
    }
    Ok(())
}
