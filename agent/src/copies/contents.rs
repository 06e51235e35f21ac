//! What of a cluster is brought from repository to repository, and in what order.
//!
//! Whatever the layout knows, but for what was let go: things under an expiry that is being carried out must not come back. Records of backups and
//! artifacts come last, behind what they name.

use std::sync::Arc;

use async_trait::async_trait;
use bytes::Bytes;
use walkeep_core::expiry::{End, Expired, Expiry};
use walkeep_core::layout::{ClusterLayout, ObjectName};
use walkeep_core::{SegmentName, WalFileName};
use walkeep_store::Key;
use walkeep_store::several::Guide;

use crate::repository::{ClusterRepository, Result};

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

/// The step that makes what was brought before it count.
fn commits(name: &ObjectName) -> bool {
    matches!(name, ObjectName::BackupRecord(_) | ObjectName::ArtifactRecord(_) | ObjectName::DrillRecord(_))
}

#[async_trait]
impl Guide for Contents {
    fn passes(&self) -> Vec<String> {
        vec![self.root.clone(), self.layout().backups_prefix(), self.layout().artifacts_prefix(), self.layout().drills_prefix()]
    }

    fn wants(&self, pass: usize, key: &Key) -> bool {
        self.layout().parse(key.as_str()).is_some_and(|name| commits(&name) == (pass > 0) && self.is_kept(&name))
    }

    /// Parts of a segment that is there whole are not needed any more, and may be on their way out.
    fn enters(&self, folder: &str, beside: &dyn Fn(&str) -> bool) -> bool {
        let segment = folder.strip_suffix(".parts/").and_then(|folder| folder.rsplit('/').next()?.parse::<SegmentName>().ok());
        segment.is_none_or(|segment| !beside(&self.layout().wal_key(WalFileName::Segment(segment))))
    }

    fn alone(&self, key: &Key) -> bool {
        self.layout().parse(key.as_str()).is_none_or(|name| {
            commits(&name)
                || matches!(name, ObjectName::Wal(WalFileName::History(_)) | ObjectName::BackupManifest(..) | ObjectName::BackupBegun(_))
                || matches!(name, ObjectName::Expiry(_) | ObjectName::ExpiryEnd(_))
        })
    }

    fn names_others(&self, key: &Key) -> bool {
        self.layout().parse(key.as_str()).is_some_and(|name| commits(&name))
    }

    async fn prove(&self, key: &Key, body: &Bytes) -> std::result::Result<(), String> {
        match self.layout().parse(key.as_str()) {
            Some(name) => self.repository.prove_object(&name, body).await.map(drop).map_err(|error| error.to_string()),
            None => Ok(()),
        }
    }

    fn alike(&self, key: &Key, one: &[u8], other: &[u8]) -> bool {
        self.layout().parse(key.as_str()).is_some_and(|name| self.repository.hold_the_same(&name, one, other))
    }
}
