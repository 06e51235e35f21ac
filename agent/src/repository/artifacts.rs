//! Artifacts: pieces of a stream, a summary that proves it, and the record that makes it exist.
//!
//! Each lies in a folder of its own, so nothing is shared: what has no record was never finished, and what is let go goes record first.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, SystemTime};

use bytes::Bytes;
use futures::{StreamExt, TryStreamExt, stream};
use walkeep_core::artifact::{ArtifactId, ArtifactName, ArtifactPlace, ArtifactRecord, ArtifactSummary, PIECE};
use walkeep_core::layout::ObjectName;
use walkeep_core::sealed;
use walkeep_core::sha256::Sha256Sum;
use walkeep_store::{Key, ListRequest, Listed, Put, list_all};

use super::catalog::READS;
use super::wal::Stored;
use super::{ClusterRepository, Error, Result};
use crate::codec;

/// A summary has no more bytes: names of files that changed, the end of what a command said.
pub(super) const SUMMARY: u64 = 1 << 20;

/// What lies there of one artifact.
#[derive(Debug, Clone)]
struct Lying {
    place: ArtifactPlace,
    objects: Vec<Listed>,
    recorded: bool,
    last: SystemTime,
}

impl ClusterRepository {
    /// Says that an artifact has begun, before anything of it is stored.
    pub async fn begin_artifact(&self, place: &ArtifactPlace, host: &str) -> Result<()> {
        let note = serde_json::json!({"format": ArtifactRecord::FORMAT, "host": host, "at": chrono::Utc::now()});
        let body = Bytes::from(serde_json::to_vec_pretty(&note).map_err(Error::encode)?);
        Ok(self.store().put_if_absent(&self.key(&ObjectName::ArtifactBegun(place.clone()))?, body).await.map(drop)?)
    }

    /// Stores a piece of the stream, counted from 1. Answers its bytes as stored.
    pub async fn put_artifact_piece(&self, place: &ArtifactPlace, number: u32, plain: Bytes) -> Result<u64> {
        let name = ObjectName::ArtifactPiece(place.clone(), number);
        match self.put_object(name, piece_title(place, number), None, PIECE, plain).await? {
            Stored::New { bytes } => Ok(bytes),
            Stored::Already => Ok(0),
        }
    }

    /// A piece, proven by its own hash.
    pub async fn artifact_piece(&self, record: &ArtifactRecord, number: u32) -> Result<Bytes> {
        let (place, expected) = (record.place(), record.bytes_of(number));
        let name = ObjectName::ArtifactPiece(place.clone(), number);
        let found = self.read(&name, &piece_title(&place, number), PIECE).await?;
        let found = found.ok_or_else(|| Error::corrupt(self.layout().key(&name), "it is gone"))?;
        if Some(found.content.len() as u64) != expected {
            return Err(Error::corrupt(self.layout().key(&name), "its length is not what its record says"));
        }
        Ok(found.content)
    }

    /// Stores the summary; answers its hash, for the record.
    pub async fn put_artifact_summary(&self, place: &ArtifactPlace, summary: &ArtifactSummary) -> Result<Sha256Sum> {
        let body = Bytes::from(serde_json::to_vec_pretty(summary).map_err(Error::encode)?);
        let sha256 = Sha256Sum::new(codec::sha256(&body));
        self.put_object(ObjectName::ArtifactSummary(place.clone()), summary_title(place), None, SUMMARY, body).await?;
        Ok(sha256)
    }

    /// The summary, proven by its record.
    pub async fn artifact_summary(&self, record: &ArtifactRecord) -> Result<ArtifactSummary> {
        let place = record.place();
        let name = ObjectName::ArtifactSummary(place.clone());
        let key = || self.layout().key(&name);
        let found = self.read(&name, &summary_title(&place), SUMMARY).await?.ok_or_else(|| Error::corrupt(key(), "it is gone"))?;
        if Sha256Sum::new(codec::sha256(&found.content)) != record.summary_sha256 {
            return Err(Error::corrupt(key(), "it has not the SHA-256 that its record names"));
        }
        serde_json::from_slice(&found.content).map_err(|error| Error::corrupt(key(), error))
    }

    /// Makes it exist.
    pub async fn commit_artifact(&self, record: &ArtifactRecord) -> Result<()> {
        let body = Bytes::from(sealed::to_json(record).map_err(Error::encode)?);
        match self.store().put_if_absent(&self.key(&ObjectName::ArtifactRecord(record.place()))?, body).await {
            Ok(Put::Created | Put::AlreadySame) => Ok(()),
            Err(error) => Err(error.into()),
        }
    }

    /// All artifacts that did not leave the catalog, or those of one name, in the order of their names and IDs; the second are the keys of records that cannot be read.
    pub async fn artifacts(&self, name: Option<&ArtifactName>) -> Result<(Vec<ArtifactRecord>, Vec<String>)> {
        let recorded = self.lying_artifacts(name).await?.into_iter().filter(|lying| lying.recorded).map(|lying| lying.place);
        // Behind that listing: what is taken back meanwhile is there all the time, or not at all.
        let expired = self.expired().await?;
        let recorded = recorded.filter(|place| !expired.has_artifact(place));
        let read = |place: ArtifactPlace| async move {
            match self.artifact(&place).await {
                Ok(record) => Ok(record.map(Ok)),
                Err(Error::Corrupt { key, .. }) => Ok(Some(Err(key))),
                Err(error) => Err(error),
            }
        };
        let read: Vec<_> = stream::iter(recorded.map(read)).buffered(READS).try_collect().await?;
        let (mut records, mut damaged) = (Vec::new(), Vec::new());
        for found in read.into_iter().flatten() {
            match found {
                Ok(record) => records.push(record),
                Err(key) => damaged.push(key),
            }
        }
        Ok((records, damaged))
    }

    /// The newest of a name, by the clocks of their hosts, that can be read. With few requests however many there are.
    pub async fn newest_artifacts(&self, name: &ArtifactName, most: usize) -> Result<Vec<ArtifactRecord>> {
        let request = ListRequest { prefix: self.layout().artifacts_prefix_of(name), by_folder: true, ..ListRequest::default() };
        let folders = list_all(self.store().as_ref(), request).await?.folders;
        let id = |folder: &String| folder.trim_end_matches('/').rsplit('/').next()?.parse::<ArtifactId>().ok();
        let mut ids: Vec<ArtifactId> = folders.iter().filter_map(id).collect();
        ids.sort();
        let mut records = Vec::new();
        for id in ids.into_iter().rev().take(most) {
            match self.artifact(&ArtifactPlace { name: name.clone(), id }).await {
                Ok(record) => records.extend(record),
                Err(Error::Corrupt { key, reason }) => tracing::warn!(key, reason, "the record of an artifact is damaged and left out"),
                Err(error) => return Err(error),
            }
        }
        Ok(records)
    }

    /// One record; `None` if there is none.
    pub async fn artifact(&self, place: &ArtifactPlace) -> Result<Option<ArtifactRecord>> {
        let name = ObjectName::ArtifactRecord(place.clone());
        let corrupt = |reason: String| Error::corrupt(self.layout().key(&name), reason);
        let parse = |body: &[u8]| {
            let record: ArtifactRecord = sealed::from_json(body).map_err(|error| corrupt(error.to_string()))?;
            if record.format != ArtifactRecord::FORMAT {
                return Err(corrupt(format!("it has format {}: upgrade Walkeep", record.format)));
            }
            if record.place() != *place || record.system_identifier != self.identity().system_identifier || !record.is_consistent() {
                return Err(corrupt("it is another artifact's record".into()));
            }
            Ok(record)
        };
        self.parsed(&name, parse).await
    }

    /// Removes all of an artifact: its record first, so that from then on there is none. Answers how many objects were removed.
    pub async fn remove_artifact(&self, place: &ArtifactPlace) -> Result<u64> {
        let steps = self.steps_to_remove(place).await?;
        for key in steps.iter().flatten() {
            self.store().delete(key).await?;
        }
        // No other has that ID. One that stays takes no room.
        if let Err(error) = self.store().remove_folder(&self.layout().artifact_prefix(place)).await {
            tracing::debug!(artifact = %place, %error, "an empty folder stays");
        }
        Ok(steps.iter().flatten().count() as u64)
    }

    /// What is to be removed of an artifact, step by step: its record, what it is made of, and last the note that it was begun, by which the rest is found.
    pub async fn steps_to_remove(&self, place: &ArtifactPlace) -> Result<[Vec<Key>; 3]> {
        let (record, begun) = (self.key(&ObjectName::ArtifactRecord(place.clone()))?, self.key(&ObjectName::ArtifactBegun(place.clone()))?);
        let request = ListRequest { prefix: self.layout().artifact_prefix(place), ..ListRequest::default() };
        let listed = list_all(self.store().as_ref(), request).await?.objects.into_iter().map(|listed| listed.key);
        let rest = listed.filter(|key| *key != record && *key != begun).collect();
        Ok([vec![record], rest, vec![begun]])
    }

    /// Removes what was begun under this name and given up: without a record, and so much older than the newest object, by the store's clock. Answers how many.
    pub async fn sweep_artifacts(&self, name: &ArtifactName, old: Duration) -> Result<u64> {
        let lying = self.lying_artifacts(Some(name)).await?;
        let Some(newest) = lying.iter().map(|lying| lying.last).max() else { return Ok(0) };
        let is_old = |lying: &&Lying| !lying.recorded && newest.duration_since(lying.last).is_ok_and(|age| age > old);
        let mut swept = 0;
        for lying in lying.iter().filter(is_old) {
            tracing::info!(artifact = %lying.place, objects = lying.objects.len(), "removing what is left of an artifact that was given up");
            self.remove_artifact(&lying.place).await?;
            swept += 1;
        }
        Ok(swept)
    }

    /// The names under which anything is stored.
    pub async fn artifact_names(&self) -> Result<BTreeSet<ArtifactName>> {
        let request = ListRequest { prefix: self.layout().artifacts_prefix(), by_folder: true, ..ListRequest::default() };
        let folders = list_all(self.store().as_ref(), request).await?.folders;
        let name = |folder: &String| folder.trim_end_matches('/').rsplit('/').next()?.parse().ok();
        Ok(folders.iter().filter_map(name).collect())
    }

    /// When each of a name was stored last, by the store's clock.
    pub async fn artifacts_stored(&self, name: &ArtifactName) -> Result<BTreeMap<ArtifactId, SystemTime>> {
        let recorded = self.lying_artifacts(Some(name)).await?.into_iter().filter(|lying| lying.recorded);
        Ok(recorded.map(|lying| (lying.place.id, lying.last)).collect())
    }

    async fn lying_artifacts(&self, name: Option<&ArtifactName>) -> Result<Vec<Lying>> {
        let prefix = name.map_or_else(|| self.layout().artifacts_prefix(), |name| self.layout().artifacts_prefix_of(name));
        let mut lying: BTreeMap<ArtifactPlace, Lying> = BTreeMap::new();
        for listed in list_all(self.store().as_ref(), ListRequest { prefix, ..ListRequest::default() }).await?.objects {
            let (place, recorded) = match self.layout().parse(listed.key.as_str()) {
                Some(ObjectName::ArtifactRecord(place)) => (place, true),
                Some(ObjectName::ArtifactBegun(place) | ObjectName::ArtifactPiece(place, _) | ObjectName::ArtifactSummary(place)) => {
                    (place, false)
                }
                _ => continue,
            };
            let new = || Lying { place: place.clone(), objects: Vec::new(), recorded: false, last: listed.modified };
            let found = lying.entry(place.clone()).or_insert_with(new);
            (found.recorded, found.last) = (found.recorded || recorded, found.last.max(listed.modified));
            found.objects.push(listed);
        }
        Ok(lying.into_values().collect())
    }
}

pub(super) fn piece_title(place: &ArtifactPlace, number: u32) -> String {
    format!("artifact {place} {number}")
}

pub(super) fn summary_title(place: &ArtifactPlace) -> String {
    format!("artifact {place} summary")
}
