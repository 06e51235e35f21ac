//! The files of a restore: created empty, then filled from packs in parallel, then made durable.
//!
//! Neighbouring extents of a pack are read in one request ([`super::batches`]). No byte is written before its extent's hash was checked; a read that does not
//! fit is asked for once more, since it may have been damaged on its way only. Of files that were there before only what differs is fetched. Where files
//! go is [`super::target_dir`]'s.

mod behind;
mod write;

use std::collections::HashSet;
use std::fs::{self, File};
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result};
use bytes::Bytes;
use futures::{FutureExt, StreamExt};
use tokio::sync::mpsc;
use tokio::task::spawn_blocking;
use tokio_util::sync::CancellationToken;
use walkeep_core::layout::{ObjectName, PackId};
use walkeep_core::manifest::{EntryKind, Extent};
use walkeep_core::partial::Needed;

use super::batches::{Batch, Batches, Piece};
use super::layout::Layout;
use super::target_dir::Target;
use crate::durable;
use crate::repository::manifest::ManifestEntries;
use crate::repository::{self, ClusterRepository};
use crate::retry::{Backoff, retry};
use crate::transfer::Meter;
use behind::Behind;
use write::{Done, FileAt, fill, look};

/// How long the repository may fail before the restore does.
pub(super) const PATIENCE: Duration = Duration::from_secs(600);

/// What is needed to write files.
pub struct Files {
    /// Where bytes come from.
    pub repository: Arc<ClusterRepository>,
    /// Where they go.
    pub target: Arc<Target>,
    /// Whose content is written. The others get their length only.
    pub needed: Arc<Needed>,
    /// Requests at a time.
    pub parallelism: usize,
    /// Ends the waiting between tries.
    pub cancel: CancellationToken,
}

/// What was done.
#[derive(Debug, Default)]
pub struct Written {
    /// CRC-32C of each file of the manifest, in its order; none of those that got their length only.
    pub sums: Vec<Option<u32>>,
    /// Bytes of the extents that were fetched from packs.
    pub fetched: u64,
    /// Bytes that were written.
    pub written: u64,
}

impl Files {
    /// Writes all of the manifest's folders and files.
    pub async fn write(&self, manifest: &ManifestEntries, layout: &Layout, meter: &mut Meter<'_>) -> Result<Written> {
        let (entries, target, needed) = (manifest.clone(), self.target.clone(), self.needed.clone());
        let existing = Arc::new(spawn_blocking(move || create_all(&entries, &target, &needed)).await??);
        let (sender, receiver) = mpsc::channel(self.parallelism);
        let (entries, target, needed) = (manifest.clone(), self.target.clone(), self.needed.clone());
        let batches = spawn_blocking(move || send_batches(&entries, &target, &needed, &existing, &sender));
        let batches_in = futures::stream::unfold(receiver, |mut receiver| async move { Some((receiver.recv().await?, receiver)) });
        let behind = Arc::new(Behind::new(layout.written));
        let mut writing = std::pin::pin!(batches_in.map(|batch| self.carry_out(batch, &behind)).buffer_unordered(self.parallelism));
        let mut all = Written { sums: vec![None; usize::try_from(layout.files)?], ..Written::default() };
        let mut moved = 0;
        while let Some(done) = writing.next().await {
            let (done, fetched) = done?;
            all.fetched += fetched;
            all.written += done.written;
            moved += done.bytes;
            for (number, sum) in done.files {
                meter.file();
                if let Some(place) = all.sums.get_mut(number) {
                    *place = Some(sum);
                }
            }
            meter.bytes(done.bytes);
        }
        for (number, sum) in batches.await?? {
            meter.file();
            if let Some(place) = all.sums.get_mut(number) {
                *place = sum;
            }
        }
        // The map, the signals and zeros are not written here.
        anyhow::ensure!(moved <= layout.written, "{moved} bytes were written, the manifest has {}", layout.written);
        Ok(all)
    }

    /// Looks at, reads and writes a batch; answers what was done, and how many bytes were fetched.
    async fn carry_out(&self, batch: Batch<FileAt>, behind: &Arc<Behind>) -> Result<(Done, u64)> {
        if !batch.pieces.iter().any(|piece| piece.file.existed) {
            return self.fetch(batch, behind).await;
        }
        let (mut done, wrong) = spawn_blocking(move || look(batch.pieces)).await??;
        let (mut batches, mut fetched) = (Batches::new(), 0);
        let full: Vec<_> = wrong.into_iter().filter_map(|piece| batches.add(piece)).collect();
        for batch in full.into_iter().chain(batches.finish()) {
            let (more, bytes) = self.fetch(batch, behind).await?;
            done.add(more);
            fetched += bytes;
        }
        Ok((done, fetched))
    }

    async fn fetch(&self, batch: Batch<FileAt>, behind: &Arc<Behind>) -> Result<(Done, u64)> {
        let batch = Arc::new(batch);
        // What lies between extents, and is read and thrown away, is not counted.
        let fetched = batch.pieces.iter().map(|piece| piece.extent.stored).sum();
        let mut again = true;
        loop {
            let error = match self.fetch_from(&self.repository, &batch, behind, PATIENCE).await? {
                Ok(done) => return Ok((done, fetched)),
                Err(error) => error,
            };
            if !std::mem::take(&mut again) {
                let key = self.repository.layout().key(&ObjectName::Pack(batch.pack));
                let read = |place: ClusterRepository| {
                    let batch = &batch;
                    async move { self.fetch_from(&place, batch, behind, Duration::ZERO).await?.map(Some).map_err(anyhow::Error::new) }
                        .boxed()
                };
                let done = self.repository.elsewhere(&key, anyhow::Error::new(error), is_damage, read).await?;
                return done.map(|done| (done, fetched)).context("a batch came to nothing");
            }
            tracing::warn!(%error, "reading it once more");
        }
    }

    /// The same out of this repository, if it answers within `patience`; the inner error is damage.
    async fn fetch_from(
        &self,
        repository: &ClusterRepository,
        batch: &Arc<Batch<FileAt>>,
        behind: &Arc<Behind>,
        patience: Duration,
    ) -> Result<Result<Done, repository::Error>> {
        let file = batch.pieces.first().map_or("", |piece| &piece.file.name);
        let bytes =
            get(repository, batch.pack, batch.range.clone(), patience, &self.cancel).await.with_context(|| format!("read {file}"))?;
        let (work, behind) = (batch.clone(), behind.clone());
        let filled = spawn_blocking(move || fill(&work, &bytes, &behind)).await??;
        Ok(filled.map_err(|index| {
            let piece = &batch.pieces[index];
            damaged(&self.repository, &piece.extent, &piece.file.name)
        }))
    }
}

/// A stretch of a pack, asked for again while the store has trouble.
pub(super) async fn get(
    repository: &ClusterRepository,
    pack: PackId,
    range: Range<u64>,
    patience: Duration,
    cancel: &CancellationToken,
) -> repository::Result<Bytes> {
    let get = || repository.get_extents(pack, range.clone());
    retry("reading a pack", Backoff::within(patience), cancel, repository::Error::is_transient, get).await
}

/// Whether what was read is not what was stored; else it could not be read.
pub(super) fn is_damage(error: &anyhow::Error) -> bool {
    error.chain().any(|cause| cause.downcast_ref::<repository::Error>().is_some_and(repository::Error::is_damage))
}

/// The error for an extent that does not have its hash.
pub(super) fn damaged(repository: &ClusterRepository, extent: &Extent, file: &str) -> repository::Error {
    let key = repository.layout().key(&ObjectName::Pack(extent.pack));
    repository::Error::corrupt(key, format!("the extent of {file} at byte {} does not have its hash", extent.offset))
}

/// Creates folders and empty files, which have their length. Answers the files that were there before, as the target allows.
fn create_all(manifest: &ManifestEntries, target: &Target, needed: &Needed) -> Result<HashSet<PathBuf>> {
    target.link_tablespaces()?;
    let mut folders: HashSet<PathBuf> = HashSet::new();
    let mut existing = HashSet::new();
    let mut make_folder = |path: &Path| -> Result<()> {
        if folders.insert(path.to_owned()) {
            durable::create_dir(path, target.dir_mode)?;
        }
        Ok(())
    };
    for entry in manifest.iter()? {
        let entry = entry?;
        let Some(path) = target.place(&entry.path) else { continue };
        match entry.kind {
            EntryKind::Tablespace => {}
            EntryKind::Dir => {
                make_folder(&path)?;
                let open_and_set = || File::open(&path).and_then(|folder| durable::set_mode(&folder, entry.mode | 0o700));
                open_and_set().with_context(|| format!("set the mode of {}", path.display()))?;
            }
            EntryKind::File { content, .. } => {
                path.parent().map_or(Ok(()), &mut make_folder)?;
                let file = match target.delta {
                    true => reuse(&path, entry.mode | 0o600)?,
                    false => None,
                };
                let (file, existed) = match file {
                    Some(file) => (file, true),
                    None => {
                        (durable::create_private(&path, entry.mode | 0o600).with_context(|| format!("create {}", path.display()))?, false)
                    }
                };
                file.set_len(content.size()).with_context(|| format!("give {} its length", path.display()))?;
                if existed && needed.content(&entry.path) {
                    write::clear(&path, &content)?;
                    existing.insert(path);
                }
            }
        }
    }
    Ok(existing)
}

/// Opens a file that is there already. What is no file, or has another name too, is removed: its bytes are not only ours. So is one that may only be read.
fn reuse(path: &Path, mode: u32) -> Result<Option<File>> {
    use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
    let found = match fs::symlink_metadata(path) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        found => found.with_context(|| format!("look at {}", path.display()))?,
    };
    if found.is_dir() {
        fs::remove_dir_all(path).with_context(|| format!("remove {}", path.display()))?;
        return Ok(None);
    }
    if !found.is_file() || found.nlink() != 1 {
        fs::remove_file(path).with_context(|| format!("remove {}", path.display()))?;
        return Ok(None);
    }
    let nofollow = rustix::fs::OFlags::NOFOLLOW.bits() as i32;
    let open = || {
        let file = fs::OpenOptions::new().read(true).write(true).custom_flags(nofollow).open(path)?;
        durable::set_mode(&file, mode)?;
        Ok::<_, std::io::Error>(file)
    };
    match open() {
        Err(error) if error.kind() == std::io::ErrorKind::PermissionDenied => {
            fs::remove_file(path).with_context(|| format!("remove {}, which cannot be written", path.display()))?;
            Ok(None)
        }
        opened => opened.map(Some).with_context(|| format!("open {}", path.display())),
    }
}

/// Goes through the manifest and sends what to read, until nobody wants more. Answers the files for which nothing is read, and their sums.
fn send_batches(
    manifest: &ManifestEntries,
    target: &Target,
    needed: &Needed,
    existing: &HashSet<PathBuf>,
    sender: &mpsc::Sender<Batch<FileAt>>,
) -> Result<Vec<(usize, Option<u32>)>> {
    let (mut batches, mut silent, mut number) = (Batches::new(), Vec::new(), 0);
    for entry in manifest.iter()? {
        let entry = entry?;
        let EntryKind::File { content, .. } = entry.kind else { continue };
        let this = number;
        number += 1;
        let Some(path) = target.place(&entry.path) else { continue };
        if !needed.content(&entry.path) {
            silent.push((this, None));
            continue;
        }
        let existed = existing.contains(&path);
        let file = Arc::new(FileAt::new(entry.path.to_string(), path, this, &content, existed));
        if content.extents().is_empty() {
            silent.push((this, file.sum()));
            continue;
        }
        let mut pieces: Vec<_> = content.extents().iter().zip(content.placements()).collect();
        // What lies in one pack is read in its order.
        pieces.sort_by_key(|(extent, _)| (extent.pack, extent.offset));
        for (extent, placements) in pieces {
            let piece = Piece { file: file.clone(), extent: *extent, placements };
            if let Some(full) = batches.add(piece)
                && sender.blocking_send(full).is_err()
            {
                // Nobody listens after a failure elsewhere, which is told there.
                return Ok(silent);
            }
        }
    }
    for batch in batches.finish() {
        if sender.blocking_send(batch).is_err() {
            break;
        }
    }
    Ok(silent)
}

/// Makes everything durable: each file system at once, and then file by file, which costs little by then and answers what failed.
pub(super) fn sync(target: &Target, manifest: &ManifestEntries) -> Result<()> {
    let roots = || [&target.data].into_iter().chain(target.tablespaces.iter().map(|space| &space.new));
    for root in roots() {
        let sync = || File::open(root).and_then(|root| rustix::fs::syncfs(root).map_err(std::io::Error::from));
        sync().with_context(|| format!("sync the file system of {}", root.display()))?;
    }
    for entry in manifest.iter()? {
        let entry = entry?;
        let (Some(path), false) = (target.place(&entry.path), entry.kind == EntryKind::Tablespace) else { continue };
        File::open(&path).and_then(|file| file.sync_all()).with_context(|| format!("fsync {}", path.display()))?;
    }
    for folder in ["global", "pg_tblspc", "pg_wal", "pg_wal/archive_status", ""] {
        durable::sync_dir(&target.data.join(folder))?;
    }
    roots().try_for_each(|root| durable::sync_dir(root).and_then(|()| durable::sync_parent(root)))
}
