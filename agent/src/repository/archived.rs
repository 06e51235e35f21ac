//! What of a restore lies in archived storage classes, as listings tell it.
//!
//! A listing names an object's class; whether a copy of it was made readable only the object itself tells ([`walkeep_store::Store::readiness`]).

use std::collections::{BTreeMap, HashSet};

use futures::{StreamExt, TryStreamExt, stream};
use serde::{Serialize, Serializer};
use tokio::task::spawn_blocking;
use walkeep_core::backup::BackupRecord;
use walkeep_core::catalog::NeededFile;
use walkeep_core::layout::ObjectName;
use walkeep_core::manifest::EntryKind;
use walkeep_core::partial::Needed;
use walkeep_core::{SegmentName, SegmentNumber, TimelineId, WalFileName};
use walkeep_store::{ArchiveClass, Key, ListRequest, Listed, Readiness, Thaw};

use super::{ClusterRepository, Error, Result};

/// Listings of WAL at a time.
const LISTINGS: usize = 8;

/// An object in an archived class.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub struct Archived {
    /// Its key.
    #[serde(serialize_with = "as_text")]
    pub key: Key,
    /// Its bytes.
    pub bytes: u64,
    /// The class.
    #[serde(serialize_with = "as_text")]
    pub class: ArchiveClass,
}

fn as_text<S: Serializer>(value: &impl std::fmt::Display, serializer: S) -> std::result::Result<S::Ok, S::Error> {
    serializer.collect_str(value)
}

impl Archived {
    fn listed(listed: Listed) -> Option<Self> {
        Some(Self { class: listed.class?, key: listed.key, bytes: listed.size })
    }
}

impl ClusterRepository {
    /// Of these files, the objects that are archived.
    pub async fn archived_wal(&self, files: &[NeededFile]) -> Result<Vec<Archived>> {
        let mut wanted: HashSet<String> = HashSet::new();
        let mut stretches: BTreeMap<TimelineId, (SegmentName, SegmentName)> = BTreeMap::new();
        for file in files {
            // While a plan was made a segment in parts may have become whole.
            wanted.insert(self.layout().wal_key(WalFileName::Segment(file.segment)));
            wanted.extend(file.parts.iter().map(|part| self.layout().key(&ObjectName::Part(*part))));
            let stretch = stretches.entry(file.segment.timeline()).or_insert((file.segment, file.segment));
            *stretch = (stretch.0.min(file.segment), stretch.1.max(file.segment));
        }
        let listings = stretches.into_values().map(|(first, last)| self.archived_between(first, last));
        let listed: Vec<_> = stream::iter(listings).buffer_unordered(LISTINGS).try_collect().await?;
        Ok(listed.into_iter().flatten().filter(|archived| wanted.contains(archived.key.as_str())).collect())
    }

    /// How an object is that a listing showed in an archived class.
    pub async fn readiness(&self, archived: &Archived) -> Result<Readiness> {
        Ok(self.store().readiness(&archived.key).await?)
    }

    /// Has it made readable.
    pub async fn thaw(&self, archived: &Archived, thaw: Thaw) -> Result<Readiness> {
        Ok(self.store().thaw(&archived.key, thaw).await?)
    }

    /// What is archived of this segment and the `more` behind it.
    pub async fn archived_from(&self, segment: SegmentName, more: u64) -> Result<Vec<Archived>> {
        let size = self.identity().segment_size;
        let last = segment.number(size).map(|number| SegmentNumber::new(number.get().saturating_add(more)).name(segment.timeline(), size));
        self.archived_between(segment, last.unwrap_or(segment)).await
    }

    /// What is archived of the segments of one timeline, from the first to the last.
    async fn archived_between(&self, first: SegmentName, last: SegmentName) -> Result<Vec<Archived>> {
        let (timeline, size) = (first.timeline(), self.identity().segment_size);
        let before = first.number(size).and_then(SegmentNumber::previous);
        let start_after = before.map(|before| self.layout().wal_key(WalFileName::Segment(before.name(timeline, size))));
        let mut request = ListRequest { prefix: self.layout().timeline_prefix(timeline), start_after, ..ListRequest::default() };
        let mut archived = Vec::new();
        loop {
            let page = self.store().list(&request).await?;
            let mut past = false;
            for listed in page.objects {
                let segment = match self.layout().parse(listed.key.as_str()) {
                    Some(ObjectName::Wal(WalFileName::Segment(segment))) => segment,
                    Some(ObjectName::Part(part)) => part.segment,
                    _ => continue,
                };
                // Not by the segment alone: some servers sort a folder's folders before its files.
                past |= segment.log() > last.log();
                archived.extend(Archived::listed(listed).filter(|_| (first..=last).contains(&segment)));
            }
            match page.next.filter(|_| !past) {
                Some(next) => request.start_after = Some(next),
                None => return Ok(archived),
            }
        }
    }

    /// Of the packs that these files of a backup lie in, those that are archived.
    pub async fn archived_packs(&self, record: &BackupRecord, needed: &Needed) -> Result<Vec<Archived>> {
        let (manifest, packs) = tokio::try_join!(self.get_manifest(record), self.packs())?;
        if !packs.any_archived() {
            return Ok(Vec::new());
        }
        let (repository, needed) = (self.clone(), needed.clone());
        let gathered = spawn_blocking(move || {
            let mut found = HashSet::new();
            for entry in manifest.iter()? {
                let entry = entry?;
                if let EntryKind::File { content, .. } = &entry.kind
                    && needed.content(&entry.path)
                {
                    found.extend(content.extents().iter().map(|extent| extent.pack).filter(|pack| packs.archived(pack).is_some()));
                }
            }
            let mut archived = Vec::new();
            for (pack, (bytes, class)) in found.into_iter().filter_map(|pack| Some((pack, packs.archived(&pack)?))) {
                archived.push(Archived { key: repository.key(&ObjectName::Pack(pack))?, bytes, class });
            }
            Ok(archived)
        });
        gathered.await.map_err(Error::encode)?
    }

    /// The archived object that a failed reading met, and, if it is a segment, what is archived of the `more` behind it.
    pub async fn archived_at(&self, key: &str, more: u64) -> Result<Vec<Archived>> {
        let segment = match self.layout().parse(key) {
            Some(ObjectName::Wal(WalFileName::Segment(segment))) => Some(segment),
            Some(ObjectName::Part(part)) => Some(part.segment),
            _ => None,
        };
        match segment {
            Some(segment) => self.archived_from(segment, more).await,
            None => {
                let page = self.store().list(&ListRequest { prefix: key.to_owned(), limit: Some(1), ..ListRequest::default() }).await?;
                Ok(page.objects.into_iter().filter_map(Archived::listed).filter(|archived| archived.key.as_str() == key).collect())
            }
        }
    }
}
