//! Packages of Debian and Ubuntu: found and checked by apt, unpacked into a cache, never installed.

use std::{
    fs,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use anyhow::{Context as _, Result, bail, ensure};

/// Signs every suite of Debian; apt refuses what it has not signed.
const KEYRING: &str = "/usr/share/keyrings/debian-archive-keyring.gpg";
/// Signs every suite of Ubuntu, and comes in a package of the same name, which Debian has signed.
const UBUNTU_KEYRING: &str = "ubuntu-archive-keyring";
const UBUNTU: &str = "http://archive.ubuntu.com/ubuntu";

/// A mirror may be between two versions of itself.
const RETRIES: &str = "-oAcquire::Retries=4";

/// Who made a suite.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Origin {
    Debian,
    Ubuntu,
}

/// A suite of Debian with package lists of its own, so that those of the machine stay as they are.
pub(crate) struct Suite {
    place: PathBuf,
    options: Vec<String>,
}

impl Suite {
    /// Fetches the package lists of the suite `name` into `cache`.
    pub(crate) fn update(cache: &Path, origin: Origin, name: &str) -> Result<Self> {
        let (archive, keyring) = match origin {
            Origin::Debian => (archive()?, PathBuf::from(KEYRING)),
            Origin::Ubuntu => (UBUNTU.to_owned(), ubuntu_keyring(cache)?),
        };
        let place = cache.join("apt").join(name);
        for folder in ["lists/partial", "cache/archives/partial"] {
            fs::create_dir_all(place.join(folder))
                .with_context(|| format!("cannot make {}", place.display()))?;
        }
        let sources = place.join("sources.list");
        let keyring = keyring.display();
        let line = format!("deb [signed-by={keyring}] {archive} {name} main\n");
        fs::write(&sources, line).with_context(|| format!("cannot write {}", sources.display()))?;
        let set = |key: &str, value: &Path| format!("-o{key}={}", value.display());
        let suite = Self {
            options: vec![
                set("Dir::Etc::sourcelist", &sources),
                "-oDir::Etc::sourceparts=-".to_owned(),
                set("Dir::State::lists", &place.join("lists")),
                set("Dir::Cache", &place.join("cache")),
                // Its own user cannot write below a home directory.
                "-oAPT::Sandbox::User=root".to_owned(),
                "-oAcquire::IndexTargets::deb::DEP-11::DefaultEnabled=false".to_owned(),
                "-oAcquire::Languages=none".to_owned(),
                RETRIES.to_owned(),
            ],
            place,
        };
        suite.say("apt-get", &["-qq", "update"])?;
        Ok(suite)
    }

    /// The names of packages that begin so.
    pub(crate) fn packages(&self, prefix: &str) -> Result<Vec<String>> {
        let names = self.say("apt-cache", &["pkgnames", prefix])?;
        Ok(names.lines().map(ToOwned::to_owned).collect())
    }

    /// The packages that `package` depends on directly.
    pub(crate) fn dependencies(&self, package: &str) -> Result<Vec<String>> {
        let answer = self.say("apt-cache", &["depends", "--important", package])?;
        let names = answer
            .lines()
            .filter_map(|line| line.trim().strip_prefix("Depends: "));
        Ok(names.map(ToOwned::to_owned).collect())
    }

    /// Fetches packages and unpacks them into `place`.
    pub(crate) fn unpack(&self, packages: &[String], place: &Path) -> Result<()> {
        let folder = fresh(&self.place.join("packages"))?;
        let mut command = Command::new("apt-get");
        command
            .args(&self.options)
            .args(["-qq", "download"])
            .args(packages);
        run(command.current_dir(&folder))?;
        unpack_all(&folder, place)
    }

    fn say(&self, program: &str, arguments: &[&str]) -> Result<String> {
        run(Command::new(program).args(&self.options).args(arguments))
    }
}

/// Fetches what the machine lacks of packages of its own release, and unpacks all of it into `place`.
pub(crate) fn unpack_with_dependencies(
    packages: &[&str],
    folder: &Path,
    place: &Path,
) -> Result<()> {
    let folder = fresh(folder)?;
    let install = ["install", "--simulate", "--no-install-recommends"];
    let plan = || run(Command::new("apt-get").args(install).args(packages));
    let plan = if let Ok(plan) = plan() {
        plan
    } else {
        // A new machine has no lists, or old ones.
        run(Command::new("apt-get").args(["-qq", RETRIES, "update"]))?;
        plan()?
    };
    let missing = plan.lines().filter_map(|line| {
        let mut words = line.strip_prefix("Inst ")?.split_whitespace();
        let name = words.next()?;
        // Of `[installed] (new suite [architecture])`, where the first is there if it is an upgrade.
        let version = words.find_map(|word| word.strip_prefix('('))?;
        Some(format!("{name}={version}"))
    });
    let missing: Vec<_> = missing.collect();
    ensure!(
        !missing.is_empty(),
        "apt has nothing to fetch for {}",
        packages.join(", ")
    );
    let mut command = Command::new("apt-get");
    command
        .args(["-qq", "-oAPT::Sandbox::User=root", RETRIES, "download"])
        .args(missing);
    run(command.current_dir(&folder))?;
    unpack_all(&folder, place)
}

fn ubuntu_keyring(cache: &Path) -> Result<PathBuf> {
    let place = cache.join(UBUNTU_KEYRING);
    if !place.exists() {
        let suite = Suite::update(cache, Origin::Debian, "trixie")?;
        suite.unpack(&["ubuntu-keyring".to_owned()], &place)?;
    }
    Ok(place
        .join("usr/share/keyrings")
        .join(UBUNTU_KEYRING)
        .with_extension("gpg"))
}

/// Where this machine has its Debian from.
fn archive() -> Result<String> {
    let format = "--format=$(ORIGIN) $(REPO_URI)";
    let targets =
        run(Command::new("apt-get").args(["indextargets", format, "Created-By: Packages"]))?;
    let own = targets.lines().filter_map(|line| {
        let uri = line.strip_prefix("Debian ")?.trim_end_matches('/');
        uri.ends_with("/debian").then(|| uri.to_owned())
    });
    let mut own = own;
    Ok(own
        .next()
        .unwrap_or_else(|| "http://deb.debian.org/debian".to_owned()))
}

fn unpack_all(folder: &Path, place: &Path) -> Result<()> {
    let cannot = || format!("cannot unpack into {}", place.display());
    // Whoever ends halfway must not leave what looks whole.
    let partial = fresh(&place.with_extension("partial"))?;
    for package in fs::read_dir(folder).with_context(cannot)? {
        let package = package.with_context(cannot)?.path();
        run(Command::new("dpkg-deb")
            .arg("--extract")
            .args([&package, &partial]))?;
    }
    fs::remove_dir_all(folder).with_context(cannot)?;
    fs::rename(&partial, place).with_context(cannot)
}

fn fresh(folder: &Path) -> Result<PathBuf> {
    if folder.exists() {
        fs::remove_dir_all(folder).with_context(|| format!("cannot empty {}", folder.display()))?;
    }
    fs::create_dir_all(folder).with_context(|| format!("cannot make {}", folder.display()))?;
    Ok(folder.to_owned())
}

/// Runs a command that must succeed, and returns what it says.
pub(crate) fn run(command: &mut Command) -> Result<String> {
    let output = command
        .stdin(Stdio::null())
        .output()
        .with_context(|| format!("cannot run {}", command.get_program().display()))?;
    if !output.status.success() {
        let said = String::from_utf8_lossy(&output.stderr);
        bail!("`{command:?}` failed: {}", said.trim());
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}
