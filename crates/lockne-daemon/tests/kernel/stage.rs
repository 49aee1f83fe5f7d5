//! Where rules are tried: a world with policies, a directory for programs, cgroups.

use std::{
    env, fs,
    io::Write as _,
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use lockne_abi::Policy;
use lockne_core::{
    policy::{Action, Terms},
    rule::{Existing, Match, Rule},
};
use lockne_daemon::{
    MarkField,
    rules::{CompiledRule, Installed, Outcome},
};
use lockne_lab::{cgroup, program};
use tempfile::TempDir;

use crate::world::{World, id};

/// Rules in a world of their own, and a directory for programs.
pub(crate) struct Stage {
    pub(crate) installed: Installed,
    pub(crate) dir: TempDir,
    pub(crate) world: World,
}

impl Stage {
    pub(crate) fn new() -> Self {
        let mut world = World::new();
        for number in [7, 8, 9] {
            world.policy(number, Policy::BLOCK);
        }
        let dir = tempfile::tempdir().unwrap();
        fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o755)).unwrap();
        Self {
            installed: Installed::new(MarkField::DEFAULT).unwrap(),
            dir,
            world,
        }
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.dir.path().canonicalize().unwrap().join(name)
    }

    /// A copy of this program.
    pub(crate) fn copy(&self, name: &str) -> PathBuf {
        let path = self.path(name);
        copy_to(&path);
        path
    }

    pub(crate) fn apply(&mut self, rules: &[CompiledRule]) -> Outcome {
        self.installed
            .apply(self.world.kernel(), rules, None)
            .unwrap()
    }
}

pub(crate) fn copy_to(path: &Path) {
    program::copy(&env::current_exe().unwrap(), path).unwrap();
}

pub(crate) fn rule(name: &str, policy: u8, matches: Match) -> CompiledRule {
    CompiledRule {
        rule: Rule {
            name: name.parse().unwrap(),
            matches,
            terms: Terms::new(Action::Block),
            existing: Existing::Reset,
        },
        policy: id(policy),
    }
}

pub(crate) fn exe(path: &Path) -> Match {
    Match {
        exe: Some(path.to_owned()),
        ..Match::default()
    }
}

/// The mark of a socket that `program` makes.
pub(crate) fn mark_of(program: &Path) -> String {
    marked(&mut Command::new(program))
}

pub(crate) fn marked(command: &mut Command) -> String {
    let mut child = command
        .arg("probe")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let input = b"socket udp4\nmark\n";
    child.stdin.take().unwrap().write_all(input).unwrap();
    let output = child.wait_with_output().unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    text.lines().last().unwrap_or_default().to_owned()
}

/// The hierarchy of cgroups, where only this test sees it. Made before the stage: it mounts, too.
pub(crate) struct Groups(pub(crate) TempDir);

impl Groups {
    pub(crate) fn new() -> Self {
        own_mounts();
        let dir = tempfile::tempdir().unwrap();
        let flags = rustix::mount::MountFlags::empty();
        rustix::mount::mount("none", dir.path(), "cgroup2", flags, c"").unwrap();
        Self(dir)
    }

    pub(crate) fn make(&self, path: &str) -> Group {
        let path = self.0.path().join(path);
        fs::create_dir(&path).unwrap();
        Group(path)
    }
}

impl Drop for Groups {
    fn drop(&mut self) {
        let flags = rustix::mount::UnmountFlags::DETACH;
        rustix::mount::unmount(self.0.path(), flags).unwrap();
    }
}

/// Gives this thread, and what it starts, mounts of its own.
pub(crate) fn own_mounts() {
    use rustix::mount::MountPropagationFlags as Flags;
    // SAFETY: only this thread's view of the mounts.
    unsafe { rustix::thread::unshare_unsafe(rustix::thread::UnshareFlags::NEWNS) }.unwrap();
    rustix::mount::mount_change("/", Flags::PRIVATE | Flags::REC).unwrap();
}

/// A cgroup of this test, removed at the end.
pub(crate) struct Group(pub(crate) PathBuf);

impl Group {
    pub(crate) fn name() -> String {
        use std::sync::atomic::{AtomicU32, Ordering};
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let next = NEXT.fetch_add(1, Ordering::Relaxed);
        format!("lockne-test-{}-{next}", std::process::id())
    }

    /// What `program` gets that is started in it.
    pub(crate) fn mark_of(&self, program: &Path) -> String {
        let script = format!(
            "echo 0 > '{}/cgroup.procs'; exec \"$0\" \"$@\"",
            self.0.display()
        );
        let mut shell = Command::new("/bin/sh");
        marked(shell.args(["-c", &script]).arg(program))
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        cgroup::remove(&self.0);
    }
}
