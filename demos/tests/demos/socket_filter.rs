//! Demo 07.

use crate::{
    run::Demo,
    traffic::{FAR, NEAR, NEAR6, Pair, alone, ip, ping, send, set_options, socket},
};

const PATH: &str = env!("CARGO_BIN_EXE_07-socket-filter");

crate::tests! {
    twins_see_the_same,
    header_with_options_is_read_past_by_both,
    loopback_is_seen_once,
    classic_program_can_be_read,
    its_time_ends_it,
}

fn twins_see_the_same() {
    let pair = Pair::new();
    let v4 = [53, 54].map(|port| socket(&pair.near, &format!("{NEAR}:{port}")));
    let v6 = [53, 54].map(|port| socket(&pair.near, &format!("[{NEAR6}]:{port}")));
    let demo = Demo::start(&pair.near, PATH, &["--iface", "near0"]);

    for (count, receiver) in [(10, &v4[0]), (20, &v4[1]), (7, &v6[0]), (30, &v6[1])] {
        send(&pair.far, receiver.local_addr().unwrap(), count, 100);
    }
    assert!(ping(&pair.far, NEAR.parse().unwrap(), 1, 1));

    let ended = demo.interrupt().well();
    // 142 bytes each with IPv4's headers, 162 with IPv6's.
    ended.says(" classic: 17 packets, 2554 bytes");
    ended.says("    eBPF: 17 packets, 2554 bytes");
}

fn header_with_options_is_read_past_by_both() {
    let pair = Pair::new();
    let demo = Demo::start(&pair.near, PATH, &["--iface", "near0", "--port", "99"]);

    let sender = socket(&pair.far, &format!("{FAR}:0"));
    // Four times "no operation": the IP header is 24 bytes long.
    set_options(&sender, &[1; 4]);
    sender.send_to(&[0; 10], format!("{NEAR}:99")).unwrap();
    assert!(ping(&pair.far, NEAR.parse().unwrap(), 1, 1));

    let ended = demo.interrupt().well();
    ended.says(" classic: 1 packets, 56 bytes");
    ended.says("    eBPF: 1 packets, 56 bytes");
}

fn loopback_is_seen_once() {
    let alone = alone();
    ip(&alone, "address add 192.0.2.9/32 dev lo");
    let receiver = socket(&alone, "192.0.2.9:5353");
    let demo = Demo::start(&alone, PATH, &["--port", "5353"]);

    send(&alone, receiver.local_addr().unwrap(), 5, 1);

    let ended = demo.interrupt().well();
    ended.says(" classic: 5 packets, 215 bytes");
    ended.says("    eBPF: 5 packets, 215 bytes");
}

fn classic_program_can_be_read() {
    let ended = Demo::start(
        &alone(),
        PATH,
        &["--show", "--duration", "10ms", "--port", "53"],
    )
    .finish()
    .well();

    ended.says("(000) ldh  [12]");
    ended.says("(011) ldxb 4*([14]&0xf)");
    ended.says("(013) jeq  #0x35, yes 014, no 015");
}

fn its_time_ends_it() {
    let ended = Demo::start(&alone(), PATH, &["--duration", "200ms"])
        .finish()
        .well();

    ended.says(" classic: 0 packets, 0 bytes");
}
