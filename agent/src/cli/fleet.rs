//! `walkeep status --all`: every cluster of the configuration, and every other one in their repositories, a line each.

use std::collections::BTreeSet;
use std::sync::Arc;

use futures::FutureExt;
use serde::Serialize;
use tokio_util::sync::CancellationToken;
use walkeep_core::layout::ClusterName;
use walkeep_core::safety::Level;

use super::failure::Failure;
use super::{Global, output, setup};
use crate::config::ClusterConfig;
use crate::fleet::{self, OpenCluster, Row};

/// A row, and whether it is configured here.
#[derive(Debug, Serialize)]
struct Shown {
    #[serde(flatten)]
    row: Row,
    /// Whether the configuration has it.
    configured: bool,
}

/// Shows them.
pub async fn show(global: &Global, json: bool) -> Result<(), Failure> {
    let configs = setup::configs(global)?;
    let stop = setup::stop_on_signals()?;
    let known: Vec<ClusterName> = configs.iter().map(|config| config.cluster.name.clone()).collect();
    let (mut shown, mut seen, mut failed) = (Vec::new(), BTreeSet::new(), None);
    for config in &configs {
        let (cluster, url) = (&config.cluster, config.cluster.repository_url());
        let heard = setup::ask_agent(cluster).await.flatten();
        let opened = setup::what_is_left(cluster, &stop).await.map_err(anyhow::Error::from);
        // Each repository's others once, whichever cluster of ours leads there.
        if let Some(repository) = opened.as_ref().ok().filter(|_| seen.insert(url.clone())) {
            match fleet::others(&known, repository, &beside(cluster, &stop)).await {
                Ok(rows) => shown.extend(rows.into_iter().map(|row| Shown { row, configured: false })),
                Err(error) => failed = Some(format!("{url}: {error:#}")),
            }
        }
        shown.push(Shown { row: fleet::row(&cluster.name, opened, heard.as_ref(), &url).await, configured: true });
    }
    // The worst first.
    shown.sort_by(|one, other| (one.row.safety.level, &one.row.cluster).cmp(&(other.row.safety.level, &other.row.cluster)));
    if json {
        output::json(&shown)?;
    } else {
        print(&shown);
    }
    match failed {
        None => Ok(()),
        Some(failed) => Err(Failure::from(anyhow::anyhow!("not every cluster is shown: {failed}"))),
    }
}

/// How another cluster in the repositories of this one is opened.
pub fn beside(cluster: &ClusterConfig, stop: &CancellationToken) -> OpenCluster {
    let (cluster, stop) = (cluster.clone(), stop.clone());
    Arc::new(move |name| {
        let (other, stop) = (ClusterConfig { name, ..cluster.clone() }, stop.clone());
        async move { Ok(setup::what_is_left_quietly(&other, &stop).await?) }.boxed()
    })
}

fn print(shown: &[Shown]) {
    let count = |level: Level| shown.iter().filter(|shown| shown.row.safety.level == level).count();
    let counted = [Level::Unsafe, Level::AtRisk, Level::Unknown, Level::Safe].map(|level| (level, count(level)));
    let said: Vec<String> = counted.iter().filter(|(_, count)| *count > 0).map(|(level, count)| format!("{count} {level}")).collect();
    output::say!("{}: {}", output::count(shown.len() as u64, "cluster"), said.join(", "));
    let mut table = output::table(&["", "cluster", "PostgreSQL", "newest backup", "WAL until", "stored last"]);
    for Shown { row, .. } in shown {
        let stored = row.stored.as_ref();
        table.add_row([
            row.safety.level.to_string(),
            row.cluster.clone(),
            stored.map(|stored| stored.major_version.to_string()).unwrap_or_default(),
            stored.map(|stored| stored.newest_backup_at.map_or_else(|| "none".to_owned(), output::time)).unwrap_or_default(),
            stored.and_then(|stored| Some(format!("{} on timeline {}", stored.until?, stored.timeline?))).unwrap_or_default(),
            stored.and_then(|stored| stored.stored_at).map(output::time).unwrap_or_default(),
        ]);
    }
    output::say!("{table}");
    for Shown { row, configured } in shown.iter().filter(|shown| shown.row.safety.level != Level::Safe) {
        // Of another host's cluster nothing but what is stored can be known here.
        let text = match (configured, row.stored.is_some() && row.safety.level == Level::Unknown) {
            (false, true) => "its agent is elsewhere: ask there",
            _ => &row.safety.text,
        };
        output::say!("{}: {text}", row.cluster);
        row.safety.more.iter().for_each(|more| output::say!("    {more}"));
    }
}
