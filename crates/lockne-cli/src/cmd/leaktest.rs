//! `lockne leaktest`: tries the ways out on this very machine, and says where each packet went.

mod report;
mod scene;

use std::{
    collections::BTreeSet,
    ffi::OsString,
    os::unix::net::UnixStream,
    path::Path,
    process::{Child, Command, ExitCode, Output, Stdio},
    thread,
};

use clap::Args;
use lockne_lab::{
    Namespace,
    device::Device,
    escape::{self, Batch, Case, Helper, Outcome, Scene, Who},
    packet::Direction,
    sniffer::Sniffer,
};
use rustix::{
    event::{PollFd, PollFlags, poll},
    process::Signal,
};
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};

use self::report::{Report, Row};
use crate::{
    cli::Place,
    failure::{self, Failure, Result},
    output,
};

/// What `lockne leaktest` is asked.
#[derive(Args, Debug)]
#[command(after_help = "\
Each way is tried without a policy first, by an ordinary user: one small packet
to an address that is nobody's. So what is called closed is a way out here.
The exit code is 1 if a packet went past the tunnel, and 125 if nothing can be
said.")]
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
    // Not the code of a leak.
    test(place, args).map_err(|failure| failure.code(failure::RUN_FAILED))
}

fn test(place: &Place, args: &Leaktest) -> Result<ExitCode> {
    if !rustix::process::geteuid().is_root() {
        return Err(
            Failure::new("the packets of this machine cannot be watched")
                .why("you are not root")
                .hint("`sudo lockne leaktest`; the ways out are tried as an ordinary user"),
        );
    }
    let (mut scene, is_dual) = scene::look(args.device.as_deref())?;
    let end = End::on_signals()?;
    let private = tempfile::tempdir().map_err(failed("cannot make a directory"))?;
    let everybody = std::os::unix::fs::PermissionsExt::from_mode(0o755);
    std::fs::set_permissions(private.path(), everybody)
        .map_err(failed("cannot open the directory to others"))?;
    let home = Namespace::current().map_err(failed("cannot find the network namespace"))?;
    let socket = private.path().join("helper");
    let _helper = Helper::start(&home, &socket).map_err(failed("cannot start a helper"))?;
    scene.helper = Some(socket);

    let policy = args.via.as_ref().map_or_else(
        || vec!["--block".into()],
        |via| vec!["--via".into(), via.into()],
    );
    let harmless = |set| {
        let ways = escape::ways().filter(|way| way.is_harmless);
        let mut cases: Vec<_> = ways.flat_map(|way| way.cases(set, &scene)).collect();
        cases.retain(|case| is_dual || case.to.is_ipv4());
        cases
    };
    // Before anything is sent.
    attempt(place, &scene, Vec::new(), &policy, &end)?;
    let watch = Watch::start(&home)?;
    let free = attempt(place, &scene, harmless(0), &[], &end)?;
    let policed = attempt(place, &scene, harmless(1), &policy, &end)?;
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

/// Tries the ways: free, or by `lockne run` with `policy`.
fn attempt(
    place: &Place,
    scene: &Scene,
    cases: Vec<Case>,
    policy: &[OsString],
    end: &End,
) -> Result<Vec<(Case, Outcome)>> {
    let batch = Batch {
        who: Some(Who::User),
        scene: scene.clone(),
        cases: cases.clone(),
    };
    let own = std::env::current_exe().map_err(failed("cannot find this program"))?;
    let mut through = Vec::new();
    if !policy.is_empty() {
        through.extend([own.into_os_string(), "run".into()]);
        through.extend_from_slice(policy);
        through.push("--".into());
    }
    let arguments = batch.arguments(through);
    let arguments = arguments.map_err(failed("cannot find this program"))?;
    let attempts = Command::new(&arguments[0])
        .args(&arguments[1..])
        .env("LOCKNE_STATE_DIR", place.state().path())
        .env("LOCKNE_SOCKET", place.socket()?)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .map_err(failed("cannot start the attempts"))?;
    let output = end.wait(attempts)?;
    let outcomes = batch.outcomes(&output.stdout).map_err(|_| {
        let said = String::from_utf8_lossy(&output.stderr);
        Failure::new("the ways out could not be tried").lines(said.trim_end().to_owned())
    })?;
    Ok(cases.into_iter().zip(outcomes).collect())
}

/// Whether this is to end early, so that nothing of it stays behind.
struct End(UnixStream);

impl End {
    fn on_signals() -> Result<Self> {
        let cannot = "cannot listen for signals";
        let (told, teller) = UnixStream::pair().map_err(failed(cannot))?;
        for signal in [SIGHUP, SIGINT, SIGTERM] {
            let teller = teller.try_clone().map_err(failed(cannot))?;
            signal_hook::low_level::pipe::register(signal, teller).map_err(failed(cannot))?;
        }
        Ok(Self(told))
    }

    /// What came of the attempts, unless that is not wanted any more.
    fn wait(&self, attempts: Child) -> Result<Output> {
        let handle = rustix::process::Pid::from_child(&attempts);
        let (done, is_done) = UnixStream::pair().map_err(failed("cannot wait"))?;
        thread::scope(|scope| {
            let output = scope.spawn(move || {
                let output = attempts.wait_with_output();
                drop(done);
                output
            });
            let ends = [&self.0, &is_done].map(|it| PollFd::new(it, PollFlags::IN));
            let [told, _] = wait_for(ends).map_err(failed("cannot wait"))?;
            if told {
                // It has not been waited for, so that its number is still its own; it may have ended.
                let _ = rustix::process::kill_process(handle, Signal::TERM);
            }
            let output = output.join().expect("it does not panic");
            if told {
                return Err(Failure::new("interrupted, so nothing can be said"));
            }
            output.map_err(failed("cannot wait for the attempts"))
        })
    }
}

/// Waits until one is readable, and says which are.
fn wait_for<const N: usize>(mut ends: [PollFd<'_>; N]) -> std::io::Result<[bool; N]> {
    loop {
        match poll(&mut ends, None) {
            Err(rustix::io::Errno::INTR) => {}
            Err(errno) => return Err(errno.into()),
            Ok(_) => return Ok(ends.map(|end| !end.revents().is_empty())),
        }
    }
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
