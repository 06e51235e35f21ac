//! The names PostgreSQL's archiver and recovery use for files: what `%f` may be.

use std::fmt;
use std::str::FromStr;

use crate::identity::{TimelineId, parse_hex8};
use crate::segment::SegmentName;

/// A file that archive_command may offer or restore_command may ask for.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum WalFileName {
    /// A whole segment: `000000010000000000000003`.
    Segment(SegmentName),
    /// The last, unfinished segment of a timeline that ended: `000000010000000000000003.partial`.
    /// Never asked for by recovery, and never stands in for the segment.
    Partial(SegmentName),
    /// A timeline's history: `00000002.history`.
    History(TimelineId),
    /// The note a base backup leaves in the archive: `000000010000000000000002.00000028.backup`.
    BackupHistory {
        /// The segment in which the backup began.
        segment: SegmentName,
        /// Byte offset in that segment at which it began.
        offset: u32,
    },
}

impl fmt::Display for WalFileName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Segment(segment) => segment.fmt(f),
            Self::Partial(segment) => write!(f, "{segment}.partial"),
            Self::History(timeline) => write!(f, "{}.history", timeline.hex()),
            Self::BackupHistory { segment, offset } => write!(f, "{segment}.{offset:08X}.backup"),
        }
    }
}

/// The text is none of the names PostgreSQL uses.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{text:?} is not the name of a WAL segment, a .partial, a .history or a .backup file")]
pub struct ParseWalFileNameError {
    text: String,
}

impl FromStr for WalFileName {
    type Err = ParseWalFileNameError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let parse = || match text.split_once('.') {
            None => text.parse().ok().map(Self::Segment),
            Some((segment, "partial")) => segment.parse().ok().map(Self::Partial),
            Some((timeline, "history")) => TimelineId::parse_hex(timeline).map(Self::History),
            Some((segment, rest)) => {
                let offset = parse_hex8(rest.strip_suffix(".backup")?)?;
                Some(Self::BackupHistory { segment: segment.parse().ok()?, offset })
            }
        };
        parse().ok_or_else(|| ParseWalFileNameError { text: text.chars().take(80).collect() })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_kind_round_trips() {
        for text in
            ["000000010000000000000003", "000000010000000000000003.partial", "0000000A.history", "000000010000000000000002.00000028.backup"]
        {
            assert_eq!(text.parse::<WalFileName>().map(|name| name.to_string()), Ok(text.to_owned()));
        }
    }

    #[test]
    fn refuses_every_other_name() {
        for text in [
            "",
            ".",
            "..",
            "../000000010000000000000003",
            "000000010000000000000003.gz",
            "000000010000000000000003.gz.tmp",
            "000000010000000000000003.partial.partial",
            "000000010000000000000003\n",
            "000000010000000000000003.28.backup",
            "00000001.history.tmp",
            "0000000a.history",
            "RECOVERYXLOG",
            "archive_status",
        ] {
            assert!(text.parse::<WalFileName>().is_err(), "{text:?}");
        }
    }
}
