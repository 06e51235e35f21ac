//! The agent's HTTP side: `/metrics`, `/healthz`, `/readyz`, and the status page, which is in `page`. Reads only; it changes nothing.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result};
use axum::Router;
use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;
use walkeep_core::layout::ClusterName;

use crate::config::SecretSource;
use crate::metrics::{self, Metrics};
use crate::page::{self, Access, Own};
use crate::progress::{Phase, Progress};

/// What is shown of a cluster.
#[derive(Clone)]
pub struct Shown {
    /// Its name.
    pub cluster: ClusterName,
    /// Counters.
    pub metrics: Arc<Metrics>,
    /// The stream.
    pub progress: Arc<Progress>,
    /// Its page, unless nobody is to see it.
    pub page: Option<Own>,
}

/// Binds the address; an error says which one.
pub async fn bind(address: SocketAddr) -> Result<TcpListener> {
    TcpListener::bind(address).await.with_context(|| format!("listen on http://{address} ([listen] http): is another agent running?"))
}

/// Serves until `stop`; the pages to whoever knows the `token`, if there is one.
pub async fn serve(listener: TcpListener, clusters: Vec<Shown>, token: Option<SecretSource>, stop: CancellationToken) -> Result<()> {
    let access = Arc::new(Access::new(listener.local_addr().context("tell the address of [listen] http")?, token));
    let pages = clusters.iter().filter_map(|shown| shown.page.clone()).collect();
    let router = Router::new()
        .route("/metrics", get(metrics))
        .route("/healthz", get(async || "ok\n"))
        .route("/readyz", get(ready))
        .with_state(Arc::<[Shown]>::from(clusters))
        .merge(page::all(pages, &access, &stop));
    // A scraper that keeps its connection open must not hold up the agent's stop: the server's future is dropped soon after.
    let stopped = stop.clone();
    let server = axum::serve(listener, router).with_graceful_shutdown(async move { stopped.cancelled().await }).into_future();
    let leave = async {
        stop.cancelled().await;
        tokio::time::sleep(Duration::from_millis(500)).await;
    };
    tokio::select! {
        result = server => result.context("serve HTTP"),
        () = leave => Ok(()),
    }
}

async fn metrics(State(clusters): State<Arc<[Shown]>>) -> Response {
    match metrics::render(clusters.iter().map(|shown| (&shown.cluster, &*shown.metrics, &*shown.progress))) {
        Ok(text) => ([(header::CONTENT_TYPE, "text/plain; version=0.0.4; charset=utf-8")], text).into_response(),
        Err(error) => (StatusCode::INTERNAL_SERVER_ERROR, format!("{error}\n")).into_response(),
    }
}

/// 200 once WAL flows in of every cluster (or streaming is off), else 503 with the reasons.
async fn ready(State(clusters): State<Arc<[Shown]>>) -> Response {
    let reasons: Vec<String> = clusters
        .iter()
        .filter_map(|shown| Some((shown, not_ready(&shown.progress)?)))
        .map(|(shown, reason)| match &*clusters {
            [_] => format!("{reason}\n"),
            _ => format!("{}: {reason}\n", shown.cluster),
        })
        .collect();
    match reasons.is_empty() {
        true => (StatusCode::OK, "ready\n").into_response(),
        false => (StatusCode::SERVICE_UNAVAILABLE, reasons.concat()).into_response(),
    }
}

fn not_ready(progress: &Progress) -> Option<String> {
    let now = progress.snapshot();
    match now.phase {
        Phase::Streaming | Phase::Off => None,
        phase => Some(format!("{}: {}", phase.as_str(), now.problem.unwrap_or_else(|| "no stream yet".into()))),
    }
}
