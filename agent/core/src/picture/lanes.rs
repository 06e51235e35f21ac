//! The lanes: what a catalog and a log say of each timeline, and where on the axis it stands.

use std::collections::BTreeMap;

use crate::catalog::{Catalog, TimelineReport, WalRange};
use crate::identity::TimelineId;
use crate::journal::{Entry, Happening};
use crate::lsn::Lsn;
use crate::names::NamedEntry;
use crate::time::PgTimestamp;

use super::axis::Axis;
use super::clock::{Clock, Place};
use super::{Lane, Mark, MarkKind, Picture, Point, Span, SpanKind, Switch, Told, label};

/// A lane whose positions have no place yet.
struct Draft {
    timeline: TimelineId,
    parent: Option<(TimelineId, Lsn)>,
    spans: Vec<(SpanKind, WalRange, String)>,
    marks: Vec<(MarkKind, Lsn, Option<PgTimestamp>, String)>,
    more_before: bool,
    more_after: bool,
}

pub(super) fn picture(catalog: &Catalog, told: Option<Told<'_>>) -> Option<Picture> {
    let mut drafts: Vec<Draft> = catalog.report().iter().map(|report| draft(catalog, report)).collect();
    if let Some(told) = told {
        entries(&mut drafts, told);
        drafts.iter_mut().for_each(|draft| draft.clip(told.read));
    }
    drafts.retain(|draft| !draft.spans.is_empty() || !draft.marks.is_empty());
    if drafts.iter().all(|draft| draft.spans.iter().all(|(kind, ..)| *kind == SpanKind::Missing) && draft.marks.is_empty()) {
        return None;
    }
    let clocks = clocks(catalog, told);
    let place = |timeline: TimelineId, lsn: Lsn| clocks.get(&timeline).and_then(|clock: &Clock| clock.place(lsn));
    let points: Vec<(Lsn, Option<Place>)> =
        drafts.iter().flat_map(|draft| draft.positions().map(|lsn| (lsn, place(draft.timeline, lsn)))).collect();
    let axis = Axis::of(&points);
    let lane = |draft: Draft| {
        let point = |lsn, time| Point { lsn, time, at: axis.at(lsn, place(draft.timeline, lsn)) };
        let time_of = |lsn: Lsn| draft.marks.iter().find(|mark| mark.1 == lsn).and_then(|mark| mark.2);
        let (from, to) = (draft.positions().min().unwrap_or(Lsn::ZERO), draft.positions().max().unwrap_or(Lsn::ZERO));
        let span = |(kind, range, label): &(SpanKind, WalRange, String)| Span {
            kind: *kind,
            from: point(range.from, time_of(range.from)),
            to: point(range.to, time_of(range.to)),
            label: label.clone(),
        };
        let mark = |(kind, lsn, time, label): &(MarkKind, Lsn, Option<PgTimestamp>, String)| Mark {
            kind: *kind,
            point: point(*lsn, *time),
            label: label.clone(),
        };
        Lane {
            timeline: draft.timeline,
            parent: draft.parent.map(|(timeline, lsn)| Switch { timeline, point: point(lsn, None) }),
            from: point(from, time_of(from)),
            to: point(to, time_of(to)),
            more_before: draft.more_before,
            more_after: draft.more_after,
            spans: draft.spans.iter().map(span).collect(),
            marks: draft.marks.iter().map(mark).collect(),
        }
    };
    let lanes = drafts.into_iter().map(lane).collect();
    Some(Picture { axis, lanes })
}

fn draft(catalog: &Catalog, report: &TimelineReport) -> Draft {
    let timeline = report.timeline;
    // A segment's first pages may be its parent's.
    let begins = report.parent.map_or(Lsn::ZERO, |(_, at)| at);
    let own = |range: &WalRange| Some(WalRange { from: range.from.max(begins), to: range.to }).filter(|range| range.from < range.to);
    let stored: Vec<WalRange> = catalog.stored_ranges(timeline).iter().filter_map(own).collect();
    let mut spans: Vec<_> = stored.iter().map(|range| (SpanKind::Stored, *range, String::new())).collect();
    for window in &report.windows {
        // Without any WAL behind the backup it is a window all the same.
        let range = WalRange { from: window.earliest.lsn.max(begins), to: window.latest };
        if range.from <= range.to && window.latest > begins {
            spans.push((SpanKind::Recoverable, range, String::new()));
        }
    }
    spans.extend(missing(catalog, report, &stored, begins));
    let mark = |backup: &crate::backup::BackupRecord| {
        let usable = report.windows.iter().any(|window| window.backups.contains(&backup.id));
        let kind = if usable { MarkKind::Backup } else { MarkKind::UselessBackup };
        let name = if backup.label.is_empty() { String::new() } else { format!(" {:?}", backup.label) };
        let of_no_use = if usable { "" } else { ", of no use: WAL of its own range is missing" };
        let label = format!("backup {}{name}{of_no_use}", backup.id);
        (kind, backup.stop_lsn, Some(PgTimestamp::from_utc(backup.ended_at)), label)
    };
    let marks = catalog.backups().iter().filter(|backup| backup.stops_on() == timeline).map(mark).collect();
    Draft { timeline, parent: report.parent, spans, marks, more_before: false, more_after: false }
}

/// Holes between what is stored, before it, and those that were recorded, as stretches that do not touch.
fn missing(catalog: &Catalog, report: &TimelineReport, stored: &[WalRange], begins: Lsn) -> Vec<(SpanKind, WalRange, String)> {
    let gaps: Vec<_> = catalog.gap_reports().into_iter().filter(|gap| gap.record.name.timeline == report.timeline).collect();
    let recorded = gaps.iter().flat_map(|gap| gap.missing.iter().copied());
    let before = stored.first().filter(|first| !begins.is_zero() && first.from > begins);
    let before = before.map(|first| WalRange { from: begins, to: first.from });
    let mut all: Vec<_> = report.holes.iter().copied().chain(recorded).chain(before).collect();
    all.iter_mut().for_each(|range| range.from = range.from.max(begins));
    all.retain(|range| range.from < range.to);
    all.sort_unstable_by_key(|range| (range.from, range.to));
    let mut merged: Vec<WalRange> = Vec::new();
    for range in all {
        match merged.last_mut().filter(|last| range.from <= last.to) {
            Some(last) => last.to = last.to.max(range.to),
            None => merged.push(range),
        }
    }
    let why = |range: &WalRange| {
        let within = |gap: &&crate::catalog::GapReport| gap.missing.iter().any(|part| part.from < range.to && range.from < part.to);
        gaps.iter().find(within).map_or_else(String::new, |gap| format!("{:?}", gap.record.cause))
    };
    merged.into_iter().map(|range| (SpanKind::Missing, range, why(&range))).collect()
}

fn entries(drafts: &mut [Draft], told: Told<'_>) {
    for entry in told.entries {
        let timeline = told.path.timeline_at(entry.lsn());
        let Some(draft) = drafts.iter_mut().find(|draft| draft.timeline == timeline) else { continue };
        if let Some((kind, label)) = label(entry) {
            draft.marks.push((kind, entry.lsn(), entry.time(), label));
        }
    }
    drafts.iter_mut().for_each(|draft| draft.marks.sort_by_key(|(kind, lsn, ..)| (*lsn, *kind)));
}

impl Draft {
    /// Leaves only what lies in `range`.
    fn clip(&mut self, range: WalRange) {
        let (from, to) = (range.from, range.to.max(range.from));
        let more_before = self.spans.iter().any(|(_, span, _)| span.from < from);
        let more_after = self.spans.iter().any(|(_, span, _)| span.to > to);
        (self.more_before, self.more_after) = (more_before, more_after);
        // A window without any WAL behind its backup is a point.
        self.spans
            .retain(|(_, span, _)| if span.from == span.to { (from..=to).contains(&span.from) } else { span.from < to && span.to > from });
        self.spans.iter_mut().for_each(|(_, span, _)| *span = WalRange { from: span.from.clamp(from, to), to: span.to.clamp(from, to) });
        self.marks.retain(|(_, lsn, ..)| (from..=to).contains(lsn));
        self.parent = self.parent.filter(|(_, at)| (from..=to).contains(at));
    }

    fn positions(&self) -> impl Iterator<Item = Lsn> + '_ {
        let spans = self.spans.iter().flat_map(|(_, range, _)| [range.from, range.to]);
        spans.chain(self.marks.iter().map(|mark| mark.1)).chain(self.parent.map(|(_, at)| at))
    }
}

/// The clock along the history of each timeline.
fn clocks(catalog: &Catalog, told: Option<Told<'_>>) -> BTreeMap<TimelineId, Clock> {
    let mut known: Vec<(TimelineId, Lsn, PgTimestamp)> = Vec::new();
    for backup in catalog.backups() {
        known.push((backup.timeline, backup.start_lsn, PgTimestamp::from_utc(backup.started_at)));
        known.push((backup.stops_on(), backup.stop_lsn, PgTimestamp::from_utc(backup.ended_at)));
    }
    if let Some(told) = told {
        // A hole has no clock: its time is that of what came before.
        let entries = told.entries.iter().filter(|entry| !matches!(entry, NamedEntry::Other(Entry { what: Happening::Hole, .. })));
        let entries = entries.filter_map(|entry| Some((told.path.timeline_at(entry.lsn()), entry.lsn(), entry.time()?)));
        known.extend(entries.chain(told.clock.iter().map(|(lsn, time)| (told.path.timeline_at(*lsn), *lsn, *time))));
    }
    let along = |timeline: TimelineId, known: &[(TimelineId, Lsn, PgTimestamp)]| {
        let path = catalog.history(timeline);
        let on = |of: TimelineId, lsn| path.as_ref().map_or(of == timeline, |path| path.contains(of, lsn));
        Clock::new(known.iter().filter(|(of, lsn, _)| on(*of, *lsn)).map(|(_, lsn, time)| (*lsn, *time)))
    };
    let timelines = catalog.timelines();
    // Where a timeline was left is a moment of both: between what is known before it on the one and behind it on the other.
    let switches: Vec<_> = timelines
        .iter()
        .filter_map(|timeline| {
            let parent = catalog.history(*timeline)?.parent()?.clone();
            Some((parent.timeline, parent.switch, along(*timeline, &known).between(parent.switch)?))
        })
        .collect();
    let mut all = known.clone();
    // The position itself is the first of the new timeline; for the clock it is the end of the old one.
    all.extend(switches);
    let everything = Clock::new(all.iter().map(|(_, lsn, time)| (*lsn, *time)));
    let clock = |timeline: TimelineId| {
        let own = along(timeline, &all);
        (timeline, if own.is_empty() { everything.clone() } else { own })
    };
    timelines.into_iter().map(clock).collect()
}
