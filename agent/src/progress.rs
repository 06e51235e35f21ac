//! How far the stream is: what the jobs note and what metrics, status and the log read.
//!
//! Three watermarks, each never ahead of the one before: received, spooled (fsynced here, unless it is durable already), durable (in the
//! repository).

use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use walkeep_core::{Lsn, TimelineId};

/// What the stream is doing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Phase {
    /// Switched off by the configuration.
    Off,
    /// Not connected; tries again by itself.
    #[default]
    Connecting,
    /// Waiting for a standby: for one that is behind what is stored, or for the promotion of the only server there is.
    Waiting,
    /// Receiving WAL.
    Streaming,
    /// Not reading, because the spool is full; the server keeps the WAL.
    SpoolFull,
    /// Ended, because the agent stops.
    Stopped,
}

impl Phase {
    /// A short word for metrics and `--json`.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Off => "off",
            Self::Connecting => "connecting",
            Self::Waiting => "waiting",
            Self::Streaming => "streaming",
            Self::SpoolFull => "spool_full",
            Self::Stopped => "stopped",
        }
    }
}

/// The watermarks and what belongs to them, at one moment.
#[derive(Debug, Clone, Default)]
pub struct Snapshot {
    /// What the stream is doing.
    pub phase: Phase,
    /// The timeline being received.
    pub timeline: Option<TimelineId>,
    /// The end of what was received.
    pub received: Lsn,
    /// The end of what is fsynced in the spool.
    pub spooled: Lsn,
    /// The end of what is durable in the repository.
    pub durable: Lsn,
    /// The end of what the server has, as far as it told.
    pub server_end: Lsn,
    /// For how long the oldest WAL that is not yet durable has been waiting; zero if none is.
    pub lag: Duration,
    /// When the server was last heard of.
    pub last_contact: Option<Instant>,
    /// Why it does not work at present.
    pub problem: Option<String>,
}

impl Snapshot {
    /// Bytes the server has that are not durable.
    pub fn lag_bytes(&self) -> u64 {
        self.server_end.bytes_since(self.durable)
    }

    /// The commits of how long a time would be lost with the server; `None` before any WAL was seen. While it streams a silent server writes nothing;
    /// when it does not, the server may have written all the time.
    pub fn possible_loss(&self) -> Option<Duration> {
        let silence = self.last_contact?.elapsed();
        Some(if self.phase == Phase::Streaming { self.lag } else { self.lag.max(silence) })
    }
}

/// What `protect = "primary"` has done with the slot.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum SlotHold {
    /// The slot keeps WAL for us, as far as we care.
    #[default]
    Held,
    /// It is about to be dropped: who streams by it lets go.
    GivingUp,
    /// It was dropped. The stream makes it anew once the spool is stored.
    GivenUp,
}

/// The shared note.
#[derive(Debug, Default)]
pub struct Progress {
    state: Mutex<State>,
    /// Commits on the server wait for this stream.
    commits_wait: AtomicBool,
    /// The server is a standby, and this agent's turn comes with its promotion.
    stands_by: AtomicBool,
}

#[derive(Debug, Default)]
struct State {
    snapshot: Snapshot,
    slot: SlotHold,
    /// Ends of WAL and when they were first heard of, oldest first, as long as they are not durable.
    waiting: VecDeque<(Lsn, Instant)>,
}

/// Ends closer than this are one entry in the queue of waiting ends, which bounds it.
const RESOLUTION: Duration = Duration::from_millis(100);

impl Progress {
    /// The present state.
    pub fn snapshot(&self) -> Snapshot {
        let state = self.state();
        let lag = state.waiting.front().map_or(Duration::ZERO, |(_, since)| since.elapsed());
        Snapshot { lag, ..state.snapshot.clone() }
    }

    /// What the stream does from now on.
    pub fn set_phase(&self, phase: Phase) {
        self.state().snapshot.phase = phase;
    }

    /// Notes whether commits on the server wait for this stream: it is a synchronous standby.
    pub fn set_commits_wait(&self, wait: bool) {
        self.commits_wait.store(wait, Ordering::Relaxed);
    }

    /// Whether commits on the server wait for this stream, as far as is known.
    pub fn commits_wait(&self) -> bool {
        self.commits_wait.load(Ordering::Relaxed)
    }

    /// The server is a standby, and nothing comes from it before its promotion. What an earlier stream had still to store another agent stores, or it is
    /// in no server's history any more: nothing lags here, and nothing would be lost with this server.
    pub fn stand_by(&self, why: String) {
        let mut state = self.state();
        state.waiting.clear();
        let snapshot = &mut state.snapshot;
        (snapshot.received, snapshot.spooled, snapshot.server_end) = (snapshot.durable, snapshot.durable, snapshot.durable);
        snapshot.last_contact = None;
        snapshot.phase = Phase::Waiting;
        snapshot.problem = Some(why);
        drop(state);
        self.stands_by.store(true, Ordering::Relaxed);
    }

    /// Whether the server is a standby whose promotion is waited for: what the primary's agent does is not done here.
    pub fn stands_by(&self) -> bool {
        self.stands_by.load(Ordering::Relaxed)
    }

    /// What has become of the slot by our own decision.
    pub fn slot(&self) -> SlotHold {
        self.state().slot
    }

    /// Notes what becomes of the slot.
    pub fn set_slot(&self, slot: SlotHold) {
        self.state().slot = slot;
    }

    /// WAL comes by the slot: a new one has taken the place of one that was given up.
    pub fn slot_serves(&self) {
        let mut state = self.state();
        if state.slot == SlotHold::GivenUp {
            state.slot = SlotHold::Held;
        }
    }

    /// Why it does not work; `None` once it does.
    pub fn set_problem(&self, problem: Option<String>) {
        self.state().snapshot.problem = problem;
    }

    /// A stream begins on `timeline` at `start`, everything before `durable` being durable and the rest in the spool. What was known of an
    /// earlier stream ends here: the server may be another one now, or on another timeline, where a higher position means nothing.
    pub fn begin(&self, timeline: TimelineId, start: Lsn, durable: Lsn) {
        self.stands_by.store(false, Ordering::Relaxed);
        let mut state = self.state();
        state.waiting.clear();
        let snapshot = &mut state.snapshot;
        snapshot.timeline = Some(timeline);
        snapshot.received = start;
        snapshot.spooled = start;
        snapshot.durable = durable;
        snapshot.server_end = start;
        snapshot.phase = Phase::Streaming;
        snapshot.problem = None;
    }

    /// The server was heard of, and has WAL up to `end`.
    pub fn heard(&self, end: Lsn) {
        let mut state = self.state();
        let now = Instant::now();
        state.snapshot.last_contact = Some(now);
        if end > state.snapshot.server_end {
            state.snapshot.server_end = end;
            let durable = state.snapshot.durable;
            let crowded = state.waiting.back().is_some_and(|(_, since)| now.duration_since(*since) < RESOLUTION);
            match state.waiting.back_mut() {
                // Keeps the older moment: the lag is never told too small.
                Some((last, _)) if crowded => *last = end,
                _ if end > durable => state.waiting.push_back((end, now)),
                _ => {}
            }
        }
    }

    /// WAL up to here was received.
    pub fn received(&self, end: Lsn) {
        self.state().snapshot.received = end;
    }

    /// WAL up to here is fsynced in the spool.
    pub fn spooled(&self, end: Lsn) {
        let mut state = self.state();
        state.snapshot.spooled = state.snapshot.spooled.max(end);
    }

    /// WAL up to here is durable in the repository.
    pub fn durable(&self, end: Lsn) {
        let mut state = self.state();
        let durable = state.snapshot.durable.max(end);
        state.snapshot.durable = durable;
        // A part is stored out of the page cache: no fsync comes before.
        state.snapshot.spooled = state.snapshot.spooled.max(durable);
        while state.waiting.front().is_some_and(|(end, _)| *end <= durable) {
            state.waiting.pop_front();
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lag_ends_when_everything_is_durable() {
        let progress = Progress::default();
        progress.begin(TimelineId::FIRST, Lsn::new(100), Lsn::new(100));
        progress.heard(Lsn::new(150));
        progress.heard(Lsn::new(200));
        assert_eq!(progress.snapshot().lag_bytes(), 100);
        std::thread::sleep(Duration::from_millis(2));
        assert!(progress.snapshot().lag > Duration::ZERO);
        progress.durable(Lsn::new(199));
        assert!(progress.snapshot().lag > Duration::ZERO);
        progress.durable(Lsn::new(200));
        assert_eq!((progress.snapshot().lag, progress.snapshot().lag_bytes()), (Duration::ZERO, 0));
    }

    #[test]
    fn nothing_lags_on_a_standby_that_waits_for_its_promotion() {
        let progress = Progress::default();
        progress.begin(TimelineId::FIRST, Lsn::new(100), Lsn::new(100));
        progress.heard(Lsn::new(200));
        assert!(progress.snapshot().possible_loss().is_some());
        progress.stand_by("a standby".into());
        let now = progress.snapshot();
        assert_eq!((now.phase, now.lag_bytes(), now.lag, now.possible_loss()), (Phase::Waiting, 0, Duration::ZERO, None));
        assert!(progress.stands_by());
        progress.begin(TimelineId::FIRST, Lsn::new(200), Lsn::new(200));
        assert!(!progress.stands_by());
    }

    #[test]
    fn what_is_stored_counts_as_spooled() {
        let progress = Progress::default();
        progress.begin(TimelineId::FIRST, Lsn::new(100), Lsn::new(100));
        progress.received(Lsn::new(200));
        progress.durable(Lsn::new(150));
        assert_eq!(progress.snapshot().spooled, Lsn::new(150), "never behind what is durable");
        progress.spooled(Lsn::new(120));
        assert_eq!(progress.snapshot().spooled, Lsn::new(150));
    }

    #[test]
    fn what_was_durable_of_an_earlier_stream_says_nothing_of_the_next() {
        let progress = Progress::default();
        progress.begin(TimelineId::FIRST, Lsn::new(100), Lsn::new(100));
        progress.durable(Lsn::new(200));
        progress.begin(TimelineId::new(2).unwrap(), Lsn::new(150), Lsn::new(150));
        assert_eq!(progress.snapshot().durable, Lsn::new(150));
        progress.durable(Lsn::new(120));
        assert_eq!(progress.snapshot().durable, Lsn::new(150), "within one stream it never goes back");
    }
}
