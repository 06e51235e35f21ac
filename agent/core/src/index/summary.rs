//! What the records say that end in a segment, or in a row of segments.

use serde::{Deserialize, Serialize};

use crate::catalog::WalRange;
use crate::event::{WalEvent, WalEventKind};
use crate::journal::{Entry, MappedCatalog, Minute, Move};
use crate::lsn::Lsn;
use crate::page::PAGE_SIZE;
use crate::segment::SegmentNumber;
use crate::target::{ReplayedTablespace, Transaction};
use crate::time::PgTimestamp;

/// The header of a segment's first page.
const LONG_HEADER: u64 = 40;
/// Entries that a summary of many segments keeps; who wants all reads the digests below.
const ENTRIES: usize = 2_000;

/// Segments in a row: `[first, end)`.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Run {
    /// The first.
    pub first: SegmentNumber,
    /// The first one after.
    pub end: SegmentNumber,
}

impl Run {
    /// Just this one.
    pub fn single(number: SegmentNumber) -> Self {
        Self { first: number, end: number.next() }
    }

    /// How many they are.
    pub fn count(&self) -> u64 {
        self.end.get().saturating_sub(self.first.get())
    }

    /// Whether this segment is one of them.
    pub fn contains(&self, number: SegmentNumber) -> bool {
        self.first <= number && number < self.end
    }
}

/// `wal_level` as a record tells it.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct WalLevelAt {
    /// Where the record begins.
    pub lsn: Lsn,
    /// Where it ends.
    pub end: Lsn,
    /// 0 minimal, 1 replica, 2 logical.
    pub level: u32,
}

/// The transactions that ended.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Transactions {
    /// How many committed.
    pub commits: u64,
    /// How many rolled back, having written something; subtransactions too.
    pub aborts: u64,
    /// The first to end.
    pub first: Transaction,
    /// The last to end.
    pub last: Transaction,
    /// The last to commit.
    pub last_commit: Option<Transaction>,
    /// The lowest time of one. Times are not in order.
    pub lowest: PgTimestamp,
    /// The highest time.
    pub highest: PgTimestamp,
    /// The oldest of their numbers, which are counted in a circle.
    pub oldest_xid: u32,
    /// The newest of them.
    pub newest_xid: u32,
}

impl Transactions {
    fn of(ended: Transaction) -> Self {
        Self {
            commits: u64::from(ended.committed),
            aborts: u64::from(!ended.committed),
            first: ended,
            last: ended,
            last_commit: ended.committed.then_some(ended),
            lowest: ended.time,
            highest: ended.time,
            oldest_xid: ended.xid,
            newest_xid: ended.xid,
        }
    }

    fn join(&mut self, later: &Self) {
        self.commits += later.commits;
        self.aborts += later.aborts;
        self.last = later.last;
        self.last_commit = later.last_commit.or(self.last_commit);
        self.lowest = self.lowest.min(later.lowest);
        self.highest = self.highest.max(later.highest);
        if precedes(later.oldest_xid, self.oldest_xid) {
            self.oldest_xid = later.oldest_xid;
        }
        if precedes(self.newest_xid, later.newest_xid) {
            self.newest_xid = later.newest_xid;
        }
    }

    /// Whether the transaction with this number may be among them.
    pub fn may_have(&self, xid: u32) -> bool {
        let span = self.newest_xid.wrapping_sub(self.oldest_xid);
        // In a row of very many segments numbers have gone round: then the span says nothing.
        let round = self.commits + self.aborts > u64::from(u32::MAX / 4);
        round || xid.wrapping_sub(self.oldest_xid) <= span
    }
}

/// PostgreSQL's `TransactionIdPrecedes`.
fn precedes(one: u32, other: u32) -> bool {
    (one.wrapping_sub(other) as i32) < 0
}

/// What the records say that end in a segment, or in a row of segments.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Summary {
    /// The segments that were read. More than one run: some between are not known here.
    pub segments: Vec<Run>,
    /// From where the first record that ends here begins, to where the last one ends: the position at which reading on begins.
    pub records: WalRange,
    /// How many records.
    pub count: u64,
    /// Transactions that ended.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub transactions: Option<Transactions>,
    /// The highest time of other records: restore points, promotions, checkpoints.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub clock: Option<PgTimestamp>,
    /// What happened, as `walkeep log` tells it.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub entries: Vec<Entry>,
    /// Relations that got other files.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub moves: Vec<Move>,
    /// Entries and moves that are not among them.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub entries_left_out: u64,
    /// Tablespaces outside the data directory that replay creates.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub tablespaces: Vec<ReplayedTablespace>,
    /// Where `wal_level` is first told, and where it is another than before.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub wal_levels: Vec<WalLevelAt>,
    /// Checkpoints.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub checkpoints: u64,
    /// How many transactions ended when; from the second level on by the hour, from the third by the day.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub rates: Vec<Minute>,
    /// Transactions that could not be followed since too many were open.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub not_followed: u64,
    /// Where the oldest transaction that was open at the end first touched a catalog or made a file: who goes on from here begins there.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub open_since: Option<Lsn>,
    /// The files of mapped catalogs at the end, as far as the WAL told them.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub mapped: Vec<MappedCatalog>,
    /// The transactions that were open at the end, and the bytes of WAL each had written.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub written: Vec<(u32, u64)>,
}

fn is_zero(number: &u64) -> bool {
    *number == 0
}

impl Summary {
    /// Of a segment in which, up to now, no record ended. Reading it began at `from`.
    pub fn empty(number: SegmentNumber, from: Lsn) -> Self {
        Self {
            segments: vec![Run::single(number)],
            records: WalRange { from, to: from },
            count: 0,
            transactions: None,
            clock: None,
            entries: Vec::new(),
            moves: Vec::new(),
            entries_left_out: 0,
            tablespaces: Vec::new(),
            wal_levels: Vec::new(),
            checkpoints: 0,
            rates: Vec::new(),
            not_followed: 0,
            open_since: None,
            mapped: Vec::new(),
            written: Vec::new(),
        }
    }

    /// The first segment and the first one after the last.
    pub fn span(&self) -> Run {
        let first = self.segments.first().map_or(SegmentNumber::new(0), |run| run.first);
        Run { first, end: self.segments.last().map_or(first, |run| run.end) }
    }

    /// Whether every segment of the span was read.
    pub fn is_whole(&self) -> bool {
        self.segments.len() == 1
    }

    /// Where whoever goes on behind it with a journal has to begin: see [`crate::journal::Journal::resume`].
    pub fn resume_from(&self) -> Lsn {
        self.open_since.map_or(self.records.to, |open| open.min(self.records.to))
    }

    /// Whether its first record is the one that comes next for whoever has read up to `at`. The header of a page may lie between, no more: who read
    /// up to a record that he has only the beginning of must find it here.
    pub fn follows(&self, at: Lsn) -> bool {
        let header = if at.get().is_multiple_of(PAGE_SIZE) { LONG_HEADER } else { 0 };
        at <= self.records.from && self.records.from.bytes_since(at) <= header
    }

    /// The highest time in it.
    pub fn highest_time(&self) -> Option<PgTimestamp> {
        self.transactions.as_ref().map(|ended| ended.highest).max(self.clock)
    }

    /// Takes the bounds of the next record.
    pub(crate) fn record(&mut self, start: Lsn, end: Lsn) {
        if self.count == 0 {
            self.records.from = start;
        }
        self.count += 1;
        self.records.to = end;
    }

    /// Takes what the record says that recovery can stop at, or that a plan has to know.
    pub(crate) fn event(&mut self, event: &WalEvent) {
        let (start, end) = (event.start, event.end);
        match &event.kind {
            WalEventKind::Commit { xid, time } => self.transaction(Transaction { xid: *xid, time: *time, start, end, committed: true }),
            WalEventKind::Abort { xid, time } => self.transaction(Transaction { xid: *xid, time: *time, start, end, committed: false }),
            WalEventKind::RestorePoint { time, .. } => self.time(Some(*time)),
            WalEventKind::EndOfRecovery { time, wal_level, .. } => {
                self.time(Some(*time));
                self.wal_level(event, *wal_level);
            }
            WalEventKind::Checkpoint { time, wal_level, .. } => {
                self.time(*time);
                self.wal_level(event, *wal_level);
            }
            WalEventKind::ParameterChange { wal_level } | WalEventKind::CheckpointRedo { wal_level } => {
                self.wal_level(event, Some(*wal_level));
            }
            WalEventKind::TablespaceCreated { oid, location } if !location.is_empty() => {
                self.tablespaces.push(ReplayedTablespace { oid: *oid, location: location.clone(), lsn: start });
            }
            _ => {}
        }
    }

    fn transaction(&mut self, ended: Transaction) {
        let one = Transactions::of(ended);
        match &mut self.transactions {
            Some(all) => all.join(&one),
            None => self.transactions = Some(one),
        }
    }

    fn time(&mut self, time: Option<PgTimestamp>) {
        self.clock = self.clock.max(time);
    }

    fn wal_level(&mut self, event: &WalEvent, level: Option<u32>) {
        if let Some(level) = level {
            self.add_wal_level(WalLevelAt { lsn: event.start, end: event.end, level });
        }
    }

    fn add_wal_level(&mut self, at: WalLevelAt) {
        if self.wal_levels.last().is_none_or(|last| last.level != at.level) {
            self.wal_levels.push(at);
        }
    }

    /// Takes in what follows. `bucket` is the width of a rate's time, in microseconds.
    pub(super) fn join(&mut self, later: &Self, bucket: i64) {
        // Two that were read apart: the record between them is in neither.
        let connected = later.follows(self.records.to);
        for run in &later.segments {
            match self.segments.last_mut() {
                Some(last) if last.end == run.first && connected => last.end = run.end,
                _ => self.segments.push(*run),
            }
        }
        self.records = match (self.count, later.count) {
            (0, 1..) => later.records,
            _ => WalRange { from: self.records.from, to: later.records.to },
        };
        self.count += later.count;
        match (&mut self.transactions, &later.transactions) {
            (Some(all), Some(later)) => all.join(later),
            (none, later) => *none = none.take().or_else(|| later.clone()),
        }
        self.clock = self.clock.max(later.clock);
        let room = ENTRIES.saturating_sub(self.entries.len());
        self.entries.extend(later.entries.iter().take(room).cloned());
        self.entries_left_out += later.entries_left_out + later.entries.len().saturating_sub(room) as u64;
        let room = ENTRIES.saturating_sub(self.moves.len());
        self.moves.extend(later.moves.iter().take(room));
        self.entries_left_out += later.moves.len().saturating_sub(room) as u64;
        self.tablespaces.extend(later.tablespaces.iter().cloned());
        later.wal_levels.iter().for_each(|at| self.add_wal_level(*at));
        self.checkpoints += later.checkpoints;
        later.rates.iter().for_each(|rate| add_rate(&mut self.rates, rate, bucket));
        self.not_followed += later.not_followed;
        self.open_since = later.open_since;
        self.mapped.clone_from(&later.mapped);
        self.written.clone_from(&later.written);
    }
}

/// Adds to the times of that width. They come nearly in order: a clock that was set back is looked for from behind.
fn add_rate(rates: &mut Vec<Minute>, rate: &Minute, bucket: i64) {
    let start = PgTimestamp::from_micros(rate.minute.micros().div_euclid(bucket) * bucket);
    let at = rates.partition_point(|other| other.minute < start);
    match rates.get_mut(at) {
        Some(same) if same.minute == start => {
            same.commits += rate.commits;
            same.aborts += rate.aborts;
        }
        _ => rates.insert(at, Minute { minute: start, ..*rate }),
    }
}
