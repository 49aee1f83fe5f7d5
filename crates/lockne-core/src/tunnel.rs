//! What a tunnel is called.

use std::{fmt, str::FromStr};

use serde::{Deserialize, Serialize};

/// The name of a tunnel; also the name of its network interface.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct TunnelName(String);

/// Why a text cannot name a tunnel.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NameError {
    /// The text is empty.
    #[error("the name of a tunnel is empty")]
    Empty,
    /// The kernel takes at most 15 bytes.
    #[error("`{0}` is longer than the 15 bytes an interface name can have")]
    TooLong(String),
    /// The kernel, or a path below `/proc/sys/net`, would take it for something else.
    #[error("`{0}` has a character that an interface name cannot have")]
    BadCharacter(String),
    /// The word means something else where a tunnel is asked for.
    #[error("`{0}` is a word of lockne's own and cannot name a tunnel")]
    Reserved(String),
}

impl TunnelName {
    /// The name as text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for TunnelName {
    type Err = NameError;

    fn from_str(text: &str) -> Result<Self, NameError> {
        if text.is_empty() {
            return Err(NameError::Empty);
        }
        if text.len() > 15 {
            return Err(NameError::TooLong(text.to_owned()));
        }
        // `dev_valid_name` of the kernel, and what would make a confusing word on a command line.
        let bad = |c: char| c.is_whitespace() || c.is_control() || "/:'\"`$\\".contains(c);
        if text == "." || text == ".." || text.starts_with('-') || text.contains(bad) {
            return Err(NameError::BadCharacter(text.to_owned()));
        }
        if matches!(text, "direct" | "block" | "lo" | "all" | "default") {
            return Err(NameError::Reserved(text.to_owned()));
        }
        Ok(Self(text.to_owned()))
    }
}

impl TryFrom<String> for TunnelName {
    type Error = NameError;

    fn try_from(text: String) -> Result<Self, NameError> {
        text.parse()
    }
}

impl From<TunnelName> for String {
    fn from(name: TunnelName) -> Self {
        name.0
    }
}

impl fmt::Display for TunnelName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn interface_names_are_accepted() {
        for name in ["wg0", "tun0", "work", "my-vpn.2", "eth0@x", "fünf"] {
            assert_eq!(name.parse::<TunnelName>().unwrap().as_str(), name);
        }
    }

    #[test]
    fn what_the_kernel_refuses_is_refused_here() {
        for name in [
            "",
            "sixteen-letters-",
            "a b",
            "../x",
            "a/b",
            "..",
            "-x",
            "a:1",
        ] {
            assert!(name.parse::<TunnelName>().is_err(), "{name}");
        }
    }

    #[test]
    fn words_of_the_command_line_are_refused() {
        for name in ["direct", "block", "lo"] {
            assert_eq!(
                name.parse::<TunnelName>(),
                Err(NameError::Reserved(name.to_owned()))
            );
        }
    }
}
