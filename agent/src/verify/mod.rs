//! Is everything there? Looks at a whole repository (`quick`) and reads it (`deep`).
//!
//! What is missing or damaged, and what that means, `walkeep_core::verify` says; here is what is read for it. Others work in the repository at the same time:
//! parts are rolled up, what retention let go is removed, segments come. So what seems to be wrong is looked at again, from the beginning, and only what is so
//! each time is told. Nothing is changed by it, and nothing of it is needed by anybody else.

mod beside;
mod deep;
mod manifests;
pub mod memory;
pub mod pace;
mod quick;
mod run;

use chrono::{DateTime, Utc};
use serde::Serialize;
use walkeep_core::SystemIdentifier;
use walkeep_core::layout::BackupId;
use walkeep_core::verify::{Finding, Severity};

pub use deep::Done;
pub use run::{Read, Wish, verify};

/// What came of it, as `walkeep verify --json` prints it.
#[derive(Debug, Clone, Serialize)]
pub struct Report {
    /// The cluster.
    pub cluster: String,
    /// Where the repository lies.
    pub repository: String,
    /// The cluster's identity.
    pub system_identifier: SystemIdentifier,
    /// When it began, by this host's clock.
    pub began: DateTime<Utc>,
    /// How long it took.
    pub seconds: f64,
    /// The one backup that was asked for.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub backup: Option<BackupId>,
    /// Whether it is in the catalog.
    #[serde(skip)]
    pub backup_is_known: bool,
    /// Whether everything that was looked at is as it should be.
    pub whole: bool,
    /// What is listed.
    pub listed: Listed,
    /// What was read, if anything was to be.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub read: Option<Done>,
    /// What could not be checked, as this host cannot decrypt it.
    pub not_checked: u64,
    /// What was found, the worst first.
    pub findings: Vec<Finding>,
    /// Findings beyond those that are named.
    pub more_findings: u64,
}

/// What a listing has.
#[derive(Debug, Clone, Copy, Default, Serialize)]
pub struct Listed {
    /// Walkeep's objects.
    pub objects: u64,
    /// Their bytes.
    pub bytes: u64,
    /// Backups in the catalog.
    pub backups: u64,
    /// Segments that are stored as a whole.
    pub segments: u64,
    /// Objects of others.
    pub foreign: u64,
}

impl Report {
    /// What is damaged, of which at least one promise is broken if `least` says so.
    pub fn damaged(&self, least: Severity) -> u64 {
        self.findings.iter().filter(|finding| finding.severity >= least).count() as u64 + self.more_findings
    }
}
