//! What the running server can prove about a time after the last commit that is stored.
//!
//! Where no commit past the time is stored, nothing in the WAL says whether one of before is missing. The server can: if its clock is past
//! the time, and everything it has written since is stored, then all that was committed up to that time was read. The order of questions
//! matters: first the catalog, then the clock, then the position.

use serde::Serialize;

use crate::identity::TimelineId;
use crate::lsn::Lsn;
use crate::page::PAGE_SIZE;
use crate::segment::SegmentSize;
use crate::time::PgTimestamp;

/// A server in operation, asked after the catalog was read.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize)]
pub struct ServerNow {
    /// The timeline it writes.
    pub timeline: TimelineId,
    /// Its clock, read first.
    pub clock: PgTimestamp,
    /// Where its next record goes, read after the clock.
    pub writes_at: Lsn,
    /// What it has flushed to disk, read after the clock. Only that is ever streamed: of what is no commit the rest may wait for long.
    pub flushed_to: Lsn,
    /// The most microseconds between a commit that did not wait for the disk and its flush: three times `wal_writer_delay`, as
    /// PostgreSQL's documentation has it.
    pub flush_delay: i64,
}

/// What the server said.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Witness {
    /// It was not asked.
    NotAsked,
    /// It could not be asked, or does not write.
    Silent {
        /// Why.
        reason: String,
    },
    /// It answered.
    Answered(ServerNow),
}

/// Why it is not proven that nothing was committed between the last stored commit and the time asked for.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, thiserror::Error)]
#[serde(rename_all = "snake_case")]
pub enum Unproven {
    /// The server was not asked.
    #[error("the server was not asked")]
    NotAsked,
    /// The server does not say.
    #[error("the server cannot tell: {reason}")]
    Silent {
        /// Why.
        reason: String,
    },
    /// The time is still to come.
    #[error("it lies in the future by the server's clock")]
    Future {
        /// The server's clock.
        clock: PgTimestamp,
    },
    /// The server writes another timeline.
    #[error("the server is on timeline {timeline} and says nothing of this one")]
    OtherTimeline {
        /// The server's.
        timeline: TimelineId,
    },
    /// Not all that the server has written is stored.
    #[error("not all that the server has written is stored, only what lies before {stored}; try again once it is (walkeep status)")]
    Behind {
        /// Where the server writes.
        writes_at: Lsn,
        /// What is stored ends here.
        stored: Lsn,
    },
}

impl Witness {
    /// Whether everything that was committed up to `time` lies before `stored`, the end of the last record that was read.
    pub(super) fn proves(&self, time: PgTimestamp, timeline: TimelineId, stored: Lsn, size: SegmentSize) -> Result<(), Unproven> {
        match self {
            Self::NotAsked => Err(Unproven::NotAsked),
            Self::Silent { reason } => Err(Unproven::Silent { reason: reason.clone() }),
            Self::Answered(now) if now.clock <= time => Err(Unproven::Future { clock: now.clock }),
            Self::Answered(now) if now.timeline != timeline => Err(Unproven::OtherTimeline { timeline: now.timeline }),
            Self::Answered(now) => {
                let flushed = now.clock.micros() >= time.micros().saturating_add(now.flush_delay);
                let writes_at = if flushed { now.flushed_to } else { now.writes_at };
                if before_header(writes_at, size) > stored { Err(Unproven::Behind { writes_at, stored }) } else { Ok(()) }
            }
        }
    }
}

/// The same position without the page's header, of which a server that has just begun a page tells the end.
fn before_header(position: Lsn, size: SegmentSize) -> Lsn {
    let in_page = position.get() % PAGE_SIZE;
    let header = if size.offset_of(position) < PAGE_SIZE { 40 } else { 24 };
    if in_page == header { Lsn::new(position.get() - in_page) } else { position }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: u64 = 1 << 20;

    #[test]
    fn a_server_proves_what_its_clock_has_passed_and_all_of_which_is_stored() {
        let tli = |number| TimelineId::new(number).expect("not zero");
        let at = PgTimestamp::from_micros;
        let size = SegmentSize::new(MIB).expect("a size");
        let proves = |clock, timeline, writes_at: u64, stored: u64| {
            let (writes_at, flushed_to) = (Lsn::new(writes_at), Lsn::new(writes_at - 8));
            let now = ServerNow { timeline: tli(timeline), clock: at(clock), writes_at, flushed_to, flush_delay: 50 };
            Witness::Answered(now).proves(at(100), tli(2), Lsn::new(stored), size)
        };
        assert_eq!(proves(101, 2, 3 * MIB + 99, 3 * MIB + 99), Ok(()));
        assert_eq!(proves(101, 2, 3 * MIB + 40, 3 * MIB), Ok(()), "a segment's header");
        assert_eq!(proves(101, 2, 3 * MIB + 8192 + 24, 3 * MIB + 8192), Ok(()), "a page's header");
        assert!(matches!(proves(101, 2, 3 * MIB + 24, 3 * MIB), Err(Unproven::Behind { .. })));
        assert!(matches!(proves(101, 2, 3 * MIB + 99, 3 * MIB + 91), Err(Unproven::Behind { .. })));
        assert_eq!(proves(150, 2, 3 * MIB + 99, 3 * MIB + 91), Ok(()), "every commit of the time is flushed by now");
        assert!(matches!(proves(150, 2, 3 * MIB + 99, 3 * MIB + 90), Err(Unproven::Behind { .. })));
        assert!(matches!(proves(100, 2, 99, 99), Err(Unproven::Future { .. })), "the moment itself is not over");
        assert!(matches!(proves(101, 3, 99, 99), Err(Unproven::OtherTimeline { .. })));
        assert_eq!(Witness::NotAsked.proves(at(1), tli(2), Lsn::ZERO, size), Err(Unproven::NotAsked));
    }
}
