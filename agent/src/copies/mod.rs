//! Several repositories of one cluster: brings to each what it lacks, in the agent ([`follow`], [`compare`]) and by `walkeep copy` ([`copy`]).
//!
//! What a put could not bring everywhere waits in a queue in memory ([`walkeep_store::several`]). What no queue knows of (a killed agent's, another process's,
//! more than there was room for) a comparison finds: of each further repository with the primary, in both directions, at the agent's start, daily, and whenever
//! somebody says that something was left behind. What it has done is noted beside the spool, so that one that was interrupted goes on where it was.

mod contents;
pub mod copy;
mod cursor;
pub mod left_behind;
mod report;

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use tokio_util::sync::CancellationToken;
use walkeep_store::several::{Compared, Mark, Sink};
use walkeep_store::{ErrorKind, Several};

pub use contents::Contents;
pub use report::{PlaceReport, behind_since, note_states, reports};

use crate::config::ClusterConfig;
use crate::repository::{self, ClusterRepository};
use crate::retry::Backoff;
use cursor::Cursor;

/// How often it is looked whether a comparison is wanted.
const LOOK: Duration = Duration::from_secs(2);
/// Between tries of a comparison that fails.
const AGAIN: Backoff = Backoff { first: Duration::from_secs(1), most: Duration::from_secs(60), deadline: None };

/// The repositories, as soon as they are opened; `None` if there is but one, or at `stop`.
pub async fn opened(repository: &ClusterRepository, cluster: &ClusterConfig, stop: &CancellationToken) -> Option<Several> {
    while !cluster.further.is_empty() && !stop.is_cancelled() {
        if let Some(several) = repository.repository().store().several() {
            return Some(several.clone());
        }
        tokio::select! {
            () = tokio::time::sleep(LOOK) => {}
            () = stop.cancelled() => {}
        }
    }
    None
}

/// Brings to the repository of this number what waits for it. Once `last` says that nothing more will come it ends with the queue, or at once if the
/// repository does not answer.
pub async fn follow(repository: Arc<ClusterRepository>, cluster: ClusterConfig, index: usize, last: CancellationToken) {
    let Some(several) = opened(&repository, &cluster, &last).await else { return };
    let guide = Contents::new(repository);
    let never = CancellationToken::new();
    let rest = async {
        last.cancelled().await;
        while several.states().get(index).is_some_and(|state| state.queued > state.aside + state.stuck && state.down.is_none()) {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    tokio::select! {
        () = several.follow(index, &guide, &never) => {}
        () = rest => {}
    }
}

/// Compares the repository of this number with the primary, whenever that is wanted, until `stop`.
pub async fn compare(repository: Arc<ClusterRepository>, cluster: ClusterConfig, index: usize, stop: CancellationToken) {
    let Some(several) = opened(&repository, &cluster, &stop).await else { return };
    let Some(url) = cluster.repositories().nth(index).map(|config| config.url()) else { return };
    let mut cursor = Cursor::load(&cluster, &url);
    let mut failures = 0;
    // In the count of the repositories: when the last whole comparison began, the one under way, and what it has to tell about.
    let (mut settled, mut began, mut doubted) = (0, 0, several.doubted(index));
    loop {
        // Taken before the listings are made: what comes meanwhile asks for another one.
        take_notes(&several, &cluster);
        if several.doubted(index) > doubted {
            doubted = several.doubted(index);
            cursor.anew();
        }
        if settled < doubted || cursor.is_due(cluster.compare_interval) {
            if began == 0 || cursor.is_new() {
                began = several.begin_comparing();
            }
            let compared = tokio::select! {
                compared = compare_once(&repository, &several, index, &mut cursor) => compared,
                // It may wait for a repository that does not answer.
                () = stop.cancelled() => return,
            };
            match compared {
                Ok(whole) => {
                    if whole {
                        several.note_compared(index, began);
                        settled = began;
                    }
                    (began, failures) = (0, 0);
                }
                Err(error) => {
                    failures += 1;
                    let wait = AGAIN.wait(failures);
                    // An outage is told where it shows first.
                    if failures == 1 && !error.is_transient() {
                        tracing::warn!(repository = url, error = %format_args!("{error:#}"), "repositories cannot be compared; trying again");
                    }
                    tracing::debug!(repository = url, error = %format_args!("{error:#}"), wait_ms = wait.as_millis() as u64, "not compared");
                    tokio::select! {
                        () = tokio::time::sleep(wait) => continue,
                        () = stop.cancelled() => return,
                    }
                }
            }
        }
        tokio::select! {
            () = tokio::time::sleep(LOOK) => {}
            () = stop.cancelled() => return,
        }
    }
}

/// What other processes left behind, whoever of those that compare comes first: each is told by the repositories' own count.
fn take_notes(several: &Several, cluster: &ClusterConfig) {
    for (index, repository) in cluster.repositories().enumerate() {
        if left_behind::take(cluster, &repository.url()) {
            several.doubt(index);
        }
    }
}

/// Whether it was a comparison from the beginning to the end.
async fn compare_once(
    repository: &Arc<ClusterRepository>,
    several: &Several,
    index: usize,
    cursor: &mut Cursor,
) -> Result<bool, repository::Error> {
    let guide = Contents::load(repository.clone()).await?;
    let places = several.places();
    let (Some(primary), Some(other)) = (places.first(), places.get(index)) else { return Ok(true) };
    let from = cursor.begin();
    let goes_on = from != Mark::default();
    tracing::debug!(repository = other.url(), goes_on, "comparing with the primary");
    let mut queueing = Queueing { repository, several, index, cursor, now: None, found: 0, back: 0 };
    walkeep_store::several::compare(primary.as_ref(), other.as_ref(), &guide, from, &mut queueing).await?;
    let (found, back) = (queueing.found, queueing.back);
    let whole = cursor.complete();
    if found + back > 0 {
        tracing::info!(repository = other.url(), lacks = found, primary_lacks = back, "compared: what is missing is brought there");
    }
    Ok(whole)
}

/// Queues what a comparison finds.
struct Queueing<'a> {
    repository: &'a Arc<ClusterRepository>,
    several: &'a Several,
    index: usize,
    cursor: &'a mut Cursor,
    /// What is kept, as of a moment behind the listings of this folder.
    now: Option<Contents>,
    found: u64,
    back: u64,
}

#[async_trait]
impl Sink for Queueing<'_> {
    async fn found(&mut self, found: Compared) -> walkeep_store::Result<()> {
        match found {
            // Which of two is right is not for a copy to say: where it is brought it is told.
            Compared::OnlyFirst(listed) | Compared::Differs(listed, _) => {
                self.found += 1;
                self.several.room(self.index).await;
                self.several.queue(self.index, listed);
            }
            Compared::OnlySecond(listed) => {
                // Somebody may be removing it at this moment, from the primary first: what says so was put before.
                if self.now.is_none() {
                    // Not known now: what was acknowledged may be here alone, so the comparison did not see all of it.
                    let unknown = |error: repository::Error| {
                        let error = anyhow::Error::new(error);
                        walkeep_store::Error::new(ErrorKind::Transient, "compare", &listed.key).because(format!("{error:#}"))
                    };
                    self.now = Some(Contents::load(self.repository.clone()).await.map_err(unknown)?);
                }
                if self.now.as_ref().is_some_and(|now| now.wants_back(&listed.key)) {
                    self.back += 1;
                    // With a third one too: what was acknowledged by any may be in one only. That one is not waited for, as it may be dead.
                    self.several.room(0).await;
                    for place in (0..self.several.places().len()).filter(|place| *place != self.index) {
                        self.several.queue(place, listed.clone());
                    }
                }
            }
        }
        Ok(())
    }

    async fn so_far(&mut self, mark: &Mark, _alike: u64) -> walkeep_store::Result<()> {
        self.now = None;
        // What waits in memory would be lost with this process.
        if self.several.behind_since(self.index).is_none() && self.several.behind_since(0).is_none() {
            self.cursor.note(mark);
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests;
