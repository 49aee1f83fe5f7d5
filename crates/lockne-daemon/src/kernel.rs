//! The kernel programs, behind one type that hides BPF.
//!
//! What they do lives on without a daemon: every map and every link is pinned. The next daemon adopts
//! them, and at no time in between is a socket unmarked or a packet unguarded.

mod bpffs;
pub(crate) mod btf;
pub(crate) mod cgroup;
mod error;
mod feature;
mod hook;
mod namespace;
mod object;
mod process;
mod reading;
mod remove;
mod rules;
mod stamp;
mod strict;
pub(crate) mod sys;
mod unix;
mod usage;

use std::{
    collections::BTreeSet,
    net::IpAddr,
    ops::Deref,
    os::fd::AsFd as _,
    path::{Path, PathBuf},
};

use aya::{
    Ebpf,
    maps::{Array, HashMap, LpmTrie, Map, MapData, MapError, lpm_trie::Key},
};
use ipnet::IpNet;
use lockne_abi::{LanKey, MAX_LAN_PREFIXES, MarkField, Member, Policy, Resolvers, name};
use lockne_core::{doctor, policy::PolicyId};

use self::stamp::Device;
pub use self::{
    error::Error, feature::Feature, reading::Reading, remove::Removed, stamp::Classifier,
};
pub(crate) use self::{namespace::cookie_of, object::patiently, rules::Sheet, stamp::name_of};

/// The kernel programs and what they know.
pub struct Kernel {
    pins: PathBuf,
    ebpf: Ebpf,
    reading: Reading,
    policies: Array<MapData, Policy>,
    lan: LpmTrie<MapData, LanKey, u8>,
    devices: HashMap<MapData, u32, u32>,
    resolvers: Array<MapData, Resolvers>,
    missing: Vec<Feature>,
    rules: rules::Maps,
}

impl Kernel {
    /// Loads the programs for the network namespace of the calling thread, attaches them at the root of the
    /// cgroups and pins them below `pins`, where it mounts a bpffs if there is none.
    ///
    /// What an earlier daemon left there is adopted: policies, processes and counters keep their
    /// content, and each program takes the place of its predecessor without a gap.
    ///
    /// # Errors
    ///
    /// If the caller has not the privileges, the kernel is too old or built without what it takes, or
    /// if what is in `pins` cannot be adopted. What was adopted stays as it was.
    pub fn open(pins: &Path, field: MarkField) -> Result<Self, Error> {
        namespace::require_initial()?;
        bpffs::ensure(pins)?;
        let adopts = object::loaded(pins)?.is_some();
        let kernel = Self::load(pins, field);
        if kernel.is_err() && !adopts {
            // The first failure is the one to tell.
            if let Err(error) = remove::remove(pins) {
                tracing::warn!(%error, "cannot clean up after a failure");
            }
        }
        kernel
    }

    fn load(pins: &Path, field: MarkField) -> Result<Self, Error> {
        let mut ebpf = object::load(pins, field)?;
        let unix = unix::load(&ebpf, pins);
        let policies = take(&mut ebpf, name::POLICIES)?;
        let lan = take(&mut ebpf, name::LAN)?;
        let devices = take(&mut ebpf, name::DEVICES)?;
        let resolvers = take(&mut ebpf, name::RESOLVERS)?;
        let rules = rules::Maps::take(&mut ebpf)?;
        hook::attach(&ebpf, pins)?;
        strict::settle(&mut ebpf)?;
        let missing = match unix.and_then(|program| unix::attach(&program, pins)) {
            Ok(()) => Vec::new(),
            Err(error) => {
                tracing::info!(%error, "without the hook on Unix sockets");
                vec![Feature::UnixSockets]
            }
        };
        Ok(Self {
            pins: pins.to_owned(),
            ebpf,
            reading: Reading::open(pins)?,
            policies,
            lan,
            devices,
            resolvers,
            missing,
            rules,
        })
    }

    /// What this kernel cannot do, so that something is open which is closed elsewhere.
    #[must_use]
    pub fn missing(&self) -> &[Feature] {
        &self.missing
    }

    /// Goes without something, as on a kernel that has it not.
    pub(crate) fn forgo(&mut self, feature: Feature) -> Result<(), Error> {
        if self.missing.contains(&feature) {
            return Ok(());
        }
        match feature {
            Feature::UnixSockets => unix::detach(&self.pins)?,
        }
        self.missing.push(feature);
        Ok(())
    }

    /// Whether programs are pinned below `pins`.
    #[must_use]
    pub fn exists(pins: &Path) -> bool {
        pins.join(name::LOADED).exists()
    }

    /// Detaches every program, forgets every map, and removes `pins` itself. No daemon is needed.
    ///
    /// # Errors
    ///
    /// If something cannot be taken away; a second call goes on from there.
    pub fn remove(pins: &Path) -> Result<Removed, Error> {
        remove::remove(pins)
    }

    /// Says what policy `id` lets out, at once for all its sockets.
    ///
    /// # Errors
    ///
    /// If the kernel refuses.
    pub fn set_policy(&mut self, id: PolicyId, policy: Policy) -> Result<(), Error> {
        self.policies
            .set(id.get().into(), policy, 0)
            .map_err(Error::map(name::POLICIES))
    }

    /// Shuts policy `id`, which nothing uses any more, so that its number can be another's.
    ///
    /// # Errors
    ///
    /// If the kernel refuses.
    pub fn forget(&mut self, id: PolicyId) -> Result<(), Error> {
        self.set_policy(id, Policy::BLOCK)?;
        self.reading.reset_counters(id)?;
        self.set_lan(id, &BTreeSet::new())
    }

    /// Says which prefixes policy `id` reaches past its tunnel.
    ///
    /// # Errors
    ///
    /// If all policies together have more than [`MAX_LAN_PREFIXES`] prefixes.
    pub fn set_lan(&mut self, id: PolicyId, prefixes: &BTreeSet<IpNet>) -> Result<(), Error> {
        let wanted: BTreeSet<_> = prefixes.iter().map(lan_key).collect();
        let present: BTreeSet<_> = self
            .lan
            .keys()
            .filter_map(Result::ok)
            .filter(|key| key.data().policy == id.get())
            .map(|key| (key.prefix_len(), key.data().address))
            .collect();
        let key = |(length, address)| {
            let policy = id.get();
            Key::new(length, LanKey { policy, address })
        };
        for new in wanted.difference(&present) {
            self.lan.insert(&key(*new), 1, 0).map_err(|error| {
                if let MapError::SyscallError(call) = &error
                    && call.io_error.raw_os_error() == Some(libc::ENOSPC)
                {
                    return Error::TooManyPrefixes {
                        limit: MAX_LAN_PREFIXES,
                    };
                }
                Error::map(name::LAN)(error)
            })?;
        }
        for old in present.difference(&wanted) {
            self.lan.remove(&key(*old)).map_err(Error::map(name::LAN))?;
        }
        Ok(())
    }

    /// Says whom programs under policy `id` ask for names.
    ///
    /// # Errors
    ///
    /// If the kernel refuses.
    pub fn set_resolvers(&mut self, id: PolicyId, resolvers: Resolvers) -> Result<(), Error> {
        self.resolvers
            .set(id.get().into(), resolvers, 0)
            .map_err(Error::map(name::RESOLVERS))
    }

    /// Puts a process with all its threads under a policy that was chosen for it, or under none. Its children
    /// to come inherit that, and rules do not change it; without a policy, rules decide at its next exec. Sockets it
    /// has already are marked when it next connects or sends with them.
    ///
    /// # Errors
    ///
    /// If there is no such process, or its id is beyond what could be one at load.
    pub fn set_process(&mut self, pid: u32, policy: Option<PolicyId>) -> Result<(), Error> {
        let member = policy.map_or(Member::FREE, |id| Member::chosen(id.get()));
        self.set_standing(pid, member)
    }

    /// Frees a process for good: neither it nor its children are given a policy by a rule.
    ///
    /// # Errors
    ///
    /// As [`set_process`](Self::set_process).
    pub fn exempt(&mut self, pid: u32) -> Result<(), Error> {
        self.set_standing(pid, Member::chosen(0))
    }

    /// Puts a process where [`Reading::standing`] found it.
    pub(crate) fn set_standing(&mut self, pid: u32, member: Member) -> Result<(), Error> {
        self.reading.processes.set(pid, member)?;
        strict::consider(&mut self.ebpf, pid, member)
    }

    /// Gives a process a policy by a rule, unless it has another one than `from` by now or one that was
    /// chosen by hand; says whether it did.
    ///
    /// # Errors
    ///
    /// As [`set_process`](Self::set_process).
    pub(crate) fn set_by_rule(
        &mut self,
        pid: u32,
        from: Option<PolicyId>,
        to: Option<PolicyId>,
    ) -> Result<bool, Error> {
        let member = |id: Option<PolicyId>| Member::by_rule(id.map_or(0, PolicyId::get));
        let done = self
            .reading
            .processes
            .exchange(pid, member(from), member(to))?;
        if done {
            strict::consider(&mut self.ebpf, pid, member(to))?;
        }
        Ok(done)
    }

    /// Puts a whole set of rules in the place of the one before, at once.
    ///
    /// # Errors
    ///
    /// If the kernel refuses; the rules before stay in force then.
    pub(crate) fn set_rules(&mut self, sheet: &Sheet) -> Result<(), Error> {
        self.rules.replace(sheet)
    }

    /// Whether the guard asks each packet for its socket, which takes longer: a policed program was seen that can
    /// mark packets.
    ///
    /// # Errors
    ///
    /// If the kernel refuses.
    pub fn is_strict(&self) -> Result<bool, Error> {
        strict::is_on(&self.ebpf)
    }

    /// Stamps a policy on what arrives by a device, or stops that. The device must be in the network
    /// namespace of the calling thread. It may be gone if `policy` is `None`.
    ///
    /// # Errors
    ///
    /// If the device `name` has not the index `ifindex`, or the kernel refuses.
    pub fn stamp(
        &mut self,
        ifindex: u32,
        name: &str,
        policy: Option<PolicyId>,
    ) -> Result<(), Error> {
        let Some(policy) = policy else {
            stamp::detach(&self.pins, ifindex)?;
            return match self.devices.remove(&ifindex) {
                Ok(()) | Err(MapError::KeyNotFound) => Ok(()),
                Err(MapError::SyscallError(call))
                    if call.io_error.raw_os_error() == Some(libc::ENOENT) =>
                {
                    Ok(())
                }
                Err(error) => Err(Error::map(name::DEVICES)(error)),
            };
        };
        let device = self.note_device(ifindex, name, policy)?;
        stamp::attach(&mut self.ebpf, &self.pins, device).map(drop)
    }

    /// The devices that are stamped, by index; some may be gone.
    ///
    /// # Errors
    ///
    /// If the kernel refuses.
    pub fn stamped(&self) -> Result<Vec<u32>, Error> {
        self.devices
            .keys()
            .collect::<Result<_, _>>()
            .map_err(Error::map(name::DEVICES))
    }

    /// As [`stamp`](Self::stamp) by clsact, as it is done before Linux 6.6, on any kernel.
    ///
    /// # Errors
    ///
    /// As there.
    #[doc(hidden)]
    pub fn stamp_by_clsact(
        &mut self,
        ifindex: u32,
        name: &str,
        policy: PolicyId,
    ) -> Result<(), Error> {
        let device = self.note_device(ifindex, name, policy)?;
        stamp::attach_clsact(&mut self.ebpf, device)
    }

    /// Says what is stamped on a device, before that begins.
    fn note_device<'a>(
        &mut self,
        ifindex: u32,
        name: &'a str,
        policy: PolicyId,
    ) -> Result<Device<'a>, Error> {
        let device = Device {
            name,
            index: ifindex,
        };
        device.check()?;
        self.devices
            .insert(ifindex, u32::from(policy.get()), 0)
            .map_err(Error::map(name::DEVICES))?;
        Ok(device)
    }
}

/// Major and minor number of the running kernel; `None` where its release does not begin with them.
#[must_use]
pub fn version() -> Option<(u32, u32)> {
    let names = rustix::system::uname();
    doctor::version(&names.release().to_string_lossy())
}

/// Whether the kernel tells the cookie of a network namespace.
pub(crate) fn has_netns_cookie() -> bool {
    namespace::current().is_ok()
}

/// The hooks at the root of the cgroups where somebody's program allows none beside it, by the name of our program
/// there; `None` if that cannot be seen, as by users other than root.
pub(crate) fn exclusive_hooks() -> Option<Vec<String>> {
    let root = cgroup::root().ok()?;
    let mut exclusive = Vec::new();
    for (name, hook) in hook::HOOKS {
        if let Some(hook) = hook
            && sys::is_exclusive(root.as_fd(), hook).ok()?
        {
            exclusive.push(name.to_owned());
        }
    }
    Some(exclusive)
}

/// What can be read of it, can be read without it too.
impl Deref for Kernel {
    type Target = Reading;

    fn deref(&self) -> &Reading {
        &self.reading
    }
}

impl std::fmt::Debug for Kernel {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Kernel")
            .field("pins", &self.pins)
            .finish_non_exhaustive()
    }
}

/// The length and address of a prefix as the map has it.
fn lan_key(prefix: &IpNet) -> (u32, [u8; 16]) {
    let length = u32::from(prefix.prefix_len());
    match prefix.network() {
        IpAddr::V4(address) => (
            LanKey::V4_OFFSET + length,
            address.to_ipv6_mapped().octets(),
        ),
        IpAddr::V6(address) => (LanKey::V6_OFFSET + length, address.octets()),
    }
}

fn take<T>(ebpf: &mut Ebpf, name: &'static str) -> Result<T, Error>
where
    T: TryFrom<Map, Error = MapError>,
{
    let map = ebpf.take_map(name).expect("the object has the map");
    T::try_from(map).map_err(Error::map(name))
}
