//! The text of a manifest: lines written, and read as what anybody may have written.

use std::collections::HashMap;

use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use super::{
    Content, EXTENT_LIMIT, Entry, EntryKind, Extent, MANIFEST_FORMAT, ManifestError, ManifestHeader, ManifestLine, ManifestTrailer, Run,
    Source,
};
use crate::blake3::Blake3Sum;
use crate::layout::{BackupId, PackId};
use crate::relative_path::RelativePath;
use crate::sha256::Sha256Sum;

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct RawPack {
    pack: u32,
    id: PackId,
}

#[derive(Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum RawKind {
    Dir,
    Tablespace,
    File,
}

/// Pack, offset, stored length, plain length, hash.
type RawExtent = (u32, u64, u64, u64, Blake3Sum);

/// A stretch of an extent, or zeros.
#[derive(Clone, Copy, Serialize, Deserialize)]
#[serde(untagged)]
enum RawRun {
    Extent((u32, u64, u64)),
    Zeros((u64,)),
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct RawEntry {
    path: RelativePath,
    kind: RawKind,
    mode: u32,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    mtime: Option<DateTime<Utc>>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    size: Option<u64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    extents: Option<Vec<RawExtent>>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    runs: Option<Vec<RawRun>>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    bad_blocks: Vec<u32>,
}

/// What both ends count.
#[derive(Default)]
struct Totals {
    lines: u64,
    entries: u64,
    bytes: u64,
    hasher: Sha256,
}

impl Totals {
    fn line(&mut self, line: &str) {
        self.lines += 1;
        self.hasher.update(line.as_bytes());
        self.hasher.update(b"\n");
    }

    fn entry(&mut self, entry: &Entry) {
        self.entries += 1;
        if let EntryKind::File { content, .. } = &entry.kind {
            self.bytes = self.bytes.saturating_add(content.size());
        }
    }

    fn trailer(&self) -> ManifestTrailer {
        let sha256 = Sha256Sum::new(self.hasher.clone().finalize().into());
        ManifestTrailer { entries: self.entries, bytes: self.bytes, sha256 }
    }
}

/// The rules an entry keeps, written or read; the broken one otherwise.
fn check_entry(entry: &Entry, extent_max: u64) -> Result<(), &'static str> {
    if entry.mode > 0o777 {
        return Err("a mode has the nine permission bits only");
    }
    let link = entry.path.tablespace().is_some_and(|(_, below)| below.is_none());
    match &entry.kind {
        EntryKind::Dir => Ok(()),
        EntryKind::Tablespace if !link => Err("a tablespace's link is pg_tblspc/<oid>"),
        EntryKind::Tablespace => Ok(()),
        EntryKind::File { content, .. } => {
            for extent in content.extents() {
                if extent.plain == 0 || extent.plain > extent_max || extent.stored == 0 || extent.stored > 2 * EXTENT_LIMIT {
                    return Err("an extent is neither empty nor longer than the header allows");
                }
                if extent.offset.checked_add(extent.stored).is_none() {
                    return Err("an extent ends beyond any pack");
                }
            }
            Ok(())
        }
    }
}

/// Makes the lines of a manifest, in order.
pub struct ManifestWriter {
    totals: Totals,
    extent_max: u64,
    packs: HashMap<PackId, u32>,
}

impl ManifestWriter {
    /// Begins a manifest: the first line comes with the writer. Lines end with a line feed.
    pub fn new(backup: BackupId, extent_max: u64) -> Result<(Self, String), ManifestError> {
        if extent_max == 0 || extent_max > EXTENT_LIMIT {
            return Err(ManifestError::Rule { line: 0, rule: "extents have 1 byte to 64 MiB" });
        }
        let mut writer = Self { totals: Totals::default(), extent_max, packs: HashMap::new() };
        let mut text = String::new();
        writer.push(&mut text, &ManifestHeader { format: MANIFEST_FORMAT, backup, extent_max })?;
        Ok((writer, text))
    }

    /// The lines of an entry: those of packs not named before, then its own.
    pub fn entry(&mut self, entry: &Entry) -> Result<String, ManifestError> {
        check_entry(entry, self.extent_max).map_err(|rule| ManifestError::Rule { line: 0, rule })?;
        let mut text = String::new();
        let mut raw = RawEntry {
            path: entry.path.clone(),
            kind: RawKind::Dir,
            mode: entry.mode,
            mtime: entry.mtime,
            size: None,
            extents: None,
            runs: None,
            bad_blocks: Vec::new(),
        };
        match &entry.kind {
            EntryKind::Dir => {}
            EntryKind::Tablespace => raw.kind = RawKind::Tablespace,
            EntryKind::File { content, bad_blocks } => {
                let mut extents = Vec::with_capacity(content.extents().len());
                for extent in content.extents() {
                    let pack = self.pack(&mut text, extent.pack)?;
                    extents.push((pack, extent.offset, extent.stored, extent.plain, extent.hash));
                }
                raw.kind = RawKind::File;
                raw.size = Some(content.size());
                raw.extents = Some(extents);
                raw.runs = (!content.is_in_order()).then(|| content.runs().iter().map(RawRun::of).collect());
                raw.bad_blocks.clone_from(bad_blocks);
            }
        }
        self.push(&mut text, &raw)?;
        self.totals.entry(entry);
        Ok(text)
    }

    /// The closing line.
    pub fn finish(mut self) -> Result<(String, ManifestTrailer), ManifestError> {
        let trailer = self.totals.trailer();
        let mut text = String::new();
        self.push(&mut text, &trailer)?;
        Ok((text, trailer))
    }

    fn pack(&mut self, text: &mut String, id: PackId) -> Result<u32, ManifestError> {
        if let Some(known) = self.packs.get(&id) {
            return Ok(*known);
        }
        let pack = u32::try_from(self.packs.len()).map_err(|_| ManifestError::Rule { line: 0, rule: "at most 2^32 packs" })?;
        self.push(text, &RawPack { pack, id })?;
        self.packs.insert(id, pack);
        Ok(pack)
    }

    fn push<T: Serialize>(&mut self, text: &mut String, value: &T) -> Result<(), ManifestError> {
        let line = serde_json::to_string(value).map_err(|cause| ManifestError::Malformed { line: 0, cause })?;
        self.totals.line(&line);
        text.push_str(&line);
        text.push('\n');
        Ok(())
    }
}

/// Reads the lines of a manifest, in order, and believes none unchecked.
pub struct ManifestReader {
    backup: BackupId,
    totals: Totals,
    extent_max: Option<u64>,
    packs: Vec<PackId>,
    closed: bool,
}

impl ManifestReader {
    /// A reader for the manifest of `backup`.
    pub fn new(backup: BackupId) -> Self {
        Self { backup, totals: Totals::default(), extent_max: None, packs: Vec::new(), closed: false }
    }

    /// Reads the next line, given without its line feed.
    pub fn line(&mut self, line: &str) -> Result<ManifestLine, ManifestError> {
        let number = self.totals.lines + 1;
        let malformed = |cause| ManifestError::Malformed { line: number, cause };
        let rule = |rule| ManifestError::Rule { line: number, rule };
        if self.closed {
            return Err(rule("nothing follows the closing line"));
        }
        let Some(extent_max) = self.extent_max else {
            let header = self.header(line)?;
            self.totals.line(line);
            return Ok(ManifestLine::Header(header));
        };
        // Each kind of line has its first key, as the writer puts it.
        if line.starts_with("{\"path\"") {
            let raw: RawEntry = serde_json::from_str(line).map_err(malformed)?;
            let entry = self.resolve(raw).map_err(rule)?;
            check_entry(&entry, extent_max).map_err(rule)?;
            self.totals.line(line);
            self.totals.entry(&entry);
            Ok(ManifestLine::Entry(entry))
        } else if line.starts_with("{\"pack\"") {
            let raw: RawPack = serde_json::from_str(line).map_err(malformed)?;
            if raw.pack as usize != self.packs.len() {
                return Err(rule("packs are numbered from 0 without a break"));
            }
            self.packs.push(raw.id);
            self.totals.line(line);
            Ok(ManifestLine::Pack(raw.id))
        } else {
            let trailer: ManifestTrailer = serde_json::from_str(line).map_err(malformed)?;
            if trailer != self.totals.trailer() {
                return Err(ManifestError::Damaged { lines: self.totals.lines });
            }
            self.closed = true;
            Ok(ManifestLine::Trailer(trailer))
        }
    }

    /// Says that there are no more lines.
    pub fn finish(self) -> Result<(), ManifestError> {
        if self.closed { Ok(()) } else { Err(ManifestError::CutOff { lines: self.totals.lines }) }
    }

    fn header(&mut self, line: &str) -> Result<ManifestHeader, ManifestError> {
        #[derive(Deserialize)]
        struct Form {
            format: u64,
        }
        let malformed = |cause| ManifestError::Malformed { line: 1, cause };
        let form: Form = serde_json::from_str(line).map_err(malformed)?;
        if form.format != u64::from(MANIFEST_FORMAT) {
            return Err(ManifestError::Format { found: form.format });
        }
        let header: ManifestHeader = serde_json::from_str(line).map_err(malformed)?;
        if header.backup != self.backup {
            return Err(ManifestError::Backup { expected: self.backup.clone(), found: header.backup });
        }
        if header.extent_max == 0 || header.extent_max > EXTENT_LIMIT {
            return Err(ManifestError::Rule { line: 1, rule: "extents have 1 byte to 64 MiB" });
        }
        self.extent_max = Some(header.extent_max);
        Ok(header)
    }

    fn resolve(&self, raw: RawEntry) -> Result<Entry, &'static str> {
        let kind = match (raw.kind, raw.size, raw.extents, raw.runs) {
            (RawKind::Dir, None, None, None) if raw.bad_blocks.is_empty() => EntryKind::Dir,
            (RawKind::Tablespace, None, None, None) if raw.bad_blocks.is_empty() => EntryKind::Tablespace,
            (RawKind::File, Some(size), Some(extents), runs) => {
                let extent = |(pack, offset, stored, plain, hash): RawExtent| {
                    let pack = *self.packs.get(pack as usize)?;
                    Some(Extent { pack, offset, stored, plain, hash })
                };
                let extents = extents.into_iter().map(extent).collect::<Option<_>>().ok_or("a pack is introduced before it is used")?;
                let content = match runs {
                    None => Content::in_order(extents)?,
                    Some(runs) => Content::new(extents, runs.into_iter().map(RawRun::run).collect())?,
                };
                if content.size() != size {
                    return Err("a file's size is the sum of its runs");
                }
                EntryKind::File { content, bad_blocks: raw.bad_blocks }
            }
            _ => return Err("files, and only files, have size and extents"),
        };
        Ok(Entry { path: raw.path, mode: raw.mode, mtime: raw.mtime, kind })
    }
}

impl RawRun {
    fn of(run: &Run) -> Self {
        match run.source {
            Source::Zeros => Self::Zeros((run.length,)),
            Source::Extent { index, from } => Self::Extent((index, from, run.length)),
        }
    }

    fn run(self) -> Run {
        match self {
            Self::Zeros((length,)) => Run { source: Source::Zeros, length },
            Self::Extent((index, from, length)) => Run { source: Source::Extent { index, from }, length },
        }
    }
}
