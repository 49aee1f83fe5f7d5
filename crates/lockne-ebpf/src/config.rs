//! What the daemon said when it loaded the programs.
//!
//! The loader freezes `.rodata`, so the verifier takes every value for a constant: offsets are checked
//! against the kernel's types, and branches that this kernel cannot run are cut off before they are
//! looked at.

use core::ptr::read_volatile;

use lockne_abi::{Config, MarkField};

#[unsafe(no_mangle)]
static CONFIG: Config = Config {
    netns_cookie: 0,
    mark_shift: 0,
    max_processes: 0,
    task_tgid: 0,
    task_pid: 0,
    task_signal: 0,
    task_exec_id: 0,
    has_misses: 0,
    signal_live: 0,
    sock_net: 0,
    net_cookie: 0,
    has_set_retval: 0,
    unix_address: 0,
    unix_length: 0,
    task_cgroups: 0,
    css_set_cgroup: 0,
    cgroup_node: 0,
    node_parent: 0,
    node_name: 0,
    exec_file: 0,
    exec_filename: 0,
    exec_interpreter: 0,
    file_inode: 0,
    file_dentry: 0,
    inode_number: 0,
    inode_super: 0,
    super_device: 0,
    dentry_parent: 0,
    dentry_inode: 0,
    dentry_name: 0,
    dentry_length: 0,
    dentry_short_name: 0,
    task_cred: 0,
    cred_permitted: 0,
    cred_user_ns: 0,
    user_ns_level: 0,
    has_option_pid: 0,
};

macro_rules! fields {
    ($($name:ident: $type:ty,)*) => {$(
        #[inline(always)]
        pub(crate) fn $name() -> $type {
            // SAFETY: a valid, aligned static. Volatile, because the loader changes what the compiler
            // would fold.
            unsafe { read_volatile(&raw const CONFIG.$name) }
        }
    )*};
}

fields! {
    netns_cookie: u64,
    mark_shift: u32,
    max_processes: u32,
    task_tgid: u32,
    task_pid: u32,
    task_signal: u32,
    task_exec_id: u32,
    has_misses: u32,
    signal_live: u32,
    sock_net: u32,
    net_cookie: u32,
    has_set_retval: u32,
    unix_address: u32,
    unix_length: u32,
    task_cgroups: u32,
    css_set_cgroup: u32,
    cgroup_node: u32,
    node_parent: u32,
    node_name: u32,
    exec_file: u32,
    exec_filename: u32,
    exec_interpreter: u32,
    file_inode: u32,
    file_dentry: u32,
    inode_number: u32,
    inode_super: u32,
    super_device: u32,
    dentry_parent: u32,
    dentry_inode: u32,
    dentry_name: u32,
    dentry_length: u32,
    dentry_short_name: u32,
    task_cred: u32,
    cred_permitted: u32,
    cred_user_ns: u32,
    user_ns_level: u32,
    has_option_pid: u32,
}

/// The bits of the mark that are ours.
#[inline(always)]
pub(crate) fn field() -> MarkField {
    MarkField::new(mark_shift()).unwrap_or(MarkField::DEFAULT)
}
