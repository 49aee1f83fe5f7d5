//! What a daemon leaves in the kernel, read and taken back without one.

use std::path::Path;

use lockne_abi::MarkField;
use lockne_core::api::{DaemonStatus, Removed, Status};
use tokio::runtime;

use crate::{
    Error, SocketOf,
    kernel::{Kernel, Reading},
    record::Record,
    route::Netlink,
    socket,
    state_dir::StateDir,
    status::policy_status,
    wireguard::Wireguard,
};

/// Tells what a dead daemon's rules still hold; `None` if there is nothing.
///
/// # Errors
///
/// Fails if the record or the pins cannot be read.
pub fn status(state: &StateDir) -> Result<Option<Status>, Error> {
    let Some(record) = Record::read(&state.record())? else {
        return Ok(None);
    };
    if !Kernel::exists(&state.pins()) {
        return Ok(None);
    }
    let field = record.field();
    let kernel = Reading::open(&state.pins())?;
    let policies = record
        .policies
        .iter()
        .map(|policy| {
            policy_status(
                &kernel,
                policy.id,
                &policy.terms,
                field.mark(policy.id.get()),
                None,
            )
        })
        .collect::<Result<_, _>>()?;
    Ok(Some(Status {
        config: None,
        daemon: DaemonStatus::Gone,
        state_dir: state.path().to_owned(),
        mark_mask: field.mask(),
        policies,
        tunnels: Vec::new(),
        room: Some(kernel.room()?),
    }))
}

/// Takes back everything that a dead daemon left, the socket at `control` too, unless it is the service manager's, in
/// the network namespace of the calling thread.
///
/// # Errors
///
/// Fails at the first thing that cannot be taken back; what comes after it stays.
pub fn remove(state: &StateDir, control: &Path, socket_of: SocketOf) -> Result<Removed, Error> {
    if !state.path().exists() {
        return Ok(Removed::default());
    }
    let _lock = state.lock()?;
    let record = Record::read(&state.record()).unwrap_or_else(|error| {
        tracing::warn!(%error, "what the record named cannot be put back");
        None
    });
    let record = record.unwrap_or_default();
    let field = record.field();
    runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(Error::Runtime)?
        .block_on(async {
            let mut netlink = Netlink::open()?;
            netlink.adopt_originals(record.sysctls.clone());
            let mut removed = take_back(state, field, &mut netlink).await?;
            for request in &record.tunnels {
                if Wireguard::delete_stale(&request.name)
                    .await
                    .map_err(|source| Error::Wireguard {
                        name: request.name.clone(),
                        source,
                    })?
                {
                    removed.tunnels.push(request.name.clone());
                }
            }
            match socket_of {
                SocketOf::Daemon => state.clear(control)?,
                SocketOf::Service => state.clear_beside_socket()?,
            }
            Ok(removed)
        })
}

/// Takes back programs, connections, rules, routes and settings, in this order.
///
/// Connections go while the rules still stand: what they have left to send would else leave by the
/// default route, with the tunnel's address in it.
pub(crate) async fn take_back(
    state: &StateDir,
    field: MarkField,
    netlink: &mut Netlink,
) -> Result<Removed, Error> {
    let kernel = Kernel::remove(&state.pins())?;
    let cut = socket::cut_marked(field).map_err(Error::Cut)?;
    tracing::debug!(cut, "connections cut");
    let routing = netlink.remove_all(field).await?;
    netlink.restore_sysctls()?;
    Ok(Removed {
        rules: routing.rules,
        routes: routing.routes,
        tunnels: Vec::new(),
        programs: kernel.programs,
        processes: kernel.processes,
    })
}
