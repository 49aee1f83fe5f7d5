//! The control socket outlives every client, however it behaves.

use std::{
    io::{Read as _, Write as _},
    os::unix::net::UnixStream,
    thread,
    time::{Duration, Instant},
};

use lockne_core::api::{Refusal, Status};
use rustix::{process::Uid, thread::set_thread_res_uid};

use crate::{place::Place, tests};

tests! { ROOTED:
    garbage_is_survived,
    garbage_of_root_and_of_users_at_once_costs_no_memory_and_keeps_nobody_waiting,
    idle_clients_keep_nobody_waiting_and_are_dropped,
    body_that_is_too_large_is_refused,
    half_a_body_is_dropped,
    what_a_request_does_not_take_is_refused,
    what_there_is_not_is_refused_as_json,
}

/// Longer than the daemon's own patience of ten seconds.
const LONG: Duration = Duration::from_secs(20);
const PROMPT: Duration = Duration::from_secs(8);

fn connect(place: &Place) -> UnixStream {
    let stream = UnixStream::connect(place.socket()).unwrap();
    stream.set_read_timeout(Some(LONG)).unwrap();
    stream.set_write_timeout(Some(LONG)).unwrap();
    stream
}

/// Sends bytes and returns what comes back. The daemon may hang up at any time.
fn send(place: &Place, bytes: &[u8]) -> String {
    let mut stream = connect(place);
    let _hung_up = stream.write_all(bytes);
    let mut answer = Vec::new();
    let _hung_up = stream.read_to_end(&mut answer);
    String::from_utf8_lossy(&answer).into_owned()
}

/// Sends bytes and ends, without waiting for what comes back.
fn offer(place: &Place, bytes: &[u8]) {
    let mut stream = connect(place);
    let _hung_up = stream.write_all(bytes);
}

fn request(method: &str, path: &str, body: &str) -> String {
    format!(
        "{method} {path} HTTP/1.1\r\nHost: lockne\r\nConnection: close\r\n\
         Content-Type: application/json\r\nContent-Length: {}\r\n\r\n{body}",
        body.len()
    )
}

/// The status line and the body.
fn ask(place: &Place, method: &str, path: &str, body: &str) -> (String, String) {
    let answer = send(place, request(method, path, body).as_bytes());
    let (head, body) = answer.split_once("\r\n\r\n").expect("an HTTP answer");
    (head.lines().next().unwrap().to_owned(), body.to_owned())
}

fn assert_serves(place: &Place) -> Status {
    let started = Instant::now();
    let (head, body) = ask(place, "GET", "/v1/status", "");
    assert!(head.contains("200"), "{head}");
    assert!(started.elapsed() < PROMPT, "slow: {:?}", started.elapsed());
    serde_json::from_str(&body).unwrap()
}

fn assert_refused(place: &Place, method: &str, path: &str, body: &str) -> Refusal {
    let (head, answer) = ask(place, method, path, body);
    assert!(
        head.starts_with("HTTP/1.1 4"),
        "{method} {path} {body}: {head}"
    );
    serde_json::from_str(&answer)
        .unwrap_or_else(|error| panic!("{method} {path}: {error}: {answer}"))
}

fn garbage_is_survived() {
    let place = Place::new();
    let daemon = place.daemon();
    // xorshift64: the same bytes in every run.
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    let mut random = move || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state
    };

    for _ in 0..200 {
        let length = usize::try_from(random() % 600).unwrap();
        let bytes: Vec<u8> = (0..length).map(|_| random().to_le_bytes()[3]).collect();
        offer(&place, &bytes);
        // And a request that is right, broken off or changed somewhere.
        let mut bytes = request("POST", "/v1/run", r#"{"terms":{"action":"block"}"#).into_bytes();
        let at = usize::try_from(random()).unwrap() % bytes.len();
        bytes[at] = random().to_le_bytes()[0];
        bytes.truncate(bytes.len() - usize::try_from(random() % 20).unwrap());
        offer(&place, &bytes);
    }

    let status = assert_serves(&place);
    assert!(status.policies.is_empty(), "{status:?}");
    assert!(matches!(
        status.daemon,
        lockne_core::api::DaemonStatus::Running { pid, .. } if pid == daemon.pid()
    ));
}

/// Requests that are right but for the end of their bodies: none is granted.
const TEMPLATES: &[(&str, &str, &str)] = &[
    ("GET", "/v1/status", ""),
    ("GET", "/v1/tunnels", ""),
    ("GET", "/v1/tunnels/work", ""),
    ("DELETE", "/v1/tunnels/work", ""),
    ("GET", "/v1/processes/1", ""),
    (
        "POST",
        "/v1/run",
        r#"{"terms":{"action":{"via":"a"},"or":["b"],"lan":["::/0"]}"#,
    ),
    (
        "POST",
        "/v1/attach",
        r#"{"target":{"pid":0},"terms":{"action":"block"},"children":true"#,
    ),
    (
        "POST",
        "/v1/detach",
        r#"{"target":{"name":"?"},"children":false"#,
    ),
    (
        "POST",
        "/v1/tunnels",
        r#"{"name":"a","file":"/a","config":"","allow_hooks":true"#,
    ),
];

/// Changes some bytes, and now and then doubles, cuts or swells the whole.
fn mutated(random: &mut impl FnMut() -> u64) -> Vec<u8> {
    let mut below = |end: usize| usize::try_from(random() >> 8).unwrap() % end;
    let (method, path, body) = TEMPLATES[below(TEMPLATES.len())];
    let mut bytes = request(method, path, body).into_bytes();
    for _ in 0..below(6) {
        let at = below(bytes.len());
        bytes[at] = u8::try_from(below(256)).unwrap();
    }
    match below(8) {
        0 => bytes.truncate(below(bytes.len())),
        1 => bytes.extend_from_within(..),
        2 => {
            let at = below(bytes.len());
            let more = vec![bytes[at]; 1 << below(18)];
            bytes.splice(at..at, more);
        }
        _ => {}
    }
    bytes
}

/// Kilobytes of memory that a process has.
fn resident(pid: u32) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    let kilobytes = line.unwrap().trim().trim_end_matches(" kB");
    kilobytes.parse().unwrap()
}

fn garbage_of_root_and_of_users_at_once_costs_no_memory_and_keeps_nobody_waiting() {
    const SEED: u64 = 0x5eed_1057_2026_0001;
    const MOST: u64 = 32 << 10;
    eprintln!("seed {SEED:#x}");
    let place = Place::new();
    let daemon = place.daemon();
    let hammer = |uid: u32, round: u64| {
        let mut state = SEED ^ (u64::from(uid) << 32) ^ (round << 16);
        let mut random = move || {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            state
        };
        // For this thread only; the daemon is told by the kernel.
        let user = Uid::from_raw(uid);
        set_thread_res_uid(user, user, user).unwrap();
        for _ in 0..500 {
            offer(&place, &mutated(&mut random));
        }
    };
    let round = |round: u64| {
        thread::scope(|scope| {
            let hammers = [0, 4242, 4243].map(|uid| scope.spawn(move || hammer(uid, round)));
            while !hammers.iter().all(thread::ScopedJoinHandle::is_finished) {
                let (head, _) = ask(&place, "GET", "/v1/status", "");
                assert!(head.contains("200"), "{head}");
            }
            for hammer in hammers {
                hammer.join().unwrap();
            }
        });
    };

    // What it needs for many clients at once it needs once.
    round(0);
    let before = resident(daemon.pid());
    (1..4).for_each(round);

    let after = resident(daemon.pid());
    assert!(after < before + MOST, "{before} kB grew to {after} kB");
    let status = assert_serves(&place);
    assert!(status.policies.is_empty(), "{status:?}");
    assert!(status.tunnels.is_empty(), "{status:?}");
}

fn idle_clients_keep_nobody_waiting_and_are_dropped() {
    let place = Place::new();
    let _daemon = place.daemon();

    let mut idle: Vec<UnixStream> = (0..200).map(|_| connect(&place)).collect();
    for (number, stream) in idle.iter_mut().enumerate() {
        // Silent from the start, in the middle of the head, and after a request.
        match number % 3 {
            0 => {}
            1 => stream
                .write_all(b"GET /v1/status HTTP/1.1\r\nHost")
                .unwrap(),
            _ => stream
                .write_all(b"GET /v1/tunnels HTTP/1.1\r\nHost: lockne\r\n\r\n")
                .unwrap(),
        }
    }

    assert_serves(&place);
    for mut stream in idle {
        let mut answer = Vec::new();
        match stream.read_to_end(&mut answer) {
            Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => panic!("still there"),
            _ => {}
        }
    }
}

fn body_that_is_too_large_is_refused() {
    let place = Place::new();
    let _daemon = place.daemon();
    // Right in every way but its size.
    let large = r#"{"terms":{"action":"block"}}"#.to_owned() + &" ".repeat(3 << 20);

    let answer = send(&place, request("POST", "/v1/run", &large).as_bytes());

    assert!(
        answer.is_empty() || answer.starts_with("HTTP/1.1 4"),
        "{answer}"
    );
    assert!(assert_serves(&place).policies.is_empty());
}

fn half_a_body_is_dropped() {
    let place = Place::new();
    let _daemon = place.daemon();
    let mut stream = connect(&place);
    let half = "POST /v1/run HTTP/1.1\r\nHost: lockne\r\nConnection: close\r\n\
                Content-Type: application/json\r\nContent-Length: 50\r\n\r\n{\"terms\":";
    stream.write_all(half.as_bytes()).unwrap();

    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();

    assert!(answer.starts_with("HTTP/1.1 400"), "{answer}");
    assert!(assert_serves(&place).policies.is_empty());
}

fn what_a_request_does_not_take_is_refused() {
    let place = Place::new();
    let _daemon = place.daemon();

    for body in [
        "",
        "null",
        "[]",
        "{",
        r#"{"terms":{"action":"block"},"user":0}"#,
        r#"{"terms":{"action":"block","lann":["10.0.0.0/8"]}}"#,
        r#"{"terms":{"action":"allow"}}"#,
        r#"{"terms":{"action":{"via":"../../etc"}}}"#,
        r#"{"terms":{"action":{"via":"lo"}}}"#,
        r#"{"terms":{"action":"block","lan":["10.0.0.0/33"]}}"#,
    ] {
        assert_refused(&place, "POST", "/v1/run", body);
    }
    let tunnel =
        r#"{"name":"a","file":"/a","config":"","allow_hooks":false,"lifetime":"until-down"#;
    assert_refused(&place, "POST", "/v1/tunnels", &format!("{tunnel}\"}}"));
    assert_refused(
        &place,
        "POST",
        "/v1/tunnels",
        &format!("{tunnel}\",\"x\":1}}"),
    );

    assert!(assert_serves(&place).policies.is_empty());
}

fn what_there_is_not_is_refused_as_json() {
    let place = Place::new();
    let _daemon = place.daemon();

    for (method, path) in [
        ("GET", "/"),
        ("GET", "/v2/status"),
        ("GET", "/v1/status/"),
        ("POST", "/v1/status"),
        ("PUT", "/v1/tunnels"),
        ("GET", "/v1/run"),
        ("GET", "/v1/down"),
        ("BREW", "/v1/coffee"),
        ("GET", "/v1/tunnels/nothing"),
        ("DELETE", "/v1/tunnels/nothing"),
        ("GET", "/v1/tunnels/%2e%2e%2f"),
        ("GET", "/v1/tunnels/%ff"),
    ] {
        let refusal = assert_refused(&place, method, path, "");
        assert!(!refusal.error.is_empty(), "{method} {path}");
    }
    assert_serves(&place);
}
