//! What the page shows of the repository: read when somebody looks at the page, in the background, and not again before a time that is long beside what
//! reading took. However often a page is loaded, an archive of a million segments is listed now and then.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use chrono::{DateTime, TimeDelta, Utc};
use tracing::Instrument;
use walkeep_core::PgTimestamp;
use walkeep_core::backup::BackupRecord;
use walkeep_core::catalog::{Catalog, GapReport, TimelineReport, WalRange};
use walkeep_core::drill::Facts;
use walkeep_core::journal::{Edge, Entry, Window};
use walkeep_core::picture::{Picture, Told};
use walkeep_core::{Lsn, TimelineHistory, TimelineId};
use walkeep_store::several::Proof;

use super::Page;
use crate::index::reader::Index;
use crate::repository::ClusterRepository;
use crate::{journal, names};

/// What was read is shown for so long at least ...
const FRESH: Duration = Duration::from_secs(20);
/// ... and for so many times as long as it took to read.
const REST: u32 = 20;
/// Longer nobody waits for it: a repository that hangs.
const DEADLINE: Duration = Duration::from_secs(300);
/// What happened is told of the last days, ...
const DAYS: i64 = 31;
/// ... if that can be read within this time: the index tells it; without one the WAL has to be read.
const LOG_DEADLINE: Duration = Duration::from_secs(30);
/// What happened is read again after so long, ...
const LOG_FRESH: Duration = Duration::from_secs(120);
/// ... and where it could not be read, after this.
const LOG_RETRY: Duration = Duration::from_secs(600);
/// Drills that are listed.
const DRILLS: usize = 20;
/// Marks and stretches of one timeline that are drawn, the newest.
const DRAWN: usize = 1000;

/// What was read, and whether it is being read.
#[derive(Debug, Default)]
pub struct Looked {
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    running: bool,
    not_before: Option<Instant>,
    seen: Option<Arc<Seen>>,
    error: Option<String>,
}

/// What was seen.
#[derive(Debug)]
pub struct Seen {
    /// When.
    pub at: DateTime<Utc>,
    /// What can be restored of each timeline.
    pub timelines: Vec<TimelineReport>,
    /// Recorded gaps.
    pub gaps: Vec<GapReport>,
    /// The backups.
    pub backups: Vec<BackupRecord>,
    /// The newest drills, oldest first.
    pub drills: Vec<Facts>,
    /// Records that cannot be believed.
    pub damaged: usize,
    /// What there is to draw.
    pub picture: Option<Picture>,
    /// Marks and stretches that were left out of it.
    pub left_out: usize,
    /// What happened, as far as it was read.
    pub log: Log,
}

/// What was read of what happened.
#[derive(Debug, Clone)]
pub struct Log {
    /// It was read from here on; `None` if it was not read.
    pub from: Option<DateTime<Utc>>,
    /// Why not.
    pub error: Option<String>,
    not_before: Instant,
    told: Option<Arc<Happened>>,
}

/// What a picture needs of it.
#[derive(Debug)]
struct Happened {
    path: TimelineHistory,
    entries: Vec<Entry>,
    moves: Vec<walkeep_core::journal::Move>,
    clock: Vec<(Lsn, PgTimestamp)>,
}

impl Looked {
    /// What was seen last, why it could not be seen since, and whether somebody looks.
    pub fn now(&self) -> (Option<Arc<Seen>>, Option<String>, bool) {
        let state = self.state();
        (state.seen.clone(), state.error.clone(), state.running)
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Begins to look, if it is time to.
pub fn begin(page: &Arc<Page>) {
    let Some(repository) = page.repository() else { return };
    let before = {
        let mut state = page.looked.state();
        if state.running || state.not_before.is_some_and(|at| Instant::now() < at) {
            return;
        }
        state.running = true;
        state.seen.clone()
    };
    let turn = Turn { page: page.clone(), began: Instant::now() };
    let looking = async move {
        let page = &turn.page;
        let looked = tokio::select! {
            looked = tokio::time::timeout(DEADLINE, look(page, &repository, before)) => looked.context("no answer in time").flatten(),
            () = page.stop.cancelled() => return,
        };
        let mut state = page.looked.state();
        match looked {
            Ok(seen) => (state.seen, state.error) = (Some(Arc::new(seen)), None),
            Err(error) => state.error = Some(format!("{error:#}")),
        }
    };
    tokio::spawn(looking.in_current_span());
}

/// Whoever looks. However that ends, somebody may look again later.
struct Turn {
    page: Arc<Page>,
    began: Instant,
}

impl Drop for Turn {
    fn drop(&mut self) {
        let mut state = self.page.looked.state();
        state.running = false;
        state.not_before = Some(Instant::now() + FRESH.max(self.began.elapsed() * REST));
    }
}

async fn look(page: &Page, repository: &Arc<ClusterRepository>, before: Option<Arc<Seen>>) -> Result<Seen> {
    let repository = Arc::new(repository.demanding(Proof::Reachable));
    let loaded = repository.load_catalog().await.context("read the catalog")?;
    // Behind the listing: it shows nothing that is not stored by then.
    let now = page.stored_until();
    let newest = loaded.catalog.newest_timeline();
    let is_of_it = |log: &Log| log.told.as_ref().is_none_or(|told| Some(told.path.timeline()) == newest);
    let mut log = match before.map(|seen| seen.log.clone()).filter(|log| Instant::now() < log.not_before && is_of_it(log)) {
        Some(log) => log,
        None => read_log(&repository, &loaded.catalog).await,
    };
    let (picture, left_out) = picture(&repository, &loaded.catalog, &mut log, now).await;
    let mut backups = loaded.catalog.backups().to_vec();
    // What was said last of a backup holds.
    for (id, hold) in repository.holds().await.context("read what is kept")? {
        backups.iter_mut().filter(|backup| backup.id == id).for_each(|backup| backup.keep = hold.keep);
    }
    let (drills, damaged) = repository.drills(DRILLS).await.context("read the drills")?;
    Ok(Seen {
        at: Utc::now(),
        timelines: loaded.catalog.report(),
        gaps: loaded.catalog.gap_reports(),
        backups,
        drills: drills.into_iter().map(|record| record.facts).collect(),
        damaged: loaded.damaged.len() + damaged.len(),
        picture,
        left_out,
        log,
    })
}

/// What happened along the newest timeline's history.
async fn read_log(repository: &Arc<ClusterRepository>, catalog: &Catalog) -> Log {
    let (since, began) = (Utc::now() - TimeDelta::days(DAYS), Instant::now());
    let window = Window { from: Some(Edge::Time(PgTimestamp::from_utc(since))), to: None };
    let read = async {
        let newest = catalog.newest_timeline().and_then(|timeline| catalog.history(timeline));
        let Some(path) = newest else { return Ok(None) };
        let index = Index::open_along(repository.clone(), &path).await?;
        let account = journal::read(repository, &index, catalog, &path, window, &mut |_, _| {}).await?;
        anyhow::Ok(account.map(|account| {
            let walkeep_core::journal::Summary { entries, moves, clock, .. } = account.summary;
            Arc::new(Happened { path, entries, moves, clock })
        }))
    };
    let read = tokio::time::timeout(LOG_DEADLINE, read).await;
    let read = read.context("reading what happened takes too long here: see `walkeep log`").flatten();
    let pause = if read.is_ok() { LOG_FRESH.max(began.elapsed() * REST) } else { LOG_RETRY };
    let not_before = Instant::now() + pause;
    match read {
        Ok(told) => Log { from: told.is_some().then_some(since), error: None, not_before, told },
        Err(error) => Log { from: None, error: Some(format!("{error:#}")), not_before, told: None },
    }
}

/// What is stored, and when that was all there was: the clock of an idle server stands still in its WAL.
type Now = (TimelineId, Lsn, PgTimestamp);

impl Page {
    fn stored_until(&self) -> Option<Now> {
        let now = self.progress.snapshot();
        let until = Utc::now() - TimeDelta::from_std(now.possible_loss()?).ok()?;
        Some((now.timeline?, now.durable, PgTimestamp::from_utc(until)))
    }
}

/// The picture, with what happened if that is known; and how much was left out of it.
async fn picture(repository: &ClusterRepository, catalog: &Catalog, log: &mut Log, now: Option<Now>) -> (Option<Picture>, usize) {
    let (told, newest) = (log.told.clone(), catalog.newest_timeline().and_then(|timeline| catalog.history(timeline)));
    let happened = told.as_deref();
    let mut picture = match happened.map(|happened| happened.path.clone()).or(newest) {
        None => Picture::of(catalog, None),
        Some(path) => {
            let all: Vec<&Entry> = happened.iter().flat_map(|happened| &happened.entries).collect();
            let moves = happened.map(|happened| happened.moves.as_slice()).unwrap_or_default();
            let entries = match names::name_entries(repository, &path, &all, moves).await {
                Ok((entries, _)) => entries,
                Err(error) => {
                    log.error = Some(format!("{error:#}"));
                    Vec::new()
                }
            };
            let mut clock = happened.map(|happened| happened.clock.clone()).unwrap_or_default();
            clock.extend(now.filter(|(timeline, ..)| *timeline == path.timeline()).map(|(_, lsn, time)| (lsn, time)));
            // All of the catalog is drawn, also where nobody read what happened.
            let read = WalRange { from: Lsn::ZERO, to: Lsn::new(u64::MAX) };
            Picture::of(catalog, Some(Told { read, path: &path, entries: &entries, clock: &clock }))
        }
    };
    let mut left_out = 0;
    for lane in picture.iter_mut().flat_map(|picture| &mut picture.lanes) {
        let (marks, spans) = (lane.marks.len().saturating_sub(DRAWN), lane.spans.len().saturating_sub(DRAWN));
        lane.marks.drain(..marks);
        lane.spans.drain(..spans);
        left_out += marks + spans;
    }
    (picture, left_out)
}
