//! Connections: what each has sent and received, when it began, and when it ended.

use std::{
    collections::{BTreeSet, HashMap},
    os::fd::{AsFd as _, BorrowedFd},
};

use aya::{
    Ebpf,
    maps::Map,
    programs::{BtfTracePoint, CgroupAttachMode, CgroupSkb, CgroupSkbAttachType, CgroupSock},
};
use lockne_abi::{
    flow::{Answer, Closed, Flow, SLOTS, WAYS, name},
    observe::Counts,
};
use rustix::time::{ClockId, clock_gettime};

use self::slots::Slots;
use super::{Error, existing, missed::missed, object, owner, record::Connection, ring::Ring};
use crate::kernel::{cgroup, patiently};

mod slots;

/// Room for records that nobody has read yet, in bytes: some forty thousand connections.
const ROOM: u32 = 16 << 20;

/// What happened to a connection.
#[derive(Clone, Copy, Debug)]
pub enum Turn<'a> {
    /// Its first packet was seen.
    Begins(&'a Flow),
    /// It is over.
    Ends {
        /// What is known of it.
        flow: &'a Flow,
        /// When, in nanoseconds of `CLOCK_MONOTONIC`.
        time: u64,
    },
    /// A name server answered a process.
    Answers {
        /// Whom, and when.
        answer: &'a Answer,
        /// What, from the IP header on.
        packet: &'a [u8],
    },
}

/// Connections, while somebody watches. Dropping it takes everything out of the kernel.
pub struct Flows {
    ring: Ring,
    places: Places,
    lost: u64,
    ebpf: Ebpf,
}

/// Where the flows are.
struct Places {
    slots: Slots,
    /// The places in use.
    live: BTreeSet<u32>,
    /// The places of sockets other than TCP, with the keys there, by cookie.
    by_socket: HashMap<u64, Vec<(u32, u64)>>,
}

impl Flows {
    /// Meters every connection of the machine from now on; those of this network namespace are known
    /// from the start, others with their next packet.
    ///
    /// # Errors
    ///
    /// If the kernel refuses.
    pub fn start() -> Result<Self, Error> {
        let mut ebpf = object::load_metering(ROOM)?;
        owner::watch(&mut ebpf)?;
        let types = object::kernel_types()?;
        let root = cgroup::root()?;
        let slots = slots(&mut ebpf)?;

        let program: &mut BtfTracePoint = program(&mut ebpf, name::SEE_STATE);
        patiently(|| program.load("inet_sock_set_state", &types))
            .and_then(|()| program.attach())
            .map_err(|error| Error::program(name::SEE_STATE, error))?;
        let program: &mut CgroupSock = self::program(&mut ebpf, name::SEE_RELEASE);
        patiently(|| program.load())
            .and_then(|()| program.attach(root.as_fd(), CgroupAttachMode::Single))
            .map_err(|error| Error::program(name::SEE_RELEASE, error))?;

        let mut flows = Self {
            ring: Ring::take(&mut ebpf)?,
            places: Places {
                slots,
                live: BTreeSet::new(),
                by_socket: HashMap::new(),
            },
            lost: 0,
            ebpf,
        };
        flows.places.note_existing()?;
        for (name, side) in [
            (name::METER_IN, CgroupSkbAttachType::Ingress),
            (name::METER_OUT, CgroupSkbAttachType::Egress),
        ] {
            let program: &mut CgroupSkb = self::program(&mut flows.ebpf, name);
            patiently(|| program.load())
                .and_then(|()| program.attach(root.as_fd(), side, CgroupAttachMode::Single))
                .map_err(|error| Error::program(name, error))?;
        }
        Ok(flows)
    }

    /// Hands what happened to `see`.
    ///
    /// # Errors
    ///
    /// If the kernel refuses.
    pub fn drain(&mut self, mut see: impl FnMut(Turn<'_>)) -> Result<(), Error> {
        let lost = self.ring.counts()?.lost;
        if lost > self.lost {
            self.lost = lost;
            self.places.look_everywhere();
        }
        let Self { ring, places, .. } = self;
        ring.drain(|record| {
            match Connection::read(record) {
                Some(Connection::Begun(turn)) => {
                    places.note(turn.slot, &turn.flow);
                    see(Turn::Begins(&turn.flow));
                }
                Some(Connection::Ended(turn)) => {
                    places.live.remove(&turn.slot);
                    see(Turn::Ends {
                        flow: &turn.flow,
                        time: turn.time,
                    });
                }
                Some(Connection::Closed(closed)) => places.close(&closed, &mut see),
                Some(Connection::Answer(answer, packet)) => see(Turn::Answers {
                    answer: &answer,
                    packet,
                }),
                None => {}
            }
            true
        });
        Ok(())
    }

    /// The connections that there are.
    pub fn live(&mut self) -> impl Iterator<Item = Flow> {
        let Places { slots, live, .. } = &mut self.places;
        live.retain(|slot| slots.get(*slot).is_some());
        live.iter().filter_map(|slot| slots.get(*slot))
    }

    /// How many connections began, how many records were kept and lost, and how many packets were of
    /// connections without a place. Changes of a connection that the kernel told nobody count as lost.
    ///
    /// # Errors
    ///
    /// If the kernel refuses.
    pub fn counts(&self) -> Result<Counts, Error> {
        let mut counts = self.ring.counts()?;
        counts.lost += missed(&self.ebpf, &[name::SEE_STATE])?;
        Ok(counts)
    }

    /// Readable when something happened since the last [`Self::drain`].
    #[must_use]
    pub fn fd(&self) -> BorrowedFd<'_> {
        self.ring.fd()
    }

    /// The time, as the records have it.
    #[must_use]
    pub fn now() -> u64 {
        now()
    }
}

impl Places {
    /// Gives connections that exist their places, before packets do.
    fn note_existing(&mut self) -> Result<(), Error> {
        let list = || {
            existing::connections().map_err(|source| Error::Read {
                path: "the list of sockets".into(),
                source,
            })
        };
        let now = now();
        let mut noted = HashMap::new();
        for flow in list()? {
            let flow = Flow {
                started: now,
                ..flow
            };
            if let Some(slot) = self.slots.claim(&flow) {
                noted.insert(flow.key, slot);
                self.note(slot, &flow);
            }
        }
        // Those that were closed before they had a place.
        for flow in list()? {
            noted.remove(&flow.key);
        }
        for (key, slot) in noted {
            self.slots.free(slot, key);
            self.live.remove(&slot);
        }
        Ok(())
    }

    fn note(&mut self, slot: u32, flow: &Flow) {
        self.live.insert(slot);
        if flow.protocol != TCP {
            let places = self.by_socket.entry(flow.cookie).or_default();
            if !places.contains(&(slot, flow.key)) {
                places.push((slot, flow.key));
            }
        }
    }

    /// Ends what a closed socket had.
    fn close(&mut self, closed: &Closed, see: &mut impl FnMut(Turn<'_>)) {
        for (slot, key) in self.by_socket.remove(&closed.cookie).unwrap_or_default() {
            let Some(flow) = self.slots.get(slot).filter(|flow| flow.key == key) else {
                continue;
            };
            self.slots.free(slot, key);
            self.live.remove(&slot);
            see(Turn::Ends {
                flow: &flow,
                time: closed.time,
            });
        }
    }

    /// Finds the flows whose begin was not told.
    fn look_everywhere(&mut self) {
        for slot in 0..SLOTS {
            if let Some(flow) = self.slots.get(slot) {
                self.note(slot, &flow);
            }
        }
    }
}

impl std::fmt::Debug for Flows {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Flows")
            .field("live", &self.places.live.len())
            .finish_non_exhaustive()
    }
}

const TCP: u8 = 6;

fn now() -> u64 {
    let time = clock_gettime(ClockId::Monotonic);
    std::time::Duration::try_from(time)
        .map_or(1, |time| u64::try_from(time.as_nanos()).unwrap_or(u64::MAX))
}

fn slots(ebpf: &mut Ebpf) -> Result<Slots, Error> {
    match ebpf.map(name::FLOWS) {
        Some(Map::Array(map)) => {
            Slots::map(map.fd().as_fd(), SLOTS).map_err(|source| Error::Read {
                path: "the map of flows".into(),
                source,
            })
        }
        _ => unreachable!("the object has the array"),
    }
}

fn program<'a, P>(ebpf: &'a mut Ebpf, name: &str) -> &'a mut P
where
    &'a mut P: TryFrom<&'a mut aya::programs::Program>,
{
    ebpf.program_mut(name)
        .and_then(|program| program.try_into().ok())
        .expect("the object has the program")
}

const _: () = assert!(SLOTS.is_multiple_of(WAYS));
