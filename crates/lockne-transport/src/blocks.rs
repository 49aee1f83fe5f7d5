//! Memory for many packets at once, which is cut up and not copied.

use bytes::BytesMut;

/// How many are kept to be used again.
const KEPT: usize = 64;

/// Blocks of memory, each used again once every packet that was cut from it is gone.
#[derive(Debug, Default)]
pub(crate) struct Blocks {
    /// Their beginnings, of no length: as long as one is there, the memory of its block is.
    starts: Vec<BytesMut>,
}

impl Blocks {
    /// The bytes of each: more than a read has, since each packet of a long one gets headers of its own.
    pub(crate) const LENGTH: usize = 80 << 10;

    /// For fewer bytes than this, none is lent: each packet that is cut from it holds all of it.
    pub(crate) const WORTH: usize = 16 << 10;

    /// A block with anything in it.
    pub(crate) fn take(&mut self) -> BytesMut {
        // The last first: more of it may still be in the processor's cache.
        let mut starts = self.starts.iter_mut();
        if let Some(place) = starts.rposition(|start| start.try_reclaim(Self::LENGTH)) {
            let mut start = self.starts.remove(place);
            let mut block = start.split_off(0);
            // SAFETY: the block was made of so many bytes (below), all of which were written then. It is whole, since
            // `try_reclaim` gives what has as many, and nothing else made one here.
            unsafe { block.set_len(Self::LENGTH) };
            self.starts.push(start);
            return block;
        }
        let mut block = BytesMut::zeroed(Self::LENGTH);
        let start = block.split_to(0);
        if self.starts.len() < KEPT {
            self.starts.push(start);
        }
        block
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn block_is_used_again_when_the_last_of_its_packets_is_gone() {
        let mut blocks = Blocks::default();
        let mut block = blocks.take();
        let place = block.as_ptr();
        block.fill(7);
        block.truncate(300);
        let mut packets: Vec<_> = (0..3).map(|_| block.split_to(100)).collect();
        drop(block);

        while let Some(packet) = packets.pop() {
            let mut other = blocks.take();
            assert_ne!(other.as_ptr(), place);
            other.fill(1);
            assert_eq!(packet, [7; 100][..]);
        }

        // The others are free as well, and come first.
        let taken: Vec<_> = (0..4).map(|_| blocks.take()).collect();
        assert!(taken.iter().any(|block| block.as_ptr() == place));
        assert!(taken.iter().all(|block| block.len() == Blocks::LENGTH));
    }

    #[test]
    fn packet_may_become_longer_without_touching_the_next() {
        let mut block = Blocks::default().take();
        block.fill(7);
        let mut first = block.split_to(100);
        let second = block.split_to(100);

        first.resize(116, 1);

        assert_eq!(second, [7; 100][..]);
        assert_eq!(first[..100], [7; 100]);
    }

    #[test]
    fn no_more_are_kept_than_are_of_use() {
        let mut blocks = Blocks::default();

        drop((0..2 * KEPT).map(|_| blocks.take()).collect::<Vec<_>>());

        assert_eq!(blocks.starts.len(), KEPT);
    }
}
