//! What the socket's requests do: from a path or name to a job, from the job's result to an answer.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use tokio::sync::watch::Receiver;
use walkeep_core::audit::Kind;
use walkeep_core::{SystemIdentifier, WalFileName};
use walkeep_protocol::Response;

use super::Role;
use crate::archive::{ArchiveError, Archiver};
use crate::audit::{Deed, Recorder};
use crate::fetch::{FetchMode, Fetcher, Outcome};
use crate::metrics::Metrics;
use crate::server::Handler;
use crate::state::State;
use crate::{repository, wal_path};

/// A request that comes while the repository is being opened waits this long for it; then the shim is told why it is not.
const PATIENCE: Duration = Duration::from_secs(5);

/// What works once the repository is open.
#[derive(Debug)]
pub struct Services {
    /// archive_command's work.
    pub archiver: Archiver,
    /// restore_command's work.
    pub fetcher: Fetcher,
    /// The cluster.
    pub system: SystemIdentifier,
    /// Whether what is stored can be read here.
    pub can_read: bool,
}

/// How far the opening of the repository has come.
#[derive(Debug, Clone)]
pub enum Opening {
    /// Nothing is known yet.
    UnderWay,
    /// It failed the last time, and is tried again.
    Failing {
        /// Why.
        why: String,
        /// What the operator can do.
        hint: Option<String>,
        /// It will fail until a person changes something.
        permanent: bool,
    },
    /// It is open.
    Done(Arc<Services>),
}

impl Opening {
    /// It failed so.
    pub fn failing(error: &anyhow::Error) -> Self {
        let known = error.chain().find_map(|cause| cause.downcast_ref::<repository::Error>());
        Self::Failing {
            why: format!("{error:#}"),
            hint: known.map(|error| error.hint().to_owned()),
            permanent: known.is_some_and(repository::Error::is_permanent),
        }
    }

    /// Whether waiting makes no difference.
    fn is_settled(&self) -> bool {
        matches!(self, Self::Done(_) | Self::Failing { permanent: true, .. })
    }
}

/// The agent's side of the socket.
#[derive(Debug)]
pub struct SocketHandler {
    opening: Receiver<Opening>,
    role: Role,
    metrics: Arc<Metrics>,
    recorder: Recorder,
    state: State,
}

impl SocketHandler {
    /// Answers with what is open once it is.
    pub fn new(opening: Receiver<Opening>, role: Role, metrics: Arc<Metrics>, recorder: Recorder, state: State) -> Self {
        Self { opening, role, metrics, recorder, state }
    }

    async fn services(&self) -> Result<Arc<Services>, Response> {
        let mut opening = self.opening.clone();
        if let Ok(Err(_)) = tokio::time::timeout(PATIENCE, opening.wait_for(Opening::is_settled)).await {
            return Err(later("the agent is stopping"));
        }
        match opening.borrow().clone() {
            Opening::Done(services) => Ok(services),
            Opening::UnderWay => Err(later("the agent has not reached the repository yet")),
            Opening::Failing { why, hint, permanent } => {
                Err(Response::Failed { message: format!("the agent cannot open the repository: {why}"), hint, permanent })
            }
        }
    }

    async fn archive_file(&self, path: PathBuf) -> Response {
        if self.role != Role::Agent {
            return failed("this process only fetches WAL for a recovery; start the agent to archive", "Start `walkeep agent`.", false);
        }
        let services = match self.services().await {
            Ok(services) => services,
            Err(response) => return response,
        };
        let system = services.system;
        let offered = path.display().to_string();
        let checked = tokio::task::spawn_blocking(move || wal_path::check_source(&path, system)).await;
        let source = match checked {
            Ok(Ok(source)) => source,
            Ok(Err(error)) => return self.refused(&offered, &error.into()),
            Err(died) => return failed(died.to_string(), "See the agent's log.", false),
        };
        match services.archiver.archive(source).await {
            Ok(_) => Response::Done,
            Err(error) => self.refused(&offered, &error),
        }
    }

    /// Tells the shim, and the audit trail where it is a refusal and no trouble that passes.
    fn refused(&self, path: &str, error: &ArchiveError) -> Response {
        if let Some(reason) = error.refusal() {
            let deed = Deed::refused(Kind::REQUEST).of("archive", path);
            self.recorder.refused(reason, deed.saying(crate::chain(error)));
        }
        refused(error)
    }

    async fn fetch_file(&self, name: String, destination: PathBuf, standby: bool) -> Response {
        let name: WalFileName = match name.parse() {
            Ok(name) => name,
            Err(error) => return failed(format!("{error}"), "restore_command must pass %f and %p.", true),
        };
        let services = match self.services().await {
            Ok(services) => services,
            Err(response) => return response,
        };
        let (system, path) = (services.system, destination.clone());
        match tokio::task::spawn_blocking(move || wal_path::check_destination(&path, system)).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => {
                let deed = Deed::refused(Kind::REQUEST).of("fetch", name).of("to", destination.display());
                self.recorder.refused("destination", deed.saying(error.to_string()));
                let hint = "restore_command writes into the pg_wal of this cluster's data directories only.";
                return failed(format!("{error}"), hint, error.is_permanent());
            }
            Err(died) => return failed(died.to_string(), "See the agent's log.", false),
        }
        if self.role == Role::Agent && !services.can_read {
            return Response::Elsewhere { message: "the agent has no identity to decrypt WAL with".into() };
        }
        match services.fetcher.fetch(name, &destination, FetchMode { standby }).await {
            Outcome::Done => Response::Done,
            Outcome::Absent { why } => Response::Absent { message: why },
            Outcome::Failed { why, hint, permanent } => Response::Failed { message: format!("{why:#}"), hint: Some(hint), permanent },
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

    fn status(&self) -> Response {
        match serde_json::to_string(&self.state.heard()) {
            Ok(text) => Response::Told { text },
            Err(error) => failed(error.to_string(), "This is a defect.", true),
        }
    }

    fn turned_away(&self, reason: &'static str, message: &str) {
        self.recorder.refused(reason, Deed::refused(Kind::REQUEST).saying(message));
    }

    async fn fetch(&self, name: String, destination: PathBuf, standby: bool) -> Response {
        let response = self.fetch_file(name, destination, standby).await;
        self.metrics.fetch_answer(match response {
            Response::Done | Response::Told { .. } => "done",
            Response::Absent { .. } => "absent",
            Response::Elsewhere { .. } => "elsewhere",
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
    Response::Failed { message, hint: Some(error.hint().to_owned()), permanent: error.is_permanent() }
}

fn later(message: &str) -> Response {
    Response::TryLater { message: message.into() }
}

fn failed(message: impl Into<String>, hint: &str, permanent: bool) -> Response {
    Response::Failed { message: message.into(), hint: Some(hint.into()), permanent }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn state() -> State {
        State { streams: true, progress: Arc::default(), standing: None }
    }

    #[tokio::test(start_paused = true)]
    async fn the_shim_is_told_why_the_repository_is_not_open() {
        let (told, opening) = tokio::sync::watch::channel(Opening::UnderWay);
        let handler = SocketHandler::new(opening, Role::Agent, Arc::new(Metrics::new().unwrap()), Recorder::nobody(), state());
        let fetch = || handler.fetch("00000002.history".into(), "/d/pg_wal/RECOVERYHISTORY".into(), false);
        assert!(matches!(fetch().await, Response::TryLater { .. }));

        told.send_replace(Opening::failing(&anyhow::Error::new(repository::Error::NoRepository { url: "file:///r".into() })));
        let answer = fetch().await;
        let Response::Failed { message, hint: Some(_), permanent: false } = answer else { panic!("{answer:?}") };
        assert!(message.contains("no Walkeep repository at file:///r"), "{message}");

        let unknown = repository::Error::UnknownCluster { url: "file:///r".into(), cluster: "main".into() };
        told.send_replace(Opening::failing(&anyhow::Error::new(unknown).context("open it")));
        let began = tokio::time::Instant::now();
        assert!(matches!(fetch().await, Response::Failed { permanent: true, .. }));
        assert!(began.elapsed() < PATIENCE, "waiting would change nothing");
    }

    #[tokio::test]
    async fn a_name_that_cannot_be_right_is_refused_for_good() {
        let (_told, opening) = tokio::sync::watch::channel(Opening::UnderWay);
        let handler = SocketHandler::new(opening, Role::Agent, Arc::new(Metrics::new().unwrap()), Recorder::nobody(), state());
        let answer = handler.fetch("nonsense".into(), "/d/pg_wal/RECOVERYXLOG".into(), false).await;
        assert!(matches!(answer, Response::Failed { permanent: true, .. }), "{answer:?}");
    }
}
