//! Demo 08.

use std::{net::ToSocketAddrs as _, path::Path};

use crate::{
    run::{Demo, command},
    traffic::alone,
};

const PATH: &str = env!("CARGO_BIN_EXE_08-kprobe-uprobe");

crate::tests! {
    each_lookup_is_shown_with_its_result,
    kernel_without_kprobes_is_told_apart,
    library_without_the_function_is_named,
    its_time_ends_it,
}

/// Tests of this need a kernel with kprobes.
pub(crate) fn has_kprobes() -> bool {
    Path::new("/sys/bus/event_source/devices/kprobe").exists()
}

/// Those that need a kernel with kprobes.
pub(crate) const KPROBE_TESTS: &[(&str, fn())] = &[(
    "each_connection_is_shown_with_its_result",
    each_connection_is_shown_with_its_result,
)];

fn each_lookup_is_shown_with_its_result() {
    let alone = alone();
    let demo = Demo::start(&alone, PATH, &["libc"]);

    let this = std::env::current_exe().unwrap();
    let hosts = ["localhost", "localhost", "name.invalid"];
    let mut child = alone
        .command(this)
        .arg("lookup")
        .args(hosts)
        .spawn()
        .unwrap();
    assert!(child.wait().unwrap().success());

    let ended = demo.interrupt().well();
    let lines = |host: &str, result: &str| {
        let wanted = format!(" ({})({host}) = {result}", child.id());
        ended.count(&wanted)
    };
    assert_eq!(lines("localhost", "0, took "), 2, "{ended:#?}");
    assert_eq!(lines("name.invalid", "-"), 1, "{ended:#?}");
}

/// Looks these names up, once each.
pub(crate) fn look_up(hosts: &[&str]) {
    for host in hosts {
        // Not an address, which the standard library would read by itself.
        // Whether there is such a host is for the demo to say.
        drop((*host, 1).to_socket_addrs());
    }
}

fn each_connection_is_shown_with_its_result() {
    let alone = alone();
    let listener = alone
        .run(|| std::net::TcpListener::bind("127.0.0.1:0").unwrap())
        .unwrap();
    let to = listener.local_addr().unwrap();
    let demo = Demo::start(&alone, PATH, &["kernel"]);

    for _ in 0..5 {
        drop(
            alone
                .run(|| std::net::TcpStream::connect(to).unwrap())
                .unwrap(),
        );
    }

    let ended = demo.interrupt().well();
    let mine = format!("({}) = ", std::process::id());
    assert!(ended.count(&mine) >= 5, "{ended:#?}");
}

fn kernel_without_kprobes_is_told_apart() {
    if has_kprobes() {
        return;
    }

    let ended = Demo::spawn(command(&alone(), PATH, &["kernel"])).finish();

    assert!(!ended.status.success());
    ended.complains("error: this kernel was built without kprobes (CONFIG_KPROBES)");
    ended.complains("hint: `08-kprobe-uprobe libc` works here");
}

fn library_without_the_function_is_named() {
    let arguments = ["libc", "--library", "/bin/true"];

    let ended = Demo::spawn(command(&alone(), PATH, &arguments)).finish();

    assert!(!ended.status.success());
    ended.complains("cannot attach `leave_libc` to `getaddrinfo` in /bin/true");
}

fn its_time_ends_it() {
    let ended = Demo::start(&alone(), PATH, &["libc", "--duration", "200ms"])
        .finish()
        .well();

    assert!(
        ended.out.last().unwrap().ends_with(" calls, 0 not shown"),
        "{ended:#?}"
    );
}
