//! What desktops do with programs: sandboxes with namespaces of their own, and scopes they are moved between.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
    sync::atomic::{AtomicU32, Ordering},
    thread,
};

use lockne_lab::{cgroup, probe::Action};
use rustix::{
    mount::{MountFlags, MountPropagationFlags, UnmountFlags},
    thread::UnshareFlags,
};
use tempfile::TempDir;

use crate::{
    fault::Hammers,
    home::{Home, wait_until},
    tests,
    way::{self, ORIGIN, assert_answered, probe},
};

tests! {
    sandbox_with_namespaces_and_a_scope_of_its_own_is_tunnelled needs ["bwrap", "sh"],
    sandbox_that_a_rule_names_by_its_scope_is_tunnelled needs ["bwrap", "sh"],
    program_that_is_moved_between_cgroups_while_it_sends_stays_in_its_tunnel,
}

/// Does a test where only it sees its mounts, so that they go with it.
pub(crate) fn with_own_mounts(test: impl FnOnce() + Send) {
    let run = || {
        // SAFETY: only this thread's view of the mounts.
        unsafe { rustix::thread::unshare_unsafe(UnshareFlags::NEWNS) }.unwrap();
        let private = MountPropagationFlags::PRIVATE | MountPropagationFlags::REC;
        rustix::mount::mount_change("/", private).unwrap();
        test();
    };
    thread::scope(|scope| {
        if let Err(panic) = scope.spawn(run).join() {
            std::panic::resume_unwind(panic);
        }
    });
}

fn apart(test: impl FnOnce(&Hierarchy) + Send) {
    with_own_mounts(|| test(&Hierarchy::mount()));
}

/// The hierarchy of cgroups, mounted at a place of its own: it does not matter where others have it.
struct Hierarchy(TempDir);

impl Hierarchy {
    fn mount() -> Self {
        let dir = tempfile::tempdir().unwrap();
        rustix::mount::mount("none", dir.path(), "cgroup2", MountFlags::empty(), c"").unwrap();
        Self(dir)
    }

    /// A new cgroup, which goes when it is dropped.
    fn scope(&self, name: &str) -> Scope<'_> {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let slice = format!("lockne-test-{}-{number}.slice", std::process::id());
        let slice = self.0.path().join(slice);
        let path = slice.join(name);
        fs::create_dir_all(&path).unwrap();
        Scope {
            path,
            slice,
            hierarchy: self,
        }
    }
}

impl Drop for Hierarchy {
    fn drop(&mut self) {
        // So that the directory can be removed.
        let _unmounted = rustix::mount::unmount(self.0.path(), UnmountFlags::DETACH);
    }
}

struct Scope<'a> {
    path: PathBuf,
    slice: PathBuf,
    hierarchy: &'a Hierarchy,
}

impl Scope<'_> {
    /// Moves a process here.
    fn take(&self, pid: u32) {
        fs::write(self.path.join("cgroup.procs"), pid.to_string()).unwrap();
    }
}

impl Drop for Scope<'_> {
    fn drop(&mut self) {
        // Whoever is left, as after a test that failed, goes back.
        let root = self.hierarchy.0.path().join("cgroup.procs");
        for pid in fs::read_to_string(self.path.join("cgroup.procs"))
            .unwrap_or_default()
            .lines()
        {
            drop(fs::write(&root, pid));
        }
        cgroup::remove(&self.path);
        cgroup::remove(&self.slice);
    }
}

/// Adds what starts a program as Flatpak does: in a scope of its own, and there in namespaces of its own, but for the
/// network.
fn sandbox(command: &mut Command, scope: &Path) {
    let script = "echo $$ > \"$0/cgroup.procs\" && exec \"$@\"";
    command.args(["sh", "-c", script]).arg(scope);
    command.args([
        "bwrap", "--bind", "/", "/", "--dev", "/dev", "--tmpfs", "/run",
    ]);
    command.args([
        "--unshare-user",
        "--unshare-pid",
        "--unshare-ipc",
        "--unshare-uts",
    ]);
    command.args(["--proc", "/proc", "--die-with-parent", "--"]);
}

fn sandbox_with_namespaces_and_a_scope_of_its_own_is_tunnelled() {
    apart(|hierarchy| {
        let home = Home::with_tunnels();
        let tunnel = way::client(&home.lab.provider_a);
        let scope = hierarchy.scope("app-org.example.App-1.scope");
        for to in ORIGIN {
            for action in [Action::Tcp, Action::UdpUnconnected] {
                let probe = probe(action, to);
                let mut command = home.lockne(["run", "--via", "a", "--"]);
                sandbox(&mut command, &scope.path);

                let report = probe.start_behind(command).unwrap().finish().unwrap();

                assert_answered(&report, to, tunnel, &probe);
            }
        }
        home.assert_no_leak();
    });
}

fn sandbox_that_a_rule_names_by_its_scope_is_tunnelled() {
    apart(|hierarchy| {
        let home = Home::new();
        let conf = home.conf("a", &home.lab.provider_a);
        let config = home.write(
        "lockne.toml",
        &format!(
            "[tunnels.a]\nconfig = \"{}\"\n[[rule]]\nname = \"app\"\nflatpak = \"org.example.App\"\nvia = \"a\"\n",
            conf.display()
        ),
    );
        let _daemon = home.daemon_with(&["--config", config.to_str().unwrap()]);
        let tunnel = way::client(&home.lab.provider_a);
        // Each start of a Flatpak has a number of its own.
        for (number, to) in [4711, 4712].into_iter().zip(ORIGIN) {
            let scope = hierarchy.scope(&format!("app-flatpak-org.example.App-{number}.scope"));
            let probe = probe(Action::Tcp, to);
            let mut command = home.lab.home.command("env");
            sandbox(&mut command, &scope.path);

            let report = probe.start_behind(command).unwrap().finish().unwrap();

            assert_answered(&report, to, tunnel, &probe);
        }
        home.assert_no_leak();
    });
}

fn program_that_is_moved_between_cgroups_while_it_sends_stays_in_its_tunnel() {
    apart(|hierarchy| {
        const MOVES: usize = 50;
        let home = Home::with_tunnels();
        // As terminals and desktops name theirs.
        let scopes = [
            "vte-spawn-0f1e2d3c.scope",
            "app-gnome-org.example.Terminal-7.scope",
        ]
        .map(|name| hierarchy.scope(name));
        let hammers = Hammers::through_a(&home);

        for number in 0..MOVES {
            for pid in hammers.pids() {
                scopes[number % scopes.len()].take(pid);
            }
        }
        let inside = fs::read_to_string(scopes[1].path.join("cgroup.procs")).unwrap();
        assert_eq!(
            inside.lines().count(),
            hammers.pids().len(),
            "all were moved"
        );

        hammers.wait_until_they_arrive();
        hammers.finish();
        wait_until("they have ended", || {
            let procs = scopes[1].path.join("cgroup.procs");
            fs::read_to_string(procs).unwrap().is_empty()
        });
    });
}
