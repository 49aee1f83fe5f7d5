//! `sched_process_exec`: rules, decided before the first instruction.

use std::{
    fs,
    io::{BufRead as _, BufReader, Write as _},
    net::SocketAddr,
    os::unix::{
        fs::{MetadataExt as _, PermissionsExt as _},
        process::CommandExt as _,
    },
    path::{Path, PathBuf},
    process::{Command, Stdio},
    thread,
};

use lockne_core::rule::{Match, User};
use lockne_daemon::kernel::Kernel;
use lockne_lab::program;

use self::running::{
    changed_rule_takes_its_children_along, fallback_is_for_those_that_nobody_named,
    rules_are_replaced_as_a_whole, rules_outlive_the_daemon,
    running_programs_and_their_children_are_found, thousand_rules_are_in_force_quickly,
};
use crate::{
    probe::Probe,
    sender,
    stage::{Group, Groups, Stage, copy_to, exe, mark_of, marked, own_mounts, rule},
    tests,
    world::{id, mark},
};

mod running;

tests! {
    ten_thousand_starts_never_send_past_their_rule,
    file_is_meant_and_not_its_name,
    file_that_an_update_puts_in_its_place_is_known_at_once,
    directory_that_is_replaced_is_seen,
    inode_of_a_file_that_was_replaced_is_forgotten,
    number_of_an_executable_that_was_replaced_is_nobody_elses,
    same_inode_on_another_device_is_another_file,
    program_in_memory_is_named_by_no_rule,
    first_rule_that_matches_decides,
    every_condition_must_hold,
    cgroup_is_found_by_path_by_unit_and_by_application,
    policed_program_keeps_its_policy_over_exec_and_between_cgroups,
    choice_by_hand_beats_every_rule,
    script_is_told_by_interpreter_and_name,
    exec_by_a_thread_is_decided_for_the_process,
    setuid_program_is_judged_by_the_real_user,
    running_programs_and_their_children_are_found,
    fallback_is_for_those_that_nobody_named,
    changed_rule_takes_its_children_along,
    rules_are_replaced_as_a_whole,
    rules_outlive_the_daemon,
    thousand_rules_are_in_force_quickly,
}

fn ten_thousand_starts_never_send_past_their_rule() {
    const STARTS: usize = 10_000;
    const AT_ONCE: usize = 3;
    let mut stage = Stage::new();
    let policy = stage.world.tunnel_policy(7);
    let (SocketAddr::V4(wan), SocketAddr::V4(tun)) = (stage.world.wan.far4, stage.world.tun.far4)
    else {
        panic!("these are of IPv4")
    };
    let [ruled, tunnelled, free] = ["ruled", "tunnelled", "free"].map(|name| stage.path(name));
    sender::put(&ruled, wan);
    sender::put(&tunnelled, tun);
    sender::put(&free, wan);
    stage.apply(&[rule("a", 7, exe(&ruled)), rule("b", 7, exe(&tunnelled))]);
    for path in [&free, &tunnelled] {
        assert!(Command::new(path).status().unwrap().success());
    }
    assert_eq!(stage.world.arrived(), vec![sender::TEXT.to_vec(); 2]);

    thread::scope(|scope| {
        for part in 0..AT_ONCE {
            let ruled = &ruled;
            scope.spawn(move || {
                for _ in (part..STARTS).step_by(AT_ONCE) {
                    assert!(Command::new(ruled).status().unwrap().success());
                }
            });
        }
    });

    assert_eq!(stage.world.arrived(), Vec::<Vec<u8>>::new());
    let counted = stage.world.kernel().counters(policy).unwrap();
    // Where starts can be missed, such a program does not even get a socket.
    let missed = STARTS as u64 - counted.refused;
    assert!(
        missed == 0 || crate::missed() > 0 && missed < 100,
        "{missed}"
    );
    assert_eq!(stage.world.kernel().members(policy), 0);
}

fn file_is_meant_and_not_its_name() {
    let mut stage = Stage::new();
    let app = stage.copy("app");
    let [link, hard, copy] = ["link", "hard", "copy"].map(|name| stage.path(name));
    std::os::unix::fs::symlink(&app, &link).unwrap();
    fs::hard_link(&app, &hard).unwrap();
    copy_to(&copy);
    fs::create_dir(stage.path("elsewhere")).unwrap();
    let namesake = stage.copy("elsewhere/app");

    stage.apply(&[rule("app", 7, exe(&link))]);

    for path in [&app, &link, &hard] {
        assert_eq!(mark_of(path), mark(7), "{}", path.display());
    }
    for path in [&copy, &namesake] {
        assert_eq!(mark_of(path), mark(0), "{}", path.display());
    }
    assert_eq!(marked(Command::new(&copy).arg0("app")), mark(0));
    assert_eq!(marked(Command::new(&app).arg0("copy")), mark(7));
}

fn file_that_an_update_puts_in_its_place_is_known_at_once() {
    let mut stage = Stage::new();
    let app = stage.copy("app");
    stage.apply(&[
        rule("app", 7, exe(&app)),
        rule("later", 8, exe(&stage.path("later"))),
    ]);

    // Nobody tells the daemon, and nobody waits for it.
    let next = stage.copy("app.next");
    assert_eq!(mark_of(&next), mark(0));
    for _ in 0..5 {
        let next = stage.copy("app.next");
        fs::rename(&next, &app).unwrap();
        assert_eq!(mark_of(&app), mark(7));
    }
    let later = stage.copy("later");
    assert_eq!(mark_of(&later), mark(8), "installed after its rule");
}

fn directory_that_is_replaced_is_seen() {
    let mut stage = Stage::new();
    for version in ["v1", "v2"] {
        fs::create_dir(stage.path(version)).unwrap();
        stage.copy(&format!("{version}/app"));
    }
    let current = stage.path("current");
    std::os::unix::fs::symlink("v1", &current).unwrap();
    let outcome = stage.apply(&[
        rule("app", 7, exe(&current.join("app"))),
        rule("new", 8, exe(&stage.path("new/app"))),
    ]);
    assert_eq!(outcome.missing.len(), 1);
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    let unseen = std::time::Duration::from_secs(20);
    let wait = |stage: &mut Stage| {
        let changed = async { tokio::time::timeout(unseen, stage.installed.changed()).await };
        runtime.block_on(changed).expect("the change is seen");
        stage.installed.refresh(stage.world.kernel()).unwrap()
    };

    std::os::unix::fs::symlink("v2", stage.path("next")).unwrap();
    fs::rename(stage.path("next"), &current).unwrap();
    wait(&mut stage);
    assert_eq!(mark_of(&stage.path("v2/app")), mark(7));
    assert_eq!(mark_of(&stage.path("v1/app")), mark(0));

    fs::create_dir(stage.path("made")).unwrap();
    stage.copy("made/app");
    fs::rename(stage.path("made"), stage.path("new")).unwrap();
    let outcome = wait(&mut stage);
    assert_eq!(outcome.missing, []);
    assert_eq!(mark_of(&stage.path("new/app")), mark(8));
}

/// The number of an inode can become another file's; a second name keeps this one for the test.
fn inode_of_a_file_that_was_replaced_is_forgotten() {
    let mut stage = Stage::new();
    let app = stage.copy("app");
    let inherits = stage.path("inherits-the-inode");
    fs::hard_link(&app, &inherits).unwrap();
    stage.apply(&[rule("app", 7, exe(&app))]);
    let next = stage.copy("app.next");

    fs::rename(&next, &app).unwrap();

    // Until the daemon has looked: what the contract says is open.
    assert_eq!(mark_of(&inherits), mark(7));
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    let unseen = std::time::Duration::from_secs(20);
    let changed = async { tokio::time::timeout(unseen, stage.installed.changed()).await };
    runtime.block_on(changed).expect("the change is seen");
    stage.installed.refresh(stage.world.kernel()).unwrap();
    assert_eq!(mark_of(&inherits), mark(0));
    assert_eq!(mark_of(&app), mark(7));
}

fn number_of_an_executable_that_was_replaced_is_nobody_elses() {
    let mut stage = Stage::new();
    let app = stage.copy("app");
    stage.apply(&[rule("app", 7, exe(&app))]);
    let number = app.metadata().unwrap().ino();

    fs::remove_file(&app).unwrap();

    // File systems give a number that is free to the next one.
    for round in 0..100 {
        let other = stage.path(&format!("other{round}"));
        fs::write(&other, "").unwrap();
        assert_ne!(other.metadata().unwrap().ino(), number);
    }
}

fn same_inode_on_another_device_is_another_file() {
    own_mounts();
    let mut stage = Stage::new();
    let [one, two] = ["one", "two"].map(|name| {
        let directory = stage.path(name);
        fs::create_dir(&directory).unwrap();
        let flags = rustix::mount::MountFlags::empty();
        rustix::mount::mount("tmpfs", &directory, "tmpfs", flags, c"").unwrap();
        let app = directory.join("app");
        copy_to(&app);
        let inode = app.metadata().unwrap().ino();
        (app, inode)
    });
    assert_eq!(one.1, two.1);

    stage.apply(&[rule("one", 7, exe(&one.0))]);

    assert_eq!(mark_of(&one.0), mark(7));
    assert_eq!(mark_of(&two.0), mark(0));
    for name in ["one", "two"] {
        let flags = rustix::mount::UnmountFlags::DETACH;
        rustix::mount::unmount(stage.path(name), flags).unwrap();
    }
}

fn program_in_memory_is_named_by_no_rule() {
    let mut stage = Stage::new();
    let app = stage.copy("app");
    let memory = rustix::fs::memfd_create("app", rustix::fs::MemfdFlags::empty()).unwrap();
    let mut memory = fs::File::from(memory);
    memory.write_all(&fs::read(&app).unwrap()).unwrap();
    let fd = std::os::fd::AsRawFd::as_raw_fd(&memory);
    let path = PathBuf::from(format!("/proc/self/fd/{fd}"));

    stage.apply(&[rule("app", 7, exe(&app))]);

    assert_eq!(mark_of(&path), mark(0));
    // But a program of a rule does not get away by it.
    let shell = stage.path("shell");
    program::copy("/bin/sh".as_ref(), &shell).unwrap();
    stage.apply(&[rule("shell", 7, exe(&shell))]);
    let script = format!("exec {} probe", path.display());
    assert_eq!(marked(Command::new(&shell).args(["-c", &script])), mark(7));
}

fn first_rule_that_matches_decides() {
    let mut stage = Stage::new();
    let (app, other) = (stage.copy("app"), stage.copy("other"));
    let everyone = Match {
        user: Some(User::Id(0)),
        ..exe(&other)
    };

    stage.apply(&[
        rule("a", 8, exe(&app)),
        rule("b", 7, exe(&app)),
        rule("c", 9, everyone),
    ]);
    assert_eq!((mark_of(&app), mark_of(&other)), (mark(8), mark(9)));

    // Across words of bits, too.
    let mut many: Vec<_> = (0..200)
        .map(|n| rule(&format!("x{n}"), 9, exe(&stage.path(&format!("no-{n}")))))
        .collect();
    many.push(rule("b", 7, exe(&app)));
    many.push(rule("a", 8, exe(&app)));
    stage.apply(&many);
    assert_eq!((mark_of(&app), mark_of(&other)), (mark(7), mark(0)));
}

fn every_condition_must_hold() {
    let mut stage = Stage::new();
    let (app, other) = (stage.copy("app"), stage.copy("other"));
    let nobody = Match {
        user: Some(User::Id(65534)),
        ..exe(&app)
    };
    let root = Match {
        user: Some(User::Name("root".into())),
        ..exe(&app)
    };

    stage.apply(&[rule("nobody", 7, nobody), rule("root", 8, root)]);

    let as_nobody = |path: &Path| marked(Command::new(path).uid(65534).gid(65534));
    assert_eq!((as_nobody(&app), as_nobody(&other)), (mark(7), mark(0)));
    assert_eq!((mark_of(&app), mark_of(&other)), (mark(8), mark(0)));
}

fn cgroup_is_found_by_path_by_unit_and_by_application() {
    let groups = Groups::new();
    let mut stage = Stage::new();
    let app = stage.copy("app");
    let top = Group::name();
    let path = Match {
        cgroup: Some(format!("/{top}/path").into()),
        ..exe(&app)
    };
    let unit = Match {
        unit: Some(format!("{top}.service")),
        ..exe(&app)
    };
    let flatpak = Match {
        flatpak: Some("org.example.my-app".to_owned()),
        ..exe(&app)
    };
    let snap = Match {
        snap: Some("example".to_owned()),
        ..exe(&app)
    };

    // None of the cgroups is there yet.
    stage.apply(&[
        rule("path", 7, path),
        rule("unit", 8, unit),
        rule("flatpak", 9, flatpak),
        rule("snap", 7, snap),
    ]);

    let base = groups.make(&top);
    let below = |name: &str| groups.make(&format!("{top}/{name}"));
    let (named, other) = (below("path"), below("other"));
    let deep = below("path/deep");
    let namesake = below("other/path");
    let service = below(&format!("{top}.service"));
    let scope = below(r"app-flatpak-org.example.my\x2dapp-4711.scope");
    let foreign = below(r"app-flatpak-org.example.my\x2dapp2-4711.scope");
    let snap = below("snap.example.tool-1b2c.scope");
    for (group, wanted) in [
        (&base, 0),
        (&named, 7),
        (&deep, 7),
        (&other, 0),
        (&namesake, 0),
        (&service, 8),
        (&scope, 9),
        (&foreign, 0),
        (&snap, 7),
    ] {
        // The second time, the kernel remembers.
        for _ in 0..2 {
            assert_eq!(group.mark_of(&app), mark(wanted), "{}", group.0.display());
        }
    }
    drop((deep, namesake));
    drop((named, other, service, scope, foreign, snap));
    drop(base);
}

fn policed_program_keeps_its_policy_over_exec_and_between_cgroups() {
    let groups = Groups::new();
    let mut stage = Stage::new();
    let shell = stage.path("shell");
    program::copy("/bin/sh".as_ref(), &shell).unwrap();
    let (named, unnamed) = (stage.copy("named"), stage.copy("unnamed"));
    let away = groups.make(&Group::name());
    stage.apply(&[rule("shell", 7, exe(&shell)), rule("named", 8, exe(&named))]);

    let by_shell = |script: &str, program: &Path| {
        marked(Command::new(&shell).args(["-c", script]).arg(program))
    };
    let exec = "exec \"$0\" \"$@\"";
    let fork = "\"$0\" \"$@\"; true";
    let moved = format!("echo 0 > '{}/cgroup.procs'; {exec}", away.0.display());
    for script in [exec, fork, &moved] {
        assert_eq!(by_shell(script, &unnamed), mark(7), "{script}");
        assert_eq!(by_shell(script, &named), mark(8), "{script}");
    }
}

fn choice_by_hand_beats_every_rule() {
    let mut stage = Stage::new();
    let shell = stage.path("shell");
    program::copy("/bin/sh".as_ref(), &shell).unwrap();
    let app = stage.copy("app");
    stage.apply(&[rule("app", 7, exe(&app)), rule("shell", 7, exe(&shell))]);
    let kernel = stage.world.kernel();
    let mut ask = |choose: &dyn Fn(&mut Kernel, u32)| {
        // Waits for a line, so that it is chosen before it goes on.
        let script = "read go; \"$0\" probe; exec \"$0\" probe";
        let mut child = Command::new(&shell)
            .args(["-c", script])
            .arg(&app)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        choose(kernel, child.id());
        let mut input = child.stdin.take().unwrap();
        let mut answers = BufReader::new(child.stdout.take().unwrap()).lines();
        let mut answer = |input: &mut std::process::ChildStdin, line: &[u8]| {
            input.write_all(line).unwrap();
            answers.next().unwrap().unwrap()
        };
        assert_eq!(answer(&mut input, b"go\nsocket udp4\n"), "ok");
        let of_child = answer(&mut input, b"mark\n");
        input.write_all(b"end\n").unwrap();
        // The child ends, and the shell becomes the program.
        let link = format!("/proc/{}/exe", child.id());
        // In the middle of an exec there is none.
        while fs::read_link(&link).ok().as_ref() != Some(&app) {
            thread::yield_now();
        }
        assert_eq!(answer(&mut input, b"socket udp4\n"), "ok");
        let own = answer(&mut input, b"mark\n");
        drop(input);
        child.wait().unwrap();
        (of_child, own)
    };

    let by_hand = ask(&|kernel, pid| kernel.set_process(pid, Some(id(9))).unwrap());
    let exempt = ask(&|kernel, pid| kernel.exempt(pid).unwrap());
    let by_rule = ask(&|_, _| {});

    assert_eq!(by_hand, (mark(9), mark(9)));
    assert_eq!(exempt, (mark(0), mark(0)));
    assert_eq!(by_rule, (mark(7), mark(7)));
}

fn script_is_told_by_interpreter_and_name() {
    let mut stage = Stage::new();
    let interpreter = stage.copy("interpreter");
    let text = format!("#!{}\n", interpreter.display());
    let [script, other] = ["script", "other"].map(|name| {
        let path = stage.path(name);
        program::write(&path, text.as_bytes()).unwrap();
        path
    });
    let matches = Match {
        script: true,
        ..exe(&script)
    };
    let outcome = stage.apply(&[rule("script", 7, matches), rule("plain", 8, exe(&other))]);
    let what: Vec<_> = outcome.missing.iter().map(|it| it.what.as_str()).collect();
    assert!(
        matches!(what[..], [only] if only.contains("`script = true`")),
        "{what:?}"
    );

    // The interpreter gets the script's path for its first word, where it wants `probe`.
    let run = |command: &mut Command| {
        let output = command.stdin(Stdio::null()).output().unwrap();
        String::from_utf8(output.stdout).unwrap().trim().to_owned()
    };
    assert_eq!(run(Command::new(&script).arg("mark-first")), mark(7));
    let here = Command::new("./script")
        .current_dir(script.parent().unwrap())
        .arg("mark-first")
        .stdin(Stdio::null())
        .output()
        .unwrap();
    assert_eq!(String::from_utf8_lossy(&here.stdout).trim(), mark(7));
    assert_eq!(run(Command::new(&other).arg("mark-first")), mark(0));
    assert_eq!(mark_of(&interpreter), mark(0), "the interpreter by itself");
}

fn exec_by_a_thread_is_decided_for_the_process() {
    let mut stage = Stage::new();
    let app = stage.copy("app");
    stage.apply(&[rule("app", 7, exe(&app))]);
    let mut probe = Probe::start();
    assert_eq!(probe.mark_of("udp4"), mark(0));

    // Its commands are run by a thread which is not the first.
    probe.tell(&format!("exec {}", app.display()));
    let link = format!("/proc/{}/exe", probe.pid());
    // In the middle of an exec there is none.
    while fs::read_link(&link).ok().as_ref() != Some(&app) {
        thread::yield_now();
    }

    assert_eq!(probe.mark_of("udp4"), mark(7));
    assert_eq!(stage.world.kernel().processes(id(7)), [probe.pid()]);
}

fn setuid_program_is_judged_by_the_real_user() {
    let mut stage = Stage::new();
    let app = stage.copy("app");
    fs::set_permissions(&app, fs::Permissions::from_mode(0o4755)).unwrap();
    let user = |id| Match {
        user: Some(User::Id(id)),
        ..exe(&app)
    };

    stage.apply(&[rule("root", 8, user(0)), rule("nobody", 7, user(65534))]);

    assert_eq!(marked(Command::new(&app).uid(65534)), mark(7));
}
