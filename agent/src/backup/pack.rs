//! From a row of files to packs in the repository and lines of a manifest.
//!
//! Files are cut into extents; each is hashed and compressed by itself on a blocking thread; the frames are joined, in order, to packs,
//! and several packs are uploaded at a time. Everything in flight is bounded: whoever hands in bytes waits. An extent whose content
//! was seen before in this backup is not stored again. Which files there are, and when a backup is complete, is not known here.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result};
use bytes::Bytes;
use chrono::{DateTime, Utc};
use sha2::{Digest, Sha256};
use tokio::task::{JoinHandle, JoinSet, spawn_blocking};
use tokio_util::sync::CancellationToken;
use walkeep_core::layout::PackId;
use walkeep_core::manifest::{Entry, EntryKind, Extent, ManifestTrailer};
use walkeep_core::relative_path::RelativePath;
use walkeep_core::sha256::Sha256Sum;

use crate::codec::{self, Hash};
use crate::repository::manifest::ManifestEncoder;
use crate::repository::wal::Stored;
use crate::repository::{self, ClusterRepository};
use crate::retry::{Backoff, retry};

/// No extent has more plain bytes.
pub const EXTENT: usize = 1 << 20;
/// A pack is closed when it has this many bytes.
pub const PACK: usize = 16 << 20;
/// Extents being compressed at a time.
const COMPRESSING: usize = 8;
/// Packs being uploaded at a time.
const UPLOADS: usize = 4;
/// Contents remembered for finding repeated ones; more are simply stored again.
const REMEMBERED: usize = 1 << 18;
/// How long the repository may fail before the backup does.
const PATIENCE: Duration = Duration::from_secs(600);

/// What there is to say of a file, except its content.
#[derive(Debug, Clone)]
pub struct FileFacts {
    /// Its place.
    pub path: RelativePath,
    /// Permission bits.
    pub mode: u32,
    /// When it was changed last, by the server's clock.
    pub mtime: Option<DateTime<Utc>>,
}

/// What was read for an extent.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Plain {
    /// Its bytes.
    pub bytes: Vec<u8>,
    /// Blocks whose checksum was wrong already.
    pub bad_blocks: Vec<u32>,
}

/// A file that is in packs.
#[derive(Debug, Clone)]
pub struct Packed {
    /// Its place.
    pub path: RelativePath,
    /// Bytes.
    pub size: u64,
    /// SHA-256 of all of it.
    pub sha256: Hash,
}

/// Sums of everything packed.
#[derive(Debug, Clone, Copy, Default)]
pub struct Totals {
    /// Files.
    pub files: u64,
    /// Their bytes.
    pub bytes: u64,
    /// Bytes that are new in the repository.
    pub stored: u64,
    /// Stored bytes of all extents, each repetition counted.
    pub referenced: u64,
}

struct Compressed {
    plain: u64,
    sha256: Hash,
    frame: Vec<u8>,
}

/// Work handed in and not placed yet, in order.
enum Item {
    Extent(JoinHandle<std::io::Result<Compressed>>),
    File(FileFacts, FileHash),
    Other(Entry),
}

/// The SHA-256 of a whole file.
enum FileHash {
    /// It has no content, or a single extent, whose hash is the file's.
    OfExtent,
    Running(JoinHandle<Sha256>),
}

/// Where an extent lies, by the pack's number within this backup.
#[derive(Clone, Copy)]
struct Placed {
    pack: usize,
    offset: u64,
    stored: u64,
    plain: u64,
    sha256: Hash,
}

/// An entry that waits for the names of its packs.
struct Pending {
    entry: Entry,
    extents: Vec<Placed>,
}

/// Packs files.
pub struct Packer {
    repository: Arc<ClusterRepository>,
    manifest: ManifestEncoder,
    cancel: CancellationToken,
    /// The extent being filled, and the file's hash so far.
    filling: Vec<u8>,
    hash: FileHash,
    queue: VecDeque<Item>,
    compressing: usize,
    /// Extents of the file at the front of the queue.
    placed: Vec<Placed>,
    known: HashMap<Hash, Placed>,
    open: Vec<u8>,
    packs: Vec<Option<PackId>>,
    uploads: JoinSet<repository::Result<(usize, PackId, Stored)>>,
    pending: VecDeque<Pending>,
    totals: Totals,
    finished: Vec<Packed>,
}

impl Packer {
    /// Packs into `repository` and notes in `manifest`.
    pub fn new(repository: Arc<ClusterRepository>, manifest: ManifestEncoder, cancel: CancellationToken) -> Self {
        Self {
            repository,
            manifest,
            cancel,
            filling: Vec::new(),
            hash: FileHash::OfExtent,
            queue: VecDeque::new(),
            compressing: 0,
            placed: Vec::new(),
            known: HashMap::new(),
            open: Vec::new(),
            packs: vec![None],
            uploads: JoinSet::new(),
            pending: VecDeque::new(),
            totals: Totals::default(),
            finished: Vec::new(),
        }
    }

    /// Adds bytes to the present file.
    pub async fn data(&mut self, mut bytes: &[u8]) -> Result<()> {
        while !bytes.is_empty() {
            if self.filling.len() == EXTENT {
                self.cut(false).await?;
            }
            let take = bytes.len().min(EXTENT - self.filling.len());
            self.filling.extend_from_slice(&bytes[..take]);
            bytes = &bytes[take..];
        }
        Ok(())
    }

    /// Adds an extent to the present file, read on a blocking thread.
    pub async fn extent(&mut self, read: impl FnOnce() -> Result<Plain> + Send + 'static) -> Result<()> {
        let plain = spawn_blocking(read).await.context("read an extent")??;
        self.data(&plain.bytes).await
    }

    /// Ends the present file, which was this one.
    pub async fn file(&mut self, facts: FileFacts) -> Result<()> {
        if !self.filling.is_empty() {
            self.cut(true).await?;
        }
        let hash = std::mem::replace(&mut self.hash, FileHash::OfExtent);
        self.queue.push_back(Item::File(facts, hash));
        self.place_ready(COMPRESSING).await
    }

    /// Adds an entry that is no file.
    pub async fn other(&mut self, entry: Entry) -> Result<()> {
        self.queue.push_back(Item::Other(entry));
        self.place_ready(COMPRESSING).await
    }

    /// Files packed since the last call.
    pub fn take_finished(&mut self) -> Vec<Packed> {
        std::mem::take(&mut self.finished)
    }

    /// Places everything, waits until all packs are stored, and closes the manifest.
    pub async fn finish(mut self) -> Result<(Bytes, ManifestTrailer, Totals, Vec<Packed>)> {
        self.place_ready(0).await?;
        if !self.open.is_empty() {
            self.close_pack().await?;
        }
        while !self.uploads.is_empty() {
            self.wait_for_upload().await?;
        }
        self.write_entries()?;
        let (object, trailer) = self.manifest.finish()?;
        Ok((object, trailer, self.totals, self.finished))
    }

    /// Hands the filled extent on.
    async fn cut(&mut self, last: bool) -> Result<()> {
        let plain = Bytes::from(std::mem::take(&mut self.filling));
        self.hash = match (std::mem::replace(&mut self.hash, FileHash::OfExtent), last) {
            (FileHash::OfExtent, true) => FileHash::OfExtent,
            (before, _) => {
                let hasher = match before {
                    FileHash::OfExtent => Sha256::new(),
                    FileHash::Running(task) => task.await.context("hash a file")?,
                };
                let bytes = plain.clone();
                FileHash::Running(spawn_blocking(move || hasher.chain_update(&bytes)))
            }
        };
        let level = self.repository.compression_level();
        self.queue.push_back(Item::Extent(spawn_blocking(move || {
            let frame = codec::compress(&plain, level)?;
            Ok(Compressed { plain: plain.len() as u64, sha256: codec::sha256(&plain), frame })
        })));
        self.compressing += 1;
        self.place_ready(COMPRESSING).await
    }

    /// Places from the front of the queue until at most `in_flight` extents are being compressed.
    async fn place_ready(&mut self, in_flight: usize) -> Result<()> {
        while let Some(item) = self.queue.front() {
            if matches!(item, Item::Extent(_)) && self.compressing <= in_flight && in_flight > 0 {
                break;
            }
            match self.queue.pop_front() {
                Some(Item::Extent(task)) => {
                    self.compressing -= 1;
                    let compressed = task.await.context("compress")?.context("compress")?;
                    self.place(compressed).await?;
                }
                Some(Item::File(facts, hash)) => self.end_file(facts, hash).await?,
                Some(Item::Other(entry)) => self.pending.push_back(Pending { entry, extents: Vec::new() }),
                None => break,
            }
        }
        Ok(())
    }

    async fn place(&mut self, compressed: Compressed) -> Result<()> {
        let Compressed { plain, sha256, frame } = compressed;
        let placed = match self.known.get(&sha256) {
            Some(known) => *known,
            None => {
                let placed =
                    Placed { pack: self.packs.len() - 1, offset: self.open.len() as u64, stored: frame.len() as u64, plain, sha256 };
                self.open.extend_from_slice(&frame);
                if self.known.len() < REMEMBERED {
                    self.known.insert(sha256, placed);
                }
                placed
            }
        };
        self.totals.referenced += placed.stored;
        self.placed.push(placed);
        if self.open.len() >= PACK {
            self.close_pack().await?;
        }
        Ok(())
    }

    async fn end_file(&mut self, facts: FileFacts, hash: FileHash) -> Result<()> {
        let extents = std::mem::take(&mut self.placed);
        let sha256 = match (hash, extents.as_slice()) {
            (FileHash::Running(task), _) => task.await.context("hash a file")?.finalize().into(),
            (FileHash::OfExtent, [only]) => only.sha256,
            (FileHash::OfExtent, _) => codec::sha256(&[]),
        };
        let size = extents.iter().map(|extent| extent.plain).sum();
        self.totals.files += 1;
        self.totals.bytes += size;
        self.finished.push(Packed { path: facts.path.clone(), size, sha256 });
        let kind = EntryKind::File { size, sha256: Sha256Sum::new(sha256), extents: Vec::new() };
        let entry = Entry { path: facts.path, mode: facts.mode, mtime: facts.mtime, kind };
        self.pending.push_back(Pending { entry, extents });
        Ok(())
    }

    /// Sends the open pack on its way, once there is room for another.
    async fn close_pack(&mut self) -> Result<()> {
        while self.uploads.len() >= UPLOADS {
            self.wait_for_upload().await?;
        }
        let (pack, number) = (Bytes::from(std::mem::take(&mut self.open)), self.packs.len() - 1);
        self.packs.push(None);
        let (repository, cancel) = (self.repository.clone(), self.cancel.clone());
        self.uploads.spawn(async move {
            let put = || repository.put_pack(pack.clone());
            let (id, stored) = retry("storing a pack", Backoff::within(PATIENCE), &cancel, repository::Error::is_transient, put).await?;
            Ok((number, id, stored))
        });
        while let Some(done) = self.uploads.try_join_next() {
            self.note_upload(done)?;
        }
        self.write_entries()
    }

    async fn wait_for_upload(&mut self) -> Result<()> {
        match self.uploads.join_next().await {
            Some(done) => self.note_upload(done),
            None => Ok(()),
        }
    }

    fn note_upload(
        &mut self,
        done: std::result::Result<repository::Result<(usize, PackId, Stored)>, tokio::task::JoinError>,
    ) -> Result<()> {
        let (number, id, stored) = done.context("store a pack")?.context("store a pack")?;
        if let Stored::New { bytes } = stored {
            self.totals.stored += bytes;
        }
        if let Some(pack) = self.packs.get_mut(number) {
            *pack = Some(id);
        }
        Ok(())
    }

    /// Writes the entries whose packs have names, in order.
    fn write_entries(&mut self) -> Result<()> {
        let packs = &self.packs;
        let name = |placed: &Placed| -> Option<Extent> {
            let pack = packs.get(placed.pack).copied().flatten()?;
            let Placed { offset, stored, plain, sha256, .. } = *placed;
            Some(Extent { pack, offset, stored, plain, sha256: Sha256Sum::new(sha256) })
        };
        while let Some(first) = self.pending.front_mut() {
            let Some(named) = first.extents.iter().map(name).collect::<Option<Vec<_>>>() else { break };
            if let EntryKind::File { extents, .. } = &mut first.entry.kind {
                *extents = named;
            }
            self.manifest.entry(&first.entry).with_context(|| format!("note {} in the manifest", first.entry.path))?;
            self.pending.pop_front();
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::repository::tests::{memory, over, record};
    use walkeep_store::{ErrorKind, Fault, FaultyStore, MemoryStore, Operation, Rule};

    fn facts(path: &str) -> FileFacts {
        FileFacts { path: RelativePath::parse(path).unwrap(), mode: 0o600, mtime: None }
    }

    /// Bytes that do not compress.
    fn noise(len: usize, mut seed: u64) -> Vec<u8> {
        let mut next = || {
            seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (seed >> 33) as u8
        };
        (0..len).map(|_| next()).collect()
    }

    async fn packer(repository: &Arc<ClusterRepository>) -> Packer {
        let manifest = ManifestEncoder::new(record(1).id, EXTENT as u64, 3).unwrap();
        Packer::new(repository.clone(), manifest, CancellationToken::new())
    }

    #[tokio::test]
    async fn files_come_back_from_their_extents() {
        let (repository, _) = memory().await;
        let repository = Arc::new(repository);
        let mut packer = packer(&repository).await;
        let files = [
            ("a", noise(20 << 20, 1)),
            ("b", Vec::new()),
            ("c", vec![0; (3 << 20) + 17]),
            ("d", noise(EXTENT, 2)),
            ("e", vec![0; 1 << 20]),
            ("f", noise(100, 3)),
        ];
        for (name, content) in &files {
            for piece in content.chunks(300_001) {
                packer.data(piece).await.unwrap();
            }
            packer.file(facts(name)).await.unwrap();
        }
        let mut packed = packer.take_finished();
        let (object, trailer, totals, rest) = packer.finish().await.unwrap();
        packed.extend(rest);
        assert_eq!((totals.files, totals.bytes), (6, files.iter().map(|(_, content)| content.len() as u64).sum()));
        assert_eq!(totals.stored, totals.referenced - 3 * stored_zeros(), "zeros are stored once");

        let mut record = record(1);
        record.manifest_sha256 = trailer.sha256;
        repository.put_manifest(&record.id, object).await.unwrap();
        let entries = repository.get_manifest(&record).await.unwrap();
        for ((entry, packed), (name, content)) in entries.iter().unwrap().zip(&packed).zip(&files) {
            let entry = entry.unwrap();
            assert_eq!((entry.path.as_str(), packed.path.as_str()), (*name, *name));
            let EntryKind::File { size, sha256, extents } = entry.kind else { panic!("{name} is a file") };
            assert_eq!((size, *sha256.bytes()), (content.len() as u64, codec::sha256(content)), "{name}");
            assert_eq!((packed.size, packed.sha256), (size, *sha256.bytes()));
            let mut read = Vec::new();
            for extent in extents {
                let frame = repository.get_extents(extent.pack, extent.offset..extent.offset + extent.stored).await.unwrap();
                read.extend(codec::decompress(&frame, extent.plain as usize).unwrap());
            }
            assert!(read == *content, "{name}");
        }
    }

    fn stored_zeros() -> u64 {
        codec::compress(&vec![0; EXTENT], 3).unwrap().len() as u64
    }

    #[tokio::test]
    async fn a_repository_that_refuses_ends_the_backup() {
        let faulty = Arc::new(FaultyStore::new(Arc::new(MemoryStore::new())));
        let repository = Arc::new(over(faulty.clone()).await);
        faulty.inject(Rule::new(Operation::Put, Fault::Fail(ErrorKind::Denied)).on("packs/"));
        let mut packer = packer(&repository).await;
        packer.data(&noise(100, 1)).await.unwrap();
        packer.file(facts("a")).await.unwrap();
        let error = packer.finish().await.map(|_| ()).unwrap_err();
        assert!(format!("{error:#}").contains("access denied"), "{error:#}");
    }

    #[tokio::test(start_paused = true)]
    async fn a_lost_answer_is_asked_again() {
        let faulty = Arc::new(FaultyStore::new(Arc::new(MemoryStore::new())));
        let repository = Arc::new(over(faulty.clone()).await);
        faulty.inject(Rule::new(Operation::Put, Fault::LoseAnswer).on("packs/").times(2));
        let mut packer = packer(&repository).await;
        packer.data(&noise(100, 1)).await.unwrap();
        packer.file(facts("a")).await.unwrap();
        packer.finish().await.map(|_| ()).unwrap();
    }
}
