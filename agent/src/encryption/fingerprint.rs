//! What an encrypted object says to its own host without being read: whether it holds the same.
//!
//! A host that only writes must still tell "the same again" from "another content under this name". So beside the recipients' stanzas an object's
//! header has one that no age program minds: `-> walkeep 1 <key> <hash>`, a keyed hash of the object's description. Without the key, which never leaves
//! the host, it says nothing, not even to somebody who guesses the content. Losing the key costs comparisons, never data.

use std::collections::HashSet;
use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use age_core::format::{FileKey, Stanza};

use crate::codec::Description;
use crate::durable;

/// The stanza's tag.
const TAG: &str = "walkeep";

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

/// The key of one host, or of all hosts of a cluster that share it.
#[derive(Default)]
pub struct FingerprintKey {
    /// The file; none on a host that keeps nothing.
    file: Option<PathBuf>,
    key: Mutex<Held>,
}

#[derive(Default)]
enum Held {
    #[default]
    No,
    /// It could not be read or made, which was told.
    Failed,
    Yes([u8; 32]),
}

impl FingerprintKey {
    /// The name of the key's file where none is configured.
    pub const FILE: &str = "fingerprint.key";

    /// The key in this file, made when it is first needed.
    pub fn in_file(file: &Path) -> Self {
        Self { file: Some(file.to_owned()), key: Mutex::default() }
    }

    /// The fingerprint of what is described so; `None` without a key.
    pub fn of(&self, description: &Description) -> Option<Fingerprint> {
        Some(fingerprint(&self.key()?, description))
    }

    fn key(&self) -> Option<[u8; 32]> {
        let file = self.file.as_ref()?;
        let mut held = self.key.lock().unwrap_or_else(PoisonError::into_inner);
        if let Held::Yes(key) = *held {
            return Some(key);
        }
        match read_or_make(file) {
            Ok(key) => {
                *held = Held::Yes(key);
                Some(key)
            }
            // Asked for again each time: a disk that was full has room again.
            Err(error) => {
                if !matches!(*held, Held::Failed) {
                    tracing::warn!(
                        error = format!("{error:#}"),
                        "the key of fingerprints cannot be used: what is stored now cannot be compared with what is offered later, but by an identity"
                    );
                }
                *held = Held::Failed;
                None
            }
        }
    }
}

impl fmt::Debug for FingerprintKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("FingerprintKey").field("file", &self.file).finish_non_exhaustive()
    }
}

pub(super) fn fingerprint(key: &[u8; 32], description: &Description) -> Fingerprint {
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
        let file = here.path().join("spool").join(FingerprintKey::FILE);
        let key = FingerprintKey::in_file(&file);
        let (one, other) = (key.of(&description(b"one")).unwrap(), key.of(&description(b"other")).unwrap());
        let again = FingerprintKey::in_file(&file).of(&description(b"one")).unwrap();
        assert_eq!((one.likeness(&again), one.likeness(&other)), (Likeness::Same, Likeness::Other));
        let elsewhere = FingerprintKey::in_file(&there.path().join("key")).of(&description(b"one")).unwrap();
        assert_eq!(one.likeness(&elsewhere), Likeness::Unknown);
        assert_ne!(one.hash, elsewhere.hash, "without the key nobody can tell that it is the same");
        let mode = std::os::unix::fs::PermissionsExt::mode(&std::fs::metadata(file).unwrap().permissions());
        assert_eq!(mode & 0o777, 0o600);
    }

    #[test]
    fn a_key_that_cannot_be_used_is_none() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("key");
        std::fs::write(&file, b"short").unwrap();
        let key = FingerprintKey::in_file(&file);
        assert_eq!(key.of(&description(b"one")), None);
        // And usable again as soon as it is mended.
        std::fs::write(&file, [7; 32]).unwrap();
        assert_eq!(key.of(&description(b"one")), Some(fingerprint(&[7; 32], &description(b"one"))));
        assert_eq!(FingerprintKey::default().of(&description(b"one")), None);
    }

    #[test]
    fn only_headers_have_fingerprints() {
        let found = fingerprint(&[7; 32], &description(b"one"));
        let line = format!("-> walkeep 1 {} {}", found.key, found.hash);
        assert_eq!(Fingerprint::find(format!("age-encryption.org/v1\n{line}\n\n--- x").as_bytes()), Some(found));
        for front in [String::new(), format!("v1\n--- x\n{line}\n"), "v1\n-> walkeep 1 zz 00\n".into(), "v1\n-> walkeep 2 0 0\n".into()] {
            assert_eq!(Fingerprint::find(front.as_bytes()), None, "{front}");
        }
    }
}
