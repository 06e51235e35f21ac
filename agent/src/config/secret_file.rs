//! Secrets that are used again and again: where they come from. A file is read each time, so that one that was changed needs no restart.

use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail, ensure};

use super::Secret;

/// Where a secret comes from.
#[derive(Debug, Clone)]
pub enum SecretSource {
    /// A file.
    File(PathBuf),
    /// The environment, or the configuration.
    Given(Secret),
}

impl SecretSource {
    /// The secret now, without the line's end.
    pub fn read(&self) -> Result<Secret> {
        let text = match self {
            Self::File(path) => std::fs::read_to_string(path).with_context(|| format!("read the secret in {}", path.display()))?,
            Self::Given(secret) => secret.reveal().to_owned(),
        };
        let text = text.trim();
        ensure!(!text.is_empty(), "the secret{} is empty", self.place());
        Ok(Secret::from(text.to_owned()))
    }

    /// Where it is, for people.
    pub fn place(&self) -> String {
        match self {
            Self::File(path) => format!(" in {}", path.display()),
            Self::Given(_) => String::new(),
        }
    }
}

/// Of `key`: what is written itself, the file that `key`_file names, or the credential walkeep-`name` that systemd hands over. At most one is written.
pub(super) fn check(
    key: &str,
    given: Option<String>,
    file: Option<String>,
    name: &str,
    env: &dyn Fn(&str) -> Option<String>,
) -> Result<Option<SecretSource>> {
    let credential = || {
        let folder = env("CREDENTIALS_DIRECTORY").map(PathBuf::from).filter(|folder| folder.is_absolute())?;
        Some(folder.join(format!("walkeep-{name}"))).filter(|path| path.exists()).map(SecretSource::File)
    };
    Ok(match (given.filter(|given| !given.trim().is_empty()), file) {
        (Some(_), Some(_)) => bail!("{key} and {key}_file: one of them is enough"),
        (Some(given), None) => Some(SecretSource::Given(Secret::from(given))),
        (None, Some(path)) => {
            // Whoever puts the secret itself there must not find it in a log.
            ensure!(path.starts_with('/'), "{key}_file: not an absolute path (not shown)");
            Some(SecretSource::File(PathBuf::from(path)))
        }
        (None, None) => credential(),
    })
}

/// Secrets in a file that everybody on the host reads are none. `keys` are paths of tables and keys.
pub(super) fn refuse_shown(text: &str, path: Option<&Path>, keys: &[&[&str]]) -> Result<()> {
    let Some(path) = path else { return Ok(()) };
    let table: toml::Table = text.parse().unwrap_or_default();
    let mode = std::fs::metadata(path).map_or(0, |found| found.mode());
    for key in keys {
        let Some((first, rest)) = key.split_first() else { continue };
        let found = rest.iter().try_fold(table.get(*first), |value, key| value.map(|value| value.get(key))).flatten();
        if found.is_some() && mode & 0o004 != 0 {
            bail!(
                "{}: there is a secret in it, {}, and every user of this host can read it (mode {:04o}): put it into a file of its own, {}_file, with \
                 mode 0600, and take a new one if others may have read this one",
                path.display(),
                key.join("."),
                mode & 0o7777,
                key.join(".")
            );
        }
    }
    Ok(())
}
