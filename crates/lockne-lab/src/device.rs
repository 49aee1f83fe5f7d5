//! A network device in a namespace, and what can happen to it.

use ipnet::IpNet;
use rtnetlink::{LinkMessageBuilder, LinkUnspec, packet_route::link::LinkAttribute};

pub use crate::netlink::Error;
use crate::{namespace::Namespace, netlink};

/// A network device; it keeps its index when it is renamed.
#[derive(Clone, Debug)]
pub struct Device {
    pub(crate) namespace: Namespace,
    pub(crate) index: u32,
}

impl Device {
    /// Finds the device called `name`, if there is one.
    ///
    /// # Errors
    ///
    /// When the kernel does not list its devices.
    pub fn find(namespace: &Namespace, name: &str) -> Result<Option<Self>, Error> {
        let is_it = |attribute: &LinkAttribute| matches!(attribute, LinkAttribute::IfName(it) if it == name);
        let devices = netlink::configure(namespace, async |netlink| netlink.devices().await)?;
        let found = devices
            .into_iter()
            .find(|device| device.attributes.iter().any(is_it));
        Ok(found.map(|device| Self {
            namespace: namespace.clone(),
            index: device.header.index,
        }))
    }

    /// Every device of a namespace, with its name.
    ///
    /// # Errors
    ///
    /// When the kernel does not list its devices.
    pub fn all(namespace: &Namespace) -> Result<Vec<(String, Self)>, Error> {
        let devices = netlink::configure(namespace, async |netlink| netlink.devices().await)?;
        let named = devices.into_iter().filter_map(|device| {
            let mut attributes = device.attributes.into_iter();
            let name = attributes.find_map(|attribute| match attribute {
                LinkAttribute::IfName(name) => Some(name),
                _ => None,
            })?;
            let index = device.header.index;
            let namespace = namespace.clone();
            Some((name, Self { namespace, index }))
        });
        Ok(named.collect())
    }

    /// Where it is.
    #[must_use]
    pub const fn namespace(&self) -> &Namespace {
        &self.namespace
    }

    /// Its number in its namespace.
    #[must_use]
    pub const fn index(&self) -> u32 {
        self.index
    }

    /// Sets it up.
    ///
    /// # Errors
    ///
    /// When it is gone or its driver refuses.
    pub fn up(&self) -> Result<(), Error> {
        self.change(self.message().up(), "set up")
    }

    /// Sets it down. The kernel forgets the routes by it, and its IPv6 addresses.
    ///
    /// # Errors
    ///
    /// When it is gone.
    pub fn down(&self) -> Result<(), Error> {
        self.change(self.message().down(), "set down")
    }

    /// Renames it, up or down. Before Linux 6.2 it is down for a moment, as nothing else can be renamed there.
    ///
    /// # Errors
    ///
    /// When it is gone or the name is taken.
    pub fn rename(&self, name: &str) -> Result<(), Error> {
        let rename = || self.change(self.message().name(name), "rename");
        let result = rename();
        if result.as_ref().is_err_and(Error::is_busy) {
            self.down()?;
            rename()?;
            return self.up();
        }
        result
    }

    /// Deletes it.
    ///
    /// # Errors
    ///
    /// When it is gone already.
    pub fn delete(&self) -> Result<(), Error> {
        netlink::configure(&self.namespace, async |netlink| {
            netlink.delete(self.index).await
        })
    }

    /// Routes `prefix` by it in the main table, without a gateway, as other VPN clients do.
    ///
    /// # Errors
    ///
    /// When it is gone, or down.
    pub fn add_route(&self, prefix: IpNet) -> Result<(), Error> {
        netlink::configure(&self.namespace, async |netlink| {
            netlink.add_route(prefix.trunc(), self.index, None).await
        })
    }

    /// Whether packets can pass: there, up, and the other end too.
    ///
    /// # Errors
    ///
    /// When the kernel does not list its devices.
    pub fn is_running(&self) -> Result<bool, Error> {
        let devices = netlink::configure(&self.namespace, async |netlink| netlink.devices().await)?;
        Ok(devices
            .iter()
            .any(|device| device.header.index == self.index && netlink::is_running(device)))
    }

    fn message(&self) -> LinkMessageBuilder<LinkUnspec> {
        LinkUnspec::new_with_index(self.index)
    }

    fn change(&self, message: LinkMessageBuilder<LinkUnspec>, action: &str) -> Result<(), Error> {
        netlink::configure(&self.namespace, async |netlink| {
            netlink.change(message.build(), action).await
        })
    }
}
