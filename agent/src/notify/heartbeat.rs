//! The heartbeat: a URL that is asked for as long as WAL flows. Whoever watches it (healthchecks.io and its like) tells when it stays away: the only alarm
//! that an agent which is down, or a host which is, can give.

use std::sync::Arc;
use std::time::Duration;

use tokio_util::sync::CancellationToken;

use super::{DEADLINE, Standing, over};
use crate::config::SecretSource;
use crate::metrics::Metrics;
use crate::web;

/// What it is called among the channels.
pub const HEARTBEAT: &str = "heartbeat";

/// What a cluster says to it.
#[derive(Debug)]
pub struct Pulse {
    /// Where beats are counted.
    pub metrics: Arc<Metrics>,
    /// What is wrong.
    pub standing: Standing,
}

pub(super) async fn run(url: SecretSource, interval: Duration, clusters: Vec<Pulse>, stop: CancellationToken) {
    clusters.iter().for_each(|cluster| cluster.metrics.notify.begin(HEARTBEAT));
    let (mut failing, mut silent) = (false, false);
    while !over(interval, &stop).await {
        // All of them, or none was looked at yet.
        let judged: Option<Vec<_>> = clusters.iter().map(|cluster| cluster.standing.borrow().clone()).collect();
        let Some(judged) = judged else { continue };
        let mut alarms = judged.iter().flat_map(|judged| &judged.alarms);
        if let Some(text) = alarms.find(|alarm| alarm.kind.stops_the_heartbeat()).map(|alarm| alarm.text.clone()) {
            if !silent {
                tracing::warn!(why = text, "the heartbeat falls silent");
            }
            silent = true;
            continue;
        }
        silent = false;
        let asked = async { tokio::time::timeout(DEADLINE, web::get(&url.read()?)).await? };
        let asked = tokio::select! {
            asked = asked => asked,
            () = stop.cancelled() => return,
        };
        clusters.iter().for_each(|cluster| cluster.metrics.notify.ended(HEARTBEAT, asked.is_ok()));
        if let Err(error) = &asked {
            match failing {
                true => tracing::debug!(error = format!("{error:#}"), "the heartbeat does not arrive"),
                false => tracing::warn!(error = format!("{error:#}"), "the heartbeat does not arrive; trying again"),
            }
        }
        failing = asked.is_err();
    }
}
