//! A filter in the classic instructions, as Steven `McCanne` and Van Jacobson wrote them in 1993.
//!
//! Two registers, jumps only forward, no loops: so it always ends, and the kernel could trust it.

use socket2::SockFilter;

const LOAD_HALF: u16 = 0x28;
const LOAD_BYTE: u16 = 0x30;
/// X becomes four times the low half of a byte: the length of an IP header. Made for exactly that.
const LOAD_HEADER_LENGTH: u16 = 0xb1;
const LOAD_HALF_BEHIND_X: u16 = 0x48;
const JUMP_IF_EQUAL: u16 = 0x15;
const JUMP_IF_ANY_BIT: u16 = 0x45;
const RETURN: u16 = 0x06;

/// Lets UDP packets for the port pass, IPv4 and IPv6.
#[must_use]
pub fn udp_to(port: u16) -> [SockFilter; 16] {
    let port = u32::from(port);
    [
        /*  0 */ SockFilter::new(LOAD_HALF, 0, 0, 12), // Ethernet: what is inside?
        /*  1 */ SockFilter::new(JUMP_IF_EQUAL, 0, 4, 0x86dd), // IPv6
        /*  2 */ SockFilter::new(LOAD_BYTE, 0, 0, 14 + 6),
        /*  3 */ SockFilter::new(JUMP_IF_EQUAL, 0, 11, 17), // UDP
        /*  4 */ SockFilter::new(LOAD_HALF, 0, 0, 14 + 40 + 2),
        /*  5 */ SockFilter::new(JUMP_IF_EQUAL, 8, 9, port),
        /*  6 */ SockFilter::new(JUMP_IF_EQUAL, 0, 8, 0x0800), // IPv4
        /*  7 */ SockFilter::new(LOAD_BYTE, 0, 0, 14 + 9),
        /*  8 */ SockFilter::new(JUMP_IF_EQUAL, 0, 6, 17), // UDP
        /*  9 */ SockFilter::new(LOAD_HALF, 0, 0, 14 + 6),
        /* 10 */ SockFilter::new(JUMP_IF_ANY_BIT, 4, 0, 0x1fff), // a later fragment
        /* 11 */ SockFilter::new(LOAD_HEADER_LENGTH, 0, 0, 14),
        /* 12 */ SockFilter::new(LOAD_HALF_BEHIND_X, 0, 0, 14 + 2),
        /* 13 */ SockFilter::new(JUMP_IF_EQUAL, 0, 1, port),
        /* 14 */ SockFilter::new(RETURN, 0, 0, 0xffff), // all of it
        /* 15 */ SockFilter::new(RETURN, 0, 0, 0), // nothing
    ]
}

/// The program as text, in the notation of the paper.
#[must_use]
pub fn show(program: &[SockFilter]) -> String {
    let line = |(number, instruction): (usize, &SockFilter)| {
        // SAFETY: a transparent wrapper around the kernel's structure.
        let libc::sock_filter { code, jt, jf, k } =
            unsafe { *std::ptr::from_ref(instruction).cast() };
        let target = |jump: u8| number + 1 + usize::from(jump);
        let (yes, no) = (target(jt), target(jf));
        let what = match code {
            LOAD_HALF => format!("ldh  [{k}]"),
            LOAD_BYTE => format!("ldb  [{k}]"),
            LOAD_HEADER_LENGTH => format!("ldxb 4*([{k}]&0xf)"),
            LOAD_HALF_BEHIND_X => format!("ldh  [x + {k}]"),
            JUMP_IF_EQUAL => format!("jeq  #{k:#x}, yes {yes:03}, no {no:03}"),
            JUMP_IF_ANY_BIT => format!("jset #{k:#x}, yes {yes:03}, no {no:03}"),
            RETURN => format!("ret  #{k}"),
            other => format!("instruction {other:#x}"),
        };
        format!("({number:03}) {what}\n")
    };
    program.iter().enumerate().map(line).collect()
}
