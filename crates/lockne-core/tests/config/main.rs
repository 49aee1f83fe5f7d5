//! Configurations as users write them.

mod good;
mod property;
mod refused;

use lockne_core::config::{Config, Error, Text};

/// Parses files, given with their names.
pub(crate) fn parse(files: &[(&str, &str)]) -> Result<Config, Error> {
    let texts = files.iter().map(|(path, text)| Text {
        path: path.into(),
        text: (*text).to_owned(),
    });
    Config::parse(&texts.collect::<Vec<_>>())
}
