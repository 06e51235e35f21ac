//! From a row of files to packs in the repository and lines of a manifest.
//!
//! Files are cut into extents; each is read, hashed and compressed by itself on one of the [`Workers`]; the frames are joined, in order, to
//! packs, and several packs are uploaded at a time. Everything in flight is bounded: whoever hands in bytes waits. What is stored already is not stored
//! again: an extent that is as an older backup has it, one whose content was seen before in this backup, and zeros. Which files there are, and when
//! a backup is complete, is not known here.

mod extent;

use std::collections::{BTreeSet, HashMap, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, anyhow};
use bytes::Bytes;
use chrono::{DateTime, Utc};
use tokio::sync::oneshot;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use tracing::Instrument;
use walkeep_core::blake3::Blake3Sum;
use walkeep_core::layout::{BackupId, PackId};
use walkeep_core::manifest::{Content, Entry, EntryKind, Extent, ManifestTrailer, Run, Source};
use walkeep_core::recipe::{self, Part, Recipe};
use walkeep_core::relative_path::RelativePath;

use super::workers::Workers;
use crate::codec;
use crate::repository::manifest::{ManifestEncoder, Piece};
use crate::repository::wal::Stored;
use crate::repository::{self, ClusterRepository};
use crate::retry::{Backoff, retry};
use extent::{Made, What, make};
pub use extent::{Older, Plain};

/// No extent has more plain bytes.
pub const EXTENT: usize = recipe::EXTENT as usize;
/// A pack is closed when it has this many bytes.
pub const PACK: usize = 16 << 20;
/// Extents that wait to be read or placed, beside those that are being made.
const WAITING: usize = 4;
/// Packs being uploaded at a time.
const UPLOADS: usize = 3;
/// Contents remembered for finding repeated ones; more are simply stored again.
const REMEMBERED: usize = 1 << 16;
/// Extents of files that may wait for the names of their packs: 16 GiB of files.
const HELD: usize = 1 << 14;
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

/// Sums of everything packed.
#[derive(Debug, Clone, Copy, Default)]
pub struct Totals {
    /// Files.
    pub files: u64,
    /// Their bytes.
    pub bytes: u64,
    /// Bytes that are new in the repository.
    pub stored: u64,
    /// Stored bytes of the extents of all files.
    pub referenced: u64,
    /// Blocks whose checksum was wrong.
    pub bad_blocks: u64,
}

/// Everything stored, and what the record says of it.
#[derive(Debug)]
pub struct Packed {
    /// The last piece of the manifest, which is not stored yet: with it the manifest is whole.
    pub last: Piece,
    /// What its last line says.
    pub trailer: ManifestTrailer,
    /// Sums.
    pub totals: Totals,
    /// The packs that were put for it.
    pub put: BTreeSet<PackId>,
}

/// How a file is put together.
enum Shape {
    /// Its extents, one after the other.
    InOrder,
    /// The extents are those that are made now.
    Of(Recipe),
}

/// Work handed in and not placed yet, in order.
enum Item {
    Extent(oneshot::Receiver<Result<Made>>),
    File(FileFacts, Shape),
    Other(Entry),
}

/// Where an extent's bytes are.
#[derive(Clone, Copy)]
enum Place {
    Zeros,
    Older(Extent),
    /// In a pack of this backup, by number: it has no name yet.
    Here {
        pack: usize,
        offset: u64,
        stored: u64,
        hash: Blake3Sum,
    },
}

/// An extent of the file under way.
#[derive(Clone, Copy)]
struct Placed {
    place: Place,
    plain: u64,
}

/// A file that waits for the names of its packs.
struct Pending {
    facts: FileFacts,
    shape: Shape,
    extents: Vec<Placed>,
    bad_blocks: Vec<u32>,
}

enum Waiting {
    File(Box<Pending>),
    Other(Entry),
}

/// Packs files.
pub struct Packer {
    repository: Arc<ClusterRepository>,
    backup: BackupId,
    manifest: ManifestEncoder,
    workers: Workers,
    older: Older,
    cancel: CancellationToken,
    /// The extent being filled by [`Packer::data`].
    filling: Vec<u8>,
    queue: VecDeque<Item>,
    making: usize,
    /// Extents of the file at the front of the queue, and what was wrong with them.
    placed: Vec<Placed>,
    bad_blocks: Vec<u32>,
    known: HashMap<Blake3Sum, Placed>,
    open: Vec<u8>,
    packs: Vec<Option<PackId>>,
    put: BTreeSet<PackId>,
    uploads: JoinSet<repository::Result<Uploaded>>,
    waiting: VecDeque<Waiting>,
    /// Extents of the files in it.
    held: usize,
    totals: Totals,
}

enum Uploaded {
    Pack { number: usize, id: PackId, bytes: u64 },
    Manifest { bytes: u64 },
}

impl Packer {
    /// Packs into `repository`, with a manifest of its own for `backup`. What is in `older` is referred to.
    pub fn new(
        repository: Arc<ClusterRepository>,
        backup: BackupId,
        workers: Workers,
        older: Older,
        cancel: CancellationToken,
    ) -> Result<Self> {
        let manifest = ManifestEncoder::new(backup.clone(), EXTENT as u64, repository.compression_level())?;
        Ok(Self {
            repository,
            backup,
            manifest,
            workers,
            older,
            cancel,
            filling: Vec::new(),
            queue: VecDeque::new(),
            making: 0,
            placed: Vec::new(),
            bad_blocks: Vec::new(),
            known: HashMap::new(),
            open: Vec::new(),
            packs: vec![None],
            put: BTreeSet::new(),
            uploads: JoinSet::new(),
            waiting: VecDeque::new(),
            held: 0,
            totals: Totals::default(),
        })
    }

    /// Adds an extent of the present file: at most [`EXTENT`] bytes, which `read` answers on a worker's thread. If they are those of `expected`, that is what
    /// the file refers to.
    pub async fn extent(&mut self, expected: Option<Extent>, read: impl FnOnce() -> Result<Plain> + Send + 'static) -> Result<()> {
        let older = self.older.clone();
        let made = self.workers.run(move |compressor| make(read()?, expected, &older, compressor));
        self.queue.push_back(Item::Extent(made));
        self.making += 1;
        self.place_ready(self.workers.threads() + WAITING).await
    }

    /// Adds bytes to the present file.
    pub async fn data(&mut self, mut bytes: &[u8]) -> Result<()> {
        while !bytes.is_empty() {
            if self.filling.len() == EXTENT {
                self.cut().await?;
            }
            let take = bytes.len().min(EXTENT - self.filling.len());
            self.filling.extend_from_slice(&bytes[..take]);
            bytes = &bytes[take..];
        }
        Ok(())
    }

    /// Ends the present file, which is its extents, one after the other.
    pub async fn file(&mut self, facts: FileFacts) -> Result<()> {
        if !self.filling.is_empty() {
            self.cut().await?;
        }
        self.end_file(facts, Shape::InOrder).await
    }

    /// Ends the present file. Its extents are those that the recipe has made now, in order.
    pub async fn file_of(&mut self, facts: FileFacts, recipe: Recipe) -> Result<()> {
        self.end_file(facts, Shape::Of(recipe)).await
    }

    async fn end_file(&mut self, facts: FileFacts, shape: Shape) -> Result<()> {
        self.queue.push_back(Item::File(facts, shape));
        self.place_ready(self.workers.threads() + WAITING).await
    }

    /// Adds an entry that is no file.
    pub async fn other(&mut self, entry: Entry) -> Result<()> {
        self.queue.push_back(Item::Other(entry));
        self.place_ready(self.workers.threads() + WAITING).await
    }

    /// Places everything, waits until all packs and pieces but the last of the manifest are stored.
    pub async fn finish(mut self) -> Result<Packed> {
        self.place_ready(0).await?;
        if !self.open.is_empty() {
            self.close_pack().await?;
        }
        while !self.uploads.is_empty() {
            self.wait_for_upload().await?;
        }
        self.write_entries()?;
        while !self.uploads.is_empty() {
            self.wait_for_upload().await?;
        }
        let (last, trailer) = self.manifest.finish()?;
        Ok(Packed { last, trailer, totals: self.totals, put: self.put })
    }

    /// Hands the filled extent on.
    async fn cut(&mut self) -> Result<()> {
        let plain = Plain { bytes: std::mem::take(&mut self.filling), bad_blocks: Vec::new() };
        self.extent(None, move || Ok(plain)).await
    }

    /// Places from the front of the queue until at most `in_flight` extents are being made.
    async fn place_ready(&mut self, in_flight: usize) -> Result<()> {
        while let Some(item) = self.queue.front() {
            if matches!(item, Item::Extent(_)) && self.making <= in_flight && in_flight > 0 {
                break;
            }
            match self.queue.pop_front() {
                Some(Item::Extent(making)) => {
                    self.making -= 1;
                    let made = making.await.map_err(|_| anyhow!("a thread of the backup died: this is a defect of Walkeep"))??;
                    self.place(made).await?;
                }
                Some(Item::File(facts, shape)) => {
                    let (extents, bad_blocks) = (std::mem::take(&mut self.placed), std::mem::take(&mut self.bad_blocks));
                    self.totals.bad_blocks += bad_blocks.len() as u64;
                    self.held += extents.len();
                    self.waiting.push_back(Waiting::File(Box::new(Pending { facts, shape, extents, bad_blocks })));
                    self.let_go().await?;
                }
                Some(Item::Other(entry)) => self.waiting.push_back(Waiting::Other(entry)),
                None => break,
            }
        }
        Ok(())
    }

    async fn place(&mut self, made: Made) -> Result<()> {
        let Made { what, plain, bad_blocks } = made;
        self.bad_blocks.extend(bad_blocks);
        let place = match what {
            What::Nothing => return Ok(()),
            What::Zeros => Place::Zeros,
            What::Older(extent) => Place::Older(extent),
            What::New { hash, frame } => match self.known.get(&hash) {
                Some(known) => known.place,
                None => {
                    let place =
                        Place::Here { pack: self.packs.len() - 1, offset: self.open.len() as u64, stored: frame.len() as u64, hash };
                    if self.open.is_empty() {
                        // It would grow by doubling, and be uploaded with twice its room.
                        self.open.reserve_exact(PACK + 2 * EXTENT);
                    }
                    self.open.extend_from_slice(&frame);
                    if self.known.len() < REMEMBERED {
                        self.known.insert(hash, Placed { place, plain });
                    }
                    place
                }
            },
        };
        self.placed.push(Placed { place, plain });
        if self.open.len() >= PACK {
            self.close_pack().await?;
        }
        Ok(())
    }

    /// Sends the open pack on its way, once there is room for another.
    async fn close_pack(&mut self) -> Result<()> {
        while self.uploads.len() >= UPLOADS {
            self.wait_for_upload().await?;
        }
        // No other backup's pack has the same bytes: what none of its own manifest names, none names.
        self.open.extend_from_slice(&codec::note(self.backup.to_string().as_bytes()));
        let (pack, number) = (Bytes::from(std::mem::take(&mut self.open)), self.packs.len() - 1);
        self.packs.push(None);
        let (repository, cancel) = (self.repository.clone(), self.cancel.clone());
        let upload = async move {
            let object = repository.pack_object(pack).await?;
            let put = || repository.put_pack(&object);
            let stored = retry("storing a pack", Backoff::within(PATIENCE), &cancel, repository::Error::is_transient, put).await?;
            Ok(Uploaded::Pack { number, id: object.id(), bytes: new_bytes(&stored) })
        };
        self.uploads.spawn(upload.in_current_span());
        while let Some(done) = self.uploads.try_join_next() {
            self.note_upload(done)?;
        }
        self.write_entries()
    }

    /// Writes entries where little is new: no pack is closed by its size then, and files would wait for names without end.
    async fn let_go(&mut self) -> Result<()> {
        if self.held <= HELD {
            return Ok(());
        }
        // Until most are gone: one that needs no pack would leave the rest to the next file, which would close a pack of its own.
        while self.held > HELD / 2 {
            match self.open.is_empty() {
                false => self.close_pack().await?,
                true if self.uploads.is_empty() => return self.write_entries(),
                true => {
                    self.wait_for_upload().await?;
                    self.write_entries()?;
                }
            }
        }
        Ok(())
    }

    async fn wait_for_upload(&mut self) -> Result<()> {
        match self.uploads.join_next().await {
            Some(done) => self.note_upload(done),
            None => Ok(()),
        }
    }

    fn note_upload(&mut self, done: std::result::Result<repository::Result<Uploaded>, tokio::task::JoinError>) -> Result<()> {
        match done.context("store a pack")?.context("store a pack")? {
            Uploaded::Manifest { bytes } => self.totals.stored += bytes,
            Uploaded::Pack { number, id, bytes } => {
                self.totals.stored += bytes;
                self.put.insert(id);
                if let Some(pack) = self.packs.get_mut(number) {
                    *pack = Some(id);
                }
            }
        }
        Ok(())
    }

    /// Writes the entries whose packs have names, in order, and sends pieces of the manifest on their way.
    fn write_entries(&mut self) -> Result<()> {
        while let Some(first) = self.waiting.front() {
            let entry = match first {
                Waiting::Other(entry) => entry.clone(),
                Waiting::File(pending) => match pending.entry(&self.packs)? {
                    Some(entry) => entry,
                    None => break,
                },
            };
            if let Some(Waiting::File(pending)) = self.waiting.pop_front() {
                self.held -= pending.extents.len();
            }
            if let EntryKind::File { content, .. } = &entry.kind {
                self.totals.files += 1;
                self.totals.bytes += content.size();
                self.totals.referenced += content.stored();
            }
            if let Some(piece) = self.manifest.entry(&entry).with_context(|| format!("note {} in the manifest", entry.path))? {
                self.store_piece(piece);
            }
        }
        Ok(())
    }

    fn store_piece(&mut self, piece: Piece) {
        let (repository, cancel, backup) = (self.repository.clone(), self.cancel.clone(), self.backup.clone());
        let upload = async move {
            let put = || repository.put_manifest(&backup, &piece);
            let what = "storing a piece of the manifest";
            let stored = retry(what, Backoff::within(PATIENCE), &cancel, repository::Error::is_transient, put).await?;
            Ok(Uploaded::Manifest { bytes: new_bytes(&stored) })
        };
        self.uploads.spawn(upload.in_current_span());
    }
}

fn new_bytes(stored: &Stored) -> u64 {
    if let Stored::New { bytes } = stored { *bytes } else { 0 }
}

impl Pending {
    /// The entry; `None` while a pack of it has no name.
    fn entry(&self, packs: &[Option<PackId>]) -> Result<Option<Entry>> {
        let mut content = Builder::default();
        match &self.shape {
            Shape::InOrder => {
                for placed in &self.extents {
                    if !content.add(placed, 0, placed.plain, packs) {
                        return Ok(None);
                    }
                }
            }
            Shape::Of(recipe) => {
                for part in &recipe.parts {
                    let named = match *part {
                        Part::Kept(Run { source: Source::Zeros, length }) => content.run(Source::Zeros, length),
                        Part::Kept(Run { source: Source::Extent { index, from }, length }) => {
                            let extent = recipe.kept.get(index as usize).context("a recipe that has not what it uses")?;
                            content.add(&Placed { place: Place::Older(*extent), plain: extent.plain }, from, length, packs)
                        }
                        Part::Fresh { index, from, length } => {
                            let placed = self.extents.get(index as usize).context("a recipe of which an extent is missing")?;
                            content.add(placed, from, length, packs)
                        }
                    };
                    if !named {
                        return Ok(None);
                    }
                }
            }
        }
        let content = content.finish().map_err(|rule| anyhow!("{}: {rule}", self.facts.path))?;
        let kind = EntryKind::File { content, bad_blocks: self.bad_blocks.clone() };
        let FileFacts { path, mode, mtime } = self.facts.clone();
        Ok(Some(Entry { path, mode, mtime, kind }))
    }
}

/// Puts a file's content together.
#[derive(Default)]
struct Builder {
    extents: Vec<Extent>,
    index: HashMap<(PackId, u64), u32>,
    runs: Vec<Run>,
}

impl Builder {
    /// Adds a stretch of an extent; `false` if its pack has no name yet.
    fn add(&mut self, placed: &Placed, from: u64, length: u64, packs: &[Option<PackId>]) -> bool {
        let extent = match placed.place {
            Place::Zeros => return self.run(Source::Zeros, length),
            Place::Older(extent) => extent,
            Place::Here { pack, offset, stored, hash } => {
                let Some(pack) = packs.get(pack).copied().flatten() else { return false };
                Extent { pack, offset, stored, plain: placed.plain, hash }
            }
        };
        let next = self.extents.len() as u32;
        let index = *self.index.entry((extent.pack, extent.offset)).or_insert(next);
        if index == next {
            self.extents.push(extent);
        }
        self.run(Source::Extent { index, from }, length)
    }

    fn run(&mut self, source: Source, length: u64) -> bool {
        let joins = |last: &Run| match (last.source, source) {
            (Source::Zeros, Source::Zeros) => true,
            (Source::Extent { index, from }, Source::Extent { index: next, from: at }) => index == next && from + last.length == at,
            _ => false,
        };
        match self.runs.last_mut() {
            Some(last) if joins(last) => last.length += length,
            _ => self.runs.push(Run { source, length }),
        }
        true
    }

    fn finish(self) -> std::result::Result<Content, &'static str> {
        Content::new(self.extents, self.runs)
    }
}

#[cfg(test)]
mod tests;
