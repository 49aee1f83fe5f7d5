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

use lockne_core::api::{Refusal, Status};
use rustix::{process::Uid, thread::set_thread_res_uid};

use crate::{
    place::{Place, conf, wait_until},
    tests,
};

tests! { ROOTED:
    user_without_grants_may_only_look,
    user_gets_what_is_granted_and_sees_only_his_own,
    configuration_says_who_may_what,
    process_that_only_partly_is_the_users_is_refused,
    process_in_another_network_namespace_is_refused,
    hooks_are_never_for_users,
    user_takes_down_only_what_he_brought_up,
    thousand_idle_connections_of_one_user_shut_nobody_out,
    fifty_clients_at_once_are_all_answered,
}

const USER: u32 = 4242;
const OTHER: u32 = 4243;
/// Longer than the daemon's own patience of ten seconds.
const LONG: Duration = Duration::from_secs(20);

/// Does it as this user.
fn as_user<T: Send>(uid: u32, act: impl FnOnce() -> T + Send) -> T {
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

fn fifty_clients_at_once_are_all_answered() {
    let place = Place::new();
    let _daemon = place.daemon_granting(r#"[{"all":true,"block":true}]"#);
    let all = Barrier::new(50);

    thread::scope(|scope| {
        let clients: Vec<_> = (0..50)
            .map(|number| {
                let (place, all) = (&place, &all);
                scope.spawn(move || {
                    let script = "exec /proc/self/fd/7 run --block -- true";
                    let mut command = lockne(place, 4200 + number % 3, script);
                    all.wait();
                    command.output().unwrap()
                })
            })
            .collect();
        for client in clients {
            let output = client.join().unwrap();
            assert!(output.status.success(), "{output:?}");
        }
    });

    let (_, status) = ask(&place, 0, "GET", "/v1/status", "");
    let status: Status = serde_json::from_str(&status).unwrap();
    assert_eq!(status.policies.len(), 1, "the same terms are one policy");
}
