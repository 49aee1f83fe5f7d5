//! The units in `packaging/systemd`, as far as they can be tried where systemd is not the first process.

use std::{
    fs,
    io::{Read as _, Write as _},
    os::unix::{fs::PermissionsExt as _, net::UnixStream},
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use crate::{
    place::{Place, wait_until},
    tests,
    user::{USER, as_user},
};

tests! { ROOTED:
    units_are_understood_by_systemd,
    exposure_of_the_service_is_low,
    service_is_ready_before_the_network_is_brought_up,
    socket_of_a_service_manager_is_served_and_stays,
    clients_of_a_service_manager_are_told_why_the_daemon_cannot_start,
    service_manager_hears_that_the_daemon_is_ready_lives_and_ends,
}

fn unit(name: &str) -> PathBuf {
    let packaging = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../packaging/systemd");
    packaging.join(name)
}

fn units_are_understood_by_systemd() {
    let place = Place::anywhere();
    for name in ["lockne.service", "lockne.socket", "run-lockne-bpf.mount"] {
        let text = fs::read_to_string(unit(name)).unwrap();
        // It looks for the executable too.
        let text = text.replace("/usr/bin/lockne", env!("CARGO_BIN_EXE_lockne"));
        let text = text.replace("Documentation=man:lockne(1)\n", "");
        place.write(name, &text);
    }

    let output = Command::new("systemd-analyze")
        .args(["verify", "--recursive-errors=no", "--man=no"])
        .arg(place.path().join("lockne.service"))
        .env("SYSTEMD_UNIT_PATH", format!("{}:", place.path().display()))
        .output()
        .unwrap();

    let said = String::from_utf8_lossy(&output.stderr);
    let ours: Vec<&str> = said.lines().filter(|it| it.contains("lockne")).collect();
    assert!(ours.is_empty(), "{said}");
}

fn exposure_of_the_service_is_low() {
    // `attach` takes sockets (pidfd_getfd, 0.2), and names are answered at low ports (0.1).
    let output = Command::new("systemd-analyze")
        .args(["security", "--offline=true", "--threshold=24"])
        .arg(unit("lockne.service"))
        .output()
        .unwrap();

    assert!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&output.stdout)
    );
}

/// What brings networks up is ordered behind the target, as systemd.special(7) says, and that behind what the
/// service says itself.
fn service_is_ready_before_the_network_is_brought_up() {
    let text = fs::read_to_string(unit("lockne.service")).unwrap();

    for line in [
        "Before=network-pre.target",
        "Wants=network-pre.target",
        "Type=notify",
    ] {
        assert!(text.lines().any(|it| it == line), "{line}");
    }
}

fn socket_of_a_service_manager_is_served_and_stays() {
    let place = Place::new();
    fs::create_dir(place.state_dir()).unwrap();
    let mut manager = place
        .command("systemd-socket-activate")
        .arg("--listen")
        .arg(place.socket())
        .arg("--setenv=LOCKNE_STATE_DIR")
        .arg(env!("CARGO_BIN_EXE_lockne"))
        .args(["daemon", "--mark-bit", "8"])
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    wait_until("the manager listens", || place.socket().exists());

    let status = place.must(&["status", "--json"]);
    assert!(status.contains(r#""state": "running""#), "{status}");
    // It becomes what it starts.
    assert!(
        status.contains(&format!(r#""pid": {}"#, manager.id())),
        "{status}"
    );
    place.must(&["down"]);

    assert!(manager.wait().unwrap().success());
    assert!(
        place.socket().exists(),
        "the manager goes on listening there"
    );
    fs::remove_file(place.socket()).unwrap();
}

/// Else they wait for ever, and the manager starts one daemon after the other for them.
fn clients_of_a_service_manager_are_told_why_the_daemon_cannot_start() {
    const WHY: &str = "the configuration has mistakes";
    let place = Place::new();
    fs::create_dir(place.state_dir()).unwrap();
    let config = place.write("lockne.toml", "[[rule]]\nvia = 7\n");
    let activated = || {
        let mut manager = place.command("systemd-socket-activate");
        manager.arg("--listen").arg(place.socket());
        manager.arg("--setenv=LOCKNE_STATE_DIR");
        manager.arg(env!("CARGO_BIN_EXE_lockne"));
        manager.args(["daemon", "--mark-bit", "8", "--config"]);
        let manager = manager.arg(&config).stderr(Stdio::null()).spawn();
        wait_until("the manager listens", || place.socket().exists());
        manager.unwrap()
    };

    let mut manager = activated();
    let run = place.lockne(&["run", "--block", "--", "true"]).output();
    let run = run.unwrap();
    let said = String::from_utf8_lossy(&run.stderr);
    assert!(
        said.contains(WHY) && said.contains("this rule has no"),
        "{said}"
    );
    assert_eq!(run.status.code(), Some(125), "{said}");
    // The unit does not start it again then.
    assert_eq!(manager.wait().unwrap().code(), Some(78));
    fs::remove_file(place.socket()).unwrap();

    // What is in the configuration is not for everybody.
    let mut manager = activated();
    place.open();
    fs::set_permissions(place.socket(), fs::Permissions::from_mode(0o666)).unwrap();
    let said = as_user(USER, || {
        let mut stream = UnixStream::connect(place.socket()).unwrap();
        stream
            .write_all(b"GET /v1/status HTTP/1.1\r\nHost: lockne\r\n\r\n")
            .unwrap();
        let mut said = [0; 4096];
        let length = stream.read(&mut said).unwrap();
        String::from_utf8_lossy(&said[..length]).into_owned()
    });
    assert!(said.contains("the daemon cannot start"), "{said}");
    assert!(!said.contains("this rule has no"), "{said}");
    manager.wait().unwrap();
    fs::remove_file(place.socket()).unwrap();

    // What is left is taken back all the same, but for what the manager has made.
    let mut manager = activated();
    let said = place.must(&["down"]);
    assert!(said.contains("nothing to take back"), "{said}");
    manager.wait().unwrap();
    fs::remove_file(place.socket()).unwrap();
}

fn service_manager_hears_that_the_daemon_is_ready_lives_and_ends() {
    let place = Place::new();
    let ear = place.path().join("notify");
    let ear_socket = std::os::unix::net::UnixDatagram::bind(&ear).unwrap();
    let patience = Some(std::time::Duration::from_secs(20));
    ear_socket.set_read_timeout(patience).unwrap();
    fs::set_permissions(&ear, fs::Permissions::from_mode(0o666)).unwrap();
    let mut daemon = place
        .lockne(&["daemon", "--mark-bit", "8"])
        .env("NOTIFY_SOCKET", &ear)
        .env("WATCHDOG_USEC", "200000")
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let hear = |word: &str| {
        let mut heard = String::new();
        while !heard.lines().any(|line| line.starts_with(word)) {
            let mut bytes = [0; 512];
            let length = ear_socket.recv(&mut bytes).expect(word);
            heard = String::from_utf8_lossy(&bytes[..length]).into_owned();
        }
    };

    hear("READY=1");
    hear("WATCHDOG=1");
    hear("STATUS=0 policies, 0 tunnels, 0 programs");
    hear("WATCHDOG=1");
    place.must(&["down"]);
    hear("STOPPING=1");
    assert!(daemon.wait().unwrap().success());
}
