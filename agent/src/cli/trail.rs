//! What commands leave in the audit trail: one record at the end of whatever changes something or takes data out, and of restores and expiries one at
//! their beginning too, as of what is killed there is no other.
//!
//! A trail that cannot be written hinders no command: that is told once, as a restore may have to do with credentials that only read.

use std::collections::BTreeMap;
use std::fmt::Display;
use std::os::unix::fs::MetadataExt;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use anyhow::{Context, Result};
use tokio_util::sync::CancellationToken;
use walkeep_core::audit::{Kind, Outcome, recorded};
use walkeep_core::layout::ObjectName;

use super::failure::{Exit, Failure};
use super::{Global, output, runs, setup};
use crate::audit::{DEADLINE, Deed, Trail, in_public};
use crate::config::{Config, RepositoryConfig};
use crate::repository::{self, ClusterRepository};

/// What is told of one command.
#[derive(Debug)]
pub struct Told<'a> {
    global: &'a Global,
    command: &'static str,
    kind: Kind,
    state: Mutex<State>,
    writing: tokio::sync::Mutex<Option<Writing>>,
}

#[derive(Debug, Default)]
struct State {
    subject: BTreeMap<String, String>,
    begun: Option<u32>,
    /// There is nothing to record after all.
    nothing: bool,
    /// That it cannot be recorded was said.
    complained: bool,
    /// The store will not take it.
    denied: bool,
}

/// The repository, opened for the trail alone: the command's own calls end with the command, also where a signal ends it.
#[derive(Debug)]
struct Writing {
    config: Config,
    repository: ClusterRepository,
    trail: Trail,
}

/// Runs a command and records how it ended.
pub async fn recorded_as<'a>(
    global: &'a Global,
    command: &'static str,
    kind: Kind,
    run: impl AsyncFnOnce(&Told<'a>) -> Result<(), Failure>,
) -> Result<(), Failure> {
    let (state, writing) = (Mutex::default(), tokio::sync::Mutex::new(None));
    let told = Told { global, command, kind, state, writing };
    let began = Instant::now();
    let ended = run(&told).await;
    if !told.state().nothing {
        let bytes = told.state().subject.get("bytes_stored").and_then(|bytes| bytes.parse().ok());
        runs::tell(global, command, began, &ended, bytes).await;
    }
    let (outcome, message) = match &ended {
        Ok(()) => (Outcome::Done, None),
        // Nothing was tried.
        Err(failure) if failure.exit == Exit::Usage => return ended,
        Err(failure) if failure.exit == Exit::Refused => (Outcome::Refused, Some(in_public(&failure.error))),
        // It was done, and found what its message says.
        Err(failure) if failure.exit == Exit::Damaged => (Outcome::Done, Some(in_public(&failure.error))),
        Err(failure) => (Outcome::Failed, Some(in_public(&failure.error))),
    };
    if !told.state().nothing {
        let mut deed = told.deed(outcome);
        deed.message = message.map(|text| recorded(&text));
        told.append(&deed).await;
    }
    ended
}

impl Told<'_> {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Says to what it is done, or what became of it.
    pub fn of(&self, name: &str, value: impl Display) {
        self.state().subject.insert(name.to_owned(), recorded(&value.to_string()));
    }

    /// Nothing was changed: no record.
    pub fn nothing(&self) {
        self.state().nothing = true;
    }

    /// Something is changed after all.
    pub fn something(&self) {
        self.state().nothing = false;
    }

    /// Records that it begins.
    pub async fn begins(&self) {
        if self.state().begun.is_some() {
            return;
        }
        let begun = self.append(&self.deed(Outcome::Begun)).await;
        self.state().begun = begun;
    }

    fn deed(&self, outcome: Outcome) -> Deed {
        let state = self.state();
        Deed { subject: state.subject.clone(), begun: state.begun, ..Deed::new(self.command, self.kind.clone(), outcome) }
    }

    /// The record's number, where it is stored.
    async fn append(&self, deed: &Deed) -> Option<u32> {
        if self.state().denied {
            return None;
        }
        let appended = tokio::time::timeout(DEADLINE, self.try_append(deed)).await;
        match appended.with_context(|| format!("no answer within {} s", DEADLINE.as_secs())).flatten() {
            Ok(number) => Some(number),
            Err(error) => {
                let mut state = self.state();
                state.denied = is_denied(&error);
                // What failed before it changed anything has told why, and that is mostly the same.
                let is_told = deed.outcome == Outcome::Failed && state.begun.is_none();
                if !std::mem::replace(&mut state.complained, true) && !is_told {
                    let warning = format!("warning: this is not in the audit trail: {error:#}");
                    match deed.outcome {
                        Outcome::Begun => output::tell!("{warning}"),
                        // Whoever looks for why it failed finds that first.
                        Outcome::Done | Outcome::Failed | Outcome::Refused => output::tell_later(warning),
                    }
                }
                None
            }
        }
    }

    async fn try_append(&self, deed: &Deed) -> Result<u32> {
        let mut writing = self.writing.lock().await;
        if writing.is_none() {
            *writing = Some(self.open().await?);
        }
        let Writing { config, repository, trail } = writing.as_mut().context("the repository is open")?;
        let head = trail.append(repository, deed).await?;
        hand_over(config, repository, head.number).context("the record is stored, and closed to others")?;
        Ok(head.number)
    }

    async fn open(&self) -> Result<Writing> {
        let mut config = Config::load(&self.global.selection())?;
        if let RepositoryConfig::S3(bucket) = &mut config.cluster.repository {
            // It happens now, whatever moment was read.
            bucket.as_of = None;
        }
        let repository = setup::repository_aside(&config.cluster, &CancellationToken::new()).await?;
        Ok(Writing { config, repository, trail: Trail::new() })
    }
}

pub(super) fn is_denied(error: &anyhow::Error) -> bool {
    error.chain().filter_map(|cause| cause.downcast_ref()).any(repository::Error::is_denied)
}

/// What root puts into a directory is closed to the agent, which has to read the last record before it adds one: it gets the directory's owner.
fn hand_over(config: &Config, repository: &ClusterRepository, number: u32) -> Result<()> {
    let RepositoryConfig::Local { path } = &config.cluster.repository else { return Ok(()) };
    if !rustix::process::geteuid().is_root() {
        return Ok(());
    }
    let owner = std::fs::metadata(path)?;
    if owner.uid() == 0 {
        return Ok(());
    }
    let layout = repository.layout();
    for made in [layout.key(&ObjectName::Audit(number)), layout.audit_prefix()] {
        std::os::unix::fs::lchown(path.join(made.trim_end_matches('/')), Some(owner.uid()), Some(owner.gid()))?;
    }
    Ok(())
}
