//! How each of several repositories is: noted by the agent beside the spool, for `walkeep status`, which is another process.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};
use tokio_util::sync::CancellationToken;
use walkeep_store::Several;
use walkeep_store::several::PlaceState;

use super::cursor::Cursor;
use super::{LOOK, left_behind, opened};
use crate::config::ClusterConfig;
use crate::durable::{self, Staged};
use crate::metrics::Metrics;
use crate::repository::ClusterRepository;

/// What is older than this is not told: no agent of this host keeps it up.
const STALE: Duration = Duration::from_secs(60);
/// The file is written anew at least so often.
const REFRESH: Duration = Duration::from_secs(20);

/// What the agent notes of a repository.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Noted {
    url: String,
    queued: usize,
    behind_since: Option<DateTime<Utc>>,
    /// The same of what can still be brought.
    #[serde(default)]
    waits_since: Option<DateTime<Utc>>,
    /// So many of the queued cannot.
    #[serde(default)]
    stuck: usize,
    problem: Option<String>,
}

/// How a repository is.
#[derive(Debug, Clone, Serialize)]
pub struct PlaceReport {
    /// Its url.
    pub url: String,
    /// Whether it is the first of the configuration.
    pub primary: bool,
    /// Whether it answered just now.
    pub answers: bool,
    /// Why it did not, or does not answer the agent.
    pub problem: Option<String>,
    /// Objects that wait to be brought there, as the agent says; `None` if no agent of this host says.
    pub queue_objects: Option<usize>,
    /// So many of them no other repository can give whole.
    pub stuck_objects: Option<usize>,
    /// For how long the oldest of them has been waiting.
    pub behind_seconds: Option<u64>,
    /// When the last comparison began that found out all that it lacks.
    pub compared_at: Option<DateTime<Utc>>,
}

fn path(cluster: &ClusterConfig) -> std::path::PathBuf {
    left_behind::folder(cluster).join("state.json")
}

/// Notes how the repositories are, until `stop`, there and for each scrape.
pub async fn note_states(repository: Arc<ClusterRepository>, cluster: ClusterConfig, metrics: Arc<Metrics>, stop: CancellationToken) {
    let Some(several) = opened(&repository, &cluster, &stop).await else { return };
    metrics.repositories.watch(several.clone());
    let path = path(&cluster);
    let mut last: (Vec<Noted>, SystemTime) = (Vec::new(), SystemTime::UNIX_EPOCH);
    loop {
        let now: Vec<Noted> = several.states().into_iter().map(noted).collect();
        if now != last.0 || last.1.elapsed().is_ok_and(|elapsed| elapsed >= REFRESH) {
            let text = serde_json::to_vec_pretty(&now).unwrap_or_default();
            let folder = durable::create_dir(&left_behind::folder(&cluster), 0o700);
            let written = folder.and_then(|()| Staged::write_volatile(&path, &text, 0o600)).and_then(Staged::publish);
            if let Err(error) = written {
                tracing::debug!(%error, "how the repositories are could not be noted");
            }
            last = (now, SystemTime::now());
        }
        tokio::select! {
            () = tokio::time::sleep(LOOK) => {}
            () = stop.cancelled() => return,
        }
    }
}

fn noted(state: PlaceState) -> Noted {
    let PlaceState { url, down, queued, behind_since, waits_since, stuck, .. } = state;
    let (behind_since, waits_since) = (behind_since.map(Into::into), waits_since.map(Into::into));
    Noted { url, queued, behind_since, waits_since, stuck, problem: down.map(|(reason, _)| reason) }
}

/// What the agent noted, if it did a moment ago.
fn noted_lately(cluster: &ClusterConfig) -> Vec<Noted> {
    let path = path(cluster);
    let fresh = std::fs::metadata(&path).and_then(|found| found.modified()).is_ok_and(|at| at.elapsed().is_ok_and(|age| age < STALE));
    match fresh {
        true => std::fs::read(&path).ok().and_then(|text| serde_json::from_slice(&text).ok()).unwrap_or_default(),
        false => Vec::new(),
    }
}

/// Since when a repository lacks what will be brought there, as the agent of this host noted a moment ago. What nobody can give is none of that.
pub fn behind_since(cluster: &ClusterConfig, url: &str) -> Option<SystemTime> {
    noted_lately(cluster).into_iter().find(|noted| noted.url == url)?.waits_since.map(Into::into)
}

/// How each repository is, as far as this process has asked them and the agent of this host says; nothing with one repository.
pub fn reports(cluster: &ClusterConfig, several: Option<&Several>) -> Vec<PlaceReport> {
    let states = several.map(Several::states).unwrap_or_default();
    let noted = noted_lately(cluster);
    let one = |(index, state): (usize, PlaceState)| {
        let told = noted.iter().find(|noted| noted.url == state.url);
        let behind = told.and_then(|told| told.behind_since).map(|since| (Utc::now() - since).num_seconds().max(0) as u64);
        PlaceReport {
            primary: index == 0,
            answers: state.down.is_none(),
            problem: state.down.map(|(reason, _)| reason).or_else(|| told.and_then(|told| told.problem.clone())),
            queue_objects: told.map(|told| told.queued),
            stuck_objects: told.map(|told| told.stuck),
            behind_seconds: behind,
            compared_at: if index == 0 { None } else { Cursor::load(cluster, &state.url).complete_at() },
            url: state.url,
        }
    };
    states.into_iter().enumerate().map(one).collect()
}
