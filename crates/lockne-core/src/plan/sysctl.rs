//! A sysctl that the reply path needs.

use std::{fmt, str::FromStr};

use serde::{Deserialize, Serialize};

use super::Family;
use crate::tunnel::TunnelName;

/// A sysctl that lockne changes, and puts back when it no longer needs it.
///
/// As text, also for serde, it is the path below `/proc/sys`.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub enum Sysctl {
    /// Lets the reverse path check of IPv4 look at the mark that arriving packets were stamped
    /// with (`fib_validate_source` in the kernel's `net/ipv4/fib_frontend.c`).
    SrcValidMark(TunnelName),
    /// Lets replies that no socket sends, like RST and ICMP errors, take the mark of what they
    /// answer (`IP4_REPLY_MARK` and `IP6_REPLY_MARK`).
    FwmarkReflect(Family),
}

/// A text that is not the path of a sysctl that lockne changes.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` is not a sysctl that lockne changes")]
pub struct ParseSysctlError(String);

impl Sysctl {
    /// The path below `/proc/sys`.
    #[must_use]
    pub fn path(&self) -> String {
        match self {
            Self::SrcValidMark(name) => format!("net/ipv4/conf/{name}/src_valid_mark"),
            Self::FwmarkReflect(Family::V4) => "net/ipv4/fwmark_reflect".to_owned(),
            Self::FwmarkReflect(Family::V6) => "net/ipv6/fwmark_reflect".to_owned(),
        }
    }
}

/// Prints the name as sysctl(8) takes it; the form with slashes where a part has a dot in it.
impl fmt::Display for Sysctl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let path = self.path();
        if path.contains('.') {
            f.write_str(&path)
        } else {
            f.write_str(&path.replace('/', "."))
        }
    }
}

impl FromStr for Sysctl {
    type Err = ParseSysctlError;

    fn from_str(path: &str) -> Result<Self, ParseSysctlError> {
        let device = path
            .strip_prefix("net/ipv4/conf/")
            .and_then(|rest| rest.strip_suffix("/src_valid_mark"))
            .and_then(|name| name.parse().ok());
        match path {
            "net/ipv4/fwmark_reflect" => Ok(Self::FwmarkReflect(Family::V4)),
            "net/ipv6/fwmark_reflect" => Ok(Self::FwmarkReflect(Family::V6)),
            _ => device
                .map(Self::SrcValidMark)
                .ok_or_else(|| ParseSysctlError(path.to_owned())),
        }
    }
}

impl TryFrom<String> for Sysctl {
    type Error = ParseSysctlError;

    fn try_from(path: String) -> Result<Self, ParseSysctlError> {
        path.parse()
    }
}

impl From<Sysctl> for String {
    fn from(sysctl: Sysctl) -> Self {
        sysctl.path()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn path_can_be_read_back() {
        for path in [
            "net/ipv4/conf/wg0.1/src_valid_mark",
            "net/ipv4/fwmark_reflect",
            "net/ipv6/fwmark_reflect",
        ] {
            assert_eq!(path.parse::<Sysctl>().unwrap().path(), path);
        }
    }

    #[test]
    fn path_elsewhere_is_refused() {
        for path in [
            "net/ipv4/ip_forward",
            "net/ipv4/conf/../../../kernel/x/src_valid_mark",
            "net/ipv4/conf/src_valid_mark",
        ] {
            assert!(path.parse::<Sysctl>().is_err(), "{path}");
        }
    }

    #[test]
    fn name_with_a_dot_keeps_it() {
        let dotted = Sysctl::SrcValidMark("wg0.1".parse().unwrap());

        assert_eq!(dotted.to_string(), "net/ipv4/conf/wg0.1/src_valid_mark");
        assert_eq!(
            Sysctl::FwmarkReflect(Family::V4).to_string(),
            "net.ipv4.fwmark_reflect"
        );
    }
}
