//! A standby whose turn comes with its promotion: an agent beside each server of a cluster that fails over, as with Patroni.
//!
//! `target_session_attrs=primary` with one host says so. Where `connection` names several, none of them is the primary while this is answered, and that is
//! trouble like any other.

use std::time::Duration;

use super::Streamer;
use crate::postgres;

/// Between two looks whether the server was promoted: for so long its commits are in `pg_wal` alone.
pub(super) const LOOK: Duration = Duration::from_secs(1);

impl Streamer {
    /// Whether the stream ended because the only server there is is a standby, and shall be the primary.
    pub(super) fn waits_for_promotion(&self, error: &anyhow::Error) -> bool {
        let is_standby = |cause: &postgres::Error| cause.is_standby_for_primary();
        self.params.names_one_server() && error.chain().filter_map(|cause| cause.downcast_ref()).any(is_standby)
    }

    /// Nothing is wrong: told once, until a stream has begun.
    pub(super) fn stand_by(&self, why: String) {
        if !self.progress.stands_by() {
            tracing::info!(why, "this server is a standby: the stream begins when it is promoted");
        }
        self.progress.stand_by(why);
    }
}
