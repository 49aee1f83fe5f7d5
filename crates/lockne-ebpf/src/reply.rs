//! Classifier on the ingress of tunnel devices: stamps the policy on what arrives.
//!
//! With it, strict reverse path filters look replies up in the tunnel's own table
//! (`src_valid_mark`), and what the kernel answers by itself goes back the way it came
//! (`fwmark_reflect`). Attached by TCX (Linux 6.6), before that by clsact.

use aya_ebpf::{bindings::TC_ACT_UNSPEC, macros::classifier, programs::TcContext};

use crate::{config, map::DEVICES};

/// Stamps the policy of the device on a packet, and lets the next program decide.
#[classifier]
pub(crate) fn stamp_reply(ctx: TcContext) -> i32 {
    let skb = ctx.skb.skb;
    // SAFETY: the kernel passes a valid packet; both fields may be read, and the mark written.
    unsafe {
        let device = (*skb).ifindex;
        if let Some(id) = DEVICES.get(device) {
            let mark = config::field().stamp((*skb).mark, *id as u8);
            (*skb).mark = mark;
        }
    }
    TC_ACT_UNSPEC
}
