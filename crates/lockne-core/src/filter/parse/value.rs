//! What stands behind a qualifier: addresses, networks, numbers.

use winnow::{ModalResult, error::ErrMode};

use super::Type;
use crate::filter::{
    Error, Problem,
    expression::{Address, Layer, Transport},
};

/// An address or network as tcpdump reads it: fewer than four parts are a network.
pub(super) fn address(text: &str, kind: Type, at: usize) -> ModalResult<Address, Error> {
    let wanted = if kind == Type::Net {
        "a network"
    } else {
        "an address"
    };
    let wrong = || not_a(at, text, wanted);
    let (name, length) = match text.split_once('/') {
        Some((name, length)) if kind == Type::Net => {
            (name, Some(length.parse::<u32>().map_err(|_| wrong())?))
        }
        Some(_) => return Err(wrong()),
        None => (text, None),
    };
    let bits_behind = || {
        let problem = Problem::HostBits(text.to_owned());
        ErrMode::Cut(Error { at, problem })
    };
    if name.contains(':') {
        let address: std::net::Ipv6Addr = name.parse().map_err(|_| wrong())?;
        let length = length.unwrap_or(128);
        let mask = u128::MAX
            .checked_shl(128_u32.checked_sub(length).ok_or_else(wrong)?)
            .unwrap_or(0);
        if address.to_bits() & !mask != 0 {
            return Err(bits_behind());
        }
        return Ok(Address::V6 { address, mask });
    }
    let (address, own) = v4(name, kind).ok_or_else(wrong)?;
    let mask = match length {
        None => own,
        Some(length) => u32::MAX
            .checked_shl(32_u32.checked_sub(length).ok_or_else(wrong)?)
            .unwrap_or(0),
    };
    if address & !mask != 0 {
        return Err(bits_behind());
    }
    let address = address.into();
    Ok(Address::V4 { address, mask })
}

/// The bits of an IPv4 address, and which of them were said.
fn v4(text: &str, kind: Type) -> Option<(u32, u32)> {
    if !text.contains('.') {
        let mut address = number(text)?;
        let mut mask = u32::MAX;
        while kind == Type::Net && address != 0 && address >> 24 == 0 {
            address <<= 8;
            mask <<= 8;
        }
        return Some((address, mask));
    }
    let parts: Vec<u8> = text
        .split('.')
        .map(|part| {
            let is_number = part.bytes().all(|byte| byte.is_ascii_digit());
            part.parse().ok().filter(|_| is_number)
        })
        .collect::<Option<_>>()?;
    let missing = 4_usize.checked_sub(parts.len())?;
    let address = parts
        .iter()
        .fold(0, |all, part| all << 8 | u32::from(*part));
    let shift = u32::try_from(missing).ok()? * 8;
    Some((address << shift, u32::MAX << shift))
}

pub(super) fn masked(text: &str, mask: &str) -> Option<Address> {
    let (address, _) = v4(text, Type::Net)?;
    let (mask, _) = v4(mask, Type::Net)?;
    (address & !mask == 0).then(|| Address::V4 {
        address: address.into(),
        mask,
    })
}

/// As C has them: `0x` before sixteen, `0` before eight, else ten.
pub(super) fn number(text: &str) -> Option<u32> {
    let (digits, radix) = match text.as_bytes() {
        [b'0', b'x' | b'X', ..] => (&text[2..], 16),
        [b'0', _, ..] => (&text[1..], 8),
        _ => (text, 10),
    };
    let is_number = digits.bytes().all(|digit| digit.is_ascii_alphanumeric());
    u32::from_str_radix(digits, radix)
        .ok()
        .filter(|_| is_number)
}

pub(super) fn port(text: &str) -> Option<u16> {
    number(text)?.try_into().ok()
}

pub(super) fn protocol(text: &str) -> Option<u8> {
    let transport = Transport::ALL
        .into_iter()
        .find(|transport| Layer::Transport(*transport).word() == text);
    match (transport, text) {
        (Some(transport), _) => Some(transport.number()),
        (None, "icmp") => Some(1),
        (None, "icmp6") => Some(58),
        (None, _) => number(text)?.try_into().ok(),
    }
}

pub(super) fn not_a(at: usize, text: &str, wanted: &'static str) -> ErrMode<Error> {
    let problem = Problem::NotA {
        word: text.to_owned(),
        wanted,
    };
    ErrMode::Cut(Error { at, problem })
}
