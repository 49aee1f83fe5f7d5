//! What a program finds around it: maps, and what helpers answer.

use std::{collections::BTreeMap, ops::Range, slice};

use crate::table::{Kind, Table};

/// Everything outside of a program that a run can read or change.
///
/// The public fields are what helpers answer with, and what programs did through them.
#[derive(Clone, Debug, Default)]
pub struct World {
    pub(crate) maps: Vec<(String, Table)>,
    /// Memory of the kernel, by the address it was given: it never moves.
    blocks: Vec<Block>,
    /// The process that runs: `bpf_get_current_pid_tgid`.
    pub process: u32,
    /// The address of that process's task: `bpf_get_current_task`.
    pub task: u64,
    /// `bpf_get_netns_cookie`.
    pub netns_cookie: u64,
    /// `bpf_get_socket_cookie`.
    pub socket_cookie: u64,
    /// The addresses of sockets that `bpf_sk_lookup_tcp` and `bpf_sk_lookup_udp` find, by the bytes of the tuple.
    pub sockets: BTreeMap<Vec<u8>, u64>,
    /// Nanoseconds: `bpf_ktime_get_ns`.
    pub now: u64,
    /// The bytes that `bpf_skb_load_bytes` copies from.
    pub(crate) packet: Vec<u8>,
    /// What was sent to user space by ring buffers.
    pub records: Vec<Vec<u8>>,
    /// What `bpf_set_retval` set.
    pub retval: Option<i32>,
    /// What `bpf_setsockopt` set: level and option, and the value.
    pub socket_options: BTreeMap<(i32, i32), Vec<u8>>,
    /// What `bpf_setsockopt` answers.
    pub setsockopt_result: i32,
}

#[derive(Debug)]
struct Block {
    words: Box<[u64]>,
}

impl Clone for Block {
    fn clone(&self) -> Self {
        unreachable!("addresses inside of contexts would stay those of the original")
    }
}

impl World {
    pub(crate) fn new(maps: Vec<(String, Table)>) -> Self {
        Self {
            maps,
            ..Self::default()
        }
    }

    /// The map `name`.
    ///
    /// # Panics
    ///
    /// If there is none: a test names the maps of its own object.
    pub fn map(&mut self, name: &str) -> &mut Table {
        self.maps
            .iter_mut()
            .find_map(|(of, table)| (of == name).then_some(table))
            .unwrap_or_else(|| panic!("no map `{name}`"))
    }

    /// Gives the program `bytes` to read, as memory of the kernel, and returns its address.
    pub fn block(&mut self, bytes: &[u8]) -> u64 {
        let mut words = vec![0_u64; bytes.len().div_ceil(8)].into_boxed_slice();
        for (word, part) in words.iter_mut().zip(bytes.chunks(8)) {
            let mut padded = [0; 8];
            padded[..part.len()].copy_from_slice(part);
            *word = u64::from_ne_bytes(padded);
        }
        let address = words.as_mut_ptr().expose_provenance() as u64;
        self.blocks.push(Block { words });
        address
    }

    /// `len` bytes at `address`, if they are memory of the kernel.
    pub(crate) fn kernel_memory(&self, address: u64, len: usize) -> Option<&[u8]> {
        self.blocks.iter().find_map(|block| {
            // SAFETY: any u64 is eight bytes.
            let bytes: &[u8] = unsafe {
                slice::from_raw_parts(block.words.as_ptr().cast(), size_of_val(&*block.words))
            };
            let start = block.words.as_ptr().addr() as u64;
            let at = usize::try_from(address.checked_sub(start)?).ok()?;
            bytes.get(at..at.checked_add(len)?)
        })
    }

    /// The memory that programs may touch beside their stack, context and packet.
    pub(crate) fn memory(&mut self) -> Vec<Range<u64>> {
        let maps = self.maps.iter_mut().map(|(_, table)| {
            let start = table.start();
            start..start + table.len() as u64
        });
        let blocks = self.blocks.iter().map(|block| {
            let start = block.words.as_ptr().addr() as u64;
            start..start + size_of_val(&*block.words) as u64
        });
        maps.chain(blocks).collect()
    }

    /// The map whose file descriptor, as it were, is `handle`.
    pub(crate) fn by_handle(&mut self, handle: u64) -> Option<&mut Table> {
        let index = usize::try_from(handle).ok()?.checked_sub(1)?;
        Some(&mut self.maps.get_mut(index)?.1)
    }

    /// The address of the value of the map `handle`, which is the data of a section.
    pub(crate) fn section(&mut self, handle: u64) -> Option<u64> {
        let table = self.by_handle(handle)?;
        (table.kind() == Kind::Array).then(|| table.start())
    }
}
