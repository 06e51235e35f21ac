//! Drills: a restore that is carried out to see whether it works, and what is written down of it.
//!
//! What was looked at is a [`Checked`] each, the verdict follows from those alone ([`verdict`]), and record and report are made of the same facts. The
//! record is for everybody who has the repository and names nothing that the database holds; the report does.

pub mod check;
pub mod html;
pub mod random;
pub mod rows;
pub mod text;

use std::collections::BTreeMap;
use std::fmt;
use std::str::FromStr;

use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};

use crate::artifact::ArtifactId;
use crate::audit::Actor;
use crate::identity::{SystemIdentifier, TimelineId};
use crate::layout::BackupId;
use crate::lsn::Lsn;
use crate::sha256::Sha256Sum;

pub use check::{Checked, Counts, Kind, Outcome};

/// A drill: when it began (UTC) and chance, `20261121T034712Z-5f0c12ab`. The time is for people, and for the order in which drills are shown.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize)]
#[serde(transparent)]
pub struct DrillId(ArtifactId);

/// The text is no drill's ID.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{text:?} is not a drill's ID: expected the form 20261121T034712Z-5f0c12ab")]
pub struct DrillIdError {
    text: String,
}

impl DrillId {
    /// One that began then; `chance` tells those of one second apart.
    pub fn new(began: DateTime<Utc>, chance: u32) -> Self {
        Self(ArtifactId::new(began, chance))
    }

    /// The ID as text.
    pub fn as_str(&self) -> &str {
        self.0.as_str()
    }
}

impl FromStr for DrillId {
    type Err = DrillIdError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        text.parse().map(Self).map_err(|_| DrillIdError { text: text.chars().take(80).collect() })
    }
}

impl fmt::Display for DrillId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl<'de> Deserialize<'de> for DrillId {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = std::borrow::Cow::<'de, str>::deserialize(deserializer)?;
        text.parse().map_err(serde::de::Error::custom)
    }
}

/// What a drill says.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Verdict {
    /// What was restored is what it should be, as far as it was looked at.
    Passed,
    /// It is not, or there was nothing to look at, or it could not be restored.
    Failed,
    /// It was ended before there was a verdict.
    Cancelled,
}

impl fmt::Display for Verdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Passed => "passed",
            Self::Failed => "FAILED",
            Self::Cancelled => "cancelled",
        })
    }
}

/// How a report is written.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Form {
    /// For programs.
    Json,
    /// For a terminal, or a mail.
    Text,
    /// For a browser.
    Html,
}

impl Form {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::Json, Self::Text, Self::Html];

    /// How a file of it is called.
    pub const fn extension(self) -> &'static str {
        match self {
            Self::Json => "json",
            Self::Text => "txt",
            Self::Html => "html",
        }
    }
}

/// What was restored.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct Restored {
    /// From which backup.
    pub backup: BackupId,
    /// Along which timeline's history.
    pub timeline: TimelineId,
    /// Everything before this position was to be replayed.
    pub stop_lsn: Lsn,
    /// When the last transaction ended that was to be there, by the server's clock; nothing if none is between the backup's start and the stop.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_transaction_at: Option<DateTime<Utc>>,
    /// Bytes of the backup's files.
    pub bytes: u64,
    /// Files of WAL that were to be replayed.
    pub wal_files: u64,
}

/// What record and report both say.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct Facts {
    /// The format.
    pub format: u32,
    /// The drill.
    pub id: DrillId,
    /// Of which cluster.
    pub cluster: String,
    /// The same by its system identifier.
    pub system_identifier: SystemIdentifier,
    /// How it ended.
    pub verdict: Verdict,
    /// Why it did not pass.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// Which point was asked for: `newest`, `random`, or the command line's target.
    pub asked: String,
    /// For which moment it was due, if a schedule asked for it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub due: Option<DateTime<Utc>>,
    /// When it began, by the host's clock.
    pub started_at: DateTime<Utc>,
    /// When all was removed again.
    pub ended_at: DateTime<Utc>,
    /// What was restored, if it came so far.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub restored: Option<Restored>,
    /// From its beginning to the first query that was answered.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rto_seconds: Option<f64>,
    /// From the newest transaction that could be recovered when it began, to that beginning.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rpo_seconds: Option<f64>,
    /// When that transaction ended, by the server's clock.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub newest_transaction_at: Option<DateTime<Utc>>,
    /// How many checks came out how.
    pub checks: Counts,
    /// Who signs for it.
    pub signed_off_by: Actor,
    /// With which program.
    pub program: String,
}

/// The record, written last. It names the hashes of the report's forms, each of which has a salt in it, so that a hash tells nothing of what is in them.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct DrillRecord {
    /// What it says.
    #[serde(flatten)]
    pub facts: Facts,
    /// SHA-256 of each form of the report.
    pub reports: BTreeMap<Form, Sha256Sum>,
}

impl DrillRecord {
    /// The format of records and reports.
    pub const FORMAT: u32 = 1;
}

/// How long a step took.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct Step {
    /// Which.
    pub step: String,
    /// How long.
    pub seconds: f64,
}

/// The report.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct DrillReport {
    /// What the record says too.
    #[serde(flatten)]
    pub facts: Facts,
    /// What was looked at, in this order.
    pub results: Vec<Checked>,
    /// What took how long.
    pub steps: Vec<Step>,
    /// What else there is to know.
    pub notes: Vec<String>,
    /// Chance, see [`DrillRecord`].
    pub salt: String,
}

impl DrillReport {
    /// It in one form.
    pub fn in_form(&self, form: Form) -> Result<Vec<u8>, serde_json::Error> {
        Ok(match form {
            Form::Json => [serde_json::to_vec_pretty(self)?, b"\n".to_vec()].concat(),
            Form::Text => text::of(self).into_bytes(),
            Form::Html => html::of(self).into_bytes(),
        })
    }
}

/// What follows from what was looked at. A drill that has looked at no data has proven nothing.
pub fn verdict(results: &[Checked]) -> (Verdict, Option<String>) {
    let failed: Vec<&str> =
        results.iter().filter(|checked| checked.outcome == Outcome::Failed).map(|checked| checked.name.as_str()).collect();
    let shows_data = |checked: &&Checked| checked.outcome == Outcome::Passed && checked.kind.shows_data();
    match failed.as_slice() {
        [] if results.iter().any(|checked| shows_data(&checked)) => (Verdict::Passed, None),
        [] => (Verdict::Failed, Some("nothing was proven: no check looked at any data".to_owned())),
        failed => (Verdict::Failed, Some(format!("not as it should be: {}", failed.join(", ")))),
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    pub fn report() -> DrillReport {
        let at = |seconds: i64| DateTime::from_timestamp(1_795_232_832 + seconds, 0).expect("a time");
        let actor =
            Actor { uid: 26, user: Some("postgres".into()), login: None, sudo_user: None, ssh_from: None, host: "db<1>".into(), pid: 7 };
        let results = vec![
            Checked { seconds: 1.5, ..Checked::passed(Kind::Recovery, "recovery", "stopped at 0/3000060") },
            Checked {
                expected: Some("1".into()),
                found: Some("<b>2</b>".into()),
                ..Checked::failed(Kind::Query, "orders", "says otherwise")
            },
            Checked::not_done(Kind::Checksums, "checksums", "the cluster has none"),
        ];
        let (verdict, reason) = super::verdict(&results);
        let facts = Facts {
            format: DrillRecord::FORMAT,
            id: DrillId::new(at(0), 0xab),
            cluster: "main".into(),
            system_identifier: SystemIdentifier::new(7_000_000_000_000_000_001),
            verdict,
            reason,
            asked: "newest".into(),
            due: None,
            started_at: at(0),
            ended_at: at(60),
            restored: Some(Restored {
                backup: BackupId::new(at(-3600), Lsn::new(0x200_0028)),
                timeline: TimelineId::FIRST,
                stop_lsn: Lsn::new(0x300_0060),
                last_transaction_at: Some(at(-5)),
                bytes: 40 << 20,
                wal_files: 2,
            }),
            rto_seconds: Some(12.25),
            rpo_seconds: Some(5.0),
            newest_transaction_at: Some(at(-5)),
            checks: Counts::of(&results),
            signed_off_by: actor,
            program: "walkeep 0.1.0".into(),
        };
        let steps = vec![Step { step: "restore".into(), seconds: 8.0 }];
        DrillReport { facts, results, steps, notes: vec!["a & b".into()], salt: "5a17".into() }
    }

    #[test]
    fn one_failure_fails_it_and_nothing_proven_does_too() {
        let passed = |kind| Checked::passed(kind, "it", "well");
        assert_eq!(verdict(&[passed(Kind::Recovery), passed(Kind::Content)]), (Verdict::Passed, None));
        let (said, reason) =
            verdict(&[passed(Kind::Content), Checked::failed(Kind::Query, "orders", "x"), Checked::failed(Kind::Rows, "rows", "x")]);
        assert_eq!((said, reason.as_deref()), (Verdict::Failed, Some("not as it should be: orders, rows")));
        for nothing in [vec![], vec![passed(Kind::Files), passed(Kind::Recovery)], vec![Checked::not_done(Kind::Content, "tables", "x")]] {
            let (said, reason) = verdict(&nothing);
            assert!(said == Verdict::Failed && reason.is_some_and(|reason| reason.contains("nothing was proven")), "{nothing:?}");
        }
    }

    #[test]
    fn a_report_is_read_as_it_was_written() {
        let report = report();
        let json = report.in_form(Form::Json).expect("json");
        assert_eq!(serde_json::from_slice::<DrillReport>(&json).expect("reads"), report);
        let record = DrillRecord { facts: report.facts.clone(), reports: [(Form::Html, Sha256Sum::new([7; 32]))].into() };
        let text = serde_json::to_string(&record).expect("json");
        assert!(text.contains("\"verdict\":\"failed\"") && text.contains("\"html\":\"0707"), "{text}");
        // What the database says is in the report alone.
        assert!(!text.contains("<b>2</b>") && String::from_utf8(json).expect("text").contains("<b>2</b>"));
        assert_eq!(serde_json::from_str::<DrillRecord>(&text).expect("reads"), record);
    }
}
