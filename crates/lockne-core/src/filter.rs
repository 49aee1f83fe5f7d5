//! Which packets somebody wants to see: tcpdump's language, and three words of our own.
//!
//! An [`Expression`] is read from text, without asking anybody for the name of a host or a port. Once
//! it is known where tunnels are, it becomes a [`Program`]: comparisons of what is known of a packet,
//! with jumps forward only. That one has instructions for the kernel, so what nobody wants is never
//! copied. The language is described in `docs/filter.md`.

mod code;
mod expression;
mod formula;
mod headers;
mod parse;
mod program;
mod token;

pub use self::{
    code::Code,
    expression::{
        Address, Bound, Direction, Expression, Family, Layer, Primitive, Range, Transport,
    },
    formula::Tunnel,
    headers::{Link, packet},
    program::{Field, Next, Program, Relation, Step, Test, TooLong},
};

/// Why a filter cannot be read.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{problem}, at character {}", at + 1)]
pub struct Error {
    /// Where in the text, in bytes.
    pub at: usize,
    /// What is wrong there.
    pub problem: Problem,
}

/// What can be wrong with a filter.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Problem {
    /// Something else should be there.
    #[error("expected {expected}, not {found}")]
    Unexpected {
        /// What should be there.
        expected: &'static str,
        /// What is there.
        found: String,
    },
    /// A word without a qualifier, and none before from which to take it.
    #[error("`{0}` has no qualifier such as `host`, `net` or `port`")]
    NoQualifier(String),
    /// The word is not what its qualifier asks for.
    #[error("`{word}` is not {wanted}")]
    NotA {
        /// The word.
        word: String,
        /// What it should be.
        wanted: &'static str,
    },
    /// A network with bits set that are no part of it.
    #[error("`{0}` has bits set behind its prefix")]
    HostBits(String),
    /// Qualifiers that do not go together.
    #[error("`{first}` says nothing of `{second}`")]
    Mismatch {
        /// The first one.
        first: String,
        /// The second one.
        second: String,
    },
    /// A word of tcpdump that lockne does not know.
    #[error("`{0}` is a word of tcpdump that lockne does not know")]
    Foreign(String),
    /// A quote that does not end.
    #[error("the quote does not end")]
    OpenQuote,
    /// Too many parentheses in each other.
    #[error("more than {} parentheses in each other", parse::DEEPEST)]
    TooDeep,
}

impl Problem {
    /// What the user can do about it.
    #[must_use]
    pub fn hint(&self) -> Option<String> {
        match self {
            Self::NoQualifier(word) if word.contains('/') => Some(format!("write `net {word}`")),
            Self::NoQualifier(word) if word.contains(['.', ':']) => {
                Some(format!("write `host {word}`"))
            }
            Self::NoQualifier(word) if word.bytes().all(|byte| byte.is_ascii_digit()) => {
                Some(format!("write `port {word}`"))
            }
            Self::NoQualifier(word) => {
                Some(format!("for the packets of a program, write `proc {word}`"))
            }
            Self::NotA { wanted, .. } if *wanted == "an address" => {
                Some("names of hosts are not looked up: write the address".to_owned())
            }
            Self::NotA { wanted, .. } if *wanted == "a port" => {
                Some("names of services are not looked up: write the number".to_owned())
            }
            Self::Foreign(_) => {
                Some("write the packets to a file with `-w`, and filter that".to_owned())
            }
            _ => None,
        }
    }
}

impl std::str::FromStr for Expression {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self, Error> {
        parse::expression(text)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> Expression {
        text.parse()
            .unwrap_or_else(|error| panic!("{text}: {error}"))
    }

    fn wants(text: &str, packet: &lockne_abi::observe::Packet) -> bool {
        let tunnel = |name: &str| match name {
            "work" => Tunnel {
                ifindex: Some(7),
                policies: vec![3, 5],
                mask: 0xff00_0000,
            },
            _ => Tunnel::default(),
        };
        Program::new(&read(text), &tunnel).unwrap().wants(packet)
    }

    #[test]
    fn word_without_a_qualifier_takes_the_last_one() {
        for (short, long) in [
            (
                "host 192.0.2.1 or 192.0.2.2",
                "host 192.0.2.1 or host 192.0.2.2",
            ),
            (
                "tcp src port 1 or 2 and 3",
                "tcp src port 1 or tcp src port 2 and tcp src port 3",
            ),
            ("not port 1 and 2", "(not port 1) and port 2"),
            ("port (1 or not 2)", "port 1 or not port 2"),
            ("src 192.0.2.1", "src host 192.0.2.1"),
            ("proc curl or wget", "proc curl or proc wget"),
            ("portrange 9-3", "portrange 3-9"),
            ("net 10", "net 10.0.0.0/8"),
            ("host 10.1", "net 10.1.0.0/16"),
            ("tcp && !udp || ip6", "(tcp and not udp) or ip6"),
            ("port 0x50", "port 80"),
        ] {
            assert_eq!(read(short), read(long), "{short}");
        }
    }

    #[test]
    fn and_binds_no_closer_than_or() {
        assert_eq!(read("tcp or udp and ip6"), read("(tcp or udp) and ip6"));
        assert_ne!(read("tcp or udp and ip6"), read("tcp or (udp and ip6)"));
    }

    #[test]
    fn errors_say_where_and_what_to_write() {
        let told: Vec<String> = [
            "192.0.2.1",
            "443",
            "curl",
            "tcp or 80",
            "port http",
            "host example.org",
            "net 10.0.0.1/8",
            "tcp host 192.0.2.1",
            "ip6 host 192.0.2.1",
            "src proc curl",
            "tcp and",
            "(tcp or udp",
            "tcp udp",
            "ether host 00:00:00:00:00:01",
            "proc 'curl",
            "port 70000",
            "tcp & udp",
            ")",
            "pid 0",
        ]
        .into_iter()
        .map(|text| {
            let error = text.parse::<Expression>().unwrap_err();
            let hint = error.problem.hint().unwrap_or_default();
            format!("{text:<29} {error}; {hint}")
        })
        .collect();

        insta::assert_snapshot!(told.join("\n"));
    }

    #[test]
    fn depth_has_an_end() {
        let deep = |levels| "(".repeat(levels) + "tcp" + &")".repeat(levels);

        assert!(deep(64).parse::<Expression>().is_ok());
        for text in [deep(65), "(".repeat(100_000), "not ".repeat(100_000)] {
            let error = text.parse::<Expression>().unwrap_err();
            assert_eq!(error.problem, Problem::TooDeep);
        }
    }

    #[test]
    fn endless_filter_is_refused() {
        let text = vec!["host 192.0.2.1"; 1000].join(" or ");

        let program = Program::new(&read(&text), &|_| Tunnel::default());

        assert!(program.is_err());
    }

    #[test]
    fn process_and_tunnel_decide() {
        let mut packet = lockne_abi::observe::Packet {
            pid: 42,
            ..Default::default()
        };
        packet.name[..4].copy_from_slice(b"curl");

        assert!(wants("proc curl", &packet) && !wants("proc cur", &packet));
        assert!(wants("pid 42", &packet) && !wants("pid 43", &packet));
        assert!(!wants("tunnel work", &packet));
        packet.mark = 0x0500_0001;
        assert!(wants("tunnel work", &packet) && !wants("tunnel home", &packet));
        packet.mark = 0x0400_0000;
        assert!(!wants("tunnel work", &packet));
        packet.ifindex = 7;
        assert!(wants("tunnel work", &packet) && wants("not tunnel home and not tcp", &packet));
    }

    #[test]
    fn packet_without_a_process_has_no_name() {
        assert!(!wants("proc ''", &lockne_abi::observe::Packet::default()));
    }

    #[test]
    fn constant_filters_have_no_steps() {
        for (text, first) in [
            ("", Next::Accept),
            ("tunnel home", Next::Reject),
            ("tunnel home and tcp", Next::Reject),
            ("not tunnel home or tcp", Next::Accept),
        ] {
            let program = Program::new(&read(text), &|_| Tunnel::default()).unwrap();
            assert_eq!(
                (program.first(), program.steps()),
                (first, &[][..]),
                "{text}"
            );
        }
    }
}
