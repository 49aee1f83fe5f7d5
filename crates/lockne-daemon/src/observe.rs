//! Watching packets and programs. Nothing of it is in the kernel while nobody watches.
//!
//! The programs are an object of their own. Their links belong to the process that watches, so they go
//! when it ends, however it ends; only before Linux 6.6 a killed one leaves classifiers on its devices,
//! which the next one takes away. No daemon is needed.

mod device;
mod existing;
mod flows;
mod life;
mod missed;
mod monitor;
mod news;
mod object;
mod owner;
mod ping;
mod record;
mod ring;

pub use self::{
    device::Device,
    flows::{Flows, Turn},
    life::Life,
    monitor::Monitor,
    news::News,
    ping::Pings,
    record::Run,
};
pub use crate::kernel::Error;
pub use lockne_abi::flow::{Answer, Flow};
pub use lockne_abi::observe::{ARGUMENTS, Counts, Exec, Exit, MAX_CAPTURE, PATH, Packet};

/// Which devices are watched.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Devices {
    /// All, also those that come later.
    All,
    /// These.
    Named(Vec<String>),
}

impl Devices {
    /// Those of these names; without any, all.
    #[must_use]
    pub fn of(names: &[String]) -> Self {
        if names.is_empty() {
            Self::All
        } else {
            Self::Named(names.to_vec())
        }
    }
}
