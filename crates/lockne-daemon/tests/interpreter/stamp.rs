//! `stamp_reply`: what arrives through a tunnel carries the policy's mark.

use lockne_abi::name;
use lockne_interpreter::context;

use crate::run::{OTHERS, mark, run};

/// `TC_ACT_UNSPEC`: the next program decides.
const GO_ON: u32 = u32::MAX;

fn arrive(device: u32) -> (u32, u32) {
    let after = run(name::STAMP_REPLY, &[0; 60], |world, packet| {
        let (wg0, policy) = (3_u32.to_ne_bytes(), 7_u32.to_ne_bytes());
        assert!(world.map(name::DEVICES).set(&wg0, &policy));
        let mut skb = context::skb(packet);
        (skb.ifindex, skb.mark) = (device, OTHERS);
        skb
    });
    (after.verdict, after.context.mark)
}

#[test]
fn packet_from_a_tunnel_gets_the_mark_and_keeps_the_bits_of_others() {
    assert_eq!(arrive(3), (GO_ON, mark(7)));
}

#[test]
fn packet_from_any_other_device_is_not_touched() {
    assert_eq!(arrive(2), (GO_ON, OTHERS));
}
