//! A base backup read from the data directory: the server is in backup mode while this process reads its files, many at a time.
//!
//! [`find`] decides whether the directory can be read and is the server's; [`Local::copy`] reads it. The walk ([`walk`]) goes ahead and opens files,
//! [`read`] reads their extents on the packer's threads and checks their pages, pg_control comes last. What comes out is what a base backup
//! over the wire gives. WAL, record and repository are not here.

mod basis;
pub mod config_files;
pub mod directory;
pub mod read;
pub mod session;
pub mod walk;

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::{Context, Result, bail, ensure};
use chrono::{DateTime, Utc};
use tokio::task::spawn_blocking;
use tokio_util::sync::CancellationToken;
use walkeep_core::backup::{DamageReport, Tablespace};
use walkeep_core::control::ControlFile;
use walkeep_core::data_directory::{Kind, Rules};
use walkeep_core::label::BackupLabel;
use walkeep_core::layout::BackupId;
use walkeep_core::manifest::{Entry, EntryKind};
use walkeep_core::relative_path::RelativePath;
use walkeep_core::tablespace_map;
use walkeep_core::{Lsn, MajorVersion};

use super::pack::{EXTENT, FileFacts, Older, Packer, Plain};
use super::receive::Received;
use super::workers::Workers;
use super::{Options, announce};
use crate::pace::Pace;
use crate::postgres::ConnectionParams;
use crate::repository::ClusterRepository;
use crate::transfer::{Meter, Stage};
use basis::{Basis, Read};
use directory::DataDirectory;
use read::{Pages, Reading, Source};
use session::{Served, ServerFacts, Session, Stopped};
use walk::{Found, FoundFile};

const CONTROL: &str = "global/pg_control";
const LABEL_FILE: &str = "backup_label";
const MAP_FILE: &str = "tablespace_map";
const VERSION_FILE: &str = "PG_VERSION";
const FIRST_SUPPORTED: u32 = 130_000;

/// A data directory that can be read, and a session with its server.
pub struct Local {
    directory: DataDirectory,
    session: Session,
    served: Served,
    server: ServerFacts,
}

/// What a copy gave, beside what any backup gives.
pub struct Copied {
    pub received: Received,
    /// The server's clock after its last commit that belongs to the backup.
    pub ended_at: DateTime<Utc>,
    pub data_checksums: bool,
    pub damage: Option<DamageReport>,
    /// The backup whose extents were used.
    pub parent: Option<BackupId>,
}

/// Connects, and looks whether `path` is the data directory of the server that answers. The inner error says why not; the outer one that no server answers.
pub async fn find(params: &ConnectionParams, path: &Path) -> Result<Result<Local>> {
    let (session, served, server) = Session::open(params).await?;
    let looked = async {
        ensure!(server.version_num >= FIRST_SUPPORTED, "the server is older than PostgreSQL 13");
        let may = server.may_back_up;
        ensure!(
            may,
            "the role may not call pg_backup_start and pg_backup_stop (up to 14: pg_start_backup, pg_stop_backup): GRANT EXECUTE on them"
        );
        let directory = DataDirectory::open(path)?;
        directory.prove(&session, &server).await?;
        Ok(directory)
    };
    let looked = looked.await;
    Ok(looked.map(|directory| Local { directory, session, served, server }))
}

impl Local {
    /// What the server said of itself.
    pub fn server(&self) -> &ServerFacts {
        &self.server
    }

    /// Copies the directory. The session's end is the backup's.
    pub async fn copy(
        self,
        repository: Arc<ClusterRepository>,
        params: &ConnectionParams,
        options: &Options,
        meter: &mut Meter<'_>,
        cancel: &CancellationToken,
    ) -> Result<Copied> {
        let Self { directory, session, mut served, server } = self;
        let copied = tokio::select! {
            copied = copy(repository, params, &directory, &session, &server, options, meter, cancel) => copied,
            lost = served.lost() => Err(lost),
        };
        drop(session);
        // Else its log says that the client was lost.
        if copied.is_ok() {
            served.ended().await;
        }
        copied
    }
}

#[expect(clippy::too_many_arguments, reason = "the parts of a Local, which a lost session must not take along")]
async fn copy(
    repository: Arc<ClusterRepository>,
    params: &ConnectionParams,
    directory: &DataDirectory,
    session: &Session,
    server: &ServerFacts,
    options: &Options,
    meter: &mut Meter<'_>,
    cancel: &CancellationToken,
) -> Result<Copied> {
    tracing::info!(label = options.label, directory = %directory.path().display(), "backup: waiting for the server's checkpoint");
    let start = session.start(&options.label, options.fast_checkpoint, options.start_timeout).await?;
    let tablespaces = directory.tablespaces()?;
    // Again, now that there was a checkpoint: an idle copy does not have it.
    directory.prove_control(session).await?;
    let (_, control) = directory.control()?;
    let id = BackupId::new(server.now, start);
    tracing::info!(backup = %id, start_lsn = %start, "backup: reading the data directory");
    let pages = Pages::of(&control, start);
    let workers = Workers::start(options.jobs, options.compression_level)?;
    announce(&repository, &id, &options.begun(), cancel).await?;
    let (former, older) = match options.full {
        true => (None, Older::default()),
        false => Basis::find(&repository, &id, directory, &control, start, cancel).await?,
    };
    let size = match &former {
        Some(former) => Some(former.bytes()),
        None => session.size().await,
    };
    meter.stage(Stage::Copying, size);
    let mut job = Job {
        packer: Packer::new(repository, id.clone(), workers, older, cancel.clone())?,
        former,
        reading: Arc::new(Reading::new(pages)),
        pace: Pace::new(options.max_rate_kb),
        meter,
        tablespaces: BTreeMap::new(),
        sizes: BTreeMap::new(),
        version_seen: false,
    };
    job.walk(directory, tablespaces, &control, server).await?;
    if options.config_files {
        job.config_files(server, directory).await?;
    }
    job.control(directory).await?;
    let stopped = session.stop(server.in_recovery).await?;
    job.finish(id, start, stopped, server, params, control.checksum_version != 0).await
}

struct Job<'j, 'w> {
    packer: Packer,
    former: Option<Basis>,
    reading: Arc<Reading>,
    pace: Pace,
    meter: &'j mut Meter<'w>,
    /// Those met, by OID.
    tablespaces: BTreeMap<u32, PathBuf>,
    /// Bytes of files below `pg_tblspc`.
    sizes: BTreeMap<u32, u64>,
    version_seen: bool,
}

impl Job<'_, '_> {
    async fn walk(
        &mut self,
        directory: &DataDirectory,
        tablespaces: BTreeSet<String>,
        control: &ControlFile,
        server: &ServerFacts,
    ) -> Result<()> {
        let rules = Rules::new(MajorVersion::from_version_num(server.version_num), control.catalog_version, server.stats_folder.as_deref());
        let mut found = walk::start(directory, rules, tablespaces)?;
        while let Some(found) = found.recv().await {
            match found? {
                Found::Folder { path, mode } => self.packer.other(Entry { path, mode, mtime: None, kind: EntryKind::Dir }).await?,
                Found::File(file) => self.file(file).await?,
                Found::Tablespace { oid, location } => drop(self.tablespaces.insert(oid, location)),
                Found::Skipped { path, kind } => {
                    let what = if kind == Kind::Link { "a symbolic link" } else { "a special file" };
                    tracing::warn!(path, "backup: {what} is no part of a backup and was left out");
                }
            }
        }
        Ok(())
    }

    /// One file. What of it must be read is decided here.
    async fn file(&mut self, found: FoundFile) -> Result<()> {
        let FoundFile { facts, file, size } = found;
        self.version_seen |= facts.path.as_str() == VERSION_FILE;
        if let Some((oid, _)) = facts.path.tablespace() {
            *self.sizes.entry(oid).or_default() += size;
        }
        let source = Arc::new(Source::new(file, facts.path.clone(), size, self.reading.clone()));
        let known = match &mut self.former {
            Some(former) => former.file(&facts.path, size).await,
            None => Read::All(Vec::new()),
        };
        match known {
            Read::Of(recipe) => {
                for ranges in recipe.fresh.clone() {
                    let length: u64 = ranges.iter().map(|range| range.end - range.start).sum();
                    self.pace.pass(length).await;
                    let source = source.clone();
                    self.packer.extent(None, move || source.extents(&ranges)).await?;
                }
                self.meter.bytes(size);
                self.meter.file();
                self.packer.file_of(facts, recipe).await
            }
            Read::All(expected) => {
                for (offset, expected) in (0..size).step_by(EXTENT).zip(expected.into_iter().chain(std::iter::repeat(None))) {
                    let length = (size - offset).min(EXTENT as u64);
                    self.pace.pass(length).await;
                    let source = source.clone();
                    self.packer.extent(expected, move || source.extent(offset, length as usize)).await?;
                    self.meter.bytes(length);
                }
                self.meter.file();
                self.packer.file(facts).await
            }
        }
    }

    /// A file whose bytes are there.
    async fn ready(&mut self, facts: FileFacts, bytes: Vec<u8>) -> Result<()> {
        for piece in bytes.chunks(EXTENT) {
            let plain = Plain { bytes: piece.to_vec(), bad_blocks: Vec::new() };
            self.packer.extent(None, move || Ok(plain)).await?;
        }
        self.packer.file(facts).await
    }

    async fn config_files(&mut self, server: &ServerFacts, directory: &DataDirectory) -> Result<()> {
        if server.config_files.is_empty() {
            let advice = "GRANT pg_read_all_settings lets them be found, config_files = false says that they are not wanted";
            tracing::warn!(
                "backup: the server does not tell this role where its configuration files lie; any outside the data directory were left out. {advice}"
            );
        }
        let (named, data) = (server.config_files.clone(), directory.path().to_owned());
        let (files, unread) = spawn_blocking(move || config_files::collect(&named, &data)).await?;
        unread.iter().for_each(|unread| tracing::warn!("backup: a configuration file was left out: {unread}"));
        for file in files {
            self.ready(file.facts, file.bytes).await?;
        }
        Ok(())
    }

    /// After all other files: on a standby it says up to where replay must come before the copy is consistent.
    async fn control(&mut self, directory: &DataDirectory) -> Result<()> {
        let (bytes, _) = directory.control()?;
        self.ready(FileFacts { path: RelativePath::parse(CONTROL)?, mode: 0o600, mtime: None }, bytes).await
    }

    async fn finish(
        mut self,
        id: BackupId,
        start: Lsn,
        stopped: Stopped,
        server: &ServerFacts,
        params: &ConnectionParams,
        data_checksums: bool,
    ) -> Result<Copied> {
        ensure!(self.version_seen, "the data directory has no {VERSION_FILE}: nothing was recorded");
        let Stopped { stop_lsn, standby_timeline, label: label_bytes, tablespace_map, now } = stopped;
        let label = BackupLabel::parse(&label_bytes).context("read the backup_label the server made")?;
        ensure!(label.start == start, "the backup_label the server made begins at {}, the backup at {start}", label.start);
        if label.from_standby != server.in_recovery {
            bail!("the standby was promoted during the backup: it was not recorded; take it again");
        }
        let facts = |name: &str| Ok::<_, anyhow::Error>(FileFacts { path: RelativePath::parse(name)?, mode: 0o600, mtime: None });
        self.ready(facts(LABEL_FILE)?, label_bytes).await?;
        let mapped = tablespace_map::parse(&tablespace_map)?;
        if let Some((oid, location)) = self.tablespaces.iter().find(|(oid, _)| !mapped.iter().any(|(mapped, _)| mapped == *oid)) {
            let place = location.display();
            bail!("tablespace {oid} in {place} was made in the very moment in which the backup began: it was not recorded; take it again");
        }
        for (oid, _) in &mapped {
            let path = RelativePath::parse(&format!("pg_tblspc/{oid}"))?;
            self.packer.other(Entry { path, mode: 0o700, mtime: None, kind: EntryKind::Tablespace }).await?;
        }
        if !tablespace_map.is_empty() {
            self.ready(facts(MAP_FILE)?, tablespace_map).await?;
        }
        let packed = self.packer.finish().await?;
        let sizes = self.sizes;
        let space = |(oid, path): (u32, String)| Tablespace { oid, path, bytes: sizes.get(&oid).copied().unwrap_or_default() };
        let received = Received {
            start_lsn: label.start,
            timeline: label.timeline,
            stop_lsn,
            stop_timeline: standby_timeline.unwrap_or(label.timeline),
            tablespaces: mapped.into_iter().map(space).collect(),
            label,
            packed,
            id,
        };
        let damage = self.reading.damage().report(params).await;
        let parent = self.former.map(|former| {
            former.tell_lost();
            former.into_id()
        });
        Ok(Copied { received, ended_at: now, data_checksums, damage, parent })
    }
}
