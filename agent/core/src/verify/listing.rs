//! What a listing of a whole cluster tells, taken in object by object.
//!
//! Kept are a few bytes of each segment (the catalog's), of what is small and few the names; of all else only whether its size can be.

use std::collections::{BTreeMap, BTreeSet};

use super::finding::{Finding, Findings, Kind, Severity};
use super::lost::Lost;
use super::sizes::possible_bytes;
use crate::artifact::ArtifactPlace;
use crate::catalog::{CatalogBuilder, WalRange};
use crate::drill::{self, DrillId};
use crate::identity::TimelineId;
use crate::layout::{BackupId, ClusterLayout, Form, ObjectName, PartName};
use crate::segment::{SegmentName, SegmentSize};
use crate::wal_file::WalFileName;

/// So many strangers are named.
const NAMED: usize = 20;

/// What there is of a backup beside its packs.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct BackupFolder {
    /// The note that it began.
    pub begun: bool,
    /// Its record.
    pub recorded: bool,
    /// Pieces of its manifest.
    pub pieces: Vec<u32>,
}

/// What there is of an artifact.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct ArtifactFolder {
    /// Its record.
    pub recorded: bool,
    /// What proves its stream.
    pub summary: bool,
    /// Pieces of it.
    pub pieces: BTreeSet<u32>,
}

/// What there is of a drill.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct DrillFolder {
    /// Its record.
    pub recorded: bool,
    /// Its report, in these forms.
    pub forms: BTreeSet<drill::Form>,
}

/// A listing.
#[derive(Debug)]
pub struct Listing {
    layout: ClusterLayout,
    form: Form,
    size: SegmentSize,
    /// Objects of Walkeep's.
    pub objects: u64,
    /// Their bytes.
    pub bytes: u64,
    /// Objects of others.
    pub foreign: u64,
    foreign_named: Vec<String>,
    /// The small records, to be read.
    pub records: Vec<ObjectName>,
    /// The timelines of which there is a history.
    pub histories: Vec<TimelineId>,
    /// Backups, by name.
    pub backups: BTreeMap<BackupId, BackupFolder>,
    /// Artifacts, by place.
    pub artifacts: BTreeMap<ArtifactPlace, ArtifactFolder>,
    /// Drills, by ID.
    pub drills: BTreeMap<DrillId, DrillFolder>,
    /// Parts of segments that may be stored as a whole too.
    pub parts: BTreeMap<SegmentName, Vec<PartName>>,
    /// From where to where the digests of each timeline tell.
    pub told: BTreeMap<TimelineId, WalRange>,
    /// The records of the audit trail, by number.
    pub audit: BTreeSet<u32>,
    /// What the server archives beside segments and histories.
    pub aside: Vec<ObjectName>,
    /// Those whose size cannot be, by name.
    impossible: Vec<(ObjectName, u64)>,
    /// The bytes of what holds data, but for segments, which the catalog has, packs, and what can be made again.
    pub sizes: BTreeMap<ObjectName, u64>,
}

impl Listing {
    /// Of objects of this form.
    pub fn new(layout: ClusterLayout, form: Form, size: SegmentSize) -> Self {
        Self {
            layout,
            form,
            size,
            objects: 0,
            bytes: 0,
            foreign: 0,
            foreign_named: Vec::new(),
            records: Vec::new(),
            histories: Vec::new(),
            backups: BTreeMap::new(),
            artifacts: BTreeMap::new(),
            drills: BTreeMap::new(),
            parts: BTreeMap::new(),
            told: BTreeMap::new(),
            audit: BTreeSet::new(),
            aside: Vec::new(),
            impossible: Vec::new(),
            sizes: BTreeMap::new(),
        }
    }

    /// The keys.
    pub fn layout(&self) -> &ClusterLayout {
        &self.layout
    }

    /// Takes in an object; answers its name if it is one of Walkeep's.
    pub fn object(&mut self, key: &str, bytes: u64, catalog: &mut CatalogBuilder) -> Option<ObjectName> {
        let Some(name) = self.layout.parse(key) else {
            self.foreign += 1;
            if self.foreign_named.len() < NAMED {
                self.foreign_named.push(key.to_owned());
            }
            return None;
        };
        self.objects += 1;
        self.bytes = self.bytes.saturating_add(bytes);
        if !possible_bytes(&name, self.size, self.form).contains(&bytes) && self.impossible.len() < 10_000 {
            self.impossible.push((name.clone(), bytes));
        }
        catalog.object(&name, bytes);
        let counted_elsewhere = matches!(name, ObjectName::Wal(WalFileName::Segment(_)) | ObjectName::Pack(_));
        if name.holds_data() && !counted_elsewhere && !name.is_made_again() {
            self.sizes.insert(name.clone(), bytes);
        }
        match &name {
            ObjectName::Wal(WalFileName::History(timeline)) => self.histories.push(*timeline),
            ObjectName::Part(part) => self.parts.entry(part.segment).or_default().push(*part),
            ObjectName::BackupBegun(id) => {
                self.backups.entry(id.clone()).or_default().begun = true;
                self.records.push(name.clone());
            }
            ObjectName::BackupRecord(id) => self.backups.entry(id.clone()).or_default().recorded = true,
            ObjectName::BackupManifest(id, piece) => self.backups.entry(id.clone()).or_default().pieces.push(*piece),
            ObjectName::Gap(_) | ObjectName::GapClosing(_) | ObjectName::Lease(_) | ObjectName::Hold(..) => self.records.push(name.clone()),
            ObjectName::Expiry(_) | ObjectName::ExpiryEnd(_) => self.records.push(name.clone()),
            ObjectName::Digest(digest) => {
                let told = self.told.entry(digest.timeline).or_insert(WalRange { from: digest.from, to: digest.to });
                *told = WalRange { from: told.from.min(digest.from), to: told.to.max(digest.to) };
            }
            ObjectName::Wal(WalFileName::Partial(_) | WalFileName::BackupHistory { .. }) | ObjectName::OtherPartial { .. } => {
                self.aside.push(name.clone());
            }
            ObjectName::Wal(WalFileName::Segment(_)) | ObjectName::Pack(_) | ObjectName::Blocks(_) | ObjectName::Names(_) => {}
            ObjectName::ArtifactRecord(place) => self.artifacts.entry(place.clone()).or_default().recorded = true,
            ObjectName::ArtifactSummary(place) => self.artifacts.entry(place.clone()).or_default().summary = true,
            ObjectName::ArtifactPiece(place, piece) => drop(self.artifacts.entry(place.clone()).or_default().pieces.insert(*piece)),
            ObjectName::Audit(number) => drop(self.audit.insert(*number)),
            ObjectName::DrillRecord(id) => {
                self.drills.entry(id.clone()).or_default().recorded = true;
                self.records.push(name.clone());
            }
            ObjectName::DrillReport(id, form) => drop(self.drills.entry(id.clone()).or_default().forms.insert(*form)),
            ObjectName::ArtifactBegun(_) | ObjectName::Sample(_) => {}
        }
        Some(name)
    }

    /// Those whose size cannot be.
    pub fn impossible(&self) -> impl Iterator<Item = (&ObjectName, String)> {
        self.impossible.iter().map(|(name, bytes)| {
            let possible = possible_bytes(name, self.size, self.form);
            (name, format!("it has {bytes} bytes; such an object has {} to {}", possible.start(), possible.end()))
        })
    }

    /// What lies there and is none of Walkeep's.
    pub fn strangers(&self) -> Findings {
        let note = |key: &String| Finding {
            severity: Severity::Note,
            kind: Kind::Foreign,
            key: key.clone(),
            reason: "it is none of Walkeep's, and was left alone".to_owned(),
            stretch: None,
            lost: Lost::default(),
            advice: String::new(),
        };
        let mut notes = Findings::default();
        notes.extend(self.foreign_named.iter().map(note));
        notes
    }
}
