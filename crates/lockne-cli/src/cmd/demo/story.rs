//! What the demo shows, chapter by chapter.

use std::{
    net::{IpAddr, SocketAddr},
    process::Command,
    thread,
    time::{Duration, Instant},
};

use lockne_lab::{
    device::Device,
    internet::{HOME_V4, HOME_V6, ORIGIN_V4, ORIGIN_V6},
    origin::{ADDRESS_PORT, HTTP_PORT, Service},
    packet::{Content, Packet, Transport},
    probe::{Action, Actor, Options, Outcome, Probe, Report, Running},
};

use super::{stage::Stage, teller::Teller};
use crate::{
    failure::{Failure, Result},
    output,
};

/// Long enough for an answer across this machine, short enough to watch.
const PATIENCE: Duration = Duration::from_millis(400);

const KINDS: [(&str, Action, Service); 4] = [
    ("TCP", Action::Tcp, Service::Tcp),
    ("UDP", Action::UdpUnconnected, Service::Udp),
    ("ping", Action::Ping, Service::Ping),
    ("UDP, connected", Action::UdpConnected, Service::Udp),
];

/// Tells everything.
pub(crate) fn tell(stage: &Stage, teller: &mut Teller) -> Result<()> {
    teller.say(
        "A home, an origin server and two VPN providers, each a network namespace of its own.",
    )?;
    teller.say(&format!(
        "home {HOME_V4}, {HOME_V6}; origin {ORIGIN_V4}, {ORIGIN_V6}; the providers give {} and {}.",
        stage.lab.provider_a.client_v4(),
        stage.lab.provider_b.client_v4(),
    ))?;
    teller
        .say("The tunnels are WireGuard. Packets are counted on the home's cable, from outside.")?;
    stage.tunnel_up("vpn", &stage.lab.provider_a)?;
    stage.tunnel_up("work", &stage.lab.provider_b)?;

    without_tunnel(stage, teller)?;
    through_tunnel(stage, teller)?;
    side_by_side(stage, teller)?;
    ways_out(stage, teller)?;
    cut(stage, teller)?;
    killed(stage, teller)?;
    down(stage, teller)
}

fn without_tunnel(stage: &Stage, teller: &mut Teller) -> Result<()> {
    teller.chapter("Without a tunnel the origin sees the home")?;
    for (to, home) in [(v4(), IpAddr::from(HOME_V4)), (v6(), HOME_V6.into())] {
        for (kind, action, service) in KINDS {
            let report = visit(stage, |probe| stage.plain(probe), action, to)?;
            arrived(stage, teller, kind, service, to, home, &report)?;
        }
    }
    // What left the home here left it on purpose.
    stage.count(|_| true)?;
    Ok(())
}

fn through_tunnel(stage: &Stage, teller: &mut Teller) -> Result<()> {
    teller.chapter("lockne run --via vpn -- PROGRAM: the origin sees the provider")?;
    let run = |probe: &Probe| stage.run(&["--via", "vpn"], probe);
    for (to, address) in [(v4(), provider_v4(stage)), (v6(), provider_v6(stage))] {
        for (kind, action, service) in KINDS {
            let report = visit(stage, run, action, to)?;
            arrived(stage, teller, kind, service, to, address, &report)?;
        }
    }
    for (who, actor) in [
        ("a child process", Actor::Child),
        ("a daemonized grandchild", Actor::Orphan),
    ] {
        stage.lab.origin.clear();
        let report = run(&Probe::new(Action::Tcp, v4()).by(actor))?;
        arrived(
            stage,
            teller,
            who,
            Service::Tcp,
            v4(),
            provider_v4(stage),
            &report,
        )?;
    }
    curl(stage, teller)?;
    let (packets, leaks) = stage.count(|_| false)?;
    teller.wire(packets, &leaks)
}

/// A program that everybody knows, if it is here.
fn curl(stage: &Stage, teller: &mut Teller) -> Result<()> {
    if Command::new("curl").arg("--version").output().is_err() {
        return teller.say("  (curl is not installed, so it is not shown)");
    }
    let url = format!("http://{ORIGIN_V4}:{HTTP_PORT}/");
    let said = stage.must(&["run", "--via", "vpn", "--", "curl", "-sS", "-m", "5", &url])?;
    let seen = said.trim();
    let holds = seen.starts_with(&provider_v4(stage).to_string());
    teller.claim(&format!("curl {url}"), holds, seen)
}

fn side_by_side(stage: &Stage, teller: &mut Teller) -> Result<()> {
    teller.chapter("Three programs side by side, each its own way")?;
    stage.lab.origin.clear();
    let probe = Probe::new(Action::Tcp, v4());
    let failed = |error: &(dyn std::error::Error + 'static)| {
        Failure::new("a program of the demo failed").because(error)
    };
    let vpn = stage.start(&["--via", "vpn"], &probe)?;
    let work = stage.start(&["--via", "work"], &probe)?;
    let plain = probe
        .start(&stage.lab.home)
        .map_err(|error| failed(&error))?;
    let mut direct_port = None;
    for (who, running, address) in [
        ("through vpn", vpn, provider_v4(stage)),
        (
            "through work",
            work,
            stage.lab.provider_b.client_v4().into(),
        ),
        ("without lockne", plain, HOME_V4.into()),
    ] {
        let report = running.finish().map_err(|error| failed(&error))?;
        let saw = saw(&report);
        if address == IpAddr::from(HOME_V4) {
            direct_port = report.local.map(|local| local.port());
        }
        teller.claim(who, saw == Some(address), &shown(&report))?;
    }
    // The one without lockne is known by its port.
    let (packets, leaks) = stage.count(|packet| has_port(packet, direct_port))?;
    teller.wire(packets, &leaks)
}

fn ways_out(stage: &Stage, teller: &mut Teller) -> Result<()> {
    teller.chapter("A program under --via vpn tries another way out")?;
    let to_device = Options {
        bind_device: Some("eth0".to_owned()),
        ..Options::default()
    };
    let by_index = Options {
        unicast_device: Some("eth0".to_owned()),
        ..Options::default()
    };
    let tries = [
        ("binds a TCP socket to eth0", Action::Tcp, to_device.clone()),
        (
            "binds a UDP socket to eth0",
            Action::UdpUnconnected,
            to_device.clone(),
        ),
        ("binds a ping socket to eth0", Action::Ping, to_device),
        (
            "asks for eth0 by IP_UNICAST_IF",
            Action::UdpUnconnected,
            by_index,
        ),
        ("uses Multipath TCP", Action::Mptcp, Options::default()),
    ];
    for (what, action, options) in tries {
        let probe = Probe::new(action, v4()).with(options).waiting(PATIENCE);
        let report = stage.run(&["--via", "vpn"], &probe)?;
        let escaped = saw(&report) == Some(IpAddr::from(HOME_V4));
        teller.claim(what, !escaped, &shown(&report))?;
    }
    let (packets, leaks) = stage.count(|_| false)?;
    teller.wire(packets, &leaks)
}

fn cut(stage: &Stage, teller: &mut Teller) -> Result<()> {
    teller.chapter("The tunnel is cut in the middle of a download")?;
    let lab = &stage.lab;
    let failed = |error: &(dyn std::error::Error + 'static)| {
        Failure::new("cannot cut or mend the tunnel").because(error)
    };
    let download = download(stage)?;
    lab.provider_a.cut().map_err(|error| failed(&error))?;
    let report = download.finish().map_err(|error| failed(&error))?;
    if let Outcome::Ended { bytes, why } = &report.outcome {
        let seen = format!("{} came, then {why}", output::bytes(*bytes));
        teller.claim("the download stops", *bytes > 0, &seen)?;
    } else {
        teller.claim("the download stops", false, &shown(&report))?;
    }
    for (kind, action, _) in &KINDS[..3] {
        let probe = Probe::new(*action, v4()).waiting(PATIENCE);
        let report = stage.run(&["--via", "vpn"], &probe)?;
        let quiet = !matches!(report.outcome, Outcome::Answered { .. });
        teller.claim(
            &format!("{kind} from a new program"),
            quiet,
            &shown(&report),
        )?;
    }
    let report = stage.run(&["--via", "work"], &Probe::new(Action::Tcp, v4()))?;
    let other = IpAddr::from(lab.provider_b.client_v4());
    teller.claim(
        "the other tunnel does not care",
        saw(&report) == Some(other),
        &shown(&report),
    )?;
    let (packets, leaks) = stage.count(|_| false)?;
    teller.wire(packets, &leaks)?;
    lab.provider_a.restore().map_err(|error| failed(&error))?;
    works_again(stage, teller, "the tunnel is mended: it works again")
}

fn killed(stage: &Stage, teller: &mut Teller) -> Result<()> {
    teller.chapter("lockne is killed (SIGKILL), with a program running")?;
    let download = download(stage)?;
    stage.kill_daemon();
    let report = download
        .finish()
        .map_err(|error| Failure::new("the download failed").because(&error))?;
    let stopped = matches!(report.outcome, Outcome::Ended { .. });
    teller.claim(
        "its download stops, for lockne served the tunnel",
        stopped,
        &shown(&report),
    )?;
    let (packets, leaks) = stage.count(|_| false)?;
    teller.wire(packets, &leaks)?;
    stage.start_daemon()?;
    works_again(stage, teller, "the next lockne takes over")
}

/// Starts a download without end through the tunnel, and waits until it is well on its way.
fn download(stage: &Stage) -> Result<Running> {
    // Each may be the segments of a whole read of the server.
    const ENOUGH: u64 = 200;
    let to = SocketAddr::new(ORIGIN_V4.into(), HTTP_PORT);
    let probe = Probe::new(Action::Hold, to).waiting(Duration::from_millis(700));
    let mut download = stage.start(&["--via", "vpn"], &probe)?;
    download
        .wait_until_ready()
        .map_err(|error| Failure::new("the download did not begin").because(&error))?;
    let deadline = Instant::now() + Duration::from_secs(10);
    while stage.packets()? < ENOUGH {
        if Instant::now() > deadline {
            return Err(Failure::new("the download is too slow to be shown"));
        }
        thread::sleep(Duration::from_millis(10));
    }
    Ok(download)
}

/// A handshake takes a moment, and a lost one is repeated after five seconds.
fn works_again(stage: &Stage, teller: &mut Teller, claim: &str) -> Result<()> {
    let probe = Probe::new(Action::Tcp, v4());
    let report = stage.run(&["--via", "vpn"], &probe)?;
    let holds = saw(&report) == Some(provider_v4(stage));
    teller.claim(claim, holds, &shown(&report))
}

fn down(stage: &Stage, teller: &mut Teller) -> Result<()> {
    teller.chapter("lockne down")?;
    let said = stage.must(&["down", "--json"])?;
    let removed: lockne_core::api::Removed = serde_json::from_str(&said)
        .map_err(|error| Failure::new("`lockne down` is not understood").because(&error))?;
    let seen = format!(
        "{} rules, {} routes, {} kernel programs, {} tunnels",
        removed.rules,
        removed.routes,
        removed.programs,
        removed.tunnels.len()
    );
    teller.claim("takes back what it made", removed.programs > 0, &seen)?;
    let left = Device::find(&stage.lab.home, "vpn")
        .map_err(|error| Failure::new("cannot look for the tunnel").because(&error))?;
    teller.claim("the tunnel's interface is gone", left.is_none(), "")?;
    let report = stage.plain(&Probe::new(Action::Tcp, v4()))?;
    let direct = saw(&report) == Some(IpAddr::from(HOME_V4));
    teller.claim("the home is as it was", direct, &shown(&report))
}

fn visit(
    stage: &Stage,
    run: impl FnOnce(&Probe) -> Result<Report>,
    action: Action,
    to: SocketAddr,
) -> Result<Report> {
    stage.lab.origin.clear();
    run(&Probe::new(action, to))
}

/// Claims that the origin saw `address`, and only that.
fn arrived(
    stage: &Stage,
    teller: &mut Teller,
    kind: &str,
    service: Service,
    to: SocketAddr,
    address: IpAddr,
    report: &Report,
) -> Result<()> {
    let visits = stage.lab.origin.seen();
    let only = visits.len() == 1 && visits[0].source == address && visits[0].service == service;
    let seen = match visits.as_slice() {
        [] => shown(report),
        visits => {
            let sources: Vec<String> = visits.iter().map(|it| it.source.to_string()).collect();
            sources.join(", ")
        }
    };
    let family = if to.is_ipv4() { "IPv4" } else { "IPv6" };
    teller.claim(&format!("{kind}, {family}"), only, &seen)
}

fn saw(report: &Report) -> Option<IpAddr> {
    match &report.outcome {
        Outcome::Answered { saw } => saw.map(|saw| saw.ip()),
        _ => None,
    }
}

fn shown(report: &Report) -> String {
    match &report.outcome {
        Outcome::Answered { saw: Some(saw) } => saw.ip().to_string(),
        Outcome::Answered { saw: None } => "an answer".to_owned(),
        Outcome::Refused { call, errno } => format!("refused: {call} says {errno}"),
        Outcome::Silence => "silence".to_owned(),
        Outcome::Ended { bytes, why } => format!("{} came, then {why}", output::bytes(*bytes)),
        Outcome::Sent { sent, refused } => format!("{sent} sent, {refused} refused"),
    }
}

fn has_port(packet: &Packet, port: Option<u16>) -> bool {
    let Content::Ip(ip) = &packet.content else {
        return false;
    };
    match ip.transport {
        Transport::Tcp {
            source,
            destination,
            ..
        } => port.is_some_and(|port| port == source || port == destination),
        _ => false,
    }
}

fn provider_v4(stage: &Stage) -> IpAddr {
    stage.lab.provider_a.client_v4().into()
}

fn provider_v6(stage: &Stage) -> IpAddr {
    stage.lab.provider_a.client_v6().into()
}

fn v4() -> SocketAddr {
    SocketAddr::new(ORIGIN_V4.into(), ADDRESS_PORT)
}

fn v6() -> SocketAddr {
    SocketAddr::new(ORIGIN_V6.into(), ADDRESS_PORT)
}
