//! Who may use what without being root.

use std::collections::BTreeSet;

use super::Config;
use crate::{
    permission::{Grant, Group},
    plan::Family,
    rule::User,
};

/// A set of users.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Who {
    /// Everybody.
    pub all: bool,
    /// These users.
    pub users: BTreeSet<User>,
    /// The members of these groups.
    pub groups: BTreeSet<Group>,
}

impl Who {
    fn grant(&self) -> Grant {
        Grant {
            users: self.users.clone(),
            groups: self.groups.clone(),
            all: self.all,
            ..Grant::default()
        }
    }
}

impl Config {
    /// What it grants to users other than root: tunnels by their interfaces, with the prefixes that are reached past
    /// them. Who may go `direct` may reach any prefix so.
    pub fn grants(&self) -> impl Iterator<Item = Grant> {
        let tunnels = self.tunnels.iter().map(|(name, tunnel)| Grant {
            via: [self.interface(name)].into(),
            lan: tunnel.lan.clone(),
            ..tunnel.who.grant()
        });
        let direct = Grant {
            direct: true,
            lan: Family::ALL.map(Family::everything).into(),
            ..self.direct.grant()
        };
        let block = Grant {
            block: true,
            ..self.block.grant()
        };
        tunnels.chain([direct, block])
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        config::Text,
        permission::{Granted, Names, Permissions, Subject},
        policy::{Action, Terms},
    };

    fn granted(uid: u32, gid: u32) -> Granted {
        let text = r#"
            [tunnels.work]
            config = "/etc/wireguard/work.conf"
            users = ["ada"]
            lan = ["192.168.1.0/24"]
            [tunnels.corp]
            interface = "tun0"
            groups = ["vpn"]
            [tunnels.root]
            interface = "tun1"
            [direct]
            users = [1003]
            [block]
            users = "all"
        "#;
        let config = Config::parse(&[Text {
            path: "x".into(),
            text: text.to_owned(),
        }]);
        let permissions = Permissions {
            grants: config.unwrap().grants().collect(),
        };
        let names = Names {
            users: [("ada".to_owned(), 1000)].into(),
            groups: [("vpn".to_owned(), 50)].into(),
        };
        let gids = [gid].into();
        permissions.of(&Subject { uid, gids }, &names)
    }

    fn via(name: &str) -> Terms {
        Terms::new(Action::Via(name.parse().unwrap()))
    }

    #[test]
    fn tunnel_is_for_its_users_and_groups_by_its_interface() {
        let (ada, member) = (granted(1000, 1000), granted(1002, 50));

        assert!(ada.use_of(&via("work")).is_ok());
        assert!(ada.use_of(&via("tun0")).is_err());
        assert!(member.use_of(&via("tun0")).is_ok());
        assert!(member.use_of(&via("corp")).is_err(), "its interface counts");
        assert!(member.use_of(&via("work")).is_err());
        assert!(ada.use_of(&via("tun1")).is_err(), "for root only");
        assert!(ada.use_of(&Terms::new(Action::Block)).is_ok());
    }

    #[test]
    fn way_past_a_tunnel_is_for_those_who_may_go_directly() {
        let lan = |prefix: &str| Terms {
            lan: [prefix.parse().unwrap()].into(),
            ..via("work")
        };
        let ada = granted(1000, 1000);

        assert!(ada.use_of(&lan("192.168.1.7/32")).is_ok());
        assert!(ada.use_of(&lan("192.168.0.0/16")).is_err());
        assert!(ada.use_of(&Terms::new(Action::Direct)).is_err());
        assert!(
            granted(1003, 1003)
                .use_of(&Terms::new(Action::Direct))
                .is_ok()
        );
    }
}
