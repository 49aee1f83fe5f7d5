//! What the kernel's records say: bytes of a ring, each record of a shape that its first number tells.

use lockne_abi::{
    flow::{self, Answer, Closed},
    observe::{Exec, Exit},
};

/// What was seen of a program.
#[derive(Clone, Copy, Debug)]
#[expect(clippy::large_enum_variant, reason = "handed on at once, by reference")]
pub enum Run {
    /// It starts.
    Starts(Exec),
    /// It has ended.
    Ends(Exit),
}

impl Run {
    /// Reads a record; `None` if it is another's, or cut.
    pub(crate) fn read(record: &[u8]) -> Option<Self> {
        match tag(record)? {
            Exec::TAG => Some(Self::Starts(split(record)?.0)),
            Exit::TAG => Some(Self::Ends(split(record)?.0)),
            _ => None,
        }
    }
}

/// What was seen of a connection.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Connection<'a> {
    /// The first packet.
    Begun(flow::Turn),
    /// It is over, and its place is free.
    Ended(flow::Turn),
    /// Its socket was closed, which may have had several.
    Closed(Closed),
    /// A name server has answered it: with the packet.
    Answer(Answer, &'a [u8]),
}

impl<'a> Connection<'a> {
    /// Reads a record; `None` if it is another's, or cut.
    pub(crate) fn read(record: &'a [u8]) -> Option<Self> {
        match tag(record)? {
            flow::Turn::BEGUN => Some(Self::Begun(split(record)?.0)),
            flow::Turn::ENDED => Some(Self::Ended(split(record)?.0)),
            Closed::TAG => Some(Self::Closed(split(record)?.0)),
            Answer::TAG => {
                let (answer, rest) = split::<Answer>(record)?;
                Some(Self::Answer(answer, rest.get(..answer.length as usize)?))
            }
            _ => None,
        }
    }
}

/// The `T` that a record starts with, and what is behind it.
pub(crate) fn split<T: aya::Pod>(record: &[u8]) -> Option<(T, &[u8])> {
    let (head, rest) = record.split_at_checked(size_of::<T>())?;
    // SAFETY: as long as `T`, and `Pod` types are valid whatever the bytes.
    Some((unsafe { head.as_ptr().cast::<T>().read_unaligned() }, rest))
}

fn tag(record: &[u8]) -> Option<u32> {
    record.first_chunk().map(|bytes| u32::from_ne_bytes(*bytes))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn record_that_is_cut_or_of_another_kind_is_none() {
        let mut record = vec![0; size_of::<Exit>()];
        record[..4].copy_from_slice(&Exit::TAG.to_ne_bytes());
        record[4..8].copy_from_slice(&77_u32.to_ne_bytes());

        assert!(matches!(Run::read(&record), Some(Run::Ends(exit)) if exit.pid == 77));
        assert!(Run::read(&record[1..]).is_none() && Run::read(&[]).is_none());
        assert!(Run::read(&record[..record.len() - 1]).is_none());
        assert!(Connection::read(&record).is_none());
    }
}
