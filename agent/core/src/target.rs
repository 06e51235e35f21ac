//! Where a recovery is to stop, as the operator says it.
//!
//! Mirrors PostgreSQL's `recovery_target_*`. Where in the WAL that is, is found by [`TargetSearch`]; which backup leads there is
//! decided in [`crate::plan`]; how PostgreSQL is told is [`RecoverySettings`].

mod search;
mod settings;
mod time;

use std::fmt;

use serde::Serialize;

use crate::identity::TimelineId;
use crate::layout::BackupId;
use crate::lsn::Lsn;
use crate::names::Accident;
use crate::time::PgTimestamp;

pub use search::{ClockPassed, Progress, ReplayedTablespace, SearchOutcome, Stop, StopAt, TargetSearch, Transaction};
pub use settings::{RecoverySettings, TargetAction, quote_conf};
pub use time::{TimeError, parse_time, print_time};

/// What a recovery stops at.
#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum TargetKind {
    /// The end of what is stored.
    Latest,
    /// As soon as the backup is consistent.
    Immediate,
    /// A moment of the server's clock.
    Time(PgTimestamp),
    /// A position.
    Lsn(Lsn),
    /// A transaction, by its 32-bit number.
    Xid(u32),
    /// What `pg_create_restore_point` named.
    RestorePoint(RestorePointName),
}

impl fmt::Display for TargetKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Latest => f.write_str("the end of the WAL"),
            Self::Immediate => f.write_str("the end of the backup"),
            Self::Time(time) => write!(f, "time {time}"),
            Self::Lsn(lsn) => write!(f, "LSN {lsn}"),
            Self::Xid(xid) => write!(f, "transaction {xid}"),
            Self::RestorePoint(name) => write!(f, "restore point {:?}", name.as_str()),
        }
    }
}

/// A restore point's name.
#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
#[serde(transparent)]
pub struct RestorePointName(String);

/// The text cannot name a restore point.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{text:?} cannot name a restore point: PostgreSQL allows 1 to {} bytes, without NUL", RestorePointName::MAX_BYTES)]
pub struct RestorePointNameError {
    text: String,
}

impl RestorePointName {
    /// PostgreSQL's `MAXFNAMELEN` less the closing NUL.
    pub const MAX_BYTES: usize = 63;

    /// Reads a name.
    pub fn parse(text: &str) -> Result<Self, RestorePointNameError> {
        let valid = (1..=Self::MAX_BYTES).contains(&text.len()) && !text.contains('\0');
        valid.then(|| Self(text.to_owned())).ok_or_else(|| RestorePointNameError { text: text.chars().take(80).collect() })
    }

    /// The name as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

/// What the operator asks for.
#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
pub struct RecoveryTarget {
    /// Where to stop.
    pub kind: TargetKind,
    /// Along which timeline's history; `None` for the newest.
    pub timeline: Option<TimelineId>,
    /// Whether what stands exactly at the target is replayed too. Means something for a time, an LSN and a transaction.
    pub inclusive: bool,
    /// From which backup; `None` for the newest that leads there.
    pub backup: Option<BackupId>,
    /// The accident that it is just before, where one was asked for by name.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub before: Option<Accident>,
}

impl RecoveryTarget {
    /// The target without further wishes: inclusive, on the newest timeline, from the best backup.
    pub fn new(kind: TargetKind) -> Self {
        Self { kind, timeline: None, inclusive: true, backup: None, before: None }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn restore_points_have_names_postgresql_allows() {
        assert!(RestorePointName::parse("").is_err());
        assert!(RestorePointName::parse("a\0").is_err());
        assert!(RestorePointName::parse(&"é".repeat(32)).is_err(), "64 bytes");
        assert!(RestorePointName::parse(&"a".repeat(63)).is_ok());
        assert!(RestorePointName::parse("it's \\ fine").is_ok());
    }
}
