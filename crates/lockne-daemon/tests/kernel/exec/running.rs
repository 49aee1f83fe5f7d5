//! Rules that come, change and go while programs run.

use std::{
    fs,
    io::Write as _,
    net::SocketAddr,
    path::Path,
    process::{Child, Command, Stdio},
    thread,
};

use lockne_core::{
    policy::{Action, Terms},
    rule::Existing,
};
use lockne_daemon::{
    MarkField,
    rules::{Fallback, Installed},
};
use lockne_lab::program;

use crate::{
    sender,
    stage::{Stage, exe, mark_of, marked, rule},
    world::{id, mark},
};

fn start(program: &Path) -> Child {
    Command::new(program)
        .arg("probe")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap()
}

fn ask(child: &mut Child, line: &str) -> String {
    let input = child.stdin.as_mut().unwrap();
    input.write_all(format!("{line}\n").as_bytes()).unwrap();
    let mut answer = String::new();
    let output = child.stdout.as_mut().unwrap();
    // By bytes: nothing may stay behind in a buffer.
    loop {
        let mut byte = [0];
        std::io::Read::read_exact(output, &mut byte).unwrap();
        match byte {
            [b'\n'] => return answer,
            [byte] => answer.push(byte.into()),
        }
    }
}

fn finish(mut child: Child) {
    drop(child.stdin.take());
    child.wait().unwrap();
}

pub(super) fn running_programs_and_their_children_are_found() {
    let mut stage = Stage::new();
    let (app, other) = (stage.copy("app"), stage.copy("other"));
    let mut stranger = start(&other);
    let mut running = start(&app);
    assert_eq!(ask(&mut running, "socket udp4"), "ok");
    let child: u32 = ask(&mut running, &format!("keep {}", other.display()))
        .parse()
        .unwrap();
    // Replaced while it runs.
    let next = stage.copy("app.next");
    fs::rename(&next, &app).unwrap();

    let outcome = stage.apply(&[rule("app", 7, exe(&app))]);

    let mut moved: Vec<_> = outcome.moved.iter().map(|it| it.pid).collect();
    moved.sort_unstable();
    let mut wanted = [running.id(), child];
    wanted.sort_unstable();
    assert_eq!(moved, wanted);
    assert_eq!(ask(&mut running, "mark"), mark(7), "its old socket");
    assert_eq!(ask(&mut running, "of-thread"), mark(7));
    assert_eq!(ask(&mut running, "of-program"), mark(7));
    assert_eq!(ask(&mut stranger, "socket udp4"), "ok");
    assert_eq!(ask(&mut stranger, "mark"), mark(0));
    finish(running);
    finish(stranger);
}

pub(super) fn fallback_is_for_those_that_nobody_named() {
    let mut stage = Stage::new();
    let (app, other) = (stage.copy("app"), stage.copy("other"));
    let shell = stage.path("shell");
    program::copy("/bin/sh".as_ref(), &shell).unwrap();
    let fallback = Fallback {
        terms: Terms::new(Action::Block),
        policy: id(9),
        existing: Existing::Keep,
    };

    let rules = [rule("app", 7, exe(&app)), rule("shell", 8, exe(&shell))];
    let kernel = stage.world.kernel();
    stage
        .installed
        .apply(kernel, &rules, Some(&fallback))
        .unwrap();

    assert_eq!((mark_of(&app), mark_of(&other)), (mark(7), mark(9)));
    let child = marked(
        Command::new(&shell)
            .args(["-c", "exec \"$0\" \"$@\""])
            .arg(&other),
    );
    assert_eq!(child, mark(8), "a child that no rule names is its parent's");
    // No rules at all.
    stage
        .installed
        .apply(stage.world.kernel(), &[], Some(&fallback))
        .unwrap();
    assert_eq!(mark_of(&other), mark(9));
}

pub(super) fn changed_rule_takes_its_children_along() {
    let mut stage = Stage::new();
    let (app, other) = (stage.copy("app"), stage.copy("other"));
    stage.apply(&[rule("app", 7, exe(&app))]);
    let mut running = start(&app);
    let child: u32 = ask(&mut running, &format!("keep {}", other.display()))
        .parse()
        .unwrap();
    assert_eq!(stage.world.kernel().process(child), Some(id(7)));

    stage.apply(&[rule("app", 8, exe(&app))]);
    assert_eq!(stage.world.kernel().process(running.id()), Some(id(8)));
    assert_eq!(stage.world.kernel().process(child), Some(id(8)));

    // Who is policed stays so when the rule goes: free would be a leak that nobody asked for.
    stage.apply(&[]);
    assert_eq!(stage.world.kernel().process(child), Some(id(8)));
    assert_eq!(mark_of(&app), mark(0));
    finish(running);
}

pub(super) fn rules_are_replaced_as_a_whole() {
    let mut stage = Stage::new();
    stage.world.tunnel_policy(7);
    stage.world.tunnel_policy(8);
    let SocketAddr::V4(wan) = stage.world.wan.far4 else {
        panic!("this is of IPv4")
    };
    let app = stage.path("app");
    sender::put(&app, wan);
    let sets = [7, 8].map(|policy| {
        let mut rules: Vec<_> = (0..100)
            .map(|n| rule(&format!("x{n}"), 9, exe(&stage.path(&format!("no-{n}")))))
            .collect();
        rules.push(rule("app", policy, exe(&app)));
        rules
    });
    stage.apply(&sets[0]);

    thread::scope(|scope| {
        let starts = scope.spawn(|| {
            for _ in 0..1000 {
                assert!(Command::new(&app).status().unwrap().success());
            }
        });
        while !starts.is_finished() {
            for set in &sets {
                stage
                    .installed
                    .apply(stage.world.kernel(), set, None)
                    .unwrap();
            }
        }
    });

    assert_eq!(stage.world.arrived(), Vec::<Vec<u8>>::new());
    let [one, two] = [7, 8].map(|policy| {
        let counters = stage.world.kernel().counters(id(policy)).unwrap();
        counters.refused
    });
    assert_eq!(one + two, 1000);
    assert!(
        one > 0 && two > 0,
        "both sets were in force: {one} and {two}"
    );
}

pub(super) fn rules_outlive_the_daemon() {
    let mut stage = Stage::new();
    let app = stage.copy("app");
    stage.apply(&[rule("app", 7, exe(&app))]);

    stage.world.close();
    assert_eq!(mark_of(&app), mark(7), "without a daemon");

    stage.world.open();
    assert_eq!(mark_of(&app), mark(7), "with the next one");
    stage.installed = Installed::new(MarkField::DEFAULT).unwrap();
    stage.apply(&[rule("app", 8, exe(&app))]);
    assert_eq!(mark_of(&app), mark(8), "which brings rules of its own");
    stage.apply(&[]);
    assert_eq!(mark_of(&app), mark(0));
}

pub(super) fn thousand_rules_are_in_force_quickly() {
    let mut stage = Stage::new();
    let app = stage.copy("app");
    let mut rules: Vec<_> = (0..1023)
        .map(|n| rule(&format!("x{n}"), 9, exe(&stage.path(&format!("no-{n}")))))
        .collect();
    rules.push(rule("app", 7, exe(&app)));

    let started = std::time::Instant::now();
    stage.apply(&rules);
    eprintln!("1024 rules in force after {:?}", started.elapsed());

    assert_eq!(mark_of(&app), mark(7));
    rules.push(rule("too-many", 7, exe(&app)));
    let kernel = stage.world.kernel();
    let error = stage.installed.apply(kernel, &rules, None).unwrap_err();
    assert!(error.to_string().contains("1025"), "{error}");
    assert_eq!(mark_of(&app), mark(7), "those before stay");
}
