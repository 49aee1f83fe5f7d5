//! Whom programs here mean to ask for names.

use std::{
    fs,
    net::{IpAddr, Ipv4Addr},
};

/// The resolver on this machine that programs ask first, if that is one.
pub(crate) fn resolver_here() -> Option<IpAddr> {
    let text = fs::read_to_string("/etc/resolv.conf").unwrap_or_default();
    first(&text).filter(|address| address.is_loopback() || address.is_unspecified())
}

/// The first name server of a resolv.conf(5), or the one that is meant where there is none.
pub(crate) fn first(text: &str) -> Option<IpAddr> {
    let mut servers = text.lines().filter_map(|line| {
        let (keyword, address) = line.trim_end().split_once([' ', '\t'])?;
        (keyword == "nameserver").then(|| address.trim())
    });
    let Some(server) = servers.next() else {
        return Some(Ipv4Addr::LOCALHOST.into());
    };
    // A link-local address has its device behind it.
    let address = server.split('%').next().unwrap_or(server);
    address.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn first_name_server_counts() {
        let text =
            "# nameserver 1.1.1.1\nsearch lan\nnameserver\t127.0.0.53 \nnameserver 8.8.8.8\n";

        assert_eq!(first(text), "127.0.0.53".parse().ok());
        assert_eq!(first("nameserver fe80::1%eth0\n"), "fe80::1".parse().ok());
    }

    #[test]
    fn without_one_it_is_this_machine() {
        assert_eq!(first("options edns0\n"), Some(Ipv4Addr::LOCALHOST.into()));
    }
}
