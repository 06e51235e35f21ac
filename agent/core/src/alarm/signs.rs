//! What was measured, as far as it says whether something is wrong. What is not known yet is `None`: that is neither an alarm nor the end of one.

use std::collections::BTreeMap;
use std::time::Duration;

use chrono::{DateTime, Utc};

/// One look at the agent's own numbers.
#[derive(Clone, PartialEq, Debug, Default)]
pub struct Signs {
    /// When this process began: what it counts, it counts since then.
    pub began: DateTime<Utc>,
    /// WAL is received, or is not to be.
    pub receives: bool,
    /// WAL is received at this moment.
    pub streaming: bool,
    /// Why it does not work, where that is known.
    pub problem: Option<String>,
    /// Commits on the server wait for this agent.
    pub commits_wait: bool,
    /// For how long the oldest WAL waits that is not stored.
    pub lag: Duration,
    /// How much is not stored.
    pub lag_bytes: u64,
    /// Commits of how long a time would be lost with the server.
    pub possible_loss: Option<Duration>,
    /// Files that wait for archive_command.
    pub ready_files: u64,
    /// Age of the oldest of them.
    pub oldest_ready: Duration,
    /// The slot.
    pub slot: Option<SlotSigns>,
    /// It was given up to protect the server.
    pub slot_given_up: bool,
    /// Bytes that are free where pg_wal lies.
    pub pg_wal_free: Option<u64>,
    /// Bytes in the spool, and how many may lie there.
    pub spool: Option<(u64, u64)>,
    /// Open gaps.
    pub gaps: Option<u64>,
    /// Conflicts so far.
    pub conflicts: u64,
    /// Failed calls and refusals so far, by kind.
    pub errors: BTreeMap<String, u64>,
    /// What was verified.
    pub verify: Option<VerifySigns>,
    /// The schedules of backups, once they were looked at.
    pub schedules: Option<Vec<ScheduleSigns>>,
    /// A backup behind a gap has yet to be taken.
    pub backup_due: bool,
    /// Pages with wrong checksums in the last backup that this process took.
    pub bad_pages: Option<u64>,
    /// How the retention policy was followed.
    pub expire: Option<ExpireSigns>,
    /// The artifacts, once they were looked at.
    pub artifacts: Option<Vec<ArtifactSigns>>,
    /// The newest drill, once it was looked at.
    pub drill: Option<DrillSigns>,
    /// Each of several repositories, once they are open.
    pub repositories: Option<Vec<RepositorySigns>>,
    /// The clocks of others, once they were seen.
    pub clocks: Option<Vec<ClockSigns>>,
    /// The certificates of others that have one, once they were looked at.
    pub certificates: Option<Vec<EndSigns>>,
    /// The credentials that end, once they were used.
    pub credentials: Option<Vec<EndSigns>>,
}

/// The slot.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct SlotSigns {
    /// `wal_status`, or `missing`.
    pub status: String,
    /// WAL that the server may still write before it drops what the slot needs.
    pub safe: Option<u64>,
    /// WAL that it holds back.
    pub retained: Option<u64>,
}

/// What was verified.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct VerifySigns {
    /// Objects known to be damaged or missing.
    pub damaged: u64,
    /// Objects with locks that are too short.
    pub short_locks: u64,
    /// When everything was last looked at.
    pub looked_at: Option<DateTime<Utc>>,
}

/// A schedule of backups.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct ScheduleSigns {
    /// Its label.
    pub label: String,
    /// A backup of it is missing.
    pub overdue: bool,
    /// When its newest one ended.
    pub success: Option<DateTime<Utc>>,
    /// When one failed, since the process began.
    pub failure: Option<DateTime<Utc>>,
    /// When the next one begins.
    pub next: Option<DateTime<Utc>>,
}

/// How the retention policy was followed, since the process began.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct ExpireSigns {
    /// When it was, last.
    pub success: Option<DateTime<Utc>>,
    /// When it was not, or not wholly.
    pub failure: Option<DateTime<Utc>>,
}

/// An artifact.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct ArtifactSigns {
    /// Its name.
    pub name: String,
    /// This process's last run of it failed.
    pub failed: bool,
    /// A run is missing.
    pub overdue: bool,
    /// When its newest one was stored.
    pub success: Option<DateTime<Utc>>,
    /// When a run failed, since the process began.
    pub failure: Option<DateTime<Utc>>,
    /// When the next run begins.
    pub next: Option<DateTime<Utc>>,
}

/// Drills, whoever carried them out.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct DrillSigns {
    /// The newest one failed.
    pub failed: bool,
    /// One of the schedule is missing.
    pub overdue: bool,
    /// When the newest that passed ended.
    pub success: Option<DateTime<Utc>>,
    /// When the next one begins.
    pub next: Option<DateTime<Utc>>,
}

/// Somebody else's clock.
#[derive(Clone, PartialEq, Debug, Default)]
pub struct ClockSigns {
    /// Whose: `server`, or a repository's URL.
    pub whose: String,
    /// How many seconds this host's is ahead of it.
    pub ahead: f64,
}

/// Something that ends.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct EndSigns {
    /// Whose it is, or for whom: `server`, or a repository's URL.
    pub whose: String,
    /// When.
    pub at: DateTime<Utc>,
}

/// One of several repositories.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct RepositorySigns {
    /// Its URL.
    pub url: String,
    /// It answers.
    pub up: bool,
    /// For how long the oldest object waits to be brought there.
    pub behind: Duration,
    /// Objects found so far to be other than elsewhere, or damaged when they were read.
    pub wrong: u64,
}
