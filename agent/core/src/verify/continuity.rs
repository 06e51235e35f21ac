//! Whether WAL is there without a hole: along every timeline, in every backup's own range, in unfinished segments.

use std::collections::{BTreeMap, BTreeSet};

use super::finding::{Finding, Findings, Kind, Stretch};
use super::judge::Judge;
use super::listing::Listing;
use crate::backup::BackupRecord;
use crate::catalog::{WalRange, legs};
use crate::history::TimelineHistory;
use crate::identity::TimelineId;
use crate::layout::{BackupId, GapName, ObjectName};
use crate::lsn::Lsn;
use crate::parts::apart;
use crate::wal_file::WalFileName;

/// What is not there and should be. Gaps that were filled, by the notes that say so, are none any more.
pub fn continuity(judge: &Judge<'_>, listing: &Listing, filled: &BTreeSet<GapName>) -> Findings {
    let looking = Looking { judge, filled };
    let mut found = Findings::default();
    for timeline in judge.catalog().timelines() {
        match judge.catalog().history(timeline) {
            Some(path) => looking.along(&path, &mut found),
            None => {
                let history = ObjectName::Wal(WalFileName::History(timeline));
                if !listing.histories.contains(&timeline) {
                    let reason = "the timeline's history is not stored: nothing can be recovered along it".to_owned();
                    found.extend(judge.finding(Kind::Missing, &history, reason));
                }
                judge.catalog().holes(timeline).into_iter().for_each(|hole| looking.hole(timeline, hole, &mut found));
            }
        }
    }
    // What the index tells of was stored.
    for (timeline, told) in &listing.told {
        let stored = judge.catalog().stored_ranges(*timeline);
        let begins = stored.first().map_or(told.to, |range| range.from);
        let ends = stored.last().map_or(told.to, |range| range.to);
        for lost in [WalRange { from: told.from, to: begins }, WalRange { from: ends, to: told.to }] {
            if lost.from < lost.to {
                looking.hole(*timeline, lost, &mut found);
            }
        }
    }
    let usable = looking.usable();
    // Where a history is stored and cannot be read, that is told, or not known.
    let unknown = |timeline: TimelineId| judge.catalog().history(timeline).is_none() && listing.histories.contains(&timeline);
    let unusable = judge.catalog().backups().iter().filter(|backup| !usable.contains(&backup.id));
    for backup in unusable.filter(|backup| !unknown(backup.timeline) && !unknown(backup.stops_on())) {
        found.add(looking.without_wal(backup));
    }
    looking.unfinished(listing, &mut found);
    looking.leases(listing, &mut found);
    found
}

/// What of a stretch that was stored once is not there any more, and nothing explains it.
pub fn vanished(judge: &Judge<'_>, filled: &BTreeSet<GapName>, timeline: TimelineId, to: Lsn) -> Findings {
    let mut found = Findings::default();
    let from = judge.catalog().frontier(timeline).unwrap_or(Lsn::ZERO);
    // Of a timeline of which nothing is left at all nobody knows where it began.
    if from < to && !from.is_zero() {
        Looking { judge, filled }.hole(timeline, WalRange { from, to }, &mut found);
    }
    found
}

struct Looking<'a> {
    judge: &'a Judge<'a>,
    filled: &'a BTreeSet<GapName>,
}

impl Looking<'_> {
    /// From the first position stored of a path to the last.
    fn along(&self, path: &TimelineHistory, found: &mut Findings) {
        let catalog = self.judge.catalog();
        let Some(mut at) = catalog.resumes(path, Lsn::ZERO) else { return };
        loop {
            let missing = catalog.reach(path, at).missing;
            let Some(resumes) = missing.resumes.filter(|resumes| *resumes > missing.at) else { return };
            for (timeline, leg) in legs(path) {
                let hole = WalRange { from: missing.at.max(leg.from), to: resumes.min(leg.to) };
                // One in the parts of a segment is told of there.
                if hole.from < hole.to && catalog.hole_in_parts(timeline) != Some(hole) {
                    self.hole(timeline, hole, found);
                }
            }
            at = resumes;
        }
    }

    /// What of a hole nothing explains.
    fn hole(&self, timeline: TimelineId, hole: WalRange, found: &mut Findings) {
        let catalog = self.judge.catalog();
        let mut rest = catalog.expired().without(timeline, hole);
        let gaps = catalog.gaps().iter().filter(|gap| gap.name.timeline == timeline);
        for gap in gaps.filter(|gap| !self.filled.contains(&gap.name)) {
            let (before, behind) = (gap.name.from, gap.name.to);
            let parts = |range: WalRange| {
                [WalRange { from: range.from, to: range.to.min(before) }, WalRange { from: range.from.max(behind), to: range.to }]
            };
            rest = rest.into_iter().flat_map(parts).filter(|range| range.from < range.to).collect();
        }
        for range in rest {
            let size = catalog.segment_size();
            let last = size.segment_of(Lsn::new(range.to.get() - 1)).name(timeline, size);
            let reason = format!("WAL from {} to {} is missing, up to segment {last}, and no gap is recorded", range.from, range.to);
            found.add(self.judge.missing(timeline, range, reason));
        }
    }

    /// The backups whose own WAL is there.
    fn usable(&self) -> BTreeSet<BackupId> {
        let catalog = self.judge.catalog();
        let mut usable = BTreeSet::new();
        for path in catalog.timelines().into_iter().filter_map(|timeline| catalog.history(timeline)) {
            let whole =
                |backup: &&BackupRecord| catalog.is_on(backup, &path) && catalog.reach(&path, backup.start_lsn).to >= backup.stop_lsn;
            usable.extend(catalog.backups().iter().filter(whole).map(|backup| backup.id.clone()));
        }
        usable
    }

    fn without_wal(&self, record: &BackupRecord) -> Finding {
        let (backup, timeline, start) = (&record.id, record.stops_on(), record.start_lsn);
        let catalog = self.judge.catalog();
        let at = catalog.history(timeline).map_or(start, |path| catalog.reach(&path, start).to);
        let size = catalog.segment_size();
        let segment = size.segment_of(at).name(timeline, size);
        let reason = format!("WAL at {at} is missing, which backup {backup} needs for itself");
        let key = self.judge.layout().wal_key(WalFileName::Segment(segment));
        let stretch = (at < record.stop_lsn).then_some(Stretch { timeline, from: at, to: record.stop_lsn });
        Finding { stretch, ..self.judge.pack(Kind::Missing, key, reason, [backup.clone()]) }
    }

    /// The parts of an unfinished segment that count are joined to its beginning.
    fn unfinished(&self, listing: &Listing, found: &mut Findings) {
        let catalog = self.judge.catalog();
        let size = catalog.segment_size();
        for (segment, parts) in &listing.parts {
            let (timeline, number) = (segment.timeline(), segment.number(size));
            let Some(number) = number.filter(|number| !catalog.expired().has_segment(timeline, number.start(size))) else { continue };
            if let Some(apart) = apart(parts).filter(|_| !catalog.segments(timeline).any(|whole| whole == number)) {
                let at = |offset: u32| number.start(size).saturating_add(u64::from(offset));
                let stretch = WalRange { from: at(apart.reached), to: at(apart.resumes) };
                let reason = format!(
                    "of the unfinished segment the bytes {:08X} to {:08X} are missing: parts behind them are stored",
                    apart.reached, apart.resumes
                );
                found.add(self.judge.missing(timeline, stretch, reason));
            }
        }
    }

    /// Epochs are counted without a hole.
    fn leases(&self, listing: &Listing, found: &mut Findings) {
        let (mut expected, mut newest) = (None, BTreeMap::new());
        let mut leases: Vec<_> = listing
            .records
            .iter()
            .filter_map(|name| match name {
                ObjectName::Lease(lease) => Some(*lease),
                _ => None,
            })
            .collect();
        leases.sort_unstable();
        for lease in leases {
            let (timeline, mut next) = expected.filter(|(timeline, _)| *timeline == lease.timeline).unwrap_or((lease.timeline, 1));
            if next < lease.epoch {
                let reason = format!("epochs {next} to {} have no lease, and later ones do", lease.epoch - 1);
                let name = ObjectName::Lease(crate::lease::LeaseName { timeline, epoch: next });
                found.extend(self.judge.finding(Kind::Missing, &name, reason));
            }
            next = lease.epoch.saturating_add(1);
            expected = Some((timeline, next));
            newest.insert(timeline, lease.epoch);
        }
        // A part of a later epoch than any writer had would cut off what others stored.
        for part in listing.parts.values().flatten() {
            if newest.get(&part.segment.timeline()).is_some_and(|newest| part.epoch > *newest) {
                let reason = format!("no lease has its epoch, {}", part.epoch);
                found.extend(self.judge.finding(Kind::Content, &ObjectName::Part(*part), reason));
            }
        }
    }
}
