//! The units in `packaging/systemd`, as far as they can be tried where systemd is not the first process.

use std::{
    fs,
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use crate::{
    place::{Place, wait_until},
    tests,
};

tests! { ROOTED:
    units_are_understood_by_systemd,
    exposure_of_the_service_is_low,
    socket_of_a_service_manager_is_served_and_stays,
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
        .args(["security", "--offline=true", "--threshold=25"])
        .arg(unit("lockne.service"))
        .output()
        .unwrap();

    assert!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&output.stdout)
    );
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
