//! What becomes of the replication slot: when it is in danger of being lost, and when it is given up for the server's sake.
//!
//! Judgements only, from what was seen at each look. Whoever looks, drops and tells is in the agent.

use std::time::Duration;

/// A stream that stands still counts as stalled when nothing was stored for so long: many requests to a store that is well.
pub const STALLED: Duration = Duration::from_secs(30);
/// A slot is near its end when less than a fifth of what it may hold back is left ...
const NEAR_PERCENT: i128 = 20;
/// ... and out of danger again when there is this much: between the two nothing changes, so that nobody is told twice.
const CLEAR_PERCENT: i128 = 30;

/// What the stream does with the WAL that the slot keeps for it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Stream {
    /// It reads on.
    Reads,
    /// It does not: another segment does not fit into the spool.
    SpoolFull,
    /// It does not, and the spool has room that it cannot use: it waits for the repository to know where to begin, or cannot begin.
    Stands,
}

/// One look.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Look {
    /// When, since some fixed moment.
    pub at: Duration,
    /// What the stream does.
    pub stream: Stream,
    /// Bytes of WAL that the slot holds back on the server.
    pub retained: u64,
    /// Objects stored so far.
    pub stored: u64,
}

/// Why the slot is given up.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Reason {
    /// It holds back more than the limit, and ever more, with the spool full.
    Outgrown,
    /// It holds back more than the limit, and nothing was stored for [`STALLED`].
    Stalled,
}

/// Decides when the slot is given up. Fed with every look while somebody cares.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Guard {
    limit: u64,
    step: u64,
    pause: Option<Pause>,
}

/// Since the stream stopped reading.
#[derive(Clone, PartialEq, Eq, Debug)]
struct Pause {
    /// The least that the slot held back.
    least: u64,
    /// Objects stored at the last change of that number, and when it was seen.
    stored: u64,
    since: Duration,
}

impl Guard {
    /// The slot may hold back `limit` bytes. Growing by less than `step` (a segment) is no growing: a store that catches up acknowledges in such steps.
    pub fn new(limit: u64, step: u64) -> Self {
        Self { limit, step, pause: None }
    }

    /// Whether to give the slot up now. Never while the stream reads on, nor below the limit; and above it not while the repository catches up.
    pub fn look(&mut self, look: Look) -> Option<Reason> {
        if look.stream == Stream::Reads {
            self.pause = None;
            return None;
        }
        let begun = Pause { least: look.retained, stored: look.stored, since: look.at };
        let pause = self.pause.get_or_insert(begun);
        pause.least = pause.least.min(look.retained);
        if look.stored != pause.stored {
            (pause.stored, pause.since) = (look.stored, look.at);
        }
        if look.retained <= self.limit {
            return None;
        }
        if look.stream == Stream::SpoolFull && look.retained >= pause.least.saturating_add(self.step) {
            return Some(Reason::Outgrown);
        }
        (look.at.saturating_sub(pause.since) >= STALLED).then_some(Reason::Stalled)
    }
}

/// How a slot is, in order of danger.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Default)]
pub enum Health {
    /// Nothing threatens it.
    #[default]
    Sound,
    /// Soon it holds back as much as `max_slot_wal_keep_size` allows.
    Near,
    /// It holds back more: the next checkpoint may take it.
    Unreserved,
    /// The server has invalidated it.
    Lost,
    /// There is none of that name.
    Missing,
}

/// What the server says of a slot.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Told<'a> {
    /// `wal_status`; `None` if it reserves nothing yet.
    pub wal_status: Option<&'a str>,
    /// Whether the server says why it was invalidated (since PostgreSQL 17).
    pub invalidated: bool,
    /// Bytes that may still be written before it is in danger; `None` without a limit.
    pub safe: Option<i64>,
    /// `max_slot_wal_keep_size` in bytes; `None` without a limit.
    pub limit: Option<u64>,
}

/// How the slot is. `before` is what was judged at the last look, so that a slot about the border does not change with every look.
pub fn health(before: Health, told: Told<'_>) -> Health {
    match told.wal_status {
        _ if told.invalidated => Health::Lost,
        Some("lost") => Health::Lost,
        Some("unreserved") => Health::Unreserved,
        _ => {
            let (Some(safe), Some(limit)) = (told.safe, told.limit) else { return Health::Sound };
            let percent = if before >= Health::Near { CLEAR_PERCENT } else { NEAR_PERCENT };
            let near = i128::from(safe) * 100 < i128::from(limit) * percent;
            if near { Health::Near } else { Health::Sound }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMIT: u64 = 1000;
    const STEP: u64 = 16;

    fn looks(all: &[(u64, Stream, u64, u64)]) -> Vec<Option<Reason>> {
        let mut guard = Guard::new(LIMIT, STEP);
        let one = |(seconds, stream, retained, stored): &(u64, Stream, u64, u64)| {
            guard.look(Look { at: Duration::from_secs(*seconds), stream: *stream, retained: *retained, stored: *stored })
        };
        all.iter().map(one).collect()
    }

    use Reason::{Outgrown, Stalled};
    use Stream::{Reads, SpoolFull, Stands};

    #[test]
    fn a_stream_that_reads_keeps_its_slot_whatever_it_holds_back() {
        assert_eq!(looks(&[(0, Reads, 9000, 0), (999, Reads, 99_000, 0), (9999, Reads, 999_000, 0)]), [None; 3]);
    }

    #[test]
    fn a_full_spool_is_no_reason_below_the_limit() {
        assert_eq!(looks(&[(0, SpoolFull, 100, 0), (999, SpoolFull, 999, 0), (9999, SpoolFull, 1000, 0)]), [None; 3]);
    }

    #[test]
    fn over_the_limit_and_growing_it_is_given_up_at_once() {
        assert_eq!(looks(&[(0, SpoolFull, 500, 0), (2, SpoolFull, 1001, 0)]), [None, Some(Outgrown)]);
        // The same where the first look finds it over the limit: what counts is that it grows.
        assert_eq!(looks(&[(0, SpoolFull, 5000, 0), (2, SpoolFull, 5015, 0), (4, SpoolFull, 5016, 0)]), [None, None, Some(Outgrown)]);
    }

    #[test]
    fn over_the_limit_and_not_growing_it_is_given_up_when_nothing_is_stored_for_long() {
        assert_eq!(looks(&[(0, SpoolFull, 2000, 7), (29, SpoolFull, 2000, 7), (30, SpoolFull, 2000, 7)]), [None, None, Some(Stalled)]);
    }

    #[test]
    fn a_repository_that_catches_up_is_waited_for() {
        // An agent that was away for long: more than the limit waits, and becomes less.
        let catching_up: Vec<_> = (0..100).map(|look| (look * 20, SpoolFull, 9000 - look * 10 + look % 2 * 15, look)).collect();
        assert!(looks(&catching_up).iter().all(Option::is_none));
        // It does not keep up any more.
        assert_eq!(looks(&[(0, SpoolFull, 9000, 0), (2, SpoolFull, 8000, 1), (4, SpoolFull, 8016, 2)]), [None, None, Some(Outgrown)]);
    }

    #[test]
    fn every_pause_counts_for_itself() {
        let seen =
            [(0, SpoolFull, 5000, 0), (20, Reads, 5000, 0), (21, SpoolFull, 5100, 0), (50, SpoolFull, 5100, 0), (51, SpoolFull, 5100, 0)];
        assert_eq!(looks(&seen), [None, None, None, None, Some(Stalled)]);
    }

    #[test]
    fn a_stream_that_cannot_begin_has_its_time_however_much_is_written() {
        assert_eq!(looks(&[(0, Stands, 5000, 0), (2, Stands, 9000, 0), (30, Stands, 9000, 0)]), [None, None, Some(Stalled)]);
        // What an earlier agent left is being stored: it begins soon.
        assert_eq!(looks(&[(0, Stands, 5000, 0), (25, Stands, 9000, 1), (54, Stands, 9000, 1)]), [None; 3]);
    }

    #[test]
    fn a_slot_near_its_end_is_told_once() {
        let told = |safe| Told { wal_status: Some("extended"), safe: Some(safe), limit: Some(1000), ..Told::default() };
        let mut seen = Health::Sound;
        let mut judged = Vec::new();
        for safe in [900, 200, 199, 205, 195, 299, 300, 205, 199] {
            seen = health(seen, told(safe));
            judged.push(seen == Health::Near);
        }
        assert_eq!(judged, [false, false, true, true, true, true, false, false, true]);
    }

    #[test]
    fn what_the_server_says_counts_more_than_numbers() {
        let told = |status, invalidated| Told { wal_status: Some(status), invalidated, safe: None, limit: None };
        assert_eq!(health(Health::Sound, told("reserved", false)), Health::Sound);
        assert_eq!(health(Health::Near, told("extended", false)), Health::Sound, "without a limit nothing threatens it");
        assert_eq!(health(Health::Sound, told("unreserved", false)), Health::Unreserved);
        assert_eq!(health(Health::Sound, told("lost", false)), Health::Lost);
        assert_eq!(health(Health::Sound, told("reserved", true)), Health::Lost, "PostgreSQL 18 goes on showing a position");
        assert_eq!(health(Health::Sound, Told::default()), Health::Sound, "it reserves nothing yet");
    }
}
