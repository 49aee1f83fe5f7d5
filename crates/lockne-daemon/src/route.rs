//! Rules, routes, addresses and sysctls of this network namespace, read and changed by netlink.
//!
//! Nothing is decided here: [`lockne_core::plan`] says what should be true. A [`Netlink`] belongs to
//! the network namespace of the thread that opened it, and so does what it reads below `/proc/sys/net`.

mod error;
mod interface;
mod lookup;
mod message;
mod observe;
pub mod sysctl;
mod watch;

use std::{collections::BTreeMap, io};

use lockne_abi::MarkField;
use lockne_core::plan::{PROTOCOL, Route, Rule, Step, Sysctl, Target};
use rtnetlink::{Handle, packet_route::rule::RuleMessage};
use rustix::io::Errno;
use tokio::task::JoinHandle;

pub use self::{error::Error, lookup::Way, watch::Change};

/// A connection to the kernel's routing.
#[derive(Debug)]
pub struct Netlink {
    handle: Handle,
    originals: BTreeMap<Sysctl, i32>,
    connection: JoinHandle<()>,
}

/// How much was removed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Removed {
    /// Rules.
    pub rules: u32,
    /// Routes.
    pub routes: u32,
}

impl Netlink {
    /// Opens a connection, which a task of the current tokio runtime serves until it is dropped.
    ///
    /// # Errors
    ///
    /// If the kernel gives no netlink socket.
    pub fn open() -> Result<Self, Error> {
        // Without strict checks the kernel ignores filters of dumps: Linux 4.20.
        let (connection, handle, _) =
            rtnetlink::new_connection_with_strict_check().map_err(Error::Open)?;
        Ok(Self {
            handle,
            originals: BTreeMap::new(),
            connection: tokio::spawn(connection),
        })
    }

    /// The values of changed sysctls from before, to be kept where a crash does not reach.
    #[must_use]
    pub const fn originals(&self) -> &BTreeMap<Sysctl, i32> {
        &self.originals
    }

    /// Takes over what an earlier process had changed; what this one remembers itself wins.
    pub fn adopt_originals(&mut self, originals: BTreeMap<Sysctl, i32>) {
        for (sysctl, value) in originals {
            self.originals.entry(sysctl).or_insert(value);
        }
    }

    /// Does `steps` in their order.
    ///
    /// What is already done is passed over. So is a route into, or sysctl of, an interface that has just gone down
    /// or away: the change is reported by [`Self::watch`], and the route's packets are refused.
    ///
    /// # Errors
    ///
    /// The first step that failed. Those behind it are done all the same, as one tunnel shall not
    /// stop the others, unless the failure was a lack of privilege.
    pub async fn apply(&mut self, steps: &[Step]) -> Result<(), Error> {
        let mut first = None;
        for step in steps {
            tracing::debug!(%step, "applies");
            let Err(error) = self.step(step).await else {
                continue;
            };
            let hopeless = error.errno() == Some(Errno::PERM);
            if first.is_some() {
                tracing::warn!(%error, "failed too");
            } else {
                first = Some(error);
            }
            if hopeless {
                break;
            }
        }
        first.map_or(Ok(()), Err)
    }

    async fn step(&mut self, step: &Step) -> Result<(), Error> {
        let (result, harmless): (_, &[Errno]) = match step {
            Step::AddRule(rule) => (self.add_rule(rule).await, &[Errno::EXIST]),
            Step::DeleteRule(rule) => {
                let message = message::from_rule(rule);
                (self.delete_rule(message).await, &[Errno::NOENT])
            }
            Step::AddRoute(route) => {
                // What stands in our table under the same key is nobody else's business.
                let result = match self.add_route(route, Place::Free).await {
                    Err(error) if is(&error, Errno::EXIST) => {
                        self.add_route(route, Place::Taken).await
                    }
                    result => result,
                };
                (result, vanished(route))
            }
            Step::ReplaceRoute(route) => {
                (self.add_route(route, Place::Taken).await, vanished(route))
            }
            Step::DeleteRoute(route) => {
                let message = message::from_route(route);
                let result = self.handle.route().del(message).execute().await;
                (result.map_err(into_io), &[Errno::SRCH, Errno::NODEV])
            }
            Step::SetSysctl(sysctl, value) => return self.set_sysctl(sysctl, *value),
            Step::RestoreSysctl(sysctl, value) => {
                self.originals.remove(sysctl);
                return restore(sysctl, *value);
            }
        };
        match result {
            Err(error) if harmless.iter().any(|it| is(&error, *it)) => {
                tracing::debug!(%step, %error, "passed over");
                Ok(())
            }
            result => result.map_err(|source| Error::Step {
                step: step.to_string(),
                source,
            }),
        }
    }

    async fn add_rule(&self, rule: &Rule) -> io::Result<()> {
        let mut request = self.handle.rule().add();
        *request.message_mut() = message::from_rule(rule);
        request.execute().await.map_err(into_io)
    }

    async fn delete_rule(&self, message: RuleMessage) -> io::Result<()> {
        let request = self.handle.rule().del(message);
        request.execute().await.map_err(into_io)
    }

    async fn add_route(&self, route: &Route, place: Place) -> io::Result<()> {
        let request = self.handle.route().add(message::from_route(route));
        let request = match place {
            Place::Free => request,
            Place::Taken => request.replace(),
        };
        request.execute().await.map_err(into_io)
    }

    fn set_sysctl(&mut self, sysctl: &Sysctl, value: i32) -> Result<(), Error> {
        match sysctl::write(sysctl, value) {
            // It went with its interface.
            Err(error) if error.errno() == Some(Errno::NOENT) => Ok(()),
            result => {
                self.originals.entry(sysctl.clone()).or_insert(result?);
                Ok(())
            }
        }
    }

    /// Gives every sysctl that was changed its value from before.
    ///
    /// # Errors
    ///
    /// The first value that could not be written, after the others were.
    pub fn restore_sysctls(&mut self) -> Result<(), Error> {
        std::mem::take(&mut self.originals)
            .iter()
            .map(|(sysctl, value)| restore(sysctl, *value))
            .fold(Ok(()), Result::and)
    }

    /// Removes every rule and route of ours of both families, whoever made them.
    ///
    /// # Errors
    ///
    /// If the kernel does not list or remove them; what was removed stays removed.
    pub async fn remove_all(&mut self, field: MarkField) -> Result<Removed, Error> {
        let mut rules = self.our_rules(field).await?;
        rules.sort_by_key(message::pref);
        let mut removed = Removed::default();
        for rule in rules {
            let step = format!("ip rule del {}", message::describe_rule(&rule));
            match self.delete_rule(rule).await {
                Ok(()) => removed.rules += 1,
                Err(error) if is(&error, Errno::NOENT) => {}
                Err(source) => return Err(Error::Step { step, source }),
            }
        }
        for route in self.our_routes().await? {
            let table = message::table(&route);
            match self.handle.route().del(route).execute().await {
                Ok(()) => removed.routes += 1,
                Err(error) => {
                    let source = into_io(error);
                    if !is(&source, Errno::SRCH) {
                        let step = format!("ip route flush table {table} protocol {PROTOCOL}");
                        return Err(Error::Step { step, source });
                    }
                }
            }
        }
        Ok(removed)
    }
}

impl Drop for Netlink {
    fn drop(&mut self) {
        self.connection.abort();
    }
}

/// Whether this kernel has IPv6 at all.
pub(crate) fn has_ipv6() -> bool {
    std::path::Path::new("/proc/sys/net/ipv6").exists()
}

/// Gives `sysctl` its value from before, unless it went with its interface.
fn restore(sysctl: &Sysctl, value: i32) -> Result<(), Error> {
    match sysctl::write(sysctl, value) {
        Err(error) if error.errno() == Some(Errno::NOENT) => Ok(()),
        result => result.map(drop),
    }
}

/// Whether a route may stand where another one is to be added.
#[derive(Clone, Copy)]
enum Place {
    Free,
    Taken,
}

/// What the kernel says when the device of `route` went down or away a moment ago.
fn vanished(route: &Route) -> &'static [Errno] {
    match route.target {
        Target::Device { .. } => &[Errno::NODEV, Errno::NETDOWN],
        Target::Unreachable => &[],
    }
}

fn is(error: &io::Error, errno: Errno) -> bool {
    Errno::from_io_error(error) == Some(errno)
}

fn into_io(error: rtnetlink::Error) -> io::Error {
    match error {
        rtnetlink::Error::NetlinkError(message) => message.to_io(),
        error => io::Error::other(error),
    }
}
