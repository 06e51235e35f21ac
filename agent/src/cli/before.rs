//! `--before-drop`, `--before-truncate`, `--before-drop-database`: from a name to the one accident that is meant, or why there is none.

use std::fmt;
use std::sync::Arc;

use anyhow::{Context, Result};
use serde::Serialize;
use walkeep_core::catalog::{Catalog, WalRange};
use walkeep_core::journal::{Edge, Happening, Window};
use walkeep_core::names::{Accident, Sought, accidents, similar};
use walkeep_core::{Lsn, TimelineHistory, TimelineId};

use super::failure::{Exit, Failure};
use super::{log, output, plan};
use crate::journal;
use crate::names::{self, Asked};
use crate::repository::ClusterRepository;

/// The name leads to no accident, or to several.
#[derive(Debug, Serialize)]
pub struct NotOne {
    /// What was asked for, in words.
    sought: String,
    /// All that are meant by the name.
    candidates: Vec<Accident>,
    /// The WAL that was searched.
    searched: WalRange,
    /// Stretches of it that are not stored.
    holes: Vec<WalRange>,
    /// How many catalog snapshots there were to be asked.
    snapshots: usize,
    /// From where to where.
    snapshots_reach: Option<(Lsn, Lsn)>,
    /// Those that cannot be read.
    damaged_snapshots: Vec<String>,
    /// Entries of the log for which there was no room: more accidents may fit.
    left_out: u64,
    /// Files that went, of which no snapshot knew a name.
    unnamed: usize,
    /// Names that are nearly it, of what went.
    similar: Vec<String>,
    /// It is there, at the end of what snapshots know.
    still_there: Option<String>,
}

impl fmt::Display for NotOne {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if !self.candidates.is_empty() {
            match self.candidates.len() {
                1 => write!(f, "{} was found, but not all was looked at ({} entries left out); choose it:", self.sought, self.left_out)?,
                several => write!(f, "{} is not one moment but {several}; choose one:", self.sought)?,
            }
            return self.candidates.iter().try_for_each(|accident| write!(f, "\n  --lsn {} --exclusive   {accident}", accident.lsn));
        }
        write!(f, "{} was not found; searched was the WAL from {} to {}", self.sought, self.searched.from, self.searched.to)?;
        match self.snapshots_reach {
            Some((first, last)) => {
                write!(f, ", names are from {}, {first} to {last}", output::count(self.snapshots as u64, "catalog snapshot"))?
            }
            None => f.write_str(", and no catalog snapshot is stored that has names")?,
        }
        if let Some(name) = &self.still_there {
            write!(f, "\n{name} is in the newest catalog snapshot: it was not dropped by then")?;
        }
        for hole in &self.holes {
            write!(f, "\nWAL is missing from {} to {}", hole.from, hole.to)?;
        }
        self.damaged_snapshots.iter().try_for_each(|damaged| write!(f, "\na catalog snapshot cannot be read: {damaged}"))?;
        if !self.similar.is_empty() {
            write!(f, "\nsimilar names went: {}", self.similar.join(", "))?;
        }
        if self.unnamed > 0 {
            let files = if self.unnamed == 1 { "a relation".to_owned() } else { format!("{} relations", self.unnamed) };
            write!(f, "\n{files} went that no snapshot saw: `walkeep log --dropped` lists these by number")?;
        }
        if self.left_out > 0 {
            write!(f, "\nnot all was looked at: {} entries were left out", self.left_out)?;
        }
        f.write_str("\n`walkeep log --dropped --from LSN|TIME` shows all that was dropped or truncated")
    }
}

impl std::error::Error for NotOne {}

/// The accident that is meant, along the history of `timeline` (the newest), behind its oldest backup: an earlier one cannot be undone.
pub async fn find(
    repository: &Arc<ClusterRepository>,
    catalog: &Catalog,
    timeline: Option<TimelineId>,
    sought: &Sought,
) -> Result<Accident, Failure> {
    let path = log::path(catalog, timeline)?;
    let backups = catalog.backups().iter().filter(|backup| path.contains(backup.timeline, backup.start_lsn));
    let oldest = backups.map(|backup| backup.start_lsn).min();
    let oldest = oldest.ok_or_else(|| Failure::refused(format!("there is no base backup of timeline {}", path.timeline())))?;
    let window = Window { from: Some(Edge::Lsn(oldest)), to: None };
    let mut on_progress = plan::wal_progress("to find what was dropped");
    let account = journal::read(repository, catalog, &path, window, &mut on_progress).await?;
    let account = account.ok_or_else(|| Failure::refused(format!("no WAL of timeline {} is stored", path.timeline())))?;
    let is_accident = |what: &Happening| matches!(what, Happening::Removed { .. } | Happening::DatabaseDropped { .. });
    let entries: Vec<_> = account.summary.entries.iter().filter(|entry| is_accident(&entry.what)).collect();
    let (entries, asked) = names::name_entries(repository, &path, &entries, &account.summary.moves).await?;
    let mut candidates = accidents(&entries, sought);
    let left_out = account.summary.left_out;
    if candidates.len() == 1
        && left_out == 0
        && let Some(only) = candidates.pop()
    {
        return Ok(only);
    }
    let still_there = if candidates.is_empty() { still_there(repository, &path, sought).await? } else { None };
    let Asked { snapshots, reach, damaged } = asked;
    let refusal = NotOne {
        sought: sought.to_string(),
        candidates,
        searched: WalRange { from: account.from, to: account.to },
        holes: account.holes,
        snapshots,
        snapshots_reach: reach,
        damaged_snapshots: damaged,
        left_out,
        unnamed: super::removal::unnamed(&entries),
        similar: similar(&entries, sought),
        still_there,
    };
    Err(Failure { exit: Exit::Refused, error: anyhow::Error::new(refusal), hint: None })
}

/// The full name of what is sought, if the newest snapshot has it.
async fn still_there(repository: &ClusterRepository, path: &TimelineHistory, sought: &Sought) -> Result<Option<String>> {
    let Some(newest) = names::along(repository, path).await?.into_iter().max_by_key(|name| name.lsn) else { return Ok(None) };
    // What is damaged was told.
    let Ok(snapshot) = repository.names(newest).await else { return Ok(None) };
    let sought = sought.clone();
    let found = tokio::task::spawn_blocking(move || match sought {
        Sought::Drop(wanted) if !wanted.is_schema() => snapshot.names().find(|name| wanted.is(name)).map(|name| name.to_string()),
        Sought::DropDatabase(wanted) => snapshot.databases().find(|database| database.name == wanted).map(|database| database.name.clone()),
        _ => None,
    });
    found.await.context("look into the newest catalog snapshot")
}
