//! Changes of an interface, for tunnels that lockne brings up itself.
//!
//! All of them can be done twice.

use ipnet::IpNet;
use lockne_core::{plan::Family, tunnel::TunnelName};
use rtnetlink::{
    LinkMessageBuilder, LinkUnspec,
    packet_route::address::{AddressAttribute, AddressFlags, AddressHeaderFlags},
};
use rustix::io::Errno;

use super::{Error, Netlink, into_io, is};

impl Netlink {
    /// Gives the interface `name` an address, with the route to its prefix that this implies.
    ///
    /// IPv6 addresses are usable at once, without asking the neighbours whether they have them.
    ///
    /// # Errors
    ///
    /// If there is no such interface or the kernel refuses; see [`Error::is_ipv6_off`].
    pub async fn set_address(&self, name: &TunnelName, address: IpNet) -> Result<(), Error> {
        let ifindex = self.ifindex(name).await?;
        let mut request = self
            .handle
            .address()
            .add(ifindex, address.addr(), address.prefix_len());
        if Family::of(address) == Family::V6 {
            let message = request.message_mut();
            message.header.flags |= AddressHeaderFlags::Nodad;
            let nodad = AddressAttribute::Flags(AddressFlags::Nodad);
            message.attributes.push(nodad);
        }
        match request.execute().await.map_err(into_io) {
            Err(error) if is(&error, Errno::EXIST) => Ok(()),
            result => result.map_err(|source| Error::Step {
                step: format!(
                    "ip {} address add {address} dev {name}",
                    Family::of(address)
                ),
                source,
            }),
        }
    }

    /// Sets the largest packet of the interface `name`, in bytes.
    ///
    /// # Errors
    ///
    /// If there is no such interface or the kernel refuses.
    pub async fn set_mtu(&self, name: &TunnelName, mtu: u32) -> Result<(), Error> {
        let step = format!("ip link set {name} mtu {mtu}");
        self.set(name, step, |link| link.mtu(mtu)).await
    }

    /// Lets the interface `name` carry packets.
    ///
    /// # Errors
    ///
    /// If there is no such interface or the kernel refuses.
    pub async fn set_up(&self, name: &TunnelName) -> Result<(), Error> {
        let step = format!("ip link set {name} up");
        self.set(name, step, LinkMessageBuilder::up).await
    }

    /// Deletes the interface `name`, if there is one.
    ///
    /// # Errors
    ///
    /// If the kernel refuses, as it does for hardware.
    pub async fn delete_link(&self, name: &TunnelName) -> Result<(), Error> {
        let ifindex = match self.ifindex(name).await {
            Err(Error::NoInterface(_)) => return Ok(()),
            result => result?,
        };
        match self.handle.link().del(ifindex).execute().await {
            Ok(()) => Ok(()),
            Err(error) => match into_io(error) {
                error if is(&error, Errno::NODEV) => Ok(()),
                source => Err(Error::Step {
                    step: format!("ip link del {name}"),
                    source,
                }),
            },
        }
    }

    async fn ifindex(&self, name: &TunnelName) -> Result<u32, Error> {
        let link = self.link(name).await?;
        let missing = || Error::NoInterface(name.to_string());
        Ok(link.ok_or_else(missing)?.ifindex)
    }

    async fn set(
        &self,
        name: &TunnelName,
        step: String,
        change: impl FnOnce(LinkMessageBuilder<LinkUnspec>) -> LinkMessageBuilder<LinkUnspec>,
    ) -> Result<(), Error> {
        let ifindex = self.ifindex(name).await?;
        let message = change(LinkUnspec::new_with_index(ifindex)).build();
        let result = self.handle.link().change(message).execute().await;
        result.map_err(|error| Error::Step {
            step,
            source: into_io(error),
        })
    }
}
