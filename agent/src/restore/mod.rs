//! Restores: carries out a [`RestorePlan`] into a directory, ready for PostgreSQL to start.
//!
//! Everything that can be refused is refused before the first byte is written (`layout`, `target_dir`). Then files come in parallel
//! (`files`), every extent proven by its hash; the settings of the recovery are written (`settings`); and only when all of that
//! is durable pg_control gets its name, without which no server starts: a restore that was killed cannot be mistaken for a whole one. What to
//! restore is decided by the plan; WAL is fetched by PostgreSQL itself when it starts, through `restore_command`.

mod backup_manifest;
mod batches;
mod databases;
mod delta;
mod files;
mod layout;
mod settings;
mod sums;
mod surroundings;
mod target_dir;

use std::path::PathBuf;
use std::sync::Arc;
use std::time::SystemTime;

use anyhow::{Context, Result, bail};
use chrono::{DateTime, Utc};
use tokio::task::spawn_blocking;
use tokio_util::sync::CancellationToken;
use walkeep_core::TimelineId;
use walkeep_core::backup::BackupRecord;
use walkeep_core::partial::Needed;
use walkeep_core::plan::RestorePlan;
use walkeep_core::plan::estimate::{Measured, MeasuredBy};
use walkeep_core::target::TargetAction;

use crate::repository::ClusterRepository;
use crate::repository::manifest::ManifestEntries;
use crate::thaw;
use crate::transfer::{Meter, Stage, Watch};
pub use databases::{Shared, shared};
pub use delta::Survey;
use layout::{Layout, Small};
pub use surroundings::{InUse, is_same, of_server};
pub use target_dir::check_directory;
use target_dir::{Locks, Target};

/// Bytes of a block of PostgreSQL as everybody builds it.
const USUAL_BLOCK: u32 = 8192;

/// How to restore.
#[derive(Debug, Clone)]
pub struct Options {
    /// The data directory to make: absent, or empty.
    pub to: PathBuf,
    /// Other places for tablespaces, by the place they had: `--tablespace OLD=NEW`. Those not named keep their place, which must be
    /// absent or empty too.
    pub tablespaces: Vec<(PathBuf, PathBuf)>,
    /// Places that no directory to be filled may lie in or around: those of the configuration.
    pub in_use: Vec<InUse>,
    /// The data directory of the server that Walkeep is configured for, if it is on this host.
    pub data_directory: Option<PathBuf>,
    /// What the server does at the target.
    pub action: TargetAction,
    /// How the server gets WAL.
    pub restore_command: String,
    /// Leaves `archive_mode` as it was in the backup. A second server that archives under the same name as the first is refused by the
    /// repository, but its own WAL then fills its disk.
    pub keep_archiving: bool,
    /// Leaves `synchronous_standby_names` as it was in the backup: without the standbys, commits hang.
    pub keep_synchronous_standbys: bool,
    /// Ranged reads at a time.
    pub parallelism: usize,
    /// For a server that is thrown away: nothing is made durable, and of the original's settings none is kept.
    pub throw_away: bool,
    /// Whose content is needed; other files get their length only.
    pub needed: Needed,
    /// Into a directory that has something in it: what is right there is left, what differs is fetched, what does not belong there is removed.
    pub delta: bool,
    /// Whoever asks has looked, by [`crate::thaw`]: nothing that is needed is archived.
    pub readable: bool,
}

impl Options {
    /// Into `to`, opening for writing at the target, with everything neutralised that ties a server to others.
    pub fn new(to: impl Into<PathBuf>, restore_command: impl Into<String>) -> Self {
        Self {
            to: to.into(),
            tablespaces: Vec::new(),
            in_use: Vec::new(),
            data_directory: None,
            action: TargetAction::Promote,
            restore_command: restore_command.into(),
            keep_archiving: false,
            keep_synchronous_standbys: false,
            parallelism: 8,
            throw_away: false,
            needed: Needed::Everything,
            delta: false,
            readable: false,
        }
    }
}

/// It cannot or must not be done. Nothing was written.
#[derive(Debug, thiserror::Error)]
pub enum Refusal {
    /// A directory to be filled is not empty, a link, or something else.
    #[error("{}: {reason}", .path.display())]
    Directory {
        /// The directory.
        path: PathBuf,
        /// What is in the way.
        reason: String,
    },
    /// There is not enough room.
    #[error(
        "{} has {available} bytes free, and {needed} are needed (files, and room for WAL during recovery): restore elsewhere or make room",
        .path.display()
    )]
    Space {
        /// Where.
        path: PathBuf,
        /// Bytes needed.
        needed: u64,
        /// Bytes free.
        available: u64,
    },
    /// `--tablespace` names a place no tablespace had.
    #[error("no tablespace of the backup was at {}; it has: {known}", .path.display())]
    NoSuchTablespace {
        /// The place named.
        path: PathBuf,
        /// The places there are.
        known: String,
    },
    /// Something that is needed lies in an archived storage class.
    #[error(
        "{what} cannot be read at once: they have to be thawed first. `walkeep thaw` with the same target asks for that and waits; so does `walkeep restore --thaw`"
    )]
    Archived {
        /// How much, and where.
        what: String,
    },
    /// Of something that is needed the thawed copy ends too early.
    #[error(
        "thawed copies that it needs end from {until} on, and it may take longer than that: `walkeep thaw` with the same target has them kept longer; so does `walkeep restore --thaw`"
    )]
    Ending {
        /// When the first one ends.
        until: String,
    },
    /// The server could not choose a timeline to write.
    #[error(
        "timeline {timeline} is stored without its history, and a server that opens for writes has to know of every timeline there is: store {}.history with \
         `walkeep wal push` (a server of that timeline has it in pg_wal), or restore to a target with --action pause, to read what is there",
        timeline.hex()
    )]
    History {
        /// The timeline.
        timeline: TimelineId,
    },
    /// The backup cannot be believed.
    #[error("backup {backup} cannot be restored: {reason}")]
    Backup {
        /// The backup.
        backup: String,
        /// Why.
        reason: String,
    },
}

/// What a restore did.
#[derive(Debug, Clone, serde::Serialize)]
pub struct Summary {
    /// The data directory.
    pub data_directory: PathBuf,
    /// Where tablespaces are now, by OID.
    pub tablespaces: Vec<(u32, PathBuf)>,
    /// Files written.
    pub files: u64,
    /// Their bytes, but of those that were left empty.
    pub bytes: u64,
    /// What was read of the backup's packs.
    pub fetched: u64,
    /// What the whole backup takes in packs.
    pub stored: u64,
    /// How long it took.
    pub seconds: f64,
    /// How fast files were fetched, in bytes as they are stored, and written.
    pub measured: Measured,
    /// What the operator should look at before starting the server.
    pub warnings: Vec<String>,
}

/// Carries out `plan`. Answers when everything is durable and a server can be started on the directory.
///
/// After a failure, or when `cancel` fires while files are written, the directory holds files but no pg_control: it starts no server, and a new
/// restore asks for it to be emptied.
pub async fn restore(
    repository: Arc<ClusterRepository>,
    plan: &RestorePlan,
    options: Options,
    watch: &Watch<'_>,
    cancel: &CancellationToken,
) -> Result<Summary> {
    if let (TargetAction::Promote, Some(timeline)) = (options.action, plan.history_missing) {
        bail!(Refusal::History { timeline });
    }
    let mut meter = Meter::new(watch);
    let written = tokio::select! {
        result = write_files(repository, plan, &options, &mut meter, cancel) => result?,
        () = cancel.cancelled() => bail!("the restore was cancelled; what was written has no pg_control and cannot be started"),
    };
    // From here on it is only local and short, and either it is done or the directory cannot be started.
    meter.stage(Stage::Finishing, None);
    let lines = settings::lines(plan, &options);
    let Layout { files, written: bytes, stored, .. } = written.layout;
    let fetched = written.files.fetched;
    let measured = Measured { bytes: fetched, millis: millis(meter.moving()), at: chrono::Utc::now(), by: MeasuredBy::Restore };
    let (target, throw_away) = (written.target.clone(), options.throw_away);
    let warnings = spawn_blocking(move || finish(&written, &lines, throw_away)).await??;
    for warning in &warnings {
        tracing::warn!(warning, "restore");
    }
    tracing::info!(to = %target.data.display(), seconds = meter.elapsed().as_secs(), "restore: complete");
    Ok(Summary {
        data_directory: target.data.clone(),
        tablespaces: target.tablespaces.iter().map(|space| (space.oid, space.new.clone())).collect(),
        files,
        bytes,
        fetched,
        stored,
        seconds: meter.elapsed().as_secs_f64(),
        measured,
        warnings,
    })
}

/// A directory with all files, which lacks settings, links and pg_control's name.
struct Written {
    target: Arc<Target>,
    manifest: ManifestEntries,
    record: BackupRecord,
    layout: Layout,
    small: Small,
    files: files::Written,
    block_size: u32,
    _locks: Locks,
}

async fn write_files(
    repository: Arc<ClusterRepository>,
    plan: &RestorePlan,
    options: &Options,
    meter: &mut Meter<'_>,
    cancel: &CancellationToken,
) -> Result<Written> {
    let record = read_record(&repository, plan).await?;
    let manifest = repository.get_manifest(&record).await?;
    // Everything is looked at before anything is written: what the manifest says, what the directories are, what the disks hold.
    let layout = Layout::read(&repository, &manifest, &record, &options.needed).await?;
    if !options.readable {
        let frozen = thaw::of_plan(&repository, plan, &options.needed, cancel).await?;
        if !frozen.is_nothing() {
            bail!(Refusal::Archived { what: frozen.to_string() });
        }
        if let Some(until) = frozen.ends_too_early(plan.estimate.as_ref(), SystemTime::now()) {
            bail!(Refusal::Ending { until: DateTime::<Utc>::from(until).format("%Y-%m-%d %H:%M UTC").to_string() });
        }
    }
    let small = Small::read(&repository, &layout, cancel).await?;
    let control = small.check(&record)?;
    let target = Arc::new(Target::choose(options, plan, &record, &layout, &small)?);
    target.check_surroundings(&options.in_use)?;
    let mut locks = Locks::default();
    target.lock(&mut locks)?;
    let survey = survey_of(&target, &manifest, &record).await?;
    target.check(&layout, wal_headroom(plan, &record), survey.bytes)?;

    meter.stage(Stage::Copying, Some(layout.written));
    tracing::info!(backup = %record.id, to = %target.data.display(), files = layout.files, bytes = layout.written, "restore: begins");
    let (roots, mut locks) = (target.clone(), locks);
    let locks = spawn_blocking(move || -> Result<Locks> {
        survey.clear()?;
        roots.create_roots()?;
        // Those that were not there before.
        roots.lock(&mut locks)?;
        Ok(locks)
    })
    .await??;
    let files = files::Files {
        repository,
        target: target.clone(),
        needed: Arc::new(options.needed.clone()),
        parallelism: options.parallelism.max(1),
        cancel: cancel.clone(),
    };
    let files = files.write(&manifest, &layout, meter).await?;
    Ok(Written { target, manifest, record, layout, small, files, block_size: control.block_size, _locks: locks })
}

/// What [`restore`] would find in the directories, and change. Refuses what it would refuse.
pub async fn look_over(
    repository: &Arc<ClusterRepository>,
    plan: &RestorePlan,
    options: &Options,
    cancel: &CancellationToken,
) -> Result<Survey> {
    let record = read_record(repository, plan).await?;
    let manifest = repository.get_manifest(&record).await?;
    let layout = Layout::read(repository, &manifest, &record, &options.needed).await?;
    let small = Small::read(repository, &layout, cancel).await?;
    let target = Arc::new(Target::choose(options, plan, &record, &layout, &small)?);
    target.check_surroundings(&options.in_use)?;
    survey_of(&target, &manifest, &record).await
}

/// What is in the directories already; nothing is looked at where nothing may be there.
async fn survey_of(target: &Arc<Target>, manifest: &ManifestEntries, record: &BackupRecord) -> Result<Survey> {
    if !target.delta {
        return Ok(Survey::default());
    }
    let (target, manifest, record) = (target.clone(), manifest.clone(), record.clone());
    spawn_blocking(move || delta::survey(&target, &manifest, &record)).await?
}

/// The record of the plan's backup, unchanged since the plan was made.
async fn read_record(repository: &ClusterRepository, plan: &RestorePlan) -> Result<BackupRecord> {
    let refuse = |reason: &str| Refusal::Backup { backup: plan.backup.id.to_string(), reason: reason.to_owned() };
    let record = repository.backup(&plan.backup.id).await?.ok_or_else(|| refuse("it is no longer in the repository; make a new plan"))?;
    let same = record.start_lsn == plan.backup.start_lsn && record.stop_lsn == plan.backup.stop_lsn && record.bytes == plan.restore_bytes;
    if !same {
        bail!(refuse("its record is not the one the plan was made with; make a new plan"));
    }
    Ok(record)
}

/// Room for the WAL that recovery leaves in pg_wal between two restartpoints: PostgreSQL's default of 1 GiB, or less if there is less to
/// replay, and what a new timeline begins with.
fn wal_headroom(plan: &RestorePlan, record: &BackupRecord) -> u64 {
    let segment = record.segment_size.bytes();
    let replayed = (plan.wal.len() as u64).saturating_mul(segment);
    replayed.min(1 << 30) + 2 * segment
}

/// Settings, links, and the flush of everything; pg_control last. Answers warnings.
fn finish(written: &Written, lines: &settings::Lines, throw_away: bool) -> Result<Vec<String>> {
    let Written { target, manifest, small, .. } = written;
    let mut warnings = if throw_away { settings::write_only(target, lines)? } else { settings::write(target, lines)? };
    if written.block_size != USUAL_BLOCK {
        let block = written.block_size;
        warnings.push(format!(
            "the server needs PostgreSQL that was built for blocks of {block} bytes (--with-blocksize); others refuse to start"
        ));
    }
    if !throw_away && written.layout.written < written.layout.bytes {
        warnings.push(
            "other databases are there without content: drop them once the server has opened. Pages of theirs that replay does not find are passed over \
             (ignore_invalid_pages): look into the server's log for such a page of a database that is wanted, and take the setting out of \
             postgresql.auto.conf afterwards"
                .to_owned(),
        );
    }
    if written.layout.bad_blocks > 0 {
        warnings.push(format!(
            "the backup has {} blocks whose checksum was wrong on the server already; `walkeep backups` names them",
            written.layout.bad_blocks
        ));
    }
    target.map_tablespaces(small.tablespace_map.as_deref())?;
    if !throw_away {
        if !written.layout.has_backup_manifest {
            backup_manifest::write(target, manifest, &written.record, &written.files.sums)?;
        }
        files::sync(target, manifest)?;
    }
    target.publish_control().context("give pg_control its name")?;
    if rustix::process::geteuid().is_root() {
        warnings.push(format!(
            "the files belong to root, and PostgreSQL refuses to run so: chown -R postgres:postgres {}",
            target.roots().map(|path| path.display().to_string()).collect::<Vec<_>>().join(" ")
        ));
    }
    Ok(warnings)
}

fn millis(time: std::time::Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests;
