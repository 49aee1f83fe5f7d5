//! `lockne tunnel`: brings tunnels up and down, and shows them.

use std::{fs, io, path::Path, process::ExitCode};

use hyper::Method;
use lockne_core::{
    api::{Lifetime, PeerStatus, TunnelDown, TunnelKind, TunnelState, TunnelStatus, TunnelUp},
    tunnel::TunnelName,
    wgquick::Config,
};
use zeroize::Zeroizing;

use crate::{
    cli::{Json, Place, Tunnel},
    client::Client,
    cmd::status,
    failure::{Failure, Result},
    output::{self, FAINT, GOOD, STRONG, WARN},
};

pub(crate) fn tunnel(place: &Place, command: &Tunnel) -> Result<ExitCode> {
    let client = Client::new(place)?;
    match command {
        Tunnel::Up {
            file,
            name,
            allow_hooks,
        } => {
            let request = request(file, name.as_deref(), *allow_hooks, Lifetime::UntilDown)?;
            let status = up(&client, &request)?;
            show(&status)?;
        }
        Tunnel::Down { name } => down(&client, name)?,
        Tunnel::List(args) => list(&client, *args)?,
        Tunnel::Show { name, json } => {
            let name = parse_name(name)?;
            let status: TunnelStatus = client
                .ask(Method::GET, &format!("/v1/tunnels/{name}"), &())?
                .ok_or_else(no_daemon)?;
            if json.json {
                output::json(&status)?;
            } else {
                show(&status)?;
            }
        }
    }
    Ok(ExitCode::SUCCESS)
}

/// Reads a wg-quick file and checks it before anything is asked of the daemon.
pub(crate) fn request(
    file: &Path,
    name: Option<&str>,
    allow_hooks: bool,
    lifetime: Lifetime,
) -> Result<TunnelUp> {
    let path = std::path::absolute(file).unwrap_or_else(|_| file.to_owned());
    let shown = format!("`{}`", path.display());
    let text = Zeroizing::new(fs::read(file).map_err(|error| {
        let failure = Failure::new(format!("cannot read {shown}")).because(&error);
        if error.kind() == io::ErrorKind::PermissionDenied {
            failure.hint("run it with sudo")
        } else {
            failure
        }
    })?);
    let config = Config::parse(&text).map_err(|error| {
        let failure = Failure::new(format!("cannot use {shown} as a wg-quick file"));
        match error.hint() {
            Some(hint) => failure.because(&error).hint(hint),
            None => failure.because(&error),
        }
    })?;
    for warning in &config.warnings {
        output::notice(&format!("{shown}: {warning}"));
    }
    let text = str::from_utf8(&text)
        .map(|text| Zeroizing::new(text.to_owned()))
        .map_err(|_| Failure::new(format!("{shown} is not text")))?;
    let stem = path
        .file_stem()
        .map(|stem| stem.to_string_lossy().into_owned());
    let name = match (name, stem) {
        (Some(name), _) => parse_name(name)?,
        (None, Some(stem)) => stem.parse().map_err(|error| {
            Failure::new(format!("{shown} cannot lend its name to a tunnel"))
                .because(&error)
                .hint(format!(
                    "choose one: `lockne tunnel up --name NAME {}`",
                    file.display()
                ))
        })?,
        (None, None) => return Err(Failure::new(format!("{shown} has no file name"))),
    };
    Ok(TunnelUp {
        name,
        file: path,
        config: text,
        allow_hooks,
        lifetime,
    })
}

/// Brings the tunnel up.
pub(crate) fn up(client: &Client, request: &TunnelUp) -> Result<TunnelStatus> {
    let doing = format!("bringing tunnel `{}` up", request.name);
    client.ask_or_start(&doing, Method::POST, "/v1/tunnels", request)
}

fn parse_name(name: &str) -> Result<TunnelName> {
    name.parse()
        .map_err(|error| Failure::new("this cannot be a tunnel").because(&error))
}

fn no_daemon() -> Failure {
    Failure::new("no lockne daemon runs, so there are no tunnels of its own")
        .hint("bring one up with `lockne tunnel up FILE.conf`")
}

fn down(client: &Client, name: &str) -> Result<()> {
    let name = parse_name(name)?;
    let done: TunnelDown = client
        .ask(Method::DELETE, &format!("/v1/tunnels/{name}"), &())?
        .ok_or_else(no_daemon)?;
    output::line(&format!("tunnel `{name}` is down"))?;
    match done.silenced {
        0 => Ok(()),
        1 => output::line("1 process that used it is silent now"),
        many => output::line(&format!("{many} processes that used it are silent now")),
    }
}

fn list(client: &Client, args: Json) -> Result<()> {
    let asked: Option<Vec<TunnelStatus>> = client.ask(Method::GET, "/v1/tunnels", &())?;
    if asked.is_none() && status::left(client)?.is_some() {
        output::notice("the daemon is gone, and its own tunnels are silent");
    }
    let tunnels = asked.unwrap_or_default();
    if args.json {
        return output::json(&tunnels);
    }
    if tunnels.is_empty() {
        return output::line("no tunnels; bring one up with `lockne tunnel up FILE.conf`");
    }
    output::print_table(&table(&tunnels))
}

/// One line for each tunnel.
pub(crate) fn table(tunnels: &[TunnelStatus]) -> comfy_table::Table {
    let mut table = output::table(&[
        "TUNNEL",
        "STATE",
        "KIND",
        "ENDPOINT",
        "HANDSHAKE",
        "RECEIVED",
        "SENT",
    ]);
    for tunnel in tunnels {
        let peer = tunnel.peers.first();
        let dash = || "-".to_owned();
        let sum = |f: fn(&PeerStatus) -> u64| {
            peer.map_or_else(dash, |_| output::bytes(tunnel.peers.iter().map(f).sum()))
        };
        table.add_row([
            tunnel.name.to_string(),
            state(tunnel.state).to_owned(),
            match tunnel.state {
                TunnelState::Gone => dash(),
                TunnelState::Up | TunnelState::Down => kind(tunnel.kind).to_owned(),
            },
            peer.and_then(|peer| peer.endpoint)
                .map_or_else(dash, |endpoint| endpoint.to_string()),
            peer.map_or_else(dash, handshake),
            sum(|peer| peer.rx_bytes),
            sum(|peer| peer.tx_bytes),
        ]);
    }
    table
}

fn show(tunnel: &TunnelStatus) -> Result<()> {
    let colour = match tunnel.state {
        TunnelState::Up => GOOD,
        TunnelState::Down | TunnelState::Gone => WARN,
    };
    output::line(&format!(
        "{STRONG}{}{STRONG:#}  {colour}{}{colour:#}  {FAINT}{}{FAINT:#}",
        tunnel.name,
        state(tunnel.state),
        kind(tunnel.kind),
    ))?;
    let mut rows = vec![];
    if !tunnel.addresses.is_empty() {
        rows.push(("addresses", join(&tunnel.addresses)));
    }
    if !tunnel.dns.is_empty() {
        rows.push(("dns", join(&tunnel.dns)));
    }
    if let Some(mtu) = tunnel.mtu {
        rows.push(("mtu", format!("{mtu} bytes")));
    }
    for peer in &tunnel.peers {
        rows.push(("peer", peer.public_key.clone()));
        if let Some(endpoint) = peer.endpoint {
            rows.push(("  endpoint", endpoint.to_string()));
        }
        rows.push(("  allowed ips", join(&peer.allowed_ips)));
        rows.push(("  handshake", handshake(peer)));
        rows.push(("  received", output::bytes(peer.rx_bytes)));
        rows.push(("  sent", output::bytes(peer.tx_bytes)));
    }
    for (name, value) in rows {
        output::line(&format!("  {name:<14}{value}"))?;
    }
    Ok(())
}

pub(crate) fn join<T: ToString>(items: impl IntoIterator<Item = T>) -> String {
    let items: Vec<String> = items.into_iter().map(|item| item.to_string()).collect();
    items.join(", ")
}

fn handshake(peer: &PeerStatus) -> String {
    peer.handshake_age_seconds.map_or_else(
        || "none yet".to_owned(),
        |age| format!("{} ago", output::duration(age)),
    )
}

fn state(state: TunnelState) -> &'static str {
    match state {
        TunnelState::Up => "up",
        TunnelState::Down => "down",
        TunnelState::Gone => "gone",
    }
}

fn kind(kind: TunnelKind) -> &'static str {
    match kind {
        TunnelKind::Interface => "interface",
        TunnelKind::WireguardKernel => "WireGuard (kernel)",
        TunnelKind::WireguardEmbedded => "WireGuard (embedded)",
    }
}
