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

use crate::metrics::Metrics;
use crate::progress::{Phase, Progress};

/// What the pages read.
#[derive(Debug, Clone)]
pub struct Pages {
    /// Counters.
    pub metrics: Arc<Metrics>,
    /// The stream.
    pub progress: Arc<Progress>,
}

/// Binds the address; an error says which one.
pub async fn bind(address: SocketAddr) -> Result<TcpListener> {
    TcpListener::bind(address).await.with_context(|| format!("listen on http://{address} ([listen] http): is another agent running?"))
}

/// Serves until `stop`.
pub async fn serve(listener: TcpListener, pages: Pages, status_page: Option<Router>, stop: CancellationToken) -> Result<()> {
    let router = Router::new()
        .route("/metrics", get(metrics))
        .route("/healthz", get(async || "ok\n"))
        .route("/readyz", get(ready))
        .with_state(pages)
        .merge(status_page.unwrap_or_default());
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

async fn metrics(State(pages): State<Pages>) -> Response {
    match pages.metrics.render(&pages.progress) {
        Ok(text) => ([(header::CONTENT_TYPE, "text/plain; version=0.0.4; charset=utf-8")], text).into_response(),
        Err(error) => (StatusCode::INTERNAL_SERVER_ERROR, format!("{error}\n")).into_response(),
    }
}

/// 200 once WAL flows in (or streaming is off), else 503 with the reason.
async fn ready(State(pages): State<Pages>) -> Response {
    let now = pages.progress.snapshot();
    match now.phase {
        Phase::Streaming | Phase::Off => (StatusCode::OK, "ready\n").into_response(),
        phase => {
            let problem = now.problem.unwrap_or_else(|| "no stream yet".into());
            (StatusCode::SERVICE_UNAVAILABLE, format!("{}: {problem}\n", phase.as_str())).into_response()
        }
    }
}
