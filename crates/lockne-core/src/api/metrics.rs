//! Where metrics are served.

use std::net::SocketAddr;

use serde::{Deserialize, Serialize};

/// Where metrics are served.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct MetricsStatus {
    /// The address.
    pub listen: SocketAddr,
    /// Why nobody listens there for now.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub problem: Option<String>,
}
