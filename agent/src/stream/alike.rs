//! Several repositories of which each has to have everything (`acknowledge_rule = "all"`): the stream begins once they are known to have the same.
//!
//! Where it begins is told to the server as stored, and by what the primary has: of the others that is known after a comparison, soon after the start. So it
//! is waited for, and only when it does not come is that a failure.

use std::time::Duration;

use tokio_util::sync::CancellationToken;
use walkeep_store::ErrorKind;

use super::Streamer;
use crate::repository::{Error, Result};

/// Between two looks.
const LOOK: Duration = Duration::from_millis(100);
/// A comparison that is not over by then is told as a problem.
const PATIENCE: Duration = Duration::from_secs(60);

impl Streamer {
    /// Waits until every repository is known to have what the others have, where that is the rule, or until `stop`, but not for ever: see
    /// [`Self::refuse_unlike`].
    pub(super) async fn wait_until_alike(&self, stop: &CancellationToken) {
        if !self.counts_too_early() {
            return;
        }
        tracing::info!("the stream begins once every repository is known to have the same: they are being compared");
        let alike = async {
            while self.counts_too_early() {
                tokio::time::sleep(LOOK).await;
            }
        };
        tokio::select! {
            _ = tokio::time::timeout(PATIENCE, alike) => {}
            () = stop.cancelled() => {}
        }
    }

    /// An error where what only one repository has would be taken for stored in all.
    pub(super) fn refuse_unlike(&self) -> Result<()> {
        if !self.counts_too_early() {
            return Ok(());
        }
        let waits = walkeep_store::Error::at(ErrorKind::Transient, "begin to stream into", self.repository.repository().url());
        Err(Error::Store(waits.because("acknowledge_rule is \"all\", and they have not been found to have the same yet")))
    }

    fn counts_too_early(&self) -> bool {
        self.repository.repository().store().several().is_some_and(|several| several.counts_too_early())
    }
}
