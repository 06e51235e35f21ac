//! What changes where a cluster has several repositories: each by itself, proof of absence from all of them, and the good one of several copies.

use std::fmt::Display;
use std::sync::Arc;

use bytes::Bytes;
use futures::future::BoxFuture;
use walkeep_core::backup::BackupRecord;
use walkeep_core::layout::{Form, ObjectName};
use walkeep_core::sealed;
use walkeep_store::several::Proof;
use walkeep_store::{ErrorKind, ObservedStore, SharedStore};

use super::wal::part_title;
use super::{ClusterRepository, Error, Repository, Result, encrypted, on_blocking_thread};
use crate::codec;
use crate::encryption::fingerprint::{Fingerprint, Likeness};
use crate::encryption::format::{self, OpenError};

/// The most that an object may hold: the largest segment.
const MOST_PLAIN: u64 = 1 << 30;

/// How far an object was looked at.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Proven {
    /// It is what its name says.
    Whole,
    /// This host cannot decrypt it: it begins as it should.
    Outside,
}

impl ClusterRepository {
    /// The same, with another idea of what proves that something is absent; with one repository there is no question.
    pub fn demanding(&self, proof: Proof) -> Self {
        match self.store().demanding(proof) {
            Some(store) => Self { repository: Repository { store }, ..self.clone() },
            None => self.clone(),
        }
    }

    /// The same cluster in each of several repositories by itself; nothing with one.
    pub fn each(&self) -> Vec<Self> {
        let places = self.store().several().map(|several| several.places()).unwrap_or_default();
        places.into_iter().map(|store| self.at(store)).collect()
    }

    /// The same cluster, asked through another store around its own.
    pub fn through(&self, around: impl FnOnce(SharedStore) -> SharedStore) -> Self {
        let pack_headers = Arc::new(encrypted::PackHeaders::default());
        Self { repository: Repository { store: around(self.repository.store.clone()) }, pack_headers, ..self.clone() }
    }

    /// The same cluster in another store.
    fn at(&self, store: SharedStore) -> Self {
        let store: SharedStore = match &self.observer {
            Some(observer) => Arc::new(ObservedStore::new(store, observer.clone())),
            None => store,
        };
        // What was read of a damaged one must not be used for another.
        let pack_headers = Arc::new(encrypted::PackHeaders::default());
        Self { repository: Repository { store }, pack_headers, ..self.clone() }
    }

    /// What `read` makes of the object in another repository than the one that was read from, which has it damaged, as `damage` says. Fails with `damage`
    /// if no other one has it whole; if one of them could not be asked, as that did: damaged is only what no repository has whole.
    pub async fn elsewhere<'a, T, E: Display>(
        &self,
        key: &str,
        damage: E,
        is_damage: impl Fn(&E) -> bool,
        read: impl Fn(Self) -> BoxFuture<'a, std::result::Result<Option<T>, E>>,
    ) -> std::result::Result<Option<T>, E> {
        let Some(several) = self.store().several() else { return Err(damage) };
        tracing::warn!(key, reason = %damage, "not what was stored: looking into the other repositories");
        let (mut damaged, mut unsure) = (Vec::new(), None);
        for (index, place) in self.each().into_iter().enumerate() {
            match read(place).await {
                Ok(Some(found)) => {
                    damaged.iter().for_each(|bad| several.note_damaged(*bad, index, key));
                    return Ok(Some(found));
                }
                Ok(None) => {}
                Err(error) if is_damage(&error) => {
                    tracing::debug!(key, %error, "not whole there either");
                    damaged.push(index);
                }
                Err(error) => {
                    tracing::warn!(key, %error, "a repository could not be asked for a whole one");
                    unsure.get_or_insert(error);
                }
            }
        }
        Err(unsure.unwrap_or(damage))
    }

    /// Whether these bytes are what was stored under this name: fails with what is wrong.
    pub async fn prove_object(&self, name: &ObjectName, object: &Bytes) -> Result<Proven> {
        let key = self.layout().key(name);
        let encryption = self.keys_for(name)?.cloned();
        let (name, object, system) = (name.clone(), object.clone(), self.identity().system_identifier);
        on_blocking_thread(move || {
            let corrupt = |reason: &dyn Display| Error::corrupt(key.as_str(), reason);
            if let ObjectName::Pack(id) = &name {
                return match codec::sha256(&object) == *id.sha256() {
                    true => Ok(Proven::Whole),
                    false => Err(corrupt(&"its bytes do not have the SHA-256 that names it")),
                };
            }
            if let ObjectName::BackupRecord(id) = &name {
                return BackupRecord::parse(id, &object).map(|_| Proven::Whole).map_err(|error| corrupt(&error));
            }
            if key.ends_with(".json") {
                return sealed::check(&object).map(|()| Proven::Whole).map_err(|error| corrupt(&error));
            }
            let plain = match encryption {
                None => object,
                Some(encryption) if encryption.can_read() => match encryption.unseal(&object) {
                    Ok(plain) => plain,
                    Err(OpenError::Locked(_)) => return Ok(Proven::Outside),
                    Err(error) => return Err(corrupt(&error)),
                },
                Some(_) => return format::header(&object).map(|_| Proven::Outside).map_err(|error| corrupt(&error)),
            };
            if let ObjectName::BackupManifest(..) = &name {
                let looked = zstd::stream::copy_decode(&plain[..], std::io::sink());
                return looked.map(|()| Proven::Whole).map_err(|error| corrupt(&error));
            }
            let described = codec::decode_pieces(&plain, MOST_PLAIN, |_| Ok::<(), codec::CodecError>(()));
            let described = described.map_err(|error| Error::codec(&key, error))?;
            let title = match &name {
                ObjectName::Wal(file) => Some(file.to_string()),
                ObjectName::Part(part) => Some(part_title(*part)),
                _ => None,
            };
            match described.system_identifier == system && title.is_none_or(|title| title == described.name) {
                true => Ok(Proven::Whole),
                false => Err(corrupt(&format!("it holds {} of the cluster {}", described.name, described.system_identifier))),
            }
        })
        .await?
    }

    /// Whether two objects of this name hold the same though their bytes differ, by their fronts: what was encrypted twice, for example.
    pub fn hold_the_same(&self, name: &ObjectName, one: &[u8], other: &[u8]) -> bool {
        if matches!(name, ObjectName::Pack(_)) || !name.holds_data() {
            return false;
        }
        match self.identity().form {
            Form::Zstd => match (codec::describe(one), codec::describe(other)) {
                (Ok((one, _)), Ok((other, _))) => one.blake3 == other.blake3 && one.name == other.name,
                _ => false,
            },
            Form::Age => match (Fingerprint::find(one), Fingerprint::find(other)) {
                (Some(one), Some(other)) => one.likeness(&other) == Likeness::Same,
                _ => false,
            },
        }
    }

    /// What an object begins with, enough of it for [`Self::were_sealed_apart`].
    pub async fn front(&self, name: &ObjectName) -> Result<Bytes> {
        Ok(self.store().get(&self.key(name)?, Some(0..format::HEADER)).await?)
    }

    /// Whether two objects of this name were encrypted each by itself out of the same, by their fronts and how many bytes they have: behind other headers, which are
    /// longer for more recipients, lies as much. What is cut off has the other one's header, or less behind it.
    pub fn were_sealed_apart(&self, name: &ObjectName, (one, bytes): (&Bytes, u64), (other, others): (&Bytes, u64)) -> bool {
        let (Form::Age, Ok(header), Ok(another)) = (self.identity().form, format::header(one), format::header(other)) else { return false };
        let behind = |bytes: u64, header: &Bytes| bytes.checked_sub(header.len() as u64);
        header != another && behind(bytes, &header) == behind(others, &another) && self.hold_the_same(name, one, other)
    }

    /// A small object that `parse` understands, from a repository that has it whole; `None` if it is not there.
    pub(super) async fn parsed<T>(&self, name: &ObjectName, parse: impl Fn(&[u8]) -> Result<T> + Send) -> Result<Option<T>> {
        let key = self.key(name)?;
        let mut body = match self.store().get(&key, None).await {
            Ok(body) => body,
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
            Err(error) if error.kind() == ErrorKind::Corrupt => return Err(Error::corrupt(key.as_str(), error)),
            Err(error) => return Err(error.into()),
        };
        let mut damaged: (Vec<Bytes>, Option<Error>) = Default::default();
        loop {
            let damage = match parse(&body) {
                Err(error) if error.is_damage() => error,
                parsed => return parsed.map(Some),
            };
            let Some(several) = self.store().several() else { return Err(damage) };
            damaged.0.push(body);
            let damage = damaged.1.get_or_insert(damage);
            tracing::warn!(%key, reason = %damage, "not what was stored: looking into the other repositories");
            match several.get_unlike(&key, None, &damaged.0).await? {
                Some(other) => body = other,
                None => return Err(damaged.1.take().unwrap_or_else(|| Error::corrupt(key.as_str(), "no repository has it whole"))),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use walkeep_core::WalFileName;
    use walkeep_store::several::{Follow, Several, StoredWhen};
    use walkeep_store::{Fault, FaultyStore, MemoryStore, Operation, Rule, Store};

    use super::*;
    use crate::repository::tests::{over, record, segment};
    use crate::repository::wal::Stored;

    /// A repository in two places, each of them with everything.
    async fn two() -> (ClusterRepository, Arc<FaultyStore>, Arc<MemoryStore>, Arc<MemoryStore>) {
        let (one, other) = (Arc::new(MemoryStore::new()), Arc::new(MemoryStore::new()));
        let faulty = Arc::new(FaultyStore::new(other.clone()));
        let several = Several::new(vec![one.clone(), faulty.clone()], StoredWhen::All, Follow::Queued);
        (over(Arc::new(several)).await, faulty, one, other)
    }

    fn damage(repository: &ClusterRepository, name: &ObjectName, store: &MemoryStore, bytes: Bytes) {
        store.overwrite(&repository.key(name).unwrap(), bytes);
    }

    #[tokio::test]
    async fn a_record_that_was_edited_is_not_proven() {
        let (repository, ..) = two().await;
        let expiry = walkeep_core::expiry::Expiry::new(1, chrono::DateTime::UNIX_EPOCH, "db1".into());
        let name = ObjectName::Expiry(1);
        let json = walkeep_core::sealed::to_json(&expiry).unwrap();
        assert!(repository.prove_object(&name, &Bytes::from(json.clone())).await.is_ok());
        let edited = String::from_utf8(json).unwrap().replace("db1", "db2");
        assert!(matches!(repository.prove_object(&name, &Bytes::from(edited)).await, Err(Error::Corrupt { .. })));
    }

    #[tokio::test]
    async fn what_all_must_have_is_not_stored_while_one_has_other_bytes() {
        let (repository, _, one, other) = two().await;
        let file = WalFileName::Segment(segment(1));
        let name = ObjectName::Wal(file);
        damage(&repository, &name, &other, Bytes::from_static(b"rotten"));
        let content = Bytes::from(vec![7; 1 << 20]);
        for _ in 0..2 {
            // The primary has it from the first try on.
            repository.put_wal(file, content.clone()).await.unwrap_err();
            assert!(one.contains(&repository.key(&name).unwrap()));
        }
        let whole = one.get(&repository.key(&name).unwrap(), None).await.unwrap();
        damage(&repository, &name, &other, whole);
        repository.put_wal(file, content).await.unwrap();
    }

    /// What is there may be something else: only who has it at hand can say.
    #[tokio::test]
    async fn what_is_archived_is_not_called_stored_unread() {
        let file = WalFileName::Segment(segment(1));
        let content = Bytes::from(vec![7; 1 << 20]);
        let freeze = |faulty: &FaultyStore| {
            for operation in [Operation::Put, Operation::Get] {
                faulty.inject(Rule::new(operation, Fault::Fail(ErrorKind::Archived)).on("/wal/"));
            }
        };
        let (repository, faulty, ..) = two().await;
        repository.put_wal(file, content.clone()).await.unwrap();
        freeze(&faulty);
        let refused = repository.put_wal(file, content.clone()).await.unwrap_err();
        assert!(matches!(&refused, Error::NotComparable { name, .. } if *name == file.to_string()), "{refused:?}");
        assert!(refused.archived().is_some() && refused.hint().contains("walkeep thaw --wal"), "{refused}");
        faulty.heal();
        assert_eq!(repository.put_wal(file, content.clone()).await.unwrap(), Stored::Already);
        // Where one is enough, another that has it at hand says whether it is the same.
        let (other, one) = (Arc::new(MemoryStore::new()), Arc::new(FaultyStore::new(Arc::new(MemoryStore::new()))));
        let several = Several::new(vec![one.clone(), other.clone()], StoredWhen::Primary, Follow::Queued);
        let repository = over(Arc::new(several)).await;
        repository.put_wal(file, content.clone()).await.unwrap();
        freeze(&one);
        assert!(matches!(repository.put_wal(file, content.clone()).await, Err(Error::NotComparable { .. })));
        let key = repository.key(&ObjectName::Wal(file)).unwrap();
        one.heal();
        other.overwrite(&key, one.get(&key, None).await.unwrap());
        freeze(&one);
        assert_eq!(repository.put_wal(file, content).await.unwrap(), Stored::Already);
        assert!(matches!(repository.put_wal(file, Bytes::from(vec![8; 1 << 20])).await, Err(Error::Conflict { .. })));
    }

    #[tokio::test]
    async fn of_one_that_is_opened_later_each_has_to_be_reached_as_well() {
        let (repository, _, one, _) = two().await;
        let store = repository.store().clone();
        let open: crate::repository::later::OpenRepository = {
            let repository = repository.clone();
            Arc::new(move || {
                let repository = repository.clone();
                Box::pin(async move { Ok(repository) })
            })
        };
        let later = ClusterRepository::later(store.url(), repository.cluster().clone(), repository.identity().clone(), 3, open);
        let file = WalFileName::Segment(segment(9));
        let demanding = later.demanding(Proof::Every);
        assert!(demanding.get_wal(file).await.unwrap().is_none());
        one.delete(&"walkeep.json".parse().unwrap()).await.unwrap();
        assert!(demanding.get_wal(file).await.is_err(), "the first one is not what was configured: an empty directory, perhaps");
    }

    #[tokio::test]
    async fn damage_in_one_repository_is_mended_by_another_and_told() {
        let (repository, faulty, one, other) = two().await;
        let content = Bytes::from(vec![7; 1 << 20]);
        let file = WalFileName::Segment(segment(1));
        repository.put_wal(file, content.clone()).await.unwrap();
        repository.commit_backup(&record(1)).await.unwrap();
        let pack = repository.pack_object(Bytes::from_static(b"0123456789")).await.unwrap();
        repository.put_pack(&pack).await.unwrap();
        let (wal, backup) = (ObjectName::Wal(file), ObjectName::BackupRecord(record(1).id));
        let whole = one.get(&repository.key(&wal).unwrap(), None).await.unwrap();
        let mut flipped = whole.to_vec();
        *flipped.last_mut().unwrap() ^= 1;
        // In its description, cut off, in its content; one repository after the other.
        for bad in [Bytes::from_static(b"x"), whole.slice(..whole.len() / 2), flipped.into()] {
            damage(&repository, &wal, &one, bad);
            assert_eq!(repository.get_wal(file).await.unwrap().unwrap().content, content);
        }
        damage(&repository, &backup, &one, Bytes::from_static(b"{"));
        assert_eq!(repository.backup(&record(1).id).await.unwrap().unwrap(), record(1));
        damage(&repository, &ObjectName::Pack(pack.id()), &one, Bytes::from_static(b"0123"));
        assert_eq!(repository.get_extents(pack.id(), 2..8).await.unwrap(), "234567");
        let told = repository.store().several().unwrap().states()[0].fallbacks;
        assert!(told.damaged >= 5 && told.missing == 0, "{told:?}");
        damage(&repository, &wal, &other, Bytes::from_static(b"y"));
        assert!(matches!(repository.get_wal(file).await, Err(Error::Corrupt { .. })), "damaged in both");
        // Damaged in the one, and the other does not answer: it may be whole there.
        faulty.inject(Rule::new(Operation::Get, Fault::Fail(ErrorKind::Transient)));
        let unsure = repository.get_wal(file).await.unwrap_err();
        assert!(unsure.is_transient() && !unsure.is_damage(), "{unsure}");
        damage(&repository, &ObjectName::Pack(pack.id()), &one, Bytes::from_static(b"0123"));
        assert!(repository.get_extents(pack.id(), 2..8).await.unwrap_err().is_transient());
        faulty.heal();
        repository.store().several().unwrap().pass_over(1, "test".into(), std::time::Duration::ZERO);
        damage(&repository, &backup, &other, Bytes::from_static(b"["));
        assert_eq!(repository.backups().await.unwrap().damaged.len(), 1);
    }

    #[tokio::test]
    async fn a_catalog_without_one_of_the_repositories() {
        let (repository, faulty, one, _) = two().await;
        repository.commit_backup(&record(1)).await.unwrap();
        faulty.inject(Rule::new(Operation::List, Fault::Fail(ErrorKind::Transient)));
        faulty.inject(Rule::new(Operation::Get, Fault::Fail(ErrorKind::Transient)));
        assert!(repository.demanding(Proof::Every).load_catalog().await.is_err());
        assert_eq!(repository.load_catalog().await.unwrap().catalog.backups().len(), 1);
        // The same with the primary gone: only for who looks at what is left.
        faulty.heal();
        repository.store().several().unwrap().pass_over(1, "test".into(), std::time::Duration::ZERO);
        repository.store().several().unwrap().pass_over(0, "test".into(), std::time::Duration::from_secs(60));
        assert!(!one.is_empty());
        assert!(repository.load_catalog().await.is_err());
        assert_eq!(repository.demanding(Proof::Reachable).load_catalog().await.unwrap().catalog.backups().len(), 1);
    }
}
