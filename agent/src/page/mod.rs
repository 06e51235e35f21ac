//! The status page: what can be restored now, how much might be lost, what is wrong; and the plan and the command for a moment that is picked.
//!
//! It reads and changes nothing. HTML, style and script are files of the build, and ask for nothing elsewhere; what they show comes from two answers in
//! JSON. What the agent knows anyway is told at once; what has to be read from the repository is read when somebody looks, in the background, and seldom:
//! see [`look`].

mod access;
mod answer;
mod fleet;
mod look;
mod restore;

use std::sync::{Arc, Mutex, PoisonError};

use anyhow::Result;
use axum::Router;
use axum::extract::{Query, Request, State};
use axum::http::{HeaderValue, StatusCode, header};
use axum::middleware::{self, Next};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use chrono::{DateTime, Utc};
use tokio_util::sync::CancellationToken;
use walkeep_core::lag::LagHistory;

use crate::config::Config;
use crate::metrics::Metrics;
use crate::notify::Standing;
use crate::postgres::ConnectionParams;
use crate::progress::Progress;
use crate::repository::ClusterRepository;
use fleet::Fleet;
use look::Looked;

pub use access::Access;
pub use fleet::Own;

/// What the page is made of.
#[derive(Debug)]
pub struct Page {
    config: Config,
    params: ConnectionParams,
    metrics: Arc<Metrics>,
    progress: Arc<Progress>,
    standing: Standing,
    lag: Arc<Mutex<LagHistory>>,
    began: DateTime<Utc>,
    /// As it was opened last.
    repository: Mutex<Option<Arc<ClusterRepository>>>,
    looked: Looked,
    /// One plan at a time.
    planning: tokio::sync::Mutex<()>,
    stop: CancellationToken,
}

impl Page {
    /// A page that knows no repository yet.
    pub fn new(
        config: Config,
        params: ConnectionParams,
        (metrics, progress): (Arc<Metrics>, Arc<Progress>),
        (standing, lag): (Standing, Arc<Mutex<LagHistory>>),
        stop: CancellationToken,
    ) -> Self {
        let (repository, looked, planning) = (Mutex::default(), Looked::default(), tokio::sync::Mutex::new(()));
        Self { config, params, metrics, progress, standing, lag, began: Utc::now(), repository, looked, planning, stop }
    }

    /// The repository is open.
    pub fn opened(&self, repository: Arc<ClusterRepository>) {
        *self.repository.lock().unwrap_or_else(PoisonError::into_inner) = Some(repository);
    }

    fn repository(&self) -> Option<Arc<ClusterRepository>> {
        self.repository.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn lag(&self) -> Vec<walkeep_core::lag::Worst> {
        self.lag.lock().unwrap_or_else(PoisonError::into_inner).minutes()
    }
}

/// The paths of every cluster's page, and of that of all of them. One cluster alone is at the beginning, too; of several all are.
pub fn all(own: Vec<Own>, access: &Arc<Access>, stop: &CancellationToken) -> Router {
    if own.is_empty() {
        return Router::new();
    }
    let of_cluster = |own: &Own| routes(own.page.clone(), access, &format!("/cluster/{}", own.page.config.cluster.name));
    let each = own.iter().map(of_cluster).fold(Router::new(), Router::merge);
    let only = own.first().filter(|_| own.len() == 1).map(|only| routes(only.page.clone(), access, ""));
    let fleet = Arc::new(Fleet::new(own, stop.clone()));
    let first = only.unwrap_or_else(|| fleet::routes(fleet.clone(), access, ""));
    each.merge(fleet::routes(fleet, access, "/clusters")).merge(first)
}

/// The paths of a cluster's page below `prefix`, which is empty or begins with a slash, with the checks in front of them.
fn routes(page: Arc<Page>, access: &Arc<Access>, prefix: &str) -> Router {
    let below = |path: &str| format!("{prefix}/{path}");
    let told = Router::new().route(&below("page/status.json"), get(status)).route(&below("page/plan.json"), get(plan)).with_state(page);
    let files = Router::new()
        .route(&below(""), get(async || file("text/html; charset=utf-8", include_str!("static/index.html"))))
        .route(&below("page/page.js"), get(async || file("text/javascript; charset=utf-8", include_str!("static/page.js"))))
        .route(&below("page/timeline.js"), get(async || file("text/javascript; charset=utf-8", include_str!("static/timeline.js"))))
        .route(&below("page/page.css"), get(async || file("text/css; charset=utf-8", include_str!("static/page.css"))));
    behind(access, files, told)
}

/// Files for whoever may come, and what is `told` for who may see it.
fn behind(access: &Arc<Access>, files: Router, told: Router) -> Router {
    let told = told.layer(middleware::from_fn_with_state(access.clone(), access::only_who_may));
    let all = files.merge(told).layer(middleware::from_fn_with_state(access.clone(), access::only_from_here));
    all.layer(middleware::from_fn(guarded))
}

fn file(kind: &'static str, text: &'static str) -> Response {
    ([(header::CONTENT_TYPE, kind), (header::CACHE_CONTROL, "no-cache")], text).into_response()
}

/// No script but ours, nothing from elsewhere, in nobody's frame, and nothing of it is kept.
async fn guarded(request: Request, next: Next) -> Response {
    const HEADERS: [(header::HeaderName, &str); 6] = [
        (
            header::CONTENT_SECURITY_POLICY,
            "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
        ),
        (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
        (header::X_FRAME_OPTIONS, "DENY"),
        (header::REFERRER_POLICY, "no-referrer"),
        (header::HeaderName::from_static("cross-origin-resource-policy"), "same-origin"),
        (header::HeaderName::from_static("cross-origin-opener-policy"), "same-origin"),
    ];
    let mut response = next.run(request).await;
    for (name, value) in HEADERS {
        response.headers_mut().insert(name, HeaderValue::from_static(value));
    }
    response.headers_mut().entry(header::CACHE_CONTROL).or_insert(HeaderValue::from_static("no-store"));
    response
}

async fn status(State(page): State<Arc<Page>>) -> Response {
    look::begin(&page);
    axum_json(&answer::of(&page))
}

async fn plan(State(page): State<Arc<Page>>, Query(asked): Query<restore::Asked>) -> Response {
    // Whoever comes meanwhile tries again: each plan may read WAL.
    let Ok(_turn) = page.planning.try_lock() else {
        return (StatusCode::TOO_MANY_REQUESTS, "another plan is being made").into_response();
    };
    match restore::plan(&page, &asked).await {
        Ok(answer) => axum_json(&answer),
        Err(error) => (StatusCode::BAD_REQUEST, format!("{error:#}")).into_response(),
    }
}

fn axum_json(value: &impl serde::Serialize) -> Response {
    let text: Result<String, _> = serde_json::to_string(value);
    match text {
        Ok(text) => ([(header::CONTENT_TYPE, "application/json")], text).into_response(),
        Err(error) => (StatusCode::INTERNAL_SERVER_ERROR, format!("{error}\n")).into_response(),
    }
}
