//! What is measured of this host: which Walkeep it runs, and how full its disks are.

use std::path::Path;

use prometheus::{IntGauge, IntGaugeVec, Opts};

use super::Maker;

/// The metrics of the host.
#[derive(Debug)]
pub struct HostMetrics {
    spool_bytes: IntGauge,
    spool_limit: IntGauge,
    free: IntGaugeVec,
}

/// A file system that matters.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Disk {
    /// The spool's.
    Spool,
    /// That of the server's `pg_wal`.
    PgWal,
}

impl Disk {
    const fn as_str(self) -> &'static str {
        match self {
            Self::Spool => "spool",
            Self::PgWal => "pg_wal",
        }
    }
}

impl HostMetrics {
    pub(super) fn new(maker: &Maker<'_>) -> prometheus::Result<Self> {
        let build = Opts::new("walkeep_build_info", "1: which Walkeep this is.").const_label("version", env!("CARGO_PKG_VERSION"));
        maker.registered(IntGauge::with_opts(build)?)?.set(1);
        Ok(Self {
            spool_bytes: maker.int_gauge("walkeep_spool_bytes", "Bytes of the files in the spool, WAL above all.")?,
            spool_limit: maker.int_gauge("walkeep_spool_limit_bytes", "What may lie there (spool_limit), in bytes.")?,
            free: maker.int_gauge_vec(
                "walkeep_disk_free_bytes",
                "Bytes that are free on the file system of the spool, and of the server's pg_wal where its data directory is known.",
                "disk",
            )?,
        })
    }

    /// How full the spool is.
    pub fn spool(&self, bytes: u64, limit: u64) {
        self.spool_bytes.set(bytes.try_into().unwrap_or(i64::MAX));
        self.spool_limit.set(limit.try_into().unwrap_or(i64::MAX));
    }

    /// Looks how much is free where `folder` lies. One that cannot be asked has no sample, rather than an old one.
    pub fn look_at(&self, disk: Disk, folder: &Path) {
        match rustix::fs::statvfs(folder) {
            Ok(found) => {
                let free = found.f_bavail.saturating_mul(found.f_frsize);
                self.free.with_label_values(&[disk.as_str()]).set(free.try_into().unwrap_or(i64::MAX));
            }
            Err(_) => drop(self.free.remove_label_values(&[disk.as_str()])),
        }
    }
}
