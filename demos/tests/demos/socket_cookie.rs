//! Demo 11.

use crate::{
    run::Demo,
    traffic::{FAR, FAR6, Pair, alone, cgroups, send, socket},
};

const PATH: &str = env!("CARGO_BIN_EXE_11-socket-cookie");

crate::tests! {
    both_ways_find_each_packet,
    interrupt_ends_the_command_and_its_cgroup,
    its_time_ends_it,
}

fn both_ways_find_each_packet() {
    let pair = Pair::new();
    let v4 = socket(&pair.far, &format!("{FAR}:9"));
    let _v6 = socket(&pair.far, &format!("[{FAR6}]:9"));
    let this = std::env::current_exe().unwrap();
    let (to4, to6) = (format!("{FAR}:9"), format!("[{FAR6}]:9"));
    let arguments = ["--", this.to_str().unwrap(), "datagrams", &to4, &to6];
    let demo = Demo::start(&pair.near, PATH, &arguments);
    // Somebody else's.
    send(&pair.near, v4.local_addr().unwrap(), 50, 1);

    let ended = demo.finish().well();

    let by_cookie: Vec<_> = ended
        .out
        .iter()
        .filter(|line| line.starts_with("by cookie: "))
        .collect();
    assert_eq!(by_cookie.len(), 1, "{ended:#?}");
    assert!(
        by_cookie[0].ends_with("): 2 sockets, 20 packets, 2760 bytes"),
        "{ended:#?}"
    );
    ended.says("by mark: 20 packets, 2760 bytes");
    for (program, what, times) in [
        ("  note_owner", "socket", 2),
        (" mark_socket", "socket", 2),
        ("     nothing", "packet", 20),
        ("  find_owner", "packet", 20),
        ("   read_mark", "packet", 20),
    ] {
        let end = format!(" ns for each {what}, {times} times");
        let mut lines = ended.out.iter();
        let is_its =
            |line: &String| line.starts_with(&format!("{program}: ")) && line.ends_with(&end);
        assert!(lines.any(is_its), "no {program}: {ended:#?}");
    }
}

fn interrupt_ends_the_command_and_its_cgroup() {
    let demo = Demo::start(&alone(), PATH, &["--", "sleep", "1000"]);
    let mine = format!("socket-cookie-{}", demo.pid());
    assert_eq!(cgroups(&mine).len(), 1);

    let ended = demo.interrupt().well();

    ended.says("by mark: 0 packets, 0 bytes");
    assert!(cgroups(&mine).is_empty());
}

fn its_time_ends_it() {
    let demo = Demo::start(
        &alone(),
        PATH,
        &["--duration", "200ms", "--", "sleep", "1000"],
    );
    let mine = format!("socket-cookie-{}", demo.pid());

    drop(demo.finish().well());

    assert!(cgroups(&mine).is_empty());
}
