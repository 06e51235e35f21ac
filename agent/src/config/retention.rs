//! `[cluster.NAME.retention]`: what is kept for how long.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use chrono::TimeDelta;
use walkeep_core::retention::Policy;

use super::raw::RawRetention;
use super::schedules::{time, zone};

/// So long what left the catalog can be taken back, unless the configuration says otherwise.
pub const GRACE: Duration = Duration::from_secs(24 * 3600);
/// So many backups are kept whatever their age, unless the configuration says otherwise.
const MINIMUM: u32 = 2;
/// A hundred years and more: somebody means for ever.
const LONGEST: Duration = Duration::from_secs(100 * 366 * 86_400);

/// What is kept, and how the rest goes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Retention {
    /// What is to be kept.
    pub policy: Policy,
    /// So long what left the catalog can be taken back.
    pub grace: Duration,
    /// Whether the agent lets go by itself, behind each backup that it takes.
    pub automatic: bool,
}

/// Checks what was written.
pub fn check(raw: &RawRetention) -> Result<Retention> {
    let window =
        raw.window.as_deref().context("window is missing: write how far back every second is to be within reach, such as \"14d\"")?;
    let window = time(window).and_then(bounded).context("window")?;
    let grace = raw.grace.as_deref().map_or(Ok(GRACE), |grace| time(grace).and_then(bounded)).context("grace")?;
    let minimum = raw.minimum_backups.unwrap_or(MINIMUM);
    ensure!(minimum > 0, "minimum_backups: 0 could let the last backup go; 1 is the least");
    let policy = Policy {
        window: TimeDelta::from_std(window).context("window")?,
        daily: raw.daily.unwrap_or(0),
        weekly: raw.weekly.unwrap_or(0),
        monthly: raw.monthly.unwrap_or(0),
        yearly: raw.yearly.unwrap_or(0),
        minimum,
        zone: zone(raw.timezone.as_deref()).context("timezone")?,
    };
    Ok(Retention { policy, grace, automatic: raw.automatic.unwrap_or(false) })
}

/// A time that can be meant.
pub(super) fn bounded(time: Duration) -> Result<Duration> {
    ensure!(time <= LONGEST, "is more than a hundred years");
    Ok(time)
}
