//! Reads ahead for a server that replays one segment after the other.
//!
//! What is read ahead of a recovery waits where it is wanted ([`super::content`]). The price is bounded by a budget, and is paid only while somebody replays. Only
//! finished segments are kept, proven, each under its name, which has the timeline in it; and a name has one content for ever. So what is kept cannot grow
//! stale, nor hide a timeline switch. A recovery that has come to its target does not say so: what it has not asked for after [`IDLE`] is freed.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Duration;

use tokio::sync::{OwnedSemaphorePermit, Semaphore, oneshot};
use tokio::time::Instant;
use tokio_util::sync::{CancellationToken, DropGuard};
use tokio_util::task::TaskTracker;
use tracing::Instrument;
use walkeep_core::{SegmentName, WalFileName};

use super::content::Content;
use super::find::Finder;

/// Without a request for so long nobody replays any more. A server that waits for WAL asks every 5 seconds (wal_retrieve_retry_interval), one that replays
/// needs seconds for a segment.
const IDLE: Duration = Duration::from_secs(60);

/// How much to read ahead.
#[derive(Debug, Clone, Copy)]
pub struct PrefetchConfig {
    /// Segments at most; 0: never read ahead.
    pub depth: usize,
    /// Bytes of segments at most, those being read included. The one that is being put in place and compressed bytes on their way come on top.
    pub budget: u64,
    /// Segments read at the same time.
    pub parallel: usize,
}

impl PrefetchConfig {
    /// For one file only.
    pub const NONE: PrefetchConfig = PrefetchConfig { depth: 0, budget: 0, parallel: 1 };
}

impl Default for PrefetchConfig {
    fn default() -> Self {
        // While each core opens one, one more is on its way. More of them come no sooner, and the one that is waited for comes later.
        let parallel = std::thread::available_parallelism().map_or(3, |cores| cores.get() + 1).min(4);
        Self { depth: 8, budget: 256 << 20, parallel }
    }
}

/// The read-ahead of one cluster.
#[derive(Debug)]
pub struct Prefetch {
    finder: Arc<Finder>,
    /// Segments that may be kept or under way.
    pub(super) slots: usize,
    /// One permit a slot: it travels with the content, so that what nobody looks at any more counts until it is freed.
    room: Arc<Semaphore>,
    turns: Arc<Semaphore>,
    state: Arc<Mutex<State>>,
    pub(super) tasks: TaskTracker,
    cancel: CancellationToken,
}

/// Where the reader is, and what lies ready for it.
#[derive(Debug, Default)]
struct State {
    last: Option<SegmentName>,
    /// How far to read ahead of it: more with each segment in a row, for whoever waits for the next one should not share the way with eight.
    reach: usize,
    ahead: BTreeMap<SegmentName, Entry>,
    /// The first segment that was not there when it was looked for; nothing at or after it is read ahead until the reader has it.
    end: Option<SegmentName>,
    /// When the reader asked last; `None`: nobody watches, as there is nothing to free.
    asked: Option<Instant>,
}

impl State {
    /// Frees what was read ahead.
    fn forget(&mut self) {
        *self = Self { asked: self.asked, ..Self::default() };
    }
}

/// A segment that is read ahead or ready. Dropped, its reading stops and its bytes are freed.
#[derive(Debug)]
pub struct Entry {
    content: oneshot::Receiver<Ready>,
    _stop: DropGuard,
}

/// A segment that was read ahead, proven.
#[derive(Debug)]
pub struct Ready {
    /// What it holds.
    pub content: Content,
    _room: OwnedSemaphorePermit,
}

impl Entry {
    /// Waits for the segment; `None` if it could not be read ahead, or not within `time`: then the caller tries for itself.
    pub async fn content(self, time: Duration) -> Option<Ready> {
        tokio::time::timeout(time, self.content).await.ok()?.ok()
    }
}

impl Prefetch {
    /// Reads ahead through `finder` until `cancel`.
    pub fn new(finder: Arc<Finder>, config: PrefetchConfig, cancel: CancellationToken) -> Self {
        let fitting = config.budget / finder.identity().segment_size.bytes();
        let slots = usize::try_from(fitting).unwrap_or(usize::MAX).min(config.depth).min(Semaphore::MAX_PERMITS);
        Self {
            finder,
            slots,
            room: Arc::new(Semaphore::new(slots)),
            turns: Arc::new(Semaphore::new(config.parallel.clamp(1, Semaphore::MAX_PERMITS))),
            state: Arc::default(),
            tasks: TaskTracker::new(),
            cancel,
        }
    }

    /// The reader asks for `segment`: answers what was read ahead of it, and forgets what it passed over.
    pub fn claim(&self, segment: SegmentName) -> Option<Entry> {
        let mut state = lock(&self.state);
        state.asked = state.asked.and(Some(Instant::now()));
        let entry = state.ahead.remove(&segment);
        let goes_on = entry.is_some() || state.last.is_some_and(|last| last == segment || self.next(last) == Some(segment));
        if goes_on {
            state.ahead.retain(|name, _| *name > segment);
        } else {
            state.forget();
        }
        entry
    }

    /// The reader was given `segment`, finished. Those that follow are read ahead, into `folder` if a recovery asks from there; it goes on for sure. Of anyone else
    /// only the second in a row tells a direction.
    pub fn served(&self, segment: SegmentName, folder: Option<&Path>) {
        let mut state = lock(&self.state);
        let in_a_row = state.last.and_then(|last| self.next(last)) == Some(segment);
        let again = state.last == Some(segment);
        state.last = Some(segment);
        state.reach = match state.reach {
            reach if in_a_row => (reach * 2).max(1),
            reach if again => reach,
            _ => 2 * usize::from(folder.is_some()),
        }
        .min(self.slots);
        if state.end.is_some_and(|end| end <= segment) {
            state.end = None;
        }
        let mut name = segment;
        for _ in 0..state.reach {
            let Some(next) = self.next(name).filter(|next| state.end.is_none_or(|end| *next < end)) else { return };
            name = next;
            if state.ahead.contains_key(&name) {
                continue;
            }
            let Ok(room) = Arc::clone(&self.room).try_acquire_owned() else { return };
            state.ahead.insert(name, self.begin(name, room, folder.map(Path::to_owned)));
            if state.asked.replace(Instant::now()).is_none() {
                tokio::spawn(free_when_idle(Arc::downgrade(&self.state), self.cancel.clone()));
            }
        }
    }

    /// Bytes that are kept or under way.
    pub fn bytes(&self) -> u64 {
        (self.slots - self.room.available_permits()) as u64 * self.finder.identity().segment_size.bytes()
    }

    /// Ends all reading.
    pub async fn close(&self) {
        self.cancel.cancel();
        *lock(&self.state) = State::default();
        self.tasks.close();
        self.tasks.wait().await;
    }

    fn next(&self, segment: SegmentName) -> Option<SegmentName> {
        let size = self.finder.identity().segment_size;
        Some(segment.number(size)?.next().name(segment.timeline(), size))
    }

    fn begin(&self, segment: SegmentName, room: OwnedSemaphorePermit, folder: Option<PathBuf>) -> Entry {
        let (sender, content) = oneshot::channel();
        let stop = self.cancel.child_token();
        let (finder, turns, state) = (Arc::clone(&self.finder), Arc::clone(&self.turns), Arc::clone(&self.state));
        let stopped = stop.clone();
        let reading = async move {
            let read = async {
                let Ok(_turn) = turns.acquire().await else { return };
                match finder.whole(WalFileName::Segment(segment), folder).await {
                    // If nobody waits for it any more, it is freed.
                    Ok(Some(content)) => drop(sender.send(Ready { content, _room: room })),
                    Ok(None) => ends_at(&state, segment, &stopped),
                    Err(error) => tracing::debug!(%segment, %error, "could not read ahead; the request will try for itself"),
                }
            };
            tokio::select! {
                () = stopped.cancelled() => {}
                () = read => {}
            }
        };
        self.tasks.spawn(reading.in_current_span());
        Entry { content, _stop: stop.drop_guard() }
    }
}

/// Waits until nobody has asked for [`IDLE`], or there is nobody any more.
async fn free_when_idle(state: Weak<Mutex<State>>, cancel: CancellationToken) {
    let mut until = Instant::now() + IDLE;
    loop {
        tokio::select! {
            () = cancel.cancelled() => return,
            () = tokio::time::sleep_until(until) => {}
        }
        let Some(state) = state.upgrade() else { return };
        let mut state = lock(&state);
        match state.asked {
            Some(asked) if asked + IDLE > Instant::now() => until = asked + IDLE,
            _ => {
                *state = State::default();
                return;
            }
        }
    }
}

/// `segment` is not there, or not finished: what follows is not worth a try.
fn ends_at(state: &Mutex<State>, segment: SegmentName, stopped: &CancellationToken) {
    let mut state = lock(state);
    // Entries are dropped under this lock: one that was not is of the reader as it is now.
    if !stopped.is_cancelled() {
        state.end = Some(state.end.map_or(segment, |end| end.min(segment)));
        state.ahead.retain(|name, _| *name < segment);
    }
}

fn lock(state: &Mutex<State>) -> MutexGuard<'_, State> {
    // Nothing in it can be half changed.
    state.lock().unwrap_or_else(PoisonError::into_inner)
}
