//! The far end of a tunnel in `cargo xtask bench`: the embedded WireGuard alone, without policies.
//!
//! `peer NAME FILE` brings the tunnel of a wg-quick file up; it goes with the process.

use std::error::Error;

use lockne_core::wgquick::{Config, HookPolicy};
use lockne_daemon::wireguard::{Backend, Wireguard};

type Result<T = ()> = std::result::Result<T, Box<dyn Error>>;

fn main() -> Result {
    let mut words = std::env::args().skip(1);
    let (Some(name), Some(file)) = (words.next(), words.next()) else {
        return Err("peer NAME FILE".into());
    };
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    runtime.block_on(async {
        let config = Config::parse(&std::fs::read_to_string(file)?)?;
        let tunnel = Wireguard::up(
            &name.parse()?,
            &config,
            Backend::Embedded,
            HookPolicy::Refuse,
        )
        .await?;
        std::future::pending::<()>().await;
        drop(tunnel);
        Ok(())
    })
}
