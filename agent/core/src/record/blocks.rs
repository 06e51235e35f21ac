//! Block references: which pages a record changes, whatever its resource manager, and where its own data lies behind them
//! (`xlogrecord.h`; the checks are those of `DecodeXLogRecord`).
//!
//! What resource managers do with the data is not their business here.

use crate::identity::MajorVersion;
use crate::le::{u16_at, u32_at};

use super::HEADER_SIZE;
use super::relation::{Fork, RelFileLocator};

/// Bytes of a relation's page: `BLCKSZ` of every packaged PostgreSQL.
const BLOCK_SIZE: u16 = 8192;
const MAX_BLOCK_ID: u8 = 32;
const MAIN_DATA_SHORT: u8 = 255;
const MAIN_DATA_LONG: u8 = 254;
const ORIGIN: u8 = 253;
const TOP_LEVEL_XID: u8 = 252;

const FORK_MASK: u8 = 0x0F;
const HAS_IMAGE: u8 = 0x10;
const HAS_DATA: u8 = 0x20;
const WILL_INIT: u8 = 0x40;
const SAME_RELATION: u8 = 0x80;

/// A page that a record changes, or needs.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct BlockReference<'a> {
    /// The reference's number in the record; numbers grow, and may leave some out.
    pub id: u8,
    /// The relation's files.
    pub relation: RelFileLocator,
    /// Which of them.
    pub fork: Fork,
    /// The page in that file.
    pub block: u32,
    /// Whether replay makes the page anew.
    pub will_init: bool,
    /// The whole page.
    pub image: Option<PageImage<'a>>,
    /// What the resource manager says of this page. May be left out where there is an image.
    pub data: &'a [u8],
}

/// A page as a record holds it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct PageImage<'a> {
    /// The page, without the hole, and compressed where it says so.
    pub bytes: &'a [u8],
    /// Where zeros were left out.
    pub hole_offset: u16,
    /// How many.
    pub hole_length: u16,
    /// How it is compressed.
    pub compression: Option<Compression>,
    /// Whether replay writes it; else it serves `wal_consistency_checking`.
    pub apply: bool,
}

/// `wal_compression` of an image.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Compression {
    /// PostgreSQL's own; the only one before 15.
    Pglz,
    /// LZ4.
    Lz4,
    /// zstd.
    Zstd,
}

/// What stands before a record's data.
#[derive(Clone, Copy, Debug)]
pub(super) struct Envelope {
    /// Where the headers end and the data of the blocks begins.
    headers_end: usize,
    /// Where that ends and the main data begins.
    main_start: usize,
    /// How many blocks are referred to.
    blocks: u8,
    origin: Option<u16>,
    top_level_xid: Option<u32>,
}

impl Envelope {
    /// Reads the headers of a whole record; `None` if they do not add up to its length.
    #[inline]
    pub(super) fn parse(record: &[u8], version: MajorVersion) -> Option<Self> {
        let mut rest = record.get(HEADER_SIZE..)?;
        let (mut of_blocks, mut main, mut blocks) = (0, 0, 0);
        let (mut origin, mut top_level_xid, mut last_id) = (None, None, None);
        let mut relation_known = false;
        while rest.len() > of_blocks {
            match *rest.first()? {
                MAIN_DATA_SHORT => {
                    main = usize::from(*rest.get(1)?);
                    rest = &rest[2..];
                    break;
                }
                MAIN_DATA_LONG => {
                    main = usize::try_from(u32_at(rest, 1)?).ok()?;
                    rest = &rest[5..];
                    break;
                }
                ORIGIN => {
                    origin = Some(u16_at(rest, 1)?);
                    rest = &rest[3..];
                }
                TOP_LEVEL_XID => {
                    top_level_xid = Some(u32_at(rest, 1)?);
                    rest = &rest[5..];
                }
                id => {
                    let (header, after) = BlockHeader::read(rest, version)?;
                    if id > MAX_BLOCK_ID || last_id.is_some_and(|last| id <= last) {
                        return None;
                    }
                    relation_known |= header.relation.is_some();
                    if !relation_known {
                        return None;
                    }
                    last_id = Some(id);
                    of_blocks += usize::from(header.data_length) + header.image.map_or(0, |image| usize::from(image.length));
                    blocks += 1;
                    rest = after;
                }
            }
        }
        let main_start = record.len().checked_sub(main)?;
        let headers_end = record.len() - rest.len();
        (rest.len() == of_blocks.checked_add(main)?).then_some(Self { headers_end, main_start, blocks, origin, top_level_xid })
    }

    pub(super) fn main_data<'a>(&self, record: &'a [u8]) -> &'a [u8] {
        &record[self.main_start..]
    }

    pub(super) fn origin(&self) -> Option<u16> {
        self.origin
    }

    pub(super) fn top_level_xid(&self) -> Option<u32> {
        self.top_level_xid
    }

    pub(super) fn blocks<'a>(&self, record: &'a [u8], version: MajorVersion) -> Blocks<'a> {
        let headers = &record[HEADER_SIZE..self.headers_end];
        Blocks { left: self.blocks, headers, data: &record[self.headers_end..self.main_start], relation: None, version }
    }
}

/// The block references of a record, in the order of their numbers.
#[derive(Clone, Debug)]
pub struct Blocks<'a> {
    left: u8,
    headers: &'a [u8],
    data: &'a [u8],
    relation: Option<RelFileLocator>,
    version: MajorVersion,
}

impl<'a> Iterator for Blocks<'a> {
    type Item = BlockReference<'a>;

    #[inline]
    fn next(&mut self) -> Option<BlockReference<'a>> {
        if self.left == 0 {
            return None;
        }
        loop {
            match *self.headers.first()? {
                ORIGIN => self.headers = self.headers.get(3..)?,
                TOP_LEVEL_XID => self.headers = self.headers.get(5..)?,
                _ => break,
            }
        }
        let id = *self.headers.first()?;
        let (header, rest) = BlockHeader::read(self.headers, self.version)?;
        (self.headers, self.left) = (rest, self.left - 1);
        self.relation = header.relation.or(self.relation);
        let image = match header.image {
            Some(image) => {
                let (bytes, rest) = self.data.split_at_checked(image.length.into())?;
                self.data = rest;
                Some(image.of(bytes))
            }
            None => None,
        };
        let (data, rest) = self.data.split_at_checked(header.data_length.into())?;
        self.data = rest;
        let will_init = header.flags & WILL_INIT != 0;
        Some(BlockReference { id, relation: self.relation?, fork: header.fork, block: header.block, will_init, image, data })
    }

    fn size_hint(&self) -> (usize, Option<usize>) {
        (self.left.into(), Some(self.left.into()))
    }
}

/// `XLogRecordBlockHeader` with what follows it.
#[derive(Clone, Copy)]
struct BlockHeader {
    flags: u8,
    fork: Fork,
    data_length: u16,
    image: Option<ImageHeader>,
    relation: Option<RelFileLocator>,
    block: u32,
}

impl BlockHeader {
    #[inline(always)]
    fn read(bytes: &[u8], version: MajorVersion) -> Option<(Self, &[u8])> {
        let (&[_, flags, low, high], mut rest) = bytes.split_first_chunk::<4>()?;
        let data_length = u16::from_le_bytes([low, high]);
        if (flags & HAS_DATA != 0) != (data_length > 0) {
            return None;
        }
        let mut image = None;
        if flags & HAS_IMAGE != 0 {
            let (header, after) = ImageHeader::read(rest, version)?;
            (image, rest) = (Some(header), after);
        }
        let mut relation = None;
        if flags & SAME_RELATION == 0 {
            relation = Some(RelFileLocator::read_at(rest, 0)?);
            rest = &rest[RelFileLocator::SIZE..];
        }
        let block = u32_at(rest, 0)?;
        let fork = Fork::of_number((flags & FORK_MASK).into())?;
        Some((Self { flags, fork, data_length, image, relation, block }, &rest[4..]))
    }
}

/// `XLogRecordBlockImageHeader`.
#[derive(Clone, Copy)]
struct ImageHeader {
    length: u16,
    hole_offset: u16,
    hole_length: u16,
    compression: Option<Compression>,
    apply: bool,
}

impl ImageHeader {
    fn read(bytes: &[u8], version: MajorVersion) -> Option<(Self, &[u8])> {
        let (&[a, b, c, d, info], mut rest) = bytes.split_first_chunk::<5>()?;
        let (length, hole_offset) = (u16::from_le_bytes([a, b]), u16::from_le_bytes([c, d]));
        // 15 brought further compressions and moved the bits: BKPIMAGE_IS_COMPRESSED was 2, BKPIMAGE_APPLY 4.
        let (apply, compression) = if version.get() >= 15 {
            let compression = match info & 0x1C {
                0 => None,
                0x04 => Some(Compression::Pglz),
                0x08 => Some(Compression::Lz4),
                0x10 => Some(Compression::Zstd),
                _ => return None,
            };
            (info & 0x02 != 0, compression)
        } else {
            (info & 0x04 != 0, (info & 0x02 != 0).then_some(Compression::Pglz))
        };
        let has_hole = info & 0x01 != 0;
        let hole_length = match (compression, has_hole) {
            (Some(_), true) => {
                let length = u16_at(rest, 0)?;
                rest = &rest[2..];
                length
            }
            (Some(_), false) => 0,
            (None, _) => BLOCK_SIZE.checked_sub(length)?,
        };
        Some((Self { length, hole_offset, hole_length, compression, apply }, rest))
    }

    fn of(self, bytes: &[u8]) -> PageImage<'_> {
        let Self { hole_offset, hole_length, compression, apply, .. } = self;
        PageImage { bytes, hole_offset, hole_length, compression, apply }
    }
}
