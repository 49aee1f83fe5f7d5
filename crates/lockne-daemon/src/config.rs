//! The files of the configuration.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use lockne_core::config::{Config, Text};

/// Where the configuration is if nobody says so.
pub const DEFAULT: &str = "/etc/lockne/lockne.toml";

/// A configuration: a main file, and a directory of more beside it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Files {
    main: PathBuf,
    may_lack: bool,
}

/// Why a configuration cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A file cannot be read.
    #[error("cannot read `{}`", path.display())]
    Read {
        /// The file, or the directory.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// Something in it is wrong.
    #[error("the configuration has mistakes\n{0}")]
    Wrong(lockne_core::config::Error),
}

impl Files {
    /// The configuration whose main file is this; it has to be there.
    #[must_use]
    pub fn new(main: &Path) -> Self {
        Self {
            main: std::path::absolute(main).unwrap_or_else(|_| main.to_owned()),
            may_lack: false,
        }
    }

    /// The configuration at the usual place; no file there is a configuration without rules.
    #[must_use]
    pub fn usual() -> Self {
        Self {
            main: DEFAULT.into(),
            may_lack: true,
        }
    }

    /// The same, but without a file it is a configuration without rules.
    #[must_use]
    pub fn or_nothing(self) -> Self {
        Self {
            may_lack: true,
            ..self
        }
    }

    /// The main file.
    #[must_use]
    pub fn main(&self) -> &Path {
        &self.main
    }

    /// The directory of the other files: `lockne.d` beside `lockne.toml`.
    #[must_use]
    pub fn directory(&self) -> PathBuf {
        self.main.with_extension("d")
    }

    /// Reads every file, the main one first and the others by name.
    ///
    /// # Errors
    ///
    /// If one of them cannot be read, or is not text.
    pub fn read(&self) -> Result<Vec<Text>, Error> {
        let mut texts = Vec::new();
        match read(&self.main) {
            Err(Error::Read { source, .. })
                if self.may_lack && source.kind() == io::ErrorKind::NotFound => {}
            text => texts.push(text?),
        }
        let directory = self.directory();
        let failed = |source| Error::Read {
            path: directory.clone(),
            source,
        };
        let entries = match fs::read_dir(&directory) {
            Ok(entries) => entries,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(texts),
            Err(error) => return Err(failed(error)),
        };
        let mut paths = Vec::new();
        for entry in entries {
            let path = entry.map_err(failed)?.path();
            // What editors and package managers leave there has another ending or a dot in front.
            let is_hidden = path
                .file_name()
                .is_some_and(|name| name.as_encoded_bytes().starts_with(b"."));
            if !is_hidden && path.extension().is_some_and(|it| it == "toml") {
                paths.push(path);
            }
        }
        paths.sort();
        for path in paths {
            texts.push(read(&path)?);
        }
        Ok(texts)
    }

    /// Reads the configuration.
    ///
    /// # Errors
    ///
    /// If a file cannot be read, or something in it is wrong.
    pub fn load(&self) -> Result<Config, Error> {
        Config::parse(&self.read()?).map_err(Error::Wrong)
    }
}

fn read(path: &Path) -> Result<Text, Error> {
    let text = fs::read_to_string(path).map_err(|source| Error::Read {
        path: path.to_owned(),
        source,
    })?;
    Ok(Text {
        path: path.to_owned(),
        text,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_come_in_their_order_and_leftovers_of_editors_do_not() {
        let place = tempfile::tempdir().unwrap();
        let files = Files::new(&place.path().join("lockne.toml"));
        fs::create_dir(files.directory()).unwrap();
        fs::write(files.main(), "# main").unwrap();
        for name in ["b.toml", "a.toml", "a.toml~", ".c.toml", "d.toml.swp"] {
            fs::write(files.directory().join(name), name).unwrap();
        }

        let texts: Vec<_> = files
            .read()
            .unwrap()
            .into_iter()
            .map(|it| it.text)
            .collect();

        assert_eq!(texts, ["# main", "a.toml", "b.toml"]);
    }

    #[test]
    fn file_that_is_not_there_is_an_error_only_if_somebody_named_it() {
        let place = tempfile::tempdir().unwrap();
        let files = Files::new(&place.path().join("lockne.toml"));

        assert!(matches!(files.load(), Err(Error::Read { .. })));
        assert!(files.or_nothing().load().unwrap().rules.is_empty());
    }
}
