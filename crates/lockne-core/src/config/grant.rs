//! What the configuration grants to users other than root.

use std::collections::BTreeSet;

use super::{Config, Group, Who};
use crate::permission::{self, Grant, Permissions};

impl Config {
    /// The grants, which speak of interfaces.
    #[must_use]
    pub fn permissions(&self) -> Permissions {
        let tunnels = self.tunnels.iter().map(|(name, tunnel)| Grant {
            via: [self.interface(name)].into(),
            lan: tunnel.lan.clone(),
            ..to(&tunnel.who)
        });
        let everything = ["0.0.0.0/0", "::/0"].map(|it| it.parse().expect("a prefix"));
        let direct = Grant {
            direct: true,
            lan: everything.into(),
            ..to(&self.direct)
        };
        let block = Grant {
            block: true,
            ..to(&self.block)
        };
        Permissions {
            grants: tunnels.chain([direct, block]).collect(),
        }
    }
}

fn to(who: &Who) -> Grant {
    let groups = who.groups.iter().map(|group| match group {
        Group::Id(gid) => permission::Group::Id(*gid),
        Group::Name(name) => permission::Group::Name(name.clone()),
    });
    Grant {
        all: who.all,
        users: who.users.clone(),
        groups: groups.collect::<BTreeSet<_>>(),
        ..Grant::default()
    }
}

#[cfg(test)]
mod tests {
    use crate::{
        config::{Config, Text},
        permission::{Names, Subject},
        policy::{Action, Terms},
    };

    #[test]
    fn configuration_grants_interfaces_to_those_whom_it_names() {
        let text = r#"
            [tunnels.work]
            interface = "tun0"
            users = [1000]
            lan = ["192.168.1.0/24"]
            [tunnels.corp]
            interface = "tun1"
            groups = [50]
            [block]
            users = "all"
        "#;
        let config = Config::parse(&[Text {
            path: "x".into(),
            text: text.to_owned(),
        }]);
        let permissions = config.unwrap().permissions();
        let of = |uid, gid| {
            let gids = [gid].into();
            permissions.of(&Subject { uid, gids }, &Names::default())
        };
        let via = |name: &str| Terms::new(Action::Via(name.parse().unwrap()));
        let or = Terms {
            or: vec!["tun1".parse().unwrap()],
            ..via("tun0")
        };

        assert!(of(1000, 1).use_of(&via("tun0")).is_ok());
        assert!(
            of(1000, 1).use_of(&via("work")).is_err(),
            "no such interface"
        );
        assert!(of(1000, 1).use_of(&or).is_err(), "each of them");
        assert!(of(1000, 50).use_of(&or).is_ok());
        assert!(of(1001, 1).use_of(&via("tun0")).is_err());
        assert!(of(1001, 1).use_of(&Terms::new(Action::Block)).is_ok());
        assert!(of(1001, 1).use_of(&Terms::new(Action::Direct)).is_err());
    }
}
