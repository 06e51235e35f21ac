//! History files first: a timeline's history, and those of its ancestors, are stored before any segment of it.

use anyhow::{Context, Result};
use bytes::Bytes;
use walkeep_core::{TimelineHistory, TimelineId, WalFileName};

use super::Streamer;
use crate::metrics::Source;
use crate::postgres::replication::{ReplicationConnection, ReplicationError};

impl Streamer {
    /// Stores the history of `timeline` and of all its ancestors that the server still has; answers the former.
    pub(super) async fn store_histories(&self, connection: &mut ReplicationConnection, timeline: TimelineId) -> Result<TimelineHistory> {
        if timeline == TimelineId::FIRST {
            return Ok(TimelineHistory::root(timeline));
        }
        let history =
            self.store_history(connection, timeline).await.with_context(|| format!("fetch the history of timeline {timeline}"))?;
        for ancestor in history.ancestors().iter().map(|ancestor| ancestor.timeline).filter(|ancestor| *ancestor != TimelineId::FIRST) {
            match self.store_history(connection, ancestor).await {
                Ok(_) => {}
                // An old ancestor's file may be gone; the descendant's file holds the same lines.
                Err(error) if is_missing_file(&error) => {
                    tracing::debug!(timeline = ancestor.get(), "the server no longer has this history")
                }
                Err(error) => return Err(error).with_context(|| format!("fetch the history of timeline {ancestor}")),
            }
        }
        Ok(history)
    }

    async fn store_history(&self, connection: &mut ReplicationConnection, timeline: TimelineId) -> Result<TimelineHistory> {
        let content = connection.timeline_history(timeline).await?;
        let history = TimelineHistory::parse(timeline, &content)?;
        let file = WalFileName::History(timeline);
        let stored = self.repository.put_wal(file, Bytes::from(content)).await.inspect_err(|error| self.metrics.refused(error));
        let stored = stored.with_context(|| format!("store {file}"))?;
        self.metrics.stored(Source::Stream, stored);
        Ok(history)
    }
}

/// PostgreSQL answers 58P01 (undefined_file) for a history file that is not there.
fn is_missing_file(error: &anyhow::Error) -> bool {
    let server = error.downcast_ref::<ReplicationError>().and_then(ReplicationError::server);
    server.is_some_and(|error| error.code == "58P01")
}
