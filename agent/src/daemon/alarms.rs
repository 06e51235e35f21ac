//! What is wrong, from the first moment on: it is judged, and told to people by every channel that is configured.

use std::sync::{Arc, Mutex};

use tokio_util::sync::CancellationToken;
use walkeep_core::lag::LagHistory;

use super::tasks::Tasks;
use crate::config::Config;
use crate::metrics::Metrics;
use crate::notify::{self, Channel, From, Standing};
use crate::progress::Progress;

/// Starts the tasks. What stands at present, and what might have been lost, can be had by what is given back.
pub fn start(
    config: &Config,
    metrics: &Arc<Metrics>,
    progress: &Arc<Progress>,
    tasks: &Tasks,
    stop: &CancellationToken,
) -> (Standing, Arc<Mutex<LagHistory>>) {
    let (told, standing) = tokio::sync::watch::channel(None);
    let (notify, cluster) = (config.notify.clone(), config.cluster.clone());
    let from = From::here(&cluster);
    for channel in Channel::all(&notify) {
        let file = cluster.spool.join(format!("notify.{}.json", channel.as_str()));
        let telling = notify::tell(channel, notify.rules, from.clone(), file, metrics.clone(), standing.clone(), stop.clone());
        tasks.spawn(telling);
    }
    let lag = Arc::new(Mutex::default());
    tasks.spawn(notify::judge(notify, cluster, metrics.clone(), progress.clone(), told, lag.clone(), stop.clone()));
    (standing, lag)
}
