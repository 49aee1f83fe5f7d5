//! When a network that was configured can be used.
//!
//! The kernel activates devices and routes IPv6 addresses on work queues of its own, after it has said
//! that all is well.

use std::{
    collections::HashSet,
    fs, thread,
    time::{Duration, Instant},
};

use crate::{
    namespace::Namespace,
    netlink::{self, Error},
};

pub(crate) const WITHIN: Duration = Duration::from_secs(20);

const LOOPBACK: u32 = 1;

/// Waits until these devices pass packets and their IPv6 addresses, and the loopback's, are routed to
/// this machine.
pub(crate) fn wait(namespace: &Namespace, devices: &[u32]) -> Result<(), Error> {
    let deadline = Instant::now() + WITHIN;
    loop {
        let running = netlink::configure(namespace, async |netlink| {
            let found = netlink.devices().await?;
            Ok(devices.iter().all(|index| {
                found
                    .iter()
                    .any(|device| device.header.index == *index && netlink::is_running(device))
            }))
        })?;
        if running && namespace.run(|| are_addresses_routed(devices))? {
            return Ok(());
        }
        if Instant::now() > deadline {
            return Err(Error::NotReady {
                namespace: namespace.name().to_owned(),
            });
        }
        thread::sleep(Duration::from_micros(200));
    }
}

/// Whether the IPv6 addresses of the devices in the thread's namespace have local routes.
fn are_addresses_routed(devices: &[u32]) -> bool {
    const RTF_LOCAL: u32 = 0x8000_0000;
    let read =
        |name| fs::read_to_string(format!("/proc/thread-self/net/{name}")).unwrap_or_default();
    let hexadecimal = |word: &str| u32::from_str_radix(word, 16).ok();

    // Destination, its length, six columns more, flags, device.
    let routes = read("ipv6_route");
    let local: HashSet<&str> = routes
        .lines()
        .filter_map(|route| {
            let mut words = route.split_ascii_whitespace();
            let destination = words.next()?;
            let flags = hexadecimal(words.nth(7)?)?;
            (flags & RTF_LOCAL != 0).then_some(destination)
        })
        .collect();
    // Address, device index, length, scope, flags, device.
    read("if_inet6").lines().all(|line| {
        let mut words = line.split_ascii_whitespace();
        let (Some(address), Some(index)) = (words.next(), words.next().and_then(hexadecimal))
        else {
            return true;
        };
        local.contains(address) || !(index == LOOPBACK || devices.contains(&index))
    })
}
