//! WAL into the repository and out of it: segments, histories, `.backup` notes, `.partial`s, and the parts of a segment still being written.
//!
//! One name, one content, for ever. [`ClusterRepository::put_wal`] answers only when the object is durable and holds exactly these bytes;
//! if the name was taken, the object there is read back whole and proven before "already stored" is said.

use std::io::Seek;

use bytes::Bytes;
use walkeep_core::blake3::Blake3Sum;
use walkeep_core::layout::{Form, ObjectName, PartName};
use walkeep_core::parts::{Apart, Link, apart, longest_chain};
use walkeep_core::{Lsn, SegmentName, TimelineHistory, TimelineId, WalFileName};
use walkeep_store::several::StoredWhen;
use walkeep_store::{ErrorKind, ListRequest, Put, list_all};

use super::stored::StoredFile;
use super::{ClusterRepository, Error, Result, on_blocking_thread};
use crate::codec::{self, Description, FRONT};
use crate::encryption::fingerprint::Likeness;

/// The most a history, `.backup` note may hold; PostgreSQL writes a few lines.
const SMALL_FILE_LIMIT: u64 = 1 << 20;

/// How a file came to be in the repository.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stored {
    /// It was put there now: so many bytes were written.
    New {
        /// Bytes of the object.
        bytes: u64,
    },
    /// The same content was there already.
    Already,
}

/// A segment's object, to be put.
#[derive(Debug)]
pub struct PackedSegment {
    segment: SegmentName,
    description: Description,
    object: Bytes,
}

impl PackedSegment {
    /// BLAKE3 of the segment.
    pub fn hash(&self) -> Blake3Sum {
        self.description.blake3
    }
}

/// A file of the archive, proven by its hash.
#[derive(Debug, Clone)]
pub struct WalFile {
    /// What the object says of itself.
    pub description: Description,
    /// The content.
    pub content: Bytes,
}

impl ClusterRepository {
    /// Stores a file of the archive under its name.
    ///
    /// The content must have been checked (see `walkeep_core::page`). Fails with [`Error::Conflict`] if the name is taken by other content; a
    /// `.partial` of other content is stored beside the first, because two promotions may each leave one.
    pub async fn put_wal(&self, file: WalFileName, content: Bytes) -> Result<Stored> {
        match self.put_object(ObjectName::Wal(file), file.to_string(), self.start_of(file), self.limit_of(file), content.clone()).await {
            // Where nobody here knows what the other holds, it is kept as well.
            Err(Error::Conflict { .. } | Error::CannotDecrypt { .. }) if matches!(file, WalFileName::Partial(_)) => {
                let hash = hash_prefix(&codec::blake3(&content));
                let WalFileName::Partial(segment) = file else { unreachable!("matched above") };
                let name = ObjectName::OtherPartial { segment, hash };
                tracing::warn!(%file, "another .partial of this name is stored already; keeping this one beside it");
                self.put_object(name, file.to_string(), self.start_of(file), self.limit_of(file), content).await
            }
            Err(Error::Conflict { name, stored, offered }) if let WalFileName::History(timeline) = file => {
                // Two servers have made a timeline of this number: which, only their lineages tell.
                let told =
                    |content: &[u8]| TimelineHistory::parse(timeline, content).map_or("unreadable".into(), |history| history.to_string());
                let there = self.get_wal(file).await?.map_or_else(String::new, |there| told(&there.content));
                Err(Error::Conflict { name, stored: format!("{stored}: {there}"), offered: format!("{offered}: {}", told(&content)) })
            }
            result => result,
        }
    }

    /// Stores the bytes `[part.from, part.to)` of a segment that is not finished.
    pub async fn put_part(&self, part: PartName, content: Bytes) -> Result<Stored> {
        let start = self.part_start(part);
        let limit = u64::from(part.to - part.from);
        self.put_object(ObjectName::Part(part), part_title(part), Some(start), limit, content).await
    }

    /// Makes a segment's object out of the file that `open` opens, which has this hash. It is read in pieces: only the object is in memory.
    pub async fn pack_segment(
        &self,
        segment: SegmentName,
        hash: Blake3Sum,
        open: impl FnOnce() -> std::io::Result<std::fs::File> + Send + 'static,
    ) -> Result<PackedSegment> {
        let (description, level) = (self.describe_segment(segment, hash), self.wal_level);
        let sealer = self.sealer(&ObjectName::Wal(WalFileName::Segment(segment)))?;
        on_blocking_thread(move || {
            let object = open().and_then(|mut file| codec::encode_from(&description, &mut file, level));
            let sealed = object.and_then(|object| sealer.seal(Some(&description), object));
            sealed.map(|object| PackedSegment { segment, description, object })
        })
        .await?
        .map_err(Error::encode)
    }

    /// What makes the same of a file at hand, whose hash is found out on the way: CPU work, and reading.
    pub fn packer(
        &self,
        segment: SegmentName,
    ) -> Result<impl FnOnce(&mut std::fs::File) -> std::io::Result<PackedSegment> + Send + 'static> {
        let (description, level) = (self.describe_segment(segment, Blake3Sum::new([0; 32])), self.wal_level);
        let sealer = self.sealer(&ObjectName::Wal(WalFileName::Segment(segment)))?;
        Ok(move |file: &mut std::fs::File| {
            file.rewind()?;
            let (description, object) = codec::encode_hashing(description, file, level)?;
            let object = sealer.seal(Some(&description), object)?;
            Ok(PackedSegment { segment, description, object })
        })
    }

    /// Stores such an object; as [`ClusterRepository::put_wal`].
    pub async fn put_segment(&self, packed: &PackedSegment) -> Result<Stored> {
        let PackedSegment { segment, description, object } = packed;
        let file = WalFileName::Segment(*segment);
        self.put_packed(&ObjectName::Wal(file), self.limit_of(file), description, object.clone()).await
    }

    pub(super) fn describe_segment(&self, segment: SegmentName, hash: Blake3Sum) -> Description {
        let (system_identifier, length) = (self.identity().system_identifier, self.identity().segment_size.bytes());
        let start = Some(self.segment_start(segment));
        Description { format: 1, name: segment.to_string(), system_identifier, start, length, blake3: hash }
    }

    pub(super) async fn put_object(
        &self,
        name: ObjectName,
        title: String,
        start: Option<Lsn>,
        limit: u64,
        content: Bytes,
    ) -> Result<Stored> {
        let (system, level) = (self.identity().system_identifier, if start.is_some() { self.wal_level } else { self.level });
        let (sealer, keep) = (self.sealer(&name)?, self.keeps_copy(&name));
        let (description, object, plain) = on_blocking_thread(move || {
            let description = Description::of(title, system, start, &content);
            let plain = codec::encode(&description, &content, level)?;
            let object = sealer.seal(Some(&description), plain.clone())?;
            std::io::Result::Ok((description, object, keep.then_some(plain)))
        })
        .await?
        .map_err(Error::encode)?;
        // Whoever sees a part wants to compare with it; any other object may turn out to be there already, and to hold something else.
        let (before, behind) = if matches!(name, ObjectName::Part(_)) { (plain, None) } else { (None, plain) };
        if let Some(plain) = before {
            self.keep_copy(&name, &description, plain).await?;
        }
        let stored = self.put_packed(&name, limit, &description, object).await?;
        if let Some(plain) = behind {
            self.keep_copy(&name, &description, plain).await?;
        }
        Ok(stored)
    }

    async fn put_packed(&self, name: &ObjectName, limit: u64, description: &Description, object: Bytes) -> Result<Stored> {
        let key = self.key(name)?;
        let bytes = object.len() as u64;
        let put = match self.store().put_if_absent(&key, object.clone()).await {
            Err(error) if error.is_in_doubt() => self.put_in_doubt(name, description, object).await?,
            put => put,
        };
        match put {
            Ok(Put::Created) => Ok(Stored::New { bytes }),
            Ok(Put::AlreadySame) => Ok(Stored::Already),
            // Whether it is whole nobody can say who does not have its bytes: that it begins as it should is not enough.
            Err(error) if error.is_in_doubt() => match self.settle_conflict(name, limit, description).await {
                Err(conflict @ Error::Conflict { .. }) => Err(conflict),
                _ => Err(error.into()),
            },
            // Archived: something is there, and another repository may have it at hand.
            Err(error) if matches!(error.kind(), ErrorKind::AlreadyExists | ErrorKind::Archived) => {
                self.settle_conflict(name, limit, description).await.map_err(|error| error.in_comparing(&description.name))
            }
            Err(error) => Err(error.into()),
        }
    }

    /// Puts the object once more, where the store cannot vouch for the one that is there: in its place, if that was to hold the same. Whether it does is asked
    /// where it lies.
    pub(super) async fn put_in_doubt(&self, name: &ObjectName, offered: &Description, object: Bytes) -> Result<walkeep_store::Result<Put>> {
        let key = self.key(name)?;
        let each = self.each();
        let places = if each.is_empty() { std::slice::from_ref(self) } else { each.as_slice() };
        for place in places {
            match place.is_meant_to_be(name, offered).await {
                Ok(true) if place.store().replace_in_doubt(&key, object.clone()).await? => {
                    tracing::warn!(%key, repository = place.repository().url(), "an fsync of what was stored had failed: it is put once more, with the same content");
                }
                Ok(_) => {}
                Err(error) => tracing::debug!(%key, %error, "whether it is in doubt there cannot be asked"),
            }
        }
        Ok(self.store().put_if_absent(&key, object).await)
    }

    /// Whether what is there says of itself, in its first bytes, that it holds this; where this host can tell it only by reading all of it, whether it does.
    async fn is_meant_to_be(&self, name: &ObjectName, offered: &Description) -> Result<bool> {
        match self.likeness(name, offered).await? {
            Some(Likeness::Unknown) if !self.is_sealed(name) => {}
            Some(Likeness::Unknown) if self.can_read() => {
                let there = self.read(name, &offered.name, offered.length).await?;
                return Ok(there.is_some_and(|there| there.description.blake3 == offered.blake3));
            }
            likeness => return Ok(likeness == Some(Likeness::Same)),
        }
        let front = self.store().get(&self.key(name)?, Some(0..FRONT)).await?;
        Ok(codec::describe(&front).is_ok_and(|(there, _)| there.name == offered.name && there.blake3 == offered.blake3))
    }

    fn is_sealed(&self, name: &ObjectName) -> bool {
        self.identity().form == Form::Age && name.holds_data()
    }

    /// The key is taken by other bytes: the same content compressed differently, or another content?
    async fn settle_conflict(&self, name: &ObjectName, limit: u64, offered: &Description) -> Result<Stored> {
        if !self.store().several().is_some_and(|several| several.when() == StoredWhen::All) {
            return self.settle_here(name, limit, offered).await;
        }
        // Every one has to have it: that one of them does is not enough.
        for place in self.each() {
            place.settle_here(name, limit, offered).await?;
        }
        Ok(Stored::Already)
    }

    async fn settle_here(&self, name: &ObjectName, limit: u64, offered: &Description) -> Result<Stored> {
        match self.likeness(name, offered).await? {
            Some(Likeness::Same) => return Ok(Stored::Already),
            Some(Likeness::Other) => {
                let (stored, offered_hash) = ("another content, by its fingerprint".into(), format!("BLAKE3 {}", short(&offered.blake3)));
                return Err(Error::Conflict { name: offered.name.clone(), stored, offered: offered_hash });
            }
            Some(Likeness::Unknown) if name.holds_data() && !self.can_read() => return Err(self.not_comparable(name)),
            Some(Likeness::Unknown) | None => {}
        }
        let stored = self.read(name, &offered.name, limit).await?;
        match stored {
            Some(stored) if stored.description.blake3 == offered.blake3 => Ok(Stored::Already),
            Some(stored) => Err(Error::Conflict {
                name: offered.name.clone(),
                stored: format!("BLAKE3 {}", short(&stored.description.blake3)),
                offered: format!("BLAKE3 {}", short(&offered.blake3)),
            }),
            None => Err(Error::Store(walkeep_store::Error::new(ErrorKind::Transient, "put", &self.key(name)?))),
        }
    }

    /// A file of the archive by its name; `None` only if the repository was reached and proves it absent. Parts are not looked at: see
    /// [`ClusterRepository::get_tail`].
    pub async fn get_wal(&self, file: WalFileName) -> Result<Option<WalFile>> {
        let found = self.read(&ObjectName::Wal(file), &file.to_string(), self.limit_of(file)).await?;
        if found.is_none() {
            self.repository().prove_reached().await?;
        }
        Ok(found)
    }

    /// The same, not opened yet.
    pub async fn get_stored_wal(&self, file: WalFileName) -> Result<Option<StoredFile>> {
        let found = self.get_stored(&ObjectName::Wal(file), &file.to_string(), self.limit_of(file)).await?;
        if found.is_none() {
            self.repository().prove_reached().await?;
        }
        Ok(found)
    }

    /// Whether a segment is still stored that was stored before, with this content. One small request.
    pub async fn has_segment(&self, segment: SegmentName, hash: Blake3Sum) -> Result<bool> {
        let name = ObjectName::Wal(WalFileName::Segment(segment));
        if self.identity().form == Form::Age {
            let offered = self.describe_segment(segment, hash);
            return Ok(match self.likeness(&name, &offered).await? {
                Some(Likeness::Same) => true,
                Some(Likeness::Other) | None => false,
                // A host without a key of fingerprints compares nothing. With one, this is not what it stored: offered again it is read, or refused.
                Some(Likeness::Unknown) => !self.makes_fingerprints(&offered).await?,
            });
        }
        let key = self.key(&name)?;
        match self.store().get(&key, Some(0..FRONT)).await {
            Ok(front) => {
                let described = codec::describe(&front).map_err(|error| Error::codec(key.as_str(), error))?;
                Ok(described.0.blake3 == hash)
            }
            Err(error) if error.kind() == ErrorKind::NotFound => Ok(false),
            Err(error) => Err(error.into()),
        }
    }

    /// The parts stored of one segment, in the order of their keys.
    pub async fn list_parts(&self, segment: SegmentName) -> Result<Vec<PartName>> {
        let request = ListRequest { prefix: self.layout().parts_prefix(segment), ..ListRequest::default() };
        let page = list_all(self.store().as_ref(), request).await?;
        let parts = page.objects.iter().filter_map(|listed| match self.layout().parse(listed.key.as_str()) {
            Some(ObjectName::Part(part)) if u64::from(part.to) <= self.identity().segment_size.bytes() => Some(part),
            _ => None,
        });
        Ok(parts.collect())
    }

    /// One part, proven by its hash.
    pub async fn get_part(&self, part: PartName) -> Result<WalFile> {
        let name = ObjectName::Part(part);
        let length = u64::from(part.to - part.from);
        let key = self.layout().key(&name);
        let file = self.read(&name, &part_title(part), length).await?;
        match file {
            Some(file) if file.description.length == length => Ok(file),
            Some(_) => Err(Error::corrupt(key, "its length is not what its name says")),
            None => Err(Error::corrupt(key, "it was listed a moment ago and is gone")),
        }
    }

    /// Removes a part that is not needed any more.
    pub async fn remove_part(&self, part: PartName) -> Result<()> {
        let name = ObjectName::Part(part);
        self.store().delete(&self.key(&name)?).await?;
        self.forget_copy(&name).await
    }

    /// The unfinished segment as far as parts of it are stored without a hole, from its first byte; empty without parts.
    pub async fn get_tail(&self, segment: SegmentName) -> Result<Bytes> {
        Ok(self.get_tail_and_more(segment).await?.0)
    }

    /// The same, and what is stored behind a hole.
    pub async fn get_tail_and_more(&self, segment: SegmentName) -> Result<(Bytes, Option<Apart>)> {
        let parts = self.list_parts(segment).await?;
        Ok((self.get_chain(segment, &longest_chain(&parts)).await?, apart(&parts)))
    }

    /// Fails if parts of `segment` are stored whose bytes are not those of `content`, its beginning: they may have been acknowledged, and nobody reads them
    /// any more once the segment is stored whole.
    pub async fn compare_with_parts(&self, segment: SegmentName, content: &[u8]) -> Result<()> {
        let chain = longest_chain(&self.list_parts(segment).await?);
        match self.get_chain(segment, &chain).await {
            Ok(tail) => same_bytes(segment, 0, &tail, content),
            Err(locked @ Error::CannotDecrypt { .. }) => match self.compare_unread(&chain, content).await? {
                true => Ok(()),
                false => self.if_readable(Err(locked), "parts of a segment with what takes their place").map(|_: Option<()>| ()),
            },
            // Nobody can read them now: the segment mends that.
            Err(Error::Corrupt { key, reason }) => {
                tracing::warn!(%segment, key, reason, "parts of it cannot be compared with the whole segment");
                Ok(())
            }
            Err(error) => Err(error),
        }
    }

    /// The same by the parts' fingerprints: whether all of them tell.
    async fn compare_unread(&self, chain: &[Link], content: &[u8]) -> Result<bool> {
        let mut all = true;
        for Link { part, to } in chain {
            // Of one that a later writer has cut off, the rest may be anything.
            let bytes = content.get(part.from as usize..part.to as usize).filter(|_| *to == part.to);
            let Some(bytes) = bytes else {
                all = false;
                continue;
            };
            let start = Some(self.part_start(*part));
            let offered = Description::of(part_title(*part), self.identity().system_identifier, start, bytes);
            match self.likeness(&ObjectName::Part(*part), &offered).await? {
                Some(Likeness::Same) => {}
                Some(Likeness::Other) => {
                    let (stored, offered) = ("another content, by its fingerprint".into(), "other bytes from this server".into());
                    return Err(Error::Conflict { name: part_title(*part), stored, offered });
                }
                Some(Likeness::Unknown) | None => all = false,
            }
        }
        Ok(all)
    }

    /// The bytes of parts that form a chain.
    pub async fn get_chain(&self, segment: SegmentName, chain: &[Link]) -> Result<Bytes> {
        let mut tail: Vec<u8> = Vec::new();
        for Link { part, to } in chain.iter().copied().filter(|link| link.part.segment == segment) {
            let content = self.get_part(part).await?.content.slice(..(to - part.from) as usize);
            // Parts may overlap after a restart; what they share must be the same bytes.
            let shared = tail.len() - part.from as usize;
            if tail[part.from as usize..] != content[..shared.min(content.len())] {
                return Err(Error::corrupt(self.layout().key(&ObjectName::Part(part)), "it contradicts the part before it"));
            }
            tail.extend_from_slice(&content[shared..]);
        }
        Ok(Bytes::from(tail))
    }

    /// A timeline's history; `None` if it is proven absent.
    pub async fn get_history(&self, timeline: TimelineId) -> Result<Option<TimelineHistory>> {
        let file = WalFileName::History(timeline);
        let Some(found) = self.get_wal(file).await? else { return Ok(None) };
        let history = TimelineHistory::parse(timeline, &found.content);
        history.map(Some).map_err(|error| Error::corrupt(self.layout().wal_key(file), error))
    }

    pub(super) fn limit_of(&self, file: WalFileName) -> u64 {
        match file {
            WalFileName::Segment(_) | WalFileName::Partial(_) => self.identity().segment_size.bytes(),
            WalFileName::History(_) | WalFileName::BackupHistory { .. } => SMALL_FILE_LIMIT,
        }
    }

    pub(super) fn start_of(&self, file: WalFileName) -> Option<Lsn> {
        match file {
            WalFileName::Segment(segment) | WalFileName::Partial(segment) => Some(self.segment_start(segment)),
            WalFileName::History(_) | WalFileName::BackupHistory { .. } => None,
        }
    }

    fn part_start(&self, part: PartName) -> Lsn {
        self.segment_start(part.segment).saturating_add(u64::from(part.from))
    }

    pub(super) fn segment_start(&self, segment: SegmentName) -> Lsn {
        let size = self.identity().segment_size;
        segment.number(size).map_or(Lsn::ZERO, |number| number.start(size))
    }
}

/// Fails if what is `stored` of a segment and what is `offered`, both from byte `from` on, differ where both have something.
pub fn same_bytes(segment: SegmentName, from: usize, stored: &[u8], offered: &[u8]) -> Result<()> {
    let shared = stored.len().min(offered.len());
    if stored[..shared] == offered[..shared] {
        return Ok(());
    }
    let differs = from + stored.iter().zip(offered).take_while(|(one, other)| one == other).count();
    Err(Error::Conflict {
        name: format!("{segment} from byte {differs}"),
        stored: "bytes received or archived before".into(),
        offered: "other bytes from this server".into(),
    })
}

pub(super) fn part_title(part: PartName) -> String {
    format!("{} {:08X}-{:08X}.{:08X}", part.segment, part.from, part.to, part.epoch)
}

pub(super) fn hash_prefix(hash: &Blake3Sum) -> u32 {
    let [a, b, c, d, ..] = *hash.bytes();
    u32::from_be_bytes([a, b, c, d])
}

/// Enough of a sum to tell two apart.
fn short(hash: &Blake3Sum) -> String {
    hex::encode(&hash.bytes()[..8])
}
