//! Devices, addresses, routes and rules of one namespace.

use std::net::IpAddr;

use futures_util::TryStreamExt;
use ipnet::IpNet;
use rtnetlink::{
    Handle, LinkUnspec, LinkVeth, RouteMessageBuilder,
    packet_route::{
        AddressFamily,
        address::AddressHeaderFlags,
        link::{InfoData, InfoVeth, LinkAttribute, LinkFlags, LinkMessage},
        route::RouteScope,
        rule::{RuleAction, RuleAttribute, RuleMessage},
    },
};
use std::os::fd::{AsFd, AsRawFd};

use crate::{
    namespace::{self, Namespace},
    ready,
};

/// Why the network of a namespace could not be changed or read.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The namespace itself failed.
    #[error(transparent)]
    Namespace(#[from] namespace::Error),
    /// A netlink socket could not be opened.
    #[error("cannot talk to the kernel about the network of `{namespace}`")]
    Open {
        /// Which namespace.
        namespace: String,
        /// Why.
        source: std::io::Error,
    },
    /// The kernel took too long to make an address or a device usable.
    #[error("the network of `{namespace}` is not usable after {} s", ready::WITHIN.as_secs())]
    NotReady {
        /// Which namespace.
        namespace: String,
    },
    /// The kernel refused.
    #[error("cannot {action}")]
    Refused {
        /// What was tried.
        action: String,
        /// Why.
        source: rtnetlink::Error,
    },
}

impl Error {
    /// Whether the kernel says that what is in use cannot be changed so.
    pub(crate) fn is_busy(&self) -> bool {
        let Self::Refused {
            source: rtnetlink::Error::NetlinkError(message),
            ..
        } = self
        else {
            return false;
        };
        message.raw_code() == -libc::EBUSY
    }
}

/// One end of a veth pair that is to be made.
pub(crate) struct End<'a> {
    pub(crate) namespace: &'a Namespace,
    pub(crate) name: &'a str,
    pub(crate) index: u32,
    /// As a TUN device: no link layer to resolve, all frames go to this address.
    pub(crate) without_neighbours: Option<[u8; 6]>,
}

/// The network of one namespace, while a closure works on it.
pub(crate) struct Netlink {
    handle: Handle,
}

/// Does `work` on the network of `namespace`.
pub(crate) fn configure<T: Send>(
    namespace: &Namespace,
    work: impl AsyncFnOnce(&Netlink) -> Result<T, Error> + Send,
) -> Result<T, Error> {
    namespace.run_async(async || {
        let (connection, handle, _) =
            rtnetlink::new_connection().map_err(|source| Error::Open {
                namespace: namespace.name().to_owned(),
                source,
            })?;
        tokio::spawn(connection);
        work(&Netlink { handle }).await
    })?
}

impl Netlink {
    /// Makes a veth pair, one end here and one wherever `far` says, and sets this end
    /// up. The other is not yet connected when the kernel would set it up (`veth_newlink`).
    ///
    /// The indexes are given, so that nobody has to ask for them; they differ between the ends, or
    /// the kernel would take the device for one that is its own lower device, and delay its carrier
    /// by up to a second (`linkwatch_urgent_event`).
    pub(crate) async fn add_pair(&self, here: End<'_>, far: End<'_>) -> Result<(), Error> {
        let mut peer = LinkUnspec::new_with_name(far.name)
            .index(far.index)
            .append_extra_attribute(LinkAttribute::NetNsFd(far.namespace.as_fd().as_raw_fd()));
        if let Some(address) = far.without_neighbours {
            peer = peer.address(address.to_vec()).arp(false);
        }
        let mut pair = LinkVeth::new(here.name, far.name)
            .index(here.index)
            .set_info_data(InfoData::Veth(InfoVeth::Peer(peer.build())))
            .up();
        if let Some(address) = here.without_neighbours {
            pair = pair.address(address.to_vec()).arp(false);
        }

        let action = || format!("make the devices `{}` and `{}`", here.name, far.name);
        self.handle
            .link()
            .add(pair.build())
            .execute()
            .await
            .map_err(refused(action))
    }

    pub(crate) async fn add_address(&self, index: u32, address: IpNet) -> Result<(), Error> {
        let mut request = self
            .handle
            .address()
            .add(index, address.addr(), address.prefix_len());
        if address.addr().is_ipv6() {
            request.message_mut().header.flags |= AddressHeaderFlags::Nodad;
        }
        let action = || format!("give the device {index} the address {address}");
        request.execute().await.map_err(refused(action))
    }

    /// Adds a route for `prefix`, by way of `gateway` or on the link itself, or changes the one there is.
    pub(crate) async fn add_route(
        &self,
        prefix: IpNet,
        index: u32,
        gateway: Option<IpAddr>,
    ) -> Result<(), Error> {
        let action = || format!("add a route for {prefix} by the device {index}");
        let mut message = RouteMessageBuilder::<IpAddr>::new()
            .destination_prefix(prefix.addr(), prefix.prefix_len())
            .expect("a prefix of ipnet is never longer than its address")
            .output_interface(index);
        if let Some(gateway) = gateway {
            message = message
                .gateway(gateway)
                .expect("gateway and prefix are of one family");
        } else if prefix.addr().is_ipv4() {
            message = message.scope(RouteScope::Link);
        }
        self.handle
            .route()
            .add(message.build())
            .replace()
            .execute()
            .await
            .map_err(refused(action))
    }

    pub(crate) async fn add_rule(&self, rule: RuleMessage) -> Result<(), Error> {
        let mut request = self.handle.rule().add();
        *request.message_mut() = rule;
        request
            .execute()
            .await
            .map_err(refused(|| "add a routing rule".to_owned()))
    }

    pub(crate) async fn delete_rule(&self, rule: RuleMessage) -> Result<(), Error> {
        self.handle
            .rule()
            .del(rule)
            .execute()
            .await
            .map_err(refused(|| "delete a routing rule".to_owned()))
    }

    /// Changes the device with the index in `message`.
    pub(crate) async fn change(&self, message: LinkMessage, action: &str) -> Result<(), Error> {
        let index = message.header.index;
        self.handle
            .link()
            .set(message)
            .execute()
            .await
            .map_err(refused(|| format!("{action} the device {index}")))
    }

    pub(crate) async fn delete(&self, index: u32) -> Result<(), Error> {
        self.handle
            .link()
            .del(index)
            .execute()
            .await
            .map_err(refused(|| format!("delete the device {index}")))
    }

    /// Every device, with its state.
    pub(crate) async fn devices(&self) -> Result<Vec<LinkMessage>, Error> {
        self.handle
            .link()
            .get()
            .execute()
            .try_collect()
            .await
            .map_err(refused(|| "list the devices".to_owned()))
    }
}

/// A rule that drops without a word what arrives on the device `device`.
pub(crate) fn drop_from(device: &str, family: AddressFamily) -> RuleMessage {
    let mut rule = dropping(family);
    rule.attributes
        .push(RuleAttribute::Iifname(device.to_owned()));
    rule
}

/// A rule that drops without a word what goes to `prefix`.
pub(crate) fn drop_to(prefix: IpNet) -> RuleMessage {
    let mut rule = dropping(match prefix {
        IpNet::V4(_) => AddressFamily::Inet,
        IpNet::V6(_) => AddressFamily::Inet6,
    });
    rule.header.dst_len = prefix.prefix_len();
    rule.attributes
        .push(RuleAttribute::Destination(prefix.network()));
    rule
}

/// The rule that the kernel itself makes for addresses of its own, at another priority.
pub(crate) fn local_rule(family: AddressFamily, priority: u32) -> RuleMessage {
    let mut rule = RuleMessage::default();
    rule.header.family = family;
    rule.header.table = 255;
    rule.header.action = RuleAction::ToTable;
    rule.attributes.push(RuleAttribute::Priority(priority));
    rule
}

/// Whether packets pass: set up, with a carrier, and activated by the kernel.
pub(crate) fn is_running(device: &LinkMessage) -> bool {
    device
        .header
        .flags
        .contains(LinkFlags::Up | LinkFlags::Running | LinkFlags::LowerUp)
}

fn dropping(family: AddressFamily) -> RuleMessage {
    let mut rule = RuleMessage::default();
    rule.header.family = family;
    rule.header.action = RuleAction::Blackhole;
    rule.attributes.push(RuleAttribute::Priority(1));
    rule
}

fn refused(action: impl Fn() -> String) -> impl Fn(rtnetlink::Error) -> Error {
    move |source| Error::Refused {
        action: action(),
        source,
    }
}
