//! The smallest program there can be: what it does first is to send a datagram.
//!
//! Made by hand, because ten thousand starts of a program with a library would take minutes.

use std::{
    net::{Ipv4Addr, SocketAddrV4},
    path::Path,
};

use lockne_lab::program;

/// Its datagram.
pub const TEXT: &[u8; 4] = b"sent";

/// Puts a program at `path` that sends [`TEXT`] to `to` and ends.
pub fn put(path: &Path, to: SocketAddrV4) {
    program::write(path, &elf(&code(to))).unwrap();
}

/// `socket`, `sendto`, `exit`.
fn code(to: SocketAddrV4) -> Vec<u8> {
    let mut code = Vec::new();
    code.extend([0xb8, 41, 0, 0, 0]); // mov eax, SYS_socket
    code.extend([0xbf, 2, 0, 0, 0]); // mov edi, AF_INET
    code.extend([0xbe, 2, 0, 0, 0]); // mov esi, SOCK_DGRAM
    code.extend([0x31, 0xd2]); // xor edx, edx
    code.extend([0x0f, 0x05]); // syscall
    code.extend([0x89, 0xc7]); // mov edi, eax
    code.extend([0xb8, 44, 0, 0, 0]); // mov eax, SYS_sendto
    // The address follows the code, and the text that: 32 and 17 bytes of code come behind these two.
    code.extend([0x48, 0x8d, 0x35, 32 + 16, 0, 0, 0]); // lea rsi, [text]
    code.extend([0xba, 4, 0, 0, 0]); // mov edx, 4
    code.extend([0x45, 0x31, 0xd2]); // xor r10d, r10d
    code.extend([0x4c, 0x8d, 0x05, 17, 0, 0, 0]); // lea r8, [address]
    code.extend([0x41, 0xb9, 16, 0, 0, 0]); // mov r9d, 16
    code.extend([0x0f, 0x05]); // syscall
    code.extend([0x31, 0xff]); // xor edi, edi
    code.extend([0xb8, 60, 0, 0, 0]); // mov eax, SYS_exit
    code.extend([0x0f, 0x05]); // syscall
    code.extend([2, 0]);
    code.extend(to.port().to_be_bytes());
    code.extend(Ipv4Addr::octets(to.ip()));
    code.extend([0; 8]);
    code.extend(TEXT);
    code
}

/// One segment that holds everything.
fn elf(code: &[u8]) -> Vec<u8> {
    const BASE: u64 = 0x40_0000;
    let length = 120 + code.len() as u64;
    let mut elf = b"\x7fELF\x02\x01\x01\0\0\0\0\0\0\0\0\0".to_vec();
    elf.extend([2, 0, 62, 0, 1, 0, 0, 0]);
    for word in [BASE + 120, 64, 0] {
        elf.extend(u64::to_le_bytes(word));
    }
    elf.extend([0, 0, 0, 0, 64, 0, 56, 0, 1, 0, 0, 0, 0, 0, 0, 0]);
    elf.extend([1, 0, 0, 0, 5, 0, 0, 0]);
    for word in [0, BASE, BASE, length, length, 0x1000] {
        elf.extend(u64::to_le_bytes(word));
    }
    elf.extend(code);
    elf
}
