// The words that BCC puts in front of each program, as far as the compiler has to know them.

#include <linux/bpf.h>

#include <bpf/bpf_helpers.h>

typedef __u32 u32;

#define BPF_HASH(name, key)              \
	struct {                         \
		void (*increment)(key);  \
	} name

#define TRACEPOINT_PROBE(category, event) int category##_##event(void *args __attribute__((unused)))
