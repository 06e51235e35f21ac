//! The plan for a moment that was picked, and the command that does it.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use serde::{Deserialize, Serialize};
use walkeep_core::plan::{Refusal, RestorePlan};
use walkeep_core::target::{RecoveryTarget, RestorePointName, TargetKind, parse_time};
use walkeep_core::{Lsn, TimelineId};
use walkeep_store::several::Proof;

use super::Page;
use crate::config::{Config, DEFAULT_PATH};
use crate::planning::{Around, Share, View};
use crate::rates::RatesFile;

/// A plan that takes longer is for the command line.
const DEADLINE: Duration = Duration::from_secs(60);
/// How often a plan is made anew while the last WAL is being stored, and the time between.
const WAITS: (u32, Duration) = (3, Duration::from_secs(1));

/// What was picked: one of them, or none for the end of what is stored.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Asked {
    /// A moment, with its zone.
    at: Option<String>,
    /// A position, to stop just before it.
    before: Option<String>,
    /// A restore point.
    restore_point: Option<String>,
    /// Along this timeline.
    timeline: Option<String>,
}

/// The answer.
#[derive(Debug, Serialize)]
pub struct Answer {
    /// The command that restores it, for a shell.
    command: String,
    /// The same as a dry run.
    dry_run: String,
    plan: Option<Shown>,
    /// Why there is none, and what can be reached.
    refused: Option<String>,
}

/// What is shown of a plan. Its list of WAL may be as long as the archive.
#[derive(Debug, Serialize)]
struct Shown {
    #[serde(flatten)]
    plan: serde_json::Value,
    wal_files: usize,
}

/// Plans it.
pub async fn plan(page: &Arc<Page>, asked: &Asked) -> Result<Answer> {
    let (target, options) = asked.target()?;
    let Some(repository) = page.repository() else { bail!("the repository is not open yet") };
    let planned = tokio::select! {
        planned = tokio::time::timeout(DEADLINE, planned(page, Arc::new(repository.demanding(Proof::Reachable)), &target)) => planned,
        () = page.stop.cancelled() => bail!("the agent stops"),
    };
    let planned = planned.with_context(|| format!("no plan within {} s: make it on the command line", DEADLINE.as_secs())).flatten()?;
    let (plan, refused) = match planned {
        Ok(plan) => {
            let wal_files = plan.wal.len();
            let plan = serde_json::to_value(RestorePlan { wal: Vec::new(), ..plan })?;
            (Some(Shown { plan, wal_files }), None)
        }
        Err(refusal) => (None, Some(refusal.to_string())),
    };
    let words = |verb: &str| command(&page.config, verb, &options);
    let place = page.config.cluster.data_directory.as_deref().unwrap_or(Path::new("/var/lib/postgresql/data"));
    let to = format!(" --to {}", quoted(&format!("{}.restored", place.display())));
    Ok(Answer { command: words("restore") + &to, dry_run: words("plan"), plan, refused })
}

async fn planned(
    page: &Page,
    repository: Arc<crate::repository::ClusterRepository>,
    target: &RecoveryTarget,
) -> Result<Result<RestorePlan, Refusal>> {
    let rates = RatesFile::of(&page.config.cluster).load();
    let around = Around { server: Ok(page.params.clone()), rates, share: Share::Whole };
    let mut waits = 0;
    loop {
        let mut view = View::load(repository.clone()).await?;
        match view.plan(target, &around, &mut |_, _| {}).await? {
            // What the server wrote a moment ago is on its way to the repository.
            Err(refusal) if refusal.is_a_matter_of_time() && waits < WAITS.0 => {
                waits += 1;
                tokio::time::sleep(WAITS.1).await;
            }
            planned => return Ok(planned),
        }
    }
}

impl Asked {
    /// The target, and the options of the command line that mean it.
    fn target(&self) -> Result<(RecoveryTarget, Vec<String>)> {
        let (kind, mut options) = match (&self.at, &self.before, &self.restore_point) {
            (None, None, None) => (TargetKind::Latest, vec!["--latest".to_owned()]),
            (Some(time), None, None) => (TargetKind::Time(parse_time(time)?), vec!["--at".to_owned(), time.clone()]),
            (None, Some(lsn), None) => {
                let lsn: Lsn = lsn.parse()?;
                (TargetKind::Lsn(lsn), vec!["--lsn".to_owned(), lsn.to_string(), "--exclusive".to_owned()])
            }
            (None, None, Some(name)) => {
                let point = RestorePointName::parse(name)?;
                // A name may begin like an option.
                (TargetKind::RestorePoint(point), vec![format!("--restore-point={name}")])
            }
            _ => bail!("one of at, before and restore_point"),
        };
        let timeline: Option<TimelineId> = self.timeline.as_deref().map(str::parse).transpose()?;
        if let Some(timeline) = timeline {
            options.extend(["--timeline".to_owned(), timeline.to_string()]);
        }
        let inclusive = self.before.is_none();
        Ok((RecoveryTarget { timeline, inclusive, ..RecoveryTarget::new(kind) }, options))
    }
}

/// As it is typed into a shell.
fn command(config: &Config, verb: &str, options: &[String]) -> String {
    let mut words = vec!["walkeep".to_owned(), verb.to_owned()];
    if let Some(path) = config.path.as_deref().filter(|path| *path != Path::new(DEFAULT_PATH)) {
        words.extend(["--config".to_owned(), path.display().to_string()]);
    }
    words.extend(["--cluster".to_owned(), config.cluster.name.to_string()]);
    words.extend(options.iter().cloned());
    words.iter().map(|word| quoted(word)).collect::<Vec<_>>().join(" ")
}

/// A word as a shell takes it for itself.
fn quoted(word: &str) -> String {
    let is_plain = |letter: char| letter.is_ascii_alphanumeric() || "-_./=:,@%".contains(letter);
    match !word.is_empty() && word.chars().all(is_plain) {
        true => word.to_owned(),
        false => format!("'{}'", word.replace('\'', "'\\''")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_picked_becomes_words_of_a_shell() {
        let asked = |text: &str| {
            serde_json::from_str::<Asked>(text).unwrap().target().map(|(target, options)| (target.inclusive, options.join(" ")))
        };
        assert_eq!(asked("{}").unwrap(), (true, "--latest".to_owned()));
        let at = asked("{\"at\":\"2026-11-20 14:30:00+00\",\"timeline\":\"2\"}").unwrap();
        assert_eq!(at, (true, "--at 2026-11-20 14:30:00+00 --timeline 2".to_owned()));
        assert_eq!(asked("{\"before\":\"0/3000028\"}").unwrap(), (false, "--lsn 0/3000028 --exclusive".to_owned()));
        for wrong in [
            "{\"at\":\"2026-11-20 14:30:00\"}",
            "{\"before\":\"x\"}",
            "{\"at\":\"2026-11-20Z\",\"before\":\"0/1\"}",
            "{\"timeline\":\"0\"}",
        ] {
            assert!(asked(wrong).is_err(), "{wrong}");
        }
        assert_eq!(quoted("--restore-point=it's $(rm -rf /)\n"), "'--restore-point=it'\\''s $(rm -rf /)\n'");
        assert_eq!([quoted(""), quoted("a b"), quoted("/etc/x.toml")], ["''", "'a b'", "/etc/x.toml"]);
    }
}
