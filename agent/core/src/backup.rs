//! The record of a base backup, stored as `backup.json`.
//!
//! The record is written last and is the commit point: a backup without one does not exist. It holds what planning needs, so that a
//! plan never reads a manifest; which files there are is the manifest's, see [`crate::manifest`].

use std::time::Duration;

use chrono::{DateTime, TimeDelta, Utc};
use serde::{Deserialize, Serialize};

use crate::identity::{MajorVersion, SystemIdentifier, TimelineId};
use crate::layout::BackupId;
use crate::lsn::Lsn;
use crate::sealed;
use crate::segment::SegmentSize;
use crate::sha256::Sha256Sum;

/// How a backup's bytes were read.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum BackupMethod {
    /// `BASE_BACKUP` over a replication connection.
    BaseBackup,
    /// The data directory, read between `pg_backup_start` and `pg_backup_stop`.
    DataDirectory,
}

/// A promise to keep a backup beyond the retention policy.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Keep {
    /// Until somebody says otherwise.
    Forever,
    /// Until this moment.
    Until(DateTime<Utc>),
}

/// For how long a backup yet to be taken is to be kept.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum KeepFor {
    /// Until somebody says otherwise.
    Forever,
    /// So long from when it is taken on.
    Time(Duration),
}

impl KeepFor {
    /// The promise of a backup that is taken now; `None` beyond all years.
    pub fn from(self, now: DateTime<Utc>) -> Option<Keep> {
        match self {
            Self::Forever => Some(Keep::Forever),
            Self::Time(time) => now.checked_add_signed(TimeDelta::from_std(time).ok()?).map(Keep::Until),
        }
    }
}

/// PostgreSQL's own limit for labels.
pub const LONGEST_LABEL: usize = 1000;

/// A label that a backup cannot have.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum LabelError {
    /// It has control characters: a line break forges lines of backup_label, which PostgreSQL writes without a check.
    #[error("a backup's label must not have control characters or line breaks")]
    Control,
    /// It is longer than PostgreSQL takes.
    #[error("a backup's label has {found} bytes; at most {LONGEST_LABEL} are possible")]
    Long {
        /// Its bytes.
        found: usize,
    },
}

/// Whether a backup can have this label.
pub fn check_label(label: &str) -> Result<(), LabelError> {
    if label.chars().any(char::is_control) {
        return Err(LabelError::Control);
    }
    if label.len() > LONGEST_LABEL { Err(LabelError::Long { found: label.len() }) } else { Ok(()) }
}

/// A tablespace at the time of a backup.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Tablespace {
    /// Its OID: its files are in the manifest under `pg_tblspc/<oid>/`.
    pub oid: u32,
    /// Where it was on the server; a restore may be told another place.
    pub path: String,
    /// Bytes of its files.
    pub bytes: u64,
}

/// A page whose checksum was wrong on the server when the backup read it.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct BadPage {
    /// The file, below the data directory.
    pub file: String,
    /// The block, counted within the relation.
    pub block: u32,
    /// `database.schema.relation`, where the server could say.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub relation: Option<String>,
}

/// Damage that was on the server already. The backup has it as it was.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct DamageReport {
    /// How many pages are bad.
    pub pages: u64,
    /// The first of them.
    pub named: Vec<BadPage>,
}

/// That a backup has begun, and who takes it: for people, who may find it without a record.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct BackupBegun {
    /// Version of this format: 1.
    pub format: u32,
    /// The operator's words.
    pub label: String,
    /// The host that takes it.
    pub host: String,
    /// The process there.
    pub process: u32,
    /// When, by that host's clock.
    pub at: DateTime<Utc>,
    /// The spool in whose folder it holds its lock, by the identity that lies there; where there is one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub writer: Option<String>,
}

/// What is known of one base backup.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct BackupRecord {
    /// The record's form, [`BackupRecord::FORMAT`].
    pub format: u32,
    /// The backup's name.
    pub id: BackupId,
    /// The operator's name of the cluster.
    pub cluster: String,
    /// The cluster's identity.
    pub system_identifier: SystemIdentifier,
    /// The operator's words.
    pub label: String,
    /// The timeline at the start.
    pub timeline: TimelineId,
    /// The timeline at the stop, where it differs: a standby may follow its primary to a new one meanwhile.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stop_timeline: Option<TimelineId>,
    /// Replay begins here: the redo position of the starting checkpoint.
    pub start_lsn: Lsn,
    /// From here on a restore is consistent; nothing earlier can be a target.
    pub stop_lsn: Lsn,
    /// Where the starting checkpoint's record lies.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub checkpoint_lsn: Option<Lsn>,
    /// The server's clock at the start.
    pub started_at: DateTime<Utc>,
    /// The server's clock at the stop.
    pub ended_at: DateTime<Utc>,
    /// `server_version_num`, such as 150018.
    pub server_version_num: u32,
    /// The major version, which a restore needs.
    pub major_version: MajorVersion,
    /// The cluster's segment size.
    pub segment_size: SegmentSize,
    /// How the bytes were read.
    pub method: BackupMethod,
    /// Whether the server was a standby: then the WAL holds no record of the backup's end.
    pub from_standby: bool,
    /// Entries of the manifest that are files.
    pub files: u64,
    /// Bytes of those files.
    pub bytes: u64,
    /// Bytes this backup added to the repository.
    pub bytes_stored: u64,
    /// Stored bytes of all its extents, older packs' too: what a restore fetches.
    pub bytes_referenced: u64,
    /// The tablespaces, without the two that every cluster has.
    pub tablespaces: Vec<Tablespace>,
    /// The SHA-256 of the manifest's lines.
    pub manifest_sha256: Sha256Sum,
    /// How many objects the manifest has.
    #[serde(default = "one", skip_serializing_if = "is_one")]
    pub manifest_pieces: u32,
    /// The backup whose extents this one used where nothing had changed. It is no longer needed for this one: the extents are.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub parent: Option<BackupId>,
    /// Set to keep the backup beyond the retention policy.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub keep: Option<Keep>,
    /// The moment for which a schedule, known by the label, asked for the backup; none asked for one that somebody took by hand.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub due: Option<DateTime<Utc>>,
    /// Whether pages carry checksums, where known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub data_checksums: Option<bool>,
    /// Pages that were bad when they were read. Such a backup is kept: nothing better may be had.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub damage: Option<DamageReport>,
}

fn one() -> u32 {
    1
}

fn is_one(pieces: &u32) -> bool {
    *pieces == 1
}

/// A record that cannot be believed.
#[derive(Debug, thiserror::Error)]
pub enum BackupRecordError {
    /// Not JSON, or not the JSON of a record.
    #[error("backup.json is malformed: {0}")]
    Malformed(#[from] serde_json::Error),
    /// Written by a later Walkeep.
    #[error("backup.json has format {found}, this version reads {}: use a newer walkeep", BackupRecord::FORMAT)]
    Format {
        /// The format found.
        found: u64,
    },
    /// It lies under another backup's name.
    #[error("backup.json of {expected} is the record of {found}: the object was moved or exchanged")]
    Id {
        /// The backup it was read for.
        expected: BackupId,
        /// The backup it names.
        found: BackupId,
    },
    /// The positions cannot be those of a backup.
    #[error("backup.json of {id} goes from {start} to {stop}: a backup begins before it ends, and not at 0/0")]
    Range {
        /// The backup.
        id: BackupId,
        /// Its start.
        start: Lsn,
        /// Its stop.
        stop: Lsn,
    },
}

impl BackupRecord {
    /// The form written by this version.
    pub const FORMAT: u32 = 1;

    /// Reads the record found under the name `id`.
    pub fn parse(id: &BackupId, json: &[u8]) -> Result<Self, BackupRecordError> {
        #[derive(Deserialize)]
        struct Form {
            format: u64,
        }
        // The form first: a later one may lack what this version requires, and that is not malformed.
        let form: Form = serde_json::from_slice(json)?;
        if form.format != u64::from(Self::FORMAT) {
            return Err(BackupRecordError::Format { found: form.format });
        }
        let record: Self = sealed::from_json(json)?;
        if record.id != *id {
            return Err(BackupRecordError::Id { expected: id.clone(), found: record.id });
        }
        if record.start_lsn.is_zero() || record.start_lsn >= record.stop_lsn {
            return Err(BackupRecordError::Range { id: record.id, start: record.start_lsn, stop: record.stop_lsn });
        }
        Ok(record)
    }

    /// The content of `backup.json`: indented, since people read it too.
    pub fn to_json(&self) -> Result<Vec<u8>, serde_json::Error> {
        sealed::to_json(self)
    }

    /// The timeline at the stop.
    pub fn stops_on(&self) -> TimelineId {
        self.stop_timeline.unwrap_or(self.timeline)
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// A backup of `[start, stop)` on `timeline`, taken at the second `start` and ended at the second `stop` of 2026-11-21.
    pub(crate) fn record(timeline: u32, start: u64, stop: u64, seconds: (i64, i64)) -> BackupRecord {
        let at = |second: i64| DateTime::from_timestamp(1_795_219_200 + second, 0).expect("a time");
        BackupRecord {
            format: BackupRecord::FORMAT,
            id: BackupId::new(at(seconds.0), Lsn::new(start)),
            cluster: "main".into(),
            system_identifier: SystemIdentifier::new(7),
            label: "nightly".into(),
            timeline: TimelineId::new(timeline).expect("not zero"),
            stop_timeline: None,
            start_lsn: Lsn::new(start),
            stop_lsn: Lsn::new(stop),
            checkpoint_lsn: None,
            started_at: at(seconds.0),
            ended_at: at(seconds.1),
            server_version_num: 150_018,
            major_version: MajorVersion::new(15),
            segment_size: SegmentSize::new(1 << 20).expect("a size"),
            method: BackupMethod::BaseBackup,
            from_standby: false,
            files: 900,
            bytes: 30_000_000,
            bytes_stored: 4_000_000,
            bytes_referenced: 9_000_000,
            tablespaces: vec![Tablespace { oid: 16_400, path: "/srv/fast".into(), bytes: 8192 }],
            manifest_sha256: Sha256Sum::new([0xab; 32]),
            manifest_pieces: 1,
            parent: None,
            keep: Some(Keep::Forever),
            due: None,
            data_checksums: Some(true),
            damage: None,
        }
    }

    #[test]
    fn round_trips() {
        let mut record = record(1, 0x200_0028, 0x200_0100, (0, 9));
        assert_eq!(BackupRecord::parse(&record.id, &record.to_json().expect("json")).expect("parses"), record);
        record.keep = Some(Keep::Until(record.ended_at));
        record.stop_timeline = TimelineId::new(2);
        record.data_checksums = None;
        record.due = Some(record.started_at);
        record.damage = Some(DamageReport { pages: 1, named: vec![BadPage { file: "base/5/1".into(), block: 7, relation: None }] });
        assert_eq!(BackupRecord::parse(&record.id, &record.to_json().expect("json")).expect("parses"), record);
    }

    #[test]
    fn refuses_what_cannot_be_believed() {
        let good = record(1, 0x200_0028, 0x200_0100, (0, 9));
        let other = record(1, 0x300_0028, 0x300_0100, (0, 9));
        let json = good.to_json().expect("json");
        assert!(matches!(BackupRecord::parse(&other.id, &json), Err(BackupRecordError::Id { .. })));
        let later = br#"{"format": 2, "something": "else"}"#;
        assert!(matches!(BackupRecord::parse(&good.id, later), Err(BackupRecordError::Format { found: 2 })));
        assert!(matches!(BackupRecord::parse(&good.id, b"{"), Err(BackupRecordError::Malformed(_))));
        let mut backwards = good.clone();
        backwards.stop_lsn = Lsn::new(5);
        let json = backwards.to_json().expect("json");
        assert!(matches!(BackupRecord::parse(&good.id, &json), Err(BackupRecordError::Range { .. })));
    }
}
