//! `lockne leaktest`: tries the ways out on this very machine, and says where each packet went.

mod report;
mod scene;

use std::{
    collections::BTreeSet,
    ffi::OsString,
    path::Path,
    process::{Command, ExitCode, Stdio},
};

use clap::Args;
use lockne_lab::{
    Namespace,
    device::Device,
    escape::{self, Batch, Case, Helper, Outcome, Scene, Who},
    packet::Direction,
    sniffer::Sniffer,
};

use self::report::{Report, Row};
use crate::{
    cli::Place,
    failure::{Failure, Result},
    output,
};

/// What `lockne leaktest` is asked.
#[derive(Args, Debug)]
#[command(after_help = "\
Each way is tried without a policy first, by an ordinary user: one small packet
to an address that is nobody's. So what is called closed is a way out here.
The exit code is 1 if a packet went past the tunnel.")]
pub(crate) struct Leaktest {
    /// Go through this, as with `run`; without it, nothing may leave at all
    #[arg(long, value_name = "TUNNEL")]
    via: Option<String>,
    /// The physical device [default: that of the default route]
    #[arg(long, value_name = "DEVICE")]
    device: Option<String>,
    /// Print one JSON document instead of text
    #[arg(long)]
    json: bool,
}

pub(crate) fn leaktest(place: &Place, args: &Leaktest) -> Result<ExitCode> {
    if !rustix::process::geteuid().is_root() {
        return Err(
            Failure::new("the packets of this machine cannot be watched")
                .why("you are not root")
                .hint("`sudo lockne leaktest`; the ways out are tried as an ordinary user"),
        );
    }
    let (mut scene, is_dual) = scene::look(args.device.as_deref())?;
    let private = tempfile::tempdir().map_err(failed("cannot make a directory"))?;
    let everybody = std::os::unix::fs::PermissionsExt::from_mode(0o755);
    std::fs::set_permissions(private.path(), everybody)
        .map_err(failed("cannot open the directory to others"))?;
    let home = Namespace::current().map_err(failed("cannot find the network namespace"))?;
    let socket = private.path().join("helper");
    let _helper = Helper::start(&home, &socket).map_err(failed("cannot start a helper"))?;
    scene.helper = Some(socket);

    let watch = Watch::start(&home)?;
    let free = attempt(place, &scene, is_dual, None)?;
    let policy = args.via.as_ref().map_or_else(
        || vec!["--block".into()],
        |via| vec!["--via".into(), via.into()],
    );
    let policed = attempt(place, &scene, is_dual, Some(policy))?;
    watch.settle()?;

    let tunnel = args.via.as_deref().map(tunnel_name);
    let rows = free.into_iter().zip(policed).map(|(free, policed)| {
        let without = watch.devices_of(&free.0);
        let under = watch.devices_of(&policed.0);
        Row::new(&policed, without, under, tunnel.as_deref())
    });
    let report = Report::new(args.via.clone(), scene.device, rows.collect());
    if report.is_blind() {
        return Err(
            Failure::new("not one packet left this machine, even without a policy")
                .why("so nothing can be said about what a policy keeps in")
                .hint("is the network up? Name its device by `--device`"),
        );
    }
    if args.json {
        output::json(&report)?;
    } else {
        report.print()?;
    }
    Ok(if report.leaks == 0 {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}

/// What the tunnel's device is called.
fn tunnel_name(via: &str) -> String {
    let stem = Path::new(via)
        .file_stem()
        .filter(|_| via.contains('/') || has_conf(via));
    stem.map_or_else(|| via.to_owned(), |stem| stem.display().to_string())
}

fn has_conf(via: &str) -> bool {
    Path::new(via).extension().is_some_and(|it| it == "conf")
}

/// Tries every harmless way: free, or by `lockne run` with `policy`.
fn attempt(
    place: &Place,
    scene: &Scene,
    is_dual: bool,
    policy: Option<Vec<OsString>>,
) -> Result<Vec<(Case, Outcome)>> {
    let set = u8::from(policy.is_some());
    let harmless = escape::ways().filter(|way| way.is_harmless);
    let mut cases: Vec<_> = harmless.flat_map(|way| way.cases(set, scene)).collect();
    cases.retain(|case| is_dual || case.to.is_ipv4());
    let batch = Batch {
        who: Some(Who::User),
        scene: scene.clone(),
        cases: cases.clone(),
    };
    let own = std::env::current_exe().map_err(failed("cannot find this program"))?;
    let through = policy.map_or_else(Vec::new, |policy| {
        let head = [own.into_os_string(), "run".into()];
        head.into_iter()
            .chain(policy)
            .chain(["--".into()])
            .collect()
    });
    let arguments = batch.arguments(through);
    let arguments = arguments.map_err(failed("cannot find this program"))?;
    let output = Command::new(&arguments[0])
        .args(&arguments[1..])
        .env("LOCKNE_STATE_DIR", place.state().path())
        .env("LOCKNE_SOCKET", place.socket()?)
        .stdin(Stdio::null())
        .output()
        .map_err(failed("cannot start the attempts"))?;
    let outcomes = batch.outcomes(&output.stdout).map_err(|_| {
        let said = String::from_utf8_lossy(&output.stderr);
        Failure::new("the attempts gave no report").why(said.trim_end().to_owned())
    })?;
    Ok(cases.into_iter().zip(outcomes).collect())
}

/// Every device of the machine, watched.
struct Watch(Vec<(String, Sniffer)>);

impl Watch {
    fn start(home: &Namespace) -> Result<Self> {
        let devices = Device::all(home).map_err(failed("cannot list the devices"))?;
        let real = devices.into_iter().filter(|(name, _)| name != "lo");
        let watched = real.map(|(name, device)| Ok((name, Sniffer::on(&device)?)));
        let watched: std::result::Result<_, lockne_lab::sniffer::Error> = watched.collect();
        watched
            .map(Self)
            .map_err(failed("cannot watch the devices"))
    }

    fn settle(&self) -> Result<()> {
        let mut sniffers = self.0.iter();
        sniffers
            .try_for_each(|(_, sniffer)| sniffer.settle())
            .map_err(failed("cannot tell whether all was seen"))
    }

    /// By which devices a packet of this case left.
    fn devices_of(&self, case: &Case) -> BTreeSet<String> {
        let left = self.0.iter().filter(|(_, sniffer)| {
            sniffer.count(|packet| packet.direction == Direction::Sent && case.is_mine(packet)) > 0
        });
        left.map(|(name, _)| name.clone()).collect()
    }
}

fn failed<E: std::error::Error + 'static>(what: &'static str) -> impl FnOnce(E) -> Failure {
    move |error| Failure::new(what).because(&error)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tunnel_of_a_file_has_its_name() {
        assert_eq!(tunnel_name("/etc/wireguard/work.conf"), "work");
        assert_eq!(tunnel_name("work.conf"), "work");
        assert_eq!(tunnel_name("tun0.1"), "tun0.1");
    }
}
