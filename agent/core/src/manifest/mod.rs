//! A base backup's manifest: which files it has and where their bytes lie.
//!
//! One JSON value a line (read it with `zstd -d | jq`), so that both ends need memory for one line and the table of packs only:
//!
//! ```text
//! {"format":2,"backup":"20261121T034712Z-0000000002000028","extent_max":1048576}
//! {"pack":0,"id":"3a7b…"}
//! {"path":"base/5","kind":"dir","mode":448}
//! {"path":"base/5/1234","kind":"file","mode":384,"size":8192,"extents":[[0,0,2211,8192,"…"]]}
//! {"path":"base/5/1235","kind":"file","mode":384,"size":24576,"extents":[[0,2211,900,16384,"…"],[1,0,411,8192,"…"]],"runs":[[0,0,8192],[1,0,8192],[8192]]}
//! {"entries":3,"bytes":32768,"sha256":"…"}
//! ```
//!
//! An extent is `[pack, offset, stored length, plain length, BLAKE3 of the plain bytes]`; the number of a pack is that of the line
//! which introduced it. A file is its extents, one after the other; or, where it has runs, these one after the other: `[extent, from, length]` is a stretch
//! of an extent, `[length]` are zeros. So a file of which some blocks changed is made of older extents and of one that holds the changed blocks. The last
//! line closes the manifest: it counts the entries and carries the SHA-256 of all lines before it,
//! their line feeds included. Everything read is checked, since a manifest is input. Reading does not see two entries of one path
//! (that would need memory for all of them): whoever writes the files must refuse to create one twice.
//!
//! [`content`] is what a file is made of, [`lines`] the text; how a changed file is put together is [`crate::recipe`]'s.

pub mod content;
pub mod lines;

use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};

use crate::blake3::Blake3Sum;
use crate::layout::{BackupId, PackId};
use crate::relative_path::RelativePath;
use crate::sha256::Sha256Sum;
pub use content::{Content, Run, Source};
pub use lines::{ManifestReader, ManifestWriter};

/// The form written by this version.
pub const MANIFEST_FORMAT: u32 = 2;
/// No extent is longer, whatever a header says: a reader may hold one in memory.
pub const EXTENT_LIMIT: u64 = 64 << 20;

/// The first line.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ManifestHeader {
    /// [`MANIFEST_FORMAT`].
    pub format: u32,
    /// The backup the manifest belongs to.
    pub backup: BackupId,
    /// No extent has more plain bytes.
    pub extent_max: u64,
}

/// Bytes of a file, stored as one frame of a pack.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Extent {
    /// The pack.
    pub pack: PackId,
    /// The frame's offset in the pack.
    pub offset: u64,
    /// The frame's length in the pack.
    pub stored: u64,
    /// Bytes of the file it holds.
    pub plain: u64,
    /// Of those bytes.
    pub hash: Blake3Sum,
}

/// What an entry is.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum EntryKind {
    /// A folder.
    Dir,
    /// The link of a tablespace, always `pg_tblspc/<oid>`; where it led is in the backup's record. No other link is kept.
    Tablespace,
    /// A file.
    File {
        /// Its bytes.
        content: Content,
        /// Blocks whose checksum was wrong on the server already.
        bad_blocks: Vec<u32>,
    },
}

/// A file, folder or link.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Entry {
    /// Below the data directory; a tablespace's files below `pg_tblspc/<oid>/`.
    pub path: RelativePath,
    /// Permission bits, at most 0o777.
    pub mode: u32,
    /// When it was last changed, by the server's clock.
    pub mtime: Option<DateTime<Utc>>,
    /// What it is.
    pub kind: EntryKind,
}

/// The last line.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ManifestTrailer {
    /// Entries of every kind.
    pub entries: u64,
    /// Bytes of all files.
    pub bytes: u64,
    /// Of every line before this one, with their line feeds.
    pub sha256: Sha256Sum,
}

/// What a line told.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum ManifestLine {
    /// The first line.
    Header(ManifestHeader),
    /// A pack that later lines refer to.
    Pack(PackId),
    /// A file, folder or link.
    Entry(Entry),
    /// The last line: the manifest is whole.
    Trailer(ManifestTrailer),
}

/// A manifest that cannot be believed.
#[derive(Debug, thiserror::Error)]
pub enum ManifestError {
    /// Not the JSON expected there.
    #[error("line {line} of the manifest is malformed: {cause}")]
    Malformed {
        /// Counted from 1.
        line: u64,
        /// What the JSON reader said.
        cause: serde_json::Error,
    },
    /// Written by a later Walkeep.
    #[error("the manifest has format {found}, this version reads {MANIFEST_FORMAT}: {}", if *found < u64::from(MANIFEST_FORMAT) { "it is of a walkeep from before the first release" } else { "use a newer walkeep" })]
    Format {
        /// The format found.
        found: u64,
    },
    /// The manifest of another backup.
    #[error("the manifest of backup {expected} names {found}: the object was moved or exchanged")]
    Backup {
        /// The backup it was read for.
        expected: BackupId,
        /// The backup it names.
        found: BackupId,
    },
    /// A rule of the format is broken.
    #[error("line {line} of the manifest breaks a rule: {rule}")]
    Rule {
        /// Counted from 1; 0 for an entry that was to be written.
        line: u64,
        /// The rule.
        rule: &'static str,
    },
    /// The closing line does not fit what came before.
    #[error("the manifest is damaged: its last line does not fit the {lines} lines before it")]
    Damaged {
        /// Lines read.
        lines: u64,
    },
    /// The closing line is missing.
    #[error("the manifest ends after {lines} lines without its closing line: it was cut off")]
    CutOff {
        /// Lines read.
        lines: u64,
    },
}

#[cfg(test)]
mod tests;
