//! What is wrong, from the first moment on: it is judged, and told to people by every channel that is configured.

use std::sync::Arc;

use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::config::Config;
use crate::metrics::Metrics;
use crate::notify::{self, Channel, From, Standing};
use crate::progress::Progress;

/// Starts the tasks. What stands at present can be had by what is given back.
pub fn start(config: &Config, metrics: &Arc<Metrics>, progress: &Arc<Progress>, tasks: &TaskTracker, stop: &CancellationToken) -> Standing {
    let (told, standing) = tokio::sync::watch::channel(None);
    let (notify, cluster) = (config.notify.clone(), config.cluster.clone());
    let from = From::here(&cluster);
    for channel in Channel::all(&notify) {
        let file = cluster.spool.join(format!("notify.{}.json", channel.as_str()));
        let telling = notify::tell(channel, notify.rules, from.clone(), file, metrics.clone(), standing.clone(), stop.clone());
        tasks.spawn(telling);
    }
    if let Some(url) = notify.heartbeat.clone() {
        tasks.spawn(notify::beat(url, notify.heartbeat_interval, metrics.clone(), standing.clone(), stop.clone()));
    }
    tasks.spawn(notify::judge(notify, cluster, metrics.clone(), progress.clone(), told, stop.clone()));
    standing
}
