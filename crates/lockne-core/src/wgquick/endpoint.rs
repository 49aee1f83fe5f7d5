//! Where a peer is reached: a host and a port, either of them perhaps only a name.

use std::{
    fmt,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    str::FromStr,
};

use super::Reason;

/// Where a peer is reached.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Endpoint {
    /// The machine.
    pub host: Host,
    /// The UDP port.
    pub port: Port,
}

/// A machine.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Host {
    /// Known by its address.
    Address(IpAddr),
    /// Known by a name that has to be looked up, or an IPv6 address with its zone (`fe80::1%eth0`).
    Name(String),
}

/// A UDP port.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Port {
    /// Known by its number.
    Number(u16),
    /// Known by a name from the services database.
    Service(String),
}

impl FromStr for Endpoint {
    type Err = Reason;

    /// Splits the text where `wg` does: after `]`, else at the last colon.
    fn from_str(text: &str) -> Result<Self, Reason> {
        let (host, port) = if let Some(rest) = text.strip_prefix('[') {
            let (host, rest) = rest.split_once(']').ok_or(Reason::NoBracket)?;
            (host, rest.strip_prefix(':').ok_or(Reason::NoPort)?)
        } else {
            text.rsplit_once(':').ok_or(Reason::NoPort)?
        };
        if port.is_empty() {
            return Err(Reason::NoPort);
        }
        let port = port.parse()?;
        if port == Port::Number(0) {
            return Err(Reason::Port);
        }
        Ok(Self {
            host: host.parse()?,
            port,
        })
    }
}

impl FromStr for Host {
    type Err = Reason;

    fn from_str(text: &str) -> Result<Self, Reason> {
        if text.contains(':') {
            let (address, zone) = text.split_once('%').unwrap_or((text, "x"));
            let address: Ipv6Addr = address.parse().map_err(|_| Reason::Ipv6)?;
            if !zone.bytes().all(is_name_byte) || zone.is_empty() {
                return Err(Reason::HostName);
            }
            return Ok(if text.contains('%') {
                Self::Name(text.to_owned())
            } else {
                Self::Address(address.into())
            });
        }
        if text
            .bytes()
            .all(|byte| byte.is_ascii_digit() || byte == b'.')
            && !text.is_empty()
        {
            let address: Ipv4Addr = text.parse().map_err(|_| Reason::Ipv4)?;
            return Ok(Self::Address(address.into()));
        }
        if text.is_empty() || text.len() > 253 || !text.bytes().all(is_name_byte) {
            return Err(Reason::HostName);
        }
        Ok(Self::Name(text.to_owned()))
    }
}

impl FromStr for Port {
    type Err = Reason;

    fn from_str(text: &str) -> Result<Self, Reason> {
        let is_service = text.starts_with(|c: char| c.is_ascii_alphabetic())
            && text
                .bytes()
                .all(|byte| byte.is_ascii_alphanumeric() || byte == b'-');
        if is_service {
            return Ok(Self::Service(text.to_owned()));
        }
        if !text.bytes().all(|byte| byte.is_ascii_digit()) {
            return Err(Reason::Port);
        }
        text.parse().map(Self::Number).map_err(|_| Reason::Port)
    }
}

/// Names beyond ASCII are left to the resolver, which knows about IDN.
fn is_name_byte(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || b"-._".contains(&byte) || !byte.is_ascii()
}

impl fmt::Display for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.host {
            Host::Address(IpAddr::V4(address)) => write!(f, "{address}:{}", self.port),
            Host::Address(IpAddr::V6(address)) => write!(f, "[{address}]:{}", self.port),
            Host::Name(name) if name.contains(':') => write!(f, "[{name}]:{}", self.port),
            Host::Name(name) => write!(f, "{name}:{}", self.port),
        }
    }
}

impl fmt::Display for Port {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Number(number) => number.fmt(f),
            Self::Service(name) => f.write_str(name),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn endpoints_that_wg_takes_are_taken() {
        for (text, shown) in [
            ("192.0.2.1:51820", "192.0.2.1:51820"),
            ("[2001:db8::1]:51820", "[2001:db8::1]:51820"),
            ("2001:db8::1:51820", "[2001:db8::1]:51820"),
            ("[192.0.2.1]:5", "192.0.2.1:5"),
            ("[fe80::1%eth0]:5", "[fe80::1%eth0]:5"),
            ("vpn.example.com:051820", "vpn.example.com:51820"),
            ("vpn.example.com:openvpn", "vpn.example.com:openvpn"),
        ] {
            let endpoint: Endpoint = text.parse().unwrap();

            assert_eq!(endpoint.to_string(), shown);
            assert_eq!(endpoint.to_string().parse(), Ok(endpoint));
        }
    }

    #[test]
    fn other_endpoints_are_refused() {
        for (text, reason) in [
            ("192.0.2.1", Reason::NoPort),
            ("192.0.2.1:", Reason::NoPort),
            ("[::1]", Reason::NoPort),
            ("[::1]5", Reason::NoPort),
            ("[::1:5", Reason::NoBracket),
            (":5", Reason::HostName),
            ("a/b:5", Reason::HostName),
            ("fe80::1%:5", Reason::HostName),
            ("192.0.2.300:5", Reason::Ipv4),
            ("2001:db8::g:5", Reason::Ipv6),
            ("a:65536", Reason::Port),
            ("a:-1", Reason::Port),
            ("a:0x10", Reason::Port),
            ("a:0", Reason::Port),
        ] {
            assert_eq!(text.parse::<Endpoint>(), Err(reason), "{text}");
        }
    }
}
