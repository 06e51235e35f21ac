//! What is told: in one message all that has changed since the last one.

use chrono::{DateTime, SecondsFormat, Utc};
use serde::Serialize;

use super::{Alarm, AlarmKind, Severity, so_long};
use crate::identifier::printable;

/// What a message is about, above all.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Event {
    /// Something is wrong.
    Failure,
    /// It is still wrong.
    Reminder,
    /// It is not wrong any more.
    Recovery,
    /// Somebody tries whether messages arrive.
    Test,
}

impl Event {
    /// In a word.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Failure => "failure",
            Self::Reminder => "reminder",
            Self::Recovery => "recovery",
            Self::Test => "test",
        }
    }
}

/// An alarm as it is told.
#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
pub struct Said {
    /// What it is.
    #[serde(flatten)]
    pub alarm: Alarm,
    /// How urgent.
    pub severity: Severity,
    /// Since when.
    pub since: DateTime<Utc>,
    /// Its section of the runbook.
    pub runbook: &'static str,
}

impl Said {
    pub(super) fn new(alarm: &Alarm, since: DateTime<Utc>) -> Self {
        Self { alarm: alarm.clone(), severity: alarm.kind.severity(), since, runbook: alarm.kind.section() }
    }
}

/// A message.
#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
pub struct Message {
    /// What it is about, above all.
    pub event: Event,
    /// When.
    pub at: DateTime<Utc>,
    /// What is wrong and was not told yet.
    pub wrong: Vec<Said>,
    /// What was told before and is wrong still.
    pub still: Vec<Said>,
    /// What was told before and is over.
    pub recovered: Vec<Said>,
    /// How many more were told before and are wrong still.
    pub others: usize,
}

/// More are counted only: a message is read on a telephone.
const SHOWN: usize = 12;
/// Characters of one alarm: it may quote a server's own words.
const LONGEST: usize = 600;

impl Message {
    /// Whether messages arrive.
    pub fn test(at: DateTime<Utc>) -> Self {
        Self { event: Event::Test, at, wrong: Vec::new(), still: Vec::new(), recovered: Vec::new(), others: 0 }
    }

    /// Of all that is wrong in it the most urgent.
    pub fn severity(&self) -> Option<Severity> {
        self.wrong.iter().chain(&self.still).map(|said| said.severity).max()
    }

    /// The alarms in it.
    pub fn kinds(&self) -> impl Iterator<Item = AlarmKind> + '_ {
        self.wrong.iter().chain(&self.still).chain(&self.recovered).map(|said| said.alarm.kind)
    }

    /// One line: the subject of a mail.
    pub fn headline(&self, cluster: &str) -> String {
        let names = |said: &[Said]| {
            let mut names: Vec<&str> = said.iter().map(|said| said.alarm.kind.as_str()).collect();
            names.dedup();
            names.truncate(4);
            names.join(", ")
        };
        let severity = self.severity().map(|severity| severity.to_string().to_uppercase()).unwrap_or_default();
        match self.event {
            Event::Failure => format!("{severity}: {} on {cluster}", names(&self.wrong)),
            Event::Reminder => format!("{severity}, still: {} on {cluster}", names(&self.still)),
            Event::Recovery if self.others == 0 => format!("OK: {cluster} has recovered from {}", names(&self.recovered)),
            Event::Recovery => format!("{cluster} has recovered from {}; other alarms stand", names(&self.recovered)),
            Event::Test => format!("TEST: messages of {cluster} arrive here"),
        }
    }

    /// The whole text, for people.
    pub fn text(&self, cluster: &str, host: &str) -> String {
        let mut lines = vec![format!("Walkeep, {}", self.headline(cluster))];
        if self.event == Event::Test {
            lines.push("Nothing is wrong: somebody tried whether this arrives (walkeep notify --test).".to_owned());
        }
        for (said, how) in [(&self.wrong, ""), (&self.still, "still, "), (&self.recovered, "over: ")] {
            for said in said.iter().take(SHOWN) {
                let severity = if how == "over: " { String::new() } else { format!("{}: ", said.severity) };
                let held = so_long((self.at - said.since).to_std().unwrap_or_default());
                let since = said.since.to_rfc3339_opts(SecondsFormat::Secs, true);
                let text: String = printable(&said.alarm.text).chars().take(LONGEST).collect();
                lines.push(format!("- {how}{severity}{text} [{}; since {since}, {held}]", said.alarm.kind));
            }
            if said.len() > SHOWN {
                lines.push(format!("- and {} more", said.len() - SHOWN));
            }
        }
        if self.others > 0 {
            lines.push(format!("{} more, told before, stand still.", self.others));
        }
        lines.push(format!("From {host}, {}.", self.at.to_rfc3339_opts(SecondsFormat::Secs, true)));
        lines.join("\n")
    }
}
