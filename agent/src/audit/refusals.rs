//! Refused requests, seldom enough to be recorded: whoever asks again and again fills no repository.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use super::Deed;

/// One reason is recorded once in this time, then in twice and four times of it, up to [`SELDOM`].
const OFTEN: Duration = Duration::from_secs(60);
/// What goes on for days is recorded once in this time.
const SELDOM: Duration = Duration::from_secs(3600);
/// Reasons that are told apart; what comes beyond them is told as one.
const REASONS: usize = 64;

/// What was refused lately.
#[derive(Debug, Default)]
pub struct Refusals {
    reasons: HashMap<String, Reason>,
}

#[derive(Debug)]
struct Reason {
    recorded: Instant,
    pause: Duration,
    /// The newest of those that were not recorded.
    latest: Option<Deed>,
    count: u64,
}

impl Refusals {
    /// A request was refused: what is to be recorded now, if anything.
    pub fn refused(&mut self, reason: &str, deed: Deed, now: Instant) -> Option<Deed> {
        let known = self.reasons.contains_key(reason);
        let reason = if known || self.reasons.len() < REASONS { reason } else { "others" };
        match self.reasons.get_mut(reason) {
            None => {
                let first = Reason { recorded: now, pause: OFTEN, latest: None, count: 0 };
                self.reasons.insert(reason.to_owned(), first);
                Some(deed)
            }
            Some(known) => {
                (known.latest, known.count) = (Some(deed), known.count + 1);
                None
            }
        }
    }

    /// What has waited long enough, each with how many there were of it.
    pub fn due(&mut self, now: Instant) -> Vec<Deed> {
        let mut due = Vec::new();
        self.reasons.retain(|_, reason| {
            if now.saturating_duration_since(reason.recorded) < reason.pause {
                return true;
            }
            // Nothing of it since: it is over, and its next one is the first again.
            let Some(latest) = reason.latest.take() else { return false };
            due.push(latest.of("times", std::mem::take(&mut reason.count)));
            (reason.recorded, reason.pause) = (now, (reason.pause * 2).min(SELDOM));
            true
        });
        due
    }
}

#[cfg(test)]
mod tests {
    use walkeep_core::audit::{Kind, Outcome};

    use super::*;

    fn deed(name: &str) -> Deed {
        Deed::new("agent", Kind::REQUEST, Outcome::Refused).of("file", name)
    }

    #[test]
    fn what_is_refused_again_and_again_is_recorded_with_a_count() {
        let (mut refusals, begin) = (Refusals::default(), Instant::now());
        let at = |seconds: u64| begin + Duration::from_secs(seconds);
        assert_eq!(refusals.refused("conflict", deed("1"), at(0)).map(|deed| deed.subject["file"].clone()), Some("1".into()));
        for second in 1..50 {
            assert_eq!(refusals.refused("conflict", deed(&second.to_string()), at(second)), None);
        }
        assert!(refusals.refused("user", deed("x"), at(50)).is_some(), "another reason");
        assert_eq!(refusals.due(at(59)), []);
        let due = refusals.due(at(60));
        assert_eq!(
            due.iter().map(|deed| (deed.subject["file"].as_str(), deed.subject["times"].as_str())).collect::<Vec<_>>(),
            [("49", "49")]
        );
        // Now it is two minutes.
        assert_eq!(refusals.refused("conflict", deed("2"), at(61)), None);
        assert_eq!(refusals.due(at(170)), []);
        assert_eq!(refusals.due(at(180)).len(), 1);
        // Quiet for the whole pause: forgotten.
        assert_eq!(refusals.due(at(180 + 240)), []);
        assert!(refusals.refused("conflict", deed("3"), at(421)).is_some());
    }

    #[test]
    fn many_reasons_are_told_as_one() {
        let (mut refusals, now) = (Refusals::default(), Instant::now());
        let recorded = (0..1000).filter(|number| refusals.refused(&format!("reason {number}"), deed("x"), now).is_some()).count();
        assert_eq!(recorded, REASONS + 1);
        assert_eq!(refusals.due(now + OFTEN).len(), 1);
    }
}
