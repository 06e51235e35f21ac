//! Records of WAL that is known to be lost, or known to be of no use.

use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};

use crate::layout::GapName;

/// Why a stretch of WAL is missing.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum GapCause {
    /// The replication slot was dropped and the server had removed what followed.
    SlotLost,
    /// The server invalidated the slot, as with `max_slot_wal_keep_size`.
    SlotInvalidated,
    /// Archiving was off or stopped and the server recycled the segments.
    NotArchived,
    /// The server ran with `wal_level = minimal`: the WAL may be stored, but PostgreSQL refuses to replay it.
    MinimalWal,
    /// Anything else, in words.
    Other(String),
}

impl GapCause {
    /// Whether the stretch is of no use even where its bytes are stored.
    pub fn forbids_replay(&self) -> bool {
        matches!(self, GapCause::MinimalWal)
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
    /// When it was mended, as by segments archived late.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub closed_at: Option<DateTime<Utc>>,
}

impl GapRecord {
    /// Whether replay must not cross the stretch whatever is stored.
    pub fn blocks(&self) -> bool {
        self.closed_at.is_none() && self.cause.forbids_replay()
    }
}
