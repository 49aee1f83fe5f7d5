//! The tunnel's network interface, by netlink, in the network namespace of the calling thread.
//!
//! An interface of ours has an alias that says so: that is all that tells a leftover of a dead
//! daemon from somebody else's interface.

use std::{fs, io, net::IpAddr};

use futures_util::TryStreamExt;
use ipnet::IpNet;
use rtnetlink::{
    Handle, LinkUnspec, LinkWireguard,
    packet_route::{
        address::{AddressAttribute, AddressFlags, AddressMessage},
        link::{
            AfSpecInet6, AfSpecUnspec, In6AddrGenMode, InfoKind, LinkAttribute, LinkInfo,
            LinkMessage,
        },
    },
};

use super::Error;

const ALIAS: &str = "lockne tunnel";
/// Whether this machine, as a router, tells others of shorter ways.
const SEND_REDIRECTS: &str = "/proc/sys/net/ipv4/conf/all/send_redirects";

/// A way to see and change interfaces.
pub(super) struct Links {
    handle: Handle,
}

/// An interface.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Link {
    pub(super) name: String,
    pub(super) index: u32,
    pub(super) kind: Option<InfoKind>,
    pub(super) owner: Owner,
}

/// Whose an interface is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Owner {
    Lockne,
    Somebody,
}

impl Links {
    /// Connects. The connection ends when the value is dropped.
    pub(super) fn open() -> Result<Self, Error> {
        let (connection, handle, _) =
            rtnetlink::new_connection().map_err(|source| Error::Netlink { source })?;
        tokio::spawn(connection);
        Ok(Self { handle })
    }

    /// The interface called `name`, if there is one.
    pub(super) async fn find(&self, name: &str) -> Result<Option<Link>, Error> {
        let request = self.handle.link().get().match_name(name);
        match request.execute().try_next().await {
            Ok(link) => Ok(link.map(Link::from)),
            Err(error) if errno(&error) == Some(libc::ENODEV) => Ok(None),
            Err(error) => Err(refused("find", name, error)),
        }
    }

    /// Every interface of ours.
    pub(super) async fn ours(&self) -> Result<Vec<Link>, Error> {
        let links: Result<Vec<_>, _> = self.handle.link().get().execute().try_collect().await;
        let links = links.map_err(|error| refused("list", "*", error))?;
        let links = links.into_iter().map(Link::from);
        Ok(links.filter(|link| link.owner == Owner::Lockne).collect())
    }

    /// Makes a WireGuard interface of the kernel.
    pub(super) async fn add_wireguard(&self, name: &str) -> Result<(), Error> {
        let message = LinkWireguard::new(name).build();
        match self.handle.link().add(message).execute().await {
            Ok(()) => Ok(()),
            Err(error) => Err(match errno(&error) {
                Some(libc::EOPNOTSUPP) => Error::NoKernelWireguard,
                Some(libc::EEXIST) => Error::Busy {
                    name: name.to_owned(),
                },
                _ => refused("create", name, error),
            }),
        }
    }

    /// Marks the interface as ours, and keeps the kernel from making up addresses and from
    /// soliciting routers through the tunnel.
    pub(super) async fn claim(&self, link: &Link) -> Result<(), Error> {
        let message = LinkUnspec::new_with_index(link.index).alias(ALIAS).build();
        self.set(link, "mark", message).await?;

        let mode = AfSpecInet6::AddrGenMode(In6AddrGenMode::None);
        let mode = LinkAttribute::AfSpecUnspec(vec![AfSpecUnspec::Inet6(vec![mode])]);
        let message = LinkUnspec::new_with_index(link.index)
            .append_extra_attribute(mode)
            .build();
        if let Err(error) = self.set(link, "configure", message).await {
            // There may be no IPv6 at all.
            tracing::debug!(
                name = link.name,
                ?error,
                "cannot turn off made-up addresses"
            );
        }
        Ok(())
    }

    /// Gives the interface its size and exactly these addresses, and turns it on.
    pub(super) async fn configure(
        &self,
        link: &Link,
        mtu: u16,
        addresses: &[IpNet],
    ) -> Result<(), Error> {
        let message = LinkUnspec::new_with_index(link.index)
            .mtu(mtu.into())
            .build();
        self.set(link, "set the MTU of", message).await?;
        for address in addresses {
            self.add_address(link, *address).await?;
        }
        self.remove_other_addresses(link, addresses).await?;
        let redirects = fs::read(SEND_REDIRECTS).ok();
        let message = LinkUnspec::new_with_index(link.index).up().build();
        self.set(link, "turn on", message).await?;
        if let Some(before) = redirects {
            give_back(&before);
        }
        Ok(())
    }

    /// Removes the interface.
    pub(super) async fn delete(&self, link: &Link) -> Result<(), Error> {
        match self.handle.link().del(link.index).execute().await {
            Err(error) if errno(&error) != Some(libc::ENODEV) => {
                Err(refused("delete", &link.name, error))
            }
            _ => Ok(()),
        }
    }

    async fn set(
        &self,
        link: &Link,
        action: &'static str,
        message: LinkMessage,
    ) -> Result<(), Error> {
        let result = self.handle.link().set(message).execute().await;
        result.map_err(|error| refused(action, &link.name, error))
    }

    async fn add_address(&self, link: &Link, net: IpNet) -> Result<(), Error> {
        let address = self.handle.address();
        let mut request = address
            .add(link.index, net.addr(), net.prefix_len())
            .replace();
        let attributes = &mut request.message_mut().attributes;
        // No broadcast, as with ip-address(8), and no route in the main table: who may use the
        // tunnel is for policies to say.
        attributes.retain(|attribute| !matches!(attribute, AddressAttribute::Broadcast(_)));
        let flags = AddressFlags::Noprefixroute | AddressFlags::Nodad;
        attributes.push(AddressAttribute::Flags(flags));
        match request.execute().await {
            Ok(()) => Ok(()),
            Err(error) if net.addr().is_ipv6() && no_ipv6(&error) => {
                tracing::warn!(
                    tunnel = link.name,
                    "IPv6 is turned off, so is it in the tunnel"
                );
                Ok(())
            }
            Err(error) => Err(refused("add an address to", &link.name, error)),
        }
    }

    async fn remove_other_addresses(&self, link: &Link, keep: &[IpNet]) -> Result<(), Error> {
        let request = self.handle.address().get();
        let found = request
            .set_link_index_filter(link.index)
            .execute()
            .try_collect();
        let found: Result<Vec<AddressMessage>, _> = found.await;
        for message in found.map_err(|error| refused("list addresses of", &link.name, error))? {
            let net = net_of(&message);
            if message.header.index != link.index || net.is_some_and(|net| keep.contains(&net)) {
                continue;
            }
            let result = self.handle.address().del(message).execute().await;
            result.map_err(|error| refused("remove an address from", &link.name, error))?;
        }
        Ok(())
    }
}

fn net_of(message: &AddressMessage) -> Option<IpNet> {
    let address: Option<IpAddr> = message.attributes.iter().find_map(|attribute| {
        if let AddressAttribute::Address(address) = attribute {
            return Some(*address);
        }
        None
    });
    IpNet::new(address?, message.header.prefix_len).ok()
}

impl From<LinkMessage> for Link {
    fn from(message: LinkMessage) -> Self {
        let mut link = Self {
            name: String::new(),
            index: message.header.index,
            kind: None,
            owner: Owner::Somebody,
        };
        for attribute in message.attributes {
            match attribute {
                LinkAttribute::IfName(name) => link.name = name,
                LinkAttribute::IfAlias(alias) if alias == ALIAS => link.owner = Owner::Lockne,
                LinkAttribute::LinkInfo(infos) => {
                    link.kind = infos.into_iter().find_map(|info| match info {
                        LinkInfo::Kind(kind) => Some(kind),
                        _ => None,
                    });
                }
                _ => {}
            }
        }
        link
    }
}

fn errno(error: &rtnetlink::Error) -> Option<i32> {
    match error {
        rtnetlink::Error::NetlinkError(message) => message.to_io().raw_os_error(),
        _ => None,
    }
}

/// The kernel is built without IPv6, or `disable_ipv6` is set (`ipv6_find_idev`, EACCES).
fn no_ipv6(error: &rtnetlink::Error) -> bool {
    matches!(
        errno(error),
        Some(libc::EACCES | libc::EOPNOTSUPP | libc::EAFNOSUPPORT)
    )
}

fn refused(action: &'static str, name: &str, error: rtnetlink::Error) -> Error {
    let source = match error {
        rtnetlink::Error::NetlinkError(message) => message.to_io(),
        other => io::Error::other(other),
    };
    Error::Link {
        action,
        name: name.to_owned(),
        source,
    }
}

/// The kernel's WireGuard turns it off for every device when one of its own is turned on, and leaves it so when that
/// is gone.
fn give_back(before: &[u8]) {
    if fs::read(SEND_REDIRECTS).is_ok_and(|now| now != before)
        && let Err(error) = fs::write(SEND_REDIRECTS, before)
    {
        tracing::warn!(%error, path = SEND_REDIRECTS, "cannot write what was there before");
    }
}
