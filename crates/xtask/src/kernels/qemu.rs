//! A virtual machine.

use std::{
    env,
    ffi::OsString,
    fs,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
};

use anyhow::{Context as _, Result};

use super::{debian::unpack_with_dependencies, kernel::Unpacked, lack};

const PROGRAM: &str = "qemu-system-x86_64";

/// QEMU: the machine's own, or one in the cache.
pub(crate) struct Qemu {
    program: PathBuf,
    /// Where it is unpacked, if it is not the machine's own.
    root: Option<PathBuf>,
}

impl Qemu {
    /// Finds it, or fetches it; to install it could remove other packages of the machine.
    pub(crate) fn get(cache: &Path) -> Result<Self> {
        let path = env::var_os("PATH").unwrap_or_default();
        let own = env::split_paths(&path).map(|folder| folder.join(PROGRAM));
        if let Some(program) = { own }.find(|program| program.exists()) {
            return Ok(Self {
                program,
                root: None,
            });
        }
        let root = cache.join("qemu");
        if !root.exists() {
            unpack_with_dependencies(&["qemu-system-x86"], &cache.join("apt/qemu"), &root)
                .context("cannot fetch QEMU")?;
        }
        Ok(Self {
            program: root.join("usr/bin").join(PROGRAM),
            root: Some(root),
        })
    }

    /// Boots a kernel. What the kernel says goes to `console`, what its programs say to the child's stdout.
    pub(crate) fn boot(&self, kernel: &Unpacked, initrd: &Path, console: &Path) -> Result<Child> {
        // With whoever started it dies the machine, however that happened.
        let mut command = Command::new("setpriv");
        command.args(["--pdeathsig", "KILL"]).arg(&self.program);
        if let Some(root) = &self.root {
            let lib = root.join("usr/lib/x86_64-linux-gnu");
            command.env("LD_LIBRARY_PATH", lib);
            for data in ["usr/share/qemu", "usr/share/seabios"] {
                command.arg("-L").arg(root.join(data));
            }
        }
        let mut file = OsString::from("file:");
        file.push(console);
        // One processor: with two, kernels have crashed in the emulator (`int3` in `sched_clock_cpu`).
        // Without `cmpxchg16b`: the emulator has destroyed registers by it (a double fault in `__kmalloc`).
        let machine = "-accel tcg -cpu max,-cx16,-la57 -M q35 -m 3072 -smp 1 -nodefaults -no-reboot -display none -monitor none";
        let line = "console=ttyS0 quiet panic=-1 oops=panic mitigations=off random.trust_cpu=on";
        // Since 6.19 a socket's storage comes from `kmalloc_nolock`, which without `cmpxchg16b` only takes from slabs that
        // check themselves: questions for names were refused, as there was no room to remember whom they were for.
        let checks = (lack::version(&kernel.release) >= (6, 19)).then_some(" slab_debug=F");
        let line = format!("{line}{}", checks.unwrap_or_default());
        let error = fs::File::create(console.with_extension("qemu"))
            .with_context(|| format!("cannot write beside {}", console.display()))?;
        command
            .args(machine.split(' '))
            .arg("-kernel")
            .arg(&kernel.image)
            .arg("-initrd")
            .arg(initrd)
            .args(["-append", &line])
            .arg("-serial")
            .arg(file)
            .args(["-serial", "stdio"])
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(error);
        command.spawn().context("cannot run setpriv")
    }
}
