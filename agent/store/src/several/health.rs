//! Whether a place answers, and when it is asked again if it does not: nobody waits for a dead one at every call.

use std::time::Duration;

use tokio::time::Instant;

/// The shortest time for which a place that failed is passed over.
const LEAST: Duration = Duration::from_secs(1);
/// And the longest.
const MOST: Duration = Duration::from_secs(60);
/// It is passed over for so many times as long as it was waited for, within these bounds.
const TIMES: u32 = 10;

/// How a place may be asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum May {
    /// As ever.
    Ask,
    /// It failed before: whether it answers again has to be tried.
    Try,
}

/// What is known of a place from the calls to it.
#[derive(Debug, Default)]
pub struct Health {
    down: Option<Down>,
    /// Somebody gave up waiting for it, and it has not answered since.
    suspect: bool,
}

#[derive(Debug)]
struct Down {
    reason: String,
    since: Instant,
    /// Until then it is not asked.
    until: Instant,
    failures: u32,
}

impl Health {
    /// Whether it may be asked now; else why not. Of several callers one tries a place that failed, and the others pass it over meanwhile.
    pub fn may_ask(&mut self, now: Instant) -> Result<May, String> {
        match &mut self.down {
            None if self.suspect => Ok(May::Try),
            None => Ok(May::Ask),
            Some(down) if now < down.until => {
                let since = now.duration_since(down.since).as_secs();
                Err(format!("it does not answer for {since} s ({}) and is not asked at every call", down.reason))
            }
            Some(down) => {
                down.until = now + MOST;
                Ok(May::Try)
            }
        }
    }

    /// It answered; whether that is news.
    pub fn answered(&mut self) -> bool {
        self.suspect = false;
        self.down.take().is_some()
    }

    /// A caller gave up after it had waited so long. The first time that may be the caller's haste, or a large object: it has to show that it answers. Whether
    /// it is taken for dead, and that is news.
    pub fn given_up(&mut self, waited: Duration, now: Instant) -> bool {
        match self.suspect || self.down.is_some() {
            true => self.failed(format!("no answer within {} s", waited.as_secs()), waited, now),
            false => {
                self.suspect = true;
                false
            }
        }
    }

    /// It does not answer something small.
    pub fn suspect(&mut self) {
        self.suspect = true;
    }

    /// It failed, after the caller had waited so long; whether that is news.
    pub fn failed(&mut self, reason: String, waited: Duration, now: Instant) -> bool {
        let failures = self.down.as_ref().map_or(0, |down| down.failures).saturating_add(1);
        let doubled = LEAST.saturating_mul(1u32.checked_shl(failures - 1).unwrap_or(u32::MAX));
        let hold = doubled.max(waited.saturating_mul(TIMES)).clamp(LEAST, MOST);
        let since = self.down.as_ref().map_or(now, |down| down.since);
        self.down = Some(Down { reason, since, until: now + hold, failures });
        failures == 1
    }

    /// It is passed over for so long, for this reason.
    pub fn pass_over(&mut self, reason: String, how_long: Duration, now: Instant) {
        self.down = Some(Down { reason, since: now, until: now + how_long, failures: 1 });
    }

    /// Why it is passed over, and for how long it has not answered.
    pub fn down(&self, now: Instant) -> Option<(String, Duration)> {
        self.down.as_ref().map(|down| (down.reason.clone(), now.duration_since(down.since)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_dead_place_costs_little_of_the_time() {
        let (mut health, mut now) = (Health::default(), Instant::now());
        let began = now;
        let mut waited = Duration::ZERO;
        while now - began < Duration::from_secs(7200) {
            match health.may_ask(now) {
                Ok(may) => {
                    // The first call has the store's own deadline, a try one of its own.
                    let call = Duration::from_secs(if may == May::Ask { 60 } else { 10 });
                    (now, waited) = (now + call, waited + call);
                    health.failed("no answer".into(), call, now);
                }
                Err(reason) => {
                    assert!(reason.contains("no answer"), "{reason}");
                    now += Duration::from_secs(1);
                }
            }
        }
        assert!(waited < Duration::from_secs(7200 / 6), "{waited:?}");
        assert!(waited > Duration::from_secs(7200 / 8), "it is asked again: {waited:?}");
        assert!(health.answered() && !health.answered());
        assert_eq!(health.may_ask(now), Ok(May::Ask));
    }

    #[test]
    fn who_is_given_up_twice_without_an_answer_is_dead() {
        let (mut health, now, waited) = (Health::default(), Instant::now(), Duration::from_secs(4));
        assert!(!health.given_up(waited, now));
        assert_eq!(health.may_ask(now), Ok(May::Try), "it has to show that it answers");
        assert!(!health.answered());
        assert!(!health.given_up(waited, now));
        assert!(health.given_up(waited, now), "news");
        assert!(health.may_ask(now + waited * 9).is_err());
        assert_eq!(health.may_ask(now + waited * 10), Ok(May::Try));
        assert!(!health.given_up(waited, now + waited * 11), "no news");
        assert!(health.may_ask(now + waited * 12).is_err());
    }

    #[test]
    fn one_caller_tries_and_the_others_pass_it_over() {
        let (mut health, now) = (Health::default(), Instant::now());
        assert!(health.failed("down".into(), Duration::ZERO, now), "news");
        assert!(health.may_ask(now).is_err());
        let later = now + LEAST;
        assert_eq!(health.may_ask(later), Ok(May::Try));
        assert!(health.may_ask(later).is_err());
        assert!(!health.failed("down".into(), Duration::ZERO, later), "no news");
        assert_eq!(health.down(later).unwrap().1, LEAST);
    }
}
