//! The keys of a configuration file, called fields here: the other keys are cryptographic.

use std::fmt;

/// A section of the file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Section {
    /// `[Interface]`
    Interface,
    /// `[Peer]`
    Peer,
}

macro_rules! fields {
    ($($section:ident: $($name:ident)*;)*) => {
        /// A key that wg(8) or wg-quick(8) knows.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        pub enum Field {
            $($(
                #[doc = concat!("`", stringify!($name), "`")]
                $name,
            )*)*
        }

        impl Field {
            const ALL: &[Self] = &[$($(Self::$name,)*)*];

            /// The key as the manuals write it.
            #[must_use]
            pub const fn name(self) -> &'static str {
                match self {
                    $($(Self::$name => stringify!($name),)*)*
                }
            }

            /// The section it belongs to.
            #[must_use]
            pub const fn section(self) -> Section {
                match self {
                    $($(Self::$name => Section::$section,)*)*
                }
            }
        }
    };
}

fields! {
    Interface: PrivateKey ListenPort FwMark Address DNS MTU Table PreUp PostUp PreDown PostDown SaveConfig;
    Peer: PublicKey PresharedKey AllowedIPs Endpoint PersistentKeepalive;
}

impl Field {
    /// Finds the field called `name`, in whatever case.
    pub(super) fn find(name: &str) -> Option<Self> {
        let is_it = |field: &&Self| field.name().eq_ignore_ascii_case(name);
        Self::ALL.iter().find(is_it).copied()
    }
}

impl fmt::Display for Field {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl fmt::Display for Section {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Interface => "[Interface]",
            Self::Peer => "[Peer]",
        })
    }
}
