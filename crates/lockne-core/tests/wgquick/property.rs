//! Claims about every file, not only those at hand.

use std::num::NonZeroU16;

use ipnet::IpNet;
use lockne_core::wgquick::{
    Config, Endpoint, Hook, Host, Peer, Phase, Port, PresharedKey, PrivateKey, PublicKey, Table,
};
use proptest::{collection::vec, option, prelude::*, sample::select};

use crate::files::FILES;

fn net() -> impl Strategy<Value = IpNet> {
    prop_oneof![
        (any::<[u8; 4]>(), 0..=32u8).prop_map(|(ip, len)| IpNet::new(ip.into(), len).unwrap()),
        (any::<[u16; 8]>(), 0..=128u8).prop_map(|(ip, len)| IpNet::new(ip.into(), len).unwrap()),
    ]
}

fn endpoint() -> impl Strategy<Value = Endpoint> {
    let host = prop_oneof![
        net().prop_map(|net| Host::Address(net.addr())),
        "[a-z][a-z0-9-]{0,9}\\.example".prop_map(Host::Name),
        "fe80::[1-9]%[a-z]{1,8}".prop_map(Host::Name),
    ];
    let port = prop_oneof![
        (1..=u16::MAX).prop_map(Port::Number),
        "[a-z][a-z0-9-]{0,9}".prop_map(Port::Service),
    ];
    (host, port).prop_map(|(host, port)| Endpoint { host, port })
}

fn peer() -> impl Strategy<Value = Peer> {
    (
        any::<[u8; 32]>(),
        option::of(any::<[u8; 32]>()),
        vec(net(), 0..4),
        option::of(endpoint()),
        option::of(any::<NonZeroU16>()),
    )
        .prop_map(|(public, preshared, nets, endpoint, keepalive)| {
            let mut allowed_ips: Vec<_> = nets.iter().map(IpNet::trunc).collect();
            allowed_ips.sort();
            allowed_ips.dedup();
            Peer {
                line: 0,
                public_key: PublicKey::from_bytes(public),
                preshared_key: preshared.map(PresharedKey::from_bytes),
                allowed_ips,
                endpoint,
                persistent_keepalive: keepalive,
            }
        })
}

fn hook() -> impl Strategy<Value = Hook> {
    let phase = select(vec![
        Phase::PreUp,
        Phase::PostUp,
        Phase::PreDown,
        Phase::PostDown,
    ]);
    (phase, "[a-z%]([ -\"$-~]{0,20}[!-\"$-~])?").prop_map(|(phase, command)| Hook {
        phase,
        line: 0,
        command,
    })
}

fn table() -> impl Strategy<Value = Table> {
    prop_oneof![
        Just(Table::Auto),
        Just(Table::Off),
        any::<u32>().prop_map(Table::Number),
        "[b-n][a-z_.-]{3,9}".prop_map(Table::Name),
    ]
}

prop_compose! {
    fn config()(
        private in any::<[u8; 32]>().prop_filter("zeros are no key", |key| *key != [0; 32]),
        listen_port in option::of(any::<u16>()),
        fwmark in option::of(1..=u32::MAX),
        addresses in vec(net(), 0..4),
        dns in vec(net(), 0..3),
        search_domains in vec("[a-z]{1,9}\\.example", 0..3),
        mtu in option::of(68..=u16::MAX),
        table in table(),
        save_config in any::<bool>(),
        hooks in vec(hook(), 0..4),
        peers in vec(peer(), 0..4),
    ) -> Config {
        Config {
            private_key: PrivateKey::from_bytes(private),
            listen_port: listen_port.map(Port::Number),
            fwmark,
            addresses,
            dns: dns.iter().map(IpNet::addr).collect(),
            search_domains,
            mtu,
            table,
            save_config,
            hooks,
            peers,
            warnings: Vec::new(),
        }
    }
}

/// Without what depends on where things stand in the file.
fn placeless(mut config: Config) -> Config {
    config.warnings.clear();
    for hook in &mut config.hooks {
        hook.line = 0;
    }
    for peer in &mut config.peers {
        peer.line = 0;
    }
    config
}

/// Every stretch of the input that could be a key, as long as keys are.
fn keys(input: &[u8]) -> Vec<String> {
    let is_base64 = |byte: &u8| byte.is_ascii_alphanumeric() || b"+/=".contains(byte);
    let candidates = input.windows(44).filter(|run| run.iter().all(is_base64));
    candidates
        .map(|run| String::from_utf8(run.to_vec()).unwrap())
        .collect()
}

/// A change to a file at a place given as a fraction of its length.
#[derive(Clone, Debug)]
enum Change {
    Remove(f64, usize),
    Insert(f64, Vec<u8>),
    Replace(f64, u8),
    Repeat(f64, f64),
}

fn change() -> impl Strategy<Value = Change> {
    prop_oneof![
        (0.0..1.0, 1..40usize).prop_map(|(at, count)| Change::Remove(at, count)),
        (0.0..1.0, vec(any::<u8>(), 1..9)).prop_map(|(at, bytes)| Change::Insert(at, bytes)),
        (0.0..1.0, select(b"\n=[]#,/:.%-+ \xff0A".to_vec()))
            .prop_map(|(at, byte)| Change::Replace(at, byte)),
        (0.0..1.0, 0.0..1.0).prop_map(|(at, from)| Change::Repeat(at, from)),
    ]
}

#[expect(
    clippy::cast_precision_loss,
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "any place will do"
)]
fn apply(change: Change, text: &mut Vec<u8>) {
    let length = text.len();
    let place = |fraction: f64| ((length as f64 * fraction) as usize).min(length);
    match change {
        Change::Remove(at, count) => {
            text.drain(place(at)..(place(at) + count).min(length));
        }
        Change::Insert(at, bytes) => {
            text.splice(place(at)..place(at), bytes);
        }
        Change::Replace(at, byte) => {
            if let Some(old) = text.get_mut(place(at)) {
                *old = byte;
            }
        }
        Change::Repeat(at, from) => {
            let part = text[place(from)..(place(from) + 60).min(length)].to_vec();
            text.splice(place(at)..place(at), part);
        }
    }
}

/// Parses, and checks what holds for every input.
fn check(input: &[u8]) -> Result<(), TestCaseError> {
    let messages = match Config::parse(input) {
        Ok(config) => {
            let again = Config::parse(config.to_conf_with_secrets().as_str());
            prop_assert_eq!(placeless(again.unwrap()), placeless(config.clone()));
            config.warnings.iter().map(ToString::to_string).collect()
        }
        Err(error) => {
            let lines = input.split(|&byte| byte == b'\n').count();
            let text = error.to_string();
            let line = error.line();
            let start = line.map_or("no `[Interface]` section".to_owned(), |line| {
                format!("line {line}: ")
            });
            prop_assert!(text.starts_with(&start), "{}", text);
            prop_assert!(line.is_none_or(|line| (1..=lines).contains(&line)));
            vec![text, format!("{error:?}")]
        }
    };
    for message in messages {
        for key in keys(input) {
            prop_assert!(!message.contains(&key), "{}", message);
        }
    }
    Ok(())
}

proptest! {
    #[test]
    fn what_is_written_is_read_back(config in config()) {
        // Prefixes of two peers are settled while reading.
        let mut seen = Vec::new();
        for peer in &config.peers {
            prop_assume!(peer.allowed_ips.iter().all(|net| !seen.contains(net)));
            seen.extend(&peer.allowed_ips);
        }

        let read = Config::parse(config.to_conf_with_secrets().as_str()).unwrap();

        prop_assert_eq!(placeless(read), config);
    }

    #[test]
    fn arbitrary_bytes_are_parsed_or_refused(bytes in vec(any::<u8>(), 0..300)) {
        check(&bytes)?;
    }

    #[test]
    fn arbitrary_lines_are_parsed_or_refused(
        lines in vec("(\\[Interface\\]|\\[Peer\\]|(Address|DNS|AllowedIPs|Endpoint|FwMark|MTU|Table|PostUp|PrivateKey|[A-Za-z0-9+/]{43}) ?= ?\\PC{0,30}|[A-Za-z0-9+/]{43}=)", 0..12)
    ) {
        check(lines.join("\n").as_bytes())?;
    }

    #[test]
    fn changed_file_is_parsed_or_refused_with_its_line(
        (_, text) in select(FILES),
        changes in vec(change(), 1..5),
    ) {
        let mut text = text.as_bytes().to_vec();
        for change in changes {
            apply(change, &mut text);
        }

        check(&text)?;
    }
}
