//! A configuration with all that was read for it.

use std::{collections::BTreeSet, fs};

use lockne_core::{
    api::{Lifetime, TunnelUp},
    config::{Config, Source, Text, Tunnel as Named},
    tunnel::TunnelName,
};
use zeroize::Zeroizing;

use crate::config;

/// A configuration with all that was read for it.
pub(super) struct Prepared {
    pub(super) texts: Vec<Text>,
    pub(super) config: Config,
    /// The tunnels that rules need and lockne makes.
    pub(super) tunnels: Vec<TunnelUp>,
}

impl Prepared {
    /// Tunnels that programs use by hand are read again too, if that is possible.
    pub(super) fn new(
        texts: Vec<Text>,
        by_hand: &BTreeSet<TunnelName>,
    ) -> Result<Self, config::Error> {
        let config = Config::parse(&texts).map_err(config::Error::Wrong)?;
        let used = config.used();
        let mut tunnels = Vec::new();
        for (name, tunnel) in &config.tunnels {
            let is_used = used.contains(name);
            if !is_used && !by_hand.contains(name) {
                continue;
            }
            match request(name, tunnel) {
                Err(error) if is_used => return Err(error),
                request => tunnels.extend(request.ok().flatten()),
            }
        }
        Ok(Self {
            texts,
            config,
            tunnels,
        })
    }
}

/// The request for a tunnel that lockne makes; `None` if somebody else does.
pub(super) fn request(
    name: &TunnelName,
    tunnel: &Named,
) -> Result<Option<TunnelUp>, config::Error> {
    let Source::File { path, allow_hooks } = &tunnel.source else {
        return Ok(None);
    };
    let text = fs::read_to_string(path).map_err(|source| config::Error::Read {
        path: path.clone(),
        source,
    })?;
    Ok(Some(TunnelUp {
        name: name.clone(),
        file: path.clone(),
        config: Zeroizing::new(text),
        allow_hooks: *allow_hooks,
        lifetime: Lifetime::UntilDown,
    }))
}
