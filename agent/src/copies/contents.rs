//! What of a cluster is brought from repository to repository, and in what order.
//!
//! Whatever the layout knows, but for what was let go: things under an expiry that is being carried out must not come back. Records of backups and
//! artifacts come last, behind what they name.

use std::collections::BTreeSet;
use std::sync::Arc;

use async_trait::async_trait;
use bytes::Bytes;
use walkeep_core::backup::BackupRecord;
use walkeep_core::expiry::{End, Expired, Expiry};
use walkeep_core::layout::{ClusterLayout, ObjectName};
use walkeep_core::manifest::EntryKind;
use walkeep_core::{SegmentName, WalFileName};
use walkeep_store::Key;
use walkeep_store::several::Guide;

use crate::repository::{ClusterRepository, Error, Result, trail};

/// The guide for one cluster identity.
#[derive(Debug, Clone)]
pub struct Contents {
    repository: Arc<ClusterRepository>,
    root: String,
    expired: Expired,
}

impl Contents {
    /// Of what was let go nothing is known: for what was asked for already.
    pub fn new(repository: Arc<ClusterRepository>) -> Self {
        let root = repository.layout().wal_prefix();
        let root = root.strip_suffix("wal/").unwrap_or(&root).to_owned();
        Self { repository, root, expired: Expired::default() }
    }

    /// As it is now.
    pub async fn load(repository: Arc<ClusterRepository>) -> Result<Self> {
        let mut expired = Expired::default();
        for known in repository.expiries().await?.0 {
            match known.end.as_ref().map(|end| end.end) {
                Some(End::Removing) => expired.add(&known.record),
                Some(End::Undone) => {}
                // It may be taken back, but for what is gone since earlier.
                None => expired.add(&Expiry { backups: Vec::new(), wal: Vec::new(), artifacts: Vec::new(), ..known.record.clone() }),
            }
        }
        Ok(Self { expired, ..Self::new(repository) })
    }

    fn layout(&self) -> &ClusterLayout {
        self.repository.layout()
    }

    fn is_gone(&self, segment: SegmentName) -> bool {
        let size = self.repository.identity().segment_size;
        segment.number(size).is_some_and(|number| self.expired.has_segment(segment.timeline(), number.start(size)))
    }

    /// Whether it is to be brought back to the primary too. What can be made again, and is removed to be made anew, is not.
    pub fn wants_back(&self, key: &Key) -> bool {
        let name = self.layout().parse(key.as_str());
        name.is_some_and(|name| !matches!(name, ObjectName::Digest(_) | ObjectName::Blocks(_)) && self.is_kept(&name))
    }

    /// Which of the keys `lacking` a record of a backup or an artifact needs, or why that cannot be told; `None` if it needs none of them. Fails if it may be told later.
    pub async fn lacking_of(&self, key: &Key, record: &Bytes, lacking: &BTreeSet<String>) -> Result<Option<String>> {
        let (repository, layout) = (&self.repository, self.layout());
        let below = |prefix: String| lacking.iter().find(|key| key.starts_with(&prefix)).cloned();
        let id = match layout.parse(key.as_str()) {
            Some(ObjectName::ArtifactRecord(place)) => return Ok(below(layout.artifact_prefix(&place))),
            Some(ObjectName::DrillRecord(id)) => return Ok(below(layout.drill_prefix(&id))),
            Some(ObjectName::BackupRecord(id)) => id,
            _ => return Ok(None),
        };
        let piece = below(layout.backup_prefix(&id));
        if piece.is_some() || below(layout.packs_prefix()).is_none() {
            return Ok(piece);
        }
        let record = BackupRecord::parse(&id, record).map_err(|error| Error::corrupt(key.as_str(), error))?;
        let manifest = match repository.get_manifest(&record).await {
            Ok(manifest) => manifest,
            Err(error) if error.is_transient() => return Err(error),
            // Whether it names what is lacking cannot be told here.
            Err(error) => return Ok(Some(error.to_string())),
        };
        let (lacking, layout) = (lacking.clone(), layout.clone());
        let named = tokio::task::spawn_blocking(move || -> Result<Option<String>> {
            for entry in manifest.iter()? {
                let EntryKind::File { content, .. } = entry?.kind else { continue };
                let mut packs = content.extents().iter().map(|extent| layout.key(&ObjectName::Pack(extent.pack)));
                if let Some(pack) = packs.find(|pack| lacking.contains(pack)) {
                    return Ok(Some(pack));
                }
            }
            Ok(None)
        });
        match named.await.map_err(|died| Error::Internal(died.to_string()))? {
            Err(error) if error.is_transient() => Err(error),
            Err(error) => Ok(Some(error.to_string())),
            Ok(pack) => Ok(pack),
        }
    }

    fn is_kept(&self, name: &ObjectName) -> bool {
        match name {
            ObjectName::Wal(WalFileName::Segment(segment) | WalFileName::Partial(segment) | WalFileName::BackupHistory { segment, .. }) => {
                !self.is_gone(*segment)
            }
            ObjectName::OtherPartial { segment, .. } => !self.is_gone(*segment),
            ObjectName::Part(part) => !self.is_gone(part.segment),
            ObjectName::BackupBegun(id) | ObjectName::BackupManifest(id, _) | ObjectName::BackupRecord(id) | ObjectName::Hold(id, _) => {
                !self.expired.has_backup(id)
            }
            ObjectName::ArtifactBegun(place)
            | ObjectName::ArtifactPiece(place, _)
            | ObjectName::ArtifactSummary(place)
            | ObjectName::ArtifactRecord(place) => !self.expired.has_artifact(place),
            _ => true,
        }
    }
}

#[async_trait]
impl Guide for Contents {
    fn passes(&self) -> Vec<String> {
        vec![self.root.clone(), self.layout().backups_prefix(), self.layout().artifacts_prefix(), self.layout().drills_prefix()]
    }

    fn wants(&self, pass: usize, key: &Key) -> bool {
        self.layout().parse(key.as_str()).is_some_and(|name| name.names_others() == (pass > 0) && self.is_kept(&name))
    }

    /// Parts of a segment that is there whole are not needed any more, and may be on their way out.
    fn enters(&self, folder: &str, beside: &dyn Fn(&str) -> bool) -> bool {
        let segment = folder.strip_suffix(".parts/").and_then(|folder| folder.rsplit('/').next()?.parse::<SegmentName>().ok());
        segment.is_none_or(|segment| !beside(&self.layout().wal_key(WalFileName::Segment(segment))))
    }

    fn alone(&self, key: &Key) -> bool {
        self.layout().parse(key.as_str()).is_none_or(|name| {
            name.names_others()
                || matches!(name, ObjectName::Wal(WalFileName::History(_)) | ObjectName::BackupManifest(..) | ObjectName::BackupBegun(_))
                || matches!(name, ObjectName::Expiry(_) | ObjectName::ExpiryEnd(_))
        })
    }

    fn names_others(&self, key: &Key) -> bool {
        self.layout().parse(key.as_str()).is_some_and(|name| name.names_others())
    }

    async fn lacks(&self, key: &Key, body: &Bytes, lacking: &BTreeSet<String>) -> std::result::Result<Option<String>, String> {
        self.lacking_of(key, body, lacking).await.map_err(|error| error.to_string())
    }

    async fn prove(&self, key: &Key, body: &Bytes) -> std::result::Result<(), String> {
        match self.layout().parse(key.as_str()) {
            Some(name) => {
                self.repository.prove_object(&name, body).await.map_err(|error| error.to_string())?;
                let ObjectName::Audit(number) = name else { return Ok(()) };
                match trail::misplaced(&self.repository, number, body).await {
                    Ok(None) => Ok(()),
                    Ok(Some(reason)) => Err(reason),
                    Err(error) => Err(error.to_string()),
                }
            }
            None => Ok(()),
        }
    }

    fn alike(&self, key: &Key, one: &[u8], other: &[u8]) -> bool {
        self.layout().parse(key.as_str()).is_some_and(|name| self.repository.hold_the_same(&name, one, other))
    }
}
