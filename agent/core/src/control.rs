//! `global/pg_control`: a data directory's identity, segment size and last checkpoint.
//!
//! The layout is that of control file versions 1300 (PostgreSQL 13 to 16), 1700 and 1800 on a 64-bit little-endian machine. Which of
//! 13 to 16 wrote a file it does not tell; `PG_VERSION` does. Nothing here writes one.

use crate::identity::{MajorVersion, SystemIdentifier, TimelineId};
use crate::le::{u32_at, u64_at};
use crate::lsn::Lsn;
use crate::segment::{SegmentSize, SegmentSizeError};

/// What a control file says, as far as Walkeep needs it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ControlFile {
    /// The cluster.
    pub system: SystemIdentifier,
    /// The layout of the control file itself.
    pub control_version: u32,
    /// The layout of the system catalogs; differs between all majors.
    pub catalog_version: u32,
    /// What the server was doing when it last wrote the file.
    pub state: ClusterState,
    /// The last checkpoint's record.
    pub checkpoint: Lsn,
    /// Where replay from that checkpoint begins.
    pub redo: Lsn,
    /// The timeline of that checkpoint.
    pub timeline: TimelineId,
    /// Bytes of a block of a table's file; chosen when PostgreSQL was built, 8192 as a rule.
    pub block_size: u32,
    /// Blocks of one file of a relation's fork: what is behind them lies in the next one, `.1`. 131072 as a rule.
    pub blocks_per_file: u32,
    /// The cluster's segment size.
    pub segment_size: SegmentSize,
    /// The version of the data page checksums; 0 without them.
    pub checksum_version: u32,
}

/// A server's state according to its control file. A server that was killed leaves the state it had.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum ClusterState {
    /// Starting up.
    Startup,
    /// Shut down, as a primary.
    ShutDown,
    /// Shut down while in recovery.
    ShutDownInRecovery,
    /// Writing the shutdown checkpoint.
    ShuttingDown,
    /// Recovering from a crash.
    InCrashRecovery,
    /// Recovering from an archive, or a standby.
    InArchiveRecovery,
    /// Running as a primary.
    InProduction,
}

impl ClusterState {
    fn from_number(number: u32) -> Option<Self> {
        Some(match number {
            0 => Self::Startup,
            1 => Self::ShutDown,
            2 => Self::ShutDownInRecovery,
            3 => Self::ShuttingDown,
            4 => Self::InCrashRecovery,
            5 => Self::InArchiveRecovery,
            6 => Self::InProduction,
            _ => return None,
        })
    }
}

/// The bytes are not a control file that can be believed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ControlError {
    /// The file ends early.
    #[error("pg_control takes at least {expected} bytes, found {found}")]
    TooShort {
        /// Bytes of its content.
        expected: usize,
        /// Bytes given.
        found: usize,
    },
    /// Written on a machine of the other byte order.
    #[error("pg_control was written on a machine of the other byte order")]
    ByteOrder,
    /// Not a version that Walkeep knows.
    #[error("pg_control version {found} is not one of 1300 (PostgreSQL 13 to 16), 1700 and 1800")]
    Version {
        /// The version in the file.
        found: u32,
    },
    /// The content is not what was written: torn, or damaged.
    #[error("pg_control: expected CRC {expected:08X}, found {found:08X}")]
    Checksum {
        /// What the file says.
        expected: u32,
        /// What its content gives.
        found: u32,
    },
    /// A state that PostgreSQL does not have.
    #[error("pg_control: state {found} is unknown")]
    State {
        /// The number in the file.
        found: u32,
    },
    /// The timeline is 0.
    #[error("pg_control: the last checkpoint is on timeline 0, which does not exist")]
    Timeline,
    /// The segment size is none.
    #[error("pg_control: {0}")]
    SegmentSize(#[from] SegmentSizeError),
}

impl ControlFile {
    /// Whether servers of this major version write such files.
    pub fn is_of(&self, version: MajorVersion) -> bool {
        let written = match version.get() {
            13..=16 => 1300,
            17 => 1700,
            18 => 1800,
            _ => return true,
        };
        self.control_version == written
    }

    /// Reads the content of `global/pg_control`.
    pub fn parse(bytes: &[u8]) -> Result<Self, ControlError> {
        let too_short = |expected| ControlError::TooShort { expected, found: bytes.len() };
        let control_version = u32_at(bytes, 8).ok_or(too_short(12))?;
        // 18 put one more flag before the nonce that precedes the CRC; what is read below lies before both.
        let crc_offset = match control_version {
            1300 | 1700 => 288,
            1800 => 292,
            found if matches!(found.swap_bytes(), 1300 | 1700 | 1800) => return Err(ControlError::ByteOrder),
            found => return Err(ControlError::Version { found }),
        };
        let expected = u32_at(bytes, crc_offset).ok_or(too_short(crc_offset + 4))?;
        let content = &bytes[..crc_offset];
        let found = crc32c::crc32c(content);
        if found != expected {
            return Err(ControlError::Checksum { expected, found });
        }
        let u32_at = |offset| u32_at(content, offset).ok_or(too_short(crc_offset + 4));
        let u64_at = |offset| u64_at(content, offset).ok_or(too_short(crc_offset + 4));
        let state = u32_at(16)?;
        Ok(Self {
            system: SystemIdentifier::new(u64_at(0)?),
            control_version,
            catalog_version: u32_at(12)?,
            state: ClusterState::from_number(state).ok_or(ControlError::State { found: state })?,
            checkpoint: Lsn::new(u64_at(32)?),
            redo: Lsn::new(u64_at(40)?),
            timeline: TimelineId::new(u32_at(48)?).ok_or(ControlError::Timeline)?,
            block_size: u32_at(216)?,
            blocks_per_file: u32_at(220)?,
            segment_size: SegmentSize::new(u32_at(228)?.into())?,
            checksum_version: u32_at(252)?,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// Of PostgreSQL 15.18; what it holds is what `pg_controldata` printed.
    const OF_15: &[u8] = include_bytes!("../tests/fixtures/pg_control-15.bin");

    fn with_checksum(mut bytes: Vec<u8>, crc_offset: usize) -> Vec<u8> {
        let crc = crc32c::crc32c(&bytes[..crc_offset]);
        bytes[crc_offset..crc_offset + 4].copy_from_slice(&crc.to_le_bytes());
        bytes
    }

    #[test]
    fn reads_what_postgresql_writes() {
        let expected = ControlFile {
            system: SystemIdentifier::new(7_710_471_828_323_784_901),
            control_version: 1300,
            catalog_version: 202_209_061,
            state: ClusterState::ShutDown,
            checkpoint: Lsn::new(0x1A0_0028),
            redo: Lsn::new(0x1A0_0028),
            timeline: TimelineId::FIRST,
            block_size: 8192,
            blocks_per_file: 131_072,
            segment_size: SegmentSize::new(1 << 20).expect("a valid size"),
            checksum_version: 0,
        };
        assert_eq!(ControlFile::parse(OF_15), Ok(expected));
    }

    /// Of 17.10 and 18.4; what they hold is what `pg_control_checkpoint()` and its kin said.
    #[test]
    fn reads_what_later_versions_write() {
        let of = |bytes: &[u8]| {
            let file = ControlFile::parse(bytes).expect("parses");
            assert_eq!((file.state, file.timeline, file.checksum_version), (ClusterState::InProduction, TimelineId::FIRST, 1));
            assert_eq!((file.block_size, file.segment_size.bytes()), (8192, 1 << 20));
            (file.system.get(), file.control_version, file.catalog_version, file.checkpoint.get(), file.redo.get())
        };
        let of_17 = of(include_bytes!("../tests/fixtures/pg_control-17.bin"));
        assert_eq!(of_17, (7_710_480_333_846_415_840, 1700, 202_406_281, 0x182_E278, 0x182_E220));
        let of_18 = of(include_bytes!("../tests/fixtures/pg_control-18.bin"));
        assert_eq!(of_18, (7_710_480_361_724_009_191, 1800, 202_506_291, 0x193_4C40, 0x193_4BE8));
    }

    #[test]
    fn refuses_what_cannot_be_believed() {
        let changed = |offset: usize, value: u8| {
            let mut bytes = OF_15.to_vec();
            bytes[offset] = value;
            bytes
        };
        assert!(matches!(ControlFile::parse(&changed(40, 1)), Err(ControlError::Checksum { .. })));
        assert_eq!(ControlFile::parse(&changed(8, 0)), Err(ControlError::Version { found: 0x500 }));
        let mut swapped = OF_15.to_vec();
        swapped[8..12].reverse();
        assert_eq!(ControlFile::parse(&swapped), Err(ControlError::ByteOrder));
        assert_eq!(ControlFile::parse(&with_checksum(changed(16, 9), 288)), Err(ControlError::State { found: 9 }));
        assert_eq!(ControlFile::parse(&with_checksum(changed(48, 0), 288)), Err(ControlError::Timeline));
        assert!(matches!(ControlFile::parse(&with_checksum(changed(229, 1), 288)), Err(ControlError::SegmentSize(_))));
        assert_eq!(ControlFile::parse(&OF_15[..291]), Err(ControlError::TooShort { expected: 292, found: 291 }));
        assert_eq!(ControlFile::parse(&[]), Err(ControlError::TooShort { expected: 12, found: 0 }));
    }

    proptest! {
        #[test]
        fn any_bytes_are_answered(bytes in proptest::collection::vec(any::<u8>(), 0..400), version in prop_oneof![Just(1300u32), Just(1700), Just(1800)]) {
            let mut bytes = bytes;
            let _ = ControlFile::parse(&bytes);
            if let Some(field) = bytes.get_mut(8..12) {
                field.copy_from_slice(&version.to_le_bytes());
            }
            let _ = ControlFile::parse(&bytes);
        }
    }
}
