//! From text to configuration, line by line, as `config_read_line` of wireguard-tools does it.

use std::{collections::HashMap, fmt::Display, str};

use ipnet::IpNet;
use zeroize::Zeroizing;

use super::{
    Config, Error, Field, Hook, Peer, Phase, PresharedKey, PrivateKey, PublicKey, Reason, Section,
    Table, Warning, error::shown, value,
};

/// Parses a whole file.
pub(super) fn config(bytes: &[u8]) -> Result<Config, Error> {
    let text = str::from_utf8(bytes).map_err(|error| {
        let before = &bytes[..error.valid_up_to()];
        let line = before.split(|&byte| byte == b'\n').count();
        Error::NotText { line }
    })?;
    let text = text.strip_prefix('\u{feff}').unwrap_or(text);

    let mut parser = Parser::default();
    for (index, line) in text.split('\n').enumerate() {
        parser.line(index + 1, line)?;
    }
    parser.finish()
}

#[derive(Default)]
struct Parser {
    section: Option<Section>,
    interface: Option<Interface>,
    peers: Vec<OpenPeer>,
    warnings: Vec<Warning>,
}

/// The sections called `[Interface]`: `wg` takes several for one.
#[derive(Default)]
struct Interface {
    line: usize,
    seen: HashMap<Field, usize>,
    private_key: Option<PrivateKey>,
    listen_port: Option<super::Port>,
    fwmark: Option<u32>,
    addresses: Vec<IpNet>,
    dns: Vec<std::net::IpAddr>,
    search_domains: Vec<String>,
    mtu: Option<u16>,
    table: Table,
    save_config: bool,
    hooks: Vec<Hook>,
}

#[derive(Default)]
struct OpenPeer {
    line: usize,
    seen: HashMap<Field, usize>,
    public_key: Option<PublicKey>,
    preshared_key: Option<PresharedKey>,
    allowed_ips: Vec<IpNet>,
    endpoint: Option<super::Endpoint>,
    persistent_keepalive: Option<std::num::NonZeroU16>,
}

impl Parser {
    fn line(&mut self, line: usize, text: &str) -> Result<(), Error> {
        let text = text.split('#').next().unwrap_or_default();
        let text = text.trim_matches(is_blank);
        if text.is_empty() {
            return Ok(());
        }
        if text.starts_with('[') {
            return self.open(line, &squeeze(text));
        }

        let (name, value) = text.split_once('=').ok_or(Error::NoAssignment { line })?;
        let name = squeeze(name);
        let field = Field::find(&name).ok_or_else(|| Error::UnknownKey {
            line,
            name: shown(&name),
        })?;
        let section = self.section.ok_or(Error::NoSection { line, field })?;
        if section != field.section() {
            return Err(Error::WrongSection { line, field });
        }

        let at = At { line, field };
        let value = value.trim_matches(is_blank);
        match section {
            Section::Interface => {
                let interface = self.interface.as_mut();
                let interface = interface.expect("its section is open");
                interface.assign(at, value, &mut self.warnings)
            }
            Section::Peer => {
                let peer = self.peers.last_mut().expect("its section is open");
                peer.assign(at, value, &mut self.warnings)
            }
        }
    }

    fn open(&mut self, line: usize, name: &str) -> Result<(), Error> {
        if name.eq_ignore_ascii_case("[interface]") {
            self.section = Some(Section::Interface);
            self.interface.get_or_insert_with(|| Interface {
                line,
                ..Interface::default()
            });
        } else if name.eq_ignore_ascii_case("[peer]") {
            self.section = Some(Section::Peer);
            self.peers.push(OpenPeer {
                line,
                ..OpenPeer::default()
            });
        } else {
            let name = shown(name);
            return Err(Error::Section { line, name });
        }
        Ok(())
    }

    fn finish(mut self) -> Result<Config, Error> {
        let interface = self.interface.ok_or(Error::NoInterface)?;
        let line = interface.line;
        let private_key = interface.private_key.ok_or(Error::NoPrivateKey { line })?;

        let mut peers: Vec<Peer> = Vec::with_capacity(self.peers.len());
        let mut known = HashMap::new();
        for peer in self.peers {
            let peer = peer.close()?;
            if let Some(first) = known.insert(peer.public_key, peer.line) {
                let line = peer.line;
                return Err(Error::SamePeer { line, first });
            }
            peers.push(peer);
        }
        settle(&mut peers, &mut self.warnings);

        Ok(Config {
            private_key,
            listen_port: interface.listen_port,
            fwmark: interface.fwmark,
            addresses: interface.addresses,
            dns: interface.dns,
            search_domains: interface.search_domains,
            mtu: interface.mtu,
            table: interface.table,
            save_config: interface.save_config,
            hooks: interface.hooks,
            peers,
            warnings: self.warnings,
        })
    }
}

/// Leaves each prefix to the last peer that asks for it, as WireGuard does.
fn settle(peers: &mut [Peer], warnings: &mut Vec<Warning>) {
    let mut owners = HashMap::new();
    for peer in peers.iter() {
        for &prefix in &peer.allowed_ips {
            if let Some(first) = owners.insert(prefix, peer.line) {
                let line = peer.line;
                warnings.push(Warning::Moved {
                    line,
                    first,
                    prefix,
                });
            }
        }
    }
    for peer in peers {
        let line = peer.line;
        peer.allowed_ips.retain(|prefix| owners[prefix] == line);
    }
}

impl Interface {
    fn assign(&mut self, at: At, text: &str, warnings: &mut Vec<Warning>) -> Result<(), Error> {
        let squeezed = squeeze(text);
        match at.field {
            Field::PrivateKey => {
                at.filled(&squeezed)?;
                let key = PrivateKey::from_base64(&squeezed);
                self.private_key = Some(key.map_err(|reason| at.bad_key(reason))?);
            }
            Field::ListenPort => self.listen_port = Some(at.read(&squeezed, str::parse)?),
            Field::FwMark => self.fwmark = at.read(&squeezed, value::fwmark)?,
            Field::Address => {
                for word in words(text) {
                    let address = at.read(word, value::interface_address)?;
                    self.addresses.push(address);
                }
                return Ok(());
            }
            Field::DNS => {
                for word in words(text) {
                    if value::is_resolver(word) {
                        self.dns.push(at.read(word, value::address)?);
                    } else {
                        self.search_domains.push(word.to_owned());
                    }
                }
                return Ok(());
            }
            Field::PreUp | Field::PostUp | Field::PreDown | Field::PostDown => {
                self.hook(at, text);
                return Ok(());
            }
            // wg-quick takes an empty value for none.
            Field::MTU | Field::Table if text.is_empty() => return Ok(()),
            Field::MTU => self.mtu = Some(at.read(text, value::mtu)?),
            Field::Table => {
                self.table = at.read(text, value::table)?;
                if self.table != Table::Off {
                    warnings.push(Warning::Table { line: at.line });
                }
            }
            Field::SaveConfig => {
                self.save_config = at.read(text, value::truth)?;
                if self.save_config {
                    warnings.push(Warning::SaveConfig { line: at.line });
                }
            }
            _ => unreachable!("the section was checked"),
        }
        at.once(&mut self.seen, warnings);
        Ok(())
    }

    fn hook(&mut self, at: At, command: &str) {
        let phase = match at.field {
            Field::PreUp => Phase::PreUp,
            Field::PostUp => Phase::PostUp,
            Field::PreDown => Phase::PreDown,
            _ => Phase::PostDown,
        };
        if !command.is_empty() {
            self.hooks.push(Hook {
                phase,
                line: at.line,
                command: command.to_owned(),
            });
        }
    }
}

impl OpenPeer {
    fn assign(&mut self, at: At, text: &str, warnings: &mut Vec<Warning>) -> Result<(), Error> {
        let text = squeeze(text);
        match at.field {
            Field::PublicKey => {
                at.filled(&text)?;
                let key = PublicKey::from_base64(&text);
                self.public_key = Some(key.map_err(|reason| at.bad_key(reason))?);
            }
            Field::PresharedKey => {
                at.filled(&text)?;
                let key = PresharedKey::from_base64(&text);
                self.preshared_key = Some(key.map_err(|reason| at.bad_key(reason))?);
            }
            Field::AllowedIPs => return self.allow(at, &text, warnings),
            Field::Endpoint => self.endpoint = Some(at.read(&text, str::parse)?),
            Field::PersistentKeepalive => {
                self.persistent_keepalive = at.read(&text, value::keepalive)?;
            }
            _ => unreachable!("the section was checked"),
        }
        at.once(&mut self.seen, warnings);
        Ok(())
    }

    /// Adds a list of prefixes; with `-` in front, a prefix is taken away again.
    fn allow(&mut self, at: At, list: &str, warnings: &mut Vec<Warning>) -> Result<(), Error> {
        if list.is_empty() {
            return Ok(());
        }
        for item in list.split(',') {
            let plain = item.strip_prefix(['+', '-']).unwrap_or(item);
            let given = value::prefix(plain).map_err(|reason| at.bad(item, reason))?;
            let meant = given.trunc();
            if meant != given {
                let line = at.line;
                warnings.push(Warning::HostBits { line, given, meant });
            }
            if item.starts_with('-') {
                self.allowed_ips.retain(|prefix| *prefix != meant);
            } else if !self.allowed_ips.contains(&meant) {
                self.allowed_ips.push(meant);
            }
        }
        Ok(())
    }

    fn close(self) -> Result<Peer, Error> {
        let line = self.line;
        Ok(Peer {
            line,
            public_key: self.public_key.ok_or(Error::NoPublicKey { line })?,
            preshared_key: self.preshared_key,
            allowed_ips: self.allowed_ips,
            endpoint: self.endpoint,
            persistent_keepalive: self.persistent_keepalive,
        })
    }
}

/// An assignment, for errors and warnings.
#[derive(Clone, Copy)]
struct At {
    line: usize,
    field: Field,
}

impl At {
    fn read<T>(self, text: &str, read: fn(&str) -> Result<T, Reason>) -> Result<T, Error> {
        self.filled(text)?;
        read(text).map_err(|reason| self.bad(text, reason))
    }

    fn filled(self, text: &str) -> Result<(), Error> {
        let Self { line, field } = self;
        if text.is_empty() {
            return Err(Error::NoValue { line, field });
        }
        Ok(())
    }

    /// Warns if the field has a value already.
    fn once(self, seen: &mut HashMap<Field, usize>, warnings: &mut Vec<Warning>) {
        let Self { line, field } = self;
        if let Some(first) = seen.insert(field, line) {
            warnings.push(Warning::Replaced { line, field, first });
        }
    }

    fn bad(self, value: impl Display, reason: Reason) -> Error {
        Error::Value {
            line: self.line,
            field: self.field,
            value: shown(&value.to_string()),
            reason,
        }
    }

    fn bad_key(self, reason: super::KeyError) -> Error {
        Error::Key {
            line: self.line,
            field: self.field,
            reason,
        }
    }
}

/// `char_is_space` of wireguard-tools.
fn is_blank(c: char) -> bool {
    matches!(c, ' ' | '\t' | '\n' | '\u{b}' | '\u{c}' | '\r')
}

/// `wg` drops every blank, even within words. The value may be a secret, so it is wiped.
fn squeeze(text: &str) -> Zeroizing<String> {
    let mut squeezed = Zeroizing::new(String::with_capacity(text.len()));
    squeezed.extend(text.chars().filter(|&c| !is_blank(c)));
    squeezed
}

/// wg-quick takes commas for blanks.
fn words(text: &str) -> impl Iterator<Item = &str> {
    let words = text.split(|c| is_blank(c) || c == ',');
    words.filter(|word| !word.is_empty())
}
