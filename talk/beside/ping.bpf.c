// The ping monitor's first step once more, in C: echo requests of IPv4 on the ingress of a device.
//
// Beside demos/03-ping-monitor, for the talk. `cargo xtask talk --check` compiles it.

#include <linux/bpf.h>
#include <linux/if_ether.h>

#include <linux/ip.h>
#include <linux/pkt_cls.h>

#include <bpf/bpf_endian.h>
#include <bpf/bpf_helpers.h>

struct {
	__uint(type, BPF_MAP_TYPE_RINGBUF);
	__uint(max_entries, 1 << 20);
} PINGS SEC(".maps");

/* linux/icmp.h wants the C library. */
struct icmphdr {
	__u8 type;
	__u8 code;
	__be16 checksum;
	__be16 id;
	__be16 sequence;
};
#define ICMP 1
#define ICMP_ECHO 8

// talk: begin ping
SEC("tc")
int watch_pings(struct __sk_buff *skb)
{
	void *data = (void *)(long)skb->data;
	void *end = (void *)(long)skb->data_end;

	struct ethhdr *eth = data;
	if ((void *)(eth + 1) > end || eth->h_proto != bpf_htons(ETH_P_IP))
		return TC_ACT_UNSPEC;

	struct iphdr *ip = (void *)(eth + 1);
	if ((void *)(ip + 1) > end || ip->protocol != ICMP)
		return TC_ACT_UNSPEC;

	struct icmphdr *icmp = (void *)ip + ip->ihl * 4;
	if ((void *)(icmp + 1) > end || icmp->type != ICMP_ECHO)
		return TC_ACT_UNSPEC;

	__u32 source = ip->saddr;
	bpf_ringbuf_output(&PINGS, &source, sizeof(source), 0);
	return TC_ACT_UNSPEC;
}
// talk: end

char LICENSE[] SEC("license") = "Dual MIT/GPL";
