//! Is everything there? Looks at a whole repository (`quick`) and reads it (`deep`).
//!
//! What is missing or damaged, and what that means, `walkeep_core::verify` says; here is what is read for it. Others work in the repository at the same time:
//! parts are rolled up, what retention let go is removed, segments come. So what seems to be wrong is looked at again, from the beginning, and only what is so
//! each time is told. Nothing is changed by it, and nothing of it is needed by anybody else.
//!
//! Of several repositories each is verified by itself (`places`), what one lacks of the others is found by comparing them (`lacking`), and what is wrong in one is
//! looked for in the others (`elsewhere`): lost is only what none has. What does not have the same size in all of them is damaged in one (`unlike`). Which of two records of the audit trail is the true one none of them may know (`trails`).

mod beside;
mod contents;
mod deep;
mod elsewhere;
mod lacking;
mod manifests;
pub mod memory;
pub mod pace;
mod places;
mod quick;
mod refused;
pub mod repair;
mod run;
#[cfg(test)]
mod tests;
mod trails;
mod unlike;

use chrono::{DateTime, Utc};
use serde::Serialize;
use walkeep_core::SystemIdentifier;
use walkeep_core::layout::BackupId;
use walkeep_core::verify::{Finding, Severity};

pub use deep::Done;
pub use places::{Everywhere, Place, everywhere, numbered};
pub use run::{Read, Wish, verify};

/// What came of it in all repositories, as `walkeep verify --json` prints it.
#[derive(Debug, Clone, Serialize)]
pub struct Overall {
    /// The cluster.
    pub cluster: String,
    /// Where its repositories lie.
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
    /// Whether it is in a catalog.
    #[serde(skip)]
    pub backup_is_known: bool,
    /// Whether everything that was looked at is as it should be, in every repository.
    pub whole: bool,
    /// What is listed: objects and bytes of all, backups and segments of the one that has most.
    pub listed: Listed,
    /// What was read, if anything was to be.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub read: Option<Done>,
    /// What could not be checked, as this host cannot decrypt it.
    pub not_checked: u64,
    /// Each repository by itself.
    pub repositories: Vec<OfOne>,
    /// What was found, the worst first.
    pub findings: Vec<Found>,
    /// Findings beyond those that are named.
    pub more_findings: u64,
}

/// One repository of them.
#[derive(Debug, Clone, Serialize)]
pub struct OfOne {
    /// Its number in the configuration, counted from 1.
    pub number: usize,
    /// Where it lies.
    pub url: String,
    /// Whether everything in it is as it should be.
    pub whole: bool,
    /// How much in it is damaged or missing.
    pub damaged: u64,
    /// What is listed.
    pub listed: Listed,
    /// What was read.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub read: Option<Done>,
    /// What could not be checked.
    pub not_checked: u64,
    /// Objects that the store does not let this host read; all others were looked at.
    pub refused: u64,
    /// How long it took.
    pub seconds: f64,
    /// Why it could not be looked at to the end.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub problem: Option<String>,
}

/// Something that was found in one of them.
#[derive(Debug, Clone, Serialize)]
pub struct Found {
    /// The repository's number.
    pub repository: usize,
    /// Where it lies.
    pub url: String,
    /// What was found.
    #[serde(flatten)]
    pub finding: Finding,
    /// The numbers of the repositories that have it whole: then nothing is lost with it.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub whole_in: Vec<usize>,
    /// The numbers of the repositories that list it, where none is known to have it whole: this host cannot tell, and so not whether anything is lost with it.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub listed_in: Vec<usize>,
}

impl Overall {
    /// How much is damaged, at least as badly as `least` says.
    pub fn damaged(&self, least: Severity) -> u64 {
        self.findings.iter().filter(|found| found.finding.severity >= least).count() as u64 + self.more_findings
    }

    /// Whether nothing is damaged or missing in the repository of this number, which was looked at to the end.
    pub fn is_unharmed(&self, number: usize) -> bool {
        self.repositories.iter().any(|one| one.number == number && one.damaged == 0 && one.problem.is_none())
    }

    /// With what could not be read before: a look that does not read says nothing of it.
    pub fn with_unread_of(mut self, before: &Self) -> Self {
        for one in self.repositories.iter_mut().filter(|one| one.problem.is_none()) {
            let unread = before.repositories.iter().find(|other| other.number == one.number && other.refused > 0);
            if let Some(unread) = unread {
                (one.refused, one.problem, one.whole) = (unread.refused, unread.problem.clone(), false);
                self.whole = false;
            }
        }
        self
    }

    /// Why a repository could not be looked at to the end.
    pub fn problem(&self) -> Option<(&str, &str)> {
        self.repositories.iter().find_map(|one| Some((one.url.as_str(), one.problem.as_deref()?)))
    }
}

/// What came of it in one repository.
#[derive(Debug, Clone)]
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
    pub backup: Option<BackupId>,
    /// Whether it is in the catalog.
    pub backup_is_known: bool,
    /// Whether everything that was looked at is as it should be.
    pub whole: bool,
    /// What is listed.
    pub listed: Listed,
    /// What was read, if anything was to be.
    pub read: Option<Done>,
    /// What could not be checked, as this host cannot decrypt it.
    pub not_checked: u64,
    /// Objects that the store does not let this host read.
    pub refused: u64,
    /// The first of them, and why.
    pub problem: Option<String>,
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
