//! The kernels to run on.

use std::{
    fs,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result};

use super::debian::{Origin, Suite};

/// A kernel by its version, and the suite that has it.
#[derive(Debug)]
pub(crate) struct Kernel {
    /// Its version as the user names it.
    pub(crate) name: &'static str,
    origin: Origin,
    suite: &'static str,
    /// What its release begins with; the highest is taken.
    release: &'static str,
    /// What its release ends with.
    kind: &'static str,
}

/// Every kernel, oldest first.
pub(crate) const KERNELS: [Kernel; 7] = [
    kernel("5.10", "bullseye", "5.10."),
    // Debian never had it.
    Kernel {
        name: "5.15",
        origin: Origin::Ubuntu,
        suite: "jammy-updates",
        release: "5.15.",
        kind: "-generic",
    },
    kernel("6.1", "bookworm", "6.1."),
    kernel("6.12", "trixie", "6.12."),
    kernel("6.16", "trixie-backports", "6.16."),
    kernel("6.18", "trixie-backports", "6.18."),
    kernel("newest", "trixie-backports", ""),
];

const fn kernel(name: &'static str, suite: &'static str, release: &'static str) -> Kernel {
    Kernel {
        name,
        origin: Origin::Debian,
        suite,
        release,
        // Those for clouds are smaller, and have the same network.
        kind: "-cloud-amd64",
    }
}

/// A kernel on this machine's disk.
pub(crate) struct Unpacked {
    /// As `uname -r` says it.
    pub(crate) release: String,
    /// The image to boot.
    pub(crate) image: PathBuf,
    /// Its modules.
    pub(crate) modules: PathBuf,
}

impl Kernel {
    /// Finds it in the cache, or fetches it.
    pub(crate) fn get(&self, cache: &Path) -> Result<Unpacked> {
        let place = cache.join("kernel").join(self.name);
        if !place.exists() {
            self.fetch(cache, &place)
                .with_context(|| format!("cannot fetch Linux {}", self.name))?;
        }
        Unpacked::find(&place)
    }

    fn fetch(&self, cache: &Path, place: &Path) -> Result<()> {
        const PREFIX: &str = "linux-image-";
        let suite = Suite::update(cache, self.origin, self.suite)?;
        let packages = suite.packages(&format!("{PREFIX}{}", self.release))?;
        let newest = packages
            .iter()
            .filter(|name| name.ends_with(self.kind))
            .map(|name| (version(&name[PREFIX.len()..]), name))
            .filter(|(version, _)| !version.is_empty())
            .max();
        let (_, image) = newest.with_context(|| format!("{} has none", self.suite))?;
        // Newer ones, and Ubuntu's, are several packages.
        let release = &image[PREFIX.len()..];
        let parts = ["linux-binary-", "linux-modules-", "linux-base-"];
        let parts = parts.map(|part| format!("{part}{release}"));
        let mut packages = suite.dependencies(image)?;
        packages.retain(|name| parts.contains(name));
        packages.push(image.clone());
        suite.unpack(&packages, place)
    }
}

/// The numbers at the beginning of a release; none for a package that only points to another.
fn version(release: &str) -> Vec<u32> {
    release
        .split(['.', '-', '+'])
        .map_while(|part| part.parse().ok())
        .collect()
}

impl Unpacked {
    fn find(place: &Path) -> Result<Self> {
        let lib = ["usr/lib/modules", "lib/modules"]
            .map(|lib| place.join(lib))
            .into_iter()
            .find(|lib| lib.exists())
            .with_context(|| format!("no modules in {}", place.display()))?;
        let folder = fs::read_dir(&lib)?.next().context("no modules")??;
        let release = folder.file_name().to_string_lossy().into_owned();
        let images = [
            place.join("boot").join(format!("vmlinuz-{release}")),
            folder.path().join("vmlinuz"),
        ];
        let image = images
            .into_iter()
            .find(|image| image.exists())
            .with_context(|| format!("no image in {}", place.display()))?;
        Ok(Self {
            release,
            image,
            modules: folder.path(),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::version;

    #[test]
    fn later_release_is_higher() {
        assert!(version("6.12.107+deb13-cloud-amd64") > version("6.12.94+deb13-cloud-amd64"));
        assert!(version("6.1.0-56-cloud-amd64") > version("6.1.0-9-cloud-amd64"));
        assert!(version("cloud-amd64").is_empty());
    }
}
