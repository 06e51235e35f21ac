//! When somebody is told, for one way of telling.
//!
//! What is told follows from what is the case, and not from what happened: whatever could not be told, as there were too many messages or none arrived,
//! is told later if it is still so, together with what came meanwhile. Nothing waits in a queue that could grow.

use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};

use super::{Alarm, AlarmKind, Event, Judged, Message, Said};

/// What holds for all messages.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Rules {
    /// How long an alarm holds before it is told, instead of its own time.
    pub wait: Option<Duration>,
    /// How often it is told again; `None`: once.
    pub remind: Option<Duration>,
    /// The most messages within an hour.
    pub most_an_hour: usize,
}

/// An alarm is over when it was gone for as long as it has to hold, but no longer than this.
const LONGEST_RELIEF: Duration = Duration::from_secs(300);
const HOUR: Duration = Duration::from_secs(3600);
/// Behind a message that did not arrive, doubled each time.
const RETRY: (Duration, Duration) = (Duration::from_secs(5), Duration::from_secs(600));

/// Decides what is told. What it knows outlives a process.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Teller {
    known: Vec<Known>,
    /// When messages were sent.
    sent: VecDeque<DateTime<Utc>>,
    #[serde(skip)]
    failures: u32,
    #[serde(skip)]
    not_before: Option<DateTime<Utc>>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Known {
    #[serde(flatten)]
    alarm: Alarm,
    since: DateTime<Utc>,
    /// When it was told last.
    told: Option<DateTime<Utc>>,
    gone: Option<DateTime<Utc>>,
}

impl Known {
    fn is(&self, alarm: &Alarm) -> bool {
        self.alarm.kind == alarm.kind && self.alarm.subject == alarm.subject
    }
}

impl Teller {
    /// What is to be told now. Whether it arrived is told by [`Teller::settle`] before this is asked again.
    pub fn look(&mut self, judged: &Judged, rules: &Rules, now: DateTime<Utc>) -> Option<Message> {
        self.note(judged, now);
        if self.not_before.is_some_and(|at| now < at && at - now <= chrono::Duration::from_std(RETRY.1).unwrap_or_default()) {
            return None;
        }
        self.sent.retain(|at| *at <= now && past(*at, now) < HOUR);
        if self.sent.len() >= rules.most_an_hour {
            return None;
        }
        let wait = |kind: AlarmKind| rules.wait.unwrap_or(kind.patience());
        let mut message = Message { others: 0, ..Message::test(now) };
        for known in &self.known {
            let said = || Said::new(&known.alarm, known.since);
            match (known.told, known.gone) {
                (None, None) if past(known.since, now) >= wait(known.alarm.kind) => message.wrong.push(said()),
                (Some(told), None) if rules.remind.is_some_and(|remind| past(told, now) >= remind) => message.still.push(said()),
                (Some(_), Some(gone)) if past(gone, now) >= wait(known.alarm.kind).min(LONGEST_RELIEF) => message.recovered.push(said()),
                (Some(_), _) => message.others += 1,
                (None, _) => {}
            }
        }
        message.event = match (message.wrong.is_empty(), message.still.is_empty(), message.recovered.is_empty()) {
            (false, ..) => Event::Failure,
            (_, false, _) => Event::Reminder,
            (.., false) => Event::Recovery,
            _ => return None,
        };
        // The most urgent first.
        message.wrong.sort_by_key(|said| std::cmp::Reverse(said.severity));
        message.still.sort_by_key(|said| std::cmp::Reverse(said.severity));
        Some(message)
    }

    /// Whether `message` arrived.
    pub fn settle(&mut self, message: &Message, arrived: bool, now: DateTime<Utc>) {
        if !arrived {
            let pause = RETRY.0.saturating_mul(1 << self.failures.min(16)).min(RETRY.1);
            self.failures += 1;
            self.not_before = Some(now + pause);
            return;
        }
        (self.failures, self.not_before) = (0, None);
        self.sent.push_back(now);
        for said in message.wrong.iter().chain(&message.still) {
            self.known.iter_mut().filter(|known| known.is(&said.alarm)).for_each(|known| known.told = Some(now));
        }
        let is_over = |known: &Known| message.recovered.iter().any(|said| known.is(&said.alarm));
        // It may be back since.
        for known in self.known.iter_mut().filter(|known| is_over(known) && known.gone.is_none()) {
            (known.since, known.told) = (now, None);
        }
        self.known.retain(|known| !is_over(known) || known.gone.is_none());
    }

    /// Whether it makes no difference which of the two is kept. What an alarm says in detail may be another each second.
    pub fn is_kept_as(&self, other: &Self) -> bool {
        let same = |(one, other): (&Known, &Known)| {
            one.is(&other.alarm) && (one.since, one.told, one.gone) == (other.since, other.told, other.gone)
        };
        self.sent == other.sent && self.known.len() == other.known.len() && self.known.iter().zip(&other.known).all(same)
    }

    fn note(&mut self, judged: &Judged, now: DateTime<Utc>) {
        for known in &mut self.known {
            // What was noted by a clock that was ahead would wait for it.
            for at in [Some(&mut known.since), known.told.as_mut(), known.gone.as_mut()].into_iter().flatten() {
                *at = (*at).min(now);
            }
            if !judged.alarms.iter().any(|alarm| known.is(alarm)) && !judged.is_unknown(known.alarm.kind, &known.alarm.subject) {
                known.gone.get_or_insert(now);
            }
        }
        self.known.retain(|known| known.told.is_some() || known.gone.is_none());
        let mut index: BTreeMap<(AlarmKind, String), usize> = BTreeMap::new();
        for (at, known) in self.known.iter().enumerate() {
            index.insert((known.alarm.kind, known.alarm.subject.clone()), at);
        }
        for alarm in &judged.alarms {
            match index.get(&(alarm.kind, alarm.subject.clone())) {
                Some(at) => {
                    let known = &mut self.known[*at];
                    (known.alarm, known.gone) = (alarm.clone(), None);
                }
                None => self.known.push(Known { alarm: alarm.clone(), since: now, told: None, gone: None }),
            }
        }
    }
}

fn past(then: DateTime<Utc>, now: DateTime<Utc>) -> Duration {
    (now - then).to_std().unwrap_or_default()
}
