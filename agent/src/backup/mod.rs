//! Base backups: [`take`] one, from the first byte to its record.
//!
//! Where the server's data directory can be read here, it is ([`local`]); else the server sends its files (`BASE_BACKUP`, [`receive`]), which are
//! compared with the server's own manifest ([`postgres_manifest`]). Either way they become packs ([`pack`]), the WAL that makes them consistent is waited for ([`wal`]), and only then the record is put that makes the
//! backup exist. Whatever ends a backup before, the repository shows none. Retention, schedules and the command line are not here.

pub mod changes;
mod damage;
mod former;
mod local;
pub mod lock;
pub mod pack;
pub mod postgres_manifest;
mod receive;
pub mod sweep;
pub mod waiting;
pub mod wal;
pub mod workers;

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use chrono::{DateTime, Utc};
use tokio_util::sync::CancellationToken;
use walkeep_core::backup::{BackupBegun, BackupMethod, BackupRecord, DamageReport, Keep, check_label};
use walkeep_core::layout::{BackupId, PackId};
use walkeep_core::{MajorVersion, PgTimestamp, SegmentSize, SystemIdentifier};

use crate::config::ClusterConfig;
use crate::names;
use crate::postgres::{self, BackupOptions, BaseBackupStream, ConnectionParams, Options as ConnectionOptions, ReplicationConnection};
use crate::repository::{self, ClusterRepository};
use crate::retry::{Backoff, retry};
use crate::transfer::{Meter, Stage, Watch};
use damage::Damage;
use local::{Copied, Local};
use pack::{Older, Packed};
use receive::{Received, receive};
use wal::{NeededWal, prove_checkpoint, wait_for_wal};
use workers::Workers;

/// How long the repository may fail before the backup does.
const PATIENCE: Duration = Duration::from_secs(600);

/// Pages of rows become no smaller with level 3 than with 1, which takes half the time (measured: README, Benchmarks).
const COMPRESSION_LEVEL: i32 = 1;

/// Why a backup is not recorded that was whole.
const STOOD_STILL: &str = "nothing of the backup was stored for days (was this machine suspended?), and others may have removed what it \
                           stored before: it was not recorded; take it again";

/// From this version on a base backup with a map of tablespaces has those within the data directory too.
const IN_PLACE_SENT: u32 = 160_000;

/// Where a backup's bytes are to come from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Method {
    /// The data directory if it can be read and is the server's, else the wire.
    #[default]
    Auto,
    /// The data directory, or there is no backup.
    Local,
    /// `BASE_BACKUP` over a replication connection.
    Protocol,
}

/// How to take a backup.
#[derive(Debug, Clone)]
pub struct Options {
    /// Where the bytes are to come from.
    pub method: Method,
    /// The server's data directory, if it is on this host.
    pub data_directory: Option<PathBuf>,
    /// Takes configuration files along that lie outside the data directory.
    pub config_files: bool,
    /// Is told, once, where the bytes come from and why.
    pub tell: fn(&str),
    /// The operator's words.
    pub label: String,
    /// Whether the server hurries the checkpoint it begins with.
    pub fast_checkpoint: bool,
    /// The most the server may send, in kB a second (32 to 1048576).
    pub max_rate_kb: Option<u32>,
    /// Stores every file anew, whatever older backups have.
    pub full: bool,
    /// Keeps the backup beyond the retention policy.
    pub keep: Option<Keep>,
    /// Threads that read, check, hash and compress.
    pub jobs: usize,
    /// zstd's level.
    pub compression_level: i32,
    /// The moment for which a schedule asks for it.
    pub due: Option<DateTime<Utc>>,
    /// The identity in the spool where its lock is held: by it whoever looks there knows that it is over.
    pub writer: Option<String>,
    /// How long the starting checkpoint may take.
    pub start_timeout: Duration,
    /// How long the server may be silent while it sends.
    pub idle_timeout: Duration,
    /// How long WAL may fail to come at the end.
    pub wal_timeout: Duration,
}

impl Options {
    /// The usual: at once and at full speed.
    pub fn new(label: impl Into<String>) -> Self {
        Self {
            method: Method::Auto,
            data_directory: None,
            config_files: true,
            tell: |_| {},
            label: label.into(),
            fast_checkpoint: true,
            max_rate_kb: None,
            full: false,
            keep: None,
            jobs: std::thread::available_parallelism().map_or(2, usize::from),
            compression_level: COMPRESSION_LEVEL,
            due: None,
            writer: None,
            start_timeout: Duration::from_secs(3600),
            idle_timeout: Duration::from_secs(600),
            wal_timeout: Duration::from_secs(600),
        }
    }

    /// The usual for this cluster: out of its data directory, if that is here.
    pub fn for_cluster(cluster: &ClusterConfig, label: impl Into<String>) -> Self {
        let writer = crate::writer::known_identity(&cluster.spool).ok().flatten();
        Self { data_directory: cluster.data_directory.clone(), config_files: cluster.config_files, writer, ..Self::new(label) }
    }

    /// What is said when it begins.
    fn begun(&self) -> BackupBegun {
        let (host, process) = (crate::writer::host(), std::process::id());
        BackupBegun { format: 1, label: self.label.clone(), host, process, at: Utc::now(), writer: self.writer.clone() }
    }

    fn check(&self) -> Result<()> {
        check_label(&self.label)?;
        match self.max_rate_kb {
            Some(rate) if !(32..=1_048_576).contains(&rate) => bail!("a rate of {rate} kB/s is not possible: 32 kB/s to 1 GB/s"),
            _ => Ok(()),
        }
    }
}

/// Takes a base backup of the server that `params` lead to. When it answers, the backup is in the repository with all WAL it needs.
///
/// Firing `cancel`, dropping the future or killing the process leaves a repository that shows no new backup, and a server that has ended its
/// backup mode.
pub async fn take(
    repository: Arc<ClusterRepository>,
    params: &ConnectionParams,
    options: Options,
    watch: &Watch<'_>,
    cancel: &CancellationToken,
) -> Result<BackupRecord> {
    options.check()?;
    let mut meter = Meter::new(watch);
    let options_tell = options.tell;
    let (record, put) = tokio::select! {
        result = store(repository.clone(), params, options, &mut meter, cancel) => result?,
        () = cancel.cancelled() => bail!("the backup was cancelled; it was not recorded"),
    };
    let unbroken = || repository.is_unbroken(&record.id, record.manifest_pieces, sweep::STANDSTILL);
    let ask = || retry("looking at what was stored", Backoff::within(PATIENCE), cancel, repository::Error::is_transient, unbroken);
    if !ask().await.context("look at what was stored of the backup")? {
        bail!(STOOD_STILL);
    }
    let gone = || repository.gone_meanwhile(&record, &put);
    let gone = retry("looking for the packs of the backup", Backoff::within(PATIENCE), cancel, repository::Error::is_transient, gone).await;
    if let Some(gone) = gone.context("look for the packs of the backup")? {
        bail!(
            "{gone}: it was removed while the backup was taken, which was not recorded. Find out who removes objects of Walkeep's (a lifecycle rule of the bucket, \
             a script), and take another one"
        );
    }
    // One small object: not worth a cancellation of which nobody could say whether it came in time.
    retry("recording the backup", Backoff::within(PATIENCE), cancel, repository::Error::is_transient, || repository.commit_backup(&record))
        .await
        .context("record the backup")?;
    if !ask().await.context("the backup was recorded, but what is stored of it could not be looked at behind that: take another one")? {
        repository.remove_record(&record.id).await.with_context(|| {
            format!(
                "{} stood still for days, and its record could not be removed: do not restore it, remove its backup.json, and take another",
                record.id
            )
        })?;
        bail!(STOOD_STILL);
    }
    tracing::info!(
        backup = %record.id, files = record.files, bytes = record.bytes, stored = record.bytes_stored,
        seconds = meter.elapsed().as_secs(), "backup: complete"
    );
    prolong_locks(&repository, &record, &put, options_tell).await;
    tidy_up(&repository, &record.id, cancel).await;
    Ok(record)
}

/// Packs of older backups that this one uses are locked for as long as its own. What hinders that does not make it less a backup: it is told, and told again by
/// each verification that reads.
async fn prolong_locks(repository: &ClusterRepository, record: &BackupRecord, put: &BTreeSet<PackId>, tell: fn(&str)) {
    let failed = match repository.prolong_locks(record, put).await {
        Ok(prolonged) => {
            if prolonged.packs > 0 {
                tracing::info!(packs = prolonged.packs, "backup: older packs that it uses are locked for as long as its own");
            }
            prolonged.why.map(|why| (prolonged.failed.to_string(), why))
        }
        Err(error) => Some(("all".to_owned(), error)),
    };
    if let Some((packs, error)) = failed {
        tracing::warn!(packs, %error, "backup: the locks of packs that it uses were not prolonged: they may be removed before it (s3:PutObjectRetention is needed)");
        tell(&format!("warning: the locks of packs that it uses were not prolonged ({packs}): {error}"));
    }
}

/// The backup is taken: nothing that hinders this makes it less.
async fn tidy_up(repository: &Arc<ClusterRepository>, newest: &BackupId, cancel: &CancellationToken) {
    match sweep::sweep(repository, newest, cancel).await {
        Ok(swept) if swept.backups.is_empty() => {}
        Ok(swept) => {
            let backups = swept.backups.iter().map(BackupId::to_string).collect::<Vec<_>>().join(", ");
            tracing::info!(backups, packs = swept.packs, bytes = swept.bytes, "backup: removed what unfinished backups had left");
        }
        Err(error) => {
            tracing::warn!(error = format!("{error:#}"), "backup: what unfinished backups left was not removed, or not all of it")
        }
    }
}

/// Says in the repository that a backup begins, before anything is stored of it or decided of what older ones have.
async fn announce(repository: &ClusterRepository, id: &BackupId, begun: &BackupBegun, cancel: &CancellationToken) -> Result<()> {
    let begun = BackupBegun { at: Utc::now(), ..begun.clone() };
    let put = || repository.begin_backup(id, &begun);
    let begun = retry("noting that a backup begins", Backoff::within(PATIENCE), cancel, repository::Error::is_transient, put).await;
    begun.context("note in the repository that a backup begins")
}

/// Stores everything of a backup but its record. Answers that, and the packs that were put.
async fn store(
    repository: Arc<ClusterRepository>,
    params: &ConnectionParams,
    options: Options,
    meter: &mut Meter<'_>,
    cancel: &CancellationToken,
) -> Result<(BackupRecord, BTreeSet<PackId>)> {
    repository.repository().prove_reached().await?;
    // Whatever is dropped behind the backup's start has a name.
    let mut names = names::Keeper::new(repository.clone());
    let taken = match find_local(&repository, params, &options).await? {
        Some(local) => {
            let copying = from_directory(repository.clone(), params, local, &options, meter, cancel);
            tokio::join!(copying, names::beside_backup(&mut names, params)).0?
        }
        None => {
            let sending = over_the_wire(repository.clone(), params, &options, meter, cancel);
            tokio::join!(sending, names::beside_backup(&mut names, params)).0?
        }
    };
    let Taken { received, started_at, ended_at, server_version_num, data_checksums, damage, parent, method } = taken;

    meter.stage(Stage::WaitingForWal, None);
    let need = NeededWal { start: received.start_lsn, stop: received.stop_lsn, timeline: received.stop_timeline };
    let Received { id, label, packed: Packed { last, trailer, totals, put }, .. } = received;
    let waiting = wait_for_wal(&repository, need, options.wal_timeout);
    let (waited, ()) = tokio::join!(waiting, names::beside_backup(&mut names, params));
    match label.from_standby {
        true => waited
            .context("wait for the primary, as a standby cannot end a WAL segment: SELECT pg_switch_wal() there, or set archive_timeout")?,
        false => waited?,
    }
    let pg_wal = options.data_directory.as_ref().map(|data| data.join("pg_wal"));
    let prove = || prove_checkpoint(&repository, need, label.checkpoint, pg_wal.as_deref());
    retry("looking for the backup's checkpoint in the stored WAL", Backoff::within(PATIENCE), cancel, wal::is_transient, prove).await?;

    meter.stage(Stage::Finishing, None);
    let stored = retry("storing the manifest", Backoff::within(PATIENCE), cancel, repository::Error::is_transient, || {
        repository.put_manifest(&id, &last)
    })
    .await
    .context("store the manifest")?;
    let manifest_bytes = if let repository::wal::Stored::New { bytes } = stored { bytes } else { 0 };
    let record = BackupRecord {
        format: BackupRecord::FORMAT,
        id,
        cluster: repository.cluster().to_string(),
        system_identifier: repository.identity().system_identifier,
        label: options.label,
        timeline: received.timeline,
        stop_timeline: (received.stop_timeline != received.timeline).then_some(received.stop_timeline),
        start_lsn: received.start_lsn,
        stop_lsn: received.stop_lsn,
        checkpoint_lsn: Some(label.checkpoint),
        started_at,
        ended_at,
        server_version_num,
        major_version: MajorVersion::from_version_num(server_version_num),
        segment_size: repository.identity().segment_size,
        method,
        from_standby: label.from_standby,
        files: totals.files,
        bytes: totals.bytes,
        bytes_stored: totals.stored + manifest_bytes,
        bytes_referenced: totals.referenced,
        tablespaces: received.tablespaces,
        manifest_sha256: trailer.sha256,
        manifest_pieces: last.number,
        parent,
        keep: options.keep,
        due: options.due,
        data_checksums: Some(data_checksums),
        damage,
    };
    Ok((record, put))
}

/// A backup whose files are stored, whichever way they came.
struct Taken {
    received: Received,
    started_at: DateTime<Utc>,
    /// After the stop position was taken: no commit before it has a later time.
    ended_at: DateTime<Utc>,
    server_version_num: u32,
    data_checksums: bool,
    damage: Option<DamageReport>,
    parent: Option<BackupId>,
    method: BackupMethod,
}

/// The data directory, where it is to be read and can be.
async fn find_local(repository: &ClusterRepository, params: &ConnectionParams, options: &Options) -> Result<Option<Local>> {
    let say = |text: String| {
        tracing::info!("backup: {text}");
        (options.tell)(&text);
    };
    let directory = match (options.method, &options.data_directory) {
        (Method::Protocol, _) => None,
        (Method::Local, None) => bail!("a local backup needs data_directory in the configuration"),
        (_, directory) => directory.as_ref(),
    };
    let Some(directory) = directory else {
        say("reading over the wire (BASE_BACKUP)".into());
        return Ok(None);
    };
    match local::find(params, directory).await? {
        Ok(local) => {
            check_identity(repository, local.server().system, local.server().segment_size)?;
            say(format!("reading {}", directory.display()));
            Ok(Some(local))
        }
        Err(why) if options.method == Method::Local => Err(why.context("the data directory cannot be read for a local backup")),
        Err(why) => {
            say(format!("reading over the wire (BASE_BACKUP), not from {}: {why:#}", directory.display()));
            Ok(None)
        }
    }
}

async fn from_directory(
    repository: Arc<ClusterRepository>,
    params: &ConnectionParams,
    local: Local,
    options: &Options,
    meter: &mut Meter<'_>,
    cancel: &CancellationToken,
) -> Result<Taken> {
    let (started_at, server_version_num) = (local.server().now, local.server().version_num);
    let Copied { received, ended_at, data_checksums, damage, parent } = local.copy(repository, params, options, meter, cancel).await?;
    Ok(Taken { received, started_at, ended_at, server_version_num, data_checksums, damage, parent, method: BackupMethod::DataDirectory })
}

async fn over_the_wire(
    repository: Arc<ClusterRepository>,
    params: &ConnectionParams,
    options: &Options,
    meter: &mut Meter<'_>,
    cancel: &CancellationToken,
) -> Result<Taken> {
    let (server, mut connection) = connect(&repository, params).await?;
    let server_version_num = connection.server_version_num().await?;
    if let Some(names) = &server.in_place
        && server_version_num < IN_PLACE_SENT
    {
        bail!(
            "PostgreSQL {} leaves tablespaces that lie within the data directory (allow_in_place_tablespaces) out of a base backup, and there \
             are some: {names}. Move their tables elsewhere, or back up with data_directory set; nothing was stored",
            server_version_num / 10_000
        );
    }
    let command = BackupOptions {
        label: options.label.clone(),
        fast_checkpoint: options.fast_checkpoint,
        max_rate_kb: options.max_rate_kb,
        verify_checksums: true,
        start_timeout: options.start_timeout,
        idle_timeout: options.idle_timeout,
    };
    tracing::info!(label = options.label, "backup: waiting for the server's checkpoint");
    let stream = BaseBackupStream::start(connection, command).await.context("start the base backup")?;
    let damage = Damage::default();
    let making = (Workers::start(options.jobs, options.compression_level)?, Older::default());
    let received = receive(repository, stream, (server.now, &options.begun()), making, &damage, meter, cancel).await?;
    // Hours of work are not thrown away for one connection that fails.
    let ask = || server_state(params);
    let ended_at = retry("asking the server for its time", Backoff::within(PATIENCE), cancel, |_| true, ask).await;
    let ended_at = ended_at.context("ask the server for its time")?.now;
    Ok(Taken {
        received,
        started_at: server.now,
        ended_at,
        server_version_num,
        data_checksums: server.data_checksums,
        damage: damage.report(params).await,
        parent: None,
        method: BackupMethod::BaseBackup,
    })
}

/// What is asked of the server by SQL.
struct ServerState {
    now: DateTime<Utc>,
    data_checksums: bool,
    /// Tablespaces within the data directory.
    in_place: Option<String>,
}

/// Connects twice, for SQL and for the backup, and makes sure that it is the cluster of the repository.
async fn connect(repository: &ClusterRepository, params: &ConnectionParams) -> Result<(ServerState, ReplicationConnection)> {
    let server = server_state(params).await.context("connect to the server")?;
    let mut connection = ReplicationConnection::connect(params, &ConnectionOptions::default()).await.context("connect for the backup")?;
    check_identity(repository, connection.identify_system().await?.system, connection.segment_size().await?)?;
    Ok((server, connection))
}

/// Refuses a server that is not the cluster of the repository.
fn check_identity(repository: &ClusterRepository, system: SystemIdentifier, size: SegmentSize) -> Result<()> {
    let expected = repository.identity();
    if system != expected.system_identifier {
        bail!(
            "the server has system identifier {system}, the repository keeps {} under the name {}: another cluster answers there, or it was \
             initialised anew or upgraded. Nothing was stored; check `connection`",
            expected.system_identifier,
            repository.cluster()
        );
    }
    if size != expected.segment_size {
        bail!("the server's WAL segments have {} bytes, those in the repository {}", size.bytes(), expected.segment_size.bytes());
    }
    Ok(())
}

async fn server_state(params: &ConnectionParams) -> Result<ServerState> {
    let client = postgres::connect_sql(params).await?;
    // On a standby the commits' times are the primary's: its clock may be ahead.
    let query = "SELECT (extract(epoch FROM greatest(clock_timestamp(), pg_catalog.pg_last_xact_replay_timestamp()) \
                 - timestamptz '2000-01-01 00:00+00') * 1000000)::bigint, pg_catalog.current_setting('data_checksums') = 'on', \
                 (SELECT string_agg(spcname, ', ') FROM pg_catalog.pg_tablespace WHERE pg_catalog.pg_tablespace_location(oid) LIKE 'pg_tblspc/%')";
    let row = client.query_one(query, &[]).await?;
    let now = PgTimestamp::from_micros(row.try_get(0)?).to_utc().context("the server's clock is beyond all years")?;
    Ok(ServerState { now, data_checksums: row.try_get(1)?, in_place: row.try_get(2)? })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn labels_cannot_forge_lines() {
        assert!(Options::new("nightly, it's \"fine\" ü").check().is_ok());
        for label in ["a\nSTART TIMELINE: 9", "a\rb", "a\0b", &"x".repeat(1001)] {
            assert!(Options::new(label).check().is_err(), "{label:?}");
        }
        assert!(Options { max_rate_kb: Some(31), ..Options::new("") }.check().is_err());
    }
}
