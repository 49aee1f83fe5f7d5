//! A network namespace of the demo's own.

use anyhow::{Context as _, Result};
use futures_util::TryStreamExt as _;
use rtnetlink::LinkUnspec;
use rustix::thread::{UnshareFlags, unshare_unsafe};

/// Moves this process into a new network namespace with nothing but a loopback device, which is up.
///
/// It goes with the process.
///
/// # Errors
///
/// When the kernel refuses, mostly for lack of rights.
pub async fn enter_new() -> Result<()> {
    // SAFETY: a network namespace shares no memory or descriptors in another way.
    unsafe { unshare_unsafe(UnshareFlags::NEWNET) }.context("cannot make a network namespace")?;
    let what = "cannot set up the loopback device";
    let (connection, handle, _) = rtnetlink::new_connection().context(what)?;
    tokio::spawn(connection);
    let mut links = handle.link().get().match_name("lo".to_owned()).execute();
    let lo = links.try_next().await.context(what)?.context(what)?;
    let up = LinkUnspec::new_with_index(lo.header.index).up().build();
    handle.link().set(up).execute().await.context(what)
}
