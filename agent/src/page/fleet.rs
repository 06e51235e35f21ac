//! The page of all clusters: those of this agent, and every other one in their repositories, each in a line.

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use axum::Router;
use axum::extract::State;
use axum::response::Response;
use axum::routing::get;
use chrono::{DateTime, Utc};
use serde::Serialize;
use tokio_util::sync::CancellationToken;
use walkeep_core::layout::ClusterName;
use walkeep_core::safety::{self, Level, Safety};

use super::access::Access;
use super::{Page, axum_json, behind, file, look};
use crate::fleet::{self, OpenCluster, Row};
use crate::state;

/// What was read is shown for so long at least ...
const FRESH: Duration = Duration::from_secs(60);
/// ... and for so many times as long as it took to read.
const REST: u32 = 20;
/// Longer nobody waits for it.
const DEADLINE: Duration = Duration::from_secs(300);

/// A cluster of this agent.
#[derive(Clone)]
pub struct Own {
    /// How its agent is.
    pub state: state::State,
    /// Its page.
    pub page: Arc<Page>,
    /// How another cluster in its repositories is opened.
    pub beside: OpenCluster,
}

/// All of them.
pub struct Fleet {
    own: Vec<Own>,
    others: Mutex<Others>,
    stop: CancellationToken,
}

#[derive(Default)]
struct Others {
    running: bool,
    not_before: Option<Instant>,
    rows: Vec<Row>,
    at: Option<DateTime<Utc>>,
    problem: Option<String>,
}

/// All that the page shows.
#[derive(Serialize)]
struct Answer {
    version: &'static str,
    now: DateTime<Utc>,
    clusters: Vec<Line>,
    /// When the others were looked at; `None` before that.
    others_at: Option<DateTime<Utc>>,
    /// Why they could not be since.
    problem: Option<String>,
}

#[derive(Serialize)]
struct Line {
    cluster: String,
    repository: String,
    /// Of a cluster of this agent's, where its page is.
    page: Option<String>,
    safety: Safety,
    backups: Option<usize>,
    newest_backup_at: Option<DateTime<Utc>>,
    possible_loss_seconds: Option<f64>,
    stored_at: Option<DateTime<Utc>>,
}

impl Fleet {
    /// Nothing of the others is known yet.
    pub fn new(own: Vec<Own>, stop: CancellationToken) -> Self {
        Self { own, others: Mutex::default(), stop }
    }

    fn others(&self) -> MutexGuard<'_, Others> {
        self.others.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The paths of the page below `prefix`, with the checks in front of them.
pub fn routes(fleet: Arc<Fleet>, access: &Arc<Access>, prefix: &str) -> Router {
    let below = |path: &str| format!("{prefix}/{path}");
    let told = Router::new().route(&below("page/fleet.json"), get(status)).with_state(fleet);
    let files = Router::new()
        .route(&below(""), get(async || file("text/html; charset=utf-8", include_str!("static/fleet.html"))))
        .route(&below("page/fleet.js"), get(async || file("text/javascript; charset=utf-8", include_str!("static/fleet.js"))))
        .route(&below("page/timeline.js"), get(async || file("text/javascript; charset=utf-8", include_str!("static/timeline.js"))))
        .route(&below("page/page.css"), get(async || file("text/css; charset=utf-8", include_str!("static/page.css"))));
    behind(access, files, told)
}

async fn status(State(fleet): State<Arc<Fleet>>) -> Response {
    fleet.own.iter().for_each(|own| look::begin(&own.page));
    begin(&fleet);
    let others = fleet.others();
    let mut clusters: Vec<Line> = fleet.own.iter().map(own_line).chain(others.rows.iter().map(other_line)).collect();
    // The worst first.
    clusters.sort_by(|one, other| (one.safety.level, &one.cluster).cmp(&(other.safety.level, &other.cluster)));
    axum_json(&Answer {
        version: env!("CARGO_PKG_VERSION"),
        now: Utc::now(),
        clusters,
        others_at: others.at,
        problem: others.problem.clone(),
    })
}

fn own_line(own: &Own) -> Line {
    let (seen, problem, _) = own.page.looked.now();
    let (heard, cluster) = (own.state.heard(), &own.page.config.cluster);
    let possible_loss_seconds = heard.possible_loss_seconds;
    let safety = match &seen {
        Some(seen) => safety::judge(&seen.timelines, Some(&heard), None),
        None => Safety {
            level: Level::Unknown,
            text: problem.map_or_else(
                || "the repository is being looked at".to_owned(),
                |problem| format!("the repository cannot be looked at: {problem}"),
            ),
            more: heard.alarms.into_iter().flatten().map(|wrong| wrong.text).collect(),
        },
    };
    Line {
        cluster: cluster.name.to_string(),
        repository: cluster.repository_url(),
        page: Some(format!("cluster/{}/", cluster.name)),
        safety,
        backups: seen.as_ref().map(|seen| seen.backups.len()),
        newest_backup_at: seen.and_then(|seen| seen.backups.iter().map(|backup| backup.ended_at).max()),
        possible_loss_seconds,
        stored_at: None,
    }
}

fn other_line(row: &Row) -> Line {
    let stored = row.stored.as_ref();
    Line {
        cluster: row.cluster.clone(),
        repository: row.repository.clone(),
        page: None,
        safety: row.safety.clone(),
        backups: stored.map(|stored| stored.backups),
        newest_backup_at: stored.and_then(|stored| stored.newest_backup_at),
        possible_loss_seconds: None,
        stored_at: stored.and_then(|stored| stored.stored_at),
    }
}

/// Begins to look at the others, if it is time to.
fn begin(fleet: &Arc<Fleet>) {
    {
        let mut others = fleet.others();
        if others.running || others.not_before.is_some_and(|at| Instant::now() < at) {
            return;
        }
        others.running = true;
    }
    let turn = Turn { fleet: fleet.clone(), began: Instant::now() };
    tokio::spawn(async move {
        let fleet = &turn.fleet;
        let looked = tokio::select! {
            looked = tokio::time::timeout(DEADLINE, look_at_others(fleet)) => looked.context("no answer in time").flatten(),
            () = fleet.stop.cancelled() => return,
        };
        let mut others = fleet.others();
        match looked {
            Ok(rows) => (others.rows, others.at, others.problem) = (rows, Some(Utc::now()), None),
            Err(error) => others.problem = Some(format!("{error:#}")),
        }
    });
}

async fn look_at_others(fleet: &Fleet) -> Result<Vec<Row>> {
    let known: Vec<ClusterName> = fleet.own.iter().map(|own| own.page.config.cluster.name.clone()).collect();
    let (mut seen, mut rows) = (BTreeSet::new(), Vec::new());
    for own in &fleet.own {
        let Some(repository) = own.page.repository() else { continue };
        if seen.insert(repository.repository().url()) {
            rows.extend(fleet::others(&known, &repository, &own.beside).await?);
        }
    }
    Ok(rows)
}

/// Whoever looks. However that ends, somebody may look again later.
struct Turn {
    fleet: Arc<Fleet>,
    began: Instant,
}

impl Drop for Turn {
    fn drop(&mut self) {
        let mut others = self.fleet.others();
        others.running = false;
        others.not_before = Some(Instant::now() + FRESH.max(self.began.elapsed() * REST));
    }
}
