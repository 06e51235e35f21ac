//! Messages to people: what is wrong, that it is over, and that the agent lives.
//!
//! What is told when is the core's ([`walkeep_core::alarm`]). Each way of telling has a task and a memory of its own, so that one that hangs or refuses
//! holds up no other; nobody else waits for any of them, and every try has its deadline.

mod command;
mod email;
mod heartbeat;

use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use anyhow::{Context, Result};
use chrono::{DateTime, Utc};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use walkeep_core::alarm::{Judge, Judged, Message, Rules, Teller};
use walkeep_core::lag::LagHistory;

use crate::config::{ClusterConfig, EmailConfig, NotifyConfig, SecretSource};
use crate::durable;
use crate::lag_file::LagFile;
use crate::metrics::Metrics;
use crate::progress::Progress;
use crate::web;

pub use heartbeat::{HEARTBEAT, Pulse};

/// Between two looks at what is wrong.
const LOOK: Duration = Duration::from_secs(2);
/// A try to tell takes no longer.
const DEADLINE: Duration = Duration::from_secs(20);
/// Names and numbers only, and nothing that others need.
const MODE: u32 = 0o600;

/// What is wrong now, for whoever wants to know; nothing before the first look.
pub type Standing = watch::Receiver<Option<Arc<Judged>>>;

/// A way of telling.
#[derive(Debug, Clone)]
pub enum Channel {
    /// A URL that takes JSON.
    Webhook(SecretSource),
    /// Mail.
    Email(Box<EmailConfig>),
    /// A program.
    Command(Vec<String>),
}

impl Channel {
    /// Those that are configured.
    pub fn all(config: &NotifyConfig) -> Vec<Self> {
        let webhook = config.webhook.clone().map(Self::Webhook);
        let email = config.email.clone().map(Box::new).map(Self::Email);
        let command = config.command.clone().map(Self::Command);
        [webhook, email, command].into_iter().flatten().collect()
    }

    /// A short word for it.
    pub const fn as_str(&self) -> &'static str {
        match self {
            Self::Webhook(_) => "webhook",
            Self::Email(_) => "email",
            Self::Command(_) => "command",
        }
    }

    /// Where it leads, as far as that may be told.
    pub fn words(&self) -> String {
        match self {
            Self::Webhook(url) => url.read().map_or_else(|_| "(not known)".to_owned(), |url| web::shown(url.reveal())),
            Self::Email(mail) => format!("{} by {}:{}", mail.to.join(", "), mail.host, mail.port),
            Self::Command(argv) => argv.first().cloned().unwrap_or_default(),
        }
    }

    /// Tells it; an error has no secret in it.
    pub async fn send(&self, message: &Message, from: &From) -> Result<()> {
        let sent = async {
            match self {
                Self::Webhook(url) => web::post(&url.read()?, &web::slack(&message.text(&from.cluster, &from.host))).await,
                Self::Email(config) => email::send(config, message, from).await,
                Self::Command(argv) => command::run(argv, message, from).await,
            }
        };
        tokio::time::timeout(DEADLINE, sent).await.with_context(|| format!("no answer within {} s", DEADLINE.as_secs())).flatten()
    }
}

/// Who tells it.
#[derive(Debug, Clone)]
pub struct From {
    /// The cluster's name.
    pub cluster: String,
    /// This host's name.
    pub host: String,
}

impl From {
    /// This process.
    pub fn here(cluster: &ClusterConfig) -> Self {
        let host = rustix::system::uname().nodename().to_string_lossy().into_owned();
        Self { cluster: cluster.name.to_string(), host }
    }
}

/// Looks what is wrong until `stop`. Whoever has the other end of `told` knows it too.
pub async fn judge(
    config: NotifyConfig,
    cluster: ClusterConfig,
    metrics: Arc<Metrics>,
    progress: Arc<Progress>,
    told: watch::Sender<Option<Arc<Judged>>>,
    lag: Arc<Mutex<LagHistory>>,
    stop: CancellationToken,
) {
    let (mut judge, began) = (Judge::new(config.possible_loss), Utc::now());
    let (file, mut kept) = (LagFile::of(&cluster.spool), None);
    let held = || lag.lock().unwrap_or_else(PoisonError::into_inner);
    *held() = file.load(began);
    while !over(LOOK, &stop).await {
        let signs = metrics.signs(&cluster, &progress, began);
        held().add(Utc::now(), signs.possible_loss, signs.lag_bytes);
        let minutes = held().minutes();
        let newest = minutes.last().map(|minute| minute.at);
        if kept.replace(newest) != Some(newest) {
            let file = file.clone();
            // What hinders it is told there.
            let _ = tokio::task::spawn_blocking(move || file.keep(&minutes)).await;
        }
        told.send_replace(Some(Arc::new(judge.look(&signs, Utc::now()))));
    }
}

/// Tells by one channel until `stop`.
pub async fn tell(
    channel: Channel,
    rules: Rules,
    from: From,
    file: PathBuf,
    metrics: Arc<Metrics>,
    standing: Standing,
    stop: CancellationToken,
) {
    let name = channel.as_str();
    metrics.notify.begin(name);
    let mut teller = Memory::load(file);
    let mut failing = false;
    while !over(LOOK, &stop).await {
        let Some(judged) = standing.borrow().clone() else { continue };
        let message = teller.look(&judged, &rules, Utc::now()).await;
        let Some(message) = message else { continue };
        let sent = tokio::select! {
            sent = channel.send(&message, &from) => sent,
            () = stop.cancelled() => return,
        };
        metrics.notify.ended(name, sent.is_ok());
        match &sent {
            Ok(()) => tracing::info!(channel = name, what = message.headline(&from.cluster), "somebody was told"),
            Err(error) if failing => tracing::debug!(channel = name, error = format!("{error:#}"), "a message did not arrive"),
            Err(error) => {
                tracing::warn!(
                    channel = name,
                    error = format!("{error:#}"),
                    what = message.headline(&from.cluster),
                    "a message did not arrive; trying again"
                );
            }
        }
        failing = sent.is_err();
        teller.settle(&message, !failing).await;
    }
}

/// Asks for the heartbeat's URL until `stop`, as long as WAL flows in every cluster.
pub async fn beat(url: SecretSource, interval: Duration, clusters: Vec<Pulse>, stop: CancellationToken) {
    heartbeat::run(url, interval, clusters, stop).await;
}

/// Whether it is over; else `time` has passed.
async fn over(time: Duration, stop: &CancellationToken) -> bool {
    tokio::select! {
        () = tokio::time::sleep(time) => false,
        () = stop.cancelled() => true,
    }
}

/// A teller, and the file by which the next process knows what was told. Without the file it is told once more, and what was over meanwhile never.
struct Memory {
    teller: Teller,
    kept: Teller,
    file: PathBuf,
}

impl Memory {
    fn load(file: PathBuf) -> Self {
        let read = std::fs::read(&file).ok();
        let teller: Teller = read.and_then(|bytes| serde_json::from_slice(&bytes).ok()).unwrap_or_default();
        Self { kept: teller.clone(), teller, file }
    }

    async fn look(&mut self, judged: &Judged, rules: &Rules, now: DateTime<Utc>) -> Option<Message> {
        let message = self.teller.look(judged, rules, now);
        self.keep().await;
        message
    }

    async fn settle(&mut self, message: &Message, arrived: bool) {
        self.teller.settle(message, arrived, Utc::now());
        self.keep().await;
    }

    async fn keep(&mut self) {
        if self.kept.is_kept_as(&self.teller) {
            return;
        }
        self.kept = self.teller.clone();
        let (file, bytes) = (self.file.clone(), serde_json::to_vec(&self.teller).unwrap_or_default());
        let written = tokio::task::spawn_blocking(move || durable::write_file(&file, &bytes, MODE)).await;
        match written.map_err(anyhow::Error::from).flatten() {
            Ok(()) => {}
            Err(error) => tracing::debug!(file = %self.file.display(), error = format!("{error:#}"), "what was told is not kept"),
        }
    }
}

#[cfg(test)]
mod tests;
