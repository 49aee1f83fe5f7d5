//! Users other than root at the control socket: what each may ask for, and that none shuts out the others.
//!
//! A thread that gives up root is, for the kernel that tells the daemon who connects, another user.

use std::{
    io::{self, ErrorKind, Read as _, Write as _},
    os::unix::net::UnixStream,
    sync::Barrier,
    thread,
    time::Duration,
};

use lockne_core::api::{Explanation, Moved, Refusal, Status};
use lockne_lab::program;
use rustix::{process::Uid, thread::set_thread_res_uid};

use crate::{
    place::{Place, conf, wait_until},
    tests,
};

tests! { ROOTED:
    user_without_grants_may_only_look,
    user_is_told_that_a_dead_daemon_left_something_and_not_that_nothing_is_there,
    user_gets_what_is_granted_and_sees_only_his_own,
    configuration_says_who_may_what,
    process_that_only_partly_is_the_users_is_refused,
    process_in_another_network_namespace_is_refused,
    hooks_are_never_for_users,
    user_takes_down_only_what_he_brought_up,
    user_attaches_explains_and_detaches_only_what_is_wholly_his,
    by_name_a_user_gets_his_own_programs_and_those_of_them_that_are_his,
    thousand_idle_connections_of_one_user_shut_nobody_out,
    fifty_clients_at_once_each_get_what_they_asked_for,
}

pub(crate) const USER: u32 = 4242;
const OTHER: u32 = 4243;
/// Longer than the daemon's own patience of ten seconds.
const LONG: Duration = Duration::from_secs(20);

/// Does it as this user.
pub(crate) fn as_user<T: Send>(uid: u32, act: impl FnOnce() -> T + Send) -> T {
    thread::scope(|scope| {
        let user = scope.spawn(move || {
            let uid = Uid::from_raw(uid);
            set_thread_res_uid(uid, uid, uid).unwrap();
            act()
        });
        user.join().unwrap()
    })
}

fn connect(place: &Place) -> UnixStream {
    let stream = UnixStream::connect(place.socket()).unwrap();
    stream.set_read_timeout(Some(LONG)).unwrap();
    stream.set_write_timeout(Some(LONG)).unwrap();
    stream
}

/// The code of the answer, and its body.
fn ask(place: &Place, uid: u32, method: &str, path: &str, body: &str) -> (String, String) {
    try_ask(place, uid, method, path, body).unwrap()
}

/// The same, where the daemon may hang up.
fn try_ask(
    place: &Place,
    uid: u32,
    method: &str,
    path: &str,
    body: &str,
) -> io::Result<(String, String)> {
    let request = format!(
        "{method} {path} HTTP/1.1\r\nHost: lockne\r\nConnection: close\r\n\
         Content-Type: application/json\r\nContent-Length: {}\r\n\r\n{body}",
        body.len()
    );
    let answer = as_user(uid, || {
        let mut stream = connect(place);
        stream.write_all(request.as_bytes())?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer)?;
        Ok::<_, io::Error>(answer)
    })?;
    let (head, body) = answer.split_once("\r\n\r\n").expect("an HTTP answer");
    let code = head.split(' ').nth(1).unwrap().to_owned();
    Ok((code, body.to_owned()))
}

fn assert_refused(place: &Place, uid: u32, method: &str, path: &str, body: &str) -> String {
    let (code, answer) = ask(place, uid, method, path, body);
    assert_eq!(code, "403", "{method} {path} {body}: {answer}");
    let refusal: Refusal = serde_json::from_str(&answer).unwrap();
    assert!(refusal.hint.is_some(), "{refusal:?}");
    refusal.error
}

fn up(name: &str, lifetime: &str, hooks: bool) -> String {
    let config = serde_json::to_string(&conf()).unwrap();
    format!(
        r#"{{"name":"{name}","file":"/x","config":{config},"allow_hooks":{hooks},"lifetime":"{lifetime}"}}"#
    )
}

/// A lockne command of this user, run by a shell. The executable may lie where he cannot look.
fn lockne(place: &Place, uid: u32, script: &str) -> std::process::Command {
    let script = format!(
        "exec 7<'{}'; exec setpriv --reuid {uid} --regid {uid} --clear-groups -- sh -c '{script}'",
        env!("CARGO_BIN_EXE_lockne"),
    );
    let mut command = place.command("sh");
    command.args(["-c", &script]);
    command
}

fn user_is_told_that_a_dead_daemon_left_something_and_not_that_nothing_is_there() {
    let place = Place::new();
    place.open();
    place.daemon().kill();

    let output = lockne(&place, USER, "/proc/self/fd/7 explain $$")
        .output()
        .unwrap();

    let said = String::from_utf8_lossy(&output.stderr);
    assert!(!output.status.success(), "{said}");
    assert!(said.contains("this user cannot read"), "{said}");
    assert!(!said.contains("not active"), "{said}");
}

fn user_without_grants_may_only_look() {
    let place = Place::new();
    place.must(&["tunnel", "up", place.conf("work.conf").to_str().unwrap()]);
    place.open();

    for (method, path, body) in [
        (
            "POST",
            "/v1/run",
            r#"{"terms":{"action":"block"}}"#.to_owned(),
        ),
        (
            "POST",
            "/v1/run",
            r#"{"terms":{"action":"direct"}}"#.to_owned(),
        ),
        (
            "POST",
            "/v1/run",
            r#"{"terms":{"action":{"via":"work"}}}"#.to_owned(),
        ),
        (
            "POST",
            "/v1/run",
            r#"{"terms":{"action":{"via":"lo0"}}}"#.to_owned(),
        ),
        ("POST", "/v1/tunnels", up("own", "until-down", false)),
        ("GET", "/v1/tunnels/work", String::new()),
        ("DELETE", "/v1/tunnels/work", String::new()),
        ("POST", "/v1/attach", attach_body(r#"{"pid":1}"#)),
        ("POST", "/v1/down", String::new()),
    ] {
        assert_refused(&place, USER, method, path, &body);
    }
    let (_, status) = ask(&place, USER, "GET", "/v1/status", "");
    let status: Status = serde_json::from_str(&status).unwrap();
    assert!(status.policies.is_empty() && status.tunnels.is_empty());
    assert_eq!(ask(&place, USER, "GET", "/v1/tunnels", "").1, "[]");
    assert_eq!(ask(&place, 0, "GET", "/v1/tunnels/work", "").0, "200");
}

fn user_gets_what_is_granted_and_sees_only_his_own() {
    let place = Place::new();
    let _daemon = place.daemon_granting(
        r#"[{"users":[4242],"block":true,"via":["work"]},{"groups":[4243],"block":true}]"#,
    );
    place.must(&["tunnel", "up", place.conf("work.conf").to_str().unwrap()]);
    let start = |uid| {
        let mut command = lockne(
            &place,
            uid,
            "exec /proc/self/fd/7 run --block -- sleep 1000",
        );
        command.spawn().unwrap()
    };
    let mut children = [USER, OTHER].map(start);
    let status = |uid| -> Status {
        let (code, body) = ask(&place, uid, "GET", "/v1/status", "");
        assert_eq!(code, "200", "{body}");
        serde_json::from_str(&body).unwrap()
    };
    let processes = |status: &Status| -> Vec<u32> {
        let all = status.policies.iter().flat_map(|it| &it.processes);
        all.map(|process| process.pid).collect()
    };
    wait_until("both are policed", || processes(&status(0)).len() == 2);

    let seen = status(USER);
    assert_eq!(processes(&seen), [children[0].id()], "{seen:?}");
    let tunnels: Vec<_> = seen.tunnels.iter().map(|it| it.name.to_string()).collect();
    assert_eq!(tunnels, ["work"]);
    let seen = status(OTHER);
    assert_eq!(processes(&seen), [children[1].id()], "{seen:?}");
    assert!(seen.tunnels.is_empty(), "{seen:?}");
    // `--lan` was not granted, and takes no policy.
    let lan = r#"{"terms":{"action":{"via":"work"},"lan":["10.0.0.0/8"]}}"#;
    assert_refused(&place, USER, "POST", "/v1/run", lan);
    assert_eq!(status(0).policies.len(), 1);

    for child in &mut children {
        child.kill().unwrap();
        child.wait().unwrap();
    }
}

fn configuration_says_who_may_what() {
    let place = Place::new();
    let config = place.write("lockne.toml", "[block]\nusers = [4242]\n");
    let _daemon = place.daemon_configured(&config);
    let may = |uid| {
        let mut command = lockne(&place, uid, "exec /proc/self/fd/7 run --block -- true");
        command.status().unwrap().success()
    };
    assert!(may(USER) && !may(OTHER));

    place.write("lockne.toml", "[block]\nusers = [4243]\n");

    wait_until("the change is in force", || may(OTHER));
    assert!(!may(USER));
}

fn process_that_only_partly_is_the_users_is_refused() {
    let place = Place::new();
    let _daemon = place.daemon_granting(r#"[{"all":true,"block":true}]"#);
    // The thread is the user's, but its process is root's: so are those that execute a setuid program.
    let block = r#"{"terms":{"action":"block"}}"#;

    let error = assert_refused(&place, USER, "POST", "/v1/run", block);

    assert!(error.contains("is not wholly user 4242's own"), "{error}");
    let (_, status) = ask(&place, 0, "GET", "/v1/status", "");
    assert!(
        serde_json::from_str::<Status>(&status)
            .unwrap()
            .policies
            .is_empty()
    );
}

fn process_in_another_network_namespace_is_refused() {
    let place = Place::new();
    let _daemon = place.daemon();
    // This very process: it has not entered the namespace of the daemon.
    let block = r#"{"terms":{"action":"block"}}"#;

    let (code, answer) = ask(&place, 0, "POST", "/v1/run", block);

    assert_eq!(code, "422", "{answer}");
    assert!(answer.contains("in another network namespace"), "{answer}");
}

fn hooks_are_never_for_users() {
    let place = Place::new();
    let _daemon = place.daemon_granting(r#"[{"all":true,"tunnels":true}]"#);

    let error = assert_refused(
        &place,
        USER,
        "POST",
        "/v1/tunnels",
        &up("own", "until-down", true),
    );

    assert!(error.contains("root only"), "{error}");
    assert_eq!(ask(&place, 0, "GET", "/v1/tunnels", "").1, "[]");
}

fn user_takes_down_only_what_he_brought_up() {
    let place = Place::new();
    let _daemon = place.daemon_granting(r#"[{"users":[4242,4243],"tunnels":true}]"#);
    place.must(&["tunnel", "up", place.conf("roots.conf").to_str().unwrap()]);

    let (code, body) = ask(
        &place,
        USER,
        "POST",
        "/v1/tunnels",
        &up("own", "until-down", false),
    );
    assert_eq!(code, "200", "{body}");

    assert_eq!(ask(&place, USER, "GET", "/v1/tunnels/own", "").0, "200");
    assert_refused(&place, OTHER, "GET", "/v1/tunnels/own", "");
    assert_refused(&place, OTHER, "DELETE", "/v1/tunnels/own", "");
    assert_refused(
        &place,
        OTHER,
        "POST",
        "/v1/tunnels",
        &up("own", "until-down", false),
    );
    assert_refused(&place, USER, "DELETE", "/v1/tunnels/roots", "");
    assert_eq!(ask(&place, USER, "DELETE", "/v1/tunnels/own", "").0, "200");
}

/// A program that does nothing; it ends by itself if the test does not come that far.
struct Program(std::process::Child);

impl Program {
    /// As setpriv(1) makes it with these arguments.
    fn start(place: &Place, privileges: &str, program: &str) -> Self {
        let mut command = place.command("sh");
        let script = format!("{program} 100 & exec setpriv {privileges} {program} 100");
        let script = match privileges.strip_prefix("beside ") {
            Some(own) => script.replace(privileges, own),
            None => script.split_once("& ").unwrap().1.to_owned(),
        };
        let child = command.args(["-c", &script]).spawn().unwrap();
        let program = Self(child);
        wait_until("it has become what it is", || {
            let name = std::fs::read_to_string(format!("/proc/{}/comm", program.pid()));
            matches!(name.unwrap().trim_end(), "sleep" | "napper")
        });
        program
    }

    fn pid(&self) -> u32 {
        self.0.id()
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        drop(self.0.kill());
        drop(self.0.wait());
    }
}

fn attach_body(target: &str) -> String {
    format!(r#"{{"target":{target},"terms":{{"action":"block"}},"children":true}}"#)
}

fn user_attaches_explains_and_detaches_only_what_is_wholly_his() {
    let place = Place::new();
    let text = "[block]\nusers = \"all\"\n[attach]\nusers = [4242]\n";
    let config = place.write("lockne.toml", text);
    let _daemon = place.daemon_configured(&config);
    let own = Program::start(&place, "--reuid 4242 --regid 4242 --clear-groups", "sleep");
    let other = Program::start(&place, "--reuid 4243 --regid 4243 --clear-groups", "sleep");
    let partly = Program::start(&place, "--ruid 4242 --regid 4242 --clear-groups", "sleep");
    let attach = |pid| attach_body(&format!(r#"{{"pid":{pid}}}"#));
    let detach = |pid| format!(r#"{{"target":{{"pid":{pid}}},"children":true}}"#);
    let processes = || -> Vec<u32> {
        let status: Status =
            serde_json::from_str(&ask(&place, 0, "GET", "/v1/status", "").1).unwrap();
        let all = status.policies.iter().flat_map(|it| &it.processes);
        all.map(|process| process.pid).collect()
    };

    for stranger in [&other, &partly] {
        let body = attach(stranger.pid());
        let error = assert_refused(&place, USER, "POST", "/v1/attach", &body);
        assert!(error.contains("is not wholly user 4242's own"), "{error}");
        let path = format!("/v1/processes/{}", stranger.pid());
        assert_refused(&place, USER, "GET", &path, "");
    }
    let error = assert_refused(&place, OTHER, "POST", "/v1/attach", &attach(other.pid()));
    assert!(error.contains("may not put running programs"), "{error}");
    assert!(processes().is_empty());

    let (code, body) = ask(&place, USER, "POST", "/v1/attach", &attach(own.pid()));
    assert_eq!(code, "200", "{body}");
    assert_eq!(processes(), [own.pid()]);
    let path = format!("/v1/processes/{}", own.pid());
    let (code, body) = ask(&place, USER, "GET", &path, "");
    assert_eq!(code, "200", "{body}");
    assert!(
        serde_json::from_str::<Explanation>(&body)
            .unwrap()
            .policy
            .is_some()
    );
    assert_refused(&place, OTHER, "GET", &path, "");
    for uid in [USER, OTHER] {
        assert_refused(&place, uid, "POST", "/v1/detach", &detach(own.pid()));
    }
    assert_eq!(processes(), [own.pid()]);

    place.write("lockne.toml", &format!("{text}[switch]\nusers = [4242]\n"));
    wait_until("the change is in force", || {
        ask(&place, USER, "POST", "/v1/detach", &detach(own.pid())).0 == "200"
    });
    assert!(processes().is_empty());
}

fn by_name_a_user_gets_his_own_programs_and_those_of_them_that_are_his() {
    let place = Place::new();
    let _daemon = place.daemon_granting(r#"[{"users":[4242],"block":true,"attach":true}]"#);
    let program = place.path().join("napper");
    program::copy("/bin/sleep".as_ref(), &program).unwrap();
    let program = program.to_str().unwrap();
    let own = "--reuid 4242 --regid 4242 --clear-groups";
    let own_only = Program::start(&place, own, program);
    let with_child = Program::start(&place, &format!("beside {own}"), program);
    let _other = Program::start(&place, "--reuid 4243 --regid 4243 --clear-groups", program);

    let (code, body) = ask(
        &place,
        USER,
        "POST",
        "/v1/attach",
        &attach_body(r#"{"name":"napper"}"#),
    );

    assert_eq!(code, "200", "{body}");
    let moved: Moved = serde_json::from_str(&body).unwrap();
    let mut wanted = [own_only.pid(), with_child.pid()];
    wanted.sort_unstable();
    let pids: Vec<_> = moved.processes.iter().map(|it| it.pid).collect();
    assert_eq!(pids, wanted, "{moved:#?}");
    // Its child is root's: so are those that a setuid program makes.
    let told = "these descendants are not wholly yours, and stay as they are";
    assert!(
        moved.notices.iter().any(|it| it.starts_with(told)),
        "{moved:#?}"
    );
}

fn thousand_idle_connections_of_one_user_shut_nobody_out() {
    let place = Place::new();
    let _daemon = place.daemon_granting("[]");

    let idle: Vec<UnixStream> = as_user(USER, || {
        let mut idle = Vec::new();
        while idle.len() < 1000 {
            let mut stream = connect(&place);
            // Half a request, so that it would be waited for.
            let _turned_away = stream.write_all(b"GET /v1/status HTTP/1.1\r\n");
            idle.push(stream);
        }
        idle
    });

    for uid in [0, OTHER] {
        assert_eq!(ask(&place, uid, "GET", "/v1/status", "").0, "200");
    }
    let waited_for = idle.iter().filter(|stream| {
        stream.set_nonblocking(true).unwrap();
        let read = (&**stream).read(&mut [0]);
        read.is_err_and(|error| error.kind() == ErrorKind::WouldBlock)
    });
    assert!(waited_for.count() <= 64, "it holds more than its share");
    drop(idle);
    wait_until("the user is served again", || {
        try_ask(&place, USER, "GET", "/v1/status", "").is_ok_and(|answer| answer.0 == "200")
    });
}

fn fifty_clients_at_once_each_get_what_they_asked_for() {
    let place = Place::new();
    let _daemon = place.daemon_granting(
        r#"[{"all":true,"block":true},{"users":[4200,4201],"attach":true},{"users":[4200],"switch":true}]"#,
    );
    let programs: Vec<_> = (0..50_u32)
        .map(|number| {
            let uid = 4200 + number % 3;
            let own = format!("--reuid {uid} --regid {uid} --clear-groups");
            (number % 5 != 0).then(|| Program::start(&place, &own, "sleep"))
        })
        .collect();
    let all = Barrier::new(50);

    thread::scope(|scope| {
        let clients: Vec<_> = (0..50_u32)
            .zip(&programs)
            .map(|(number, program)| {
                let (place, all) = (&place, &all);
                scope.spawn(move || {
                    all.wait();
                    client(place, number, program.as_ref().map(Program::pid));
                })
            })
            .collect();
        for client in clients {
            client.join().unwrap();
        }
    });

    let (_, status) = ask(&place, 0, "GET", "/v1/status", "");
    let status: Status = serde_json::from_str(&status).unwrap();
    assert_eq!(status.policies.len(), 1, "the same terms are one policy");
    let processes = &status.policies[0].processes;
    let mut policed: Vec<_> = processes.iter().map(|process| process.pid).collect();
    let mut wanted: Vec<_> = (0..50_u32)
        .zip(&programs)
        .filter(|(number, _)| number % 5 == 1 && number % 3 != 2)
        .filter_map(|(_, program)| Some(program.as_ref()?.pid()))
        .collect();
    policed.sort_unstable();
    wanted.sort_unstable();
    assert_eq!(policed, wanted);
}

/// One of fifty: what it asks for, and what it must get.
fn client(place: &Place, number: u32, pid: Option<u32>) {
    let uid = 4200 + number % 3;
    let Some(pid) = pid else {
        let script = format!("exec /proc/self/fd/7 run --block -- sh -c \"exit {number}\"");
        let output = lockne(place, uid, &script).output().unwrap();
        assert_eq!(
            output.status.code(),
            i32::try_from(number).ok(),
            "{output:?}"
        );
        return;
    };
    let target = format!(r#"{{"pid":{pid}}}"#);
    let attach = || ask(place, uid, "POST", "/v1/attach", &attach_body(&target));
    let detach = format!(r#"{{"target":{target},"children":true}}"#);
    let detach = || ask(place, uid, "POST", "/v1/detach", &detach);
    match number % 5 {
        1 if uid == 4202 => assert_eq!(attach().0, "403"),
        1 => {
            let (code, body) = attach();
            assert_eq!(code, "200", "{body}");
            let moved: Moved = serde_json::from_str(&body).unwrap();
            let pids: Vec<_> = moved.processes.iter().map(|it| it.pid).collect();
            assert_eq!(pids, [pid]);
        }
        2 => {
            let (code, body) = ask(place, uid, "GET", "/v1/status", "");
            assert_eq!(code, "200", "{body}");
            let status: Status = serde_json::from_str(&body).unwrap();
            let all = status.policies.iter().flat_map(|it| &it.processes);
            for process in all {
                let owner = std::fs::metadata(format!("/proc/{}", process.pid));
                let owner = owner.map(|it| std::os::unix::fs::MetadataExt::uid(&it));
                // It may have ended meanwhile.
                assert!(
                    owner.is_err() || owner.is_ok_and(|it| it == uid),
                    "{status:?}"
                );
            }
        }
        3 => {
            let (code, body) = ask(place, uid, "GET", &format!("/v1/processes/{pid}"), "");
            assert_eq!(code, "200", "{body}");
            let explanation: Explanation = serde_json::from_str(&body).unwrap();
            assert_eq!((explanation.pid, explanation.uid), (pid, uid));
            assert!(explanation.policy.is_none());
        }
        _ if uid == 4200 => {
            assert_eq!(attach().0, "200");
            assert_eq!(detach().0, "200");
        }
        // It has no policy, or may not get one.
        _ => assert_ne!(detach().0, "200"),
    }
}
