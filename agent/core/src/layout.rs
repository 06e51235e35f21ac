//! Object keys: where each thing lies in a repository, and what a key found there means.
//!
//! One layout for every store. Writing and reading keys are inverse and total: [`ClusterLayout::parse`] answers `None` for whatever
//! Walkeep did not write, and such objects are ignored, never touched. Keys sort so that the usual question is one short listing:
//! segments of a timeline lie in LSN order.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::artifact::{ArtifactName, ArtifactPlace};
use crate::drill::rows::SampleName;
use crate::drill::{self, DrillId};
use crate::identity::{SystemIdentifier, TimelineId, parse_hex8};
use crate::index::{BlocksName, DigestName, Level};
use crate::lease::LeaseName;
use crate::lsn::Lsn;
use crate::segment::SegmentName;
use crate::wal_file::WalFileName;

/// The object whose presence proves that the repository was reached.
pub const MARKER_KEY: &str = "walkeep.json";

/// The operator's name for a cluster: `[cluster.NAME]` in the configuration, the first part of its keys.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize)]
#[serde(transparent)]
pub struct ClusterName(String);

/// The text cannot name a cluster.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{text:?} cannot name a cluster: use 1 to 63 of a-z, 0-9, '-' and '_', beginning with a letter or digit")]
pub struct ClusterNameError {
    text: String,
}

impl ClusterName {
    /// The name as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for ClusterName {
    type Err = ClusterNameError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let allowed = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-' || b == b'_';
        let begins_well = text.bytes().next().is_some_and(|b| b.is_ascii_lowercase() || b.is_ascii_digit());
        let valid = begins_well && text.len() <= 63 && text.bytes().all(allowed);
        valid.then(|| Self(text.to_owned())).ok_or_else(|| ClusterNameError { text: text.chars().take(80).collect() })
    }
}

impl fmt::Display for ClusterName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// A base backup's name: when it began (UTC) and its start LSN, `20261121T034712Z-0000000002000028`.
/// The time is for people; order is taken from the LSN and timeline in the backup's record.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize)]
#[serde(transparent)]
pub struct BackupId(String);

/// The text is not a backup's name.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{text:?} is not a backup ID: expected the form 20261121T034712Z-0000000002000028")]
pub struct ParseBackupIdError {
    text: String,
}

impl BackupId {
    /// The name of a backup that began at `began` (a UTC time, whole seconds) and at `start`.
    pub fn new(began: chrono::DateTime<chrono::Utc>, start: Lsn) -> Self {
        Self(format!("{}-{:016X}", began.format("%Y%m%dT%H%M%SZ"), start.get()))
    }

    /// The name as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Where it began.
    pub fn start(&self) -> Lsn {
        Lsn::new(u64::from_str_radix(&self.0[17..], 16).unwrap_or_default())
    }
}

impl FromStr for BackupId {
    type Err = ParseBackupIdError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let bytes = text.as_bytes();
        let digits = |range: std::ops::Range<usize>| bytes[range].iter().all(u8::is_ascii_digit);
        let hex = |range: std::ops::Range<usize>| bytes[range].iter().all(|b| b.is_ascii_digit() || (b'A'..=b'F').contains(b));
        let valid =
            bytes.len() == 33 && digits(0..8) && bytes[8] == b'T' && digits(9..15) && bytes[15] == b'Z' && bytes[16] == b'-' && hex(17..33);
        valid.then(|| Self(text.to_owned())).ok_or_else(|| ParseBackupIdError { text: text.chars().take(80).collect() })
    }
}

impl fmt::Display for BackupId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl<'de> Deserialize<'de> for BackupId {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = std::borrow::Cow::<'de, str>::deserialize(deserializer)?;
        text.parse().map_err(serde::de::Error::custom)
    }
}

/// A pack's name: the SHA-256 of its bytes.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PackId([u8; 32]);

impl PackId {
    /// The pack whose bytes have this SHA-256.
    pub const fn new(sha256: [u8; 32]) -> Self {
        Self(sha256)
    }

    /// The SHA-256 of the pack's bytes.
    pub const fn sha256(&self) -> &[u8; 32] {
        &self.0
    }

    fn parse(text: &str) -> Option<Self> {
        let lower = text.bytes().all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b));
        let mut bytes = [0; 32];
        (lower && hex::decode_to_slice(text, &mut bytes).is_ok()).then_some(Self(bytes))
    }
}

impl fmt::Display for PackId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&hex::encode(self.0))
    }
}

impl fmt::Debug for PackId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl Serialize for PackId {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for PackId {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = std::borrow::Cow::<'de, str>::deserialize(deserializer)?;
        Self::parse(&text).ok_or_else(|| serde::de::Error::custom("a pack is named by 64 lower-case hexadecimal digits"))
    }
}

/// Some bytes of a segment that was not finished when they were stored: `[from, to)`, offsets in the segment.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize, Deserialize)]
pub struct PartName {
    /// The segment.
    pub segment: SegmentName,
    /// Offset of the first byte.
    pub from: u32,
    /// Offset after the last byte.
    pub to: u32,
    /// The writer lease under which it was written; parts of one segment are joined only within one history.
    pub epoch: u32,
}

/// A stretch of a timeline that is known to be missing.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize, Deserialize)]
pub struct GapName {
    /// The timeline.
    pub timeline: TimelineId,
    /// The first missing position.
    pub from: Lsn,
    /// The first position after the gap.
    pub to: Lsn,
}

/// A catalog snapshot's name.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct SnapshotName {
    /// The timeline the server was on.
    pub timeline: TimelineId,
    /// Where its WAL stood when the snapshot began.
    pub lsn: Lsn,
}

/// What lies below `<cluster>/<system identifier>/`.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum ObjectName {
    /// A file of the archive: a segment, a history, a `.backup` note, or the first `.partial` of its name.
    Wal(WalFileName),
    /// A further `.partial` of the same name but other content: two promotions may each leave one.
    OtherPartial {
        /// The unfinished segment.
        segment: SegmentName,
        /// The first four bytes of the content's BLAKE3 sum.
        hash: u32,
    },
    /// Some bytes of an unfinished segment.
    Part(PartName),
    /// Data of base backups.
    Pack(PackId),
    /// The note that a backup has begun.
    BackupBegun(BackupId),
    /// A piece of the list of a backup's files and extents, counted from 1.
    BackupManifest(BackupId, u32),
    /// A backup's record, written last: it is what makes the backup exist.
    BackupRecord(BackupId),
    /// A gap's record.
    Gap(GapName),
    /// A writer's lease of a timeline.
    Lease(LeaseName),
    /// The note that a gap was filled.
    GapClosing(GapName),
    /// What happened in some segments.
    Digest(DigestName),
    /// Which blocks they change.
    Blocks(BlocksName),
    /// What relations were called.
    Names(SnapshotName),
    /// What was said of a backup after it was taken: that it is to be kept, or not any more. Counted from 1; the last one holds.
    Hold(BackupId, u32),
    /// What left the catalog.
    Expiry(u32),
    /// How that went on.
    ExpiryEnd(u32),
    /// A record of the audit trail, counted from 1.
    Audit(u32),
    /// The note that an artifact has begun.
    ArtifactBegun(ArtifactPlace),
    /// A piece of its stream, counted from 1.
    ArtifactPiece(ArtifactPlace, u32),
    /// What proves the stream.
    ArtifactSummary(ArtifactPlace),
    /// Its record, written last: it is what makes the artifact exist.
    ArtifactRecord(ArtifactPlace),
    /// A drill's report, in one form.
    DrillReport(DrillId, drill::Form),
    /// A drill's record, written last.
    DrillRecord(DrillId),
    /// How many rows tables had.
    Sample(SampleName),
}

impl ObjectName {
    /// Whether it names other objects, and counts only with these: it is put behind them.
    pub fn names_others(&self) -> bool {
        matches!(self, Self::BackupRecord(_) | Self::ArtifactRecord(_) | Self::DrillRecord(_))
    }

    /// Whether each repository may have another one of it, made anew out of what it has.
    pub fn is_made_again(&self) -> bool {
        matches!(self, Self::Digest(_) | Self::Blocks(_) | Self::Names(_))
    }

    /// Whether the object holds WAL, what the database holds, or what is told of them: where a repository is encrypted, it is. The others are small notes
    /// that say what is stored, and since when; whoever cannot decrypt needs them too.
    pub fn holds_data(&self) -> bool {
        match self {
            // Which timelines there are, and where they part, the names of segments and gaps say as well; and without it nobody finds a way through them.
            Self::Wal(WalFileName::History(_)) => false,
            Self::Wal(_) | Self::OtherPartial { .. } | Self::Part(_) | Self::Pack(_) | Self::BackupManifest(..) => true,
            Self::Digest(_) | Self::Blocks(_) | Self::Names(_) | Self::ArtifactPiece(..) | Self::ArtifactSummary(_) => true,
            Self::BackupBegun(_) | Self::BackupRecord(_) | Self::Gap(_) | Self::Lease(_) | Self::GapClosing(_) => false,
            Self::Hold(..) | Self::Expiry(_) | Self::ExpiryEnd(_) | Self::Audit(_) => false,
            Self::ArtifactBegun(_) | Self::ArtifactRecord(_) => false,
            Self::DrillReport(..) | Self::Sample(_) => true,
            Self::DrillRecord(_) => false,
        }
    }
}

/// What the objects are that hold data.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Form {
    /// zstd files.
    #[default]
    Zstd,
    /// zstd files, each in a file of age's.
    Age,
}

impl Form {
    /// For records that say nothing about what is usual.
    pub fn is_usual(&self) -> bool {
        *self == Self::default()
    }
}

/// The keys of one cluster identity.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ClusterLayout {
    root: String,
    form: Form,
}

impl ClusterLayout {
    /// The keys of the cluster called `cluster` with this system identifier.
    pub fn new(cluster: &ClusterName, system: SystemIdentifier) -> Self {
        Self { root: format!("{cluster}/{system}/"), form: Form::default() }
    }

    /// The same for objects of this form.
    pub fn with(self, form: Form) -> Self {
        Self { form, ..self }
    }

    /// What all keys begin with.
    pub fn root(&self) -> &str {
        &self.root
    }

    /// The key of an object.
    pub fn key(&self, name: &ObjectName) -> String {
        match (self.form, name) {
            // Its plain key says nothing of zstd: it is a row of frames, and no file.
            (Form::Age, ObjectName::Pack(_)) => format!("{}.zst.age", self.plain_key(name)),
            (Form::Age, name) if name.holds_data() => format!("{}.age", self.plain_key(name)),
            (Form::Zstd | Form::Age, name) => self.plain_key(name),
        }
    }

    fn plain_key(&self, name: &ObjectName) -> String {
        let root = &self.root;
        let folder = |segment: SegmentName| format!("{root}wal/{}/{:08X}/", segment.timeline().hex(), segment.log());
        match name {
            ObjectName::Wal(WalFileName::History(timeline)) => format!("{root}wal/{}.history.zst", timeline.hex()),
            ObjectName::Wal(file @ (WalFileName::Segment(segment) | WalFileName::Partial(segment))) => {
                format!("{}{file}.zst", folder(*segment))
            }
            ObjectName::Wal(file @ WalFileName::BackupHistory { segment, .. }) => format!("{}{file}.zst", folder(*segment)),
            ObjectName::OtherPartial { segment, hash } => format!("{}{segment}.partial.{hash:08x}.zst", folder(*segment)),
            ObjectName::Part(part) => {
                format!("{}{:08X}-{:08X}.{:08X}.zst", self.parts_prefix(part.segment), part.from, part.to, part.epoch)
            }
            ObjectName::Pack(pack) => {
                let name = pack.to_string();
                format!("{root}packs/{}/{name}", &name[..2])
            }
            ObjectName::BackupBegun(id) => format!("{}begun.json", self.backup_prefix(id)),
            ObjectName::BackupManifest(id, 1) => format!("{}manifest.zst", self.backup_prefix(id)),
            ObjectName::BackupManifest(id, piece) => format!("{}manifest.{piece}.zst", self.backup_prefix(id)),
            ObjectName::BackupRecord(id) => format!("{root}backups/{id}/backup.json"),
            ObjectName::Gap(gap) => {
                format!("{root}gaps/{}-{:016X}-{:016X}.json", gap.timeline.hex(), gap.from.get(), gap.to.get())
            }
            ObjectName::Lease(lease) => format!("{}{:08X}.json", self.leases_prefix(lease.timeline), lease.epoch),
            ObjectName::GapClosing(gap) => {
                format!("{root}gaps/{}-{:016X}-{:016X}.closed.json", gap.timeline.hex(), gap.from.get(), gap.to.get())
            }
            ObjectName::Digest(name) => {
                format!("{}{:016X}-{:016X}.zst", self.digests_prefix(name.timeline, name.level), name.from.get(), name.to.get())
            }
            ObjectName::Blocks(name) => {
                format!("{}{:016X}-{:016X}.zst", self.blocks_prefix(name.timeline), name.from.get(), name.to.get())
            }
            ObjectName::Hold(id, number) => format!("{}hold.{number}.json", self.backup_prefix(id)),
            ObjectName::Expiry(number) => format!("{}{number:08X}.json", self.expired_prefix()),
            ObjectName::ExpiryEnd(number) => format!("{}{number:08X}.end.json", self.expired_prefix()),
            ObjectName::ArtifactBegun(place) => format!("{}begun.json", self.artifact_prefix(place)),
            ObjectName::ArtifactPiece(place, number) => format!("{}{number:08}.zst", self.artifact_prefix(place)),
            ObjectName::ArtifactSummary(place) => format!("{}summary.zst", self.artifact_prefix(place)),
            ObjectName::ArtifactRecord(place) => format!("{}artifact.json", self.artifact_prefix(place)),
            ObjectName::DrillReport(id, form) => format!("{}report.{}.zst", self.drill_prefix(id), form.extension()),
            ObjectName::DrillRecord(id) => format!("{}drill.json", self.drill_prefix(id)),
            ObjectName::Sample(sample) => format!("{}{}/{:016X}.zst", self.samples_prefix(), sample.timeline.hex(), sample.lsn.get()),
            ObjectName::Audit(number) => format!("{}{number:08}.json", self.audit_prefix()),
            ObjectName::Names(names) => format!("{}{}/{:016X}.zst", self.names_prefix(), names.timeline.hex(), names.lsn.get()),
        }
    }

    /// The key of a file of the archive.
    pub fn wal_key(&self, file: WalFileName) -> String {
        self.key(&ObjectName::Wal(file))
    }

    /// Everything of the archive: the timelines' folders and the histories.
    pub fn wal_prefix(&self) -> String {
        format!("{}wal/", self.root)
    }

    /// Everything of one timeline's segments.
    pub fn timeline_prefix(&self, timeline: TimelineId) -> String {
        format!("{}wal/{}/", self.root, timeline.hex())
    }

    /// Everything of one timeline's segments in one 4 GiB log.
    pub fn log_prefix(&self, timeline: TimelineId, log: u32) -> String {
        format!("{}wal/{}/{log:08X}/", self.root, timeline.hex())
    }

    /// The parts of one segment.
    pub fn parts_prefix(&self, segment: SegmentName) -> String {
        format!("{}wal/{}/{:08X}/{segment}.parts/", self.root, segment.timeline().hex(), segment.log())
    }

    /// Everything of one backup but its data.
    pub fn backup_prefix(&self, id: &BackupId) -> String {
        format!("{}backups/{id}/", self.root)
    }

    /// The backups.
    pub fn backups_prefix(&self) -> String {
        format!("{}backups/", self.root)
    }

    /// What all packs' keys begin with.
    pub fn packs_prefix(&self) -> String {
        format!("{}packs/", self.root)
    }

    /// The gaps.
    pub fn gaps_prefix(&self) -> String {
        format!("{}gaps/", self.root)
    }

    /// The index of every timeline.
    pub fn index_prefix(&self) -> String {
        format!("{}index/", self.root)
    }

    /// The digests of one timeline and level.
    pub fn digests_prefix(&self, timeline: TimelineId, level: Level) -> String {
        format!("{}{}/{}/", self.index_prefix(), timeline.hex(), level.get())
    }

    /// The block maps of one timeline.
    pub fn blocks_prefix(&self, timeline: TimelineId) -> String {
        format!("{}{}/blocks/", self.index_prefix(), timeline.hex())
    }

    /// The leases of one timeline.
    pub fn leases_prefix(&self, timeline: TimelineId) -> String {
        format!("{}{}/", self.every_lease_prefix(), timeline.hex())
    }

    /// The leases.
    pub fn every_lease_prefix(&self) -> String {
        format!("{}leases/", self.root)
    }

    /// The records of what left the catalog.
    pub fn expired_prefix(&self) -> String {
        format!("{}expired/", self.root)
    }

    /// The artifacts.
    pub fn artifacts_prefix(&self) -> String {
        format!("{}artifacts/", self.root)
    }

    /// Those of one name.
    pub fn artifacts_prefix_of(&self, name: &ArtifactName) -> String {
        format!("{}{name}/", self.artifacts_prefix())
    }

    /// Everything of one artifact.
    pub fn artifact_prefix(&self, place: &ArtifactPlace) -> String {
        format!("{}{}/", self.artifacts_prefix_of(&place.name), place.id)
    }

    /// The drills.
    pub fn drills_prefix(&self) -> String {
        format!("{}drills/", self.root)
    }

    /// Everything of one drill.
    pub fn drill_prefix(&self, id: &DrillId) -> String {
        format!("{}{id}/", self.drills_prefix())
    }

    /// The samples of rows.
    pub fn samples_prefix(&self) -> String {
        format!("{}samples/", self.root)
    }

    /// The audit trail.
    pub fn audit_prefix(&self) -> String {
        format!("{}audit/", self.root)
    }

    /// The catalog snapshots.
    pub fn names_prefix(&self) -> String {
        format!("{}names/", self.root)
    }

    /// What the object at `key` is; `None` if Walkeep did not put it there.
    pub fn parse(&self, key: &str) -> Option<ObjectName> {
        let path = key.strip_prefix(&self.root)?;
        let name = parse_below_root(match self.form {
            Form::Zstd => path,
            Form::Age => path.strip_suffix(".age").unwrap_or(path),
        })?;
        // Total and exact: a key that would be written differently is somebody else's.
        (self.key(&name) == key).then_some(name)
    }
}

fn parse_below_root(path: &str) -> Option<ObjectName> {
    let (folder, rest) = path.split_once('/')?;
    match folder {
        "wal" => parse_wal(rest),
        "packs" => {
            let name = rest.rsplit('/').next()?;
            PackId::parse(name.strip_suffix(".zst").unwrap_or(name)).map(ObjectName::Pack)
        }
        "backups" => match rest.split_once('/')? {
            (id, "begun.json") => id.parse().ok().map(ObjectName::BackupBegun),
            (id, "manifest.zst") => Some(ObjectName::BackupManifest(id.parse().ok()?, 1)),
            (id, "backup.json") => id.parse().ok().map(ObjectName::BackupRecord),
            (id, name) if name.starts_with("hold.") => {
                let number = name.strip_prefix("hold.")?.strip_suffix(".json")?.parse().ok()?;
                (number > 0).then_some(ObjectName::Hold(id.parse().ok()?, number))
            }
            (id, name) => {
                let piece = name.strip_prefix("manifest.")?.strip_suffix(".zst")?.parse().ok()?;
                (piece > 0).then_some(ObjectName::BackupManifest(id.parse().ok()?, piece))
            }
        },
        "gaps" => {
            let name = rest.strip_suffix(".json")?;
            let (place, closing) = name.strip_suffix(".closed").map_or((name, false), |place| (place, true));
            let mut fields = place.split('-');
            let timeline = TimelineId::parse_hex(fields.next()?)?;
            let mut position = || u64::from_str_radix(fields.next()?, 16).ok().map(Lsn::new);
            let gap = GapName { timeline, from: position()?, to: position()? };
            Some(if closing { ObjectName::GapClosing(gap) } else { ObjectName::Gap(gap) })
        }
        "leases" => {
            let (timeline, epoch) = rest.strip_suffix(".json")?.split_once('/')?;
            Some(ObjectName::Lease(LeaseName { timeline: TimelineId::parse_hex(timeline)?, epoch: parse_hex8(epoch)? }))
        }
        "index" => parse_index(rest),
        "expired" => {
            let name = rest.strip_suffix(".json")?;
            Some(match name.strip_suffix(".end") {
                Some(number) => ObjectName::ExpiryEnd(parse_hex8(number)?),
                None => ObjectName::Expiry(parse_hex8(name)?),
            })
        }
        "artifacts" => parse_artifact(rest),
        "drills" => {
            let (id, object) = rest.split_once('/')?;
            let id = id.parse().ok()?;
            match object.strip_prefix("report.").and_then(|form| form.strip_suffix(".zst")) {
                Some(extension) => {
                    let form = drill::Form::ALL.into_iter().find(|form| form.extension() == extension)?;
                    Some(ObjectName::DrillReport(id, form))
                }
                None => (object == "drill.json").then_some(ObjectName::DrillRecord(id)),
            }
        }
        "samples" => {
            let (timeline, lsn) = rest.strip_suffix(".zst")?.split_once('/')?;
            let lsn = u64::from_str_radix(lsn, 16).ok().map(Lsn::new)?;
            Some(ObjectName::Sample(SampleName { timeline: TimelineId::parse_hex(timeline)?, lsn }))
        }
        "audit" => {
            let number = rest.strip_suffix(".json")?.parse().ok()?;
            (number > 0).then_some(ObjectName::Audit(number))
        }
        "names" => {
            let (timeline, lsn) = rest.strip_suffix(".zst")?.split_once('/')?;
            let lsn = u64::from_str_radix(lsn, 16).ok().map(Lsn::new)?;
            Some(ObjectName::Names(SnapshotName { timeline: TimelineId::parse_hex(timeline)?, lsn }))
        }
        _ => None,
    }
}

fn parse_artifact(path: &str) -> Option<ObjectName> {
    let (name, rest) = path.split_once('/')?;
    let (id, object) = rest.split_once('/')?;
    let place = ArtifactPlace { name: name.parse().ok()?, id: id.parse().ok()? };
    match object {
        "begun.json" => Some(ObjectName::ArtifactBegun(place)),
        "artifact.json" => Some(ObjectName::ArtifactRecord(place)),
        "summary.zst" => Some(ObjectName::ArtifactSummary(place)),
        piece => {
            let number = piece.strip_suffix(".zst")?.parse().ok()?;
            (number > 0).then_some(ObjectName::ArtifactPiece(place, number))
        }
    }
}

fn parse_index(path: &str) -> Option<ObjectName> {
    let mut steps = path.strip_suffix(".zst")?.split('/');
    let (timeline, kind, place) = (TimelineId::parse_hex(steps.next()?)?, steps.next()?, steps.next()?);
    let (from, to) = place.split_once('-')?;
    let position = |text| u64::from_str_radix(text, 16).ok().map(Lsn::new);
    let (from, to) = (position(from)?, position(to)?);
    match kind {
        "blocks" => Some(ObjectName::Blocks(BlocksName { timeline, from, to })),
        level => Some(ObjectName::Digest(DigestName { timeline, level: Level::new(level.parse().ok()?)?, from, to })),
    }
}

fn parse_wal(path: &str) -> Option<ObjectName> {
    let name = path.strip_suffix(".zst")?;
    let mut steps = name.split('/').skip(2);
    let (file, part) = (steps.next(), steps.next());
    match (file, part) {
        (None, _) => name.parse().ok().map(ObjectName::Wal),
        (Some(folder), Some(part)) => {
            let segment = folder.strip_suffix(".parts")?.parse().ok()?;
            let (range, epoch) = part.split_once('.')?;
            let (from, to) = range.split_once('-')?;
            let part = PartName { segment, from: parse_hex8(from)?, to: parse_hex8(to)?, epoch: parse_hex8(epoch)? };
            (part.from < part.to).then_some(ObjectName::Part(part))
        }
        (Some(file), None) => match file.split_once(".partial.") {
            Some((segment, hash)) => {
                let segment = segment.parse().ok()?;
                let hash = u32::from_str_radix(hash, 16).ok()?;
                Some(ObjectName::OtherPartial { segment, hash })
            }
            None => file.parse().ok().map(ObjectName::Wal),
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn layout() -> ClusterLayout {
        ClusterLayout::new(&"main".parse().expect("a name"), SystemIdentifier::new(7_000_000_000_000_000_001))
    }

    fn segment() -> SegmentName {
        "00000002000000010000000A".parse().expect("a name")
    }

    fn every_kind() -> Vec<(ObjectName, &'static str)> {
        let id = BackupId::new(chrono::DateTime::from_timestamp(1_795_232_832, 0).expect("a time"), Lsn::new(0x200_0028));
        let gap = GapName { timeline: TimelineId::FIRST, from: Lsn::new(0x300_0000), to: Lsn::new(0x1_0400_0000) };
        let began = chrono::DateTime::from_timestamp(1_795_232_832, 0).expect("a time");
        let place = ArtifactPlace { name: "etc".parse().expect("a name"), id: crate::artifact::ArtifactId::new(began, 0xab) };
        vec![
            (ObjectName::Wal(WalFileName::Segment(segment())), "wal/00000002/00000001/00000002000000010000000A.zst"),
            (ObjectName::Wal(WalFileName::Partial(segment())), "wal/00000002/00000001/00000002000000010000000A.partial.zst"),
            (
                ObjectName::OtherPartial { segment: segment(), hash: 0xab },
                "wal/00000002/00000001/00000002000000010000000A.partial.000000ab.zst",
            ),
            (
                ObjectName::Wal(WalFileName::BackupHistory { segment: segment(), offset: 0x28 }),
                "wal/00000002/00000001/00000002000000010000000A.00000028.backup.zst",
            ),
            (ObjectName::Wal(WalFileName::History(TimelineId::FIRST)), "wal/00000001.history.zst"),
            (
                ObjectName::Part(PartName { segment: segment(), from: 0, to: 0x2000, epoch: 1 }),
                "wal/00000002/00000001/00000002000000010000000A.parts/00000000-00002000.00000001.zst",
            ),
            (ObjectName::Pack(PackId::new([0xab; 32])), "packs/ab/abababababababababababababababababababababababababababababababab"),
            (ObjectName::BackupBegun(id.clone()), "backups/20261121T034712Z-0000000002000028/begun.json"),
            (ObjectName::BackupManifest(id.clone(), 1), "backups/20261121T034712Z-0000000002000028/manifest.zst"),
            (ObjectName::BackupManifest(id.clone(), 12), "backups/20261121T034712Z-0000000002000028/manifest.12.zst"),
            (ObjectName::Hold(id.clone(), 2), "backups/20261121T034712Z-0000000002000028/hold.2.json"),
            (ObjectName::Expiry(10), "expired/0000000A.json"),
            (ObjectName::ExpiryEnd(10), "expired/0000000A.end.json"),
            (ObjectName::Audit(123), "audit/00000123.json"),
            (ObjectName::ArtifactBegun(place.clone()), "artifacts/etc/20261121T034712Z-000000ab/begun.json"),
            (ObjectName::ArtifactPiece(place.clone(), 12), "artifacts/etc/20261121T034712Z-000000ab/00000012.zst"),
            (ObjectName::ArtifactSummary(place.clone()), "artifacts/etc/20261121T034712Z-000000ab/summary.zst"),
            (ObjectName::ArtifactRecord(place), "artifacts/etc/20261121T034712Z-000000ab/artifact.json"),
            (ObjectName::DrillReport(DrillId::new(began, 0xab), drill::Form::Text), "drills/20261121T034712Z-000000ab/report.txt.zst"),
            (ObjectName::DrillRecord(DrillId::new(began, 0xab)), "drills/20261121T034712Z-000000ab/drill.json"),
            (
                ObjectName::Sample(SampleName { timeline: TimelineId::FIRST, lsn: Lsn::new(0x300_00D8) }),
                "samples/00000001/00000000030000D8.zst",
            ),
            (ObjectName::BackupRecord(id), "backups/20261121T034712Z-0000000002000028/backup.json"),
            (ObjectName::Gap(gap), "gaps/00000001-0000000003000000-0000000104000000.json"),
            (ObjectName::Lease(LeaseName { timeline: TimelineId::FIRST, epoch: 10 }), "leases/00000001/0000000A.json"),
            (ObjectName::GapClosing(gap), "gaps/00000001-0000000003000000-0000000104000000.closed.json"),
            (
                ObjectName::Digest(DigestName { timeline: TimelineId::FIRST, level: Level::TOP, from: gap.from, to: gap.to }),
                "index/00000001/2/0000000003000000-0000000104000000.zst",
            ),
            (
                ObjectName::Blocks(BlocksName { timeline: TimelineId::FIRST, from: gap.from, to: gap.to }),
                "index/00000001/blocks/0000000003000000-0000000104000000.zst",
            ),
            (
                ObjectName::Names(SnapshotName { timeline: TimelineId::FIRST, lsn: Lsn::new(0x300_00D8) }),
                "names/00000001/00000000030000D8.zst",
            ),
        ]
    }

    #[test]
    fn every_kind_has_its_key_and_is_read_back() {
        for (name, below_root) in every_kind() {
            let key = layout().key(&name);
            assert_eq!(key, format!("main/7000000000000000001/{below_root}"));
            assert_eq!(layout().parse(&key), Some(name));
        }
    }

    #[test]
    fn encrypted_objects_end_in_age_and_notes_do_not() {
        let (plain, encrypted) = (layout(), layout().with(Form::Age));
        for (name, below_root) in every_kind() {
            let key = encrypted.key(&name);
            let suffix = match &name {
                ObjectName::Pack(_) => ".zst.age",
                name if name.holds_data() => ".age",
                _ => "",
            };
            assert_eq!(key, format!("main/7000000000000000001/{below_root}{suffix}"));
            assert_eq!(key.ends_with(".zst.age"), !key.ends_with(".json") && !key.ends_with(".history.zst"), "{key}");
            assert_eq!(encrypted.parse(&key), Some(name.clone()));
            // What is of the other form is not Walkeep's here.
            assert_eq!(plain.parse(&key).is_some(), !name.holds_data(), "{key}");
            assert_eq!(encrypted.parse(&plain.key(&name)).is_some(), !name.holds_data(), "{key}");
        }
    }

    #[test]
    fn what_walkeep_did_not_write_is_nothing() {
        let root = "main/7000000000000000001/";
        for key in [
            "walkeep.json",
            "main/7000000000000000002/wal/00000001.history.zst",
            &format!("{root}wal/00000001/00000001/00000002000000010000000A.zst"),
            &format!("{root}wal/00000002/00000002/00000002000000010000000A.zst"),
            &format!("{root}wal/00000002/00000001/00000002000000010000000a.zst"),
            &format!("{root}wal/00000002/00000001/00000002000000010000000A.zst.tmp"),
            &format!("{root}wal/00000002/00000001/../00000002000000010000000A.zst"),
            &format!("{root}wal/00000002/00000001/00000002000000010000000A.parts/00002000-00000000.00000001.zst"),
            &format!("{root}packs/aa/abababababababababababababababababababababababababababababababab"),
            &format!("{root}backups/../backup.json"),
            &format!("{root}gaps/00000001-0-1.json"),
            &format!("{root}audit/00000000.json"),
            &format!("{root}audit/123.json"),
            &format!("{root}artifacts/etc/20261121T034712Z-000000ab/00000000.zst"),
            &format!("{root}artifacts/etc/20261121T034712Z-000000ab/1.zst"),
            &format!("{root}artifacts/Etc/20261121T034712Z-000000ab/00000001.zst"),
            &format!("{root}artifacts/etc/x/artifact.json"),
            &format!("{root}drills/20261121T034712Z-000000ab/report.pdf.zst"),
            &format!("{root}drills/20261121T034712Z-000000ab/report.zst"),
            &format!("{root}wal/00000001.history.zst\n"),
        ] {
            assert_eq!(layout().parse(key), None, "{key}");
        }
    }

    #[test]
    fn cluster_names_are_plain() {
        for text in ["", "-a", "_a", "Main", "a/b", "..", "a b", "ä", &"a".repeat(64)] {
            assert!(text.parse::<ClusterName>().is_err(), "{text:?}");
        }
        assert!("9-a_b".parse::<ClusterName>().is_ok());
    }

    proptest! {
        #[test]
        fn parsing_never_panics_and_is_exact(path in "[a-zA-Z0-9./-]{0,80}") {
            let key = format!("main/7000000000000000001/{path}");
            for layout in [layout(), layout().with(Form::Age)] {
                if let Some(name) = layout.parse(&key) {
                    prop_assert_eq!(layout.key(&name), key.clone());
                }
            }
        }
    }
}
