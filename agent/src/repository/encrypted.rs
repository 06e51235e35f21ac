//! Where the repository is encrypted: objects that hold data on their way in and out.
//!
//! What cannot be decrypted is said to be so ([`Error::CannotDecrypt`]), never to be absent or damaged. A host that only writes compares by
//! fingerprints, and reads its own copies of what it needs again ([`crate::encryption`]).

use std::collections::HashMap;
use std::io;
use std::ops::Range;
use std::sync::{Arc, Mutex, Once, PoisonError};

use bytes::Bytes;
use walkeep_core::blake3::Blake3Sum;
use walkeep_core::layout::{Form, ObjectName, PackId};
use walkeep_core::{SegmentName, WalFileName};
use walkeep_store::{ErrorKind, Key};

use super::{ClusterRepository, Error, Result, on_blocking_thread};
use crate::codec::{Description, FRONT};
use crate::encryption::copies::OwnCopies;
use crate::encryption::fingerprint::{Fingerprint, Likeness};
use crate::encryption::format::{self, OpenError};
use crate::encryption::{Encryption, keys};

/// Headers of packs that are remembered: many stretches are read of each.
const HEADERS: usize = 1024;

/// What makes an object out of its plain form: of one kind of object.
#[derive(Debug, Clone)]
pub(super) struct Sealer {
    encryption: Option<Arc<Encryption>>,
}

impl Sealer {
    /// The object. CPU work.
    pub fn seal(&self, description: Option<&Description>, plain: Bytes) -> io::Result<Bytes> {
        let Some(encryption) = &self.encryption else { return Ok(plain) };
        let fingerprint = description.and_then(|description| encryption.fingerprint(description));
        encryption.seal(fingerprint.as_ref(), &plain)
    }
}

/// The fronts of packs, up to their first chunk.
#[derive(Debug, Default)]
pub(super) struct PackHeaders(Mutex<HashMap<PackId, Bytes>>);

impl PackHeaders {
    fn get(&self, pack: PackId) -> Option<Bytes> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).get(&pack).cloned()
    }

    fn note(&self, pack: PackId, header: &Bytes) {
        let mut headers = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if headers.len() >= HEADERS {
            headers.clear();
        }
        headers.insert(pack, header.clone());
    }
}

impl ClusterRepository {
    /// The same with these keys.
    pub fn with_encryption(mut self, encryption: Option<Arc<Encryption>>) -> Self {
        self.encryption = encryption;
        self
    }

    /// Whether this host can read what is stored, as far as it can know.
    pub fn can_read(&self) -> bool {
        match self.identity().form {
            Form::Zstd => true,
            Form::Age => self.encryption.as_ref().is_some_and(|encryption| encryption.can_read()),
        }
    }

    /// Whether this host can tell of an object of this name whether it is what was stored: a pack has its name to be compared with, whoever can open it.
    pub fn can_prove(&self, name: &ObjectName) -> bool {
        self.can_read() || !name.holds_data() || matches!(name, ObjectName::Pack(_))
    }

    /// Who opens a stored object that none of the recipients configured now does: see [`Encryption::only_for`].
    pub fn only_for(&self, name: &ObjectName, object: &Bytes) -> Vec<String> {
        let keys = self.keys_for(name).ok().flatten();
        keys.filter(|_| name.holds_data()).map(|keys| keys.only_for(object)).unwrap_or_default()
    }

    /// Fails where the configuration and the repository do not agree on encryption.
    pub fn check_form(&self) -> Result<()> {
        let reason = match (self.identity().form, &self.encryption) {
            (Form::Zstd, None) | (Form::Age, Some(_)) => return Ok(()),
            (Form::Zstd, Some(_)) => "is not encrypted, and the configuration has keys",
            (Form::Age, None) => "is encrypted, and the configuration has no keys",
        };
        Err(Error::NotAsConfigured { url: self.repository().url(), cluster: self.cluster().to_string(), reason })
    }

    /// The keys, where objects of this name are encrypted.
    pub(super) fn keys_for(&self, name: &ObjectName) -> Result<Option<&Arc<Encryption>>> {
        match self.identity().form == Form::Age && name.holds_data() {
            true => self.check_form().map(|()| self.encryption.as_ref()),
            false => Ok(None),
        }
    }

    /// What seals objects like this one. Fails if nobody could read them.
    pub(super) fn sealer(&self, name: &ObjectName) -> Result<Sealer> {
        let encryption = self.keys_for(name)?;
        if let Some(encryption) = encryption {
            encryption.recipients().map_err(Error::keys)?;
        }
        Ok(Sealer { encryption: encryption.cloned() })
    }

    /// An object as it was before it was encrypted; `None` if it is not there.
    pub(super) async fn read_object(&self, name: &ObjectName) -> Result<Option<Bytes>> {
        let key = self.key(name)?;
        let Some(encryption) = self.keys_for(name)? else { return found(self.store().get(&key, None).await) };
        if !encryption.can_read() {
            return self.read_own(encryption, name, &key, "this host has no identity").await;
        }
        let Some(sealed) = found(self.store().get(&key, None).await)? else { return Ok(None) };
        let opener = encryption.clone();
        match on_blocking_thread(move || opener.unseal(&sealed)).await? {
            Err(OpenError::Locked(reason)) => self.read_own(encryption, name, &key, reason).await,
            opened => opened.map(Some).map_err(|error| unopened(&key, error)),
        }
    }

    /// The same of what is stored alone: no own copy stands in for what this host cannot decrypt.
    pub(super) async fn read_stored(&self, name: &ObjectName) -> Result<Option<Bytes>> {
        let Some(object) = found(self.store().get(&self.key(name)?, None).await)? else { return Ok(None) };
        self.opened(name, object).await.map(Some)
    }

    /// A stored object as it was before it was encrypted.
    pub(super) async fn opened(&self, name: &ObjectName, object: Bytes) -> Result<Bytes> {
        let Some(encryption) = self.keys_for(name)?.cloned() else { return Ok(object) };
        let key = self.key(name)?;
        on_blocking_thread(move || encryption.unseal(&object)).await?.map_err(|error| unopened(&key, error))
    }

    /// The host's own copy of an object that it cannot decrypt, if the object's fingerprint says that it is one.
    async fn read_own(&self, encryption: &Arc<Encryption>, name: &ObjectName, key: &Key, reason: &'static str) -> Result<Option<Bytes>> {
        let Some(front) = found(self.store().get(key, Some(0..FRONT)).await)? else { return Ok(None) };
        let (keeper, wanted) = (encryption.clone(), name.clone());
        let copy = on_blocking_thread(move || {
            let copy = keeper.copies().get(&wanted)?;
            let own = keeper.fingerprint(&copy.description)?;
            (Fingerprint::find(&front)?.likeness(&own) == Likeness::Same).then_some(copy.object)
        });
        copy.await?.map(Some).ok_or_else(|| unopened(key, OpenError::Locked(reason)))
    }

    /// Whether the object that is there holds what is described so, as far as that is known without reading it; `None` if there is none.
    pub(super) async fn likeness(&self, name: &ObjectName, offered: &Description) -> Result<Option<Likeness>> {
        let key = self.key(name)?;
        let Some(encryption) = self.keys_for(name)? else { return Ok(Some(Likeness::Unknown)) };
        let Some(front) = found(self.store().get(&key, Some(0..FRONT)).await)? else { return Ok(None) };
        let (keys, offered) = (encryption.clone(), offered.clone());
        let own = on_blocking_thread(move || keys.fingerprint(&offered)).await?;
        let likeness = own.zip(Fingerprint::find(&front)).map(|(own, stored)| stored.likeness(&own));
        Ok(Some(likeness.unwrap_or(Likeness::Unknown)))
    }

    /// Whether what this host stores has fingerprints.
    pub(super) async fn makes_fingerprints(&self, offered: &Description) -> Result<bool> {
        let (encryption, offered) = (self.encryption.clone(), offered.clone());
        on_blocking_thread(move || encryption.is_some_and(|keys| keys.fingerprint(&offered).is_some())).await
    }

    /// What is said where another object is there under a name, and nobody here knows what it holds.
    pub(super) fn not_comparable(&self, name: &ObjectName) -> Error {
        let reason =
            "something is stored there already, and this host can neither decrypt it nor know it again by its fingerprint".to_owned();
        Error::CannotDecrypt { key: self.layout().key(name), reason }
    }

    /// Keeps what was stored if this host reads it again and cannot from the repository.
    pub(super) async fn keep_copy(&self, name: &ObjectName, description: &Description, plain: Bytes) -> Result<()> {
        let Some(encryption) = self.keys_for(name)?.filter(|_| OwnCopies::wants(name)).cloned() else { return Ok(()) };
        let (name, description) = (name.clone(), description.clone());
        on_blocking_thread(move || encryption.copies().keep(&name, &description, &plain)).await
    }

    /// Whether [`ClusterRepository::keep_copy`] has something to do.
    pub(super) fn keeps_copy(&self, name: &ObjectName) -> bool {
        self.identity().form == Form::Age && OwnCopies::wants(name)
    }

    /// Forgets the copy of an object that was removed.
    pub(super) async fn forget_copy(&self, name: &ObjectName) -> Result<()> {
        let Some(encryption) = self.keys_for(name)?.filter(|_| OwnCopies::wants(name)).cloned() else { return Ok(()) };
        let name = name.clone();
        on_blocking_thread(move || encryption.copies().forget(&name)).await
    }

    /// Whether the segment that is stored holds what this hash is of, as far as this host knows without reading it.
    pub async fn likeness_of_segment(&self, segment: SegmentName, hash: Blake3Sum) -> Result<Option<Likeness>> {
        self.likeness(&ObjectName::Wal(WalFileName::Segment(segment)), &self.describe_segment(segment, hash)).await
    }

    /// Whether what is stored of a segment has a fingerprint of this host.
    pub async fn knows_fingerprint(&self, segment: SegmentName) -> Result<bool> {
        // Of any content: it is the key that is asked for.
        let likeness = self.likeness_of_segment(segment, Blake3Sum::new([0; 32])).await?;
        Ok(matches!(likeness, Some(Likeness::Same | Likeness::Other)))
    }

    /// A stretch of a pack as it was before it was encrypted; shorter if the pack ends before.
    pub(super) async fn read_stretch(&self, pack: PackId, wanted: Range<u64>) -> Result<Option<Bytes>> {
        let name = ObjectName::Pack(pack);
        let key = self.key(&name)?;
        let Some(encryption) = self.keys_for(&name)?.cloned() else { return found(self.store().get(&key, Some(wanted)).await) };
        let header = match self.pack_headers.get(pack) {
            Some(header) => header,
            None => {
                let Some(front) = found(self.store().get(&key, Some(0..format::HEADER)).await)? else { return Ok(None) };
                let header = format::header(&front).map_err(|error| unopened(&key, error))?;
                // A slice would keep all of the front.
                let header = Bytes::copy_from_slice(&header);
                self.pack_headers.note(pack, &header);
                header
            }
        };
        let Some(chunks) = found(self.store().get(&key, Some(format::sealed_range(&header, &wanted))).await)? else { return Ok(None) };
        let opened = on_blocking_thread(move || format::decrypt_range(encryption.identities(), &header, chunks, wanted)).await?;
        opened.map(|plain| Some(Bytes::from(plain))).map_err(|error| unopened(&key, error))
    }

    /// Passes on what was read; `None` if this host cannot decrypt it. Then what `unproven` says is not checked, which is told once.
    pub fn if_readable<T>(&self, read: Result<T>, unproven: &'static str) -> Result<Option<T>> {
        static TOLD: Once = Once::new();
        match read {
            Err(Error::CannotDecrypt { key, reason }) => {
                TOLD.call_once(|| {
                    tracing::warn!(
                        key,
                        reason,
                        unproven,
                        "this host cannot read what is stored: what it would compare with that is not compared. Told once"
                    );
                });
                tracing::debug!(key, unproven, "not read");
                Ok(None)
            }
            read => read.map(Some),
        }
    }
}

fn found(read: walkeep_store::Result<Bytes>) -> Result<Option<Bytes>> {
    match read {
        Ok(object) => Ok(Some(object)),
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error.into()),
    }
}

fn unopened(key: &Key, error: OpenError) -> Error {
    match error {
        OpenError::Locked(reason) => Error::CannotDecrypt { key: key.as_str().to_owned(), reason: reason.to_owned() },
        OpenError::Damaged(reason) => Error::corrupt(key.as_str(), reason),
    }
}

impl Error {
    /// Keys cannot be used.
    pub fn keys(error: keys::KeyError) -> Self {
        Self::Keys(error.to_string())
    }
}

#[cfg(test)]
mod tests;
