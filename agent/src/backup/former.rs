//! The backup before: what of its extents a new one can use.
//!
//! Files are looked up by path, as the walk through the data directory comes to them. A backup of the data directory has its files in that walk's order,
//! so its manifest is read along, a few entries ahead; one that came over the wire has them in the server's order, and is kept in memory while it is no
//! larger than [`TABLE`]. What was stored by a backup that was interrupted is known by its content only ([`interrupted`]). A manifest that cannot be read
//! makes a backup larger, never wrong: then nothing of it is used; and of what it refers to, only what a
//! listing still shows is.

use std::collections::HashMap;
use std::sync::Arc;

use anyhow::Result;
use tokio::sync::mpsc;
use tokio::task::spawn_blocking;
use walkeep_core::backup::{BackupMethod, BackupRecord};
use walkeep_core::layout::BackupId;
use walkeep_core::manifest::{Content, Entry, EntryKind};
use walkeep_core::relative_path::RelativePath;
use walkeep_core::{Lsn, TimelineHistory};

use super::pack::Older;
use super::sweep::TAKEN_UP;
use crate::repository::manifest::ManifestEntries;
use crate::repository::packs::{Lost, Packs};
use crate::repository::unfinished::BackupTimes;
use crate::repository::{self, ClusterRepository};

/// Extents of a manifest that are kept in memory: a quarter of a terabyte of files.
const TABLE: usize = 1 << 18;
/// Entries read ahead.
const AHEAD: usize = 256;
/// Backups that were interrupted of which extents are used, the newest.
const INTERRUPTED: usize = 2;

/// A file as the former backup has it.
#[derive(Debug, Clone)]
pub struct FormerFile {
    /// Its bytes.
    pub content: Content,
    /// Blocks whose checksum was wrong.
    pub bad_blocks: Vec<u32>,
}

/// A former backup.
pub struct Former {
    /// Its record.
    pub record: BackupRecord,
    files: Files,
    repository: Arc<ClusterRepository>,
    packs: Packs,
    lost: Lost,
}

enum Files {
    /// In the order of their paths.
    Along {
        entries: mpsc::Receiver<repository::Result<Entry>>,
        next: Option<Entry>,
    },
    Table(HashMap<String, FormerFile>),
}

/// The newest backup that a new one, `ours`, on the timelines `path` can build on, and what was stored of interrupted ones.
pub async fn find(
    repository: &Arc<ClusterRepository>,
    ours: &BackupId,
    path: &TimelineHistory,
    start: Lsn,
) -> Result<(Option<Former>, Older)> {
    let known = repository.backups().await?;
    let on_path = |record: &&BackupRecord| path.contains(record.stops_on(), record.stop_lsn) && record.stop_lsn <= start;
    let newest = known.records.iter().filter(on_path).max_by_key(|record| record.start_lsn).cloned();
    // A pack may have been lost since a manifest named it: what is built on must be there.
    let packs = repository.packs().await?;
    let older = interrupted(repository, ours, &packs).await?;
    let Some(record) = newest else { return Ok((None, older)) };
    match Former::open(repository.clone(), record, packs).await {
        Ok(former) => Ok((Some(former), older)),
        Err(error) if error.is_transient() => Err(error.into()),
        Err(error) => {
            tracing::warn!(%error, "backup: the former backup's manifest cannot be read; every file is stored anew");
            Ok((None, older))
        }
    }
}

impl Former {
    async fn open(repository: Arc<ClusterRepository>, record: BackupRecord, packs: Packs) -> repository::Result<Self> {
        let manifest = repository.get_manifest(&record).await?;
        let files = match record.method {
            BackupMethod::DataDirectory => Files::Along { entries: read_along(manifest), next: None },
            BackupMethod::BaseBackup => Files::Table(read_table(manifest).await?),
        };
        Ok(Self { record, files, repository, packs, lost: Lost::default() })
    }

    /// The file at `path`. Paths are asked for in their order.
    pub async fn file(&mut self, path: &RelativePath) -> Option<FormerFile> {
        match &mut self.files {
            Files::Table(files) => files.get(path.as_str()).cloned(),
            Files::Along { entries, next } => loop {
                let entry = match next.take() {
                    Some(entry) => entry,
                    None => match entries.recv().await? {
                        Ok(entry) => entry,
                        Err(error) => {
                            tracing::warn!(%error, "backup: the former backup's manifest ends early; the files behind are stored anew");
                            entries.close();
                            return None;
                        }
                    },
                };
                match entry.path.cmp(path) {
                    std::cmp::Ordering::Less => {}
                    std::cmp::Ordering::Equal => return former_file(entry.kind),
                    std::cmp::Ordering::Greater => {
                        *next = Some(entry);
                        return None;
                    }
                }
            },
        }
    }

    /// Which of a file's extents are still stored. What is not, is told once all files were asked for ([`Former::tell_lost`]).
    pub fn stored(&mut self, path: &RelativePath, content: &Content) -> Vec<bool> {
        match self.lost.note(&self.repository, &self.packs, path, content) {
            true => vec![true; content.extents().len()],
            false => content.extents().iter().map(|extent| self.packs.hold(extent)).collect(),
        }
    }

    /// Says what was not stored any more.
    pub fn tell_lost(&self) {
        if !self.lost.is_nothing() {
            tracing::warn!(
                since = %self.record.id, lost = %self.lost,
                "backup: packs of older backups are lost; this backup has stored anew what lay there, and does not need them. The older backups that do \
                 cannot be restored whole"
            );
        }
    }

    /// Its extents, by what they hold, for files of which nothing else is known.
    pub fn extents(&self) -> Older {
        match &self.files {
            Files::Table(files) => {
                let extents = files.values().flat_map(|file| file.content.extents()).filter(|extent| self.packs.hold(extent));
                Older::new(extents.map(|extent| (extent.hash, *extent)).collect())
            }
            Files::Along { .. } => Older::default(),
        }
    }
}

fn former_file(kind: EntryKind) -> Option<FormerFile> {
    match kind {
        EntryKind::File { content, bad_blocks } => Some(FormerFile { content, bad_blocks }),
        EntryKind::Dir | EntryKind::Tablespace => None,
    }
}

/// The manifest's files, read on a thread of their own a little ahead.
fn read_along(manifest: ManifestEntries) -> mpsc::Receiver<repository::Result<Entry>> {
    let (sender, receiver) = mpsc::channel(AHEAD);
    spawn_blocking(move || {
        let entries = match manifest.iter() {
            Ok(entries) => entries,
            Err(error) => return drop(sender.blocking_send(Err(error))),
        };
        for entry in entries {
            let wanted = !matches!(&entry, Ok(entry) if !matches!(entry.kind, EntryKind::File { .. }));
            if wanted && sender.blocking_send(entry).is_err() {
                return;
            }
        }
    });
    receiver
}

async fn read_table(manifest: ManifestEntries) -> repository::Result<HashMap<String, FormerFile>> {
    let read = spawn_blocking(move || -> repository::Result<HashMap<String, FormerFile>> {
        let (mut files, mut extents) = (HashMap::new(), 0);
        for entry in manifest.iter()? {
            let entry = entry?;
            let Some(file) = former_file(entry.kind) else { continue };
            extents += file.content.extents().len();
            if extents > TABLE {
                break;
            }
            files.insert(entry.path.as_str().to_owned(), file);
        }
        Ok(files)
    });
    read.await.unwrap_or_else(|_| Ok(HashMap::new()))
}

/// What backups that never got a record have stored. Their packs are there: a manifest's piece is stored behind the packs it names.
async fn interrupted(repository: &Arc<ClusterRepository>, ours: &BackupId, packs: &Packs) -> Result<Older> {
    let times = repository.backup_times().await?;
    // The store's present: this backup has just said that it begins.
    let Some(now) = times.iter().find(|found| found.id == *ours).map(|found| found.last) else { return Ok(Older::default()) };
    // One that left the catalog and whose record is removed already looks like one that was interrupted; its packs go.
    let expired = repository.expired().await?;
    let fresh = |found: &BackupTimes| {
        !found.recorded
            && !expired.has_backup(&found.id)
            && found.id != *ours
            && now.duration_since(found.last).unwrap_or_default() <= TAKEN_UP
    };
    let ids: Vec<BackupId> = times.into_iter().filter(fresh).map(|found| found.id).collect();
    let (mut extents, mut used) = (HashMap::new(), 0);
    for id in ids.iter().rev() {
        if used == INTERRUPTED {
            break;
        }
        let manifest = repository.unfinished_manifest(id).await;
        let Some(Some(manifest)) = repository.if_readable(manifest, "what an interrupted backup stored: it is stored again")? else {
            continue;
        };
        used += 1;
        let read = spawn_blocking(move || {
            let mut found = Vec::new();
            // It ends where the backup was interrupted.
            for entry in manifest.iter().into_iter().flatten().map_while(Result::ok) {
                if let EntryKind::File { content, .. } = entry.kind {
                    found.extend_from_slice(content.extents());
                }
                if found.len() > TABLE {
                    break;
                }
            }
            found
        });
        let found = read.await?;
        tracing::info!(backup = %id, extents = found.len(), "backup: what an interrupted backup stored is used");
        extents.extend(found.into_iter().filter(|extent| packs.hold(extent)).map(|extent| (extent.hash, extent)));
    }
    Ok(Older::new(extents))
}
