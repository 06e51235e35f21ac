//! What is kept and what may go: a [`Policy`] applied to a catalog.
//!
//! Kept are backups: by a hold, since they lie in the window or begin it, as the last of a day, week, month or year, or since there would be too few. From
//! them follows the WAL: all of it from where the window's backup begins, along every timeline that has moments in the window, and of each older backup just
//! what makes it consistent. What a timeline grew out of is followed by its history, never by names or by dates of objects.
//!
//! Time comes in at one place only: a backup is as old as the server's clock said when it ended, and is never taken to be older than one before it, so
//! that a clock that was set back makes nothing older. What the present is, is [`present`]'s. In doubt something is kept: a timeline whose history is not
//! known, one of which no moment is known, whatever a backup under way may need.

mod periods;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;

use chrono::{DateTime, TimeDelta, Utc};
use chrono_tz::Tz;
use serde::Serialize;

use crate::backup::{BackupRecord, Keep};
use crate::catalog::{Catalog, WalRange, legs};
use crate::expiry::{ExpiredWal, joined};
use crate::history::TimelineHistory;
use crate::identity::TimelineId;
use crate::index::Run;
use crate::layout::BackupId;
use crate::lsn::Lsn;
use crate::segment::SegmentSize;

use periods::last_of_each;
pub(crate) use periods::{Period, last_of_periods};

/// What is to be kept.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Policy {
    /// Every moment of so long a time before the present can be restored.
    pub window: TimeDelta,
    /// Of so many days the last backup.
    pub daily: u32,
    /// Of so many weeks, from Monday on.
    pub weekly: u32,
    /// Of so many months.
    pub monthly: u32,
    /// Of so many years.
    pub yearly: u32,
    /// So many backups that can be restored, whatever their age: 1 at least.
    pub minimum: u32,
    /// Where days begin.
    pub zone: Tz,
}

/// Why a backup is kept.
#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Reason {
    /// Somebody asked for it.
    Held(Keep),
    /// It ended in the window.
    Window,
    /// The window of a timeline begins with it.
    BeginsWindow,
    /// The last of a day.
    Daily,
    /// The last of a week.
    Weekly,
    /// The last of a month.
    Monthly,
    /// The last of a year.
    Yearly,
    /// There would be too few without it.
    Minimum,
    /// It lies on no timeline whose history is known.
    Unknown,
}

/// A backup that stays.
#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
pub struct Kept {
    /// Which.
    pub id: BackupId,
    /// Why: at least one.
    pub reasons: Vec<Reason>,
}

/// What a retention plan is made from, beside the policy.
#[derive(Clone, Debug)]
pub struct Facts<'a> {
    /// What is stored.
    pub catalog: &'a Catalog,
    /// The present, by [`present`].
    pub now: DateTime<Utc>,
    /// What was said of backups after they were taken: to keep them, or (`None`) not to any more.
    pub holds: &'a BTreeMap<BackupId, Option<Keep>>,
    /// The last moment that the WAL of a timeline itself tells of, where that is known.
    pub last_moments: &'a BTreeMap<TimelineId, DateTime<Utc>>,
    /// Where backups began that have no record yet and may still get one.
    pub under_way: &'a [Lsn],
}

/// What stays and what goes.
#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
pub struct RetentionPlan {
    /// Every moment from here on stays within reach.
    pub window_from: DateTime<Utc>,
    /// Backups that stay.
    pub kept: Vec<Kept>,
    /// Backups that go, the oldest first.
    pub expired: Vec<BackupId>,
    /// WAL that goes: only what is stored of it.
    pub wal: Vec<ExpiredWal>,
    /// Its segments.
    pub segments: u64,
    /// Their stored bytes, as far as they were listed.
    pub wal_bytes: u64,
    /// Timelines whose WAL all stays, since it is not known what they grew out of.
    pub unknown: Vec<TimelineId>,
}

impl RetentionPlan {
    /// Whether nothing goes.
    pub fn is_empty(&self) -> bool {
        self.expired.is_empty() && self.wal.is_empty()
    }

    /// How many backups a run like this one may take out without being told how many: not more than half of them, or two.
    pub fn expected(&self) -> usize {
        ((self.kept.len() + self.expired.len()) / 2).max(2)
    }
}

/// The present for retention: the earliest of what several clocks say, since one that is ahead would let go what must stay. `newest` is the latest moment of
/// which a backup or the WAL tells, `store` when something was put last, by the store's clock.
pub fn present(host: DateTime<Utc>, newest: Option<DateTime<Utc>>, store: Option<DateTime<Utc>>) -> DateTime<Utc> {
    [newest, store].into_iter().flatten().fold(host, DateTime::min)
}

/// Whether the present lies so far behind the backup before the newest that a clock may have jumped: further than the window, and than a day. Then what would
/// go is for somebody to look at.
pub fn jumped(policy: &Policy, catalog: &Catalog, now: DateTime<Utc>) -> Option<DateTime<Utc>> {
    let mut ends: Vec<DateTime<Utc>> = catalog.backups().iter().map(|backup| backup.ended_at).collect();
    ends.sort_unstable();
    let before = ends.len().checked_sub(2).map(|index| ends[index])?;
    (now - before > policy.window.max(TimeDelta::days(1))).then_some(before)
}

/// What stays and what goes by this policy.
pub fn plan(policy: &Policy, facts: &Facts<'_>) -> RetentionPlan {
    let window_from = facts.now.checked_sub_signed(policy.window).unwrap_or(DateTime::<Utc>::MIN_UTC);
    let catalog = facts.catalog;
    let paths: Vec<TimelineHistory> = catalog.timelines().into_iter().filter_map(|timeline| catalog.history(timeline)).collect();
    let unknown = catalog.timelines().into_iter().filter(|timeline| catalog.history(*timeline).is_none()).collect();
    let mut reasons: BTreeMap<&BackupId, Vec<Reason>> = BTreeMap::new();
    let mut keep = |id, reason| reasons.entry(id).or_default().push(reason);

    let ages = ages(catalog, &paths);
    for backup in catalog.backups() {
        let hold = facts.holds.get(&backup.id).copied().unwrap_or(backup.keep);
        if let Some(hold) = hold.filter(|hold| holds(*hold, facts.now)) {
            keep(&backup.id, Reason::Held(hold));
        }
        if ages[&backup.id] > window_from {
            keep(&backup.id, Reason::Window);
        }
    }
    let mut needed: BTreeMap<TimelineId, Vec<WalRange>> = BTreeMap::new();
    let lives = |timeline| catalog.backups().iter().any(|backup| backup.stops_on() == timeline && ages[&backup.id] > window_from);
    for path in paths.iter().filter(|path| lives(path.timeline()) || has_window(facts, path.timeline(), window_from)) {
        match begins_window(catalog, path, &ages, window_from) {
            Some((from, backup)) => {
                if let Some(backup) = backup {
                    keep(&backup.id, Reason::BeginsWindow);
                }
                need(&mut needed, catalog.segment_size(), path, from, Lsn::MAX);
            }
            // Nothing can be restored along it yet: a backup may come.
            None => need(&mut needed, catalog.segment_size(), path, path.begins(), Lsn::MAX),
        }
    }
    // Which of these could be restored is not known while it is not known what their timelines grew out of.
    for backup in catalog.backups().iter().filter(|backup| !paths.iter().any(|path| catalog.is_on(backup, path))) {
        keep(&backup.id, Reason::Unknown);
    }
    let usable: Vec<&BackupRecord> = catalog.backups().iter().filter(|backup| is_usable(catalog, &paths, backup)).collect();
    let present_path = catalog.newest_timeline().and_then(|timeline| catalog.history(timeline));
    let preferred = |backup: &BackupRecord| present_path.as_ref().is_some_and(|path| catalog.is_on(backup, path));
    for (period, count, reason) in [
        (Period::Day, policy.daily, Reason::Daily),
        (Period::Week, policy.weekly, Reason::Weekly),
        (Period::Month, policy.monthly, Reason::Monthly),
        (Period::Year, policy.yearly, Reason::Yearly),
    ] {
        for backup in last_of_each(period, policy.zone, count, &usable, &preferred) {
            keep(&backup.id, reason.clone());
        }
    }
    let mut newest: Vec<&BackupRecord> = usable.clone();
    newest.sort_by_key(|backup| (preferred(backup), backup.stop_lsn, backup.stops_on()));
    for backup in newest.iter().rev().take(policy.minimum.max(1) as usize) {
        keep(&backup.id, Reason::Minimum);
    }

    if usable.is_empty() {
        // Nothing can be restored: nobody knows what may still be mended.
        for backup in catalog.backups() {
            reasons.entry(&backup.id).or_insert_with(|| vec![Reason::Minimum]);
        }
    }
    let expired: Vec<BackupId> =
        catalog.backups().iter().filter(|backup| !reasons.contains_key(&backup.id)).map(|backup| backup.id.clone()).collect();
    let kept: Vec<Kept> = catalog
        .backups()
        .iter()
        .filter_map(|backup| reasons.get(&backup.id).map(|reasons| Kept { id: backup.id.clone(), reasons: reasons.clone() }))
        .collect();
    for backup in catalog.backups().iter().filter(|backup| reasons.contains_key(&backup.id)) {
        // Along each: where a timeline began within the backup, its own file may be the only one that has these pages.
        for path in paths.iter().filter(|path| catalog.is_on(backup, path)) {
            need(&mut needed, catalog.segment_size(), path, backup.start_lsn, backup.stop_lsn);
        }
    }
    let mut plan = RetentionPlan { window_from, kept, expired, wal: Vec::new(), segments: 0, wal_bytes: 0, unknown };
    // Without a backup that can be restored nobody knows what the next one needs.
    if !usable.is_empty() {
        let under_way =
            facts.under_way.iter().min().map(|start| WalRange { from: catalog.segment_size().align_down(*start), to: Lsn::MAX });
        for path in &paths {
            let timeline = path.timeline();
            let mut ranges = needed.remove(&timeline).unwrap_or_default();
            ranges.extend(under_way);
            let left = unneeded(catalog, timeline, joined(ranges));
            for (run, segments, bytes) in left {
                let (from, to) = (run.first.start(catalog.segment_size()), run.end.start(catalog.segment_size()));
                plan.wal.push(ExpiredWal { timeline, from, to });
                plan.segments += segments;
                plan.wal_bytes += bytes;
            }
        }
    }
    plan
}

/// Whether the promise holds still.
pub fn holds(keep: Keep, now: DateTime<Utc>) -> bool {
    match keep {
        Keep::Forever => true,
        Keep::Until(until) => until > now,
    }
}

/// When each backup ended, none before one that it follows on some path.
fn ages<'a>(catalog: &'a Catalog, paths: &[TimelineHistory]) -> BTreeMap<&'a BackupId, DateTime<Utc>> {
    let mut ages: BTreeMap<&BackupId, DateTime<Utc>> = catalog.backups().iter().map(|backup| (&backup.id, backup.ended_at)).collect();
    for path in paths {
        let mut latest = DateTime::<Utc>::MIN_UTC;
        for backup in catalog.backups().iter().filter(|backup| catalog.is_on(backup, path)) {
            latest = latest.max(ages[&backup.id]);
            ages.insert(&backup.id, latest);
        }
    }
    ages
}

/// Whether a timeline of its own has moments in the window. The newest has: what it shows last is how things stand. So has one of which a backup was taken
/// in the window, whatever its WAL tells last: a stray promotion may have a higher number than what lives.
fn has_window(facts: &Facts<'_>, timeline: TimelineId, window_from: DateTime<Utc>) -> bool {
    facts.catalog.newest_timeline() == Some(timeline) || facts.last_moments.get(&timeline).is_none_or(|last| *last >= window_from)
}

/// From where on WAL along `path` is needed for its window, and the backup that begins there, if one is older than the window. `None` if no backup is on the path.
fn begins_window<'a>(
    catalog: &'a Catalog,
    path: &TimelineHistory,
    ages: &BTreeMap<&BackupId, DateTime<Utc>>,
    window_from: DateTime<Utc>,
) -> Option<(Lsn, Option<&'a BackupRecord>)> {
    let on_path = || catalog.backups().iter().filter(|backup| catalog.is_on(backup, path));
    let usable = |backup: &&BackupRecord| catalog.reach(path, backup.start_lsn).to >= backup.stop_lsn;
    match on_path().rfind(|backup| ages[&backup.id] <= window_from && usable(backup)) {
        Some(backup) => Some((backup.start_lsn, Some(backup))),
        None => on_path().map(|backup| backup.start_lsn).min().map(|from| (from, None)),
    }
}

/// Whether the WAL of the backup's own range is stored, along whatever timeline.
fn is_usable(catalog: &Catalog, paths: &[TimelineHistory], backup: &BackupRecord) -> bool {
    paths.iter().any(|path| catalog.is_on(backup, path) && catalog.reach(path, backup.start_lsn).to >= backup.stop_lsn)
}

/// Notes the segments that replay of `[from, to)` along `path` may ask for: of the segment in which a timeline begins its own and its parent's.
fn need(needed: &mut BTreeMap<TimelineId, Vec<WalRange>>, size: SegmentSize, path: &TimelineHistory, from: Lsn, to: Lsn) {
    for (timeline, leg) in legs(path) {
        // Files are whole segments: a timeline's first one has pages of its parent's too.
        let (from, to) = (size.align_down(leg.from.max(from)), align_up(size, leg.to).min(align_up(size, to)));
        if from < to {
            needed.entry(timeline).or_default().push(WalRange { from, to });
        }
    }
}

fn align_up(size: SegmentSize, lsn: Lsn) -> Lsn {
    if size.offset_of(lsn) == 0 { lsn } else { size.align_down(lsn).saturating_add(size.bytes()) }
}

/// Stored segments of a timeline outside of these ranges, as runs with their number and bytes.
fn unneeded(catalog: &Catalog, timeline: TimelineId, needed: Vec<WalRange>) -> Vec<(Run, u64, u64)> {
    let size = catalog.segment_size();
    let is_needed = |start: Lsn| {
        let index = needed.partition_point(|range| range.to <= start);
        needed.get(index).is_some_and(|range| range.from <= start)
    };
    let mut runs: Vec<(Run, u64, u64)> = Vec::new();
    let all: BTreeMap<_, _> = catalog.sized_segments(timeline).chain(catalog.unfinished(timeline)).collect();
    let first_needed_from = |at: Lsn| needed.get(needed.partition_point(|range| range.to <= at)).map(|range| range.from);
    for (number, bytes) in all.into_iter().filter(|(number, _)| !is_needed(number.start(size))) {
        match runs.last_mut() {
            // Over what is missing between them too: nobody will look for it any more.
            Some((run, count, sum)) if first_needed_from(run.end.start(size)).is_none_or(|needed| needed > number.start(size)) => {
                (run.end, *count, *sum) = (number.next(), *count + 1, *sum + bytes);
            }
            _ => runs.push((Run::single(number), 1, bytes)),
        }
    }
    // What is missing behind the last stored one of a run is looked for by nobody either, up to what is needed again.
    for (run, ..) in &mut runs {
        if let Some(needed) = first_needed_from(run.end.start(size)) {
            run.end = size.segment_of(needed);
        }
    }
    runs
}
