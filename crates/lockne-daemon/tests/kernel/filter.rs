//! What most programs are told by, that no rule names them: never of one that a rule does name.

use std::fs;

use lockne_core::rule::{Match, User};

use crate::{
    stage::{Group, Groups, Stage, exe, mark_of, rule},
    tests,
    world::mark,
};

tests! {
    name_of_any_length_is_known_in_its_directory,
    beginning_of_a_long_name_is_another_name,
    user_alone_is_enough,
    cgroup_that_no_rule_meant_can_be_meant_by_the_next,
    rule_for_the_root_of_the_cgroups_names_everybody,
}

fn name_of_any_length_is_known_in_its_directory() {
    let mut stage = Stage::new();
    // The kernel has names of 32 and more in another place, and rules have none of 63 and more.
    let names: Vec<_> = [1, 7, 31, 32, 39, 40, 62].map(|it| "n".repeat(it)).into();
    let rules: Vec<_> = names
        .iter()
        .map(|name| rule(name, 7, exe(&stage.path(name))))
        .collect();
    let outcome = stage.apply(&rules);
    assert_eq!(outcome.missing.len(), names.len(), "none is there");

    let mut app = stage.copy("app");
    assert_eq!(mark_of(&app), mark(0));
    for name in names {
        let next = stage.path(&name);
        fs::rename(app, &next).unwrap();
        assert_eq!(mark_of(&next), mark(7), "{name}");
        app = next;
    }
}

fn beginning_of_a_long_name_is_another_name() {
    let mut stage = Stage::new();
    let (short, long) = ("n".repeat(63), "n".repeat(64));
    let named = stage.copy(&short);
    stage.apply(&[rule("short", 7, exe(&named))]);

    assert_eq!(mark_of(&named), mark(7));
    assert_eq!(mark_of(&stage.copy(&long)), mark(0));
}

fn user_alone_is_enough() {
    let mut stage = Stage::new();
    let app = stage.copy("app");
    let user = |id| Match {
        user: Some(User::Id(id)),
        ..Match::default()
    };

    stage.apply(&[rule("nobody", 7, user(65534))]);
    assert_eq!(mark_of(&app), mark(0));
    stage.apply(&[rule("nobody", 7, user(65534)), rule("root", 8, user(0))]);
    assert_eq!(mark_of(&app), mark(8));
}

fn cgroup_that_no_rule_meant_can_be_meant_by_the_next() {
    let groups = Groups::new();
    let mut stage = Stage::new();
    let app = stage.copy("app");
    let name = Group::name();
    let group = groups.make(&name);
    let meant = |path: &str| Match {
        cgroup: Some(path.into()),
        ..Match::default()
    };

    // More often than there is room for sets of rules: each room is used again.
    for path in [
        "/elsewhere",
        &name,
        "/elsewhere",
        "/elsewhere",
        &name,
        &name,
    ] {
        stage.apply(&[rule("group", 7, meant(path))]);
        let wanted = mark(if path == name { 7 } else { 0 });
        // The second time, the kernel remembers.
        for _ in 0..2 {
            assert_eq!(group.mark_of(&app), wanted, "{path}");
        }
    }
}

fn rule_for_the_root_of_the_cgroups_names_everybody() {
    let mut stage = Stage::new();
    let (app, other) = (stage.copy("app"), stage.copy("other"));
    let everybody = Match {
        cgroup: Some("/".into()),
        ..Match::default()
    };

    stage.apply(&[rule("other", 8, exe(&other)), rule("all", 7, everybody)]);

    // The second time, the kernel remembers the cgroup.
    for _ in 0..2 {
        assert_eq!((mark_of(&app), mark_of(&other)), (mark(7), mark(8)));
    }
}
