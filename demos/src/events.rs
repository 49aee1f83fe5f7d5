//! The records that a program sends through a ring buffer.

use std::marker::PhantomData;

use anyhow::{Context as _, Result, ensure};
use aya::{
    Ebpf, Pod,
    maps::{MapData, PerCpuArray, RingBuf},
};
use tokio::io::{Interest, unix::AsyncFd};

/// The records of one ring buffer, in the order they were sent.
pub struct Events<T> {
    ring: AsyncFd<RingBuf<MapData>>,
    lost: PerCpuArray<MapData, u64>,
    record: PhantomData<T>,
}

impl<T: Pod> Events<T> {
    /// Takes the ring buffer `map`, and `LOST`, which counts what found no room in it.
    ///
    /// # Errors
    ///
    /// When the object has no such maps.
    pub fn take(ebpf: &mut Ebpf, map: &str) -> Result<Self> {
        let mut take = |name: &str| {
            ebpf.take_map(name)
                .with_context(|| format!("the object has no map `{name}`"))
        };
        let ring = RingBuf::try_from(take(map)?)?;
        let lost = PerCpuArray::try_from(take("LOST")?)?;
        // SAFETY: the ring buffer owns its descriptor and never changes it.
        let ring = unsafe { AsyncFd::register_with_interest(ring, Interest::READABLE) }?;
        Ok(Self {
            ring,
            lost,
            record: PhantomData,
        })
    }

    /// Waits for the next record. Dropping the future loses nothing.
    ///
    /// # Errors
    ///
    /// When the ring buffer cannot be waited for, or a record has another length than `T`.
    pub async fn next(&mut self) -> Result<T> {
        loop {
            let mut ring = self.ring.readable_mut().await?;
            if let Some(item) = ring.get_inner_mut().next() {
                return read(&item);
            }
            ring.clear_ready();
        }
    }

    /// The next record that is there already.
    ///
    /// # Errors
    ///
    /// When it has another length than `T`.
    pub fn ready(&mut self) -> Result<Option<T>> {
        let item = self.ring.get_mut().next();
        item.map(|item| read(&item)).transpose()
    }

    /// How many records found no room.
    ///
    /// # Errors
    ///
    /// When the map is gone.
    pub fn lost(&self) -> Result<u64> {
        Ok(self.lost.get(&0, 0)?.iter().sum())
    }
}

fn read<T: Pod>(bytes: &[u8]) -> Result<T> {
    ensure!(
        bytes.len() == size_of::<T>(),
        "a record of {} bytes, not {}",
        bytes.len(),
        size_of::<T>()
    );
    // SAFETY: as long as `T`, and `Pod` types are valid whatever the bytes.
    Ok(unsafe { bytes.as_ptr().cast::<T>().read_unaligned() })
}
