//! Where metrics are served.

use std::net::SocketAddr;

use super::value::{Reader, Table, shown};

const KEYS: [&str; 2] = ["listen", "remote"];

/// Where metrics are served: at this address, which is one of this machine's loopback unless others were let in
/// explicitly.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Metrics {
    /// The address.
    pub listen: SocketAddr,
}

/// Reads `[metrics]`.
pub(super) fn metrics(reader: &mut Reader<'_>, table: Table<'_>) -> Option<Metrics> {
    let known = reader.check_keys(table, &KEYS);
    let remote = reader.bool(table, "remote");
    let example = || Some("such as `listen = \"127.0.0.1:9108\"`".to_owned());
    if table.get("listen").is_none() {
        if known {
            reader.problem(table.at..table.at, "`[metrics]` has no `listen`", example());
        }
        return None;
    }
    let (text, at) = reader.word(table, "listen")?;
    let Ok(listen) = text.parse::<SocketAddr>() else {
        let message = format!(
            "`listen` has `{}`: not an IP address and a port",
            shown(text)
        );
        reader.problem(at, message, example());
        return None;
    };
    if listen.port() == 0 {
        let message = "`listen` has port 0, which is another one each time";
        reader.problem(at, message, example());
        return None;
    }
    if listen.ip().is_unspecified() {
        let message =
            format!("`listen` has `{text}`, so the far ends of tunnels could read it too");
        let hint = "name the address by which your Prometheus comes".to_owned();
        reader.problem(at, message, Some(hint));
        return None;
    }
    if !listen.ip().to_canonical().is_loopback() && !remote {
        let message = format!("`listen` has `{text}`, which other machines can reach");
        let hint = "whoever reaches it reads which rules and tunnels there are, and how much they carry; \
                    add `remote = true` if that is meant";
        reader.problem(at, message, Some(hint.to_owned()));
        return None;
    }
    Some(Metrics { listen })
}
