//! Running a program of the object on a world of the test's making.

use std::{
    env, fs,
    sync::{LazyLock, Mutex},
};

use lockne_abi::{Config, Counters, MarkField, PROCESSES_PER_PAGE, Policy, name};
use lockne_interpreter::{Object, Packet, World, context::Context, coverage::Coverage};

/// The namespace that the daemon serves.
pub(crate) const NETNS_COOKIE: u64 = 77;

/// Where this imagined kernel keeps what; the real offsets come from its BTF.
pub(crate) const CONFIG: Config = Config {
    netns_cookie: NETNS_COOKIE,
    mark_shift: MarkField::DEFAULT.shift(),
    max_processes: 8 * PROCESSES_PER_PAGE,
    task_tgid: 16,
    task_pid: 20,
    task_signal: 24,
    task_exec_id: 48,
    has_misses: 1,
    signal_live: 4,
    sock_net: 48,
    net_cookie: 16,
    has_set_retval: 1,
    unix_address: 8,
    unix_length: 32,
    task_cgroups: 32,
    css_set_cgroup: 8,
    cgroup_node: 8,
    node_parent: 8,
    node_name: 16,
    exec_file: 8,
    exec_filename: 16,
    exec_interpreter: 24,
    file_inode: 8,
    file_dentry: 16,
    inode_number: 16,
    inode_super: 8,
    super_device: 12,
    dentry_parent: 8,
    dentry_inode: 16,
    dentry_name: 24,
    dentry_length: 32,
    dentry_short_name: 40,
    task_cred: 8,
    cred_permitted: 16,
    cred_user_ns: 24,
    user_ns_level: 4,
    has_option_pid: 1,
};

/// A mark of policy `id`, with bits of somebody else.
pub(crate) fn mark(id: u8) -> u32 {
    MarkField::DEFAULT.mark(id) | OTHERS
}

/// wg-quick's own mark.
pub(crate) const OTHERS: u32 = 0xca6c;

static OBJECT: LazyLock<Object> = LazyLock::new(|| {
    let bytes = aya::include_bytes_aligned!(concat!(env!("OUT_DIR"), "/lockne.bpf.o"));
    let pages = CONFIG.max_processes / PROCESSES_PER_PAGE;
    Object::parse_with(
        bytes,
        &[(name::CONFIG, bytes_of(&CONFIG))],
        &[(name::PROCESSES, pages), (name::EXECS, pages)],
    )
    .unwrap()
});

static COVERAGE: Mutex<Option<Coverage>> = Mutex::new(None);

/// What came of a run.
pub(crate) struct Outcome<C> {
    pub(crate) verdict: u32,
    pub(crate) context: C,
    pub(crate) world: World,
}

/// Runs the program `name` on what `prepare` makes; `frame` is the packet, for hooks that have one.
pub(crate) fn run<C: Context>(
    name: &str,
    frame: &[u8],
    prepare: impl Fn(&mut World, &Packet) -> C,
) -> Outcome<C> {
    let program = OBJECT.program(name).unwrap();
    let fresh = || {
        let packet = Packet::new(frame)?;
        let mut world = OBJECT.world();
        world.netns_cookie = NETNS_COOKIE;
        let context = prepare(&mut world, &packet);
        Ok((world, context, packet))
    };
    let (mut world, mut context, mut packet) = fresh().unwrap();
    let verdict = program.run(&mut world, &mut context, &mut packet).unwrap();
    if let Some(path) = env::var_os("LOCKNE_LCOV") {
        let mut coverage = COVERAGE.lock().unwrap();
        let coverage = coverage.get_or_insert_default();
        coverage.add(&program, fresh).unwrap();
        fs::write(path, coverage.lcov("lockne").to_string()).unwrap();
    }
    Outcome {
        verdict,
        context,
        world,
    }
}

/// Sets the policy `id`.
pub(crate) fn set_policy(world: &mut World, id: u8, policy: Policy) {
    let key = u32::from(id).to_ne_bytes();
    assert!(world.map(name::POLICIES).set(&key, bytes_of(&policy)));
}

/// Puts process `pid` under policy `id`, as fork or the daemon does.
pub(crate) fn set_process(world: &mut World, pid: u32, id: u8) {
    let key = (pid / PROCESSES_PER_PAGE).to_ne_bytes();
    let processes = world.map(name::PROCESSES);
    let mut page = processes.get(&key).unwrap().to_vec();
    page[2 * (pid % PROCESSES_PER_PAGE) as usize] = id;
    assert!(processes.set(&key, &page));
}

/// Says that process `pid` chose its policy by hand.
pub(crate) fn choose(world: &mut World, pid: u32) {
    let key = (pid / PROCESSES_PER_PAGE).to_ne_bytes();
    let processes = world.map(name::PROCESSES);
    let mut page = processes.get(&key).unwrap().to_vec();
    page[2 * (pid % PROCESSES_PER_PAGE) as usize + 1] = 1;
    assert!(processes.set(&key, &page));
}

/// The policy of process `pid`, or 0.
pub(crate) fn process(world: &mut World, pid: u32) -> u8 {
    let key = (pid / PROCESSES_PER_PAGE).to_ne_bytes();
    let page = world.map(name::PROCESSES).get(&key).unwrap();
    page[2 * (pid % PROCESSES_PER_PAGE) as usize]
}

/// Notes that process `pid` was seen to execute its `count`th program.
pub(crate) fn note_exec(world: &mut World, pid: u32, count: u8) {
    let key = (pid / PROCESSES_PER_PAGE).to_ne_bytes();
    let execs = world.map(name::EXECS);
    let mut page = execs.get(&key).unwrap().to_vec();
    page[(pid % PROCESSES_PER_PAGE) as usize] = count + 1;
    assert!(execs.set(&key, &page));
}

/// The number of the program that process `pid` was last seen to execute, if it was seen at all.
pub(crate) fn noted_exec(world: &mut World, pid: u32) -> Option<u8> {
    let key = (pid / PROCESSES_PER_PAGE).to_ne_bytes();
    let page = world.map(name::EXECS).get(&key).unwrap();
    page[(pid % PROCESSES_PER_PAGE) as usize].checked_sub(1)
}

/// A task of a process that has executed `count` programs.
pub(crate) fn executed(world: &mut World, count: u64) -> u64 {
    let mut task = [0; 64];
    let at = CONFIG.task_exec_id as usize;
    task[at..at + 8].copy_from_slice(&count.to_ne_bytes());
    world.block(&task)
}

/// What was counted under policy `id`.
pub(crate) fn counters(world: &mut World, id: u8) -> Counters {
    let key = u32::from(id).to_ne_bytes();
    let bytes = world.map(name::COUNTERS).get(&key).unwrap();
    let words: Vec<u64> = bytes
        .chunks_exact(8)
        .map(|word| u64::from_ne_bytes(word.try_into().unwrap()))
        .collect();
    let [tx_packets, tx_bytes, rx_packets, rx_bytes, refused] = words.try_into().unwrap();
    Counters {
        tx_packets,
        tx_bytes,
        rx_packets,
        rx_bytes,
        refused,
    }
}

/// The bytes of what crosses into the kernel.
pub(crate) fn bytes_of<T: aya::Pod>(value: &T) -> &[u8] {
    // SAFETY: `Pod` has no padding.
    unsafe { std::slice::from_raw_parts(std::ptr::from_ref(value).cast(), size_of::<T>()) }
}

/// An address in the world, as contexts have it.
#[expect(
    clippy::cast_possible_truncation,
    reason = "an address of this process"
)]
pub(crate) fn pointer<T>(address: u64) -> *mut T {
    std::ptr::with_exposed_provenance_mut(address as usize)
}
