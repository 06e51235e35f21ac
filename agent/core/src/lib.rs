//! Walkeep's decisions, as pure values and functions.
//!
//! What the agent knows about PostgreSQL's files and its own repository is parsed, compared and decided here; nothing here opens a
//! file or a socket, asks the clock or the environment, or starts a thread. The agent reads bytes, hands them in, and carries out
//! what comes back. The wall is checked by `make test` (`cargo tree`) and by `clippy.toml`.
#![deny(missing_docs)]

pub mod alarm;
pub mod artifact;
pub mod audit;
pub mod backup;
pub mod blake3;
pub mod catalog;
pub mod changes;
pub mod control;
pub mod data_directory;
pub mod decoder;
pub mod drill;
pub mod event;
pub mod expiry;
pub mod history;
pub mod identifier;
pub mod identity;
pub mod index;
pub mod journal;
pub mod kind;
pub mod label;
pub mod lag;
pub mod layout;
mod le;
pub mod lease;
pub mod lsn;
pub mod manifest;
pub mod names;
pub mod page;
pub mod page_checksum;
pub mod partial;
pub mod parts;
pub mod picture;
pub mod plan;
pub mod price;
pub mod recipe;
pub mod record;
pub mod relation_file;
pub mod relative_path;
pub mod resume;
pub mod retention;
pub mod safety;
pub mod schedule;
pub mod sealed;
pub mod seam;
pub mod segment;
pub mod sha256;
pub mod slot;
mod sum;
pub mod tablespace_map;
pub mod tar_header;
pub mod target;
pub mod time;
pub mod verify;
pub mod wal_file;

pub use history::TimelineHistory;
pub use identity::{MajorVersion, SystemIdentifier, TimelineId};
pub use lsn::Lsn;
pub use segment::{SegmentName, SegmentNumber, SegmentSize};
pub use time::PgTimestamp;
pub use wal_file::WalFileName;
