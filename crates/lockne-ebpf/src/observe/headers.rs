//! What is known of a packet from its headers.
//!
//! The same, on bytes, is in `lockne_core::filter`; a test of the daemon compares both.

use aya_ebpf::programs::TcContext;
use lockne_abi::observe::Packet;

pub(crate) const TCP: u8 = 6;
pub(crate) const UDP: u8 = 17;
const SCTP: u8 = 132;
const ICMP: u8 = 1;
const ICMPV6: u8 = 58;
const FRAGMENT: u8 = 44;

const IPV4: u16 = 0x0800;
const ARP: u16 = 0x0806;
const RARP: u16 = 0x8035;
const IPV6: u16 = 0x86dd;
const TAG: u16 = 0x8100;
const PROVIDER_TAG: u16 = 0x88a8;

/// A tag takes four bytes where it is part of the packet.
const TAG_LENGTH: u32 = 4;

/// Reads what comes before the data. What the packet is too short for stays zero.
#[inline(always)]
pub(crate) fn read<const ETHERNET: bool, const INCOMING: bool>(
    ctx: &TcContext,
    packet: &mut Packet,
) {
    let skb = ctx.skb.skb;
    *packet = Packet::default();
    // SAFETY: the kernel passes a valid packet.
    unsafe {
        packet.mark = (*skb).mark;
        packet.ifindex = (*skb).ifindex;
        packet.length = (*skb).len;
        if ETHERNET && (*skb).vlan_present != 0 {
            packet.vlan = (*skb).vlan_tci as u16;
            packet.flags |= Packet::TAGGED;
            packet.length += TAG_LENGTH;
            if u16::from_be((*skb).vlan_proto as u16) == PROVIDER_TAG {
                packet.flags |= Packet::PROVIDER_TAG;
            }
        }
    }
    if INCOMING {
        packet.flags |= Packet::INCOMING;
    }
    let start = if ETHERNET {
        packet.flags |= Packet::ETHERNET;
        ethernet(ctx, packet)
    } else {
        packet.ethertype = match ctx.load::<u8>(0).map(|byte| byte >> 4) {
            Ok(4) => IPV4,
            Ok(6) => IPV6,
            _ => 0,
        };
        0
    };
    // Whatever is missing at the end is missing in what was asked for last.
    let _whole = match packet.ethertype {
        IPV4 => v4(ctx, start, packet),
        IPV6 => v6(ctx, start, packet),
        ARP | RARP => arp(ctx, start, packet),
        _ => None,
    };
}

/// Returns where the header behind the Ethernet header, and up to two tags, starts.
#[inline(always)]
fn ethernet(ctx: &TcContext, packet: &mut Packet) -> usize {
    let kind = |at| ctx.load(at).map_or(0, u16::from_be_bytes);
    let mut at = 12;
    let mut ethertype = kind(at);
    if matches!(ethertype, TAG | PROVIDER_TAG) {
        at = 16;
        ethertype = kind(at);
        if matches!(ethertype, TAG | PROVIDER_TAG) {
            at = 20;
            ethertype = kind(at);
        }
    }
    packet.ethertype = ethertype;
    at + 2
}

#[inline(always)]
fn v4(ctx: &TcContext, at: usize, packet: &mut Packet) -> Option<()> {
    let header: [u8; 20] = ctx.load(at).ok()?;
    packet.source = mapped([header[12], header[13], header[14], header[15]]);
    packet.destination = mapped([header[16], header[17], header[18], header[19]]);
    packet.protocol = header[9];
    packet.behind = header[9];
    let fragment_offset = u16::from_be_bytes([header[6], header[7]]) & 0x1fff;
    if fragment_offset == 0 {
        transport(ctx, at + usize::from(header[0] & 0xf) * 4, packet)?;
    }
    Some(())
}

#[inline(always)]
fn v6(ctx: &TcContext, at: usize, packet: &mut Packet) -> Option<()> {
    packet.source = ctx.load(at + 8).ok()?;
    packet.destination = ctx.load(at + 24).ok()?;
    packet.protocol = ctx.load(at + 6).ok()?;
    packet.behind = packet.protocol;
    if packet.protocol == FRAGMENT {
        packet.behind = ctx.load(at + 40).ok()?;
        return Some(());
    }
    transport(ctx, at + 40, packet)
}

#[inline(always)]
fn transport(ctx: &TcContext, at: usize, packet: &mut Packet) -> Option<()> {
    match packet.protocol {
        TCP | UDP | SCTP => {
            let ports: [u8; 4] = ctx.load(at).ok()?;
            packet.source_port = u16::from_be_bytes([ports[0], ports[1]]);
            packet.destination_port = u16::from_be_bytes([ports[2], ports[3]]);
            packet.flags |= Packet::PORTS;
            if packet.protocol == TCP {
                packet.kind = ctx.load(at + 13).ok()?;
                packet.flags |= Packet::KIND;
            }
        }
        ICMP | ICMPV6 => {
            let header: [u8; 8] = ctx.load(at).ok()?;
            packet.kind = header[0];
            packet.destination_port = u16::from_be_bytes([header[4], header[5]]);
            packet.sequence = u16::from_be_bytes([header[6], header[7]]);
            packet.flags |= Packet::KIND;
        }
        _ => {}
    }
    Some(())
}

#[inline(always)]
fn arp(ctx: &TcContext, at: usize, packet: &mut Packet) -> Option<()> {
    packet.source = mapped(ctx.load(at + 14).ok()?);
    packet.destination = mapped(ctx.load(at + 24).ok()?);
    Some(())
}

#[inline(always)]
fn mapped(v4: [u8; 4]) -> [u8; 16] {
    let [a, b, c, d] = v4;
    [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff, a, b, c, d]
}

/// The key under which the reply to an echo request will be looked for.
#[inline(always)]
pub(crate) fn echo_request(packet: &Packet) -> Option<u32> {
    echo(packet, 8, 128)
}

/// The key under which the request of an echo reply was noted.
#[inline(always)]
pub(crate) fn echo_reply(packet: &Packet) -> Option<u32> {
    echo(packet, 0, 129)
}

#[inline(always)]
fn echo(packet: &Packet, v4: u8, v6: u8) -> Option<u32> {
    let is_echo = packet.has(Packet::KIND)
        && match packet.protocol {
            ICMP => packet.kind == v4 && packet.ethertype == IPV4,
            ICMPV6 => packet.kind == v6 && packet.ethertype == IPV6,
            _ => false,
        };
    is_echo.then(|| u32::from(packet.protocol) << 16 | u32::from(packet.destination_port))
}

/// The ends of a connection as the kernel looks for its socket, and how long that is.
#[inline(always)]
pub(crate) fn tuple(packet: &Packet, tuple: &mut [u32; 9]) -> u32 {
    let word = |bytes: &[u8; 16], at: usize| {
        u32::from_ne_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]])
    };
    let [a, b] = packet.source_port.to_be_bytes();
    let [c, d] = packet.destination_port.to_be_bytes();
    let ports = u32::from_ne_bytes([a, b, c, d]);
    if packet.ethertype == IPV4 {
        tuple[0] = word(&packet.source, 12);
        tuple[1] = word(&packet.destination, 12);
        tuple[2] = ports;
        12
    } else {
        tuple[0] = word(&packet.source, 0);
        tuple[1] = word(&packet.source, 4);
        tuple[2] = word(&packet.source, 8);
        tuple[3] = word(&packet.source, 12);
        tuple[4] = word(&packet.destination, 0);
        tuple[5] = word(&packet.destination, 4);
        tuple[6] = word(&packet.destination, 8);
        tuple[7] = word(&packet.destination, 12);
        tuple[8] = ports;
        36
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reply_is_found_by_the_key_of_its_request() {
        let request = Packet {
            ethertype: IPV6,
            protocol: ICMPV6,
            kind: 128,
            destination_port: 7,
            flags: Packet::KIND,
            ..Packet::default()
        };
        let reply = Packet {
            kind: 129,
            ..request
        };

        assert_eq!(echo_request(&request), echo_reply(&reply));
        assert_eq!(echo_request(&reply), None);
        assert_eq!(echo_reply(&request), None);
    }

    #[test]
    fn tuple_has_the_sender_first() {
        let packet = Packet {
            ethertype: IPV4,
            source: mapped([192, 0, 2, 1]),
            destination: mapped([192, 0, 2, 2]),
            source_port: 0x0102,
            destination_port: 0x0304,
            ..Packet::default()
        };
        let mut words = [0; 9];

        assert_eq!(tuple(&packet, &mut words), 12);

        let bytes: Vec<u8> = words[..3]
            .iter()
            .flat_map(|word| word.to_ne_bytes())
            .collect();
        assert_eq!(bytes, [192, 0, 2, 1, 192, 0, 2, 2, 1, 2, 3, 4]);
    }
}
