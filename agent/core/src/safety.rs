//! "Am I safe?": what can be had back of a cluster and what stands against it, in a sentence.
//!
//! Judged by what the repository has and by what the agent beside the server says. Nobody else knows what the server has written that is not stored: where no
//! agent answers that stays open, and is said.

use std::fmt;
use std::time::Duration;

use chrono::{DateTime, SecondsFormat, Utc};
use serde::{Deserialize, Serialize};

use crate::alarm::{Severity, so_long};
use crate::catalog::TimelineReport;

/// The answer in a word, the worst first.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Level {
    /// Something is lost, or would be with the server.
    Unsafe,
    /// All can be had back; something is wrong that may end that.
    AtRisk,
    /// Nobody here can tell.
    Unknown,
    /// All can be had back.
    Safe,
}

impl fmt::Display for Level {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Unsafe => "NOT SAFE",
            Self::AtRisk => "AT RISK",
            Self::Unknown => "NOT KNOWN",
            Self::Safe => "SAFE",
        })
    }
}

/// The answer.
#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
pub struct Safety {
    /// In a word.
    pub level: Level,
    /// In a sentence.
    pub text: String,
    /// What else is wrong.
    pub more: Vec<String>,
}

/// What an agent says of itself.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct Heard {
    /// Whether its server is a standby, and it waits for the promotion: what the primary writes is another agent's.
    #[serde(default)]
    pub stands_by: bool,
    /// Whether it streams; without, only archive_command brings WAL, and nobody knows how old what is missing is.
    pub streams: bool,
    /// Seconds of commits that would be lost with the server now; `None` if it does not know.
    pub possible_loss_seconds: Option<f64>,
    /// What is wrong, the most urgent first; `None` before it has looked.
    pub alarms: Option<Vec<Wrong>>,
}

/// Something that is wrong.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Wrong {
    /// How urgent.
    pub severity: Severity,
    /// In a sentence.
    pub text: String,
}

/// The answer, by what is stored of each timeline and by what the agent says, if one answers. `stored_at`: when something was stored last, if that is known.
pub fn judge(timelines: &[TimelineReport], agent: Option<&Heard>, stored_at: Option<DateTime<Utc>>) -> Safety {
    let from = match restorable_from(timelines) {
        Ok(from) => from,
        Err(text) => return Safety { level: Level::Unsafe, text, more: agent.map(all_wrong).unwrap_or_default() },
    };
    let from = moment(from);
    let Some(agent) = agent else {
        let until = stored_at.map(|at| format!(", stored last at {}", moment(at))).unwrap_or_default();
        let text = format!(
            "no agent answers here, so nobody says what the server has written since; what is stored can be had back from {from} on{until}"
        );
        return Safety { level: Level::Unknown, text, more: Vec::new() };
    };
    if agent.stands_by {
        let text = format!(
            "this server is a standby, and its agent waits for the promotion: ask the primary's; what is stored can be had back from {from} on"
        );
        return Safety { level: Level::Unknown, text, more: all_wrong(agent) };
    }
    let wrong = agent.alarms.as_deref().unwrap_or_default();
    let reach = match agent.possible_loss_seconds {
        Some(seconds) => format!("every commit until {} can be had back, from {from} on", ago(seconds)),
        None if !agent.streams => format!("every commit in WAL that archive_command has brought can be had back, from {from} on"),
        None => {
            return of_wrong(Level::Unsafe, format!("the agent does not know what would be lost; what is stored begins at {from}"), wrong);
        }
    };
    match wrong.first().map(|first| first.severity) {
        Some(Severity::Critical) => of_wrong(Level::Unsafe, reach, wrong),
        Some(Severity::Warning) => of_wrong(Level::AtRisk, reach, wrong),
        None if agent.alarms.is_none() => Safety {
            level: Level::Unknown,
            text: format!("{reach}; the agent has just begun, and has not looked what is wrong"),
            more: Vec::new(),
        },
        None => Safety { level: Level::Safe, text: reach, more: Vec::new() },
    }
}

/// The answer where what is stored cannot be looked at, and why not: what the agent says holds all the same.
pub fn unseen(why: String, agent: Option<&Heard>) -> Safety {
    let wrong = agent.and_then(|agent| agent.alarms.as_deref()).unwrap_or_default();
    match wrong.first() {
        Some(first) if first.severity == Severity::Critical => of_wrong(Level::Unsafe, why, wrong),
        _ => Safety { level: Level::Unknown, text: why, more: agent.map(all_wrong).unwrap_or_default() },
    }
}

/// The most urgent is the sentence, if there is one.
fn of_wrong(level: Level, reach: String, wrong: &[Wrong]) -> Safety {
    let mut texts = wrong.iter().map(|wrong| wrong.text.clone());
    match texts.next() {
        Some(text) => Safety { level, text, more: std::iter::once(reach).chain(texts).collect() },
        None => Safety { level, text: reach, more: Vec::new() },
    }
}

fn all_wrong(agent: &Heard) -> Vec<String> {
    agent.alarms.iter().flatten().map(|wrong| wrong.text.clone()).collect()
}

/// From when on the newest timeline can be restored to its end, or why it cannot be.
fn restorable_from(timelines: &[TimelineReport]) -> Result<DateTime<Utc>, String> {
    let Some(newest) = timelines.iter().max_by_key(|report| report.timeline) else {
        return Err("nothing is stored: neither WAL nor a base backup".to_owned());
    };
    let timeline = newest.timeline;
    if !newest.ancestry_known {
        return Err(format!("nothing can be restored along timeline {timeline}: its history file is missing"));
    }
    let Some(last) = newest.windows.last() else {
        return Err(format!(
            "nothing can be restored along timeline {timeline}: there is no base backup with all its WAL; take one with `walkeep backup`"
        ));
    };
    // In the parts of the segment that was being written, too: what lies behind such a hole is given to nobody.
    if let Some(hole) = newest.holes.iter().find(|hole| hole.from >= last.latest) {
        return Err(format!(
            "WAL is missing from {} to {} of timeline {timeline}, and later WAL is stored: what follows cannot be restored; `walkeep verify` names what is gone",
            hole.from, hole.to
        ));
    }
    match newest.frontier.filter(|end| *end > last.latest) {
        Some(end) => Err(format!(
            "WAL is missing behind {} of timeline {timeline}: what follows, up to {end}, can be restored by a new base backup only; take one with `walkeep backup`",
            last.latest
        )),
        None => Ok(last.earliest.time),
    }
}

fn moment(at: DateTime<Utc>) -> String {
    at.to_rfc3339_opts(SecondsFormat::Secs, true)
}

fn ago(seconds: f64) -> String {
    match Duration::try_from_secs_f64(seconds.max(0.0)).unwrap_or(Duration::MAX) {
        time if time < Duration::from_millis(50) => "now".to_owned(),
        time if time < Duration::from_secs(10) => format!("{:.1} s ago", time.as_secs_f64()),
        time => format!("{} ago", so_long(time)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::catalog::{FirstMissing, Restorable, WalRange, Window};
    use crate::layout::BackupId;
    use crate::{Lsn, TimelineId};

    fn report(timeline: u32, frontier: u64, windows: &[(u64, u64)]) -> TimelineReport {
        let window = |&(from, to): &(u64, u64)| Window {
            earliest: Restorable {
                backup: "20261121T034712Z-0000000002000028".parse::<BackupId>().unwrap(),
                lsn: Lsn::new(from),
                time: "2026-11-21T03:47:12Z".parse().unwrap(),
            },
            latest: Lsn::new(to),
            backups: Vec::new(),
            ends: FirstMissing {
                at: Lsn::new(to),
                segment: "000000010000000000000005".parse().unwrap(),
                resumes: None,
                strays: None,
                gap: None,
            },
        };
        TimelineReport {
            timeline: TimelineId::new(timeline).unwrap(),
            parent: None,
            ancestry_known: true,
            frontier: Some(Lsn::new(frontier)),
            holes: Vec::<WalRange>::new(),
            windows: windows.iter().map(window).collect(),
            unusable: Vec::new(),
        }
    }

    fn heard(loss: Option<f64>, wrong: &[(Severity, &str)]) -> Heard {
        let wrong = wrong.iter().map(|(severity, text)| Wrong { severity: *severity, text: (*text).to_owned() }).collect();
        Heard { stands_by: false, streams: true, possible_loss_seconds: loss, alarms: Some(wrong) }
    }

    fn of(timelines: &[TimelineReport], agent: Option<Heard>) -> (Level, String, Vec<String>) {
        let Safety { level, text, more } = judge(timelines, agent.as_ref(), None);
        (level, text, more)
    }

    #[test]
    fn all_stored_and_nothing_wrong_is_safe() {
        let whole = [report(1, 0x500_0000, &[(0x200_0000, 0x500_0000)])];
        let safe = "every commit until 0.4 s ago can be had back, from 2026-11-21T03:47:12Z on".to_owned();
        assert_eq!(of(&whole, Some(heard(Some(0.4), &[]))), (Level::Safe, safe.clone(), Vec::new()));
        let late = [(Severity::Warning, "a backup is overdue")];
        assert_eq!(of(&whole, Some(heard(Some(0.4), &late))), (Level::AtRisk, "a backup is overdue".to_owned(), vec![safe.clone()]));
        let both = [(Severity::Critical, "the slot is lost"), late[0]];
        let told = of(&whole, Some(heard(Some(0.4), &both)));
        assert_eq!(told, (Level::Unsafe, "the slot is lost".to_owned(), vec![safe, "a backup is overdue".to_owned()]));
    }

    #[test]
    fn what_nobody_knows_is_not_called_safe() {
        let whole = [report(1, 0x500_0000, &[(0x200_0000, 0x500_0000)])];
        assert_eq!(of(&whole, None).0, Level::Unknown);
        assert_eq!(of(&whole, Some(heard(None, &[]))).0, Level::Unsafe);
        assert_eq!(of(&whole, Some(Heard { stands_by: true, ..heard(None, &[]) })).0, Level::Unknown);
        assert_eq!(of(&whole, Some(Heard { alarms: None, ..heard(Some(1.0), &[]) })).0, Level::Unknown);
        assert_eq!(of(&whole, Some(Heard { streams: false, ..heard(None, &[]) })).0, Level::Safe);
    }

    #[test]
    fn an_agent_in_need_is_heard_where_the_repository_cannot_be_seen() {
        let why = || "no answer".to_owned();
        let warned = heard(Some(0.1), &[(Severity::Warning, "a backup is overdue")]);
        let told = Safety { level: Level::Unknown, text: why(), more: vec!["a backup is overdue".to_owned()] };
        assert_eq!(unseen(why(), Some(&warned)), told);
        assert_eq!(unseen(why(), None).level, Level::Unknown);
        let lost = heard(Some(0.1), &[(Severity::Critical, "the slot is lost")]);
        assert_eq!(unseen(why(), Some(&lost)), Safety { level: Level::Unsafe, text: "the slot is lost".to_owned(), more: vec![why()] });
    }

    #[test]
    fn what_cannot_be_restored_is_told_before_all_else() {
        let fine = Some(heard(Some(0.1), &[]));
        for (timelines, words) in [
            (vec![], "nothing is stored"),
            (vec![report(1, 0x500_0000, &[])], "no base backup"),
            (vec![report(1, 0x900_0000, &[(0x200_0000, 0x500_0000)])], "WAL is missing behind 0/5000000"),
            (
                vec![TimelineReport {
                    holes: vec![WalRange { from: Lsn::new(0x500_0000), to: Lsn::new(0x500_1000) }],
                    ..report(1, 0x500_0000, &[(0x200_0000, 0x500_0000)])
                }],
                "WAL is missing from 0/5000000 to 0/5001000",
            ),
            (vec![TimelineReport { ancestry_known: false, ..report(2, 0x500_0000, &[]) }], "history file"),
            (vec![report(1, 0x500_0000, &[(0x200_0000, 0x500_0000)]), report(2, 0x900_0000, &[])], "along timeline 2"),
        ] {
            let (level, text, _) = of(&timelines, fine.clone());
            assert_eq!(level, Level::Unsafe);
            assert!(text.contains(words), "{text}");
        }
    }
}
