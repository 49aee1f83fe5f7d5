//! Who may use what without being root.

use std::collections::BTreeSet;

use ipnet::IpNet;
use serde::{Deserialize, Serialize};

use super::Config;
use crate::{
    policy::{Action, Terms},
    rule::User,
};

/// A group, as a configuration names one.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(untagged)]
pub enum Group {
    /// By number.
    Id(u32),
    /// By name.
    Name(String),
}

/// A set of users. Root belongs to every one of them.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Who {
    /// Everybody.
    pub all: bool,
    /// These users.
    pub users: BTreeSet<User>,
    /// The members of these groups.
    pub groups: BTreeSet<Group>,
}

/// Somebody who asks, as the system knows them.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Asker {
    /// The number of the user.
    pub uid: u32,
    /// The user's name, if there is one.
    pub name: Option<String>,
    /// The numbers of the user's groups.
    pub gids: BTreeSet<u32>,
    /// The names of these groups.
    pub groups: BTreeSet<String>,
}

impl Who {
    /// Whether `asker` is one of them.
    #[must_use]
    pub fn includes(&self, asker: &Asker) -> bool {
        let is_user = |user: &User| match user {
            User::Id(uid) => *uid == asker.uid,
            User::Name(name) => asker.name.as_ref() == Some(name),
        };
        let is_member = |group: &Group| match group {
            Group::Id(gid) => asker.gids.contains(gid),
            Group::Name(name) => asker.groups.contains(name),
        };
        asker.uid == 0
            || self.all
            || self.users.iter().any(is_user)
            || self.groups.iter().any(is_member)
    }
}

impl Config {
    /// Whether `asker` may put own programs under `terms`, which name interfaces.
    ///
    /// Interfaces that no tunnel of the configuration has are for root only. What goes past a tunnel, by a prefix
    /// that the configuration does not give that tunnel, takes the permission for `direct`.
    #[must_use]
    pub fn allows(&self, asker: &Asker, terms: &Terms) -> bool {
        if asker.uid == 0 {
            return true;
        }
        match terms.action {
            Action::Direct => self.direct.includes(asker),
            Action::Block => self.block.includes(asker) && self.may_pass(asker, terms, &[]),
            Action::Via(_) => {
                let tunnels = terms
                    .tunnels()
                    .map(|name| self.tunnel_of(name).map(|found| found.1));
                let Some(tunnels) = tunnels.collect::<Option<Vec<_>>>() else {
                    return false;
                };
                let lan: Vec<&IpNet> = tunnels.iter().flat_map(|tunnel| &tunnel.lan).collect();
                tunnels.iter().all(|tunnel| tunnel.who.includes(asker))
                    && self.may_pass(asker, terms, &lan)
            }
        }
    }

    fn may_pass(&self, asker: &Asker, terms: &Terms, lan: &[&IpNet]) -> bool {
        let is_given = |prefix: &IpNet| lan.iter().any(|given| given.contains(prefix));
        self.direct.includes(asker) || terms.lan.iter().all(is_given)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Text;

    fn config() -> Config {
        let text = r#"
            [tunnels.work]
            config = "/etc/wireguard/work.conf"
            users = ["ada", 1001]
            lan = ["192.168.1.0/24"]
            [tunnels.corp]
            interface = "tun0"
            groups = ["vpn"]
            [tunnels.root]
            interface = "tun1"
            [direct]
            users = ["bob"]
            [block]
            users = "all"
        "#;
        Config::parse(&[Text {
            path: "x".into(),
            text: text.to_owned(),
        }])
        .unwrap()
    }

    fn asker(uid: u32, name: &str, group: &str) -> Asker {
        Asker {
            uid,
            name: Some(name.to_owned()),
            gids: BTreeSet::from([uid]),
            groups: BTreeSet::from([group.to_owned()]),
        }
    }

    fn via(names: &[&str]) -> Terms {
        let mut names = names.iter().map(|name| name.parse().unwrap());
        let first = Terms::new(Action::Via(names.next().unwrap()));
        Terms {
            or: names.collect(),
            ..first
        }
    }

    #[test]
    fn tunnel_is_for_its_users_and_groups_and_root_only() {
        let config = config();
        let ada = asker(1000, "ada", "ada");
        let member = asker(1002, "eve", "vpn");

        assert!(config.allows(&ada, &via(&["work"])));
        assert!(config.allows(&asker(1001, "x", "x"), &via(&["work"])));
        assert!(!config.allows(&ada, &via(&["tun0"])));
        assert!(config.allows(&member, &via(&["tun0"])));
        assert!(!config.allows(&member, &via(&["work"])));
        assert!(
            !config.allows(&ada, &via(&["work", "tun0"])),
            "each of them"
        );
        assert!(!config.allows(&ada, &via(&["tun1"])));
        assert!(!config.allows(&ada, &via(&["eth0"])), "not in the file");
        assert!(config.allows(&asker(0, "root", "root"), &via(&["eth0"])));
    }

    #[test]
    fn way_past_a_tunnel_takes_the_permission_for_direct() {
        let config = config();
        let lan = |prefix: &str| Terms {
            lan: [prefix.parse().unwrap()].into(),
            ..via(&["work"])
        };
        let ada = asker(1000, "ada", "ada");

        assert!(config.allows(&ada, &lan("192.168.1.7/32")));
        assert!(!config.allows(&ada, &lan("192.168.0.0/16")));
        assert!(!config.allows(&ada, &Terms::new(Action::Direct)));
        assert!(config.allows(&asker(1003, "bob", "bob"), &Terms::new(Action::Direct)));
        assert!(config.allows(&ada, &Terms::new(Action::Block)));
    }
}
