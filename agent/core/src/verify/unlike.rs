//! What several listings of one cluster tell together, for whom nothing has to be opened: sizes that are not the same everywhere, packs that only one has.
//!
//! An object is encrypted and compressed once and brought to each repository as it is: where it has another size it is cut off, or not what was stored.

use std::cmp::Ordering;
use std::collections::BTreeMap;

use chrono::{DateTime, TimeDelta, Utc};

use super::lacking::Side;
use crate::backup::BackupRecord;
use crate::layout::{BackupId, ObjectName, PackId};
use crate::lsn::Lsn;
use crate::segment::{SegmentName, SegmentSize};
use crate::wal_file::WalFileName;

/// A store's clock may be so far from that of the host that took a backup.
const CLOCKS: TimeDelta = TimeDelta::seconds(60);

/// An object that does not have the same size in all repositories that have it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Unlike {
    /// Its name.
    pub name: ObjectName,
    /// The numbers of these repositories, each with the bytes there.
    pub sizes: BTreeMap<usize, u64>,
}

/// What does not have the same size everywhere, in the order of names. Of what any of them let go nothing is said: it is on its way out. Of one backup: its
/// manifest and its own WAL.
pub fn unlike(sides: &[(usize, Side<'_>)], of: Option<&BackupId>) -> Vec<Unlike> {
    let mut found: BTreeMap<ObjectName, BTreeMap<usize, u64>> = BTreeMap::new();
    let mut add = |name: ObjectName, sizes: [(usize, u64); 2]| found.entry(name).or_default().extend(sizes);
    for (index, (number, one)) in sides.iter().enumerate() {
        for (another, other) in &sides[index + 1..] {
            for timeline in one.catalog.timelines() {
                let size = one.catalog.segment_size();
                for (segment, bytes, others) in differing(one.catalog.sized_segments(timeline), other.catalog.sized_segments(timeline)) {
                    let name = ObjectName::Wal(WalFileName::Segment(segment.name(timeline, size)));
                    add(name, [(*number, bytes), (*another, others)]);
                }
            }
            let [rest, others] = [one, other].map(|side| side.listing.sizes.iter().map(|(name, bytes)| (name, *bytes)));
            for (name, bytes, others) in differing(rest, others) {
                add(name.clone(), [(*number, bytes), (*another, others)]);
            }
            for (pack, bytes) in one.packs {
                if let Some(others) = other.packs.get(pack).filter(|others| *others != bytes) {
                    add(ObjectName::Pack(*pack), [(*number, *bytes), (*another, *others)]);
                }
            }
        }
    }
    found.retain(|name, _| !is_let_go(name, sides) && of.is_none_or(|of| is_of(name, of, sides)));
    found.into_iter().map(|(name, sizes)| Unlike { name, sizes }).collect()
}

/// What is in both, in order, with different bytes; what was not listed has none.
fn differing<K: Ord>(one: impl Iterator<Item = (K, u64)>, other: impl Iterator<Item = (K, u64)>) -> Vec<(K, u64, u64)> {
    let (mut found, mut other) = (Vec::new(), other.peekable());
    for (key, bytes) in one.filter(|(_, bytes)| *bytes > 0) {
        while other.next_if(|(next, _)| next.cmp(&key) == Ordering::Less).is_some() {}
        if let Some((_, others)) = other.next_if(|(next, _)| *next == key)
            && others != bytes
            && others > 0
        {
            found.push((key, bytes, others));
        }
    }
    found
}

fn is_let_go(name: &ObjectName, sides: &[(usize, Side<'_>)]) -> bool {
    sides.iter().any(|(_, side)| {
        let (expired, size) = (side.catalog.expired(), side.catalog.segment_size());
        match name {
            ObjectName::BackupManifest(id, _) => expired.has_backup(id),
            ObjectName::ArtifactPiece(place, _) | ObjectName::ArtifactSummary(place) => expired.has_artifact(place),
            name => wal_of(name, size).is_some_and(|(segment, from, _)| expired.has_segment(segment.timeline(), from)),
        }
    })
}

fn is_of(name: &ObjectName, backup: &BackupId, sides: &[(usize, Side<'_>)]) -> bool {
    match name {
        ObjectName::BackupManifest(id, _) => id == backup,
        name => sides.iter().filter_map(|(_, side)| Some((side, side.catalog.backup(backup)?))).any(|(side, record)| {
            let wal = wal_of(name, side.catalog.segment_size());
            wal.is_some_and(|(segment, from, to)| {
                segment.timeline() == record.stops_on() && from < record.stop_lsn && to > record.start_lsn
            })
        }),
    }
}

/// The segment that an object of WAL belongs to, with where it begins and ends.
fn wal_of(name: &ObjectName, size: SegmentSize) -> Option<(SegmentName, Lsn, Lsn)> {
    let segment = match name {
        ObjectName::Wal(WalFileName::Segment(segment) | WalFileName::Partial(segment) | WalFileName::BackupHistory { segment, .. })
        | ObjectName::OtherPartial { segment, .. } => *segment,
        ObjectName::Part(part) => part.segment,
        _ => return None,
    };
    let number = segment.number(size)?;
    Some((segment, number.start(size), number.end(size)))
}

/// The packs that `own` lacks of `other`, in order. Some of them may be what no backup needs any more and one store did not let go.
pub fn packs_lacking(own: Side<'_>, other: Side<'_>) -> Vec<PackId> {
    let mut lacks: Vec<PackId> = other.packs.keys().filter(|pack| !own.packs.contains_key(pack)).copied().collect();
    lacks.sort_unstable();
    lacks
}

/// The backup that was taken when something was put.
pub fn taken_when(backups: &[BackupRecord], put: DateTime<Utc>) -> Option<&BackupRecord> {
    backups.iter().find(|backup| backup.started_at - CLOCKS <= put && put <= backup.ended_at + CLOCKS)
}
