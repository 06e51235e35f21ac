//! What the page is told: the agent's present state, and what was seen of the repository.

use std::time::SystemTime;

use chrono::{DateTime, Utc};
use serde::Serialize;
use walkeep_core::alarm::{Said, Signs};
use walkeep_core::backup::BackupRecord;
use walkeep_core::catalog::{GapReport, TimelineReport};
use walkeep_core::drill::{DrillId, Facts, Verdict};
use walkeep_core::lag::Worst;
use walkeep_core::layout::BackupId;
use walkeep_core::picture::Picture;
use walkeep_core::{Lsn, TimelineId};

use super::Page;
use super::look::Seen;
use crate::copies::{self, PlaceReport};

/// Backups that are listed, the newest.
const LISTED: usize = 500;

/// All that the page shows.
#[derive(Debug, Serialize)]
pub struct Answer {
    cluster: String,
    version: &'static str,
    now: DateTime<Utc>,
    /// When this agent began.
    began: DateTime<Utc>,
    repository: String,
    /// Each of several; none with one.
    repositories: Vec<PlaceReport>,
    live: Live,
    /// `None` before the first look.
    alarms: Option<Vec<Said>>,
    /// The worst of each minute, oldest first.
    lag: Vec<Worst>,
    /// Of the schedule, if there is one.
    drill: Option<NextDrill>,
    schedules: Vec<Scheduled>,
    artifacts: Vec<Scheduled>,
    verified: Option<Verified>,
    /// What was seen of the repository; `None` before that.
    seen: Option<Shown>,
    /// Why it could not be seen since.
    problem: Option<String>,
    /// Whether it is being looked at.
    looking: bool,
}

/// What the agent knows without asking anybody.
#[derive(Debug, Serialize)]
struct Live {
    phase: &'static str,
    problem: Option<String>,
    timeline: Option<TimelineId>,
    received: Lsn,
    durable: Lsn,
    server_end: Lsn,
    lag_seconds: f64,
    lag_bytes: u64,
    possible_loss_seconds: Option<f64>,
    recoverable_until: Option<DateTime<Utc>>,
    commits_wait: bool,
    /// Files that wait for archive_command, and for how long the oldest has.
    ready: (u64, f64),
    spool: Option<(u64, u64)>,
    slot: Option<Slot>,
}

#[derive(Debug, Serialize)]
struct Slot {
    status: String,
    retained_bytes: Option<u64>,
    given_up: bool,
}

/// Something that is done by the clock.
#[derive(Debug, Serialize)]
struct Scheduled {
    name: String,
    next: Option<DateTime<Utc>>,
    last: Option<DateTime<Utc>>,
    failed: Option<DateTime<Utc>>,
    overdue: bool,
}

/// Drills by the clock.
#[derive(Debug, Serialize)]
struct NextDrill {
    next: DateTime<Utc>,
    /// When the newest that passed ended.
    last: Option<DateTime<Utc>>,
    failed: bool,
    overdue: bool,
}

#[derive(Debug, Serialize)]
struct Verified {
    looked_at: Option<DateTime<Utc>>,
    damaged: u64,
    short_locks: u64,
}

/// What was seen of the repository.
#[derive(Debug, Serialize)]
struct Shown {
    at: DateTime<Utc>,
    backup_count: usize,
    /// The newest ones, newest first.
    backups: Vec<BackupRecord>,
    timelines: Vec<TimelineReport>,
    gaps: Vec<GapReport>,
    /// The newest ones, newest first.
    drills: Vec<Drill>,
    damaged_records: usize,
    picture: Option<Picture>,
    left_out: usize,
    log_from: Option<DateTime<Utc>>,
    log_problem: Option<String>,
}

/// A drill, as its record tells it to everybody.
#[derive(Debug, Serialize)]
struct Drill {
    id: DrillId,
    verdict: Verdict,
    reason: Option<String>,
    asked: String,
    ended_at: DateTime<Utc>,
    /// What was restored: from which backup, along which timeline, up to where.
    restored: Option<(BackupId, TimelineId, Lsn)>,
    rto_seconds: Option<f64>,
    rpo_seconds: Option<f64>,
}

/// The answer now.
pub fn of(page: &Page) -> Answer {
    let cluster = &page.config.cluster;
    let signs = page.metrics.signs(cluster, &page.progress, page.began);
    let (seen, problem, looking) = page.looked.now();
    let several = page.repository().and_then(|repository| repository.repository().store().several().cloned());
    let verified = signs.verify.as_ref().filter(|verify| verify.looked_at.is_some());
    Answer {
        cluster: cluster.name.to_string(),
        version: env!("CARGO_PKG_VERSION"),
        now: Utc::now(),
        began: page.began,
        repository: cluster.repository_url(),
        repositories: copies::reports(cluster, several.as_ref()),
        live: live(page, &signs),
        alarms: page.standing.borrow().as_ref().map(|judged| judged.standing.clone()),
        lag: page.lag(),
        drill: next_drill(&signs),
        schedules: schedules(&signs),
        artifacts: artifacts(&signs),
        verified: verified.map(|verify| Verified { looked_at: verify.looked_at, damaged: verify.damaged, short_locks: verify.short_locks }),
        seen: seen.as_deref().map(shown),
        problem,
        looking,
    }
}

fn live(page: &Page, signs: &Signs) -> Live {
    let now = page.progress.snapshot();
    let until = signs.possible_loss.and_then(|loss| SystemTime::now().checked_sub(loss)).map(DateTime::<Utc>::from);
    Live {
        phase: now.phase.as_str(),
        problem: now.problem,
        timeline: now.timeline,
        received: now.received,
        durable: now.durable,
        server_end: now.server_end,
        lag_seconds: signs.lag.as_secs_f64(),
        lag_bytes: signs.lag_bytes,
        possible_loss_seconds: signs.possible_loss.map(|loss| loss.as_secs_f64()),
        recoverable_until: until,
        commits_wait: signs.commits_wait,
        ready: (signs.ready_files, signs.oldest_ready.as_secs_f64()),
        spool: signs.spool,
        slot: signs.slot.as_ref().filter(|_| page.config.cluster.stream).map(|slot| Slot {
            status: slot.status.clone(),
            retained_bytes: slot.retained,
            given_up: signs.slot_given_up,
        }),
    }
}

fn schedules(signs: &Signs) -> Vec<Scheduled> {
    let one = |sign: &walkeep_core::alarm::ScheduleSigns| Scheduled {
        name: sign.label.clone(),
        next: sign.next,
        last: sign.success,
        failed: sign.failure,
        overdue: sign.overdue,
    };
    signs.schedules.iter().flatten().map(one).collect()
}

fn next_drill(signs: &Signs) -> Option<NextDrill> {
    let sign = signs.drill.as_ref()?;
    Some(NextDrill { next: sign.next?, last: sign.success, failed: sign.failed, overdue: sign.overdue })
}

fn artifacts(signs: &Signs) -> Vec<Scheduled> {
    let one = |sign: &walkeep_core::alarm::ArtifactSigns| Scheduled {
        name: sign.name.clone(),
        next: sign.next,
        last: sign.success,
        failed: sign.failure.filter(|_| sign.failed),
        overdue: sign.overdue,
    };
    signs.artifacts.iter().flatten().map(one).collect()
}

fn drill(facts: &Facts) -> Drill {
    let restored = facts.restored.as_ref().map(|restored| (restored.backup.clone(), restored.timeline, restored.stop_lsn));
    Drill {
        id: facts.id.clone(),
        verdict: facts.verdict,
        reason: facts.reason.clone(),
        asked: facts.asked.clone(),
        ended_at: facts.ended_at,
        restored,
        rto_seconds: facts.rto_seconds,
        rpo_seconds: facts.rpo_seconds,
    }
}

fn shown(seen: &Seen) -> Shown {
    Shown {
        at: seen.at,
        backup_count: seen.backups.len(),
        backups: seen.backups.iter().rev().take(LISTED).cloned().collect(),
        timelines: seen.timelines.clone(),
        gaps: seen.gaps.clone(),
        drills: seen.drills.iter().rev().map(drill).collect(),
        damaged_records: seen.damaged,
        picture: seen.picture.clone(),
        left_out: seen.left_out,
        log_from: seen.log.from,
        log_problem: seen.log.error.clone(),
    }
}
