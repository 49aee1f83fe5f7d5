//! Sees every packet that passes a device.

mod socket;

use std::{
    collections::HashMap,
    io,
    net::SocketAddr,
    os::fd::{AsFd, OwnedFd},
    sync::{
        Arc, Condvar, Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use nix::{
    poll::{PollFd, PollFlags, PollTimeout, poll},
    sched::{CpuSet, sched_setaffinity},
    unistd::{Pid, SysconfVar, sysconf},
};
use rustix::event::{EventfdFlags, eventfd};

use self::socket::{Captured, PacketSocket};
use crate::{
    device::{self, Device},
    namespace,
    packet::{Direction, Flow, Packet},
};

/// For experiments on a local network (IEEE 802): nobody else's packets look like our markers.
const ETH_P_MARKER: u16 = 0x88b5;
const SETTLED_WITHIN: Duration = Duration::from_secs(10);

/// Watches a device until it is dropped.
#[derive(Debug)]
pub struct Sniffer {
    shared: Arc<Shared>,
    far: Device,
    near: Option<Device>,
    thread: Option<JoinHandle<()>>,
}

/// Why a device could not be watched, or not without gaps.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The namespace failed.
    #[error(transparent)]
    Namespace(#[from] namespace::Error),
    /// The device failed.
    #[error(transparent)]
    Device(#[from] device::Error),
    /// The kernel gave no packet socket for the device.
    #[error("cannot watch the device {index} of `{namespace}`")]
    Watch {
        /// Where the device is.
        namespace: String,
        /// Its number.
        index: u32,
        /// Why.
        source: io::Error,
    },
    /// The kernel had no room for some packets, so that nothing is certain.
    #[error("{packets} packets passed unseen, for want of memory")]
    Lost {
        /// How many.
        packets: u64,
    },
    /// A marker could not be sent.
    #[error("cannot send a marker by the device {index} of `{namespace}`")]
    Marker {
        /// Where the device is.
        namespace: String,
        /// Its number.
        index: u32,
        /// Why.
        source: io::Error,
    },
    /// A marker did not arrive.
    #[error("a marker did not arrive within {} s", SETTLED_WITHIN.as_secs())]
    Unsettled,
}

#[derive(Debug)]
struct Shared {
    socket: PacketSocket,
    wake: OwnedFd,
    seen: Mutex<Seen>,
    changed: Condvar,
}

#[derive(Debug, Default)]
struct Seen {
    /// In the order of their first packets.
    flows: Vec<Flow>,
    index: HashMap<Packet, usize>,
    markers: Vec<u64>,
    /// How many times the queue was found empty after a wish for it.
    drained: u64,
    dropped: u64,
    stopping: bool,
}

impl Sniffer {
    /// Starts to watch `device`.
    ///
    /// # Errors
    ///
    /// When there is no packet socket to be had for it.
    pub fn on(device: &Device) -> Result<Self, Error> {
        Self::start(device, None)
    }

    pub(crate) fn start(far: &Device, near: Option<&Device>) -> Result<Self, Error> {
        let cannot_watch = |source| Error::Watch {
            namespace: far.namespace().name().to_owned(),
            index: far.index(),
            source,
        };
        let socket = far
            .namespace()
            .run(|| PacketSocket::listen(far.index()))?
            .map_err(cannot_watch)?;
        let wake = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)
            .map_err(|errno| cannot_watch(errno.into()))?;
        let shared = Arc::new(Shared {
            socket,
            wake,
            seen: Mutex::default(),
            changed: Condvar::new(),
        });

        let watching = Arc::clone(&shared);
        let thread = thread::Builder::new()
            .name("lab-sniffer".to_owned())
            .spawn(move || watching.watch())
            .map_err(cannot_watch)?;
        Ok(Self {
            shared,
            far: far.clone(),
            near: near.cloned(),
            thread: Some(thread),
        })
    }

    /// Waits until every packet that was sent before is counted.
    ///
    /// On a link, a marker is sent through it from each processor, behind whatever that processor
    /// still has in its queue. On a cut or lone device, what the kernel saw is counted.
    ///
    /// # Errors
    ///
    /// When the markers do not arrive, or packets were lost.
    pub fn settle(&self) -> Result<(), Error> {
        match &self.near {
            Some(near) if near.is_running()? && self.far.is_running()? => {
                let markers = send_markers(near)?;
                self.wait_for(|seen| markers.iter().all(|marker| seen.markers.contains(marker)))?;
            }
            _ => {
                let before = self.shared.lock().drained;
                self.shared.wake();
                // The wish before ours can be under way, with the queue looked at already.
                self.wait_for(|seen| seen.drained > before)?;
                self.shared.wake();
                self.wait_for(|seen| seen.drained > before + 1)?;
            }
        }

        self.shared.count_drops();
        match self.shared.lock().dropped {
            0 => Ok(()),
            packets => Err(Error::Lost { packets }),
        }
    }

    /// Everything seen so far, in the order of the first packets.
    #[must_use]
    pub fn flows(&self) -> Vec<Flow> {
        self.shared.lock().flows.clone()
    }

    /// How many packets were seen that are as `is_wanted` says.
    #[must_use]
    pub fn count(&self, is_wanted: impl Fn(&Packet) -> bool) -> u64 {
        let seen = self.shared.lock();
        let wanted = seen.flows.iter().filter(|flow| is_wanted(&flow.packet));
        wanted.map(|flow| flow.packets).sum()
    }

    /// Everything seen that is neither the network's own talk with its neighbours nor UDP of one of
    /// these tunnel endpoints, in both directions.
    #[must_use]
    pub fn leaks(&self, endpoints: &[SocketAddr]) -> Vec<Flow> {
        let mut flows = self.flows();
        flows.retain(|flow| flow.packet.leaks(endpoints));
        flows
    }

    /// Forgets what was seen.
    pub fn clear(&self) {
        let mut seen = self.shared.lock();
        seen.flows.clear();
        seen.index.clear();
    }

    fn wait_for(&self, is_so: impl Fn(&Seen) -> bool) -> Result<(), Error> {
        let deadline = Instant::now() + SETTLED_WITHIN;
        let mut seen = self.shared.lock();
        while !is_so(&seen) {
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Err(Error::Unsettled);
            }
            let waited = self.shared.changed.wait_timeout(seen, left);
            seen = waited.unwrap_or_else(PoisonError::into_inner).0;
        }
        Ok(())
    }
}

impl Drop for Sniffer {
    fn drop(&mut self) {
        self.shared.lock().stopping = true;
        self.shared.wake();
        if self
            .thread
            .take()
            .is_some_and(|thread| thread.join().is_err())
        {
            tracing::error!("a sniffer of the lab panicked");
        }
    }
}

impl Shared {
    fn watch(&self) {
        loop {
            let mut ready = [
                PollFd::new(self.socket.as_fd(), PollFlags::POLLIN),
                PollFd::new(self.wake.as_fd(), PollFlags::POLLIN),
            ];
            // Only a signal can interrupt, and then the queues are as good to look at.
            let _ = poll(&mut ready, PollTimeout::NONE);
            let is_woken = ready[1].any().unwrap_or(false);
            self.drain();

            if is_woken {
                let _ = rustix::io::read(&self.wake, &mut [0_u8; 8]);
                let mut seen = self.lock();
                seen.drained += 1;
                if seen.stopping {
                    return;
                }
            }
            self.changed.notify_all();
        }
    }

    fn drain(&self) {
        let mut buffer = [std::mem::MaybeUninit::uninit(); socket::SNAP];
        loop {
            let captured = match self.socket.next(&mut buffer) {
                Ok(Some(captured)) => captured,
                Ok(None) => return,
                // The device went down; the socket watches it again when it comes up.
                Err(error) if error.raw_os_error() == Some(libc::ENETDOWN) => continue,
                Err(error) => {
                    tracing::error!(%error, "a sniffer of the lab cannot read");
                    return;
                }
            };
            self.lock().count(&captured);
        }
    }

    fn count_drops(&self) {
        let drops = self.socket.take_drops();
        self.lock().dropped += drops;
    }

    fn wake(&self) {
        // It fails only when the counter is full, and then the thread is awake.
        let _ = rustix::io::write(&self.wake, &1_u64.to_ne_bytes());
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Seen> {
        self.seen.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Seen {
    fn count(&mut self, captured: &Captured<'_>) {
        if captured.ethertype == ETH_P_MARKER {
            if let Some(marker) = captured.bytes.first_chunk() {
                self.markers.push(u64::from_ne_bytes(*marker));
            }
            return;
        }
        let direction = if captured.is_outgoing {
            Direction::Sent
        } else {
            Direction::Received
        };
        let packet = Packet::parse(direction, captured.ethertype, captured.bytes);
        let position = *self.index.entry(packet).or_insert_with_key(|packet| {
            self.flows.push(Flow {
                packet: packet.clone(),
                packets: 0,
                bytes: 0,
            });
            self.flows.len() - 1
        });
        let flow = &mut self.flows[position];
        flow.packets += 1;
        flow.bytes += captured.length as u64;
    }
}

/// Sends a marker from each processor and says which.
///
/// A veth device hands a packet to the queue of the processor that sends it, so that one marker
/// could overtake what another processor still has to deliver.
fn send_markers(near: &Device) -> Result<Vec<u64>, Error> {
    static NEXT: AtomicU64 = AtomicU64::new(1);
    let processors = sysconf(SysconfVar::_NPROCESSORS_CONF).ok().flatten();
    let processors = processors.and_then(|count| usize::try_from(count).ok());

    let send = || -> io::Result<Vec<u64>> {
        let socket = PacketSocket::for_sending()?;
        let mut markers = Vec::new();
        for processor in 0..processors.unwrap_or(1).min(CpuSet::count()) {
            let mut only = CpuSet::new();
            only.set(processor)?;
            // Refused for processors that are offline, which have no queue.
            if sched_setaffinity(Pid::from_raw(0), &only).is_err() {
                continue;
            }
            let marker = NEXT.fetch_add(1, Ordering::Relaxed);
            socket.send(near.index(), ETH_P_MARKER, &marker.to_ne_bytes())?;
            markers.push(marker);
        }
        Ok(markers)
    };
    near.namespace().run(send)?.map_err(|source| Error::Marker {
        namespace: near.namespace().name().to_owned(),
        index: near.index(),
        source,
    })
}
