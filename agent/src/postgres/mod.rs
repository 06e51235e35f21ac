//! Talking to PostgreSQL servers: connection parameters, TLS, physical replication, base backups and ordinary SQL.
//!
//! Physical replication and `BASE_BACKUP` need a protocol that no driver offers, so they have a small client of their own
//! ([`ReplicationConnection`], [`BaseBackupStream`]); ordinary queries go through `tokio_postgres` over the same transport
//! ([`connect_sql`]). Nothing here decides what to archive, retries, or writes a file.

mod auth;
mod base_backup;
pub mod catalogs;
mod conninfo;
mod dial;
mod error;
mod params;
mod passfile;
pub mod replication;
pub mod sql;
pub mod tar;
pub mod tls;
mod wire;

pub use base_backup::{BackupError, BackupOptions, BaseBackupStream, Event as BackupEvent, Tablespace};
pub use conninfo::without_password;
pub use error::{Error, ServerError};
pub use params::{ChannelBinding, ConnectionParams, Host, ParamsError, RootCertificates, SslMode, TargetSession};
pub use replication::{Created, Event, Identity, Options, ReplicationConnection, ReplicationError, Slot, Started};
pub use sql::{ArchiverStats, Settings, SlotState, archiver_stats, connect_sql, is_in_recovery, settings, slot_state};

/// What the operator can do about a failure that came from the server, or from the way to it.
pub fn hint(error: &anyhow::Error) -> Option<&'static str> {
    error.chain().find_map(|cause| {
        let of_replication = cause.downcast_ref::<ReplicationError>().and_then(ReplicationError::hint);
        of_replication.or_else(|| cause.downcast_ref::<Error>().and_then(Error::hint))
    })
}
