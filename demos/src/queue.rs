//! Which queueing discipline a device has.

use anyhow::{Context as _, Result};
use futures_util::TryStreamExt as _;
use rtnetlink::packet_route::tc::TcAttribute;

/// Whether packets of the device go through `fq`, which sends each at the time written on it.
///
/// # Errors
///
/// When the kernel does not list its queueing disciplines.
pub async fn has_fq(index: u32) -> Result<bool> {
    let what = "cannot list the queueing disciplines";
    let (connection, handle, _) = rtnetlink::new_connection().context(what)?;
    tokio::spawn(connection);
    let index = i32::try_from(index).context(what)?;
    let mut disciplines = handle.qdisc().get().index(index).execute();
    while let Some(discipline) = disciplines.try_next().await.context(what)? {
        let is_fq =
            |attribute: &TcAttribute| matches!(attribute, TcAttribute::Kind(kind) if kind == "fq");
        if discipline.header.index == index && discipline.attributes.iter().any(is_fq) {
            return Ok(true);
        }
    }
    Ok(false)
}
