//! What is known of a packet, read from its bytes as the kernel program reads it.

use lockne_abi::observe::Packet;

/// What a packet starts with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Link {
    /// An Ethernet header.
    Ethernet,
    /// The IP header.
    Bare,
}

/// Reads the headers of a packet. What it is too short for stays zero.
#[must_use]
pub fn packet(bytes: &[u8], link: Link) -> Packet {
    let mut packet = Packet {
        length: u32::try_from(bytes.len()).unwrap_or(u32::MAX),
        ..Packet::default()
    };
    let at = match link {
        Link::Ethernet => {
            packet.flags |= Packet::ETHERNET;
            ethernet(bytes, &mut packet)
        }
        Link::Bare => {
            packet.ethertype = match bytes.first().map(|byte| byte >> 4) {
                Some(4) => 0x0800,
                Some(6) => 0x86dd,
                _ => 0,
            };
            0
        }
    };
    // Whatever is missing at the end is missing in what was asked for last.
    let _whole = match packet.ethertype {
        0x0800 => v4(bytes, at, &mut packet),
        0x86dd => v6(bytes, at, &mut packet),
        0x0806 | 0x8035 => arp(bytes, at, &mut packet),
        _ => None,
    };
    packet
}

/// Returns where the header behind the Ethernet header, and up to two tags, starts.
fn ethernet(bytes: &[u8], packet: &mut Packet) -> usize {
    let mut at = 12;
    for _ in 0..2 {
        if !matches!(half(bytes, at), Some(0x8100 | 0x88a8)) {
            break;
        }
        at += 4;
    }
    packet.ethertype = half(bytes, at).unwrap_or(0);
    at + 2
}

fn v4(bytes: &[u8], at: usize, packet: &mut Packet) -> Option<()> {
    let header: [u8; 20] = array(bytes, at)?;
    packet.source = mapped(array(&header, 12)?);
    packet.destination = mapped(array(&header, 16)?);
    packet.protocol = header[9];
    packet.behind = packet.protocol;
    let fragment_offset = half(&header, 6)? & 0x1fff;
    if fragment_offset == 0 {
        let length = usize::from(header[0] & 0xf) * 4;
        transport(bytes, at + length, packet)?;
    }
    Some(())
}

fn v6(bytes: &[u8], at: usize, packet: &mut Packet) -> Option<()> {
    const FRAGMENT: u8 = 44;
    packet.source = array(bytes, at + 8)?;
    packet.destination = array(bytes, at + 24)?;
    packet.protocol = *bytes.get(at + 6)?;
    packet.behind = packet.protocol;
    if packet.protocol == FRAGMENT {
        packet.behind = *bytes.get(at + 40)?;
        return Some(());
    }
    transport(bytes, at + 40, packet)
}

fn transport(bytes: &[u8], at: usize, packet: &mut Packet) -> Option<()> {
    match packet.protocol {
        6 | 17 | 132 => {
            let ports: [u8; 4] = array(bytes, at)?;
            packet.source_port = half(&ports, 0)?;
            packet.destination_port = half(&ports, 2)?;
            packet.flags |= Packet::PORTS;
            if packet.protocol == 6 {
                packet.kind = *bytes.get(at + 13)?;
                packet.flags |= Packet::KIND;
            }
        }
        1 | 58 => {
            let header: [u8; 8] = array(bytes, at)?;
            packet.kind = header[0];
            packet.destination_port = half(&header, 4)?;
            packet.sequence = half(&header, 6)?;
            packet.flags |= Packet::KIND;
        }
        _ => {}
    }
    Some(())
}

fn arp(bytes: &[u8], at: usize, packet: &mut Packet) -> Option<()> {
    packet.source = mapped(array(bytes, at + 14)?);
    packet.destination = mapped(array(bytes, at + 24)?);
    Some(())
}

fn mapped(address: [u8; 4]) -> [u8; 16] {
    std::net::Ipv4Addr::from(address).to_ipv6_mapped().octets()
}

fn half(bytes: &[u8], at: usize) -> Option<u16> {
    array(bytes, at).map(u16::from_be_bytes)
}

fn array<const N: usize>(bytes: &[u8], at: usize) -> Option<[u8; N]> {
    bytes.get(at..at + N)?.try_into().ok()
}
