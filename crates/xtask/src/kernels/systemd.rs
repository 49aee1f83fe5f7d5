//! systemd as the first process of the machine, for the tests of lockne's units.

use std::{
    fs,
    os::unix::{fs::symlink, process::CommandExt as _},
    path::Path,
    process::Command,
};

use anyhow::{Context as _, Result};

use super::guest::Plan;

/// Where its units are.
pub(crate) const FOLDER: &str = "/usr/lib/systemd/system";

const SYSTEMD: &str = "/usr/lib/systemd/systemd";

/// What the machine needs of it; `chown` is asked for by lockne's unit.
pub(crate) const PROGRAMS: [&str; 8] = [
    SYSTEMD,
    "/usr/lib/systemd/systemd-journald",
    "/usr/bin/systemctl",
    "/usr/bin/systemd-analyze",
    "/usr/bin/systemd-run",
    "/usr/bin/systemd-sysusers",
    "/usr/bin/journalctl",
    "/usr/bin/chown",
];

/// Its own units, as far as lockne's, and what every unit has by default, name them; nothing brings up devices,
/// disks or users, which the machine has not.
pub(crate) const UNITS: [&str; 20] = [
    "basic.target",
    "final.target",
    "local-fs-pre.target",
    "local-fs.target",
    "multi-user.target",
    "network-pre.target",
    "network.target",
    "paths.target",
    "rescue.target",
    "shutdown.target",
    "slices.target",
    "sockets.target",
    "swap.target",
    "sysinit.target",
    "systemd-journald-dev-log.socket",
    "systemd-journald.service",
    "systemd-journald.socket",
    "timers.target",
    "umount.target",
    "user.slice",
];

/// What is left to do.
const REST: &str = "/rest.json";

/// Starts this program again, as one service among others.
const UNIT: &str = "[Unit]
Wants=systemd-journald.service
After=systemd-journald.service

[Service]
ExecStart=/init rest
# The tests start programs with the rights that they need.
LimitNOFILE=1048576
TasksMax=infinity
";

/// Becomes systemd, which starts [`rest`]. Returns only if it cannot.
pub(crate) fn become_first(plan: &Plan) -> Result<()> {
    const NAME: &str = "lockne-tests.service";
    let folder = Path::new("/etc/systemd/system");
    let wanted = folder.join("multi-user.target.wants");
    fs::create_dir_all(&wanted).context("cannot make the folder of units")?;
    fs::write(folder.join(NAME), UNIT).context("cannot write a unit")?;
    symlink(folder.join(NAME), wanted.join(NAME)).context("cannot enable a unit")?;
    fs::write(REST, serde_json::to_vec(plan)?).context("cannot write what is left")?;
    let error = Command::new(SYSTEMD)
        .args(["--system", "--unit=multi-user.target"])
        .args(["--log-target=console", "--show-status=false"])
        .env_clear()
        .env("PATH", "/usr/bin:/usr/sbin")
        .exec();
    Err(error).with_context(|| format!("cannot become {SYSTEMD}"))
}

/// What [`become_first`] has left.
pub(crate) fn rest() -> Result<Plan> {
    let plan = fs::read(REST).with_context(|| format!("cannot read {REST}"))?;
    Ok(serde_json::from_slice(&plan)?)
}
