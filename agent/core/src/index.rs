//! The index of the WAL: what the records of each segment say, so that a plan need not read them.
//!
//! Made while WAL is archived, or out of what is stored ([`Indexer`]): a [`Summary`] a segment, rows of them as [`Digest`]s, and digests of
//! digests, three levels of them, so that a million segments are known after reading a few dozen objects ([`cover`]). Which blocks changed is
//! kept beside it ([`BlockMap`]), for base backups.
//!
//! The index is derived: every question can be answered from the WAL itself, and what a digest does not know is read there. It never decides
//! that WAL exists, nor where a recovery stops: the segment of the stop is always read.
//!
//! A record belongs to the segment in which it *ends*: only then is it known. So a summary is complete as soon as its segment was read.

mod blocks;
pub mod cover;
mod digest;
mod indexer;
mod map;
mod summary;

pub use blocks::BlockChanges;
pub use digest::{BlocksName, Digest, DigestName, Level, ReadDigestError};
pub use indexer::{IndexedSegment, Indexer};
pub use map::{BlockMap, ReadBlocksError};
pub use summary::{Run, Summary, Transactions, WalLevelAt};
