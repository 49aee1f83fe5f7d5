//! Kernel modules, with those they depend on, in the order in which they have to be loaded.

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context as _, Result, bail, ensure};

/// What the tests need, where it is not part of the kernel.
const WANTED: [&str; 23] = [
    "act_bpf",
    "af_packet_diag",
    "cls_bpf",
    "dummy",
    "inet_diag",
    "nf_conntrack",
    "nft_chain_nat",
    "nft_ct",
    "nft_fib_inet",
    "nft_log",
    "nft_masq",
    "nft_reject_inet",
    "nft_socket",
    "raw_diag",
    "sch_fq",
    "sch_ingress",
    "tcp_diag",
    "tun",
    "udp_diag",
    "veth",
    "vrf",
    "wireguard",
    "xt_conntrack",
];

/// A module, ready to be loaded.
pub(crate) struct Module {
    pub(crate) name: String,
    pub(crate) content: Vec<u8>,
}

/// The wanted modules below `folder` with all they need.
pub(crate) fn closure(folder: &Path) -> Result<Vec<Module>> {
    let mut files = BTreeMap::new();
    list(&folder.join("kernel"), &mut files)
        .with_context(|| format!("cannot list {}", folder.display()))?;
    let mut modules = Vec::new();
    for name in WANTED {
        add(name, &files, &mut modules)?;
    }
    Ok(modules)
}

fn add(name: &str, files: &BTreeMap<String, PathBuf>, modules: &mut Vec<Module>) -> Result<()> {
    // What is no module is part of this kernel, or not to be had.
    let Some(file) = files.get(name) else {
        return Ok(());
    };
    if modules.iter().any(|module| module.name == name) {
        return Ok(());
    }
    let content = read(file)?;
    for needed in depends(&content)? {
        add(&needed, files, modules)?;
    }
    modules.push(Module {
        name: name.to_owned(),
        content,
    });
    Ok(())
}

/// What it says in its section of facts: `depends=a,b`.
fn depends(content: &[u8]) -> Result<Vec<String>> {
    const KEY: &[u8] = b"\0depends=";
    let start = content
        .windows(KEY.len())
        .position(|window| window == KEY)
        .context("a module that does not say what it depends on")?;
    let rest = &content[start + KEY.len()..];
    let end = rest.iter().position(|byte| *byte == 0).context("no end")?;
    let names = std::str::from_utf8(&rest[..end])?.split(',');
    Ok(names
        .filter(|name| !name.is_empty())
        .map(|name| name.replace('-', "_"))
        .collect())
}

fn list(folder: &Path, files: &mut BTreeMap<String, PathBuf>) -> Result<()> {
    for entry in fs::read_dir(folder)? {
        let path = entry?.path();
        if path.is_dir() {
            list(&path, files)?;
        } else if let Some((name, _)) = path
            .file_name()
            .and_then(|name| name.to_str()?.split_once(".ko"))
        {
            files.insert(name.replace('-', "_"), path);
        }
    }
    Ok(())
}

fn read(file: &Path) -> Result<Vec<u8>> {
    let extension = file.extension().and_then(|extension| extension.to_str());
    let program = match extension {
        Some("ko") => {
            return fs::read(file).with_context(|| format!("cannot read {}", file.display()));
        }
        Some("xz") => "xz",
        Some("zst") => "zstd",
        _ => bail!("{} is packed in an unknown way", file.display()),
    };
    let output = Command::new(program)
        .args(["--decompress", "--stdout"])
        .arg(file)
        .output()
        .with_context(|| format!("cannot run {program}"))?;
    ensure!(output.status.success(), "cannot unpack {}", file.display());
    Ok(output.stdout)
}
