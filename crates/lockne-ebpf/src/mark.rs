//! `cgroup/sock_create`: stamps the policy of a process on each socket it makes.
//!
//! Runs for TCP, UDP, ICMP and raw sockets, IPv4 and IPv6, also from `io_uring`; not for `AF_PACKET`, nor for
//! sockets that the kernel makes for itself. Needs Linux 5.14 for nothing of its own, and 5.18 to
//! refuse with an errno that applications understand.

use aya_ebpf::{
    helpers::generated::bpf_get_netns_cookie, macros::cgroup_sock, programs::SockContext,
};
use lockne_abi::MarkField;

use crate::{
    config, map,
    process::{self, Standing},
    strict,
    verdict::{ALLOW, Errno, refuse},
};

const IPPROTO_MPTCP: u32 = 262;

/// What happens to a new socket.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Decision {
    Leave,
    Mark(u32),
    Refuse(Errno),
}

/// Stamps or refuses a new socket.
#[cgroup_sock(sock_create)]
pub(crate) fn mark_socket(ctx: SockContext) -> i32 {
    let standing = process::current();
    if standing == Standing::Free {
        return ALLOW;
    }
    let sock = ctx.sock;
    // SAFETY: the kernel passes a valid socket.
    if unsafe { bpf_get_netns_cookie(sock.cast()) } != config::netns_cookie() {
        return ALLOW;
    }
    // SAFETY: as above; each is a field that programs on this hook may read.
    let (protocol, mark) = unsafe { ((*sock).protocol, (*sock).mark) };
    strict::consider();
    match decide(standing, protocol, mark, config::field()) {
        Decision::Leave => ALLOW,
        Decision::Mark(mark) => {
            // SAFETY: as above; this one may be written, too.
            unsafe { (*sock).mark = mark };
            ALLOW
        }
        Decision::Refuse(errno) => {
            if let Standing::Policed(id) = standing {
                map::count_refusal(id);
            }
            refuse(errno)
        }
    }
}

#[inline(always)]
fn decide(standing: Standing, protocol: u32, mark: u32, field: MarkField) -> Decision {
    match standing {
        Standing::Free => Decision::Leave,
        Standing::Unknown => Decision::Refuse(Errno::NotPermitted),
        // The subflows are sockets of the kernel's own and would carry no mark. Applications fall
        // back to TCP on this errno.
        Standing::Policed(_) if protocol == IPPROTO_MPTCP => {
            Decision::Refuse(Errno::ProtocolNotSupported)
        }
        Standing::Policed(id) => Decision::Mark(field.stamp(mark, id)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn socket_of_a_policed_process_is_marked_and_keeps_the_bits_of_others() {
        let decision = decide(Standing::Policed(7), 6, 0xff00_ca6c, MarkField::DEFAULT);

        assert_eq!(decision, Decision::Mark(0x0700_ca6c));
    }

    #[test]
    fn multipath_tcp_is_refused_under_a_policy_only() {
        let field = MarkField::DEFAULT;

        assert_eq!(
            decide(Standing::Policed(7), IPPROTO_MPTCP, 0, field),
            Decision::Refuse(Errno::ProtocolNotSupported)
        );
        assert_eq!(
            decide(Standing::Free, IPPROTO_MPTCP, 0, field),
            Decision::Leave
        );
    }

    #[test]
    fn process_that_may_be_a_lost_child_gets_no_socket() {
        assert_eq!(
            decide(Standing::Unknown, 6, 0, MarkField::DEFAULT),
            Decision::Refuse(Errno::NotPermitted)
        );
    }
}
