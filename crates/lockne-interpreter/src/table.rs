//! Maps, as simple as they can be.

use std::slice;

/// What a map answers by.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// An index. Per-CPU maps are the same here: there is one CPU.
    Array,
    /// The whole key.
    Hash,
    /// The longest prefix that fits; the key starts with its length in bits.
    Prefix,
    /// A socket. There is one here, and its key is empty.
    Socket,
    /// Nothing: records go to user space.
    Ring,
}

impl Kind {
    /// The kind of a `BPF_MAP_TYPE_*`, if it is imitated here.
    #[must_use]
    pub fn of(map_type: u32) -> Option<Self> {
        // include/uapi/linux/bpf.h, enum bpf_map_type
        match map_type {
            2 | 6 => Some(Self::Array),
            1 | 5 | 9 | 10 => Some(Self::Hash),
            11 => Some(Self::Prefix),
            24 => Some(Self::Socket),
            27 => Some(Self::Ring),
            _ => None,
        }
    }
}

/// A map.
///
/// Values never move while a program runs: it may hold their addresses.
#[derive(Clone, Debug)]
pub struct Table {
    kind: Kind,
    key_size: usize,
    value_size: usize,
    /// For an array none: there the place is the key.
    keys: Vec<Option<Box<[u8]>>>,
    values: Box<[u64]>,
}

impl Table {
    /// Creates an empty map; sizes in bytes.
    #[must_use]
    pub fn new(kind: Kind, key_size: usize, value_size: usize, entries: usize) -> Self {
        let (key_size, entries) = match kind {
            Kind::Socket => (0, 1),
            _ => (key_size, entries),
        };
        let (room, keys) = match kind {
            // A record at a time is enough for a ring.
            Kind::Ring => (4096, 0),
            Kind::Array => (entries * value_size.next_multiple_of(8), 0),
            Kind::Hash | Kind::Prefix | Kind::Socket => {
                (entries * value_size.next_multiple_of(8), entries)
            }
        };
        Self {
            kind,
            key_size,
            value_size,
            keys: vec![None; keys],
            values: vec![0; room.div_ceil(8)].into(),
        }
    }

    /// What the map answers by.
    #[must_use]
    pub fn kind(&self) -> Kind {
        self.kind
    }

    /// How long a key is.
    #[must_use]
    pub fn key_size(&self) -> usize {
        self.key_size
    }

    /// How long a value is.
    #[must_use]
    pub fn value_size(&self) -> usize {
        self.value_size
    }

    /// The value under `key`; an array's key is its index in native order.
    ///
    /// # Panics
    ///
    /// If the key is not as long as the map's keys.
    #[must_use]
    pub fn get(&self, key: &[u8]) -> Option<&[u8]> {
        let at = self.place(key)? * self.stride();
        Some(&self.bytes()[at..at + self.value_size])
    }

    /// Puts `value` under `key`; false if there is no room.
    ///
    /// # Panics
    ///
    /// If key or value are not as long as the map's.
    pub fn set(&mut self, key: &[u8], value: &[u8]) -> bool {
        assert_eq!(value.len(), self.value_size, "length of the value");
        let place = match self.exact(key) {
            Some(place) => place,
            None if self.kind == Kind::Array => return false,
            None => {
                let Some(free) = self.keys.iter().position(Option::is_none) else {
                    return false;
                };
                self.keys[free] = Some(key.into());
                free
            }
        };
        let at = place * self.stride();
        self.bytes_mut()[at..at + value.len()].copy_from_slice(value);
        true
    }

    /// Removes what is under `key`; false if there is nothing.
    pub fn remove(&mut self, key: &[u8]) -> bool {
        match self.exact(key) {
            Some(place) if self.kind != Kind::Array => {
                self.keys[place] = None;
                true
            }
            _ => false,
        }
    }

    /// The address of the value under `key`, as programs get it; 0 if there is none.
    pub(crate) fn address(&mut self, key: &[u8]) -> u64 {
        let Some(place) = self.place(key) else {
            return 0;
        };
        self.start() + (place * self.stride()) as u64
    }

    /// The address of the first value.
    pub(crate) fn start(&mut self) -> u64 {
        self.values.as_mut_ptr().expose_provenance() as u64
    }

    /// How many bytes all values have.
    pub(crate) fn len(&self) -> usize {
        size_of_val(&*self.values)
    }

    /// The place of exactly this key.
    fn exact(&self, key: &[u8]) -> Option<usize> {
        assert_eq!(key.len(), self.key_size, "length of the key");
        if self.kind == Kind::Array {
            let index = u32::from_ne_bytes(key.try_into().ok()?) as usize;
            return (index < self.len() / self.stride()).then_some(index);
        }
        self.keys
            .iter()
            .position(|stored| stored.as_deref() == Some(key))
    }

    /// The place that a look-up finds.
    fn place(&self, key: &[u8]) -> Option<usize> {
        if self.kind != Kind::Prefix {
            return self.exact(key);
        }
        assert_eq!(key.len(), self.key_size, "length of the key");
        let stored = self.keys.iter().enumerate();
        let fitting = stored.filter_map(|(place, stored)| {
            let len = fits(stored.as_deref()?, key)?;
            Some((len, place))
        });
        fitting.max().map(|(_, place)| place)
    }

    fn stride(&self) -> usize {
        self.value_size.next_multiple_of(8).max(8)
    }

    fn bytes(&self) -> &[u8] {
        // SAFETY: any u64 is eight bytes.
        unsafe { slice::from_raw_parts(self.values.as_ptr().cast(), self.len()) }
    }

    pub(crate) fn bytes_mut(&mut self) -> &mut [u8] {
        // SAFETY: any u64 is eight bytes, and any eight bytes are one.
        unsafe { slice::from_raw_parts_mut(self.values.as_mut_ptr().cast(), self.len()) }
    }
}

/// The length of the prefix `stored`, in bits, if it holds for `key`.
fn fits(stored: &[u8], key: &[u8]) -> Option<u32> {
    let (len, prefix) = stored.split_first_chunk()?;
    let (limit, address) = key.split_first_chunk()?;
    let (len, limit) = (u32::from_ne_bytes(*len), u32::from_ne_bytes(*limit));
    let (whole, rest) = (len as usize / 8, len % 8);
    let mask = !(0xff_u8.checked_shr(rest).unwrap_or(0));
    let same = prefix.get(..whole)? == address.get(..whole)?
        && (rest == 0 || (prefix.get(whole)? ^ address.get(whole)?) & mask == 0);
    (same && len <= limit).then_some(len)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn prefix(len: u32, address: [u8; 4]) -> Vec<u8> {
        [len.to_ne_bytes(), address].concat()
    }

    #[test]
    fn longest_prefix_wins() {
        let mut table = Table::new(Kind::Prefix, 8, 1, 4);
        assert!(table.set(&prefix(8, [10, 0, 0, 0]), &[1]));
        assert!(table.set(&prefix(20, [10, 1, 16, 0]), &[2]));

        let find = |address| table.get(&prefix(32, address)).map(|value| value[0]);

        assert_eq!(find([10, 1, 31, 1]), Some(2));
        assert_eq!(find([10, 1, 32, 1]), Some(1));
        assert_eq!(find([11, 1, 16, 1]), None);
    }

    #[test]
    fn full_hash_takes_no_new_key_but_changes_old_ones() {
        let mut table = Table::new(Kind::Hash, 1, 1, 1);
        assert!(table.set(&[1], &[1]) && table.set(&[1], &[2]));

        assert!(!table.set(&[2], &[1]));
        assert_eq!(table.get(&[1]), Some(&[2][..]));
        assert!(table.remove(&[1]) && table.get(&[1]).is_none());
    }

    #[test]
    fn array_has_all_its_entries_from_the_start_and_no_more() {
        let table = Table::new(Kind::Array, 4, 12, 2);

        assert_eq!(table.get(&1_u32.to_ne_bytes()), Some(&[0; 12][..]));
        assert_eq!(table.get(&2_u32.to_ne_bytes()), None);
    }
}
