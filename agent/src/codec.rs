//! Stored objects: one zstd file each, its description in a skippable frame at the front.
//!
//! `zstd -d` opens an object without Walkeep, since decoders pass over skippable frames (RFC 8878, section 3.1.2). The
//! description binds the bytes to their name, cluster and place, so an object that was swapped for another is found out, and one ranged get
//! of [`FRONT`] bytes reads it. Nothing here knows stores.

use std::io::Read;

use bytes::Bytes;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use walkeep_core::blake3::Blake3Sum;
use walkeep_core::{Lsn, SystemIdentifier};

/// The skippable frame's magic number: the last of the sixteen that RFC 8878 sets aside.
const SKIPPABLE_MAGIC: u32 = 0x184D_2A5F;
/// Bytes to read from the front of an object to be sure to have its description.
pub const FRONT: u64 = 4096;

/// What an object says of itself.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Description {
    /// Version of this description: 1.
    pub format: u32,
    /// The file's name as PostgreSQL has it; for a part, its key's last component.
    pub name: String,
    /// The cluster's system identifier.
    pub system_identifier: SystemIdentifier,
    /// Where the first byte lies in the WAL, if it is WAL.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub start: Option<Lsn>,
    /// Plain bytes.
    pub length: u64,
    /// BLAKE3 of the plain bytes.
    pub blake3: Blake3Sum,
}

impl Description {
    /// Describes `plain`.
    pub fn of(name: String, system_identifier: SystemIdentifier, start: Option<Lsn>, plain: &[u8]) -> Self {
        Self { format: 1, name, system_identifier, start, length: plain.len() as u64, blake3: blake3(plain) }
    }
}

/// An object's bytes are not what Walkeep stored.
#[derive(Debug, thiserror::Error)]
pub enum CodecError {
    /// No description at the front.
    #[error("it does not begin with Walkeep's description")]
    NoDescription,
    /// A description of a later Walkeep.
    #[error("it has description format {0}; this Walkeep reads format 1: upgrade Walkeep")]
    Format(u32),
    /// It says more bytes than such an object can have.
    #[error("it claims {claimed} bytes, more than the {limit} such an object can have")]
    TooLong {
        /// Bytes it claims.
        claimed: u64,
        /// The most it may be.
        limit: u64,
    },
    /// zstd refuses it.
    #[error("zstd cannot open it")]
    Zstd(#[source] std::io::Error),
    /// The plain bytes are not the described ones.
    #[error("its content does not match its own BLAKE3 sum or length")]
    Mismatch,
}

/// Bytes of a file that are in memory at a time.
const PIECE: usize = 256 << 10;

/// BLAKE3 of what `plain` holds, and how many bytes that is.
pub fn blake3_of(plain: &mut impl Read) -> std::io::Result<(Blake3Sum, u64)> {
    let mut hashing = Hashing { inner: plain, hash: blake3::Hasher::new(), length: 0 };
    std::io::copy(&mut std::io::BufReader::with_capacity(PIECE, &mut hashing), &mut std::io::sink())?;
    Ok(hashing.finish())
}

/// Passes bytes on and hashes them.
struct Hashing<'a, R> {
    inner: &'a mut R,
    hash: blake3::Hasher,
    length: u64,
}

impl<R> Hashing<'_, R> {
    fn finish(self) -> (Blake3Sum, u64) {
        (Blake3Sum::new(*self.hash.finalize().as_bytes()), self.length)
    }
}

impl<R: Read> Read for Hashing<'_, R> {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        let read = self.inner.read(buffer)?;
        self.hash.update(&buffer[..read]);
        self.length += read as u64;
        Ok(read)
    }
}

/// Makes the object that holds what `plain` gives, piece by piece; fails if that is not what is described. CPU work.
pub fn encode_from(description: &Description, plain: &mut impl Read, level: i32) -> std::io::Result<Bytes> {
    let (found, object) = encode_hashing(description.clone(), plain, level)?;
    if found != *description {
        return Err(changed(description));
    }
    Ok(object)
}

/// The same for bytes whose hash is not known yet: what is described has it then. In one pass, so that what is compressed is what was hashed.
pub fn encode_hashing(mut description: Description, plain: &mut impl Read, level: i32) -> std::io::Result<(Description, Bytes)> {
    let mut object = front(&description)?;
    let mut compressor = zstd::stream::write::Encoder::new(&mut object, level)?;
    compressor.include_checksum(true)?;
    compressor.include_contentsize(true)?;
    compressor.set_pledged_src_size(Some(description.length))?;
    let mut hashing = Hashing { inner: plain, hash: blake3::Hasher::new(), length: 0 };
    std::io::copy(&mut std::io::BufReader::with_capacity(PIECE, &mut hashing), &mut compressor)?;
    let (hash, length) = hashing.finish();
    compressor.finish()?;
    if length != description.length {
        return Err(changed(&description));
    }
    description.blake3 = hash;
    // A hash has one length, whatever it is.
    let front = front(&description)?;
    object[..front.len()].copy_from_slice(&front);
    // What grew by doubling may be twice what is used, and waits here until the store has it.
    object.shrink_to_fit();
    Ok((description, Bytes::from(object)))
}

fn changed(description: &Description) -> std::io::Error {
    std::io::Error::new(std::io::ErrorKind::InvalidData, format!("{} changed while it was compressed", description.name))
}

/// An object up to its data.
fn front(description: &Description) -> std::io::Result<Vec<u8>> {
    Ok(note(&serde_json::to_vec(description)?))
}

/// A frame with `text` that decoders pass over.
pub fn note(text: &[u8]) -> Vec<u8> {
    let mut frame = Vec::with_capacity(8 + text.len());
    frame.extend_from_slice(&SKIPPABLE_MAGIC.to_le_bytes());
    frame.extend_from_slice(&(text.len() as u32).to_le_bytes());
    frame.extend_from_slice(text);
    frame
}

/// SHA-256 of `bytes`.
pub fn sha256(bytes: &[u8]) -> [u8; 32] {
    Sha256::digest(bytes).into()
}

/// Makes the object that holds `plain`. CPU work: call it on a blocking thread.
pub fn encode(description: &Description, plain: &[u8], level: i32) -> std::io::Result<Bytes> {
    let mut object = front(description)?;
    object.extend_from_slice(&compress(plain, level)?);
    Ok(Bytes::from(object))
}

/// One zstd frame with its content size and checksum.
pub fn compress(plain: &[u8], level: i32) -> std::io::Result<Vec<u8>> {
    Compressor::new(level)?.compress(plain)
}

/// Makes frames, one after the other, with one piece of working memory.
pub struct Compressor(zstd::bulk::Compressor<'static>);

impl Compressor {
    /// For frames of this level.
    pub fn new(level: i32) -> std::io::Result<Self> {
        let mut compressor = zstd::bulk::Compressor::new(level)?;
        compressor.include_checksum(true)?;
        compressor.include_contentsize(true)?;
        Ok(Self(compressor))
    }

    /// One frame with its content size and checksum.
    pub fn compress(&mut self, plain: &[u8]) -> std::io::Result<Vec<u8>> {
        let mut frame = self.0.compress(plain)?;
        // It was made for the worst case, and may wait for its pack.
        frame.shrink_to_fit();
        Ok(frame)
    }
}

/// BLAKE3 of `bytes`.
pub fn blake3(bytes: &[u8]) -> Blake3Sum {
    Blake3Sum::new(*blake3::hash(bytes).as_bytes())
}

/// Opens frames, one after the other, with one piece of working memory.
pub struct Decompressor {
    zstd: zstd::bulk::Decompressor<'static>,
    plain: Vec<u8>,
}

impl Decompressor {
    /// For any frames.
    pub fn new() -> std::io::Result<Self> {
        Ok(Self { zstd: zstd::bulk::Decompressor::new()?, plain: Vec::new() })
    }

    /// Opens one frame made by [`compress`], which must hold exactly `length` bytes.
    pub fn decompress(&mut self, frame: &[u8], length: usize) -> std::io::Result<&[u8]> {
        self.plain.clear();
        self.plain.reserve(length);
        self.zstd.decompress_to_buffer(frame, &mut self.plain)?;
        check_length(self.plain.len(), length)?;
        Ok(&self.plain)
    }
}

fn check_length(found: usize, length: usize) -> std::io::Result<()> {
    if found == length {
        return Ok(());
    }
    Err(std::io::Error::new(std::io::ErrorKind::InvalidData, format!("{found} bytes instead of {length}")))
}

/// Opens one frame made by [`compress`], which must hold exactly `length` bytes.
pub fn decompress(frame: &[u8], length: usize) -> std::io::Result<Vec<u8>> {
    let plain = zstd::bulk::decompress(frame, length)?;
    check_length(plain.len(), length)?;
    Ok(plain)
}

/// Reads the description from an object's first bytes; answers it and where the data begins.
pub fn describe(front: &[u8]) -> Result<(Description, usize), CodecError> {
    let word = |at: usize| front.get(at..at + 4).and_then(|b| b.try_into().ok()).map(u32::from_le_bytes);
    let length = match (word(0), word(4)) {
        (Some(SKIPPABLE_MAGIC), Some(length)) => length as usize,
        _ => return Err(CodecError::NoDescription),
    };
    let text = front.get(8..8usize.saturating_add(length)).ok_or(CodecError::NoDescription)?;
    let description: Description = serde_json::from_slice(text).map_err(|_| CodecError::NoDescription)?;
    match description.format {
        1 => Ok((description, 8 + length)),
        other => Err(CodecError::Format(other)),
    }
}

/// Opens an object of at most `limit` plain bytes and proves its content by the described hash. CPU work.
pub fn decode(object: &[u8], limit: u64) -> Result<(Description, Bytes), CodecError> {
    let (description, data) = describe_within(object, limit)?;
    let plain = decompress(&object[data..], description.length as usize).map_err(CodecError::Zstd)?;
    if blake3(&plain) != description.blake3 {
        return Err(CodecError::Mismatch);
    }
    Ok((description, Bytes::from(plain)))
}

/// The same piece by piece, none longer than [`PIECE`]. What `take` was given is proven only when this succeeds.
pub fn decode_pieces<E: From<CodecError>>(
    object: &[u8],
    limit: u64,
    mut take: impl FnMut(&[u8]) -> Result<(), E>,
) -> Result<Description, E> {
    let (description, data) = describe_within(object, limit)?;
    let mut plain = zstd::stream::read::Decoder::with_buffer(&object[data..]).map_err(CodecError::Zstd)?;
    let mut hashing = Hashing { inner: &mut plain, hash: blake3::Hasher::new(), length: 0 };
    let mut piece = vec![0; PIECE.min(description.length as usize + 1)];
    loop {
        let read = fill(&mut hashing, &mut piece).map_err(CodecError::Zstd)?;
        if hashing.length > description.length {
            return Err(CodecError::Mismatch.into());
        }
        if read == 0 {
            break;
        }
        take(&piece[..read])?;
    }
    match hashing.finish() == (description.blake3, description.length) {
        true => Ok(description),
        false => Err(CodecError::Mismatch.into()),
    }
}

/// Reads until `buffer` is full or nothing comes any more; answers how much came.
fn fill(from: &mut impl Read, buffer: &mut [u8]) -> std::io::Result<usize> {
    let mut filled = 0;
    while filled < buffer.len() {
        match from.read(&mut buffer[filled..])? {
            0 => break,
            read => filled += read,
        }
    }
    Ok(filled)
}

fn describe_within(object: &[u8], limit: u64) -> Result<(Description, usize), CodecError> {
    let (description, data) = describe(object)?;
    match description.length > limit {
        true => Err(CodecError::TooLong { claimed: description.length, limit }),
        false => Ok((description, data)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn object(plain: &[u8]) -> Bytes {
        let description = Description::of("000000010000000000000003".into(), SystemIdentifier::new(7), Some(Lsn::new(3 << 24)), plain);
        encode(&description, plain, 1).unwrap()
    }

    fn in_pieces(object: &[u8], limit: u64) -> Result<Vec<u8>, CodecError> {
        let mut plain = Vec::new();
        decode_pieces::<CodecError>(object, limit, |piece| {
            plain.extend_from_slice(piece);
            Ok(())
        })?;
        Ok(plain)
    }

    #[test]
    fn a_large_object_comes_in_pieces_and_a_short_or_long_one_is_refused() {
        let plain: Vec<u8> = (0..3 * PIECE + 5).map(|at| (at / 7) as u8).collect();
        assert_eq!(in_pieces(&object(&plain), plain.len() as u64).unwrap(), plain);
        assert!(matches!(in_pieces(&object(&plain), PIECE as u64), Err(CodecError::TooLong { .. })));
        // Another content behind this description.
        let described = |length: usize| Description::of("x".into(), SystemIdentifier::new(7), None, &plain[..length]);
        for (says, holds) in [(plain.len(), 2 * PIECE), (PIECE, plain.len()), (0, 1), (1, 0)] {
            let object = encode(&described(says), &plain[..holds], 1).unwrap();
            assert!(matches!(in_pieces(&object, plain.len() as u64), Err(CodecError::Mismatch)), "{says} {holds}");
        }
    }

    #[test]
    fn zstd_opens_an_object_without_walkeep() {
        assert_eq!(zstd::decode_all(&object(b"some WAL")[..]).unwrap(), b"some WAL");
    }

    #[test]
    fn a_claim_beyond_the_limit_is_refused_before_memory_is_taken() {
        assert!(matches!(decode(&object(&[0; 2000]), 1999), Err(CodecError::TooLong { claimed: 2000, limit: 1999 })));
    }

    #[test]
    fn the_description_is_read_from_the_front_alone() {
        let object = object(&[7; 100_000]);
        let (description, _) = describe(&object[..object.len() - 1]).unwrap();
        assert_eq!((description.length, description.name.as_str()), (100_000, "000000010000000000000003"));
    }

    proptest! {
        #[test]
        fn any_flipped_byte_is_found_or_harmless(plain in proptest::collection::vec(any::<u8>(), 0..600), at: prop::sample::Index, bit in 0u8..8) {
            let whole = object(&plain);
            let mut flipped = whole.to_vec();
            let at = at.index(flipped.len());
            flipped[at] ^= 1 << bit;
            if let Ok((_, read)) = decode(&flipped, 10_000) {
                prop_assert_eq!(&read[..], &plain[..]);
            }
            if let Ok(read) = in_pieces(&flipped, 10_000) {
                prop_assert_eq!(&read[..], &plain[..]);
            }
        }

        #[test]
        fn any_bytes_at_all_are_an_error_not_a_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            prop_assert!(decode(&bytes, 10_000).is_err());
            prop_assert!(in_pieces(&bytes, 10_000).is_err());
        }

        #[test]
        fn what_comes_in_pieces_round_trips(plain in proptest::collection::vec(any::<u8>(), 0..5000)) {
            let description = Description::of("x".into(), SystemIdentifier::new(7), None, &plain);
            prop_assert_eq!(blake3_of(&mut &plain[..]).unwrap(), (description.blake3, description.length));
            let object = encode_from(&description, &mut &plain[..], 3).unwrap();
            let unknown = Description { blake3: Blake3Sum::new([0; 32]), ..description.clone() };
            prop_assert_eq!(encode_hashing(unknown, &mut &plain[..], 3).unwrap(), (description.clone(), object.clone()));
            prop_assert_eq!(&decode(&object, 5000).unwrap().1[..], &plain[..]);
            // zstd would not give more than was pledged; a change of the same length is found by the hash.
            let mut changed = plain.clone();
            if let Some(byte) = changed.first_mut() {
                *byte ^= 1;
                prop_assert!(encode_from(&description, &mut &changed[..], 3).is_err());
            }
        }

        #[test]
        fn content_round_trips(plain in proptest::collection::vec(any::<u8>(), 0..5000)) {
            let (_, read) = decode(&object(&plain), 5000).unwrap();
            prop_assert_eq!(&read[..], &plain[..]);
            prop_assert_eq!(in_pieces(&object(&plain), 5000).unwrap(), plain);
        }
    }
}
