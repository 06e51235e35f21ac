//! Encryption with age: recipients on the host that writes, identities only where somebody reads.
//!
//! An object that holds data is a zstd file inside an age file, which `age -d | zstd -d` opens. This module makes and opens age files in memory ([`format`]),
//! knows keys ([`keys`]), and what a host needs that cannot read what it wrote: [`fingerprint`]s to compare by, and [`copies`] of its
//! own. It knows no stores; which objects are encrypted, and what an error means, the repository says.

pub mod copies;
pub mod fingerprint;
pub mod format;
pub mod keys;

use std::io;
use std::path::Path;
use std::sync::Arc;

use bytes::Bytes;

use crate::codec::Description;
use crate::config::{ClusterConfig, EncryptionConfig};
use copies::OwnCopies;
use fingerprint::{Fingerprint, FingerprintKey};
use format::OpenError;
use keys::{Identities, KeyError, Recipients, RecipientsSource};

/// The name under which systemd hands an identity over.
pub const CREDENTIAL: &str = "walkeep-identity";

/// The keys of one cluster, and what its host keeps beside them.
#[derive(Debug)]
pub struct Encryption {
    recipients: RecipientsSource,
    identities: Identities,
    fingerprints: FingerprintKey,
    copies: OwnCopies,
}

impl Encryption {
    /// With these keys, on a host that keeps nothing.
    pub fn new(recipients: RecipientsSource, identities: Identities) -> Self {
        Self { recipients, identities, fingerprints: FingerprintKey::default(), copies: OwnCopies::default() }
    }

    /// The same on a host with this folder.
    pub fn keeping(self, folder: &Path) -> Self {
        let fingerprints = FingerprintKey::in_file(&folder.join(FingerprintKey::FILE));
        Self { fingerprints, copies: OwnCopies::in_folder(&folder.join("own")), ..self }
    }

    /// As it is configured. Fails if a file of keys cannot be used: a host that shall read and cannot is told now.
    pub fn open(config: &EncryptionConfig, spool: &Path) -> Result<Self, KeyError> {
        let source = RecipientsSource::new(config.recipients.clone(), config.recipients_file.clone());
        if config.recipients_file.is_some() {
            source.now()?;
        }
        let mut keys = Self::new(source, identities(config)?).keeping(spool);
        if let Some(file) = &config.fingerprint_key_file {
            keys.fingerprints = FingerprintKey::in_file(file);
        }
        Ok(keys)
    }

    /// That of a cluster, if it has any.
    pub fn of(cluster: &ClusterConfig) -> Result<Option<Arc<Self>>, KeyError> {
        let open = |config| Self::open(config, &cluster.spool).map(Arc::new);
        cluster.encryption.as_ref().map(open).transpose()
    }

    /// Whether anything can be read here.
    pub fn can_read(&self) -> bool {
        !self.identities.is_empty()
    }

    /// For whom things are encrypted.
    pub fn recipients(&self) -> Result<Arc<Recipients>, KeyError> {
        let recipients = self.recipients.now()?;
        match recipients.is_empty() {
            true => Err(KeyError("no recipients are configured on this host: nothing can be stored from here".into())),
            false => Ok(recipients),
        }
    }

    /// Where recipients come from.
    pub fn source(&self) -> &RecipientsSource {
        &self.recipients
    }

    /// What this host reads with.
    pub fn identities(&self) -> &Identities {
        &self.identities
    }

    /// The host's own copies.
    pub fn copies(&self) -> &OwnCopies {
        &self.copies
    }

    /// The fingerprint of what is described so.
    pub fn fingerprint(&self, description: &Description) -> Option<Fingerprint> {
        self.fingerprints.of(description)
    }

    /// Encrypts. CPU work.
    pub fn seal(&self, fingerprint: Option<&Fingerprint>, plain: &[u8]) -> io::Result<Bytes> {
        let recipients = self.recipients().map_err(io::Error::other)?;
        format::encrypt(&recipients, fingerprint, plain)
    }

    /// The recipients of those identities here that open an object which none of the recipients configured now does, as far as their identities are here; nothing
    /// if one of them does, or none of theirs is here.
    pub fn only_for(&self, sealed: &[u8]) -> Vec<String> {
        let Ok(recipients) = self.recipients.now().map(|recipients| recipients.texts()) else { return Vec::new() };
        let (ours, others): (Vec<_>, Vec<_>) = self.identities.each().partition(|(recipient, _)| recipients.contains(recipient));
        if ours.is_empty() || ours.iter().any(|(_, identity)| format::is_for(*identity, sealed)) {
            return Vec::new();
        }
        others.into_iter().filter(|(_, identity)| format::is_for(*identity, sealed)).map(|(recipient, _)| recipient).collect()
    }

    /// Decrypts. CPU work.
    pub fn unseal(&self, sealed: &[u8]) -> Result<Bytes, OpenError> {
        format::decrypt(&self.identities, sealed).map(Bytes::from)
    }
}

/// From the file, from the configuration (which is the environment), and from systemd, whatever there is of them.
fn identities(config: &EncryptionConfig) -> Result<Identities, KeyError> {
    let mut all = Identities::default();
    if let Some(file) = &config.identity_file {
        all = all.and(&Identities::read(file)?);
    }
    if let Some(identity) = &config.identity {
        all = all.and(&Identities::parse_list(identity.reveal(), "identity")?);
    }
    if let Some(folder) = &config.credentials {
        let file = folder.join(CREDENTIAL);
        if file.exists() {
            all = all.and(&Identities::read(&file)?);
        }
    }
    Ok(all)
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use crate::config::Secret;

    /// Keys for tests: what writes, and what reads as well.
    pub(crate) fn writer_and_reader(folder: &Path) -> (Encryption, Encryption) {
        let (identity, recipient) = keys::generate();
        let recipients = || RecipientsSource::new(Recipients::parse_list(&recipient).unwrap(), None);
        let identities = Identities::parse_list(identity.reveal(), "test").unwrap();
        (Encryption::new(recipients(), Identities::default()).keeping(folder), Encryption::new(recipients(), identities))
    }

    #[test]
    fn identities_come_by_file_by_environment_and_by_systemd() {
        let folder = tempfile::tempdir().unwrap();
        let keys: Vec<_> = (0..3).map(|_| keys::generate()).collect();
        let file = folder.path().join("identity");
        std::fs::write(&file, keys[0].0.reveal()).unwrap();
        let credentials = folder.path().join("credentials");
        std::fs::create_dir(&credentials).unwrap();
        let mut config = EncryptionConfig { credentials: Some(credentials.clone()), ..EncryptionConfig::default() };
        assert!(!Encryption::open(&config, folder.path()).unwrap().can_read(), "a unit without the credential");
        std::fs::write(credentials.join(CREDENTIAL), keys[2].0.reveal()).unwrap();
        config.identity_file = Some(file.clone());
        config.identity = Some(Secret::from(keys[1].0.reveal().to_owned()));
        let opened = Encryption::open(&config, folder.path()).unwrap();
        assert_eq!(opened.identities().recipients(), keys.iter().map(|(_, recipient)| recipient.clone()).collect::<Vec<_>>());
        assert!(opened.recipients().unwrap_err().to_string().contains("no recipients"));
        std::fs::write(&file, "nonsense").unwrap();
        let refused = Encryption::open(&config, folder.path()).unwrap_err().to_string();
        assert!(refused.contains("line 1") && !refused.contains("nonsense"), "{refused}");
    }
}
