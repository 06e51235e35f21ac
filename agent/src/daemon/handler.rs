//! What the socket's requests do: from a path or name to a job, from the job's result to an answer.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use tokio::sync::watch::Receiver;
use walkeep_core::{SystemIdentifier, WalFileName};
use walkeep_protocol::Response;

use super::Role;
use crate::archive::{ArchiveError, Archiver};
use crate::fetch::{FetchMode, Fetcher, Outcome};
use crate::metrics::Metrics;
use crate::server::Handler;
use crate::wal_path;

/// A request that comes while the repository is being opened waits this long for it; then the shim is told to come again.
const OPENING: Duration = Duration::from_secs(5);

/// What works once the repository is open.
#[derive(Debug)]
pub struct Services {
    /// archive_command's work.
    pub archiver: Archiver,
    /// restore_command's work.
    pub fetcher: Fetcher,
    /// The cluster.
    pub system: SystemIdentifier,
}

/// The agent's side of the socket.
#[derive(Debug)]
pub struct SocketHandler {
    services: Receiver<Option<Arc<Services>>>,
    role: Role,
    metrics: Arc<Metrics>,
}

impl SocketHandler {
    /// Answers with what `services` holds once it does.
    pub fn new(services: Receiver<Option<Arc<Services>>>, role: Role, metrics: Arc<Metrics>) -> Self {
        Self { services, role, metrics }
    }

    async fn services(&self) -> Result<Arc<Services>, Response> {
        let mut services = self.services.clone();
        let opened = tokio::time::timeout(OPENING, services.wait_for(Option::is_some)).await;
        match opened {
            Ok(Ok(services)) => services.clone().ok_or_else(|| later("the agent is starting")),
            Ok(Err(_)) => Err(later("the agent is stopping")),
            Err(_) => Err(later("the agent has not reached the repository yet; its log says why")),
        }
    }

    async fn archive_file(&self, path: PathBuf) -> Response {
        if self.role != Role::Agent {
            return failed("this process only fetches WAL for a recovery; start the agent to archive", "Start `walkeep agent`.");
        }
        let services = match self.services().await {
            Ok(services) => services,
            Err(response) => return response,
        };
        let system = services.system;
        let checked = tokio::task::spawn_blocking(move || wal_path::check_source(&path, system)).await;
        let source = match checked {
            Ok(Ok(source)) => source,
            Ok(Err(error)) => return refused(&error.into()),
            Err(died) => return failed(died.to_string(), "See the agent's log."),
        };
        match services.archiver.archive(source).await {
            Ok(_) => Response::Done,
            Err(error) => refused(&error),
        }
    }

    async fn fetch_file(&self, name: String, destination: PathBuf, standby: bool) -> Response {
        let name: WalFileName = match name.parse() {
            Ok(name) => name,
            Err(error) => return failed(format!("{error}"), "restore_command must pass %f and %p."),
        };
        let services = match self.services().await {
            Ok(services) => services,
            Err(response) => return response,
        };
        let (system, path) = (services.system, destination.clone());
        match tokio::task::spawn_blocking(move || wal_path::check_destination(&path, system)).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => {
                return failed(format!("{error}"), "restore_command writes into the pg_wal of this cluster's data directories only.");
            }
            Err(died) => return failed(died.to_string(), "See the agent's log."),
        }
        match services.fetcher.fetch(name, &destination, FetchMode { standby }).await {
            Outcome::Done => Response::Done,
            Outcome::Absent { why } => Response::Absent { message: why },
            Outcome::Failed { why, hint } => Response::Failed { message: format!("{why:#}"), hint: Some(hint) },
        }
    }
}

#[async_trait]
impl Handler for SocketHandler {
    async fn archive(&self, path: PathBuf) -> Response {
        let response = self.archive_file(path).await;
        self.metrics.archive_answer(if response == Response::Done { "done" } else { "failed" });
        response
    }

    async fn fetch(&self, name: String, destination: PathBuf, standby: bool) -> Response {
        let response = self.fetch_file(name, destination, standby).await;
        self.metrics.fetch_answer(match response {
            Response::Done => "done",
            Response::Absent { .. } => "absent",
            Response::TryLater { .. } | Response::Failed { .. } => "failed",
        });
        response
    }
}

fn refused(error: &ArchiveError) -> Response {
    let message = crate::chain(error);
    if error.is_transient() {
        return Response::TryLater { message };
    }
    Response::Failed { message, hint: Some(error.hint().to_owned()) }
}

fn later(message: &str) -> Response {
    Response::TryLater { message: message.into() }
}

fn failed(message: impl Into<String>, hint: &str) -> Response {
    Response::Failed { message: message.into(), hint: Some(hint.into()) }
}
