//! Looks at the machine, and changes nothing: [`lockne_core::doctor`] says what it means.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::Path,
};

use lockne_abi::MarkField;
use lockne_core::doctor::{Facts, Symbol};
use tokio::runtime;

use crate::{
    Error,
    kernel::{self, Reading},
    leftover,
    route::{self, Netlink},
    state_dir::StateDir,
};

/// What is seen from here, by root or by another user, of this machine and of the lockne in `state`.
///
/// # Errors
///
/// Fails if the rules of this network namespace cannot be listed.
pub fn look(field: MarkField, state: &StateDir) -> Result<Facts, Error> {
    let runtime = runtime::Builder::new_current_thread().enable_all().build();
    let rules = runtime
        .map_err(Error::Runtime)?
        .block_on(async { Netlink::open()?.foreign_rules().await })?;
    let release = rustix::system::uname();
    let release = release.release().to_string_lossy().into_owned();
    Ok(Facts {
        symbols: symbols(),
        cgroup2: text("/proc/filesystems")
            .lines()
            .any(|line| line.ends_with("\tcgroup2")),
        netns_cookie: kernel::has_netns_cookie(),
        tun: Path::new("/dev/net/tun").exists(),
        wireguard: has_module(&release, "wireguard"),
        sock_destroy: setting(&release, "CONFIG_INET_DIAG_DESTROY"),
        exclusive_hooks: kernel::exclusive_hooks(),
        mark_mask: field.mask(),
        rules,
        services: services(),
        rp_filter: rp_filter(),
        hosts: hosts(&text("/etc/nsswitch.conf")),
        nscd: Path::new("/run/nscd/socket").exists(),
        ipv6: route::has_ipv6() && text("/proc/sys/net/ipv6/conf/all/disable_ipv6").trim() == "0",
        direct_now: leftover::status(state)
            .ok()
            .flatten()
            .map(|status| status.policies)
            .unwrap_or_default()
            .into_iter()
            .filter(|policy| policy.direct_now)
            .map(|policy| policy.terms.to_string())
            .collect(),
        room: Reading::open(&state.pins()).and_then(|it| it.room()).ok(),
        release,
    })
}

fn text(path: impl AsRef<Path>) -> String {
    fs::read_to_string(path).unwrap_or_default()
}

/// The names in the kernel's types lie there as texts that end with a zero.
fn symbols() -> Option<BTreeSet<Symbol>> {
    let types = fs::read("/sys/kernel/btf/vmlinux").ok()?;
    let has = |name: &str| {
        let name = format!("\0{name}\0");
        types.windows(name.len()).any(|it| it == name.as_bytes())
    };
    let symbols = Symbol::ALL.into_iter().filter(|(_, name)| has(name));
    Some(symbols.map(|(symbol, _)| symbol).collect())
}

fn has_module(release: &str, name: &str) -> bool {
    let modules = Path::new("/lib/modules").join(release);
    let listed = |list: &str| {
        let list = text(modules.join(list));
        list.lines().any(|line| {
            let path = line.split(':').next().unwrap_or_default();
            let file = path.rsplit('/').next().unwrap_or_default();
            file.split('.').next() == Some(name)
        })
    };
    Path::new("/sys/module").join(name).exists()
        || listed("modules.builtin")
        || listed("modules.dep")
}

/// A setting of the kernel's build, where the distribution keeps them.
fn setting(release: &str, name: &str) -> Option<bool> {
    let built = fs::read_to_string(format!("/boot/config-{release}")).ok()?;
    Some(built.lines().any(|line| line == format!("{name}=y")))
}

/// The units of the system that have processes.
fn services() -> BTreeSet<String> {
    let slices = fs::read_dir("/sys/fs/cgroup/system.slice");
    let entries = slices.into_iter().flatten().filter_map(Result::ok);
    let names = entries.map(|entry| entry.file_name().to_string_lossy().into_owned());
    names
        .filter(|name| {
            Path::new(name)
                .extension()
                .is_some_and(|it| it == "service")
        })
        .collect()
}

fn rp_filter() -> BTreeMap<String, u8> {
    let interfaces = fs::read_dir("/proc/sys/net/ipv4/conf");
    let entries = interfaces.into_iter().flatten().filter_map(Result::ok);
    let values = entries.filter_map(|entry| {
        let value = text(entry.path().join("rp_filter")).trim().parse().ok()?;
        Some((entry.file_name().to_string_lossy().into_owned(), value))
    });
    values.collect()
}

fn hosts(nsswitch: &str) -> Option<String> {
    let mut lines = nsswitch.lines();
    let line = lines.find_map(|line| line.trim_start().strip_prefix("hosts:"))?;
    let line = line.split('#').next().unwrap_or_default();
    Some(line.trim().to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hosts_line_is_found_without_its_comment() {
        let file = "passwd: files\n hosts:  files resolve [!UNAVAIL=return] dns # local\n";

        let expected = "files resolve [!UNAVAIL=return] dns";
        assert_eq!(hosts(file).as_deref(), Some(expected));
        assert_eq!(hosts("passwd: files"), None);
    }
}
