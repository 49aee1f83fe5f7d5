//! Why the daemon cannot do what was asked.

use std::{io, net::IpAddr, path::PathBuf};

use ipnet::IpNet;
use lockne_core::{
    api::Refusal,
    permission::Denied,
    tunnel::{NameError, TunnelName},
    wgquick,
};

use crate::{
    attach::TargetError, config, inherited, kernel, record, route, rules, state_dir, wireguard,
};

/// Why the daemon cannot do what was asked.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The state directory cannot be used.
    #[error(transparent)]
    StateDir(#[from] state_dir::Error),
    /// The record cannot be kept.
    #[error("cannot keep the record of policies and tunnels")]
    Record(#[from] record::Error),
    /// The runtime cannot be made.
    #[error("cannot start the daemon's event loop")]
    Runtime(#[source] io::Error),
    /// The network namespace cannot be told.
    #[error("cannot tell which network namespace this is")]
    Namespace(#[source] io::Error),
    /// The control socket cannot be made.
    #[error("cannot serve on `{}`", path.display())]
    Socket {
        /// Where.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// The kernel programs cannot be loaded or changed.
    #[error("cannot use the kernel programs")]
    Kernel(#[from] kernel::Error),
    /// Rules and routes cannot be read or changed.
    #[error("cannot set up routing")]
    Route(#[from] route::Error),
    /// Somebody else's rules use our bits of the mark.
    #[error("the mark bits {mask:#x} are used by others: {}", by.join("; "))]
    MarkUsed {
        /// Our bits.
        mask: u32,
        /// Their rules.
        by: Vec<String>,
    },
    /// The record belongs to another network namespace.
    #[error("`{}` belongs to a lockne in another network namespace", path.display())]
    OtherNamespace {
        /// The state directory.
        path: PathBuf,
    },
    /// The pins in the kernel were made with other mark bits.
    #[error("lockne's rules were made with the mark bits from {recorded} on, not from {asked} on")]
    OtherMark {
        /// Lowest bit as recorded.
        recorded: u32,
        /// Lowest bit as asked.
        asked: u32,
    },
    /// A name is none.
    #[error(transparent)]
    Name(NameError),
    /// No such tunnel or interface.
    #[error("there is no tunnel or interface `{name}`")]
    UnknownTunnel {
        /// What was asked for.
        name: TunnelName,
        /// What there is.
        known: Vec<String>,
    },
    /// Another tunnel has that name.
    #[error("a tunnel `{name}` is up already, from another configuration")]
    TunnelExists {
        /// The name.
        name: TunnelName,
    },
    /// The tunnel is not one that lockne made.
    #[error("`{name}` is an interface that lockne only uses")]
    NotOurs {
        /// Its name.
        name: TunnelName,
    },
    /// The configuration is wrong.
    #[error("cannot use `{}` as a wg-quick file", file.display())]
    Config {
        /// Where it came from.
        file: PathBuf,
        /// What is wrong.
        source: wgquick::Error,
    },
    /// The configuration's fwmark uses our bits.
    #[error("`FwMark = {fwmark:#x}` in `{}` uses lockne's bits {mask:#x} of the mark", file.display())]
    FwMark {
        /// Where it came from.
        file: PathBuf,
        /// The mark it asks for.
        fwmark: u32,
        /// Our bits.
        mask: u32,
    },
    /// A tunnel cannot be brought up.
    #[error("cannot bring tunnel `{name}` up")]
    TunnelUp {
        /// Which one.
        name: TunnelName,
        /// Why.
        source: wireguard::Error,
    },
    /// A tunnel that is up cannot be asked or taken down.
    #[error("cannot read tunnel `{name}`, or take it down")]
    Wireguard {
        /// Which one.
        name: TunnelName,
        /// Why.
        source: wireguard::Error,
    },
    /// The sockets of a process cannot be bound to its policy.
    #[error("cannot bind the sockets that the program has open")]
    Inherited(#[from] inherited::Error),
    /// The configuration cannot be used.
    #[error(transparent)]
    Configuration(config::Error),
    /// Rules cannot be applied.
    #[error("cannot bring the rules into force")]
    Rules(#[from] rules::Error),
    /// Nothing can be sent to see whether a tunnel works.
    #[error("cannot ping through a tunnel")]
    Ping(#[source] io::Error),
    /// Marked connections cannot be cut.
    #[error("cannot cut the connections of policed programs")]
    Cut(#[source] io::Error),
    /// A program that runs cannot be moved.
    #[error(transparent)]
    Target(#[from] TargetError),
    /// Only 255 policies fit into the mark.
    #[error("all 255 policies are in use")]
    TooManyPolicies,
    /// A prefix past the tunnel is everything.
    #[error("{prefix} past the tunnel is everything, so the tunnel would carry nothing")]
    Everything {
        /// The prefix.
        prefix: IpNet,
    },
    /// A resolver on this machine asks on outside of the tunnel.
    #[error("the resolver {address} is on this machine, and would ask on outside of the tunnel")]
    ResolverHere {
        /// The resolver.
        address: IpAddr,
    },
    /// A resolver would be asked past the tunnel.
    #[error("the resolver {address} is in {prefix}, so it would be asked past the tunnel")]
    ResolverInLan {
        /// The resolver.
        address: IpAddr,
        /// The prefix past the tunnel.
        prefix: IpNet,
    },
    /// The process that asked is gone, or not one we see.
    #[error("the process that asks cannot be seen from here")]
    NoProcess,
    /// The asker may not.
    #[error("user {} {denied}", user(*uid))]
    Denied {
        /// Who asked.
        uid: u32,
        /// What is not granted.
        denied: Denied,
    },
    /// The process is not wholly the asker's.
    #[error("process {pid} is not wholly user {}'s own", user(*uid))]
    NotOwn {
        /// Who asked.
        uid: u32,
        /// The process.
        pid: u32,
    },
    /// The process is in another network namespace.
    #[error("process {pid} is in another network namespace than the daemon, where no policy holds")]
    ElsewhereProcess {
        /// The process.
        pid: u32,
    },
    /// The asker has had his share.
    #[error("there are {limit} {what}, and user {} gets no more", user(*uid))]
    Quota {
        /// Who asked.
        uid: u32,
        /// Of what.
        what: &'static str,
        /// How many there can be.
        limit: usize,
    },
    /// The request makes no sense.
    #[error("bad request: {0}")]
    BadRequest(String),
    /// The daemon is ending; another one may be started.
    #[error("the daemon is ending")]
    Ending,
}

impl Error {
    /// What a user can do about it.
    #[must_use]
    pub fn hint(&self) -> Option<String> {
        match self {
            Self::StateDir(state_dir::Error::Owned { .. }) => Some(
                "use the one that runs, or give this one another --state-dir and network namespace"
                    .to_owned(),
            ),
            Self::Kernel(error) => error.hint().map(ToOwned::to_owned),
            Self::Inherited(error) => error.hint().map(ToOwned::to_owned),
            Self::Target(error) => error.hint().map(ToOwned::to_owned),
            Self::Route(error) => error.hint().map(ToOwned::to_owned),
            Self::Socket { .. } => Some("give another path with `--socket`".to_owned()),
            Self::StateDir(state_dir::Error::Path { source, .. })
                if source.kind() == io::ErrorKind::PermissionDenied =>
            {
                Some("run it with sudo".to_owned())
            }
            Self::StateDir(_) => Some("give another directory with `--state-dir`".to_owned()),
            Self::Wireguard { source, .. } | Self::TunnelUp { source, .. } => source.hint().map(ToOwned::to_owned),
            Self::Config { source, .. } => source.hint().map(ToOwned::to_owned),
            Self::MarkUsed { .. } | Self::FwMark { .. } => {
                Some("choose other bits with `lockne daemon --mark-bit`".to_owned())
            }
            Self::OtherMark { recorded, .. } => Some(format!(
                "use `--mark-bit {recorded}`, or take the old rules back with `lockne down`"
            )),
            Self::OtherNamespace { .. } => {
                Some("give this one another --state-dir, or run it in that namespace".to_owned())
            }
            Self::Record(record::Error::Read { source, .. })
                if source.kind() == io::ErrorKind::PermissionDenied =>
            {
                Some("run it with sudo".to_owned())
            }
            Self::Record(_) => Some(
                "`lockne down` takes everything back; then start again from a clean state"
                    .to_owned(),
            ),
            Self::UnknownTunnel { known, .. } if known.is_empty() => {
                Some("bring one up with `lockne tunnel up FILE.conf`".to_owned())
            }
            Self::UnknownTunnel { name, known } => {
                let all = known.iter().map(|name| format!("`{name}`"));
                let all = all.collect::<Vec<_>>().join(", ");
                Some(match nearest(name.as_str(), known) {
                    Some(near) => format!("did you mean `{near}`? There are: {all}"),
                    None => format!("there are: {all}"),
                })
            }
            Self::TunnelExists { name } => Some(format!(
                "take it down with `lockne tunnel down {name}`, or give the new one a `--name`"
            )),
            Self::NotOurs { .. } => Some("take it down with what made it".to_owned()),
            Self::Denied { denied, .. } => Some(match denied {
                Denied::Switch => {
                    "it keeps the policy it has; start the program anew from outside of it".to_owned()
                }
                Denied::Tunnels => {
                    "use a tunnel that the administrator has given you, `--via NAME`, or run it with sudo"
                        .to_owned()
                }
                _ => match denied.remedy() {
                    Some(place) => format!(
                        "an administrator can add the user to {place} in /etc/lockne/lockne.toml; or run it with sudo"
                    ),
                    None => "run it with sudo".to_owned(),
                },
            }),
            Self::NotOwn { .. } => Some(
                "a program that has rights of its own, such as a setuid one, is for root to police".to_owned(),
            ),
            Self::ElsewhereProcess { .. } => {
                Some("run a daemon in that namespace, with another --state-dir".to_owned())
            }
            Self::Quota { .. } => Some("`sudo lockne down` frees them, together with their programs".to_owned()),
            Self::TooManyPolicies => {
                Some("at most 255 can have programs or connections at the same time; end some".to_owned())
            }
            Self::Everything { .. } => Some("use `--direct`".to_owned()),
            Self::ResolverHere { .. } => Some(
                "name the one behind the tunnel; policed programs ask it in place of any other"
                    .to_owned(),
            ),
            Self::ResolverInLan { .. } => {
                Some("give `--lan` a smaller prefix, or `--dns` another resolver".to_owned())
            }
            Self::NoProcess => Some(
                "client and daemon must see the same process ids: run both in the same pid namespace"
                    .to_owned(),
            ),
            _ => None,
        }
    }

    /// The error as the client gets it.
    #[must_use]
    pub fn refusal(&self) -> Refusal {
        let mut causes = Vec::new();
        let mut next = std::error::Error::source(self);
        while let Some(error) = next {
            causes.push(error.to_string());
            next = error.source();
        }
        Refusal {
            error: self.to_string(),
            causes,
            hint: self.hint(),
        }
    }
}

/// A user as people know one.
fn user(uid: u32) -> String {
    uzers::get_user_by_uid(uid).map_or_else(
        || uid.to_string(),
        |user| format!("`{}`", user.name().display()),
    )
}

/// The name that was probably meant.
fn nearest<'a>(name: &str, known: &'a [String]) -> Option<&'a str> {
    /// Where clap too begins to suggest.
    const LIKELY: f64 = 0.7;
    known
        .iter()
        .map(|known| (strsim::jaro(name, known), known.as_str()))
        .filter(|(likeness, _)| *likeness > LIKELY)
        .max_by(|a, b| a.0.total_cmp(&b.0))
        .map(|(_, known)| known)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mistyped_name_gets_the_one_that_was_meant() {
        let known = ["eth0", "tun0", "work"].map(ToOwned::to_owned);

        assert_eq!(nearest("wrok", &known), Some("work"));
        assert_eq!(nearest("tun", &known), Some("tun0"));
        assert_eq!(nearest("nosuch", &known), None);
    }
}
