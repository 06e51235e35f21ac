//! The files of a restore: created empty, then filled from packs in parallel, then made durable.
//!
//! Neighbouring extents of a pack are read in one request. No byte is written before its extent's hash was checked; a read that does not
//! fit is asked for once more, since it may have been damaged on its way only. Where files go is [`super::target_dir`]'s.

use std::collections::HashSet;
use std::fs::{File, OpenOptions};
use std::ops::Range;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result};
use bytes::Bytes;
use futures::StreamExt;
use tokio::sync::mpsc;
use tokio::task::spawn_blocking;
use tokio_util::sync::CancellationToken;
use walkeep_core::layout::{ObjectName, PackId};
use walkeep_core::manifest::{EntryKind, Extent};
use walkeep_core::partial::Needed;

use super::layout::Layout;
use super::target_dir::Target;
use crate::codec;
use crate::durable;
use crate::repository::manifest::ManifestEntries;
use crate::repository::{self, ClusterRepository};
use crate::retry::{Backoff, retry};
use crate::transfer::Meter;

/// The most stored bytes read in one request, unless one extent has more.
const READ: u64 = 4 << 20;
/// The most plain bytes that may come of one request.
const PLAIN: u64 = 32 << 20;
/// How long the repository may fail before the restore does.
const PATIENCE: Duration = Duration::from_secs(600);

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

/// An extent and where it belongs.
struct Piece {
    file: Arc<FileAt>,
    offset: u64,
    extent: Extent,
    /// Whether the file ends with it.
    last: bool,
}

struct FileAt {
    /// As the manifest has it.
    name: String,
    path: PathBuf,
}

/// Pieces that lie side by side in one pack.
struct Batch {
    pack: PackId,
    range: Range<u64>,
    plain: u64,
    pieces: Vec<Piece>,
}

impl Files {
    /// Writes all of the manifest's folders and files.
    pub async fn write(&self, manifest: &ManifestEntries, layout: &Layout, meter: &mut Meter<'_>) -> Result<()> {
        let (entries, target, needed) = (manifest.clone(), self.target.clone(), self.needed.clone());
        let empty = spawn_blocking(move || create_all(&entries, &target, &needed)).await??;
        (0..empty).for_each(|_| meter.file());
        let (sender, receiver) = mpsc::channel(self.parallelism);
        let (entries, target, needed) = (manifest.clone(), self.target.clone(), self.needed.clone());
        let batches = spawn_blocking(move || send_batches(&entries, &target, &needed, &sender));
        let batches_in = futures::stream::unfold(receiver, |mut receiver| async move { Some((receiver.recv().await?, receiver)) });
        let mut writing = std::pin::pin!(batches_in.map(|batch| self.carry_out(batch)).buffer_unordered(self.parallelism));
        let mut written = 0;
        while let Some(done) = writing.next().await {
            let (bytes, files) = done?;
            written += bytes;
            (0..files).for_each(|_| meter.file());
            meter.bytes(bytes);
        }
        batches.await??;
        // The map and the signals are not written here.
        anyhow::ensure!(written <= layout.written, "{written} bytes were written, the manifest has {}", layout.written);
        Ok(())
    }

    /// Reads and writes a batch; answers how many bytes, and how many files ended.
    async fn carry_out(&self, batch: Batch) -> Result<(u64, u64)> {
        let batch = Arc::new(batch);
        for again in [true, false] {
            let file = batch.pieces.first().map_or("", |piece| &piece.file.name);
            let bytes =
                get(&self.repository, batch.pack, batch.range.clone(), &self.cancel).await.with_context(|| format!("read {file}"))?;
            let work = batch.clone();
            let written = spawn_blocking(move || write_batch(&work, &bytes)).await??;
            match written {
                Ok(files) => return Ok((batch.plain, files)),
                Err(index) => {
                    let piece = &batch.pieces[index];
                    let error = damaged(&self.repository, &piece.extent, &piece.file.name);
                    if !again {
                        return Err(error.into());
                    }
                    tracing::warn!(%error, "reading it once more");
                }
            }
        }
        Ok((0, 0))
    }
}

/// A stretch of a pack, asked for again while the store has trouble.
pub(super) async fn get(
    repository: &ClusterRepository,
    pack: PackId,
    range: Range<u64>,
    cancel: &CancellationToken,
) -> repository::Result<Bytes> {
    let get = || repository.get_extents(pack, range.clone());
    retry("reading a pack", Backoff::within(PATIENCE), cancel, repository::Error::is_transient, get).await
}

/// The error for an extent that does not have its hash.
pub(super) fn damaged(repository: &ClusterRepository, extent: &Extent, file: &str) -> repository::Error {
    let key = repository.layout().key(&ObjectName::Pack(extent.pack));
    repository::Error::corrupt(key, format!("the extent of {file} at byte {} does not have its SHA-256", extent.offset))
}

/// Creates folders and empty files, none of which may be there. Answers how many files stay empty, or get no more than their length.
fn create_all(manifest: &ManifestEntries, target: &Target, needed: &Needed) -> Result<u64> {
    target.create_roots()?;
    let mut folders: HashSet<PathBuf> = HashSet::new();
    let mut make_folder = |path: &Path| -> Result<()> {
        if folders.insert(path.to_owned()) {
            durable::create_dir(path, target.dir_mode)?;
        }
        Ok(())
    };
    let mut empty = 0;
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
            EntryKind::File { size, .. } => {
                path.parent().map_or(Ok(()), &mut make_folder)?;
                let file = durable::create_private(&path, entry.mode | 0o600).with_context(|| format!("create {}", path.display()))?;
                let written = needed.content(&entry.path);
                if !written {
                    file.set_len(size).with_context(|| format!("give {} its length", path.display()))?;
                }
                empty += u64::from(size == 0 || !written);
            }
        }
    }
    Ok(empty)
}

/// Goes through the manifest and sends what to read, until nobody wants more.
fn send_batches(manifest: &ManifestEntries, target: &Target, needed: &Needed, sender: &mpsc::Sender<Batch>) -> Result<()> {
    let mut open: Option<Batch> = None;
    for entry in manifest.iter()? {
        let entry = entry?;
        let EntryKind::File { extents, .. } = entry.kind else { continue };
        let (Some(path), true) = (target.place(&entry.path), needed.content(&entry.path)) else { continue };
        let file = Arc::new(FileAt { name: entry.path.to_string(), path });
        let (mut offset, count) = (0, extents.len());
        for (index, extent) in extents.into_iter().enumerate() {
            let piece = Piece { file: file.clone(), offset, extent, last: index + 1 == count };
            offset += extent.plain;
            match &mut open {
                Some(batch) if batch.takes(&extent) => batch.add(piece),
                _ => {
                    let next = Batch { pack: extent.pack, range: extent.offset..extent.offset, plain: 0, pieces: Vec::new() };
                    if let Some(full) = open.replace(next)
                        && sender.blocking_send(full).is_err()
                    {
                        return Ok(());
                    }
                    if let Some(batch) = &mut open {
                        batch.add(piece);
                    }
                }
            }
        }
    }
    if let Some(last) = open {
        // Nobody listens after a failure elsewhere, which is told there.
        let _ = sender.blocking_send(last);
    }
    Ok(())
}

impl Batch {
    fn takes(&self, extent: &Extent) -> bool {
        let bytes = self.range.end - self.range.start;
        extent.pack == self.pack && extent.offset == self.range.end && bytes + extent.stored <= READ && self.plain + extent.plain <= PLAIN
    }

    fn add(&mut self, piece: Piece) {
        self.range.end += piece.extent.stored;
        self.plain += piece.extent.plain;
        self.pieces.push(piece);
    }
}

/// Opens, proves and writes the pieces of a batch: how many files ended, or which piece is damaged.
fn write_batch(batch: &Batch, bytes: &[u8]) -> Result<std::result::Result<u64, usize>> {
    let (mut at, mut ended) = (0, 0);
    let mut open: Option<(Arc<FileAt>, File)> = None;
    for (index, piece) in batch.pieces.iter().enumerate() {
        let Extent { stored, plain, sha256, .. } = piece.extent;
        let frame = bytes.get(at..at + stored as usize).unwrap_or_default();
        at += stored as usize;
        let plain = codec::decompress(frame, plain as usize).ok().filter(|plain| codec::sha256(plain) == *sha256.bytes());
        let Some(plain) = plain else { return Ok(Err(index)) };
        let path = &piece.file.path;
        let file = match &open {
            Some((file, handle)) if Arc::ptr_eq(file, &piece.file) => handle,
            _ => {
                let nofollow = rustix::fs::OFlags::NOFOLLOW.bits() as i32;
                let handle = OpenOptions::new().write(true).custom_flags(nofollow).open(path);
                &open.insert((piece.file.clone(), handle.with_context(|| format!("open {}", path.display()))?)).1
            }
        };
        file.write_all_at(&plain, piece.offset).with_context(|| format!("write {}", path.display()))?;
        ended += u64::from(piece.last);
    }
    Ok(Ok(ended))
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
