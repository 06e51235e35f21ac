//! Objects read whole and proven: what is stored itself, never a host's own copy of it.
//!
//! For who verifies. In memory is the object and a piece of what it holds; what it claims to hold is compared with what such an object may have before any of it
//! is opened.

use bytes::Bytes;
use walkeep_core::artifact::PIECE;
use walkeep_core::blake3::Blake3Sum;
use walkeep_core::drill::rows::RowSample;
use walkeep_core::index::{BlockMap, Digest};
use walkeep_core::layout::{Form, ObjectName, PackId};
use walkeep_core::manifest::{EXTENT_LIMIT, Extent};
use walkeep_core::names::{Snapshot, SnapshotWriter};
use walkeep_core::{Lsn, TimelineHistory, WalFileName, page};
use walkeep_store::ErrorKind;

use super::{ClusterRepository, Error, Result, artifacts, drills, index, names, on_blocking_thread, wal};
use crate::codec::{self, CodecError, Decompressor};

/// Text of an object that is looked through beyond its hash has at most so many bytes.
const LOOKED_THROUGH: u64 = 64 << 20;

/// What a whole read tells of an object. That it is damaged is [`Error::Corrupt`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Proof {
    /// It is what its name says.
    Whole,
    /// It is not there.
    Gone,
    /// This host cannot decrypt it.
    Unreadable,
}

/// What a whole read tells of a pack.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PackProof {
    /// As of any object. One that cannot be decrypted has the hash that names it all the same.
    pub proof: Proof,
    /// Which of the extents that were asked for are not in it: their manifests say something else than what is stored.
    pub others: Vec<usize>,
    /// Of any other object: the sum of what it holds, where it has one.
    pub content: Option<Blake3Sum>,
}

/// What an object must say of itself.
struct Expected {
    title: String,
    start: Option<Lsn>,
    /// Plain bytes: at most, and exactly where that is known.
    limit: u64,
    length: Option<u64>,
}

impl ClusterRepository {
    /// Reads an object, not a pack, and believes nothing of it unchecked.
    pub async fn prove(&self, name: &ObjectName) -> Result<Proof> {
        Ok(self.prove_with_content(name).await?.0)
    }

    /// The same, with the sum of what it holds where it has one.
    pub async fn prove_with_content(&self, name: &ObjectName) -> Result<(Proof, Option<Blake3Sum>)> {
        let object = match self.read_stored(name).await {
            Ok(Some(object)) => object,
            Ok(None) => return Ok((Proof::Gone, None)),
            Err(Error::CannotDecrypt { .. }) => return Ok((Proof::Unreadable, None)),
            Err(error) => return Err(self.corrupt_if_store_says_so(name, error)),
        };
        Ok((Proof::Whole, self.prove_opened(name, object).await?))
    }

    /// Whether an object that was read, and decrypted, is what its name says. Answers the sum of what it holds where it has one.
    pub(super) async fn prove_opened(&self, name: &ObjectName, object: Bytes) -> Result<Option<Blake3Sum>> {
        let (repository, name) = (self.clone(), name.clone());
        on_blocking_thread(move || repository.prove_plain(&name, &object)).await?
    }

    /// Reads a pack: its hash, and these extents of it.
    pub async fn prove_pack(&self, pack: PackId, extents: Vec<Extent>) -> Result<PackProof> {
        let name = ObjectName::Pack(pack);
        let key = self.key(&name)?;
        let of = |proof| PackProof { proof, others: Vec::new(), content: None };
        let stored = match self.store().get(&key, None).await {
            Ok(stored) => stored,
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(of(Proof::Gone)),
            Err(error) => return Err(self.corrupt_if_store_says_so(&name, error.into())),
        };
        let hashed = stored.clone();
        if on_blocking_thread(move || codec::sha256(&hashed)).await? != *pack.sha256() {
            return Err(Error::corrupt(key.as_str(), "its bytes do not have the SHA-256 that names it"));
        }
        if self.identity().form == Form::Age && !self.can_read() {
            return Ok(of(Proof::Unreadable));
        }
        let plain = match self.opened(&name, stored).await {
            Ok(plain) => plain,
            Err(Error::CannotDecrypt { .. }) => return Ok(of(Proof::Unreadable)),
            Err(error) => return Err(error),
        };
        let others = on_blocking_thread(move || -> std::io::Result<Vec<usize>> {
            let mut zstd = Decompressor::new()?;
            let is_other = |(index, extent): (usize, &Extent)| (!holds(&mut zstd, &plain, extent)).then_some(index);
            Ok(extents.iter().enumerate().filter_map(is_other).collect())
        });
        Ok(PackProof { proof: Proof::Whole, others: others.await?.map_err(Error::encode)?, content: None })
    }

    fn prove_plain(&self, name: &ObjectName, object: &Bytes) -> Result<Option<Blake3Sum>> {
        let corrupt = |reason: &dyn std::fmt::Display| Error::corrupt(self.layout().key(name), reason);
        let Some(expected) = self.expected(name) else { return Ok(None) };
        let (found, _) = codec::describe(object).map_err(|error| corrupt(&error))?;
        if found.name != expected.title {
            return Err(corrupt(&format!("it holds {}", shown(&found.name))));
        }
        if found.system_identifier != self.identity().system_identifier {
            return Err(corrupt(&format!("it belongs to the cluster with system identifier {}", found.system_identifier)));
        }
        if found.start != expected.start {
            return Err(corrupt(&"it says that it begins elsewhere in the WAL"));
        }
        if expected.length.is_some_and(|length| length != found.length) {
            return Err(corrupt(&format!("it says that it has {} bytes", found.length)));
        }
        let whole = self.is_looked_through(name) && found.length <= LOOKED_THROUGH;
        let mut kept = Vec::new();
        codec::decode_pieces::<CodecError>(object, expected.limit, |piece| {
            if whole || kept.is_empty() {
                kept.extend_from_slice(piece);
            }
            Ok(())
        })
        .map_err(|error| corrupt(&error))?;
        self.look_through(name, &kept, found.blake3, whole).map_err(|reason| corrupt(&reason))?;
        Ok(Some(found.blake3))
    }

    /// Whether more is asked of what it holds than its hash and its first page.
    fn is_looked_through(&self, name: &ObjectName) -> bool {
        matches!(name, ObjectName::Wal(WalFileName::History(_)) | ObjectName::Digest(_) | ObjectName::Blocks(_) | ObjectName::Names(_))
    }

    fn look_through(&self, name: &ObjectName, content: &[u8], hash: Blake3Sum, whole: bool) -> std::result::Result<(), String> {
        let identity = self.identity();
        match name {
            ObjectName::Wal(WalFileName::Segment(segment)) => {
                let checked = page::check_partial_segment(*segment, identity.segment_size, identity.system_identifier, None, content);
                checked.map_err(|error| error.to_string())
            }
            ObjectName::OtherPartial { hash: named, .. } if wal::hash_prefix(&hash) != *named => {
                Err("it does not have the BLAKE3 sum that its name begins with".to_owned())
            }
            _ if !whole => Ok(()),
            ObjectName::Wal(WalFileName::History(timeline)) => {
                TimelineHistory::parse(*timeline, content).map(drop).map_err(|error| error.to_string())
            }
            ObjectName::Digest(digest) => {
                Digest::from_json_lines(*digest, content, identity.segment_size).map(drop).map_err(|error| error.to_string())
            }
            ObjectName::Blocks(_) => BlockMap::from_json_lines(content).map(drop).map_err(|error| error.to_string()),
            ObjectName::Names(names) => {
                let text = std::str::from_utf8(content).map_err(|error| error.to_string())?;
                let snapshot = Snapshot::parse(text).map_err(|error| error.to_string())?;
                let is_it = (snapshot.header.timeline, snapshot.header.lsn) == (names.timeline, names.lsn);
                is_it.then_some(()).ok_or_else(|| "it is the snapshot of another position".to_owned())
            }
            _ => Ok(()),
        }
    }

    /// What an object with a description must say; `None` for those without.
    fn expected(&self, name: &ObjectName) -> Option<Expected> {
        let size = self.identity().segment_size.bytes();
        Some(match name {
            ObjectName::Wal(file) => {
                let length = matches!(file, WalFileName::Segment(_)).then_some(size);
                Expected { title: file.to_string(), start: self.start_of(*file), limit: self.limit_of(*file), length }
            }
            ObjectName::OtherPartial { segment, .. } => {
                let file = WalFileName::Partial(*segment);
                Expected { title: file.to_string(), start: self.start_of(file), limit: self.limit_of(file), length: None }
            }
            ObjectName::Part(part) => {
                let (start, length) = (self.segment_start(part.segment), u64::from(part.to - part.from));
                let start = Some(start.saturating_add(u64::from(part.from)));
                Expected { title: wal::part_title(*part), start, limit: length.min(size), length: Some(length) }
            }
            ObjectName::Digest(digest) => {
                Expected { title: digest.to_string(), start: Some(digest.from), limit: index::DIGEST_LIMIT, length: None }
            }
            ObjectName::Blocks(blocks) => {
                Expected { title: index::blocks_title(*blocks), start: Some(blocks.from), limit: index::BLOCKS_LIMIT, length: None }
            }
            ObjectName::Names(snapshot) => {
                let limit = SnapshotWriter::LONGEST + names::HEADER;
                Expected { title: names::title(*snapshot), start: Some(snapshot.lsn), limit, length: None }
            }
            ObjectName::ArtifactPiece(place, number) => {
                Expected { title: artifacts::piece_title(place, *number), start: None, limit: PIECE, length: None }
            }
            ObjectName::ArtifactSummary(place) => {
                Expected { title: artifacts::summary_title(place), start: None, limit: artifacts::SUMMARY, length: None }
            }
            ObjectName::DrillReport(id, form) => {
                Expected { title: drills::report_title(id, *form), start: None, limit: drills::REPORT, length: None }
            }
            ObjectName::Sample(sample) => {
                Expected { title: drills::sample_title(*sample), start: Some(sample.lsn), limit: RowSample::LONGEST, length: None }
            }
            _ => return None,
        })
    }

    /// A store that keeps sums of its own may find damage before anybody else does.
    pub(super) fn corrupt_if_store_says_so(&self, name: &ObjectName, error: Error) -> Error {
        match error {
            Error::Store(error) if error.kind() == ErrorKind::Corrupt => Error::corrupt(self.layout().key(name), error),
            error => error,
        }
    }
}

/// Whether a pack has what a manifest says of it.
fn holds(zstd: &mut Decompressor, pack: &Bytes, extent: &Extent) -> bool {
    let end = extent.offset.checked_add(extent.stored).filter(|end| *end <= pack.len() as u64 && extent.plain <= EXTENT_LIMIT);
    let Some(end) = end else { return false };
    let frame = &pack[extent.offset as usize..end as usize];
    zstd.decompress(frame, extent.plain as usize).is_ok_and(|plain| codec::blake3(plain) == extent.hash)
}

/// What somebody may have written, for a message.
fn shown(text: &str) -> String {
    let short: String = text.chars().take(80).collect();
    format!("{short:?}")
}
