//! What an encrypted object says to its own host without being read: whether it holds the same.
//!
//! A host that only writes must still tell "the same again" from "another content under this name". So beside the recipients' stanzas an object's
//! header has one that no age program minds: `-> walkeep 1 <key> <hash>`, a keyed hash of the object's description. Without the key, which never leaves
//! the host, it says nothing, not even to somebody who guesses the content. Losing the key costs comparisons, never data.

use std::collections::HashSet;
use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use age_core::format::{FileKey, Stanza};

use crate::codec::Description;
use crate::durable;

/// The stanza's tag.
const TAG: &str = "walkeep";
/// The key's name in the spool.
const FILE: &str = "fingerprint.key";
/// What is public anyway is marked by a key that everybody has.
const PUBLIC: &[u8; 32] = b"walkeep fingerprint, public key.";

/// An object's fingerprint: which key, and the hash.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Fingerprint {
    key: String,
    hash: String,
}

/// What two fingerprints say of two objects.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Likeness {
    /// They hold the same.
    Same,
    /// They do not.
    Other,
    /// Made by different keys: nobody knows.
    Unknown,
}

impl Fingerprint {
    /// Compares.
    pub fn likeness(&self, other: &Self) -> Likeness {
        match (self.key == other.key, self.hash == other.hash) {
            (false, _) => Likeness::Unknown,
            (true, true) => Likeness::Same,
            (true, false) => Likeness::Other,
        }
    }

    /// The fingerprint in the header at the front of an age file; `None` if there is none.
    pub fn find(front: &[u8]) -> Option<Self> {
        let lines = front.split(|byte| *byte == b'\n').take_while(|line| !line.starts_with(b"---"));
        let text = lines.into_iter().find_map(|line| std::str::from_utf8(line).ok()?.strip_prefix("-> walkeep 1 "))?;
        let (key, hash) = text.split_once(' ')?;
        let is_hex = |text: &str, length| text.len() == length && text.bytes().all(|b| b.is_ascii_hexdigit());
        (is_hex(key, 16) && is_hex(hash, 64)).then(|| Self { key: key.into(), hash: hash.into() })
    }
}

/// So that age puts it into the header it writes. It wraps nothing: nobody can decrypt by it.
impl age::Recipient for Fingerprint {
    fn wrap_file_key(&self, _: &FileKey) -> Result<(Vec<Stanza>, HashSet<String>), age::EncryptError> {
        let args = vec!["1".into(), self.key.clone(), self.hash.clone()];
        Ok((vec![Stanza { tag: TAG.into(), args, body: Vec::new() }], HashSet::new()))
    }
}

/// The key of one host.
#[derive(Default)]
pub struct FingerprintKey {
    /// Where it lies; nowhere on a host that keeps nothing.
    folder: Option<PathBuf>,
    key: OnceLock<Option<[u8; 32]>>,
}

impl FingerprintKey {
    /// The key in this folder, made when it is first needed.
    pub fn in_folder(folder: &Path) -> Self {
        Self { folder: Some(folder.to_owned()), key: OnceLock::new() }
    }

    /// The fingerprint of what is described so; `None` without a key.
    pub fn of(&self, description: &Description) -> Option<Fingerprint> {
        let key = self.key.get_or_init(|| self.load()).as_ref()?;
        Some(fingerprint(key, description))
    }

    fn load(&self) -> Option<[u8; 32]> {
        let path = self.folder.as_ref()?.join(FILE);
        match read_or_make(&path) {
            Ok(key) => Some(key),
            Err(error) => {
                tracing::warn!(
                    error = format!("{error:#}"),
                    "the key of fingerprints cannot be used: what is stored now cannot be compared with what is offered later, but by an identity"
                );
                None
            }
        }
    }
}

impl fmt::Debug for FingerprintKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("FingerprintKey").field("folder", &self.folder).finish_non_exhaustive()
    }
}

/// The fingerprint of what is no secret: a history says what the names of the segments say.
pub fn of_public(description: &Description) -> Fingerprint {
    fingerprint(PUBLIC, description)
}

fn fingerprint(key: &[u8; 32], description: &Description) -> Fingerprint {
    let text = serde_json::to_vec(description).unwrap_or_default();
    let name = blake3::derive_key("walkeep 2026 the name of a key of fingerprints", key);
    Fingerprint { key: hex::encode(&name[..8]), hash: blake3::keyed_hash(key, &text).to_hex().to_string() }
}

fn read_or_make(path: &Path) -> anyhow::Result<[u8; 32]> {
    use anyhow::Context;
    loop {
        match std::fs::read(path) {
            Ok(bytes) => return bytes.try_into().map_err(|_| anyhow::anyhow!("{} does not have 32 bytes", path.display())),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
            Err(error) => return Err(error).with_context(|| format!("read {}", path.display())),
        }
        if let Some(folder) = path.parent() {
            durable::create_dir(folder, durable::PRIVATE_DIR)?;
        }
        let mut key = [0; 32];
        rustix::rand::getrandom(&mut key, rustix::rand::GetRandomFlags::empty()).context("ask for random bytes")?;
        // Of two processes that make one at once, both use the first.
        durable::Staged::write(path, &key, durable::PRIVATE_FILE)?.publish_new()?;
        durable::sync_parent(path)?;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use walkeep_core::SystemIdentifier;

    fn description(content: &[u8]) -> Description {
        Description::of("x".into(), SystemIdentifier::new(7), None, content)
    }

    #[test]
    fn one_host_knows_its_own_again_and_another_does_not() {
        let (here, there) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let key = FingerprintKey::in_folder(&here.path().join("spool"));
        let (one, other) = (key.of(&description(b"one")).unwrap(), key.of(&description(b"other")).unwrap());
        let again = FingerprintKey::in_folder(&here.path().join("spool")).of(&description(b"one")).unwrap();
        assert_eq!((one.likeness(&again), one.likeness(&other)), (Likeness::Same, Likeness::Other));
        let elsewhere = FingerprintKey::in_folder(there.path()).of(&description(b"one")).unwrap();
        assert_eq!(one.likeness(&elsewhere), Likeness::Unknown);
        assert_ne!(one.hash, elsewhere.hash, "without the key nobody can tell that it is the same");
        let mode = std::os::unix::fs::PermissionsExt::mode(&std::fs::metadata(here.path().join("spool").join(FILE)).unwrap().permissions());
        assert_eq!(mode & 0o777, 0o600);
    }

    #[test]
    fn a_key_that_cannot_be_used_is_none() {
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join(FILE), b"short").unwrap();
        assert_eq!(FingerprintKey::in_folder(folder.path()).of(&description(b"one")), None);
        assert_eq!(FingerprintKey::default().of(&description(b"one")), None);
    }

    #[test]
    fn only_headers_have_fingerprints() {
        let found = of_public(&description(b"one"));
        let line = format!("-> walkeep 1 {} {}", found.key, found.hash);
        assert_eq!(Fingerprint::find(format!("age-encryption.org/v1\n{line}\n\n--- x").as_bytes()), Some(found));
        for front in [String::new(), format!("v1\n--- x\n{line}\n"), "v1\n-> walkeep 1 zz 00\n".into(), "v1\n-> walkeep 2 0 0\n".into()] {
            assert_eq!(Fingerprint::find(front.as_bytes()), None, "{front}");
        }
    }
}
