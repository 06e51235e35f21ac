//! Planning a restore: reads the WAL that a target has to be found in, and lets the core decide.
//!
//! The decision is pure (`walkeep_core::plan`); what is done here is having WAL read ([`crate::wal_walk`]) until it shows the target. So a
//! plan has read every byte of WAL up to its stop, and knows what replay will do outside the data directory.

use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::Result;
use chrono::Utc;
use walkeep_core::catalog::{Catalog, WalRange};
use walkeep_core::decoder::{DecodeError, Decoder};
use walkeep_core::plan::estimate::{Estimate, Measured, MeasuredBy, Rates};
use walkeep_core::plan::{self, Candidate, Refusal, RestorePlan, Witness};
use walkeep_core::target::{Progress, RecoveryTarget, SearchOutcome, TargetKind, TargetSearch};
use walkeep_core::{Lsn, SystemIdentifier};

use crate::postgres::{ConnectionParams, sql};
use crate::repository::ClusterRepository;
use crate::wal_walk::{OnProgress, Stored, Visitor};

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
}

/// The plan for `target`, or why there is none.
pub async fn plan(
    repository: &Arc<ClusterRepository>,
    catalog: &Catalog,
    target: &RecoveryTarget,
    around: &Around,
    on_progress: OnProgress<'_>,
) -> Result<Result<RestorePlan, Refusal>> {
    let candidates = match plan::candidates(catalog, target) {
        Ok(candidates) => candidates,
        Err(refusal) => return Ok(Err(refusal)),
    };
    let mut refused: Option<Refusal> = None;
    let mut read = Read::default();
    for candidate in candidates {
        let outcome = search(repository, catalog, &candidate, &mut read, on_progress).await?;
        let mut finished = plan::finish(&candidate, &outcome, catalog, &Witness::NotAsked);
        if finished.as_ref().is_err_and(Refusal::asks_server) {
            let witness = ask(&around.server, repository.identity().system_identifier).await;
            finished = plan::finish(&candidate, &outcome, catalog, &witness);
        }
        match finished {
            Ok(plan) => {
                let files = candidate.backup.bytes_referenced;
                let estimate = Estimate::new(files, plan.replay_bytes, &around.rates, read.measured());
                return Ok(Ok(RestorePlan { estimate: Some(estimate), ..plan }));
            }
            Err(refusal) if refusal.tries_older() => {
                refused = Some(match refused {
                    Some(newer) => newer.and_older(refusal),
                    None => refusal,
                });
            }
            Err(refusal) => return Ok(Err(refusal)),
        }
    }
    let none_left = || anyhow::anyhow!("no backup leads to the target, and none said why: a defect of Walkeep");
    Ok(Err(refused.ok_or_else(none_left)?))
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

/// What was read to make a plan.
#[derive(Debug, Default)]
struct Read {
    bytes: u64,
    time: Duration,
}

impl Read {
    fn measured(&self) -> Option<Measured> {
        let millis = u64::try_from(self.time.as_millis()).unwrap_or(u64::MAX);
        (self.bytes > 0).then(|| Measured { bytes: self.bytes, millis, at: Utc::now(), by: MeasuredBy::Plan })
    }
}

/// Reads the candidate's WAL until the target is found or the WAL ends.
async fn search(
    repository: &Arc<ClusterRepository>,
    catalog: &Catalog,
    candidate: &Candidate,
    read: &mut Read,
    on_progress: OnProgress<'_>,
) -> Result<SearchOutcome> {
    // Behind what is searched nothing is looked for, but what follows a stop may lie there.
    let range = WalRange { from: candidate.search.from, to: candidate.covered_to };
    let decoder = Decoder::new(range.from, catalog.segment_size());
    // PostgreSQL compares a position with the bounds of every record.
    let positional = matches!(candidate.target.kind, TargetKind::Lsn(_) | TargetKind::Immediate);
    let decoder = if positional { decoder.every_record() } else { decoder };
    let search = TargetSearch::new(&candidate.target, candidate.backup.stop_lsn);
    let behind = if matches!(candidate.target.kind, TargetKind::Time(_)) { READ_BEHIND } else { 0 };
    let looking =
        Looking { search, progress: Progress::Searching, to: candidate.search.to, at: range.from, behind, settled: 0, segments: 0 };
    let stored = Stored { repository, catalog, path: &candidate.path };
    let began = Instant::now();
    let (looking, end) = stored.walk(range, decoder, looking, on_progress).await?;
    read.time += began.elapsed();
    let files = catalog.coverage(&candidate.path, range.from, range.to).unwrap_or_default();
    let looked_at = usize::try_from(looking.segments).unwrap_or(usize::MAX);
    read.bytes += files.iter().take(looked_at).map(|file| file.stored).sum::<u64>();
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
    /// Segments to read on once everything is settled, and those that were.
    behind: u64,
    settled: u64,
    segments: u64,
}

impl Visitor for Looking {
    fn drain(&mut self, decoder: &mut Decoder) -> Result<(), DecodeError> {
        while let Some(event) = decoder.next_event()? {
            if event.start >= self.to && self.progress == Progress::Searching {
                break;
            }
            self.progress = self.search.event(&event);
        }
        self.at = decoder.position();
        Ok(())
    }

    fn goes_on(&mut self, segments: u64) -> bool {
        self.segments = segments;
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
