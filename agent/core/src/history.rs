//! Timeline history files: which timeline grew out of which, and where.
//!
//! Format (PostgreSQL's `timeline.c`): one line an ancestor, `parent<TAB>switch point<TAB>reason`, oldest first; `#` begins a comment.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::identity::TimelineId;
use crate::lsn::Lsn;

/// One ancestor of a timeline.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Ancestor {
    /// The timeline that was left.
    pub timeline: TimelineId,
    /// Where it was left: the first position that does not belong to it.
    pub switch: Lsn,
    /// PostgreSQL's own words, such as `no recovery target specified`.
    pub reason: String,
}

/// The ancestors of one timeline, oldest first.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct TimelineHistory {
    timeline: TimelineId,
    ancestors: Vec<Ancestor>,
}

/// For people: `timeline 1 up to 0/9000A0 (no recovery target specified), then 2`.
impl fmt::Display for TimelineHistory {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("timeline ")?;
        for Ancestor { timeline, switch, reason } in &self.ancestors {
            write!(f, "{timeline} up to {switch} ({reason}), then ")?;
        }
        write!(f, "{}", self.timeline)
    }
}

/// A history file that cannot be believed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum HistoryError {
    /// The file is not UTF-8 text.
    #[error("the history of timeline {0} is not text")]
    NotText(TimelineId),
    /// A line does not have PostgreSQL's form.
    #[error("line {line} of the history of timeline {timeline} is malformed: expected a timeline and an LSN")]
    Malformed {
        /// The history's timeline.
        timeline: TimelineId,
        /// Counted from 1.
        line: usize,
    },
    /// Timelines or switch points do not rise.
    #[error("line {line} of the history of timeline {timeline} is out of order: timelines and switch points must rise, below {timeline}")]
    OutOfOrder {
        /// The history's timeline.
        timeline: TimelineId,
        /// Counted from 1.
        line: usize,
    },
}

impl TimelineHistory {
    /// A timeline without ancestors, such as timeline 1.
    pub fn root(timeline: TimelineId) -> Self {
        Self { timeline, ancestors: Vec::new() }
    }

    /// Reads the content of `<timeline>.history`.
    pub fn parse(timeline: TimelineId, content: &[u8]) -> Result<Self, HistoryError> {
        let text = std::str::from_utf8(content).map_err(|_| HistoryError::NotText(timeline))?;
        let mut ancestors: Vec<Ancestor> = Vec::new();
        for (index, line) in text.lines().enumerate() {
            let line_number = index + 1;
            let line = line.trim();
            if line.is_empty() || line.starts_with('#') {
                continue;
            }
            let ancestor = parse_line(line).ok_or(HistoryError::Malformed { timeline, line: line_number })?;
            let after_last = ancestors.last().is_none_or(|last| last.timeline < ancestor.timeline && last.switch <= ancestor.switch);
            if !after_last || ancestor.timeline >= timeline {
                return Err(HistoryError::OutOfOrder { timeline, line: line_number });
            }
            ancestors.push(ancestor);
        }
        Ok(Self { timeline, ancestors })
    }

    /// The timeline whose history this is.
    pub fn timeline(&self) -> TimelineId {
        self.timeline
    }

    /// Its ancestors, oldest first.
    pub fn ancestors(&self) -> &[Ancestor] {
        &self.ancestors
    }

    /// All timelines of it, oldest first, itself last.
    pub fn lineage(&self) -> impl Iterator<Item = TimelineId> + '_ {
        self.ancestors.iter().map(|ancestor| ancestor.timeline).chain([self.timeline])
    }

    /// The timeline it grew out of; `None` for one without ancestors.
    pub fn parent(&self) -> Option<&Ancestor> {
        self.ancestors.last()
    }

    /// Where the timeline itself begins: its switch point, or `0/0`.
    pub fn begins(&self) -> Lsn {
        self.parent().map_or(Lsn::ZERO, |parent| parent.switch)
    }

    /// The timeline to which the byte at `lsn` belongs in this history.
    pub fn timeline_at(&self, lsn: Lsn) -> TimelineId {
        let ancestor = self.ancestors.iter().find(|ancestor| lsn < ancestor.switch);
        ancestor.map_or(self.timeline, |ancestor| ancestor.timeline)
    }

    /// Where this history leaves `timeline`: `Some(None)` for the timeline itself, which goes on; `None` if it is no ancestor.
    pub fn leaves(&self, timeline: TimelineId) -> Option<Option<Lsn>> {
        if timeline == self.timeline {
            return Some(None);
        }
        self.ancestors.iter().find(|ancestor| ancestor.timeline == timeline).map(|ancestor| Some(ancestor.switch))
    }

    /// Whether the state of `timeline` at `lsn` (everything before `lsn` replayed) is part of this history.
    pub fn contains(&self, timeline: TimelineId, lsn: Lsn) -> bool {
        self.leaves(timeline).is_some_and(|end| end.is_none_or(|end| lsn <= end))
    }
}

fn parse_line(line: &str) -> Option<Ancestor> {
    let mut fields = line.splitn(3, [' ', '\t']);
    let timeline = fields.next()?.parse().ok()?;
    // PostgreSQL skips white space between the fields.
    let rest = line[line.find([' ', '\t'])?..].trim_start();
    let (switch, reason) = rest.split_once([' ', '\t']).unwrap_or((rest, ""));
    Some(Ancestor { timeline, switch: switch.parse().ok()?, reason: reason.trim().to_owned() })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tli(value: u32) -> TimelineId {
        TimelineId::new(value).expect("not zero")
    }

    fn history(timeline: u32, text: &str) -> Result<TimelineHistory, HistoryError> {
        TimelineHistory::parse(tli(timeline), text.as_bytes())
    }

    #[test]
    fn reads_what_postgresql_writes() {
        let three = history(3, "1\t0/3000148\tno recovery target specified\n\n2\t0/5000000\tbefore transaction 735\n").expect("parses");
        assert_eq!(three.ancestors().len(), 2);
        assert_eq!(three.parent().map(|p| (p.timeline, p.switch)), Some((tli(2), Lsn::new(0x500_0000))));
        assert_eq!(three.ancestors()[0].reason, "no recovery target specified");
        assert_eq!(three.timeline_at(Lsn::new(0x300_0147)), tli(1));
        assert_eq!(three.timeline_at(Lsn::new(0x300_0148)), tli(2));
        assert_eq!(three.timeline_at(Lsn::MAX), tli(3));
        assert!(three.contains(tli(1), Lsn::new(0x300_0148)));
        assert!(!three.contains(tli(1), Lsn::new(0x300_0149)));
        assert!(three.contains(tli(3), Lsn::MAX));
        assert!(!three.contains(tli(4), Lsn::ZERO));
        assert_eq!(three.lineage().map(TimelineId::get).collect::<Vec<_>>(), [1, 2, 3]);
        let told = "timeline 1 up to 0/3000148 (no recovery target specified), then 2 up to 0/5000000 (before transaction 735), then 3";
        assert_eq!(three.to_string(), told);
    }

    #[test]
    fn refuses_what_cannot_be() {
        assert!(matches!(history(2, "1 garbage\n"), Err(HistoryError::Malformed { line: 1, .. })));
        assert!(matches!(history(2, "1\n"), Err(HistoryError::Malformed { line: 1, .. })));
        assert!(matches!(history(2, "2\t0/1\tself\n"), Err(HistoryError::OutOfOrder { line: 1, .. })));
        assert!(matches!(history(4, "2\t0/5\tx\n1\t0/6\ty\n"), Err(HistoryError::OutOfOrder { line: 2, .. })));
        assert!(matches!(history(4, "1\t0/5\tx\n2\t0/4\ty\n"), Err(HistoryError::OutOfOrder { line: 2, .. })));
        assert!(matches!(TimelineHistory::parse(tli(2), &[0xff]), Err(HistoryError::NotText(_))));
    }
}
