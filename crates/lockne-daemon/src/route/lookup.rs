//! Where the kernel would send a packet.

use std::net::IpAddr;

use futures_util::{StreamExt as _, pin_mut};
use rtnetlink::packet_route::{
    AddressFamily,
    route::{RouteAddress, RouteAttribute, RouteMessage, RouteType},
};
use rustix::io::Errno;

use super::{Error, Netlink, into_io};

/// The way that a packet would take.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Way {
    /// The device.
    pub ifindex: u32,
    /// The address it would come from.
    pub source: Option<IpAddr>,
    /// The next hop.
    pub gateway: Option<IpAddr>,
}

impl Netlink {
    /// Asks where a packet of user `uid` with this mark would go; `None` if it would be refused.
    ///
    /// # Errors
    ///
    /// If the kernel does not answer.
    pub async fn lookup(&self, to: IpAddr, mark: u32, uid: u32) -> Result<Option<Way>, Error> {
        let mut message = RouteMessage::default();
        let (family, length, address) = match to {
            IpAddr::V4(to) => (AddressFamily::Inet, 32, RouteAddress::Inet(to)),
            IpAddr::V6(to) => (AddressFamily::Inet6, 128, RouteAddress::Inet6(to)),
        };
        message.header.address_family = family;
        message.header.destination_prefix_length = length;
        message.attributes = vec![
            RouteAttribute::Destination(address),
            RouteAttribute::Mark(mark),
            RouteAttribute::Uid(uid),
        ];
        let answers = self.handle.route().get(message).execute();
        pin_mut!(answers);
        let answer = match answers.next().await {
            None => return Ok(None),
            Some(Ok(answer)) => answer,
            Some(Err(error)) => {
                let source = into_io(error);
                let refused = [
                    Errno::HOSTUNREACH,
                    Errno::NETUNREACH,
                    Errno::ACCESS,
                    Errno::INVAL,
                    // IPv6 may be off.
                    Errno::OPNOTSUPP,
                    Errno::AFNOSUPPORT,
                ];
                return match Errno::from_io_error(&source) {
                    Some(errno) if refused.contains(&errno) => Ok(None),
                    _ => Err(Error::List {
                        what: "way to an address",
                        source,
                    }),
                };
            }
        };
        if !matches!(answer.header.kind, RouteType::Unicast | RouteType::Local) {
            return Ok(None);
        }
        let ip = |address: &RouteAddress| match address {
            RouteAddress::Inet(it) => Some(IpAddr::V4(*it)),
            RouteAddress::Inet6(it) => Some(IpAddr::V6(*it)),
            _ => None,
        };
        let mut way = Way {
            ifindex: 0,
            source: None,
            gateway: None,
        };
        for attribute in &answer.attributes {
            match attribute {
                RouteAttribute::Oif(index) => way.ifindex = *index,
                RouteAttribute::PrefSource(address) => way.source = ip(address),
                RouteAttribute::Gateway(address) => way.gateway = ip(address),
                _ => {}
            }
        }
        Ok((way.ifindex != 0).then_some(way))
    }
}
