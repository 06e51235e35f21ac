//! What happened when: what `walkeep log` shows.
//!
//! What an entry is, is the core's ([`walkeep_core::journal`]); here is what is read for it: the index where it tells of the window, and the
//! WAL of the rest. Reading WAL begins where the index ends; without one at the newest backup that began before the window, as a
//! transaction that ends in the window is followed from there on.

use std::collections::BTreeMap;
use std::sync::Arc;

use anyhow::Result;
use walkeep_core::backup::BackupRecord;
use walkeep_core::catalog::{Catalog, WalRange};
use walkeep_core::decoder::{DecodeError, Decoder};
use walkeep_core::index::{Level, Summary as Indexed};
use walkeep_core::journal::{Clock, Edge, Entry, Journal, Limits, Minute, Move, Summary, Window};
use walkeep_core::{Lsn, PgTimestamp, SegmentSize, TimelineHistory};

use crate::index::reader::{Guided, Index};
use crate::repository::ClusterRepository;
use crate::wal_walk::{OnProgress, Stored, Traffic, Visitor};

/// Segments read behind the window's end: enough to see a clock that was set back.
const READ_BEHIND: u64 = 16;
/// Up to so many segments rates are told by the minute; beyond, by the hour or day, as digests of many segments have them.
const FINE: u64 = 8192;

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

/// Tells of `window` along `path`. `None` if none of its WAL is stored.
pub async fn read(
    repository: &Arc<ClusterRepository>,
    index: &Index,
    catalog: &Catalog,
    path: &TimelineHistory,
    window: Window,
    on_progress: OnProgress<'_>,
) -> Result<Option<Account>> {
    let backup = backup_before(catalog, path, window.from.or(window.to));
    let Some(from) = backup.map(|backup| backup.start_lsn).or_else(|| catalog.resumes(path, Lsn::ZERO)) else { return Ok(None) };
    let traffic = Traffic::default();
    let stored = Stored { repository, catalog, path, traffic: &traffic };
    let mut reading = Reading::new(window);
    let (mut at, mut holes) = (from, Vec::new());
    let to = loop {
        let reach = catalog.reach(path, at);
        let range = WalRange { from: at, to: reach.to };
        reading.fine = range.bytes() / catalog.segment_size().bytes() <= FINE;
        let (read, end) = index.walk(stored, range, reading, on_progress).await?;
        reading = read;
        let next = reach.missing.resumes.filter(|next| *next > reach.to && !reading.is_done());
        let Some(next) = next else { break end };
        reading.hole(reach.to, next);
        holes.push(WalRange { from: reach.to, to: next });
        at = next;
    };
    Ok(Some(Account { from, to, holes, summary: reading.finish() }))
}

struct Reading {
    window: Window,
    journal: Journal,
    /// What summaries told.
    told: Told,
    /// What the journal has to know if it goes on behind what summaries told.
    resume: Option<Box<Indexed>>,
    /// Whether rates are wanted by the minute.
    fine: bool,
    past: bool,
    /// Segments read whose records are behind the window.
    behind: u64,
}

/// What summaries told, and what the journal told between them.
#[derive(Default)]
struct Told {
    entries: Vec<Entry>,
    moves: Vec<Move>,
    left_out: u64,
    not_followed: u64,
    rates: BTreeMap<PgTimestamp, Minute>,
    checkpoints: u64,
    clock: Clock,
}

impl Told {
    fn add(&mut self, entries: impl IntoIterator<Item = Entry>, left_out: u64, not_followed: u64, rates: &[Minute], checkpoints: u64) {
        let room = Limits::default().entries;
        for entry in entries {
            match self.entries.len() < room {
                true => self.entries.push(entry),
                false => self.left_out += 1,
            }
        }
        self.left_out += left_out;
        self.not_followed += not_followed;
        self.checkpoints += checkpoints;
        for rate in rates {
            let same = self.rates.entry(rate.minute).or_insert(Minute { minute: rate.minute, commits: 0, aborts: 0 });
            same.commits += rate.commits;
            same.aborts += rate.aborts;
        }
    }
}

/// How a summary lies to the window.
#[derive(PartialEq)]
enum Lies {
    Within,
    Across,
    Outside,
}

impl Reading {
    fn new(window: Window) -> Self {
        let journal = Journal::new(window, Limits::default());
        Self { window, journal, told: Told::default(), resume: None, fine: true, past: false, behind: 0 }
    }

    fn lies(&self, summary: &Indexed) -> Lies {
        let times = summary.transactions.as_ref().map(|ended| (ended.lowest, ended.highest));
        let times = times.map_or_else(
            || summary.clock.map(|time| (time, time)),
            |(low, high)| Some((low.min(summary.clock.unwrap_or(low)), high.max(summary.clock.unwrap_or(high)))),
        );
        let WalRange { from, to } = summary.records;
        let (mut within, mut outside) = (true, false);
        match (self.window.from, times) {
            (Some(Edge::Lsn(edge)), _) => (within, outside) = (within && from >= edge, outside || to <= edge),
            (Some(Edge::Time(edge)), Some((low, high))) => (within, outside) = (within && low >= edge, outside || high < edge),
            _ => {}
        }
        match (self.window.to, times) {
            (Some(Edge::Lsn(edge)), _) => (within, outside) = (within && to <= edge, outside || from >= edge),
            (Some(Edge::Time(edge)), Some((low, high))) => (within, outside) = (within && high <= edge, outside || low > edge),
            _ => {}
        }
        match (within, outside) {
            (_, true) => Lies::Outside,
            (true, false) => Lies::Within,
            (false, false) => Lies::Across,
        }
    }

    fn hole(&mut self, from: Lsn, to: Lsn) {
        self.resume = None;
        self.journal.hole(from, to);
        self.take_from_journal();
    }

    fn take_from_journal(&mut self) {
        let Summary { entries, moves, left_out, not_followed, minutes, checkpoints, clock } = self.journal.take();
        self.told.moves.extend(moves);
        clock.into_iter().for_each(|(lsn, time)| self.told.clock.add(lsn, time));
        self.told.add(entries, left_out, not_followed, &minutes, checkpoints);
    }

    fn finish(mut self) -> Summary {
        self.take_from_journal();
        let Told { mut entries, moves, left_out, not_followed, rates, checkpoints, clock } = self.told;
        entries.sort_by_key(|entry| entry.lsn);
        Summary { entries, moves, left_out, not_followed, minutes: rates.into_values().collect(), checkpoints, clock: clock.finish() }
    }
}

impl Visitor for Reading {
    fn drain(&mut self, decoder: &mut Decoder, mut bytes: &[u8]) -> Result<(), DecodeError> {
        while let Some(record) = decoder.next_record(&mut bytes)? {
            self.journal.record(&record);
        }
        Ok(())
    }

    fn goes_on(&mut self, _segments: u64) -> bool {
        self.past |= self.behind >= READ_BEHIND;
        self.behind += u64::from(self.journal.past_window());
        !self.past
    }
}

impl Guided for Reading {
    fn suffices(&self, summary: &Indexed, level: Option<Level>) -> bool {
        match self.lies(summary) {
            Lies::Outside => level.is_none() || summary.entries_left_out == 0,
            Lies::Within => level.is_none() || (!self.fine && summary.entries_left_out == 0),
            Lies::Across => false,
        }
    }

    fn pass(&mut self, summary: &Indexed) {
        if self.resume.is_none() {
            self.take_from_journal();
        }
        if self.lies(summary) == Lies::Within {
            let Indexed { entries, entries_left_out, not_followed, rates, checkpoints, .. } = summary;
            let wanted = entries.iter().filter(|entry| self.window.contains(entry.lsn, entry.time)).cloned();
            self.told.add(wanted, *entries_left_out, *not_followed, rates, *checkpoints);
        }
        if let Some(ended) = &summary.transactions {
            [ended.first, ended.last].iter().for_each(|ended| self.told.clock.add(ended.start, ended.time));
        }
        // Of all that was read: a name is carried along them from before the window.
        self.told.moves.extend(summary.moves.iter().copied());
        let bare = Indexed { entries: Vec::new(), moves: Vec::new(), rates: Vec::new(), ..summary.clone() };
        self.resume = Some(Box::new(bare));
    }

    fn is_done(&self) -> bool {
        self.past
    }

    fn begin(&mut self, at: Lsn, size: SegmentSize, least: Lsn) -> Decoder {
        match self.resume.take() {
            Some(last) if last.resume_from() >= least => {
                self.journal.resume(at, &last.mapped, &last.written);
                Decoder::new(last.resume_from(), size)
            }
            Some(_) => {
                self.journal.lose_track();
                Decoder::new(at, size)
            }
            None => Decoder::new(at, size),
        }
    }
}
