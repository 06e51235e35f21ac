//! `backup_label`: where recovery of a base backup has to begin.
//!
//! Written by `pg_backup_stop` or `pg_basebackup`, read by the server that starts from the backup. Lines this module does not know
//! are passed over, as newer servers add some. The `.backup` files in an archive are not read.

use crate::identity::TimelineId;
use crate::lsn::Lsn;
use crate::segment::SegmentName;

/// What a backup label says.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct BackupLabel {
    /// Where replay begins: the redo position of the backup's checkpoint.
    pub start: Lsn,
    /// The segment that holds it.
    pub segment: SegmentName,
    /// The record of the backup's checkpoint.
    pub checkpoint: Lsn,
    /// `streamed`, or what an exclusive backup of old had.
    pub method: Option<String>,
    /// Whether a standby was copied.
    pub from_standby: bool,
    /// When the backup began, as the server's `log_timezone` prints it: for people.
    pub start_time: Option<String>,
    /// The label its maker gave.
    pub label: Option<String>,
    /// The timeline of the start.
    pub timeline: TimelineId,
    /// The backup that this one, if incremental, builds on.
    pub incremental_from: Option<IncrementalFrom>,
}

/// The start of the backup that an incremental one builds on.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct IncrementalFrom {
    /// Its start LSN.
    pub start: Lsn,
    /// Its start timeline.
    pub timeline: TimelineId,
}

/// A backup label that cannot be believed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum LabelError {
    /// A line is missing without which recovery cannot begin.
    #[error("the backup label has no line {field:?}")]
    Missing {
        /// The line's name.
        field: &'static str,
    },
    /// A line is there twice; a label with line breaks can forge others.
    #[error("the backup label has two lines {field:?}")]
    Repeated {
        /// The line's name.
        field: &'static str,
    },
    /// A line's value does not have its form.
    #[error("the backup label's {field:?} is malformed: {value:?}")]
    Malformed {
        /// The line's name.
        field: &'static str,
        /// The value, cut to a length for messages.
        value: String,
    },
}

impl BackupLabel {
    /// Reads the content of `backup_label`.
    pub fn parse(content: &[u8]) -> Result<Self, LabelError> {
        // The label itself may be in any encoding; all other lines are ASCII.
        let text = String::from_utf8_lossy(content);
        let lines = Lines { text: &text };
        let (start, segment) = lines.required("START WAL LOCATION", start_location)?;
        let checkpoint = lines.required("CHECKPOINT LOCATION", |value| value.parse().ok())?;
        let timeline = lines.parsed("START TIMELINE", |value| value.parse().ok())?;
        let incremental_start = lines.parsed("INCREMENTAL FROM LSN", |value| value.parse().ok())?;
        let incremental_timeline = lines.parsed("INCREMENTAL FROM TLI", |value| value.parse().ok())?;
        Ok(Self {
            start,
            segment,
            checkpoint,
            method: lines.text("BACKUP METHOD")?,
            from_standby: lines.text("BACKUP FROM")?.as_deref() == Some("standby"),
            start_time: lines.text("START TIME")?,
            label: lines.text("LABEL")?,
            // The line exists since 11; the segment's name has the same timeline.
            timeline: timeline.unwrap_or(segment.timeline()),
            incremental_from: match (incremental_start, incremental_timeline) {
                (Some(start), Some(timeline)) => Some(IncrementalFrom { start, timeline }),
                (None, None) => None,
                (Some(_), None) => return Err(LabelError::Missing { field: "INCREMENTAL FROM TLI" }),
                (None, Some(_)) => return Err(LabelError::Missing { field: "INCREMENTAL FROM LSN" }),
            },
        })
    }
}

/// `0/2000028 (file 000000010000000000000002)`
fn start_location(value: &str) -> Option<(Lsn, SegmentName)> {
    let (lsn, file) = value.split_once(" (file ")?;
    Some((lsn.parse().ok()?, file.strip_suffix(')')?.parse().ok()?))
}

struct Lines<'a> {
    text: &'a str,
}

impl Lines<'_> {
    fn value(&self, field: &'static str) -> Result<Option<&str>, LabelError> {
        let mut values = self.text.lines().filter_map(|line| line.strip_prefix(field)?.strip_prefix(": "));
        let value = values.next();
        if values.next().is_some() { Err(LabelError::Repeated { field }) } else { Ok(value) }
    }

    fn text(&self, field: &'static str) -> Result<Option<String>, LabelError> {
        Ok(self.value(field)?.map(str::to_owned))
    }

    fn parsed<T>(&self, field: &'static str, parse: impl Fn(&str) -> Option<T>) -> Result<Option<T>, LabelError> {
        let malformed = |value: &str| LabelError::Malformed { field, value: value.chars().take(80).collect() };
        self.value(field)?.map(|value| parse(value).ok_or_else(|| malformed(value))).transpose()
    }

    fn required<T>(&self, field: &'static str, parse: impl Fn(&str) -> Option<T>) -> Result<T, LabelError> {
        self.parsed(field, parse)?.ok_or(LabelError::Missing { field })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// As PostgreSQL 15 wrote it.
    const STREAMED: &str = "START WAL LOCATION: 0/800028 (file 000000010000000000000008)\nCHECKPOINT LOCATION: 0/800060\n\
        BACKUP METHOD: streamed\nBACKUP FROM: primary\nSTART TIME: 2026-11-21 04:08:39 UTC\n\
        LABEL: pg_basebackup base backup\nSTART TIMELINE: 1\n";

    #[test]
    fn reads_what_postgresql_writes() {
        let label = BackupLabel::parse(STREAMED.as_bytes()).expect("parses");
        assert_eq!((label.start, label.checkpoint), (Lsn::new(0x80_0028), Lsn::new(0x80_0060)));
        assert_eq!(label.segment.to_string(), "000000010000000000000008");
        assert_eq!((label.timeline, label.from_standby, label.incremental_from), (TimelineId::FIRST, false, None));
        assert_eq!(label.method.as_deref(), Some("streamed"));
        assert_eq!(label.start_time.as_deref(), Some("2026-11-21 04:08:39 UTC"));
        assert_eq!(label.label.as_deref(), Some("pg_basebackup base backup"));
    }

    #[test]
    fn reads_an_incremental_backup_of_a_standby_and_passes_over_the_rest() {
        let text = STREAMED.replace("primary", "standby") + "INCREMENTAL FROM LSN: 0/400028\nINCREMENTAL FROM TLI: 1\nNEW IN 42: yes\n\n";
        let label = BackupLabel::parse(text.as_bytes()).expect("parses");
        assert!(label.from_standby);
        assert_eq!(label.incremental_from, Some(IncrementalFrom { start: Lsn::new(0x40_0028), timeline: TimelineId::FIRST }));
    }

    #[test]
    fn refuses_what_recovery_could_not_use() {
        let refused = |from: &str, to: &str| BackupLabel::parse(STREAMED.replace(from, to).as_bytes()).expect_err("refused").to_string();
        assert_eq!(refused("START WAL", "WAL"), "the backup label has no line \"START WAL LOCATION\"");
        assert_eq!(refused(": 0/800060", ": 800060"), "the backup label's \"CHECKPOINT LOCATION\" is malformed: \"800060\"");
        assert_eq!(refused("base backup", "x\nSTART TIMELINE: 9"), "the backup label has two lines \"START TIMELINE\"");
        assert_eq!(refused("TIMELINE: 1", "TIMELINE: 0"), "the backup label's \"START TIMELINE\" is malformed: \"0\"");
        assert!(refused("(file 0", "(file x").contains("malformed"));
        assert_eq!(refused("START TIMELINE: 1", "INCREMENTAL FROM LSN: 0/1"), "the backup label has no line \"INCREMENTAL FROM TLI\"");
    }

    proptest! {
        #[test]
        fn any_bytes_are_answered(bytes in proptest::collection::vec(any::<u8>(), 0..256)) {
            let _ = BackupLabel::parse(&bytes);
        }
    }
}
