//! Two devices that are the ends of one cable, and faults of that cable.

use ipnet::IpNet;
use rtnetlink::packet_route::AddressFamily;

use crate::{
    device::{Device, Error},
    namespace::Namespace,
    netlink::{self, End},
    ready,
    sniffer::{self, Sniffer},
};

/// A cable between two namespaces.
#[derive(Debug)]
pub struct Link {
    near: Device,
    far: Device,
    far_name: String,
    near_prefixes: Vec<IpNet>,
}

/// One end of a link that is to be made.
pub(crate) struct Plug<'a> {
    pub(crate) namespace: &'a Namespace,
    pub(crate) name: &'a str,
    pub(crate) index: u32,
}

/// Whether the devices of a link resolve their neighbours.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Medium {
    /// Ethernet, with ARP and neighbour discovery.
    Ethernet,
    /// As a TUN device: whatever is sent is for the other end.
    PointToPoint,
}

impl<'a> Plug<'a> {
    const fn end(&self, without_neighbours: Option<[u8; 6]>) -> End<'a> {
        End {
            namespace: self.namespace,
            name: self.name,
            index: self.index,
            without_neighbours,
        }
    }
}

impl Link {
    /// Makes a link that is up at both ends and has no addresses.
    ///
    /// `near_prefixes` is what a cut link keeps away from the near end.
    pub(crate) fn make(
        near: Plug<'_>,
        far: Plug<'_>,
        medium: Medium,
        near_prefixes: Vec<IpNet>,
    ) -> Result<Self, Error> {
        // With one address at both ends, a frame that goes to one's own address (what the kernel
        // writes where there are no neighbours) is also one for the other end.
        let without_neighbours =
            (medium == Medium::PointToPoint).then_some([0x02, 0x10, 0xc4, 0, 0, 9]);
        netlink::configure(far.namespace, async |netlink| {
            netlink
                .add_pair(far.end(without_neighbours), near.end(without_neighbours))
                .await
        })?;

        let device = |plug: &Plug<'_>| Device {
            namespace: plug.namespace.clone(),
            index: plug.index,
        };
        let (near, far_name) = (device(&near), far.name.to_owned());
        near.up()?;
        Ok(Self {
            near,
            far: device(&far),
            far_name,
            near_prefixes,
        })
    }

    /// The end of the one whose link it is: the user's machine, or the provider.
    #[must_use]
    pub const fn near(&self) -> &Device {
        &self.near
    }

    /// The end at the internet's side.
    #[must_use]
    pub const fn far(&self) -> &Device {
        &self.far
    }

    /// Starts to watch the far end: what the near end sends, it sees as received.
    ///
    /// # Errors
    ///
    /// When there is no packet socket to be had.
    pub fn sniffer(&self) -> Result<Sniffer, sniffer::Error> {
        Sniffer::start(&self.far, Some(&self.near))
    }

    /// Drops without a word what comes from the near end and what goes there.
    ///
    /// The near end notices nothing but silence, and sniffers go on to see what it sends.
    ///
    /// # Errors
    ///
    /// When it is cut already.
    pub fn cut(&self) -> Result<(), Error> {
        netlink::configure(self.far.namespace(), async |netlink| {
            for rule in self.cut_rules() {
                netlink.add_rule(rule).await?;
            }
            Ok(())
        })
    }

    /// Undoes [`Self::cut`].
    ///
    /// # Errors
    ///
    /// When it is not cut.
    pub fn restore(&self) -> Result<(), Error> {
        netlink::configure(self.far.namespace(), async |netlink| {
            for rule in self.cut_rules() {
                netlink.delete_rule(rule).await?;
            }
            Ok(())
        })
    }

    /// Pulls the cable: both ends lose their carrier.
    ///
    /// # Errors
    ///
    /// When the far end is gone.
    pub fn unplug(&self) -> Result<(), Error> {
        self.far.down()
    }

    /// Plugs the cable in again, and waits until it is usable. Routes of the internet by way of
    /// gateways at the near end stay lost.
    ///
    /// # Errors
    ///
    /// When the far end is gone, or the near end down.
    pub fn replug(&self) -> Result<(), Error> {
        self.far.up()?;
        self.wait_until_usable()
    }

    pub(crate) fn wait_until_usable(&self) -> Result<(), Error> {
        ready::wait(self.far.namespace(), &[self.far.index()])?;
        ready::wait(self.near.namespace(), &[self.near.index()])
    }

    fn cut_rules(&self) -> Vec<rtnetlink::packet_route::rule::RuleMessage> {
        [AddressFamily::Inet, AddressFamily::Inet6]
            .map(|family| netlink::drop_from(&self.far_name, family))
            .into_iter()
            .chain(self.near_prefixes.iter().copied().map(netlink::drop_to))
            .collect()
    }
}
