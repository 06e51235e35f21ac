//! A standby that is behind what is stored: the agent streamed from another server before, and this one has yet to catch up.
//!
//! It is waited for on the open connection. That is neither a failure nor a gap: what it lacks is stored. A primary that is behind is another
//! matter, told by the server's refusal: WAL that it has written once is gone, or it is a copy.

use std::time::Duration;

use anyhow::Result;
use tokio_util::sync::CancellationToken;
use walkeep_core::Lsn;

use super::Streamer;
use crate::postgres::replication::{Identity, ReplicationConnection};
use crate::progress::Phase;

/// Between two looks at how far the standby is.
const LOOK: Duration = Duration::from_secs(1);

impl Streamer {
    /// Whether the server is a standby that has not reached `stored`.
    pub(super) async fn is_behind(&self, connection: &mut ReplicationConnection, identity: &Identity, stored: Lsn) -> Result<bool> {
        Ok(identity.flush < stored && connection.is_standby().await?)
    }

    /// Waits until the standby has reached `stored`, or follows another timeline; false if the agent stops before.
    pub(super) async fn wait_for_standby(
        &self,
        connection: &mut ReplicationConnection,
        identity: &Identity,
        stored: Lsn,
        stop: &CancellationToken,
    ) -> Result<bool> {
        tracing::info!(server_at = %identity.flush, stored = %stored, "this standby is behind what is stored: waiting for it");
        let mut now = *identity;
        while now.flush < stored && now.timeline == identity.timeline {
            // All that it has is stored: nothing lags here. The phase says that nothing comes, and the problem why.
            self.progress.begin(now.timeline, now.flush, now.flush);
            self.progress.heard(now.flush);
            self.progress.set_phase(Phase::Waiting);
            self.progress.set_problem(Some(format!("the standby is at {}, {stored} is stored: waiting for it", now.flush)));
            tokio::select! {
                () = tokio::time::sleep(LOOK) => {}
                () = stop.cancelled() => return Ok(false),
            }
            now = connection.identify_system().await?;
        }
        Ok(true)
    }
}
