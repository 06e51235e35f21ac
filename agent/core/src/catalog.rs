//! What a repository holds for one cluster identity, as a value.
//!
//! Built from listings and the few small objects worth reading (histories, backups' records, gaps); answers questions about what can
//! be replayed. It neither lists nor reads, and it decides nothing: see [`crate::plan`].

mod coverage;
mod gap;
mod stored;
mod windows;

#[cfg(test)]
pub(crate) mod oracle;

use std::collections::BTreeMap;

use crate::backup::BackupRecord;
use crate::expiry::Expired;
use crate::history::TimelineHistory;
use crate::identity::{SystemIdentifier, TimelineId};
use crate::index::Run;
use crate::layout::{BackupId, ClusterName, ObjectName, PartName};
use crate::lsn::Lsn;
use crate::parts::{Apart, apart};
use crate::segment::{SegmentName, SegmentNumber, SegmentSize};
use crate::wal_file::WalFileName;

pub use coverage::{FirstMissing, NeededFile, Reach, legs};
pub use gap::{GapCause, GapClosing, GapRecord, GapReport, without_backup_behind};
pub use stored::WalRange;
pub use windows::{Restorable, TimelineReport, Window};

use stored::Stored;

/// Gathers what listings say.
#[derive(Debug)]
pub struct CatalogBuilder {
    catalog: Catalog,
    closings: Vec<GapClosing>,
}

/// What a repository holds for one cluster identity.
#[derive(Clone, Debug)]
pub struct Catalog {
    cluster: ClusterName,
    system: SystemIdentifier,
    size: SegmentSize,
    stored: BTreeMap<TimelineId, Stored>,
    histories: BTreeMap<TimelineId, TimelineHistory>,
    /// Sorted by stop and timeline.
    backups: Vec<BackupRecord>,
    gaps: Vec<GapRecord>,
    expired: Expired,
    ignored: u64,
}

impl CatalogBuilder {
    /// Leaves out what has left the catalog. Before anything else is added.
    pub fn expired(&mut self, expired: Expired) {
        self.catalog.expired = expired;
    }

    /// Adds a listed object of `bytes` stored bytes. Those that say nothing about WAL are passed over.
    pub fn object(&mut self, name: &ObjectName, bytes: u64) {
        let size = self.catalog.size;
        let (segment, part) = match name {
            ObjectName::Wal(WalFileName::Segment(segment)) => (*segment, None),
            ObjectName::Part(part) => (part.segment, Some(*part)),
            _ => return,
        };
        let Some(number) = segment.number(size) else {
            self.catalog.ignored += 1;
            return;
        };
        if self.catalog.expired.has_segment(segment.timeline(), number.start(size)) {
            return;
        }
        let stored = self.catalog.stored.entry(segment.timeline()).or_default();
        match part {
            None => stored.add_segment(number, bytes),
            Some(part) => stored.add_part(number, part, bytes),
        }
    }

    /// The last segment of each timeline whose parts have a hole, as far as was added.
    pub fn holes_in_parts(&self) -> Vec<(SegmentName, Apart)> {
        let size = self.catalog.size;
        let one = |(timeline, stored): (&TimelineId, &Stored)| {
            let number = stored.last_in_parts()?;
            let parts: Vec<PartName> = stored.parts_of(number).filter(|part| u64::from(part.to) <= size.bytes()).collect();
            Some((number.name(*timeline, size), apart(&parts)?))
        };
        self.catalog.stored.iter().filter_map(one).collect()
    }

    /// A segment's parts as they are listed now, in the place of those that were added before.
    pub fn parts_again(&mut self, segment: SegmentName, parts: &[(PartName, u64)]) {
        let stored = self.catalog.stored.get_mut(&segment.timeline());
        if let Some((stored, number)) = stored.zip(segment.number(self.catalog.size)) {
            stored.set_parts(number, parts);
        }
    }

    /// Adds segments that are known to have been stored, and were not listed: how large they are is not known.
    pub fn believed(&mut self, timeline: TimelineId, run: Run) {
        let rest = self.catalog.expired.rest_of(timeline, run, self.catalog.size);
        let stored = self.catalog.stored.entry(timeline).or_default();
        rest.into_iter().for_each(|run| stored.add_run(run));
    }

    /// Adds a timeline's history.
    pub fn history(&mut self, history: TimelineHistory) {
        self.catalog.histories.insert(history.timeline(), history);
    }

    /// Adds a backup. One of another identity or segment size is counted as ignored: it cannot be replayed with this WAL.
    pub fn backup(&mut self, record: BackupRecord) {
        if self.catalog.expired.has_backup(&record.id) {
            return;
        }
        let ours = record.system_identifier == self.catalog.system && record.segment_size == self.catalog.size;
        match ours && record.start_lsn < record.stop_lsn {
            true => self.catalog.backups.push(record),
            false => self.catalog.ignored += 1,
        }
    }

    /// Adds a recorded gap.
    pub fn gap(&mut self, gap: GapRecord) {
        self.catalog.gaps.push(gap);
    }

    /// Adds the note that a gap was filled.
    pub fn gap_closing(&mut self, closing: GapClosing) {
        self.closings.push(closing);
    }

    /// The catalog of all that was added.
    pub fn build(mut self) -> Catalog {
        let size = self.catalog.size;
        self.catalog.stored.values_mut().for_each(|stored| stored.seal(size));
        // Order is LSN and timeline, never a clock.
        self.catalog.backups.sort_by(|a, b| (a.stop_lsn, a.stops_on(), &a.id).cmp(&(b.stop_lsn, b.stops_on(), &b.id)));
        self.catalog.gaps.sort_by_key(|gap| gap.name);
        let expired = &self.catalog.expired;
        self.catalog.gaps.retain(|gap| !expired.has_all_of(gap.name.timeline, WalRange { from: gap.name.from, to: gap.name.to }));
        // What was filled and is missing again is a gap again.
        self.closings.retain(|closing| self.catalog.missing_within(closing.name).is_empty());
        for gap in &mut self.catalog.gaps {
            gap.closed_at = self.closings.iter().find(|closing| closing.name == gap.name).map(|closing| closing.closed_at);
        }
        self.catalog
    }
}

impl Catalog {
    /// Begins the catalog of one cluster identity.
    pub fn builder(cluster: ClusterName, system: SystemIdentifier, size: SegmentSize) -> CatalogBuilder {
        let (stored, histories) = (BTreeMap::new(), BTreeMap::new());
        let (backups, gaps) = (Vec::new(), Vec::new());
        let catalog = Catalog { cluster, system, size, stored, histories, backups, gaps, expired: Expired::default(), ignored: 0 };
        CatalogBuilder { catalog, closings: Vec::new() }
    }

    /// The same without any WAL, to which what is listed of it is to be added anew.
    pub fn without_wal(&self) -> CatalogBuilder {
        let closing = |gap: &GapRecord| Some(GapClosing { name: gap.name, closed_at: gap.closed_at? });
        let closings = self.gaps.iter().filter_map(closing).collect();
        CatalogBuilder { catalog: Catalog { stored: BTreeMap::new(), ..self.clone() }, closings }
    }

    /// As it will be once more has left it.
    pub fn without(&self, expired: &Expired) -> Self {
        let mut rest = self.clone();
        for (timeline, stored) in &mut rest.stored {
            *stored = stored.without(|number| expired.has_segment(*timeline, number.start(self.size)), self.size);
        }
        rest.backups.retain(|backup| !expired.has_backup(&backup.id));
        rest.gaps.retain(|gap| !expired.has_all_of(gap.name.timeline, WalRange { from: gap.name.from, to: gap.name.to }));
        expired.wal().into_iter().for_each(|wal| rest.expired.add_wal(wal));
        rest
    }

    /// What has left it.
    pub fn expired(&self) -> &Expired {
        &self.expired
    }

    /// The operator's name of the cluster.
    pub fn cluster(&self) -> &ClusterName {
        &self.cluster
    }

    /// The cluster's identity.
    pub fn system_identifier(&self) -> SystemIdentifier {
        self.system
    }

    /// The cluster's segment size.
    pub fn segment_size(&self) -> SegmentSize {
        self.size
    }

    /// The backups, by where they ended.
    pub fn backups(&self) -> &[BackupRecord] {
        &self.backups
    }

    /// The backup with this name.
    pub fn backup(&self, id: &BackupId) -> Option<&BackupRecord> {
        self.backups.iter().find(|backup| backup.id == *id)
    }

    /// The recorded gaps.
    pub fn gaps(&self) -> &[GapRecord] {
        &self.gaps
    }

    /// Things that were added but cannot belong here: names of another segment size, backups of another identity.
    pub fn ignored(&self) -> u64 {
        self.ignored
    }

    /// The timelines of which anything is known: a history, WAL, or a backup; those named as ancestors too.
    pub fn timelines(&self) -> Vec<TimelineId> {
        let ancestors = self.histories.values().flat_map(|history| history.ancestors().iter().map(|ancestor| ancestor.timeline));
        let backups = self.backups.iter().flat_map(|backup| [backup.timeline, backup.stops_on()]);
        let mut all: Vec<TimelineId> =
            self.stored.keys().copied().chain(self.histories.keys().copied()).chain(ancestors).chain(backups).collect();
        all.sort_unstable();
        all.dedup();
        all
    }

    /// The history of a timeline: the stored one, or for timeline 1, which has no file, the one without ancestors.
    /// `None` for a timeline that is unknown, and for one whose history is not stored: PostgreSQL cannot recover to it.
    pub fn history(&self, timeline: TimelineId) -> Option<TimelineHistory> {
        match self.histories.get(&timeline) {
            Some(history) => Some(history.clone()),
            None => (timeline == TimelineId::FIRST && self.timelines().contains(&timeline)).then(|| TimelineHistory::root(timeline)),
        }
    }

    /// The newest timeline whose history is known.
    pub fn newest_timeline(&self) -> Option<TimelineId> {
        self.timelines().into_iter().rev().find(|timeline| self.history(*timeline).is_some())
    }

    /// The timelines that grew out of `timeline`.
    pub fn children(&self, timeline: TimelineId) -> Vec<TimelineId> {
        let grew = |history: &&TimelineHistory| history.parent().is_some_and(|parent| parent.timeline == timeline);
        self.histories.values().filter(grew).map(TimelineHistory::timeline).collect()
    }

    /// Stretches of a timeline's own files without a hole, in order; the first may begin with pages of its parent.
    pub fn stored_ranges(&self, timeline: TimelineId) -> &[WalRange] {
        self.stored(timeline).map_or(&[], Stored::ranges)
    }

    /// The holes between those stretches, and within the last segment's parts, but for what has left the catalog.
    pub fn holes(&self, timeline: TimelineId) -> Vec<WalRange> {
        let ranges = self.stored_ranges(timeline);
        let holes = ranges.windows(2).map(|pair| WalRange { from: pair[0].to, to: pair[1].from });
        holes.chain(self.hole_in_parts(timeline)).flat_map(|hole| self.expired.without(timeline, hole)).collect()
    }

    /// The hole in the parts of a timeline's last segment, behind which there are more of them: this is not where the WAL ended.
    pub fn hole_in_parts(&self, timeline: TimelineId) -> Option<WalRange> {
        let stored = self.stored(timeline)?;
        let apart = stored.apart()?;
        let from = self.size.align_down(apart.from).max(self.frontier(timeline).unwrap_or(Lsn::ZERO));
        Some(WalRange { from, to: apart.from })
    }

    /// The end of a timeline's newest stretch.
    pub fn frontier(&self, timeline: TimelineId) -> Option<Lsn> {
        self.stored_ranges(timeline).last().map(|range| range.to)
    }

    /// The finished segments of a timeline, in order.
    pub fn segments(&self, timeline: TimelineId) -> impl Iterator<Item = SegmentNumber> + '_ {
        self.stored(timeline).into_iter().flat_map(Stored::numbers)
    }

    /// The same with their stored bytes; 0 for one that was not listed.
    pub fn sized_segments(&self, timeline: TimelineId) -> impl Iterator<Item = (SegmentNumber, u64)> + '_ {
        self.stored(timeline).into_iter().flat_map(|stored| stored.segments_in(SegmentNumber::new(0), SegmentNumber::new(u64::MAX)))
    }

    /// Segments of a timeline that are stored in parts, with their stored bytes.
    pub fn unfinished(&self, timeline: TimelineId) -> impl Iterator<Item = (SegmentNumber, u64)> + '_ {
        self.stored(timeline).into_iter().flat_map(Stored::unfinished)
    }

    /// How many finished segments of a timeline are stored, and their stored bytes.
    pub fn segment_totals(&self, timeline: TimelineId) -> (u64, u64) {
        self.stored(timeline).map_or((0, 0), Stored::segment_totals)
    }

    fn stored(&self, timeline: TimelineId) -> Option<&Stored> {
        self.stored.get(&timeline)
    }
}
