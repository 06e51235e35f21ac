//! The daemon: one process that serves one cluster, or several.
//!
//! The only place that spawns long-lived tasks. What a cluster's agent does is [`member`]; here is what they share: the HTTP side, the heartbeat, the
//! signal and the end. Of several clusters none holds up another: one whose agent ends, because its repository is not what the configuration says or a
//! task died of a defect, begins again by itself after a while. Of one alone the process ends, and whoever manages the service begins it anew.

mod alarms;
mod artifacts;
mod backups;
mod drills;
mod handler;
mod member;
mod names;
mod outside;
mod samples;
mod tasks;
mod verify;
mod watch;

use std::sync::Arc;
use std::time::Duration;

use anyhow::Result;
use futures::future::join_all;
use tokio_util::sync::CancellationToken;
use tracing::Instrument;

use crate::artifact::maker::OpenBucket;
use crate::config::Config;
use crate::http::{self, Shown};
use crate::notify::{self, Pulse};
use crate::server::Listener;
pub use handler::Services;
use member::Member;
pub use member::Served;
use tasks::Tasks;

/// A cluster's agent that ended begins again after so long, where others go on.
const AGAIN: Duration = Duration::from_secs(30);
/// What the clusters' agents share has so long to end behind them.
const LAST: Duration = Duration::from_secs(1);

/// What a process serves.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Role {
    /// Everything.
    Agent,
    /// restore_command only, leaving after this long without a request.
    FetchService {
        /// How long it stays idle.
        idle: Duration,
    },
}

/// Runs until `stop`, or until the fetch service has nothing to do. What is not a cluster's is as the first one's configuration says.
pub async fn run(served: Vec<Served>, role: Role, open_bucket: OpenBucket, stop: CancellationToken) -> Result<()> {
    let shared = Tasks::default();
    let several = served.len() > 1;
    let mut members = Vec::new();
    for served in served {
        let span = of_cluster(&served.config, several);
        let member = span.in_scope(|| Member::new(served, role, open_bucket.clone(), &shared, &stop))?;
        members.push((Arc::new(member), span));
    }
    let Some((first, _)) = members.first() else { return Ok(()) };
    let config = first.config().clone();
    let mut sockets: Vec<Result<Listener>> = members.iter().map(|(member, _)| member.listen()).collect();
    if !several && let Some(failed) = sockets.pop_if(|socket| socket.is_err()) {
        return failed.map(drop);
    }
    if role == Role::Agent {
        let shown: Vec<Shown> = members.iter().map(|(member, _)| shown(member)).collect();
        if let Some(address) = config.listen.http {
            let listener = http::bind(address).await?;
            let (token, stop) = (config.listen.token.clone(), stop.clone());
            shared.spawn(async move {
                if let Err(error) = http::serve(listener, shown, token, stop).await {
                    tracing::error!(error = format!("{error:#}"), "the HTTP server ended");
                }
            });
        }
        if let Some(url) = config.notify.heartbeat.clone() {
            let pulses = members.iter().filter_map(|(member, _)| pulse(member)).collect();
            shared.spawn(notify::beat(url, config.notify.heartbeat_interval, pulses, stop.clone()));
        }
        let stop = stop.clone();
        shared.spawn(async move {
            stop.cancelled().await;
            tell(&[sd_notify::NotifyState::Stopping]);
        });
    }
    let works = members.into_iter().zip(sockets).map(|((member, span), socket)| {
        let stop = stop.clone();
        async move { if several { go_on(&member, socket, stop).await } else { once(&member, socket, stop).await } }.instrument(span)
    });
    let ended: Result<Vec<()>> = join_all(works).await.into_iter().collect();
    stop.cancel();
    shared.close();
    let _ = tokio::time::timeout(LAST, shared.wait()).await;
    ended.map(drop)
}

/// Whoever logs in it says which cluster it is about, where there are several.
fn of_cluster(config: &Config, several: bool) -> tracing::Span {
    match several {
        // As important as the most important line within.
        true => tracing::error_span!("cluster", name = %config.cluster.name),
        false => tracing::Span::none(),
    }
}

fn shown(member: &Member) -> Shown {
    Shown {
        cluster: member.config().cluster.name.clone(),
        metrics: member.metrics.clone(),
        progress: member.progress.clone(),
        page: member.own(),
    }
}

fn pulse(member: &Member) -> Option<Pulse> {
    Some(Pulse { metrics: member.metrics.clone(), standing: member.standing.clone()? })
}

async fn once(member: &Member, socket: Result<Listener>, stop: CancellationToken) -> Result<()> {
    member.work(socket?, stop).await
}

/// Until `stop`, however often it ends.
async fn go_on(member: &Member, mut socket: Result<Listener>, stop: CancellationToken) -> Result<()> {
    loop {
        let ended = match socket {
            Ok(socket) => member.work(socket, stop.child_token()).await,
            Err(error) => Err(error),
        };
        if stop.is_cancelled() {
            return ended;
        }
        let error = ended.map_or_else(|error| format!("{error:#}"), |()| "it ended by itself".to_owned());
        tracing::error!(
            error,
            again_s = AGAIN.as_secs(),
            "the agent of this cluster ended; it begins again, and those of the others go on"
        );
        member.progress.set_problem(Some(error));
        tokio::select! {
            () = tokio::time::sleep(AGAIN) => {}
            () = stop.cancelled() => return Ok(()),
        }
        socket = member.listen();
    }
}

/// A cluster is served.
fn ready() {
    tell(&[sd_notify::NotifyState::Ready]);
}

/// Tells systemd, where it asked to be told.
fn tell(states: &[sd_notify::NotifyState]) {
    if let Err(error) = sd_notify::notify(false, states) {
        tracing::debug!(%error, "systemd was not told");
    }
}
