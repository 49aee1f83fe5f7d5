//! From configuration to text.

use std::fmt::{Display, Write as _};

use zeroize::Zeroizing;

use super::{Config, Field, Peer, Table, key};

impl Config {
    /// A file that says the same, with the secret keys in it.
    #[must_use]
    pub fn to_conf_with_secrets(&self) -> Zeroizing<String> {
        let mut text = Text::new("[Interface]\n");
        text.secret(Field::PrivateKey, self.private_key.secret_bytes());
        text.maybe(Field::ListenPort, self.listen_port.as_ref());
        text.maybe(Field::FwMark, self.fwmark.map(|mark| format!("{mark:#x}")));
        text.list(Field::Address, &self.addresses);
        text.list(Field::DNS, &self.dns);
        text.list(Field::DNS, &self.search_domains);
        text.maybe(Field::MTU, self.mtu);
        let table = Some(&self.table).filter(|&table| *table != Table::Auto);
        text.maybe(Field::Table, table);
        text.maybe(Field::SaveConfig, self.save_config.then_some(true));
        for hook in &self.hooks {
            text.line(hook.phase, &hook.command);
        }
        for peer in &self.peers {
            peer.write(&mut text);
        }
        text.0
    }
}

impl Peer {
    fn write(&self, text: &mut Text) {
        text.0.push_str("\n[Peer]\n");
        text.line(Field::PublicKey, self.public_key);
        if let Some(key) = &self.preshared_key {
            text.secret(Field::PresharedKey, key.secret_bytes());
        }
        text.list(Field::AllowedIPs, &self.allowed_ips);
        text.maybe(Field::Endpoint, self.endpoint.as_ref());
        text.maybe(Field::PersistentKeepalive, self.persistent_keepalive);
    }
}

struct Text(Zeroizing<String>);

impl Text {
    /// Begins with `start`. The buffer does not grow before both secrets of a one-peer file are in.
    fn new(start: &str) -> Self {
        let mut text = Zeroizing::new(String::with_capacity(4096));
        text.push_str(start);
        Self(text)
    }

    fn line(&mut self, key: impl Display, value: impl Display) {
        writeln!(self.0, "{key} = {value}").expect("a string takes everything");
    }

    fn secret(&mut self, field: Field, bytes: &[u8; key::KEY_BYTES]) {
        self.line(field, key::encode(bytes).as_str());
    }

    fn maybe(&mut self, field: Field, value: Option<impl Display>) {
        if let Some(value) = value {
            self.line(field, value);
        }
    }

    fn list(&mut self, field: Field, values: &[impl Display]) {
        let values: Vec<_> = values.iter().map(ToString::to_string).collect();
        if !values.is_empty() {
            self.line(field, values.join(", "));
        }
    }
}
