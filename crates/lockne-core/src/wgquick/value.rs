//! The values of single fields, as wg(8), wg-quick(8) and ip(8) read them.

use std::{
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    num::NonZeroU16,
};

use ipnet::{IpNet, ip_mask_to_prefix};

use super::{Reason, Table};

/// `off`, a decimal number, or `0x` and hexadecimal digits; 0 is off.
pub(super) fn fwmark(text: &str) -> Result<Option<u32>, Reason> {
    if text.eq_ignore_ascii_case("off") {
        return Ok(None);
    }
    let (digits, radix) = match text.strip_prefix("0x") {
        Some(digits) => (digits, 16),
        None => (text, 10),
    };
    match number(digits, radix) {
        Some(mark) => Ok(Some(mark).filter(|&mark| mark != 0)),
        None => Err(Reason::FwMark),
    }
}

/// `off` or a number of seconds; 0 is off.
pub(super) fn keepalive(text: &str) -> Result<Option<NonZeroU16>, Reason> {
    if text.eq_ignore_ascii_case("off") {
        return Ok(None);
    }
    let seconds = number(text, 10).and_then(|seconds| u16::try_from(seconds).ok());
    seconds.map(NonZeroU16::new).ok_or(Reason::Keepalive)
}

/// A size that a device can have: 68 is the least that IPv4 allows.
pub(super) fn mtu(text: &str) -> Result<u16, Reason> {
    let mtu = number(text, 10).and_then(|mtu| u16::try_from(mtu).ok());
    mtu.filter(|&mtu| mtu >= 68).ok_or(Reason::Mtu)
}

/// `auto`, `off`, a number or a name of iproute2.
pub(super) fn table(text: &str) -> Result<Table, Reason> {
    if text.eq_ignore_ascii_case("auto") {
        return Ok(Table::Auto);
    }
    if text.eq_ignore_ascii_case("off") {
        return Ok(Table::Off);
    }
    if text.starts_with(|c: char| c.is_ascii_digit()) {
        let (digits, radix) = match text.strip_prefix("0x") {
            Some(digits) => (digits, 16),
            None => (text, 10),
        };
        let number = number(digits, radix).ok_or(Reason::Table)?;
        return Ok(Table::Number(number));
    }
    if text
        .bytes()
        .all(|byte| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte))
    {
        return Ok(Table::Name(text.to_owned()));
    }
    Err(Reason::Table)
}

/// `true` or `false`.
pub(super) fn truth(text: &str) -> Result<bool, Reason> {
    if text.eq_ignore_ascii_case("true") {
        Ok(true)
    } else if text.eq_ignore_ascii_case("false") {
        Ok(false)
    } else {
        Err(Reason::Bool)
    }
}

/// An address with the length of its network, for ip-address(8): `/24`, `/255.255.255.0` or nothing.
pub(super) fn interface_address(text: &str) -> Result<IpNet, Reason> {
    let Some((address, mask)) = text.split_once('/') else {
        return self::address(text).map(IpNet::from);
    };
    let address = self::address(address)?;
    let length = match (address, mask.parse::<Ipv4Addr>()) {
        (IpAddr::V4(_), Ok(mask)) => ip_mask_to_prefix(mask.into()).ok(),
        _ => prefix_length(mask),
    };
    net(address, length)
}

/// A prefix for `AllowedIPs`, with its host bits.
pub(super) fn prefix(text: &str) -> Result<IpNet, Reason> {
    let Some((address, length)) = text.split_once('/') else {
        return self::address(text).map(IpNet::from);
    };
    net(self::address(address)?, prefix_length(length))
}

/// The wg-quick test for a resolver: digits and dots, or a colon somewhere. All else is a domain.
pub(super) fn is_resolver(text: &str) -> bool {
    text.contains(':')
        || text
            .bytes()
            .all(|byte| byte.is_ascii_digit() || byte == b'.')
}

/// An IP address.
pub(super) fn address(text: &str) -> Result<IpAddr, Reason> {
    if text.contains(':') {
        let address: Ipv6Addr = text.parse().map_err(|_| Reason::Ipv6)?;
        return Ok(address.into());
    }
    let address: Result<Ipv4Addr, _> = text.parse();
    match address {
        Ok(address) => Ok(address.into()),
        Err(_) if is_resolver(text) && !text.is_empty() => Err(Reason::Ipv4),
        Err(_) => Err(Reason::Address),
    }
}

fn net(address: IpAddr, length: Option<u8>) -> Result<IpNet, Reason> {
    let net = length.and_then(|length| IpNet::new(address, length).ok());
    net.ok_or(Reason::Prefix)
}

fn prefix_length(text: &str) -> Option<u8> {
    number(text, 10).and_then(|length| u8::try_from(length).ok())
}

/// Digits only: no sign and no blanks, which `from_str_radix` and strtoul(3) would take.
fn number(digits: &str, radix: u32) -> Option<u32> {
    let all_digits = digits.chars().all(|c| c.is_digit(radix));
    let number = u32::from_str_radix(digits, radix).ok()?;
    all_digits.then_some(number)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn marks_are_read_as_wg_reads_them() {
        assert_eq!(fwmark("off"), Ok(None));
        assert_eq!(fwmark("OFF"), Ok(None));
        assert_eq!(fwmark("0"), Ok(None));
        assert_eq!(fwmark("51820"), Ok(Some(51820)));
        assert_eq!(fwmark("010"), Ok(Some(10)));
        assert_eq!(fwmark("0xca6C"), Ok(Some(0xca6c)));
        assert_eq!(fwmark("0xffffffff"), Ok(Some(u32::MAX)));
        for text in ["", "0x", "0Xff", "ff", "-1", "+1", "0x100000000", "1 "] {
            assert_eq!(fwmark(text), Err(Reason::FwMark), "{text}");
        }
    }

    #[test]
    fn keepalive_is_read_as_wg_reads_it() {
        assert_eq!(keepalive("off"), Ok(None));
        assert_eq!(keepalive("0"), Ok(None));
        assert_eq!(keepalive("025"), Ok(NonZeroU16::new(25)));
        for text in ["", "65536", "+5", "0x10", "25s"] {
            assert_eq!(keepalive(text), Err(Reason::Keepalive), "{text}");
        }
    }

    #[test]
    fn prefixes_are_read_as_wg_reads_them() {
        let net = |text: &str| text.parse::<IpNet>().unwrap();
        assert_eq!(prefix("10.1.2.3/08"), Ok(net("10.1.2.3/8")));
        assert_eq!(prefix("10.1.2.3"), Ok(net("10.1.2.3/32")));
        assert_eq!(prefix("2001:db8::1"), Ok(net("2001:db8::1/128")));
        assert_eq!(prefix("::/0"), Ok(net("::/0")));
        for (text, reason) in [
            ("", Reason::Address),
            ("10.1/8", Reason::Ipv4),
            ("10.0.0.300/8", Reason::Ipv4),
            ("10.0.0.1/33", Reason::Prefix),
            ("10.0.0.1/", Reason::Prefix),
            ("10.0.0.1/255.0.0.0", Reason::Prefix),
            ("::/129", Reason::Prefix),
            ("::g/1", Reason::Ipv6),
            ("example.com/1", Reason::Address),
        ] {
            assert_eq!(prefix(text), Err(reason), "{text}");
        }
    }

    #[test]
    fn interface_address_may_have_a_mask() {
        let net = |text: &str| text.parse::<IpNet>().unwrap();
        assert_eq!(
            interface_address("10.1.2.3/255.255.255.0"),
            Ok(net("10.1.2.3/24"))
        );
        assert_eq!(
            interface_address("10.1.2.3/255.0.255.0"),
            Err(Reason::Prefix)
        );
    }

    #[test]
    fn tables_are_words_or_numbers() {
        assert_eq!(table("Auto"), Ok(Table::Auto));
        assert_eq!(table("off"), Ok(Table::Off));
        assert_eq!(table("1234"), Ok(Table::Number(1234)));
        assert_eq!(table("main"), Ok(Table::Name("main".to_owned())));
        assert_eq!(table("12ab"), Err(Reason::Table));
        assert_eq!(table("$(reboot)"), Err(Reason::Table));
    }
}
