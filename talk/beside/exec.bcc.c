// Demo 02's question once more, in BCC's dialect of C: which user starts how many commands?
//
// For the talk. BCC compiles it at each start, on the machine that runs it; `cargo xtask talk --check` with the
// imitated words of bcc.h.

// talk: begin exec
BPF_HASH(commands, u32);

TRACEPOINT_PROBE(sched, sched_process_exec)
{
	u32 user = bpf_get_current_uid_gid();
	commands.increment(user);
	return 0;
}
// talk: end
