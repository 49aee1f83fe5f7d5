//! What ordinary users may ask of the daemon. Root may ask for everything, and nobody for anything else
//! than what is granted here.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
};

use ipnet::IpNet;
use serde::{Deserialize, Serialize};

use crate::{
    policy::{Action, Terms},
    rule::User,
    tunnel::TunnelName,
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

/// Something that some users may do.
///
/// A grant is for whoever is one of `users` or in one of `groups`; without either it is for nobody. What
/// several grants give adds up.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
#[expect(
    clippy::struct_excessive_bools,
    reason = "each is a key of its own in the configuration"
)]
pub struct Grant {
    /// Who.
    pub users: BTreeSet<User>,
    /// Who else: the members of these groups.
    pub groups: BTreeSet<Group>,
    /// Whether it is for everybody.
    pub all: bool,
    /// The tunnels that they may use.
    pub via: BTreeSet<TunnelName>,
    /// Whether they may ask for `--direct`, past every other VPN of this machine.
    pub direct: bool,
    /// Whether they may ask for `--block`.
    pub block: bool,
    /// The prefixes that they may reach past a tunnel with `--lan`, or parts of these.
    pub lan: BTreeSet<IpNet>,
    /// Whether they may put own programs that run already under a policy.
    pub attach: bool,
    /// Whether they may bring up tunnels from files of their own, without hooks, and take these down. Such a file
    /// gives this machine addresses, so this is for those who may configure its network anyway.
    pub tunnels: bool,
    /// Whether own programs that have a policy may get another one, or none. Who asks for it must have none: a
    /// policed program never frees itself with the help of the daemon.
    pub switch: bool,
}

/// All grants.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Permissions {
    /// In any order.
    pub grants: Vec<Grant>,
}

/// Users and groups by name, as this machine knows them now.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Names {
    /// Numbers of users.
    pub users: BTreeMap<String, u32>,
    /// Numbers of groups.
    pub groups: BTreeMap<String, u32>,
}

/// Who asks.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Subject {
    /// The user.
    pub uid: u32,
    /// The group and all supplementary groups.
    pub gids: BTreeSet<u32>,
}

/// What a user lacks a grant for.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Denied {
    /// A tunnel.
    #[error("may not use tunnel `{0}`")]
    Via(TunnelName),
    /// `--direct`.
    #[error("may not use `--direct`")]
    Direct,
    /// `--block`.
    #[error("may not use `--block`")]
    Block,
    /// `--lan`.
    #[error("may not reach {0} past a tunnel")]
    Lan(IpNet),
    /// `attach`.
    #[error("may not put running programs under a policy")]
    Attach,
    /// Tunnels of his own.
    #[error("may not bring tunnels up or take them down")]
    Tunnels,
    /// Commands in a wg-quick file.
    #[error("may not run the commands of a wg-quick file: that is for root only")]
    Hooks,
    /// Another policy for a program that has one.
    #[error("may not change the policy of a program that has one")]
    Switch,
    /// Asked for by a program that has a policy itself.
    #[error("may not ask for this from a program that has a policy")]
    Policed,
    /// Everything else.
    #[error("may not do this: it is for root only")]
    RootOnly,
}

impl Denied {
    /// Where an administrator grants it, if that can be.
    #[must_use]
    pub fn remedy(&self) -> Option<String> {
        Some(match self {
            Self::Via(tunnel) => format!("`users` of `[tunnels.{tunnel}]`"),
            Self::Direct => "`users` of `[direct]`".to_owned(),
            Self::Block => "`users` of `[block]`".to_owned(),
            Self::Lan(_) => {
                "`users` of `[direct]`, or the prefix to `lan` of the tunnel".to_owned()
            }
            Self::Attach => "`users` of `[attach]`".to_owned(),
            Self::Tunnels => "`users` of `[own_tunnels]`".to_owned(),
            Self::Switch => "`users` of `[switch]`".to_owned(),
            Self::Policed | Self::Hooks | Self::RootOnly => return None,
        })
    }
}

impl Permissions {
    /// What is granted to `subject`, all in one.
    ///
    /// A name that `names` has not is nobody's.
    #[must_use]
    pub fn of(&self, subject: &Subject, names: &Names) -> Granted {
        let mut granted = Granted::default();
        for grant in self.grants.iter().filter(|it| it.is_for(subject, names)) {
            granted.via.extend(grant.via.iter().cloned());
            granted.lan.extend(&grant.lan);
            granted.direct |= grant.direct;
            granted.block |= grant.block;
            granted.attach |= grant.attach;
            granted.tunnels |= grant.tunnels;
            granted.switch |= grant.switch;
        }
        granted
    }

    /// The users that grants name by name.
    pub fn user_names(&self) -> impl Iterator<Item = &str> {
        let users = self.grants.iter().flat_map(|grant| &grant.users);
        users.filter_map(|user| match user {
            User::Name(name) => Some(name.as_str()),
            User::Id(_) => None,
        })
    }

    /// The groups that grants name by name.
    pub fn group_names(&self) -> impl Iterator<Item = &str> {
        let groups = self.grants.iter().flat_map(|grant| &grant.groups);
        groups.filter_map(|group| match group {
            Group::Name(name) => Some(name.as_str()),
            Group::Id(_) => None,
        })
    }
}

impl Grant {
    fn is_for(&self, subject: &Subject, names: &Names) -> bool {
        let user = |user: &User| match user {
            User::Id(uid) => *uid == subject.uid,
            User::Name(name) => names.users.get(name) == Some(&subject.uid),
        };
        let group = |group: &Group| match group {
            Group::Id(gid) => subject.gids.contains(gid),
            Group::Name(name) => {
                let gid = names.groups.get(name);
                gid.is_some_and(|gid| subject.gids.contains(gid))
            }
        };
        self.all || self.users.iter().any(user) || self.groups.iter().any(group)
    }
}

/// All that is granted to one user.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[expect(
    clippy::struct_excessive_bools,
    reason = "each is a key of its own in the configuration"
)]
pub struct Granted {
    /// Tunnels that he may use.
    pub via: BTreeSet<TunnelName>,
    /// `--direct`.
    pub direct: bool,
    /// `--block`.
    pub block: bool,
    /// `--lan`.
    pub lan: BTreeSet<IpNet>,
    /// `attach`.
    pub attach: bool,
    /// Tunnels of his own.
    pub tunnels: bool,
    /// Another policy in place of one.
    pub switch: bool,
}

impl Granted {
    /// Whether a program may be started with `terms`.
    ///
    /// # Errors
    ///
    /// The first thing in it that is not granted.
    pub fn use_of(&self, terms: &Terms) -> Result<(), Denied> {
        // Each of several, for any of them may be used.
        if let Some(name) = terms.tunnels().find(|name| !self.via.contains(*name)) {
            return Err(Denied::Via(name.clone()));
        }
        match &terms.action {
            _ if (terms.or_direct || terms.action == Action::Direct) && !self.direct => {
                return Err(Denied::Direct);
            }
            Action::Block if !self.block => return Err(Denied::Block),
            Action::Via(_) | Action::Direct | Action::Block => {}
        }
        let outside = |prefix: &&IpNet| !self.lan.iter().any(|granted| granted.contains(*prefix));
        match terms.lan.iter().find(outside) {
            Some(prefix) => Err(Denied::Lan(*prefix)),
            None => Ok(()),
        }
    }

    /// Whether a process that is under `present` may get `wanted`, or be free without it, if one under `asker` says so.
    ///
    /// The same again changes nothing, and nothing leaks from a program that loses the network altogether.
    ///
    /// # Errors
    ///
    /// If it is another policy, and that is not granted, or not to be asked for from there.
    pub fn change(
        &self,
        asker: Option<&Terms>,
        present: Option<&Terms>,
        wanted: Option<&Terms>,
    ) -> Result<(), Denied> {
        let narrows = wanted.is_some_and(|it| it.action == Action::Block && it.lan.is_empty());
        if narrows || present.is_some() && present == wanted {
            return Ok(());
        }
        if asker.is_some() && asker != wanted {
            return Err(Denied::Policed);
        }
        match present {
            Some(_) if !self.switch => Err(Denied::Switch),
            _ => Ok(()),
        }
    }
}

impl fmt::Display for Group {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Id(gid) => gid.fmt(f),
            Self::Name(name) => f.write_str(name),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn grant(user: u32) -> Grant {
        Grant {
            users: [User::Id(user)].into(),
            ..Grant::default()
        }
    }

    fn subject(uid: u32, gids: &[u32]) -> Subject {
        Subject {
            uid,
            gids: gids.iter().copied().collect(),
        }
    }

    fn via(name: &str) -> Terms {
        Terms::new(Action::Via(name.parse().unwrap()))
    }

    #[test]
    fn direct_behind_tunnels_is_granted_as_direct_is() {
        let only = Granted {
            via: ["work".parse().unwrap()].into(),
            ..Granted::default()
        };
        let both = Granted {
            direct: true,
            ..only.clone()
        };
        let or_direct = Terms {
            or_direct: true,
            ..via("work")
        };

        assert_eq!(only.use_of(&or_direct), Err(Denied::Direct));
        assert_eq!(both.use_of(&or_direct), Ok(()));
        // A program that is bound to its tunnel is not let past it for the asking.
        let denied = both.change(Some(&via("work")), Some(&via("work")), Some(&or_direct));
        assert_eq!(denied, Err(Denied::Policed));
        let denied = both.change(None, Some(&via("work")), Some(&or_direct));
        assert_eq!(denied, Err(Denied::Switch));
    }

    #[test]
    fn nothing_is_granted_to_those_whom_no_grant_names() {
        let work = Grant {
            via: ["work".parse().unwrap()].into(),
            direct: true,
            ..grant(1000)
        };
        let nobody = Grant {
            block: true,
            ..Grant::default()
        };
        let permissions = Permissions {
            grants: vec![work, nobody],
        };

        let other = permissions.of(&subject(1001, &[1000]), &Names::default());
        let one = permissions.of(&subject(1000, &[7]), &Names::default());

        assert_eq!(other, Granted::default());
        assert_eq!(one.use_of(&via("work")), Ok(()));
        assert_eq!(
            one.use_of(&via("home")),
            Err(Denied::Via("home".parse().unwrap()))
        );
        let in_need = Terms {
            or: vec!["home".parse().unwrap()],
            ..via("work")
        };
        assert_eq!(
            one.use_of(&in_need),
            Err(Denied::Via("home".parse().unwrap())),
            "each of several has to be granted"
        );
        assert_eq!(
            one.use_of(&Terms::new(Action::Block)),
            Err(Denied::Block),
            "a grant for nobody is nobody's"
        );
    }

    #[test]
    fn members_of_a_group_by_name_get_what_it_has() {
        let group = Grant {
            groups: [Group::Name("vpn".to_owned())].into(),
            block: true,
            ..Grant::default()
        };
        let permissions = Permissions {
            grants: vec![group],
        };
        let mut names = Names::default();

        let unknown = permissions.of(&subject(1000, &[50]), &names);
        names.groups.insert("vpn".to_owned(), 50);
        let member = permissions.of(&subject(1000, &[50]), &names);
        let stranger = permissions.of(&subject(1000, &[51]), &names);

        assert!(!unknown.block && member.block && !stranger.block);
    }

    #[test]
    fn lan_is_granted_by_prefix_and_its_parts() {
        let granted = Granted {
            via: ["work".parse().unwrap()].into(),
            lan: ["192.168.0.0/16".parse().unwrap()].into(),
            ..Granted::default()
        };
        let with = |prefix: &str| Terms {
            lan: [prefix.parse().unwrap()].into(),
            ..via("work")
        };

        assert_eq!(granted.use_of(&with("192.168.7.0/24")), Ok(()));
        for wider in ["192.0.0.0/8", "10.0.0.0/8", "fd00::/8"] {
            assert_eq!(
                granted.use_of(&with(wider)),
                Err(Denied::Lan(wider.parse().unwrap()))
            );
        }
    }

    #[test]
    fn policed_program_frees_neither_itself_nor_others() {
        let granted = Granted {
            switch: true,
            ..Granted::default()
        };
        let own = via("work");
        let (direct, block) = (Terms::new(Action::Direct), Terms::new(Action::Block));

        for present in [Some(&own), Some(&block), None] {
            for wanted in [Some(&direct), None] {
                assert_eq!(
                    granted.change(Some(&own), present, wanted),
                    Err(Denied::Policed)
                );
                assert_eq!(granted.change(None, present, wanted), Ok(()));
            }
            for wanted in [&own, &block] {
                assert_eq!(granted.change(Some(&own), present, Some(wanted)), Ok(()));
            }
        }
    }

    #[test]
    fn policed_program_can_only_be_silenced_unless_it_may_be_switched() {
        let mut granted = Granted::default();
        let present = via("work");
        let lan = Terms {
            lan: ["10.0.0.0/8".parse().unwrap()].into(),
            ..Terms::new(Action::Block)
        };

        for wider in [via("home"), Terms::new(Action::Direct), lan.clone()] {
            assert_eq!(
                granted.change(None, Some(&present), Some(&wider)),
                Err(Denied::Switch)
            );
            assert_eq!(granted.change(None, None, Some(&wider)), Ok(()));
        }
        assert_eq!(
            granted.change(None, Some(&present), None),
            Err(Denied::Switch)
        );
        assert_eq!(granted.change(None, Some(&present), Some(&present)), Ok(()));
        assert_eq!(
            granted.change(None, Some(&present), Some(&Terms::new(Action::Block))),
            Ok(())
        );
        granted.switch = true;
        assert_eq!(granted.change(None, Some(&present), Some(&lan)), Ok(()));
        assert_eq!(granted.change(None, Some(&present), None), Ok(()));
    }
}
