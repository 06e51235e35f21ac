//! Planning a restore: reads the WAL that a target has to be found in, and lets the core decide.
//!
//! The decision is pure (`walkeep_core::plan`); what is done here is having WAL looked through until it shows the target: by the index where
//! that proves that nothing of interest lies in a segment, by the WAL itself elsewhere ([`crate::index::reader`]). The segment of a stop is always read.

mod view;

use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result};
use chrono::Utc;
use walkeep_core::backup::BackupRecord;
use walkeep_core::catalog::{Catalog, NeededFile, WalRange};
use walkeep_core::decoder::{DecodeError, Decoder};
use walkeep_core::index::{Level, Summary};
use walkeep_core::plan::estimate::{Estimate, Measured, MeasuredBy, Rates};
use walkeep_core::plan::{self, Candidate, Refusal, RestorePlan, Witness};
use walkeep_core::target::{Progress, RecoveryTarget, SearchOutcome, TargetKind, TargetSearch};
use walkeep_core::{Lsn, SegmentSize, SystemIdentifier};

use crate::index::reader::{Guided, Index};
use crate::postgres::{ConnectionParams, sql};
use crate::repository::backups::Damaged;
use crate::repository::{ClusterRepository, Error};
use crate::wal_walk::{OnProgress, Stored, Traffic, Visitor};

pub use view::View;

/// Segments read for a time once the stop and the transaction behind it are known, and no more commits of the time come: enough to see a
/// clock that was set back, few enough not to read the whole archive.
const READ_BEHIND: u64 = 16;

/// A server that does not answer must not hold up a plan for longer.
const SERVER: Duration = Duration::from_secs(5);

/// What a plan may look at beside the repository.
#[derive(Debug)]
pub struct Around {
    /// The server, which is asked only where nothing stored can tell whether a time was reached; or why it cannot be asked.
    pub server: Result<ConnectionParams, String>,
    /// What was measured on this host.
    pub rates: Rates,
    /// How much of the backup is wanted.
    pub share: Share,
}

/// How much of a backup is to be restored.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Share {
    /// All of it: then all that it refers to must be there, and if it is not, an older backup may do.
    Whole,
    /// Some databases of it: only the restore itself knows what is needed.
    Part,
}

/// The plan for `target` by what `catalog` says is stored, or why there is none.
async fn plan(
    repository: &Arc<ClusterRepository>,
    index: &Index,
    catalog: &Catalog,
    target: &RecoveryTarget,
    around: &Around,
    on_progress: OnProgress<'_>,
) -> Result<Result<RestorePlan, Refusal>> {
    let candidates = match plan::candidates(catalog, target) {
        Ok(candidates) => candidates,
        Err(refusal) => return Ok(Err(refusal)),
    };
    let mut refused: Vec<(usize, Refusal)> = Vec::new();
    let mut damaged = Vec::new();
    let traffic = Traffic::default();
    // First those that may lead there; the others only for their reasons.
    let mut order: Vec<usize> = (0..candidates.len()).collect();
    order.sort_by_cached_key(|at| is_ruled_out(index, &candidates[*at]));
    for at in order {
        let candidate = &candidates[at];
        let stored = Stored { repository, catalog, path: &candidate.path, traffic: &traffic };
        let outcome = search(index, stored, candidate, on_progress).await.map_err(|error| Unread::of(error, catalog, candidate))?;
        let mut finished = plan::finish(candidate, &outcome, catalog, &Witness::NotAsked);
        if finished.as_ref().is_err_and(Refusal::asks_server) {
            let witness = ask(&around.server, repository.identity().system_identifier).await;
            finished = plan::finish(candidate, &outcome, catalog, &witness);
        }
        match finished {
            Ok(_) if let Some(reason) = damage(repository, &candidate.backup, around.share).await? => {
                damaged.push(format!("backup {} is newer and cannot be restored whole: {reason}", candidate.backup.id));
                refused.push((at, Refusal::BackupDamaged { backup: candidate.backup.id.clone(), reason }));
            }
            Ok(plan) => {
                let files = candidate.backup.bytes_referenced;
                let estimate = Estimate::new(files, plan.replay_bytes, &around.rates, measured(&traffic));
                let mut plan = RestorePlan { estimate: Some(estimate), ..plan };
                plan.warnings.extend(damaged);
                plan.warnings.extend(index.damaged().iter().map(damaged_digest));
                return Ok(Ok(plan));
            }
            Err(refusal) if refusal.tries_older() => refused.push((at, refusal)),
            Err(refusal) => return Ok(Err(refusal)),
        }
    }
    refused.sort_by_key(|(at, _)| *at);
    let refused = refused.into_iter().map(|(_, refusal)| refusal).reduce(Refusal::and_older);
    let none_left = || anyhow::anyhow!("no backup leads to the target, and none said why: a defect of Walkeep");
    Ok(Err(refused.ok_or_else(none_left)?))
}

/// WAL that a plan has to read cannot be read at once. What a restore needs of the same backup, as far as it is known.
#[derive(Debug, Clone)]
pub struct Unread {
    /// The backup that would be restored.
    pub backup: BackupRecord,
    /// WAL from its start to what could not be read, and some behind it.
    pub wal: Vec<NeededFile>,
}

impl std::fmt::Display for Unread {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "look for the target in the WAL behind backup {}", self.backup.id)
    }
}

impl Unread {
    /// `error`, with this where it is about an archived object.
    fn of(error: anyhow::Error, catalog: &Catalog, candidate: &Candidate) -> anyhow::Error {
        let key = error.chain().find_map(|cause| cause.downcast_ref::<Error>()?.archived());
        let Some(key) = key else { return error };
        let from = candidate.search.from;
        let Ok(all) = catalog.coverage(&candidate.path, from, candidate.covered_to) else { return error };
        let passed = all.iter().position(|file| key.contains(&file.segment.to_string())).unwrap_or_default();
        // Without an index everything is read one by one: then each time as much again as lies behind already.
        let read = passed + passed.max(READ_BEHIND as usize) + 1;
        let wal = all.into_iter().take(read).collect();
        error.context(Self { backup: candidate.backup.clone(), wal })
    }
}

/// What keeps a backup from being restored whole, as far as a listing and its manifest tell.
async fn damage(repository: &ClusterRepository, backup: &BackupRecord, share: Share) -> Result<Option<String>> {
    if share == Share::Part {
        return Ok(None);
    }
    match repository.lost_packs(backup).await {
        Ok(lost) => Ok((!lost.is_nothing()).then(|| lost.to_string())),
        Err(error @ Error::Corrupt { .. }) => Ok(Some(error.to_string())),
        Err(error) => Err(error).context("look at what the backup refers to"),
    }
}

/// Whether the index alone shows that a transaction or a restore point is not in the candidate's stretch: where there are many backups, most are so.
fn is_ruled_out(index: &Index, candidate: &Candidate) -> bool {
    let is_somewhere = matches!(candidate.target.kind, TargetKind::Xid(_) | TargetKind::RestorePoint(_));
    let search = TargetSearch::new(&candidate.target, candidate.backup.stop_lsn);
    is_somewhere && index.rules_out(&candidate.path, candidate.search, |summary| search.suffices(summary))
}

/// Asks the running server what it can prove. Whatever goes wrong is a reason not to know.
async fn ask(server: &Result<ConnectionParams, String>, system: SystemIdentifier) -> Witness {
    let asked = async {
        let params = server.as_ref().map_err(|reason| anyhow::anyhow!("{reason}"))?;
        let (client, serving) = sql::connect_sql_served(params).await?;
        let now = sql::writes_now(&client).await;
        drop(client);
        let _ = serving.await;
        anyhow::Ok(now?)
    };
    let reason = match tokio::time::timeout(SERVER, asked).await {
        Ok(Ok(Some(server))) if server.system_identifier == system => return Witness::Answered(server.now),
        Ok(Ok(Some(server))) => format!("the server of `connection` is another cluster, {}", server.system_identifier),
        Ok(Ok(None)) => "the server of `connection` is a standby, or still in recovery".to_owned(),
        Ok(Err(error)) => format!("{error:#}"),
        Err(_) => format!("no answer within {} s", SERVER.as_secs()),
    };
    Witness::Silent { reason }
}

fn damaged_digest(damaged: &Damaged) -> String {
    format!(
        "{} of the index cannot be believed ({}), so WAL was read instead; `walkeep index --rebuild` mends it",
        damaged.key, damaged.reason
    )
}

fn measured(traffic: &Traffic) -> Option<Measured> {
    let millis = u64::try_from(traffic.time().as_millis()).unwrap_or(u64::MAX);
    (traffic.bytes() > 0).then(|| Measured { bytes: traffic.bytes(), millis, at: Utc::now(), by: MeasuredBy::Plan })
}

/// Looks through the candidate's WAL until the target is found or the WAL ends.
async fn search(index: &Index, stored: Stored<'_>, candidate: &Candidate, on_progress: OnProgress<'_>) -> Result<SearchOutcome> {
    // Behind what is searched nothing is looked for, but what follows a stop may lie there.
    let range = WalRange { from: candidate.search.from, to: candidate.covered_to };
    let kind = &candidate.target.kind;
    let looking = Looking {
        search: TargetSearch::new(&candidate.target, candidate.backup.stop_lsn),
        progress: Progress::Searching,
        to: candidate.search.to,
        at: range.from,
        // PostgreSQL compares a position with the bounds of every record.
        positional: matches!(kind, TargetKind::Lsn(_) | TargetKind::Immediate),
        behind: if matches!(kind, TargetKind::Time(_)) { READ_BEHIND } else { 0 },
        looks_on: matches!(kind, TargetKind::Time(_)),
        settled: 0,
    };
    let (looking, end) = index.walk(stored, range, looking, on_progress).await?;
    let end = if looking.progress == Progress::Searching { end.min(candidate.search.to) } else { end };
    Ok(looking.search.finish(end))
}

/// A target being looked for.
struct Looking {
    search: TargetSearch,
    progress: Progress,
    /// Where the stop must lie before.
    to: Lsn,
    at: Lsn,
    positional: bool,
    /// Segments to read on once everything is settled, and those that were.
    behind: u64,
    settled: u64,
    /// Whether what summaries tell is looked at to the end, once everything is settled: a clock that was set back shows there.
    looks_on: bool,
}

impl Visitor for Looking {
    fn drain(&mut self, decoder: &mut Decoder, mut bytes: &[u8]) -> Result<(), DecodeError> {
        while let Some(event) = decoder.next_event(&mut bytes)? {
            if event.start >= self.to && self.progress == Progress::Searching {
                break;
            }
            self.progress = self.search.event(&event);
        }
        self.at = decoder.position();
        Ok(())
    }

    fn goes_on(&mut self, _segments: u64) -> bool {
        match self.progress {
            Progress::Searching => self.at < self.to,
            Progress::Found => {
                self.settled = 0;
                true
            }
            Progress::Settled => {
                self.settled += 1;
                self.settled <= self.behind
            }
        }
    }
}

impl Guided for Looking {
    fn suffices(&self, summary: &Summary, _level: Option<Level>) -> bool {
        let in_reach = self.progress != Progress::Searching || summary.records.to <= self.to;
        in_reach && self.search.suffices(summary)
    }

    fn pass(&mut self, summary: &Summary) {
        self.progress = self.search.pass(summary);
        self.at = summary.records.to;
    }

    fn is_done(&self) -> bool {
        match self.progress {
            Progress::Searching => self.at >= self.to,
            Progress::Found => false,
            Progress::Settled => !self.looks_on || self.settled > self.behind,
        }
    }

    fn begin(&mut self, at: Lsn, size: SegmentSize, _least: Lsn) -> Decoder {
        let decoder = Decoder::new(at, size);
        if self.positional { decoder.every_record() } else { decoder }
    }
}
