//! Base backups in the repository: manifests, and the records that make backups exist. Packs are [`super::packs`]'.
//!
//! The record, `backup.json`, is put last ([`ClusterRepository::commit_backup`]): whatever was stored before for a backup that never got
//! one is invisible to plans ([`super::unfinished`]). How files are cut and what is waited for is [`crate::backup`]'s.

use bytes::Bytes;
use futures::{FutureExt, StreamExt, TryStreamExt, stream};
use walkeep_core::backup::BackupRecord;
use walkeep_core::layout::{BackupId, ObjectName};
use walkeep_store::{ErrorKind, ListRequest, Put, list_all};

use super::manifest::{ManifestEntries, Piece};
use super::wal::Stored;
use super::{ClusterRepository, Error, Result, on_blocking_thread};
use crate::codec::Description;
use crate::encryption::fingerprint::Likeness;

/// Small objects read at the same time.
const READS: usize = 8;

/// An object that cannot be believed and is left out, so that one damaged record does not hide the others.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Damaged {
    /// Its key.
    pub key: String,
    /// What is wrong.
    pub reason: String,
}

/// What is stored of base backups.
#[derive(Debug, Clone, Default)]
pub struct Backups {
    /// The backups, by name, which begins with the time.
    pub records: Vec<BackupRecord>,
    /// Those that left the catalog, and whose objects are still there.
    pub expired: Vec<BackupRecord>,
    /// Records that cannot be believed.
    pub damaged: Vec<Damaged>,
}

impl ClusterRepository {
    /// Stores a piece of a manifest, made by [`super::manifest::ManifestEncoder`].
    pub async fn put_manifest(&self, id: &BackupId, piece: &Piece) -> Result<Stored> {
        let name = ObjectName::BackupManifest(id.clone(), piece.number);
        let title = format!("piece {} of the manifest of {id}", piece.number);
        let described = Description::of(title, self.identity().system_identifier, None, &piece.bytes);
        let (sealer, key, plain, to_seal) = (self.sealer(&name)?, self.key(&name)?, piece.bytes.clone(), described.clone());
        let object = on_blocking_thread(move || sealer.seal(Some(&to_seal), plain)).await?.map_err(Error::encode)?;
        let bytes = object.len() as u64;
        let put = match self.store().put_if_absent(&key, object.clone()).await {
            Err(error) if error.is_in_doubt() => self.put_in_doubt(&name, &described, object).await?,
            put => put,
        };
        let stored = match put {
            Ok(Put::Created) => Stored::New { bytes },
            Ok(Put::AlreadySame) => Stored::Already,
            Err(error) if error.is_in_doubt() => return Err(error.into()),
            // What was encrypted twice is not the same bytes.
            Err(error) if error.kind() == ErrorKind::AlreadyExists => match self.likeness(&name, &described).await? {
                Some(Likeness::Same) => Stored::Already,
                _ => return Err(another_backup(id, "manifest")),
            },
            Err(error) => return Err(error.into()),
        };
        self.keep_copy(&name, &described, piece.bytes.clone()).await?;
        Ok(stored)
    }

    /// The manifest of a backup, to be read entry by entry, as often as one likes.
    pub async fn get_manifest(&self, record: &BackupRecord) -> Result<ManifestEntries> {
        ManifestEntries::open(self.clone(), record).await
    }

    /// A piece of the manifest of a backup that has a record.
    pub async fn get_manifest_piece(&self, id: &BackupId, number: u32) -> Result<Bytes> {
        let name = ObjectName::BackupManifest(id.clone(), number);
        // With one repository whoever reads its lines finds out.
        let read = match self.store().several() {
            None => self.read_object(&name).await,
            Some(_) => match self.whole_piece(&name).await {
                Err(damage) if damage.is_damage() => {
                    let name = &name;
                    let read = |place: Self| async move { place.whole_piece(name).await }.boxed();
                    self.elsewhere(&self.layout().key(name), damage, Error::is_damage, read).await
                }
                read => read,
            },
        };
        if let Some(piece) = read? {
            return Ok(piece);
        }
        self.repository().prove_reached().await?;
        Err(Error::corrupt(self.layout().key(&name), "the backup has a record, and this piece of its manifest is gone"))
    }

    /// The same, looked through: a zstd file with its own sum.
    async fn whole_piece(&self, name: &ObjectName) -> Result<Option<Bytes>> {
        let Some(piece) = self.read_object(name).await? else { return Ok(None) };
        let (looked_at, key) = (piece.clone(), self.layout().key(name));
        on_blocking_thread(move || zstd::stream::copy_decode(&looked_at[..], std::io::sink()))
            .await?
            .map_err(|error| Error::corrupt(key, error))?;
        Ok(Some(piece))
    }

    /// Makes a backup exist. Everything it needs must be stored.
    pub async fn commit_backup(&self, record: &BackupRecord) -> Result<()> {
        let body = Bytes::from(record.to_json().map_err(Error::encode)?);
        match self.store().put_if_absent(&self.key(&ObjectName::BackupRecord(record.id.clone()))?, body).await {
            Ok(Put::Created | Put::AlreadySame) => Ok(()),
            Err(error) if error.kind() == ErrorKind::AlreadyExists => Err(another_backup(&record.id, "record")),
            Err(error) => Err(error.into()),
        }
    }

    /// A backup's record; `None` only if the repository was reached and proves it absent.
    pub async fn backup(&self, id: &BackupId) -> Result<Option<BackupRecord>> {
        let record = self.read_record(id).await?;
        if record.is_none() {
            self.repository().prove_reached().await?;
        }
        Ok(record)
    }

    /// Everything that is known of base backups.
    pub async fn backups(&self) -> Result<Backups> {
        // Before the records: of two answers this is then the older one, and what is being removed is not taken for damaged.
        let (expired, damaged) = self.expired_and_damaged().await?;
        let prefix = self.layout().backups_prefix();
        let request = ListRequest { prefix: prefix.clone(), by_folder: true, ..ListRequest::default() };
        let folders = list_all(self.store().as_ref(), request).await?.folders;
        let id_of = |folder: &String| folder.strip_prefix(&prefix)?.strip_suffix('/')?.parse::<BackupId>().ok();
        let ids: Vec<_> = folders.iter().filter_map(id_of).collect();
        let read = |id: BackupId| async move {
            let record = self.read_record(&id).await;
            match record {
                // Something else than damage says nothing about the record: no answer is better than one that hides a backup.
                Err(Error::Corrupt { key, reason }) => Ok(Err(Damaged { key, reason })),
                other => other.map(Ok),
            }
        };
        let read: Vec<_> = stream::iter(ids.into_iter().map(read)).buffered(READS).try_collect().await?;
        let mut backups = Backups { damaged, ..Backups::default() };
        for found in read {
            match found {
                Ok(Some(record)) if expired.has_backup(&record.id) => backups.expired.push(record),
                Ok(Some(record)) => backups.records.push(record),
                // Under way at this moment, or never finished: see `backup_times`.
                Ok(None) => {}
                Err(damaged) => backups.damaged.push(damaged),
            }
        }
        Ok(backups)
    }

    pub(super) async fn read_record(&self, id: &BackupId) -> Result<Option<BackupRecord>> {
        let name = ObjectName::BackupRecord(id.clone());
        let corrupt = |reason: &dyn std::fmt::Display| Error::corrupt(self.layout().key(&name), reason);
        let parse = |body: &[u8]| {
            let record = BackupRecord::parse(id, body).map_err(|error| corrupt(&error))?;
            match record.system_identifier == self.identity().system_identifier {
                true => Ok(record),
                false => Err(corrupt(&format!("it belongs to the cluster {}", record.system_identifier))),
            }
        };
        self.parsed(&name, parse).await
    }
}

fn another_backup(id: &BackupId, what: &str) -> Error {
    Error::Conflict { name: format!("the {what} of backup {id}"), stored: "another backup's".into(), offered: "this one's".into() }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::repository::tests::{memory, record};
    use walkeep_store::{Fault, FaultyStore, Operation, Rule};

    #[tokio::test]
    async fn a_backup_exists_from_its_record_on() {
        let (repository, _) = memory().await;
        let record = record(1);
        repository.put_manifest(&record.id, &Piece { number: 1, bytes: Bytes::from_static(b"x") }).await.unwrap();
        let before = repository.backups().await.unwrap();
        assert!(before.records.is_empty() && before.damaged.is_empty());
        let times = repository.backup_times().await.unwrap();
        assert_eq!(times.iter().map(|found| (&found.id, found.recorded)).collect::<Vec<_>>(), [(&record.id, false)]);
        assert_eq!(repository.backup(&record.id).await.unwrap(), None);
        repository.commit_backup(&record).await.unwrap();
        repository.commit_backup(&record).await.expect("the same again");
        let mut other = record.clone();
        other.files += 1;
        assert!(matches!(repository.commit_backup(&other).await, Err(Error::Conflict { .. })));
        assert_eq!(repository.backups().await.unwrap().records, [record]);
    }

    #[tokio::test]
    async fn a_damaged_record_does_not_hide_the_others() {
        let (repository, store) = memory().await;
        for number in 1..=3 {
            repository.commit_backup(&record(number)).await.unwrap();
        }
        let key = repository.key(&ObjectName::BackupRecord(record(2).id)).unwrap();
        store.overwrite(&key, Bytes::from_static(b"{"));
        let found = repository.backups().await.unwrap();
        assert_eq!(found.records.iter().map(|record| record.start_lsn.get()).collect::<Vec<_>>(), [1 << 20, 3 << 20]);
        assert_eq!(found.damaged.iter().map(|damaged| damaged.key.as_str()).collect::<Vec<_>>(), [key.as_str()]);
        assert!(repository.backup_times().await.unwrap().iter().all(|found| found.recorded), "damaged is not unfinished");
    }

    #[tokio::test]
    async fn an_outage_is_not_an_absent_backup() {
        let (repository, store) = memory().await;
        repository.commit_backup(&record(1)).await.unwrap();
        let faulty = std::sync::Arc::new(FaultyStore::new(store));
        let repository = crate::repository::tests::over(faulty.clone()).await;
        faulty.inject(Rule::new(Operation::Get, Fault::Fail(ErrorKind::Transient)).on("backup.json"));
        assert!(repository.backups().await.unwrap_err().is_transient());
    }
}
