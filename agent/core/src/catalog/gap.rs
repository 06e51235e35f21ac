//! Records of WAL that is known to be lost, or known to be of no use.

use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};

use crate::history::TimelineHistory;
use crate::layout::GapName;
use crate::lsn::Lsn;
use crate::resume::unstored;

use super::Catalog;
use super::stored::WalRange;

/// Why a stretch of WAL is missing.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum GapCause {
    /// The replication slot was dropped and the server had removed what followed.
    SlotLost,
    /// The server invalidated the slot, as with `max_slot_wal_keep_size`.
    SlotInvalidated,
    /// The agent gave the slot up to protect the server, as `protect = "primary"` has it, and the server had removed what followed.
    SlotGivenUp,
    /// Archiving was off or stopped and the server recycled the segments.
    NotArchived,
    /// The server ran with `wal_level = minimal`: the WAL may be stored, but PostgreSQL refuses to replay it.
    MinimalWal,
    /// What is stored behind it is another history's, on the same timeline: the server had been put back to an older state, and had removed the WAL in
    /// which the two part.
    OtherHistory,
    /// Anything else, in words.
    Other(String),
}

impl GapCause {
    /// Whether the stretch is of no use even where its bytes are stored.
    pub fn forbids_replay(&self) -> bool {
        self.words().is_some()
    }

    /// What is to be said of WAL that is stored and of no use; `None` where what is stored can be replayed.
    pub fn words(&self) -> Option<&'static str> {
        match self {
            Self::MinimalWal => Some("was written with wal_level = minimal and cannot be replayed"),
            Self::OtherHistory => Some(
                "is not continued by what is stored behind it: the server had been put back to an older state, and wrote other WAL on the same timeline",
            ),
            Self::SlotLost | Self::SlotInvalidated | Self::SlotGivenUp | Self::NotArchived | Self::Other(_) => None,
        }
    }
}

/// A gap, as the agent noticed it. What is stored decides what can be replayed; the record says why something is not.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct GapRecord {
    /// The stretch.
    pub name: GapName,
    /// Why.
    pub cause: GapCause,
    /// When it was noticed.
    pub recorded_at: DateTime<Utc>,
    /// When it was seen to be filled, as by segments archived late; out of the [`GapClosing`], a record never changes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub closed_at: Option<DateTime<Utc>>,
}

/// The note that a gap was filled.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct GapClosing {
    /// The gap.
    pub name: GapName,
    /// When that was seen.
    pub closed_at: DateTime<Utc>,
}

/// A gap and what is missing of it now.
#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
pub struct GapReport {
    /// The record.
    #[serde(flatten)]
    pub record: GapRecord,
    /// Whether anything is missing.
    pub open: bool,
    /// What is: a gap may be filled in part.
    pub missing: Vec<WalRange>,
}

impl GapRecord {
    /// Whether replay must not cross the stretch whatever is stored.
    pub fn blocks(&self) -> bool {
        self.closed_at.is_none() && self.cause.forbids_replay()
    }
}

impl Catalog {
    /// The recorded gaps, each with what is missing of it.
    pub fn gap_reports(&self) -> Vec<GapReport> {
        let one = |record: &GapRecord| {
            let missing = self.missing_of(record);
            GapReport { record: record.clone(), open: !missing.is_empty(), missing }
        };
        self.gaps().iter().map(one).collect()
    }

    /// What is stored nowhere of a gap. All of it, where it must not be replayed although it is stored.
    pub fn missing_of(&self, gap: &GapRecord) -> Vec<WalRange> {
        match gap.blocks() {
            true => vec![WalRange { from: gap.name.from, to: gap.name.to }],
            false => self.missing_within(gap.name),
        }
    }

    /// What is stored nowhere of this stretch.
    pub fn missing_within(&self, gap: GapName) -> Vec<WalRange> {
        let stored: Vec<_> = self.stored_ranges(gap.timeline).iter().map(|range| (gap.timeline, range.from, range.to)).collect();
        let missing = unstored(&TimelineHistory::root(gap.timeline), gap.from, gap.to, &stored);
        missing.into_iter().map(|(_, from, to)| WalRange { from, to }).collect()
    }
}

/// The newest gap behind which no base backup begins, of those that a stream at `reached` has behind it: what is written from there on can only be
/// restored from a new one. `starts` are the start positions of the backups there are.
pub fn without_backup_behind(gaps: &[GapName], starts: &[Lsn], reached: Lsn) -> Option<GapName> {
    let newest = gaps.iter().filter(|gap| gap.to <= reached).max_by_key(|gap| gap.to)?;
    starts.iter().all(|start| *start < newest.to).then_some(*newest)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::identity::TimelineId;

    #[test]
    fn a_backup_is_due_behind_a_gap_and_once() {
        let gap = |from, to| GapName { timeline: TimelineId::FIRST, from: Lsn::new(from), to: Lsn::new(to) };
        let (old, new) = (gap(10, 20), gap(50, 60));
        let due = |gaps: &[GapName], starts: &[u64], reached| {
            let starts: Vec<_> = starts.iter().map(|start| Lsn::new(*start)).collect();
            without_backup_behind(gaps, &starts, Lsn::new(reached))
        };
        assert_eq!(due(&[], &[5], 100), None);
        assert_eq!(due(&[old, new], &[5, 30], 100), Some(new));
        assert_eq!(due(&[new, old], &[], 60), Some(new), "without any backup too");
        assert_eq!(due(&[old, new], &[60], 100), None, "a backup that begins at its end needs nothing of it");
        assert_eq!(due(&[old, new], &[55], 100), Some(new), "one that begins within does");
        assert_eq!(due(&[old, new], &[30], 59), None, "the stream is not behind it, as after a restore to before it");
    }
}
