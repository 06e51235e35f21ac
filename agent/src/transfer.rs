//! How far a backup or restore is, for whoever watches: a progress bar, a log line.
//!
//! Jobs tell; what becomes of it is the caller's. Nothing is decided on it.

use std::time::{Duration, Instant};

/// What a job is doing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stage {
    /// Connecting, checking, waiting for the server's checkpoint.
    Starting,
    /// Moving files.
    Copying,
    /// Waiting until the WAL that belongs to a backup is in the repository.
    WaitingForWal,
    /// Making everything durable and valid.
    Finishing,
}

/// A job's state at one moment.
#[derive(Debug, Clone)]
pub struct Transfer {
    /// What it is doing.
    pub stage: Stage,
    /// Bytes of files moved.
    pub done: u64,
    /// How many there will be; a server's estimate is often a little wrong.
    pub total: Option<u64>,
    /// Files moved.
    pub files: u64,
    /// Time since the beginning.
    pub elapsed: Duration,
    /// Time since files began to move.
    pub moving: Duration,
}

impl Transfer {
    /// Bytes a second since files began to move.
    pub fn rate(&self) -> u64 {
        let seconds = self.moving.as_secs_f64();
        if seconds > 0.0 { (self.done as f64 / seconds) as u64 } else { 0 }
    }
}

/// Who watches.
pub type Watch<'w> = dyn Fn(&Transfer) + Send + Sync + 'w;

/// Tells a watcher, several times a second at most.
pub(crate) struct Meter<'w> {
    watch: &'w Watch<'w>,
    state: Transfer,
    began: Instant,
    moving_since: Option<Instant>,
    told: Option<Instant>,
}

const INTERVAL: Duration = Duration::from_millis(100);

impl<'w> Meter<'w> {
    pub fn new(watch: &'w Watch<'w>) -> Self {
        let state = Transfer { stage: Stage::Starting, done: 0, total: None, files: 0, elapsed: Duration::ZERO, moving: Duration::ZERO };
        let mut meter = Self { watch, state, began: Instant::now(), moving_since: None, told: None };
        meter.tell();
        meter
    }

    pub fn stage(&mut self, stage: Stage, total: Option<u64>) {
        // What moved until now counts whole, however short it was.
        self.note_time();
        self.state.stage = stage;
        self.state.total = total.or(self.state.total);
        if stage == Stage::Copying {
            self.moving_since = Some(Instant::now());
        }
        self.tell();
    }

    pub fn bytes(&mut self, bytes: u64) {
        self.state.done += bytes;
        if self.told.is_none_or(|told| told.elapsed() >= INTERVAL) {
            self.tell();
        }
    }

    pub fn file(&mut self) {
        self.state.files += 1;
    }

    pub fn elapsed(&self) -> Duration {
        self.began.elapsed()
    }

    /// The time for which files moved.
    pub fn moving(&self) -> Duration {
        self.state.moving
    }

    fn note_time(&mut self) {
        self.state.elapsed = self.began.elapsed();
        if self.state.stage == Stage::Copying {
            self.state.moving = self.moving_since.map_or(Duration::ZERO, |since| since.elapsed());
        }
    }

    fn tell(&mut self) {
        self.note_time();
        self.told = Some(Instant::now());
        (self.watch)(&self.state);
    }
}

/// Nobody watches.
pub fn unwatched(_: &Transfer) {}
