//! The audit trail, written: who this process is, and one record after the other into the repository.
//!
//! A command appends with [`Trail::append`] and waits for it, but not long; the agent's jobs tell a [`Recorder`], which never waits, and a task of the
//! daemon stores what they told. What a record is, and what the chain of them proves, is `walkeep_core::audit`'s.

mod actor;
pub mod recorder;
mod refusals;

use std::collections::BTreeMap;
use std::time::Duration;

use anyhow::{Context, Result};
use chrono::{DateTime, Utc};
use walkeep_core::audit::{Actor, Entry, Head, Kind, Outcome, recorded};

use crate::artifact::command::CommandFailed;
use crate::repository::ClusterRepository;

pub use actor::this_process;
pub use recorder::Recorder;

/// A record is stored within this time, or it is told that it is not: nothing waits longer for it.
pub const DEADLINE: Duration = Duration::from_secs(10);

/// What is to be recorded.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Deed {
    /// When it was.
    pub time: DateTime<Utc>,
    /// The command or job.
    pub command: String,
    /// What was done.
    pub kind: Kind,
    /// To what.
    pub subject: BTreeMap<String, String>,
    /// How it ended.
    pub outcome: Outcome,
    /// What there is to say of that.
    pub message: Option<String>,
    /// The record of its beginning.
    pub begun: Option<u32>,
}

impl Deed {
    /// One that ended now.
    pub fn new(command: &str, kind: Kind, outcome: Outcome) -> Self {
        let command = command.to_owned();
        Self { time: Utc::now(), command, kind, subject: BTreeMap::new(), outcome, message: None, begun: None }
    }

    /// What the agent refused.
    pub fn refused(kind: Kind) -> Self {
        Self::new("agent", kind, Outcome::Refused)
    }

    /// A job of the agent that ended so.
    pub fn of_agent<T>(kind: Kind, ended: &Result<T>) -> Self {
        let outcome = if ended.is_ok() { Outcome::Done } else { Outcome::Failed };
        let deed = Self::new("agent", kind, outcome);
        match ended {
            Ok(_) => deed,
            Err(error) => deed.saying(in_public(error)),
        }
    }

    /// The same, with something said of what it was done to.
    pub fn of(mut self, name: &str, value: impl std::fmt::Display) -> Self {
        self.subject.insert(name.to_owned(), recorded(&value.to_string()));
        self
    }

    /// The same, with something said of its result.
    pub fn saying(mut self, message: impl AsRef<str>) -> Self {
        self.message = Some(recorded(message.as_ref()));
        self
    }
}

/// An error with its causes, but for what a command said: records are readable for everybody who has the bucket.
pub fn in_public(error: &anyhow::Error) -> String {
    let told = |cause: &(dyn std::error::Error + 'static)| match cause.downcast_ref::<CommandFailed>() {
        Some(failed) => failed.in_public(),
        None => cause.to_string(),
    };
    error.chain().map(told).collect::<Vec<_>>().join(": ")
}

/// The trail of one cluster, as one process writes it.
#[derive(Debug)]
pub struct Trail {
    actor: Actor,
    head: Option<Head>,
}

impl Trail {
    /// Nothing is known of what is stored.
    pub fn new() -> Self {
        Self { actor: this_process(), head: None }
    }

    /// Stores a record, within [`DEADLINE`].
    pub async fn append(&mut self, repository: &ClusterRepository, deed: &Deed) -> Result<Head> {
        let Deed { time, command, kind, subject, outcome, message, begun } = deed.clone();
        let program = format!("walkeep {}", env!("CARGO_PKG_VERSION"));
        let entry = Entry { time, actor: self.actor.clone(), program, command, kind, subject, outcome, message, begun };
        let put = tokio::time::timeout(DEADLINE, repository.append_audit(&mut self.head, &entry)).await;
        let head = put.with_context(|| format!("no answer within {} s", DEADLINE.as_secs()))??;
        if let Some(sha256) = head.hash {
            // Who collects logs elsewhere has the hash there, where whoever changes the trail cannot change it.
            tracing::info!(number = head.number, %sha256, kind = %deed.kind, outcome = %deed.outcome, "audit record stored");
        }
        Ok(head)
    }
}

impl Default for Trail {
    fn default() -> Self {
        Self::new()
    }
}
