//! What happened when, read out of the stored WAL: what `walkeep log` shows.
//!
//! What an entry is, is the core's ([`walkeep_core::journal`]); here is which WAL is read for it. There is no index yet, so reading begins
//! at the newest backup that began before the window: a transaction that ends in the window is followed from there on.

use std::sync::Arc;

use anyhow::Result;
use walkeep_core::backup::BackupRecord;
use walkeep_core::catalog::{Catalog, WalRange};
use walkeep_core::decoder::{DecodeError, Decoder};
use walkeep_core::journal::{Edge, Journal, Limits, Summary, Window};
use walkeep_core::{Lsn, PgTimestamp, TimelineHistory};

use crate::repository::ClusterRepository;
use crate::wal_walk::{OnProgress, Stored, Visitor};

/// Segments read behind the window's end: enough to see a clock that was set back.
const READ_BEHIND: u64 = 16;

/// What was read, and what it says.
#[derive(Debug)]
pub struct Account {
    /// Where reading began.
    pub from: Lsn,
    /// Where it ended.
    pub to: Lsn,
    /// Stretches that are not stored.
    pub holes: Vec<WalRange>,
    /// What happened.
    pub summary: Summary,
}

/// The newest backup that began before `edge`, or of all. `None` if there is none: then reading begins where stored WAL does.
pub fn backup_before<'a>(catalog: &'a Catalog, path: &TimelineHistory, edge: Option<Edge>) -> Option<&'a BackupRecord> {
    let mut backups: Vec<_> = catalog.backups().iter().filter(|backup| path.contains(backup.timeline, backup.start_lsn)).collect();
    backups.sort_by_key(|backup| backup.start_lsn);
    let before = |backup: &&&BackupRecord| match edge {
        Some(Edge::Lsn(lsn)) => backup.start_lsn <= lsn,
        Some(Edge::Time(time)) => PgTimestamp::from_utc(backup.started_at) <= time,
        None => true,
    };
    backups.iter().rev().find(before).copied()
}

/// Reads the WAL of `window` along `path`. `None` if none is stored.
pub async fn read(
    repository: &Arc<ClusterRepository>,
    catalog: &Catalog,
    path: &TimelineHistory,
    window: Window,
    on_progress: OnProgress<'_>,
) -> Result<Option<Account>> {
    let backup = backup_before(catalog, path, window.from.or(window.to));
    let Some(from) = backup.map(|backup| backup.start_lsn).or_else(|| catalog.resumes(path, Lsn::ZERO)) else { return Ok(None) };
    let stored = Stored { repository, catalog, path };
    let mut reading = Reading { journal: Journal::new(window, Limits::default()), past: false, past_at: None };
    let (mut at, mut holes) = (from, Vec::new());
    let to = loop {
        let reach = catalog.reach(path, at);
        let range = WalRange { from: at, to: reach.to };
        let (read, end) = stored.walk(range, Decoder::new(at, catalog.segment_size()), reading, on_progress).await?;
        reading = read;
        let next = reach.missing.resumes.filter(|next| *next > reach.to && !reading.is_done());
        let Some(next) = next else { break end };
        reading.journal.hole(reach.to, next);
        holes.push(WalRange { from: reach.to, to: next });
        at = next;
    };
    Ok(Some(Account { from, to, holes, summary: reading.journal.finish() }))
}

struct Reading {
    journal: Journal,
    past: bool,
    /// How many segments behind the window were read.
    past_at: Option<u64>,
}

impl Reading {
    fn is_done(&self) -> bool {
        self.past
    }
}

impl Visitor for Reading {
    fn drain(&mut self, decoder: &mut Decoder, mut bytes: &[u8]) -> Result<(), DecodeError> {
        while let Some(record) = decoder.next_record(&mut bytes)? {
            self.journal.record(&record);
        }
        Ok(())
    }

    fn goes_on(&mut self, segments: u64) -> bool {
        self.past |= self.past_at.is_some_and(|past| segments >= past + READ_BEHIND);
        if self.journal.past_window() {
            self.past_at.get_or_insert(segments);
        }
        !self.past
    }
}
