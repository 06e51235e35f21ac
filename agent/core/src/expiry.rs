//! The record of an expiry: which backups and artifacts left the catalog, and which WAL no kept backup needs any more.
//!
//! It is put before any object goes. From then on nothing that it names is seen by plans, listings and new backups; the objects follow after a time of
//! grace, in which the record can be taken back. What is to go is decided by [`crate::retention`]; removing objects is the agent's.

use std::collections::{BTreeMap, BTreeSet};

use chrono::{DateTime, TimeDelta, Utc};
use serde::{Deserialize, Serialize};

use crate::artifact::ArtifactPlace;
use crate::catalog::WalRange;
use crate::identity::TimelineId;
use crate::index::Run;
use crate::layout::BackupId;
use crate::lsn::Lsn;
use crate::sealed;
use crate::segment::SegmentSize;

/// Whole segments of a timeline.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Serialize, Deserialize)]
pub struct ExpiredWal {
    /// The timeline whose files they are.
    pub timeline: TimelineId,
    /// Where the first begins.
    pub from: Lsn,
    /// Where the last ends.
    pub to: Lsn,
}

/// What left the catalog in one run.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Expiry {
    /// Version of this format: 1.
    pub format: u32,
    /// Its number, which is its name.
    pub number: u32,
    /// When, by the clock of the host that decided it.
    pub at: DateTime<Utc>,
    /// That host.
    pub host: String,
    /// Backups.
    pub backups: Vec<BackupId>,
    /// WAL.
    pub wal: Vec<ExpiredWal>,
    /// WAL that earlier runs removed: so that it is known why it is not there.
    pub gone: Vec<ExpiredWal>,
    /// Backups that earlier runs removed: so that no repository that was away brings them back.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub gone_backups: Vec<BackupId>,
    /// Artifacts.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub artifacts: Vec<ArtifactPlace>,
    /// Artifacts that earlier runs removed, for the same reason: those that began within [`Expiry::REMEMBERED`] before the record.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub gone_artifacts: Vec<ArtifactPlace>,
}

/// A record that cannot be believed.
#[derive(Debug, thiserror::Error)]
pub enum ExpiryError {
    /// Not its JSON.
    #[error("it is malformed: {0}")]
    Malformed(#[from] serde_json::Error),
    /// Written by a later Walkeep.
    #[error("it has format {0}, this version reads {format}: use a newer walkeep", format = Expiry::FORMAT)]
    Format(u64),
    /// It lies under another one's name.
    #[error("it is number {found}: the object was moved or exchanged")]
    Number {
        /// The number that it says.
        found: u32,
    },
}

impl Expiry {
    /// The form written by this version.
    pub const FORMAT: u32 = 1;
    /// For so long it is known of an artifact that it was removed. There may be many each day, and a repository that was away for longer is no copy any more.
    pub const REMEMBERED: TimeDelta = TimeDelta::days(400);

    /// One of this number that names nothing yet.
    pub fn new(number: u32, at: DateTime<Utc>, host: String) -> Self {
        Self {
            format: Self::FORMAT,
            number,
            at,
            host,
            backups: Vec::new(),
            wal: Vec::new(),
            gone: Vec::new(),
            gone_backups: Vec::new(),
            artifacts: Vec::new(),
            gone_artifacts: Vec::new(),
        }
    }

    /// Whether it only says what is gone.
    pub fn is_memory(&self) -> bool {
        self.backups.is_empty() && self.wal.is_empty() && self.artifacts.is_empty()
    }

    /// Whether nothing but artifacts left with it.
    pub fn is_of_artifacts(&self) -> bool {
        self.backups.is_empty() && self.wal.is_empty() && !self.artifacts.is_empty()
    }

    /// Reads the record with this number.
    pub fn parse(number: u32, json: &[u8]) -> Result<Self, ExpiryError> {
        #[derive(Deserialize)]
        struct Form {
            format: u64,
        }
        let form: Form = serde_json::from_slice(json)?;
        if form.format != u64::from(Self::FORMAT) {
            return Err(ExpiryError::Format(form.format));
        }
        let expiry: Self = sealed::from_json(json)?;
        match expiry.number == number {
            true => Ok(expiry),
            false => Err(ExpiryError::Number { found: expiry.number }),
        }
    }
}

/// How an expiry went on. Which of the two it is, is decided once: by who puts the note first.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct ExpiryEnd {
    /// Of which record.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub number: Option<u32>,
    /// What it is.
    pub end: End,
    /// When, by that host's clock.
    pub at: DateTime<Utc>,
    /// The host that put it.
    pub host: String,
}

/// See [`ExpiryEnd`].
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum End {
    /// Its objects are being removed, or were.
    Removing,
    /// It was taken back: all of it is in the catalog again.
    Undone,
}

/// Everything that left the catalog.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Expired {
    backups: BTreeSet<BackupId>,
    artifacts: BTreeSet<ArtifactPlace>,
    /// In order, apart from each other.
    wal: BTreeMap<TimelineId, Vec<WalRange>>,
}

impl Expired {
    /// Adds what a run took out.
    pub fn add(&mut self, expiry: &Expiry) {
        self.backups.extend(expiry.backups.iter().chain(&expiry.gone_backups).cloned());
        self.artifacts.extend(expiry.artifacts.iter().chain(&expiry.gone_artifacts).cloned());
        expiry.wal.iter().chain(&expiry.gone).for_each(|wal| self.add_wal(*wal));
    }

    /// Adds segments.
    pub fn add_wal(&mut self, wal: ExpiredWal) {
        let ranges = self.wal.entry(wal.timeline).or_default();
        ranges.push(WalRange { from: wal.from, to: wal.to });
        *ranges = joined(std::mem::take(ranges));
    }

    /// Whether nothing did.
    pub fn is_empty(&self) -> bool {
        self.backups.is_empty() && self.wal.is_empty() && self.artifacts.is_empty()
    }

    /// The artifacts that did.
    pub fn artifacts(&self) -> impl Iterator<Item = &ArtifactPlace> {
        self.artifacts.iter()
    }

    /// Whether this artifact did.
    pub fn has_artifact(&self, place: &ArtifactPlace) -> bool {
        self.artifacts.contains(place)
    }

    /// The backups that did.
    pub fn backups(&self) -> impl Iterator<Item = &BackupId> {
        self.backups.iter()
    }

    /// Whether this backup did.
    pub fn has_backup(&self, id: &BackupId) -> bool {
        self.backups.contains(id)
    }

    /// Whether the segment that begins at `start` did.
    pub fn has_segment(&self, timeline: TimelineId, start: Lsn) -> bool {
        let ranges = self.wal.get(&timeline).map_or(&[][..], Vec::as_slice);
        let index = ranges.partition_point(|range| range.to <= start);
        ranges.get(index).is_some_and(|range| range.from <= start)
    }

    /// What is left of a stretch.
    pub fn without(&self, timeline: TimelineId, stretch: WalRange) -> Vec<WalRange> {
        let mut rest = vec![stretch];
        for range in self.wal.get(&timeline).into_iter().flatten() {
            let Some(last) = rest.pop() else { break };
            let clip = |from: Lsn, to: Lsn| WalRange { from: from.max(last.from), to: to.min(last.to) };
            rest.extend([clip(last.from, range.from), clip(range.to, last.to)].into_iter().filter(|range| range.from < range.to));
        }
        rest
    }

    /// Whether nothing is left of a stretch.
    pub fn has_all_of(&self, timeline: TimelineId, stretch: WalRange) -> bool {
        self.without(timeline, stretch).is_empty()
    }

    /// What is left of segments in a row.
    pub fn rest_of(&self, timeline: TimelineId, run: Run, size: SegmentSize) -> Vec<Run> {
        // Beyond the address space there is no segment to tell apart.
        let stretch = WalRange { from: run.first.start(size), to: run.end.start(size) };
        let number = |at: Lsn| if at == stretch.to { run.end } else { size.segment_of(at) };
        let rest = self.without(timeline, stretch);
        rest.into_iter().map(|range| Run { first: size.segment_of(range.from), end: number(range.to) }).collect()
    }

    /// Whether it names everything that the other one does.
    pub fn has_all(&self, other: &Self) -> bool {
        let wal = || other.wal().into_iter().all(|wal| self.has_all_of(wal.timeline, WalRange { from: wal.from, to: wal.to }));
        self.backups.is_superset(&other.backups) && self.artifacts.is_superset(&other.artifacts) && wal()
    }

    /// The WAL of it, merged, as a record keeps it.
    pub fn wal(&self) -> Vec<ExpiredWal> {
        let of = |(timeline, ranges): (&TimelineId, &Vec<WalRange>)| -> Vec<ExpiredWal> {
            ranges.iter().map(|range| ExpiredWal { timeline: *timeline, from: range.from, to: range.to }).collect()
        };
        self.wal.iter().flat_map(of).collect()
    }
}

/// Ranges in order, with those that meet joined.
pub(crate) fn joined(mut ranges: Vec<WalRange>) -> Vec<WalRange> {
    ranges.sort_unstable_by_key(|range| range.from);
    let mut joined: Vec<WalRange> = Vec::with_capacity(ranges.len());
    for range in ranges {
        match joined.last_mut() {
            Some(last) if range.from <= last.to => last.to = last.to.max(range.to),
            _ => joined.push(range),
        }
    }
    joined
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::segment::SegmentNumber;

    fn wal(from: u64, to: u64) -> ExpiredWal {
        let at = |number| SegmentNumber::new(number).start(SegmentSize::DEFAULT);
        ExpiredWal { timeline: TimelineId::FIRST, from: at(from), to: at(to) }
    }

    fn record() -> Expiry {
        let at = DateTime::from_timestamp(1_795_219_200, 0).expect("a time");
        let id = BackupId::new(at, Lsn::new(0x200_0028));
        Expiry { backups: vec![id], wal: vec![wal(4, 9)], gone: vec![wal(1, 4)], ..Expiry::new(3, at, "db1".into()) }
    }

    #[test]
    fn a_record_is_read_back_under_its_own_name_only() {
        let json = serde_json::to_vec(&record()).expect("json");
        assert_eq!(Expiry::parse(3, &json).expect("reads"), record());
        assert!(matches!(Expiry::parse(4, &json), Err(ExpiryError::Number { found: 3 })));
        assert!(matches!(Expiry::parse(3, br#"{"format": 2}"#), Err(ExpiryError::Format(2))));
        assert!(matches!(Expiry::parse(3, b"["), Err(ExpiryError::Malformed(_))));
    }

    #[test]
    fn what_left_is_known_segment_by_segment() {
        let mut expired = Expired::default();
        expired.add(&record());
        expired.add_wal(wal(20, 21));
        let start = |number| SegmentNumber::new(number).start(SegmentSize::DEFAULT);
        let has = |number| expired.has_segment(TimelineId::FIRST, start(number));
        let found: Vec<u64> = (0..30).filter(|number| has(*number)).collect();
        assert_eq!(found, [1, 2, 3, 4, 5, 6, 7, 8, 20]);
        assert_eq!(expired.wal(), [wal(1, 9), wal(20, 21)]);
        let run = |first, end| Run { first: SegmentNumber::new(first), end: SegmentNumber::new(end) };
        let rest = |first, end| expired.rest_of(TimelineId::FIRST, run(first, end), SegmentSize::DEFAULT);
        assert_eq!(rest(0, 30), [run(0, 1), run(9, 20), run(21, 30)]);
        assert_eq!(rest(2, 8), []);
        assert_eq!(rest(8, 20), [run(9, 20)]);
        assert_eq!(rest(25, 30), [run(25, 30)]);
        assert!(expired.has_backup(&record().backups[0]));
    }
}
