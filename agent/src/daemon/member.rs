//! The agent of one cluster: its socket, its repository, and the tasks that need it.
//!
//! What people and machines are shown of it is there from the first moment on, and outlives its work, which may end and begin again.
//! The socket is served first, so that archive_command gets a reason while the repository or the server cannot be reached; the rest starts as soon as
//! the repository was opened.

use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use anyhow::{Context, Result};
use tokio::sync::watch::Sender;
use tokio_util::sync::CancellationToken;
use tracing::Instrument;
use walkeep_core::layout::Form;

use super::handler::{Opening, Services, SocketHandler};
use super::tasks::Tasks;
use super::{Role, alarms, artifacts, backups, drills, names, outside, ready, samples, verify, watch};
use crate::archive::Archiver;
use crate::artifact::maker::{Maker, OpenBucket};
use crate::audit::Recorder;
use crate::audit::recorder::{self, Deeds};
use crate::config::{Acknowledge, Config};
use crate::copies;
use crate::encryption::Encryption;
use crate::fetch::{FetchConfig, Fetcher};
use crate::fleet::OpenCluster;
use crate::index;
use crate::metrics::Metrics;
use crate::names::NamesWanted;
use crate::notify::Standing;
use crate::page::{Own, Page};
use crate::postgres::ConnectionParams;
use crate::progress::{Phase, Progress};
use crate::rates::RatesFile;
use crate::recent::Recent;
use crate::repository::later::OpenRepository;
use crate::repository::{self, ClusterRepository};
use crate::retry::{Backoff, retry};
use crate::server::{self, Limits, Listener};
use crate::state::State;
use crate::stream::Streamer;
use crate::stream::alone::{Note, PATIENCE};
use crate::stream::guard::SlotGuard;

/// SIGTERM has to be over within 5 s; the stream's own drain takes at most 4.
const DRAIN: Duration = Duration::from_millis(4500);

/// What a cluster's agent is made of.
pub struct Served {
    /// Its configuration.
    pub config: Config,
    /// The socket that it serves.
    pub socket: PathBuf,
    /// How its server is reached.
    pub params: ConnectionParams,
    /// How its repository is opened.
    pub open: OpenRepository,
    /// How another cluster in it is.
    pub beside: OpenCluster,
}

/// A cluster's agent.
pub struct Member {
    served: Served,
    role: Role,
    open_bucket: OpenBucket,
    /// What it counts.
    pub metrics: Arc<Metrics>,
    /// How far its stream is.
    pub progress: Arc<Progress>,
    /// What is wrong with it; of an agent only.
    pub standing: Option<Standing>,
    /// Its page.
    pub page: Option<Arc<Page>>,
}

impl Member {
    /// It does nothing yet, but to judge and to tell what is wrong, by `tasks`.
    pub fn new(served: Served, role: Role, open_bucket: OpenBucket, tasks: &Tasks, stop: &CancellationToken) -> Result<Self> {
        let (metrics, progress) = (Arc::new(Metrics::new()?), Arc::new(Progress::default()));
        if served.config.metrics.backup_names {
            metrics.offer_common_names()?;
        }
        let mut member = Self { served, role, open_bucket, metrics, progress, standing: None, page: None };
        if role == Role::Agent {
            let (config, params) = (&member.served.config, &member.served.params);
            let (standing, lag) = alarms::start(config, &member.metrics, &member.progress, tasks, stop);
            member.standing = Some(standing.clone());
            let counted = (member.metrics.clone(), member.progress.clone());
            let page = config.listen.page.then(|| Page::new(config.clone(), params.clone(), counted, (standing, lag), stop.clone()));
            member.page = page.map(Arc::new);
        }
        Ok(member)
    }

    /// What the pages show of it, if there are any.
    pub fn own(&self) -> Option<Own> {
        Some(Own { state: self.state(), page: self.page.clone()?, beside: self.served.beside.clone() })
    }

    /// How it is.
    pub fn state(&self) -> State {
        let (progress, standing) = (self.progress.clone(), self.standing.clone());
        State { streams: self.served.config.cluster.stream, progress, standing }
    }

    /// Its configuration.
    pub fn config(&self) -> &Config {
        &self.served.config
    }

    /// Takes the socket.
    pub fn listen(&self) -> Result<Listener> {
        Listener::bind(&self.served.socket).context("open the agent's socket")
    }

    /// Works until `stop`, or until the fetch service has nothing to do, and drains.
    pub async fn work(&self, listener: Listener, stop: CancellationToken) -> Result<()> {
        let (Served { config, socket, params, open, .. }, role) = (&self.served, self.role);
        let (metrics, progress) = (self.metrics.clone(), self.progress.clone());
        tracing::info!(version = env!("CARGO_PKG_VERSION"), cluster = %config.cluster.name, socket = %socket.display(), "walkeep starts");

        let tasks = Tasks::default();
        // Tasks that carry WAL stop at `stop` and drain; calls to the store that are still out after the drain are cut by `leave`.
        let leave = CancellationToken::new();
        let (told, opening) = tokio::sync::watch::channel(Opening::UnderWay);
        let (recorder, deeds) = match role {
            Role::Agent => Some(Recorder::new()).unzip(),
            Role::FetchService { .. } => (None, None),
        };
        let recorder = recorder.unwrap_or_else(Recorder::nobody);
        let handler = Arc::new(SocketHandler::new(opening, role, metrics.clone(), recorder.clone(), self.state()));
        let limits = Limits { drain: Duration::from_secs(3), ..Limits::default() };
        let cluster = config.cluster.name.to_string();
        let socket_stop = stop.clone();
        tasks.spawn(async move { server::serve(listener, &cluster, handler, limits, socket_stop).await });
        // From the first moment on: it has a server to protect, whether the repository can be opened or not.
        if role == Role::Agent
            && let Some(guard) = SlotGuard::new(&config.cluster, params, &metrics, &progress)
        {
            tasks.spawn(guard.recording(recorder.clone()).run(stop.clone()));
        }
        let crashed = Arc::new(AtomicBool::new(false));
        let refused = Arc::new(Mutex::new(None));
        // What the others do in their last moments is recorded, and brought to every repository, if there is time.
        let followers = Followers::default();
        let parts = Parts {
            crashed: crashed.clone(),
            refused: refused.clone(),
            config: config.clone(),
            role,
            params: params.clone(),
            metrics,
            progress,
            page: self.page.clone(),
            leave: leave.clone(),
            followers: followers.clone(),
            recorder,
            deeds,
        };
        tasks.spawn(bring_up(parts, (open.clone(), self.open_bucket.clone()), told, tasks.clone(), stop.clone()));

        stop.cancelled().await;
        tracing::info!("stopping: storing what was received");
        tasks.close();
        let end = tokio::time::Instant::now() + DRAIN;
        if tokio::time::timeout_at(end, tasks.wait()).await.is_err() {
            tracing::warn!(tasks = tasks.len(), "leaving with work unfinished; nothing of it was confirmed");
        }
        followers.last.cancel();
        followers.tasks.close();
        if tokio::time::timeout_at(end, followers.tasks.wait()).await.is_err() {
            tracing::info!("not everything is recorded, or in every repository yet: the next agent brings it there");
        }
        leave.cancel();
        tracing::info!("stopped");
        if let Some(error) = refused.lock().unwrap_or_else(PoisonError::into_inner).take() {
            return Err(error);
        }
        anyhow::ensure!(!crashed.load(Ordering::Relaxed), "a task of the agent died; see the log above");
        Ok(())
    }
}

/// What the tasks are made of.
struct Parts {
    config: Config,
    role: Role,
    params: ConnectionParams,
    metrics: Arc<Metrics>,
    progress: Arc<Progress>,
    /// Whoever looks at the agent is shown the repository too, once it is open.
    page: Option<Arc<Page>>,
    leave: CancellationToken,
    /// Where jobs tell what they did, and where that is taken from.
    recorder: Recorder,
    deeds: Option<Deeds>,
    followers: Followers,
    /// A task died.
    crashed: Arc<AtomicBool>,
    /// Why the agent must not run at all.
    refused: Arc<Mutex<Option<anyhow::Error>>>,
}

/// The tasks that go on until all others have ended: they see to what these leave, several repositories alike and the audit trail.
#[derive(Clone, Default)]
struct Followers {
    tasks: Tasks,
    /// Nothing more will come.
    last: CancellationToken,
}

/// Whether the repository is not what the configuration says it is: nothing mends that but a person, here.
fn is_refused(error: &anyhow::Error) -> bool {
    matches!(
        error.downcast_ref::<repository::Error>(),
        Some(repository::Error::NotAsConfigured { .. } | repository::Error::Disagree { .. })
    )
}

/// Opens the repository, however long that takes, and starts what needs it.
async fn bring_up(
    parts: Parts,
    (open, open_bucket): (OpenRepository, OpenBucket),
    told: Sender<Opening>,
    tasks: Tasks,
    stop: CancellationToken,
) {
    let Parts { config, role, params, metrics, progress, page, leave, recorder, deeds, followers, crashed, refused } = parts;
    let refuse = |error| {
        *refused.lock().unwrap_or_else(PoisonError::into_inner) = Some(error);
        stop.cancel();
    };
    let open_once = || async {
        let opened = tokio::select! {
            opened = open() => opened,
            () = stop.cancelled() => Err(anyhow::anyhow!("stopping")),
        };
        let opened = opened.inspect_err(|error| {
            metrics.error("open");
            progress.set_problem(Some(format!("{error:#}")));
            told.send_replace(Opening::failing(error));
        });
        opened.inspect(|opened| {
            let system = opened.identity().system_identifier;
            tracing::info!(repository = opened.repository().url(), system_identifier = %system, "repository opened");
        })
    };
    let into_spool = role == Role::Agent && config.cluster.stream && config.cluster.acknowledge == Acknowledge::Spool;
    // Of another repository than the configured one it says nothing, nor of one that was encrypted and shall not be, or the other way about.
    let is_encrypted = config.cluster.encryption.is_some();
    let of_this = |note: &Note| note.repository == config.cluster.repository_url() && (note.identity.form == Form::Age) == is_encrypted;
    let note = if into_spool { Note::load(&config.cluster.spool).filter(of_this) } else { None };
    let repository = match note {
        // The stream goes on into the spool: it does not wait for the repository.
        Some(note) => match tokio::time::timeout(PATIENCE, open_once()).await.context("no answer in time").flatten() {
            Ok(repository) => repository,
            Err(error) if is_refused(&error) => return refuse(error),
            Err(error) => {
                tracing::warn!(error = format!("{error:#}"), "the repository is out of reach: starting with what the spool knows of it");
                let (name, level) = (config.cluster.name.clone(), config.cluster.compression_level);
                // Looked at when the agent began; a file of keys that went since is told by whoever needs it.
                let keys = Encryption::of(&config.cluster).unwrap_or_default();
                let repository = ClusterRepository::later(note.repository, name, note.identity, level, open);
                repository.with_wal_level(config.cluster.wal_compression_level).with_encryption(keys)
            }
        },
        None => {
            let warned = AtomicBool::new(!into_spool);
            let opened = retry(
                "opening the repository",
                Backoff::FOREVER,
                &stop,
                |error: &anyhow::Error| !is_refused(error),
                || async {
                    let opened = open_once().await;
                    if opened.is_err() && !warned.swap(true, Ordering::Relaxed) {
                        tracing::warn!(
                            "nothing is known here of what is stored, so the stream waits for the repository, with `acknowledge = \"spool\"` too"
                        );
                    }
                    opened
                },
            );
            match opened.await {
                Ok(repository) => repository,
                Err(error) if is_refused(&error) => return refuse(error),
                Err(_) => return,
            }
        }
    };
    // Whoever makes a call to it: that it failed is counted. What fails while it is opened is `open`.
    let repository = Arc::new(repository.observed(metrics.clone()));
    let identity = repository.identity();
    if let Some(page) = page {
        page.opened(repository.clone());
    }
    if let Some(deeds) = deeds {
        followers.tasks.spawn(recorder::run(repository.clone(), deeds, followers.last.clone()));
    }
    let recent = Arc::new(Recent::default());
    let index = match role {
        Role::Agent => {
            let (queue, offers) = index::Queue::new();
            tasks.spawn(index::writer::run(repository.clone(), offers, metrics.clone(), stop.clone()));
            queue
        }
        Role::FetchService { .. } => index::Queue::nobody(),
    };
    let services = Arc::new(Services {
        archiver: Archiver::new(repository.clone(), recent.clone(), metrics.clone(), index.clone(), leave.clone()).looking_ahead(),
        fetcher: Fetcher::new(repository.clone(), FetchConfig::for_shims(), &leave).measuring(RatesFile::of(&config.cluster)),
        system: identity.system_identifier,
        can_read: repository.can_read(),
    });
    told.send_replace(Opening::Done(services.clone()));
    ready();
    match role {
        Role::FetchService { idle } => {
            tasks.spawn(async move {
                if services.fetcher.activity().wait_idle(idle, &stop).await {
                    tracing::info!(idle_s = idle.as_secs(), "nothing to fetch any more; leaving");
                    stop.cancel();
                }
            });
        }
        Role::Agent => {
            for index in 0..=config.cluster.further.len() {
                if config.cluster.further.is_empty() {
                    break;
                }
                let (repository, cluster) = (repository.clone(), config.cluster.clone());
                let follow = copies::follow(repository.clone(), cluster.clone(), index, followers.last.clone());
                followers.tasks.spawn(supervise("copies", follow, crashed.clone(), stop.clone()));
                match index {
                    0 => tasks.spawn(copies::note_states(repository, cluster, metrics.clone(), stop.clone())),
                    index => tasks.spawn(copies::compare(repository, cluster, index, stop.clone())),
                };
            }
            tasks.spawn(watch::run(
                config.cluster.clone(),
                params.clone(),
                repository.clone(),
                metrics.clone(),
                progress.clone(),
                stop.clone(),
            ));
            tasks.spawn(outside::run(repository.clone(), metrics.clone(), stop.clone()));
            let verifying = verify::run(config.cluster.clone(), repository.clone(), metrics.clone(), progress.clone(), stop.clone());
            tasks.spawn(supervise("verify", verifying, crashed.clone(), stop.clone()));
            // Whoever sees new relations may ask for a snapshot by a clone of this.
            let names_wanted = NamesWanted::default();
            tasks.spawn(names::run(
                config.cluster.clone(),
                params.clone(),
                repository.clone(),
                progress.clone(),
                names_wanted,
                stop.clone(),
            ));
            let taker = backups::Taker::new(config.cluster.clone(), params.clone(), repository.clone(), metrics.clone(), stop.clone());
            let taker = taker.recording(recorder.clone());
            if taker.has_reasons() {
                tasks.spawn(supervise("backups", backups::run(taker, progress.clone()), crashed.clone(), stop.clone()));
            }
            let maker = Maker::new(repository.clone(), open_bucket);
            let made = artifacts::Artifacts::new(config.cluster.clone(), &params, maker, metrics.clone(), recorder.clone(), stop.clone());
            if !made.is_empty() {
                tasks.spawn(supervise("artifacts", made.run(), crashed.clone(), stop.clone()));
            }
            let counting = samples::Samples::new(config.cluster.clone(), params.clone(), repository.clone(), progress.clone());
            let (counting, sampling) = (Arc::new(counting), stop.clone());
            let (cluster, path) = (config.cluster.clone(), config.path.clone());
            let rehearsed = drills::Drills::new(cluster, path, repository.clone(), metrics.clone(), counting.clone(), stop.clone());
            tasks.spawn(supervise("drills", rehearsed.run(), crashed.clone(), stop.clone()));
            tasks.spawn(async move { counting.run(sampling).await });
            if !config.cluster.stream {
                progress.set_phase(Phase::Off);
                return;
            }
            // Not a reason to leave: archive_command is served all the same, and whoever mends the spool need not think of the agent.
            let start = || {
                let (cluster, params, repository, recent) = (config.cluster.clone(), params.clone(), repository.clone(), recent.clone());
                let streamer = Streamer::new(cluster, params, repository, recent, metrics.clone(), progress.clone(), index.clone());
                let started = streamer.map(|streamer| streamer.recording(recorder.clone()));
                let started = started.inspect_err(|error| {
                    metrics.error("spool");
                    progress.set_problem(Some(format!("{error:#}")));
                });
                std::future::ready(started)
            };
            if let Ok(streamer) = retry("starting the stream", Backoff::FOREVER, &stop, |_| true, start).await {
                tasks.spawn(supervise("stream", streamer.run(stop.clone()), crashed, stop));
            }
        }
    }
}

/// A task that dies of a defect takes the agent with it, loudly: a service manager starts it anew, and silence would be worse.
async fn supervise(name: &'static str, task: impl Future<Output = ()> + Send + 'static, crashed: Arc<AtomicBool>, stop: CancellationToken) {
    if let Err(error) = tokio::spawn(task.in_current_span()).await {
        tracing::error!(task = name, %error, "a task of the agent died: leaving, so that a service manager starts the agent anew");
        crashed.store(true, Ordering::Relaxed);
        stop.cancel();
    }
}
