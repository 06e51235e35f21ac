//! The agent's Unix socket: who may speak, how long, how many at once, and how it stops.
//!
//! It knows the protocol and nothing of WAL: a [`Handler`] does the work. Only the agent's own user is served, and root, whom nothing
//! here could keep out anyway: the requests name local paths, and the agent must not read or write for one user what only another may.
//!
//! One connection carries one request. The shim keeps its end open until it has the answer, so an end that closes means that the shim
//! is gone. A fetch is dropped then: PostgreSQL may be asking for another file under the same path already. An archive goes on: the file
//! is wanted whoever asks, and on a slow line the next try would otherwise begin from nothing.

mod listener;

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tracing::Instrument;
use tracing::{debug, warn};
use walkeep_protocol::{Request, Response, Verb, frame};

pub use listener::{BindError, Listener};

/// The work behind the socket. A future may be dropped at any await; a fetch's is, when the shim is gone. So a file is put in place
/// by the future itself, as its last step, and not by a task that outlives it.
#[async_trait]
pub trait Handler: Send + Sync + 'static {
    /// Stores the file at `path`.
    async fn archive(&self, path: PathBuf) -> Response;
    /// Puts the archived file `name` at `destination`.
    async fn fetch(&self, name: String, destination: PathBuf, standby: bool) -> Response;
    /// How the agent is.
    fn status(&self) -> Response;
    /// A request was refused before it came here.
    fn turned_away(&self, _reason: &'static str, _message: &str) {}
}

/// What the server allows.
#[derive(Debug, Clone)]
pub struct Limits {
    /// Connections at once. PostgreSQL makes one or two for a cluster.
    pub connections: usize,
    /// Time for a request to come in, and for an answer to be taken.
    pub transfer: Duration,
    /// Time for the work.
    pub request: Duration,
    /// Time that requests under way have to finish when the agent stops.
    pub drain: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self { connections: 64, transfer: Duration::from_secs(10), request: Duration::from_secs(15 * 60), drain: Duration::from_secs(10) }
    }
}

/// What every connection needs.
struct Shared {
    cluster: String,
    handler: Arc<dyn Handler>,
    limits: Limits,
    user: u32,
    /// The drain time is over.
    leave: CancellationToken,
}

/// Serves the requests for `cluster` until `stop`; then refuses new ones, lets those under way finish for the drain time, and ends.
pub async fn serve(listener: Listener, cluster: &str, handler: Arc<dyn Handler>, limits: Limits, stop: CancellationToken) {
    let places = Arc::new(Semaphore::new(limits.connections));
    let leave = CancellationToken::new();
    let user = rustix::process::geteuid().as_raw();
    let shared = Arc::new(Shared { cluster: cluster.to_owned(), handler, limits, user, leave });
    let tracker = TaskTracker::new();
    loop {
        let accepted = tokio::select! {
            biased;
            () = stop.cancelled() => break,
            accepted = listener.accept() => accepted,
        };
        match (accepted, Arc::clone(&places).try_acquire_owned()) {
            (Ok(stream), Ok(place)) => drop(tracker.spawn(converse(stream, place, Arc::clone(&shared)).in_current_span())),
            (Ok(stream), Err(_)) => turn_away(stream, shared.limits.connections),
            (Err(error), _) => {
                // Out of descriptors, most likely: those that are served now will give some back.
                warn!(%error, "cannot accept a connection on the agent's socket");
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
        }
    }
    // No more shims come; the lock is kept until the last one is answered.
    let lock = listener.close();
    tracker.close();
    if timeout(shared.limits.drain, tracker.wait()).await.is_err() {
        warn!(requests = tracker.len(), "requests are given up because the agent stops");
        shared.leave.cancel();
        tracker.wait().await;
    }
    drop(lock);
}

/// Never waits: a fresh connection has room for one short answer.
fn turn_away(stream: UnixStream, connections: usize) {
    let response = Response::TryLater { message: format!("the agent is busy with {connections} requests") };
    if let Err(error) = stream.into_std().and_then(|mut stream| std::io::Write::write_all(&mut stream, &response.encode())) {
        debug!(%error, "a shim went away before it was told that the agent is busy");
    }
}

async fn converse(mut stream: UnixStream, place: OwnedSemaphorePermit, shared: Arc<Shared>) {
    if let Some(response) = answer(&mut stream, &shared).await {
        match timeout(shared.limits.transfer, stream.write_all(&response.encode())).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => debug!(%error, "a shim went away before its answer"),
            Err(_) => debug!("a shim does not take its answer"),
        }
    }
    drop(place);
}

/// The answer to the connection's request; `None` if there is nobody to take it.
async fn answer(stream: &mut UnixStream, shared: &Shared) -> Option<Response> {
    match stream.peer_cred() {
        Ok(peer) if peer.uid() == shared.user || peer.uid() == 0 => {}
        Ok(peer) => {
            let message = format!("the agent runs as user {} and serves nobody else; you are user {}", shared.user, peer.uid());
            shared.handler.turned_away("user", &message);
            return Some(refuse_user(peer.uid(), message));
        }
        Err(error) => return Some(failed(format!("the agent cannot tell who asks: {error}"), None, false)),
    }
    let read = tokio::select! {
        read = timeout(shared.limits.transfer, read_request(stream)) => read,
        () = shared.leave.cancelled() => return Some(stopping()),
    };
    let request = match read {
        Ok(Ok(request)) => request,
        Ok(Err(ReadError::Gone(error))) => {
            debug!(%error, "a shim went away before it had asked");
            return None;
        }
        Ok(Err(ReadError::Malformed(why))) => {
            let hint = "Are the agent and the shim of the same version? Restart the agent after an upgrade.";
            // Not for good: the agent of the other version may be about to be restarted.
            return Some(failed(why, Some(hint), false));
        }
        Err(_) => return Some(Response::TryLater { message: "the request did not come in time".into() }),
    };
    if let Some(other) = request.cluster.filter(|cluster| *cluster != shared.cluster) {
        let hint = "Check --cluster and --socket of the command, and the configuration's socket.";
        let message = format!("this agent serves cluster {}, not {other}", shared.cluster);
        shared.handler.turned_away("cluster", &message);
        return Some(failed(message, Some(hint), true));
    }
    work(stream, shared, request.verb).await
}

async fn work(stream: &mut UnixStream, shared: &Shared, verb: Verb) -> Option<Response> {
    let cancellable = matches!(verb, Verb::Fetch { .. });
    let what = describe(&verb);
    let done = async {
        match verb {
            Verb::Ping => Response::Done,
            Verb::Status => shared.handler.status(),
            Verb::Archive { path } => shared.handler.archive(path).await,
            Verb::Fetch { name, destination, standby } => shared.handler.fetch(name, destination, standby).await,
        }
    };
    let response = tokio::select! {
        // An answer that is ready is not lost to a shim that leaves at the same moment.
        biased;
        response = timeout(shared.limits.request, done) => response.unwrap_or_else(|_| {
            let seconds = shared.limits.request.as_secs();
            Response::TryLater { message: format!("the agent gave up after {seconds} s; its log tells more") }
        }),
        () = shared.leave.cancelled() => stopping(),
        () = hang_up(stream), if cancellable => {
            debug!(request = what, "given up: the shim is gone");
            return None;
        }
    };
    match &response {
        Response::Done | Response::Told { .. } => debug!(request = what, "done"),
        Response::Absent { message } => debug!(request = what, message, "absent"),
        Response::TryLater { message } => warn!(request = what, message, "not now"),
        Response::Elsewhere { message } => debug!(request = what, message, "not here"),
        Response::Failed { message, .. } => warn!(request = what, message, "failed"),
    }
    Some(response)
}

/// Ends when the shim's end is closed, or speaks out of turn.
async fn hang_up(stream: &mut UnixStream) {
    let _ = stream.read_u8().await;
}

enum ReadError {
    Gone(std::io::Error),
    Malformed(String),
}

async fn read_request(stream: &mut UnixStream) -> Result<Request, ReadError> {
    let mut header = [0; frame::HEADER];
    stream.read_exact(&mut header).await.map_err(ReadError::Gone)?;
    let length = frame::body_length(&header).map_err(|error| ReadError::Malformed(error.to_string()))?;
    let mut body = vec![0; length];
    stream.read_exact(&mut body).await.map_err(ReadError::Gone)?;
    Request::decode(&body).map_err(|error| ReadError::Malformed(format!("the request cannot be read: {error}")))
}

fn describe(verb: &Verb) -> String {
    match verb {
        Verb::Ping => "ping".into(),
        Verb::Status => "status".into(),
        Verb::Archive { path } => format!("archive {}", path.display()),
        Verb::Fetch { name, destination, .. } => format!("fetch {name:?} to {}", destination.display()),
    }
}

fn refuse_user(peer: u32, message: String) -> Response {
    warn!(peer, "a connection of another user is refused");
    let hint = "Run the agent and PostgreSQL as the same user.";
    failed(message, Some(hint), true)
}

fn stopping() -> Response {
    Response::TryLater { message: "the agent is stopping".into() }
}

fn failed(message: String, hint: Option<&str>, permanent: bool) -> Response {
    Response::Failed { message, hint: hint.map(Into::into), permanent }
}

#[cfg(test)]
mod tests;
