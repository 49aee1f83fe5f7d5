//! What the kernel programs know, read without changing it, by whoever may: no daemon is needed.

use std::{collections::BTreeSet, net::IpAddr, num::NonZeroU8, path::Path};

use aya::maps::{Array, Map, MapData, MapError, MapInfo, PerCpuArray, PerCpuValues};
use lockne_abi::{Counters, Endpoint, Member, PROCESSES_PER_PAGE, Policy, Resolvers, name};
use lockne_core::{api::Room, policy::PolicyId};

use super::{
    Error,
    process::{self, Table},
};

/// The maps, opened by their pins.
pub struct Reading {
    pub(super) processes: Table,
    policies: Array<MapData, Policy>,
    counters: PerCpuArray<MapData, Counters>,
    forks: PerCpuArray<MapData, u64>,
    resolvers: Array<MapData, Resolvers>,
    overflow: Array<MapData, u32>,
}

impl Reading {
    /// Opens what is pinned below `pins`.
    ///
    /// # Errors
    ///
    /// If it is not there, or the caller may not read it.
    pub fn open(pins: &Path) -> Result<Self, Error> {
        let data = |name| MapData::from_pin(pins.join(name)).map_err(Error::map(name));
        let failed = || Error::map(name::PROCESSES);
        let info = MapInfo::from_pin(pins.join(name::PROCESSES)).map_err(failed())?;
        let length = (info.max_entries() * PROCESSES_PER_PAGE) as usize;
        let processes = Table::map(data(name::PROCESSES)?.fd(), length);
        let per_cpu = |name| data(name).map(Map::PerCpuArray);
        Ok(Self {
            processes: processes.map_err(|error| failed()(error.into()))?,
            policies: typed(name::POLICIES, Map::Array(data(name::POLICIES)?))?,
            counters: typed(name::COUNTERS, per_cpu(name::COUNTERS)?)?,
            forks: typed(name::FORKS, per_cpu(name::FORKS)?)?,
            resolvers: typed(name::RESOLVERS, Map::Array(data(name::RESOLVERS)?))?,
            overflow: typed(name::OVERFLOW, Map::Array(data(name::OVERFLOW)?))?,
        })
    }

    /// The policy of a process.
    #[must_use]
    pub fn process(&self, pid: u32) -> Option<PolicyId> {
        policy_id(self.processes.get(pid).policy())
    }

    /// Under what a process stands: its policy, and who chose it.
    pub(crate) fn standing(&self, pid: u32) -> Member {
        self.processes.get(pid)
    }

    /// Whether somebody chose by hand what a process stands under, so that rules leave it alone.
    #[must_use]
    pub fn is_chosen(&self, pid: u32) -> bool {
        self.processes.get(pid).is_chosen()
    }

    /// How many living processes policy `id` has.
    #[must_use]
    pub fn members(&self, id: PolicyId) -> u64 {
        self.processes.with(id.get()).len() as u64
    }

    /// The living processes of policy `id`, in ascending order.
    #[must_use]
    pub fn processes(&self, id: PolicyId) -> Vec<u32> {
        self.processes.with(id.get())
    }

    /// Every living process that has a policy, in ascending order.
    pub fn policed(&self) -> impl Iterator<Item = (u32, PolicyId)> {
        self.processes
            .policed()
            .filter_map(|(pid, id)| Some((pid, policy_id(id)?)))
    }

    /// Whether no living process has a policy.
    ///
    /// A parent that forks and ends while the table is read could go unseen, and its child too, if its
    /// number is low; and a rule can give a program a policy. So either in the meantime counts as life.
    ///
    /// # Errors
    ///
    /// If the kernel refuses.
    pub fn is_deserted(&self) -> Result<bool, Error> {
        let before = self.forks()?;
        let is_empty = self.processes.policed().next().is_none();
        Ok(is_empty && self.forks()? == before)
    }

    /// How many process ids there is room for, and whether that was too few for the child of a policed process.
    ///
    /// # Errors
    ///
    /// If the kernel refuses.
    pub fn room(&self) -> Result<Room, Error> {
        Ok(Room {
            ids: self.processes.room(),
            pid_max: process::pid_max()?,
            exceeded: self.has_overflowed()?,
        })
    }

    /// Whether a child of a policed process could not be recorded, because `kernel.pid_max` was
    /// raised: since then, processes with such ids get no sockets.
    ///
    /// # Errors
    ///
    /// If the kernel refuses.
    pub fn has_overflowed(&self) -> Result<bool, Error> {
        let flag = self
            .overflow
            .get(&0, 0)
            .map_err(Error::map(name::OVERFLOW))?;
        Ok(flag != 0)
    }

    /// The policies that living processes have.
    ///
    /// # Errors
    ///
    /// If the kernel refuses, or if policed processes fork all the time: then none can be told to be unused.
    pub fn living(&self) -> Result<BTreeSet<PolicyId>, Error> {
        for _ in 0..64 {
            let before = self.forks()?;
            let living = self.policed().map(|(_, id)| id).collect();
            if self.forks()? == before {
                return Ok(living);
            }
        }
        Err(Error::Busy)
    }

    /// Sets the counters of policy `id` to nothing, for the next one with that number.
    pub(super) fn reset_counters(&mut self, id: PolicyId) -> Result<(), Error> {
        let key = u32::from(id.get());
        let current = self.counters.get(&key, 0);
        let current = current.map_err(Error::map(name::COUNTERS))?;
        let zeros = vec![Counters::default(); current.len()];
        let zeros = PerCpuValues::try_from(zeros)
            .map_err(|error| Error::map(name::COUNTERS)(MapError::IoError(error)))?;
        self.counters
            .set(key, zeros, 0)
            .map_err(Error::map(name::COUNTERS))
    }

    /// How many children have inherited a policy so far, and how many programs got one from a rule.
    fn forks(&self) -> Result<u64, Error> {
        let counters = self.forks.iter().map(|cpus| Ok(cpus?.iter().sum::<u64>()));
        let total: Result<u64, MapError> = counters.sum();
        total.map_err(Error::map(name::FORKS))
    }

    /// What policy `id` lets out.
    ///
    /// # Errors
    ///
    /// If the kernel refuses.
    pub fn policy(&self, id: PolicyId) -> Result<Policy, Error> {
        self.policies
            .get(&id.get().into(), 0)
            .map_err(Error::map(name::POLICIES))
    }

    /// Whom programs under policy `id` ask for names.
    ///
    /// # Errors
    ///
    /// If the kernel refuses.
    pub fn resolvers(&self, id: PolicyId) -> Result<Vec<IpAddr>, Error> {
        let resolvers = self
            .resolvers
            .get(&id.get().into(), 0)
            .map_err(Error::map(name::RESOLVERS))?;
        let all = [resolvers.v4.far, resolvers.v6.far];
        let there = all.iter().filter(|far| far.port != 0);
        Ok(there.map(Endpoint::ip).collect())
    }

    /// What policy `id` has sent, received and refused.
    ///
    /// # Errors
    ///
    /// If the kernel refuses.
    pub fn counters(&self, id: PolicyId) -> Result<Counters, Error> {
        let cpus = self
            .counters
            .get(&id.get().into(), 0)
            .map_err(Error::map(name::COUNTERS))?;
        Ok(cpus.iter().fold(Counters::default(), |sum, cpu| Counters {
            tx_packets: sum.tx_packets + cpu.tx_packets,
            tx_bytes: sum.tx_bytes + cpu.tx_bytes,
            rx_packets: sum.rx_packets + cpu.rx_packets,
            rx_bytes: sum.rx_bytes + cpu.rx_bytes,
            refused: sum.refused + cpu.refused,
        }))
    }
}

fn typed<T: TryFrom<Map, Error = MapError>>(name: &'static str, map: Map) -> Result<T, Error> {
    T::try_from(map).map_err(Error::map(name))
}

fn policy_id(id: u8) -> Option<PolicyId> {
    NonZeroU8::new(id).map(PolicyId)
}
