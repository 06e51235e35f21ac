//! One of several places: its store, how it is, what it still lacks.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime};

use tokio::time::Instant;

use super::health::{Health, May};
use super::is_no_answer;
use super::queue::Queue;
use crate::{Error, ErrorKind, Key, Result, SharedStore};

/// Times between two lines of the log about reading from another place.
const TELL_AGAIN: Duration = Duration::from_secs(10);
/// A small object that every place has: by it is tried whether one answers again. That it is not there is an answer too.
const SMALL: &str = "walkeep.json";
/// So long that is waited for.
const TRY: Duration = Duration::from_secs(10);
/// And so long where another place can be asked as well.
const AT_ONCE: Duration = Duration::from_millis(1500);
/// Who gives up earlier has not waited for an answer.
const HASTE: Duration = Duration::from_secs(2);

/// A place.
#[derive(Debug)]
pub struct Place {
    pub store: SharedStore,
    pub url: String,
    pub queue: Queue,
    pub counts: Counts,
    /// Whether something did not get here, and nobody of this process will bring it.
    pub left_behind: AtomicBool,
    health: Mutex<Health>,
    told: Mutex<Option<Instant>>,
}

/// What happened at a place so far.
#[derive(Debug, Default)]
pub struct Counts {
    pub carried_objects: AtomicU64,
    pub carried_bytes: AtomicU64,
    pub differing: AtomicU64,
    pub missing: AtomicU64,
    pub unreachable: AtomicU64,
    pub damaged: AtomicU64,
}

/// Why another place was read from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reason {
    /// The place does not have the object.
    Missing,
    /// It could not be asked.
    Unreachable,
    /// What it has is not what was stored.
    Damaged,
}

/// Reads that another place had to answer, by what was wrong at this one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Fallbacks {
    /// It did not have the object.
    pub missing: u64,
    /// It could not be asked.
    pub unreachable: u64,
    /// What it has is not what was stored.
    pub damaged: u64,
}

/// How a place is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PlaceState {
    /// Where it is.
    pub url: String,
    /// Why it is passed over, and for how long it has not answered.
    pub down: Option<(String, Duration)>,
    /// Objects that it lacks, as far as is known without a comparison.
    pub queued: usize,
    /// So many of them wait for another place, or for a comparison.
    pub aside: usize,
    /// And so many no other place can give whole: damaged there, or archived.
    pub stuck: usize,
    /// When the oldest of all of them was put elsewhere.
    pub behind_since: Option<SystemTime>,
    /// The same of those that can still be brought.
    pub waits_since: Option<SystemTime>,
    /// Objects that were brought to it.
    pub carried_objects: u64,
    /// Their bytes.
    pub carried_bytes: u64,
    /// Objects that it has with other bytes than another place.
    pub differing: u64,
    /// Reads that another place had to answer.
    pub fallbacks: Fallbacks,
    /// Whether it lacks nothing but what is queued, as comparisons found.
    pub compared: bool,
}

/// Somebody waits for an answer. That a place never gives one shows when the caller gives up: a deadline above, or another place that was faster.
struct Waiting<'a> {
    place: &'a Place,
    began: Instant,
    answered: bool,
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        let waited = self.began.elapsed();
        if !self.answered && waited >= HASTE {
            let news = self.place.health().given_up(waited, Instant::now());
            if news {
                tracing::warn!(
                    repository = self.place.url,
                    waited_s = waited.as_secs(),
                    "the repository does not answer: the others are used meanwhile"
                );
            }
        }
    }
}

impl Place {
    pub fn new(store: SharedStore) -> Self {
        let url = store.url();
        Self {
            store,
            url,
            queue: Queue::default(),
            counts: Counts::default(),
            left_behind: AtomicBool::new(false),
            health: Mutex::default(),
            told: Mutex::default(),
        }
    }

    /// Asks it, unless it failed a moment ago.
    pub async fn ask<T>(&self, call: impl Future<Output = Result<T>>) -> Result<T> {
        self.may_ask().await?;
        self.insist(call).await
    }

    /// The same for as long as it takes at most; what takes longer counts as no answer.
    pub async fn ask_within<T>(&self, patience: Duration, call: impl Future<Output = Result<T>>) -> Result<T> {
        self.may_ask().await?;
        let waited = || Error::at(ErrorKind::Transient, "ask", &self.url).because(format!("no answer within {patience:?}"));
        self.insist(async { tokio::time::timeout(patience, call).await.unwrap_or_else(|_| Err(waited())) }).await
    }

    /// Asks it, whatever happened before.
    pub async fn insist<T>(&self, call: impl Future<Output = Result<T>>) -> Result<T> {
        let began = Instant::now();
        let mut waiting = Waiting { place: self, began, answered: false };
        let outcome = call.await;
        waiting.answered = true;
        match &outcome {
            Err(error) if error.kind() == ErrorKind::Cancelled => {}
            // It takes nothing more, but tells what it has.
            Err(error) if error.kind() == ErrorKind::Full => {}
            Err(error) if is_no_answer(error) => self.failed(error, began.elapsed()),
            _ => self.answered(),
        }
        outcome
    }

    /// Whether it answers something small at once. For who waits for it for long already.
    pub async fn answers_at_once(&self) -> bool {
        let Ok(small) = SMALL.parse() else { return true };
        let answers = match tokio::time::timeout(AT_ONCE, self.store.get(&small, Some(0..1))).await {
            Ok(Ok(_)) => true,
            Ok(Err(error)) => !is_no_answer(&error),
            Err(_) => false,
        };
        if !answers {
            self.health().suspect();
        }
        answers
    }

    /// A removal, which may be denied on purpose.
    pub async fn removing<T>(&self, call: impl Future<Output = Result<T>>) -> Result<T> {
        self.may_ask().await?;
        let began = Instant::now();
        let outcome = call.await;
        match &outcome {
            Err(error) if error.kind().is_transient() || error.kind() == ErrorKind::Unusable => self.failed(error, began.elapsed()),
            Ok(_) => self.answered(),
            Err(_) => {}
        }
        outcome
    }

    /// Asks about a lock, or for one: that may be denied, or not be known there, and says nothing of the place.
    pub async fn ask_of_lock<T>(&self, call: impl Future<Output = Result<T>>) -> Result<T> {
        self.may_ask().await?;
        let began = Instant::now();
        let mut waiting = Waiting { place: self, began, answered: false };
        let outcome = call.await;
        waiting.answered = true;
        match &outcome {
            Err(error) if error.kind() == ErrorKind::Transient => self.failed(error, began.elapsed()),
            Ok(_) => self.answered(),
            Err(_) => {}
        }
        outcome
    }

    /// Fails if it is passed over, or does not answer again.
    async fn may_ask(&self) -> Result<()> {
        let may = self.health().may_ask(Instant::now());
        match may.map_err(|reason| Error::at(ErrorKind::Transient, "ask", &self.url).because(reason))? {
            May::Ask => Ok(()),
            // By something small: whoever has a large object to read, or a slow line, is not cut off in the middle.
            May::Try => {
                let Ok(small) = SMALL.parse() else { return Ok(()) };
                let call = tokio::time::timeout(TRY, self.store.get(&small, Some(0..1)));
                let none = || Error::at(ErrorKind::Transient, "ask", &self.url).because(format!("no answer within {TRY:?}"));
                match self.insist(async { call.await.unwrap_or_else(|_| Err(none())) }).await {
                    Err(error) if is_no_answer(&error) || error.kind() == ErrorKind::Cancelled => Err(error),
                    _ => Ok(()),
                }
            }
        }
    }

    fn answered(&self) {
        if self.health().answered() {
            tracing::info!(repository = self.url, "the repository answers again");
        }
    }

    fn failed(&self, error: &Error, waited: Duration) {
        let reason = format!("{error:#}");
        if self.health().failed(reason.clone(), waited, Instant::now()) {
            tracing::warn!(repository = self.url, reason, "the repository does not answer: the others are used meanwhile");
        }
    }

    pub fn pass_over(&self, reason: String, how_long: Duration) {
        self.health().pass_over(reason, how_long, Instant::now());
    }

    /// The error with the place's name.
    pub fn name_it(&self, error: Error, action: &'static str, place: &str) -> Error {
        let named = Error::at(error.kind(), action, place);
        let named = if error.is_in_doubt() { named.in_doubt() } else { named };
        named.because(format!("{}: {error:#}", self.url))
    }

    /// Another place had to answer for this one.
    pub fn fell_back(&self, reason: Reason, to: &Self, place: &str) {
        let (count, word) = match reason {
            Reason::Missing => (&self.counts.missing, "does not have it"),
            Reason::Unreachable => (&self.counts.unreachable, "could not be asked"),
            Reason::Damaged => (&self.counts.damaged, "has it damaged"),
        };
        count.fetch_add(1, Ordering::Relaxed);
        let mut told = self.told.lock().unwrap_or_else(PoisonError::into_inner);
        let again = told.is_none_or(|told| told.elapsed() >= TELL_AGAIN);
        if again || reason == Reason::Damaged {
            *told = Some(Instant::now());
            tracing::warn!(object = place, repository = self.url, from = to.url, "read from another repository: this one {word}");
        } else {
            tracing::debug!(object = place, repository = self.url, from = to.url, "read from another repository: this one {word}");
        }
    }

    /// It has other bytes under this key than another place. Nothing is overwritten.
    pub fn differs(&self, key: &Key) {
        self.counts.differing.fetch_add(1, Ordering::Relaxed);
        tracing::error!(
            object = key.as_str(),
            repository = self.url,
            "this repository has other bytes under this name than another one; nothing was overwritten, and the first that is whole is read"
        );
    }

    /// But for what comparisons found.
    /// Whether it answered when it was asked last.
    pub fn answers(&self) -> bool {
        self.health().down(Instant::now()).is_none()
    }

    pub fn state(&self) -> PlaceState {
        let count = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        let Counts { carried_objects, carried_bytes, differing, missing, unreachable, damaged } = &self.counts;
        PlaceState {
            url: self.url.clone(),
            down: self.health().down(Instant::now()),
            queued: self.queue.depth(),
            aside: self.queue.aside(),
            stuck: self.queue.stuck(),
            behind_since: self.queue.oldest(),
            waits_since: self.queue.oldest_on_its_way(),
            carried_objects: count(carried_objects),
            carried_bytes: count(carried_bytes),
            differing: count(differing),
            fallbacks: Fallbacks { missing: count(missing), unreachable: count(unreachable), damaged: count(damaged) },
            compared: false,
        }
    }

    fn health(&self) -> MutexGuard<'_, Health> {
        self.health.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
