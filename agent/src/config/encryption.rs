//! `[cluster.NAME.encryption]`: keys, and where they lie.

use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail, ensure};
use walkeep_core::layout::ClusterName;

use super::Secret;
use super::raw::RawEncryption;
use crate::encryption::keys::Recipients;

/// Keys of age. Recipients where one writes, identities where one reads; one host may have both.
#[derive(Debug, Clone, Default)]
pub struct EncryptionConfig {
    /// For whom things are encrypted.
    pub recipients: Recipients,
    /// More of them, one a line; read again when it changes.
    pub recipients_file: Option<PathBuf>,
    /// The file with this host's identities.
    pub identity_file: Option<PathBuf>,
    /// The key of fingerprints, where it is not the spool's: hosts of one cluster may share it.
    pub fingerprint_key_file: Option<PathBuf>,
    /// An identity itself, from the environment.
    pub identity: Option<Secret>,
    /// The folder in which systemd hands credentials over.
    pub credentials: Option<PathBuf>,
}

impl EncryptionConfig {
    /// Whether something can be encrypted.
    pub fn has_recipients(&self) -> bool {
        !self.recipients.is_empty() || self.recipients_file.is_some()
    }
}

/// `None` if nothing is said of encryption. A unit that is handed an identity needs to say no more.
pub fn check(raw: RawEncryption, name: &ClusterName, env: &dyn Fn(&str) -> Option<String>) -> Result<Option<EncryptionConfig>> {
    let RawEncryption { recipients: written, recipients_file, identity_file, fingerprint_key_file, identity } = raw;
    let mut recipients = Recipients::default();
    for text in written.iter().flat_map(|written| written.texts()) {
        let parsed = Recipients::parse(text).and_then(|recipient| recipients.add(recipient));
        parsed.with_context(|| format!("[cluster.{name}.encryption] recipients"))?;
    }
    let file = |key: &str, path: Option<String>| {
        // Whoever puts the key itself there must not find it in a log.
        let variable = format!("WALKEEP_ENCRYPTION_{}", key.to_uppercase());
        let from = env(&variable).map_or_else(|| format!("[cluster.{name}.encryption] {key}"), |_| variable);
        ensure!(path.as_ref().is_none_or(|path| path.starts_with('/')), "{from}: not an absolute path (not shown)");
        Ok(path.map(PathBuf::from))
    };
    let credentials = env("CREDENTIALS_DIRECTORY").map(PathBuf::from).filter(|folder| folder.is_absolute());
    let config = EncryptionConfig {
        recipients,
        recipients_file: file("recipients_file", recipients_file)?,
        identity_file: file("identity_file", identity_file)?,
        fingerprint_key_file: file("fingerprint_key_file", fingerprint_key_file)?,
        identity: identity.filter(|identity| !identity.trim().is_empty()).map(Secret::from),
        credentials,
    };
    let handed_over = config.credentials.as_ref().is_some_and(|folder| folder.join(crate::encryption::CREDENTIAL).exists());
    let is_said = config.has_recipients() || config.identity_file.is_some() || config.identity.is_some() || handed_over;
    Ok(is_said.then_some(config))
}

/// An identity in a file that everybody on the host reads is no secret.
pub fn refuse_shown_identity(text: &str, name: &ClusterName, path: Option<&Path>) -> Result<()> {
    let Some(path) = path else { return Ok(()) };
    let table: toml::Table = text.parse().unwrap_or_default();
    let identity = table.get("cluster").and_then(|clusters| clusters.get(name.as_str())?.get("encryption")?.get("identity"));
    let mode = std::fs::metadata(path).map_or(0, |found| found.mode());
    if identity.is_some() && mode & 0o004 != 0 {
        bail!(
            "{}: there is an identity in it, and every user of this host can read it (mode {:04o}): put it into a file of its own, identity_file, with \
             mode 0600, and take a new key if others may have read this one",
            path.display(),
            mode & 0o7777
        );
    }
    Ok(())
}
