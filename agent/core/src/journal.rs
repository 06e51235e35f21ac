//! What the WAL says happened when: fed with records, it makes the entries of `walkeep log`.
//!
//! It looks no further than the records: names of tables are not in them (relations are told by the numbers of their files), and nothing
//! is stored. Records come in LSN order along a timeline path. Of transactions that are open it keeps notes, bounded; what the bounds left
//! out is told. The [index](crate::index) keeps what it told of each segment, and what a journal that goes on behind has to know.

mod clock;
mod entry;
mod notes;
pub mod rate;
mod removal;
#[cfg(test)]
mod tests;

use std::borrow::Cow;
use std::collections::BTreeMap;

use crate::lsn::Lsn;
use crate::record::{Content, Record, TransactionEnd};
use crate::time::PgTimestamp;

pub use entry::{DroppedFile, Edge, Entry, Happening, Move, RelationFile, Window};
pub use rate::Minute;

pub use clock::Clock;
pub use notes::MappedCatalog;

use notes::Notes;

/// How much is kept, and from when on a transaction is big.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Limits {
    /// WAL of a transaction from which on it is an entry.
    pub big_transaction: u64,
    /// Open transactions and what they did to catalogs: notes in all.
    pub notes: usize,
    /// Entries and files named in them.
    pub entries: usize,
}

impl Default for Limits {
    /// Some 100 MB at the very most.
    fn default() -> Self {
        Self { big_transaction: 16 << 20, notes: 1_000_000, entries: 200_000 }
    }
}

/// Makes entries out of records.
#[derive(Debug)]
pub struct Journal {
    window: Window,
    limits: Limits,
    notes: Notes,
    entries: Vec<Entry>,
    moves: Vec<Move>,
    /// Entries and files named in them.
    named: usize,
    left_out: u64,
    minutes: BTreeMap<i64, Minute>,
    checkpoints: u64,
    wal_level: Option<u32>,
    last_time: Option<PgTimestamp>,
    clock: Clock,
    past_window: bool,
    /// Up to here others have told.
    told: Lsn,
    /// Whether the record at hand lies before that.
    silent: bool,
}

/// What a journal holds in the end.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Summary {
    /// What happened, in LSN order.
    pub entries: Vec<Entry>,
    /// Relations that got other files, in LSN order, in all that was read: they carry a relation's name from one number to the next. Bounded
    /// as notes are.
    pub moves: Vec<Move>,
    /// Entries for which there was no room.
    pub left_out: u64,
    /// Transactions that were not followed since too many were open: what they removed is unclear.
    pub not_followed: u64,
    /// Minutes of the server's clock in which transactions ended.
    pub minutes: Vec<Minute>,
    /// Checkpoints, those at shutdown too.
    pub checkpoints: u64,
    /// Some ends of transactions, spread over all that was read, the first and the last among them: what the server's clock said where.
    pub clock: Vec<(Lsn, PgTimestamp)>,
}

impl Journal {
    /// A journal that keeps what happened within `window`.
    pub fn new(window: Window, limits: Limits) -> Self {
        Self {
            window,
            limits,
            notes: Notes::new(limits.notes),
            entries: Vec::new(),
            moves: Vec::new(),
            named: 0,
            left_out: 0,
            minutes: BTreeMap::new(),
            checkpoints: 0,
            wal_level: None,
            last_time: None,
            clock: Clock::default(),
            past_window: false,
            told: Lsn::ZERO,
            silent: false,
        }
    }

    /// Takes the next record.
    pub fn record(&mut self, record: &Record<'_>) {
        self.silent = record.end <= self.told;
        self.notes.record(record, self.silent);
        self.past_window |= matches!(self.window.to, Some(Edge::Lsn(to)) if record.start >= to);
        match record.content() {
            Content::Commit(end) => self.end(record, &end, true),
            Content::Abort(end) => self.end(record, &end, false),
            Content::Prepare(prepare) => self.notes.prepared(prepare.xid, prepare.subtransactions.iter()),
            Content::RestorePoint(point) => {
                let name = String::from_utf8_lossy(point.name).into_owned();
                self.add(record, Some(point.time), None, Happening::RestorePoint { name });
            }
            Content::Checkpoint(point) => {
                let time = PgTimestamp::from_unix_seconds(point.unix_time);
                self.checkpoints += u64::from(self.counts(record.start, time));
                if let Some(level) = point.wal_level {
                    self.wal_level = Some(level);
                }
                self.notes.checkpoint(point.next_xid as u32, point.shutdown);
                if point.timeline != point.previous_timeline {
                    self.add(record, time, None, Happening::TimelineSwitch { from: point.previous_timeline, to: point.timeline });
                } else if point.shutdown {
                    self.add(record, time, None, Happening::ShutdownCheckpoint);
                }
            }
            Content::EndOfRecovery(end) => {
                self.notes.server_ended();
                self.add(record, Some(end.time), None, Happening::TimelineSwitch { from: end.previous_timeline, to: end.timeline });
            }
            Content::ParameterChange { wal_level } => {
                let from = self.wal_level.replace(wal_level);
                if from != Some(wal_level) {
                    self.add(record, self.last_time, None, Happening::WalLevel { from: from.map(level), to: level(wal_level) });
                }
            }
            Content::CheckpointRedo { wal_level } => self.wal_level = Some(wal_level),
            _ => {}
        }
    }

    /// WAL from `from` to `to` is missing: what was open there cannot be followed.
    pub fn hole(&mut self, from: Lsn, to: Lsn) {
        self.silent = false;
        self.lose_track();
        self.push(Entry { lsn: from, end: to, time: self.last_time, xid: None, what: Happening::Hole });
    }

    /// Whether a position or a commit behind the window was seen. Clocks are set back: within the window may come more.
    pub fn past_window(&self) -> bool {
        self.past_window
    }

    /// What happened.
    pub fn finish(mut self) -> Summary {
        self.take()
    }

    /// What happened since this was asked last. What is known of open transactions stays.
    pub fn take(&mut self) -> Summary {
        let mut entries = std::mem::take(&mut self.entries);
        // A database's removal is told with its transaction's end, which comes later.
        entries.sort_by_key(|entry| entry.lsn);
        self.named = 0;
        let minutes = std::mem::take(&mut self.minutes).into_values().collect();
        let (left_out, checkpoints) = (std::mem::take(&mut self.left_out), std::mem::take(&mut self.checkpoints));
        let (clock, moves) = (std::mem::take(&mut self.clock).finish(), std::mem::take(&mut self.moves));
        Summary { entries, moves, left_out, not_followed: self.notes.take_not_followed(), minutes, checkpoints, clock }
    }

    /// Begins where no open transaction has touched a catalog or made a file yet ([`Journal::open_since`] of whoever read before): so each is known
    /// from its beginning, as far as it matters. What ended before `told` is taken note of and no more; `mapped` and `written` are what
    /// [`Journal::mapped`] and [`Journal::written`] said there.
    pub fn resume(&mut self, told: Lsn, mapped: &[MappedCatalog], written: &[(u32, u64)]) {
        self.lose_track();
        self.notes.resume(mapped, written);
        self.told = told;
    }

    /// How much WAL each open transaction has written, in bytes.
    pub fn written(&self) -> Vec<(u32, u64)> {
        self.notes.written()
    }

    /// The files of mapped catalogs, as far as the WAL told them.
    pub fn mapped(&self) -> Vec<MappedCatalog> {
        self.notes.mapped()
    }

    /// Where the oldest open transaction that may have removed something first touched a catalog, or made a file.
    pub fn open_since(&self) -> Option<Lsn> {
        self.notes.open_since()
    }

    /// What comes next does not follow what came before: what was open cannot be followed.
    pub fn lose_track(&mut self) {
        self.notes.forget();
        self.wal_level = None;
    }

    fn end(&mut self, record: &Record<'_>, end: &TransactionEnd<'_>, committed: bool) {
        self.last_time = Some(end.time);
        if !self.silent {
            self.clock.add(record.start, end.time);
        }
        self.past_window |= matches!(self.window.to, Some(Edge::Time(to)) if end.time > to);
        let note = self.notes.end(end.xid, end.subtransactions.iter());
        let (xid, time) = (Some(end.xid), Some(end.time));
        // An aborted subtransaction has a record of its own; which it is, is not told.
        if self.counts(record.start, time) {
            let start = end.time.micros().div_euclid(60_000_000);
            Minute::count(self.minutes.entry(start), start, committed);
        }
        for (start, end, what) in note.databases(committed) {
            self.push(Entry { lsn: start, end, time, xid, what });
        }
        if committed && !end.dropped_files.is_empty() {
            let removed: Vec<_> = end.dropped_files.iter().collect();
            let room = self.limits.notes.saturating_sub(self.moves.len());
            let room = if self.silent { 0 } else { room };
            let moved = removal::moves(&note, &removed).into_iter().take(room);
            self.moves.extend(moved.map(|(old, new)| Move { lsn: record.start, old: old.into(), new: new.into() }));
            if let Some(what) = removal::judge(&note, &removed) {
                self.add(record, time, xid, what);
            }
        }
        if note.wal_bytes >= self.limits.big_transaction {
            let subtransactions = end.subtransactions.len() as u64;
            self.add(record, time, xid, Happening::BigTransaction { wal_bytes: note.wal_bytes, subtransactions, committed });
        }
    }

    fn counts(&self, lsn: Lsn, time: Option<PgTimestamp>) -> bool {
        !self.silent && self.window.contains(lsn, time)
    }

    fn add(&mut self, record: &Record<'_>, time: Option<PgTimestamp>, xid: Option<u32>, what: Happening) {
        self.push(Entry { lsn: record.start, end: record.end, time, xid, what });
    }

    fn push(&mut self, entry: Entry) {
        self.last_time = entry.time.or(self.last_time);
        if !self.counts(entry.lsn, entry.time) {
            return;
        }
        let named = 1 + entry.what.files();
        if self.named + named > self.limits.entries {
            self.left_out += 1;
            return;
        }
        self.named += named;
        self.entries.push(entry);
    }
}

fn level(number: u32) -> Cow<'static, str> {
    Cow::Borrowed(["minimal", "replica", "logical"].get(number as usize).copied().unwrap_or("unknown"))
}
