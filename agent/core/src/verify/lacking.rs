//! What one repository of a cluster lacks of what another one has: found out from their listings, so also what nobody ever saw in the first one.
//!
//! Only what has to be in every repository counts: not what was let go, not what a process that ended left behind, and nothing of the index, which can be made
//! again. Packs are not compared here: one that a recorded backup needs is missed by that backup's manifest, and with a backup that is lacking all of it is. For
//! who cannot read manifests there is [`super::packs_lacking`].

use std::collections::{BTreeMap, BTreeSet, HashMap};

use super::finding::{Findings, Kind, Stretch};
use super::judge::Judge;
use super::listing::Listing;
use crate::catalog::{Catalog, WalRange};
use crate::identity::TimelineId;
use crate::layout::{BackupId, ObjectName, PackId};
use crate::lsn::Lsn;
use crate::segment::SegmentName;
use crate::wal_file::WalFileName;

/// One of the two.
#[derive(Clone, Copy, Debug)]
pub struct Side<'a> {
    /// As a catalog.
    pub catalog: &'a Catalog,
    /// As a listing.
    pub listing: &'a Listing,
    /// Its packs, with their bytes.
    pub packs: &'a HashMap<PackId, u64>,
}

/// What `own` lacks of `other`, but for these stretches, which are known to be missing. Of one backup: its record and its own WAL.
pub fn lacking(judge: &Judge<'_>, own: Side<'_>, other: Side<'_>, known: &[Stretch], of: Option<&BackupId>) -> Findings {
    let mut found = Findings::default();
    let looking = Looking { judge, own, other, known };
    for record in other.catalog.backups().iter().filter(|record| of.is_none_or(|id| *id == record.id)) {
        if own.catalog.backup(&record.id).is_none() && !own.catalog.expired().has_backup(&record.id) {
            // One that is there and cannot be believed was told.
            let is_there = own.listing.backups.get(&record.id).is_some_and(|folder| folder.recorded);
            if !is_there {
                looking.object(ObjectName::BackupRecord(record.id.clone()), &mut found);
            }
        }
    }
    match of.map(|id| other.catalog.backup(id)) {
        None => {
            looking.wal(None, &mut found);
            looking.names(&mut found);
        }
        Some(Some(record)) => {
            looking.wal(Some(Stretch { timeline: record.stops_on(), from: record.start_lsn, to: record.stop_lsn }), &mut found)
        }
        Some(None) => {}
    }
    found
}

struct Looking<'a> {
    judge: &'a Judge<'a>,
    own: Side<'a>,
    other: Side<'a>,
    known: &'a [Stretch],
}

impl Looking<'_> {
    fn object(&self, name: ObjectName, found: &mut Findings) {
        found.extend(self.judge.finding(Kind::Missing, &name, "another repository has it, and nothing let it go".to_owned()));
    }

    /// Stretches of WAL, whatever objects they lie in: here they may be parts and there whole segments.
    fn wal(&self, within: Option<Stretch>, found: &mut Findings) {
        for timeline in self.other.catalog.timelines() {
            let known =
                self.known.iter().filter(|known| known.timeline == timeline).map(|known| WalRange { from: known.from, to: known.to });
            let has: Vec<WalRange> = self.own.catalog.stored_ranges(timeline).iter().copied().chain(known).collect();
            let within = match within {
                Some(stretch) if stretch.timeline == timeline => WalRange { from: stretch.from, to: stretch.to },
                Some(_) => continue,
                None => WalRange { from: Lsn::ZERO, to: Lsn::new(u64::MAX) },
            };
            for range in self.other.catalog.stored_ranges(timeline) {
                let range = WalRange { from: range.from.max(within.from), to: range.to.min(within.to) };
                for lacks in without(range, &has).into_iter().flat_map(|rest| self.kept(timeline, rest)) {
                    let reason = format!("another repository has WAL from {} to {}, and nothing let it go", lacks.from, lacks.to);
                    found.add(self.judge.missing(timeline, lacks, reason));
                }
            }
        }
    }

    /// What of a stretch neither repository knows to have been let go.
    fn kept(&self, timeline: TimelineId, stretch: WalRange) -> Vec<WalRange> {
        let (own, other) = (self.own.catalog.expired(), self.other.catalog.expired());
        own.without(timeline, stretch).into_iter().flat_map(|rest| other.without(timeline, rest)).collect()
    }

    /// What counts by its name alone.
    fn names(&self, found: &mut Findings) {
        let (own, other) = (self.own.listing, self.other.listing);
        let has: BTreeSet<&ObjectName> = own.records.iter().chain(&own.aside).collect();
        let wanted = other.records.iter().chain(&other.aside).filter(|name| !has.contains(name) && self.counts(name));
        wanted.for_each(|name| self.object(name.clone(), found));
        let histories: BTreeSet<_> = own.histories.iter().collect();
        let lacks = other.histories.iter().filter(|timeline| !histories.contains(timeline));
        lacks.for_each(|timeline| self.object(ObjectName::Wal(WalFileName::History(*timeline)), found));
        other.audit.difference(&own.audit).for_each(|number| self.object(ObjectName::Audit(*number), found));
        let is_gone = |place| self.own.catalog.expired().has_artifact(place) || self.other.catalog.expired().has_artifact(place);
        for (place, _) in other.artifacts.iter().filter(|(place, folder)| folder.recorded && !is_gone(place)) {
            if !own.artifacts.get(place).is_some_and(|folder| folder.recorded) {
                self.object(ObjectName::ArtifactRecord(place.clone()), found);
            }
        }
    }

    fn counts(&self, name: &ObjectName) -> bool {
        match name {
            // An earlier one was merged into a later one, which says what it said; where a repository was away it was left.
            ObjectName::Expiry(number) => {
                let is_new = *number > expiries(self.own.listing).max().unwrap_or_default();
                is_new || !self.own.catalog.expired().has_all(self.other.catalog.expired())
            }
            ObjectName::ExpiryEnd(number) => {
                let highest = expiries(self.own.listing).max().unwrap_or_default();
                *number > highest || expiries(self.own.listing).any(|known| known == *number)
            }
            // It goes with its backup, and counts with it.
            ObjectName::Hold(id, _) => [self.own, self.other].iter().any(|side| side.catalog.backup(id).is_some()),
            ObjectName::BackupBegun(_) => false,
            ObjectName::Wal(WalFileName::Partial(segment) | WalFileName::BackupHistory { segment, .. }) => self.keeps(*segment),
            ObjectName::OtherPartial { segment, .. } => self.keeps(*segment),
            _ => true,
        }
    }

    fn keeps(&self, segment: SegmentName) -> bool {
        let size = self.own.catalog.segment_size();
        let number = segment.number(size);
        number.is_some_and(|number| {
            let is_gone = |side: Side<'_>| side.catalog.expired().has_segment(segment.timeline(), number.start(size));
            !is_gone(self.own) && !is_gone(self.other)
        })
    }
}

fn expiries(listing: &Listing) -> impl Iterator<Item = u32> + '_ {
    listing.records.iter().filter_map(|name| match name {
        ObjectName::Expiry(number) => Some(*number),
        _ => None,
    })
}

/// What of a stretch none of these covers, in order.
fn without(stretch: WalRange, ranges: &[WalRange]) -> Vec<WalRange> {
    let ordered: BTreeMap<Lsn, Lsn> = ranges.iter().fold(BTreeMap::new(), |mut ordered, range| {
        let to = ordered.entry(range.from).or_insert(range.to);
        *to = range.to.max(*to);
        ordered
    });
    let (mut rest, mut at) = (Vec::new(), stretch.from);
    for (from, to) in ordered {
        if at < from.min(stretch.to) {
            rest.push(WalRange { from: at, to: from.min(stretch.to) });
        }
        at = at.max(to);
    }
    if at < stretch.to {
        rest.push(WalRange { from: at, to: stretch.to });
    }
    rest
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stretch_without_others_is_what_none_of_them_covers() {
        let range = |from, to| WalRange { from: Lsn::new(from), to: Lsn::new(to) };
        assert_eq!(without(range(3, 9), &[]), [range(3, 9)]);
        assert_eq!(without(range(3, 9), &[range(7, 8), range(1, 4), range(3, 5), range(20, 30)]), [range(5, 7), range(8, 9)]);
        assert_eq!(without(range(3, 9), &[range(1, 20)]), []);
        assert_eq!(without(range(3, 9), &[range(9, 20), range(1, 3)]), [range(3, 9)]);
        assert_eq!(without(range(9, 3), &[]), []);
    }
}
