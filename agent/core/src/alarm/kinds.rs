//! The kinds of alarms: each is an alert of `packaging/prometheus` too, and has its section in the runbook.

use std::fmt;
use std::time::Duration;

use serde::{Deserialize, Serialize};

/// How urgent it is.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Severity {
    /// Somebody looks today.
    Warning,
    /// Somebody is woken.
    Critical,
}

impl fmt::Display for Severity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Warning => "warning",
            Self::Critical => "critical",
        })
    }
}

macro_rules! kinds {
    ($($(#[$doc:meta])* $kind:ident: $severity:ident, $seconds:expr, $section:literal;)*) => {
        /// A kind of alarm: the alert's name without `Walkeep`.
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize, Deserialize)]
        pub enum AlarmKind {
            $($(#[$doc])* $kind,)*
        }

        impl AlarmKind {
            /// All of them.
            pub const ALL: &'static [Self] = &[$(Self::$kind),*];

            /// Its name.
            pub const fn as_str(self) -> &'static str {
                match self {
                    $(Self::$kind => stringify!($kind),)*
                }
            }

            /// How urgent it is.
            pub const fn severity(self) -> Severity {
                match self {
                    $(Self::$kind => Severity::$severity,)*
                }
            }

            /// How long it holds before anybody is told.
            pub const fn patience(self) -> Duration {
                Duration::from_secs(match self {
                    $(Self::$kind => $seconds,)*
                })
            }

            /// Its section of the runbook.
            pub const fn section(self) -> &'static str {
                match self {
                    $(Self::$kind => $section,)*
                }
            }
        }
    };
}

const MINUTE: u64 = 60;
const HOUR: u64 = 3600;
const DAY: u64 = 24 * HOUR;

kinds! {
    /// No WAL is received.
    NoStream: Critical, 2 * MINUTE, "no-wal-comes";
    /// Commits on the server wait, and are not confirmed.
    CommitsHang: Critical, 30, "commits-hang";
    /// Commits are not stored for longer than they should be.
    PossibleLoss: Warning, MINUTE, "wal-is-not-stored";
    /// For ten times as long.
    PossibleLossLarge: Critical, MINUTE, "wal-is-not-stored";
    /// Much WAL is not stored.
    LagBytes: Warning, 5 * MINUTE, "wal-is-not-stored";
    /// A finished segment waits for archive_command.
    ArchiveCommandFails: Warning, MINUTE, "archive_command-fails";
    /// The disk of pg_wal becomes full of what the slot holds back.
    PgWalFillsUp: Critical, 5 * MINUTE, "the-disk-of-pg_wal-fills-up";
    /// The spool becomes full.
    SpoolFillsUp: Warning, 5 * MINUTE, "wal-is-not-stored";
    /// The server is about to drop WAL that is not stored.
    SlotAtRisk: Critical, 30, "the-slot-is-at-risk-or-lost";
    /// The slot is lost, or missing.
    SlotLost: Critical, MINUTE, "the-slot-is-at-risk-or-lost";
    /// The slot was given up to protect the server.
    SlotGivenUp: Critical, 0, "the-slot-is-at-risk-or-lost";
    /// WAL is missing.
    Gap: Critical, 0, "a-gap";
    /// Other content was offered under a stored name.
    Conflict: Critical, 0, "a-conflict";
    /// Calls to the repository fail for a reason that only a person can mend.
    RepositoryRefuses: Critical, MINUTE, "the-repository-refuses";
    /// Many calls to the repository fail and are tried again.
    RepositoryUnsteady: Warning, 15 * MINUTE, "the-repository-refuses";
    /// Stored objects are damaged or missing.
    Damage: Critical, 0, "damage";
    /// Nobody looked for days whether everything is there.
    NotVerified: Warning, HOUR, "damage";
    /// Locks are shorter than promised.
    ShortLocks: Warning, DAY, "locks-are-too-short";
    /// A scheduled backup is missing.
    BackupOverdue: Critical, 5 * MINUTE, "a-backup-fails-or-is-missing";
    /// The last backup of a schedule failed.
    BackupFailed: Warning, 5 * MINUTE, "a-backup-fails-or-is-missing";
    /// The newest backup is old.
    BackupStale: Warning, HOUR, "a-backup-fails-or-is-missing";
    /// There is no backup behind a gap yet.
    BackupDue: Critical, 6 * HOUR, "a-gap";
    /// The server has pages with wrong checksums.
    BadPages: Critical, 0, "data-is-corrupted";
    /// Nothing is let go any more.
    ExpireFails: Warning, DAY, "nothing-is-let-go";
    /// A dump or artifact failed, or is missing.
    ArtifactFailed: Warning, 15 * MINUTE, "a-dump-or-artifact-fails";
    /// The newest drill failed.
    DrillFailed: Critical, 5 * MINUTE, "a-drill-fails-or-is-missing";
    /// No drill has passed for long.
    DrillStale: Warning, HOUR, "a-drill-fails-or-is-missing";
    /// One of several repositories does not answer.
    RepositoryDown: Warning, 15 * MINUTE, "a-repository-is-behind";
    /// One of several repositories is behind.
    CopyBehind: Warning, 5 * MINUTE, "a-repository-is-behind";
    /// Repositories have different content, or one is damaged.
    RepositoriesDiffer: Critical, 0, "damage";
    /// A TLS certificate ends soon.
    CertificateExpires: Warning, HOUR, "a-certificate-or-credentials-end";
    /// Credentials end, and are not renewed.
    CredentialsExpire: Critical, MINUTE, "a-certificate-or-credentials-end";
    /// This host's clock is wrong, or another one is.
    ClockOff: Warning, 5 * MINUTE, "a-clock-is-wrong";
}

impl AlarmKind {
    /// Whether WAL does not flow while it stands: then the heartbeat falls silent too. What is wrong with what was stored before does not stop it, as that may
    /// stand for weeks.
    pub const fn stops_the_heartbeat(self) -> bool {
        matches!(
            self,
            Self::NoStream | Self::CommitsHang | Self::PossibleLossLarge | Self::SlotLost | Self::SlotGivenUp | Self::RepositoryRefuses
        )
    }
}

impl fmt::Display for AlarmKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}
