//! `[[cluster.NAME.backup]]`: the backups that the agent takes by itself.

use std::time::Duration;

use anyhow::{Context, Result, anyhow, bail, ensure};
use walkeep_core::backup::{KeepFor, check_label};
use walkeep_core::layout::ClusterName;
use walkeep_core::schedule::Schedule;

use super::raw::{Raw, RawBackup};
use super::values::ByteSize;

/// What a schedule's backups are called where there is only one.
const LABEL: &str = "scheduled";
/// A run that begins later belongs to another day.
const MOST_JITTER: Duration = Duration::from_secs(24 * 3600);

/// A schedule, and how its backups are taken.
#[derive(Debug, Clone)]
pub struct ScheduledBackup {
    /// When.
    pub schedule: Schedule,
    /// Beyond the retention policy.
    pub keep: Option<KeepFor>,
    /// Every file is stored anew.
    pub full: bool,
    /// The most the server may send, in KiB a second.
    pub max_rate_kb: Option<u32>,
    /// Whether the starting checkpoint takes its time.
    pub spread_checkpoint: bool,
}

/// A key's value that cannot be.
struct Wrong(&'static str, anyhow::Error);

/// Checks the schedules of the cluster; `place` says where a key of one was given.
pub fn check(raw: &Raw, name: &ClusterName, place: &dyn Fn(usize, &str) -> String) -> Result<Vec<ScheduledBackup>> {
    let written = raw.cluster.get(name.as_str()).map(|cluster| cluster.backup.as_slice()).unwrap_or_default();
    let mut checked: Vec<ScheduledBackup> = Vec::new();
    for (index, raw) in written.iter().enumerate() {
        let backup = one(raw, name).map_err(|Wrong(key, error)| error.context(place(index, key)))?;
        let label = &backup.schedule.label;
        ensure!(
            checked.iter().all(|other| other.schedule.label != *label),
            "{}: {label:?} is the label of another schedule too; by it a schedule knows its last run, so give each one of its own",
            place(index, "label")
        );
        checked.push(backup);
    }
    Ok(checked)
}

fn one(raw: &RawBackup, name: &ClusterName) -> Result<ScheduledBackup, Wrong> {
    let of = |key| move |error: anyhow::Error| Wrong(key, error);
    let label = raw.label.clone().unwrap_or_else(|| LABEL.into());
    check_label(&label).map_err(|error| Wrong("label", error.into()))?;
    Ok(ScheduledBackup {
        schedule: Schedule {
            cluster: name.to_string(),
            label,
            cron: cron(raw.schedule.as_deref()).map_err(of("schedule"))?,
            zone: zone(raw.timezone.as_deref()).map_err(of("timezone"))?,
            jitter: raw.jitter.as_deref().map_or(Ok(Duration::ZERO), jitter).map_err(of("jitter"))?,
            catch_up: raw.catch_up.unwrap_or(true),
        },
        keep: raw.keep.as_deref().map(keep_for).transpose().map_err(of("keep"))?,
        full: raw.full.unwrap_or(false),
        max_rate_kb: raw.max_rate.as_deref().map(max_rate).transpose().map_err(of("max_rate"))?,
        spread_checkpoint: raw.spread_checkpoint.unwrap_or(false),
    })
}

pub(super) fn cron(text: Option<&str>) -> Result<walkeep_core::schedule::Cron> {
    let text = text.context("is missing: write a cron expression, such as \"0 3 * * *\" for each night at three")?;
    text.parse().map_err(|error| anyhow!("{text:?}: {error}"))
}

pub(super) fn zone(text: Option<&str>) -> Result<chrono_tz::Tz> {
    let Some(text) = text else { return Ok(chrono_tz::Tz::UTC) };
    text.parse().ok().with_context(|| format!("{text:?} is no time zone of the IANA database: write Europe/Berlin or UTC"))
}

pub(super) fn jitter(text: &str) -> Result<Duration> {
    let jitter = time(text)?;
    ensure!(jitter <= MOST_JITTER, "{text:?} is more than a day");
    Ok(jitter)
}

pub(super) fn time(text: &str) -> Result<Duration> {
    humantime::parse_duration(text).with_context(|| format!("{text:?} is not a duration: write 30s, 10min or 1h"))
}

/// `forever`, or a time such as `30d`.
pub fn keep_for(text: &str) -> Result<KeepFor> {
    if text == "forever" {
        return Ok(KeepFor::Forever);
    }
    let time = humantime::parse_duration(text).with_context(|| format!("{text:?} is neither forever nor a time such as 30d"))?;
    // A hundred years and more: somebody means for ever.
    ensure!(time <= Duration::from_secs(100 * 366 * 86_400), "{text:?} is too long: write forever");
    Ok(KeepFor::Time(time))
}

fn max_rate(text: &str) -> Result<u32> {
    let rate = ByteSize::parse(text.trim().trim_end_matches("/s"))?;
    match u32::try_from(rate.0 / 1024) {
        Ok(kb @ 32..=1_048_576) => Ok(kb),
        _ => bail!("{text:?} is not possible: 32KiB to 1GiB a second"),
    }
}
