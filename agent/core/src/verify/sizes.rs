//! How many bytes an object can have at all: what a listing tells without a read.

use std::ops::RangeInclusive;

use crate::artifact::PIECE;
use crate::layout::{Form, ObjectName};
use crate::manifest::EXTENT_LIMIT;
use crate::segment::SegmentSize;
use crate::wal_file::WalFileName;

const MIB: u64 = 1 << 20;
/// The shortest description of an object, in its frame.
const SHORTEST: u64 = 120;
/// The longest, with all around it.
const FRONT: u64 = 8 << 10;
/// What encrypting adds at least, and at most beside its chunks.
const SEALED: (u64, u64) = (183, 32 << 10);

/// The bytes that an object of this name may have.
pub fn possible_bytes(name: &ObjectName, size: SegmentSize, form: Form) -> RangeInclusive<u64> {
    // zstd gives hardly more than it is given.
    let of = |plain: u64| (SHORTEST, FRONT + plain + plain / 128);
    let (least, most) = match name {
        ObjectName::Wal(WalFileName::Segment(_) | WalFileName::Partial(_)) | ObjectName::OtherPartial { .. } => of(size.bytes()),
        ObjectName::Wal(WalFileName::History(_) | WalFileName::BackupHistory { .. }) => of(MIB),
        ObjectName::Part(part) => of(u64::from(part.to - part.from)),
        ObjectName::Digest(_) | ObjectName::Blocks(_) | ObjectName::Names(_) => of(256 * MIB),
        // A pack is closed when it has 16 MiB; one extent may go beyond.
        ObjectName::Pack(_) => (9, 32 * MIB + 2 * EXTENT_LIMIT),
        ObjectName::BackupManifest(..) => (9, 256 * MIB),
        ObjectName::BackupBegun(_) | ObjectName::BackupRecord(_) | ObjectName::Hold(..) => (2, 16 * MIB),
        ObjectName::Gap(_) | ObjectName::GapClosing(_) | ObjectName::Lease(_) => (2, MIB),
        ObjectName::Expiry(_) | ObjectName::ExpiryEnd(_) => (2, 64 * MIB),
        ObjectName::ArtifactPiece(..) => of(PIECE),
        ObjectName::Audit(_) | ObjectName::ArtifactBegun(_) | ObjectName::ArtifactSummary(_) | ObjectName::ArtifactRecord(_) => {
            (2, 16 * MIB)
        }
        ObjectName::DrillReport(..) | ObjectName::Sample(_) => of(32 * MIB),
        ObjectName::DrillRecord(_) => (2, 16 * MIB),
    };
    match form == Form::Age && name.holds_data() {
        true => least + SEALED.0..=most + most / 4000 + SEALED.1,
        false => least..=most,
    }
}
