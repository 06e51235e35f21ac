//! Backups without a record: under way at this moment, or never finished.
//!
//! A backup says that it has begun before it stores or refers to anything, so whoever removes what nobody refers to sees it. Times are the store's (of a local
//! directory, those of the host that wrote), so that it is not the clock of whoever removes that decides alone what is old. What is removed, and when, is [`crate::backup::sweep`]'s to decide.

use std::collections::BTreeMap;
use std::time::{Duration, SystemTime};

use bytes::Bytes;
use walkeep_core::backup::BackupBegun;
use walkeep_core::layout::{BackupId, ObjectName};
use walkeep_store::{ErrorKind, ListRequest, Listed, list_all};

use super::manifest::ManifestEntries;
use super::{ClusterRepository, Error, Result};

/// When the objects of a backup were put.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BackupTimes {
    /// The backup.
    pub id: BackupId,
    /// When its first object was put.
    pub first: SystemTime,
    /// When its last one was.
    pub last: SystemTime,
    /// Whether its record is among them.
    pub recorded: bool,
}

impl ClusterRepository {
    /// Says that a backup has begun: before anything of it is stored, and before it is decided what it refers to.
    pub async fn begin_backup(&self, id: &BackupId, begun: &BackupBegun) -> Result<()> {
        let body = Bytes::from(walkeep_core::sealed::to_json(begun).map_err(Error::encode)?);
        Ok(self.store().put_if_absent(&self.key(&ObjectName::BackupBegun(id.clone()))?, body).await.map(drop)?)
    }

    /// What was said when a backup began; `None` if that is not there, or says nothing.
    pub async fn begun(&self, id: &BackupId) -> Result<Option<BackupBegun>> {
        match self.store().get(&self.key(&ObjectName::BackupBegun(id.clone()))?, None).await {
            Ok(body) => Ok(walkeep_core::sealed::from_json(&body).ok()),
            Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error.into()),
        }
    }

    /// Every backup of which anything is stored, in the order of their names.
    pub async fn backup_times(&self) -> Result<Vec<BackupTimes>> {
        let request = ListRequest { prefix: self.layout().backups_prefix(), ..ListRequest::default() };
        let mut found: BTreeMap<BackupId, BackupTimes> = BTreeMap::new();
        for listed in list_all(self.store().as_ref(), request).await?.objects {
            let (id, recorded) = match self.layout().parse(listed.key.as_str()) {
                Some(ObjectName::BackupRecord(id)) => (id, true),
                Some(ObjectName::BackupBegun(id) | ObjectName::BackupManifest(id, _)) => (id, false),
                _ => continue,
            };
            let at = listed.modified;
            let times = found.entry(id.clone()).or_insert(BackupTimes { id, first: at, last: at, recorded });
            *times = BackupTimes {
                id: times.id.clone(),
                first: times.first.min(at),
                last: times.last.max(at),
                recorded: times.recorded || recorded,
            };
        }
        Ok(found.into_values().collect())
    }

    /// Whether everything that a backup with so many pieces of a manifest said of itself is there, and was never older than `most` before the next of it came.
    pub async fn is_unbroken(&self, id: &BackupId, pieces: u32, most: Duration) -> Result<bool> {
        let request = ListRequest { prefix: self.layout().backup_prefix(id), ..ListRequest::default() };
        let objects = list_all(self.store().as_ref(), request).await?.objects;
        let named = |listed: &Listed| self.layout().parse(listed.key.as_str());
        let begun = objects.iter().any(|listed| named(listed) == Some(ObjectName::BackupBegun(id.clone())));
        let whole =
            (1..=pieces).all(|piece| objects.iter().any(|listed| named(listed) == Some(ObjectName::BackupManifest(id.clone(), piece))));
        let mut times: Vec<SystemTime> = objects.iter().map(|listed| listed.modified).collect();
        times.sort_unstable();
        Ok(begun && whole && times.windows(2).all(|pair| pair[1].duration_since(pair[0]).unwrap_or_default() <= most))
    }

    /// Removes a backup's record, which has just been put and must not be.
    pub async fn remove_record(&self, id: &BackupId) -> Result<()> {
        Ok(self.store().delete(&self.key(&ObjectName::BackupRecord(id.clone()))?).await?)
    }

    /// What is there of the manifest of a backup without a record: read its entries up to the first error. `None` if nothing was stored of it.
    pub async fn unfinished_manifest(&self, id: &BackupId) -> Result<Option<ManifestEntries>> {
        let mut pieces = Vec::new();
        for number in 1.. {
            match self.read_object(&ObjectName::BackupManifest(id.clone(), number)).await? {
                Some(piece) => pieces.push(piece),
                None => break,
            }
        }
        Ok((!pieces.is_empty()).then(|| ManifestEntries::unfinished(self.clone(), id.clone(), pieces)))
    }

    /// Removes what there is of a backup without a record, but its packs. Last the note that it began: until then it is found again.
    pub async fn remove_unfinished(&self, id: &BackupId) -> Result<()> {
        let request = ListRequest { prefix: self.layout().backup_prefix(id), ..ListRequest::default() };
        let begun = self.key(&ObjectName::BackupBegun(id.clone()))?;
        let record = self.key(&ObjectName::BackupRecord(id.clone()))?;
        let objects = list_all(self.store().as_ref(), request).await?.objects;
        if objects.iter().any(|listed| listed.key == record) {
            return Err(Error::Conflict {
                name: format!("backup {id}"),
                stored: "a record".into(),
                offered: "to remove what is left of it".into(),
            });
        }
        for listed in objects.iter().filter(|listed| listed.key != begun) {
            self.store().delete(&listed.key).await?;
        }
        Ok(self.store().delete(&begun).await?)
    }
}
