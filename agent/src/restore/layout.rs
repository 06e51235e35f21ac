//! A manifest and the small files that say what cluster it is, read through once before anything is written.
//!
//! A manifest is input: whoever can write to the repository can write one. Paths cannot leave the directory by their text (core sees to
//! that); here is checked that there is nothing twice, that nothing lies below a file, and that it is a whole cluster.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use bytes::Bytes;
use futures::FutureExt;
use tokio::task::spawn_blocking;
use tokio_util::sync::CancellationToken;
use walkeep_core::backup::BackupRecord;
use walkeep_core::control::ControlFile;
use walkeep_core::layout::ObjectName;
use walkeep_core::manifest::{Content, Entry, EntryKind, Extent, Source};
use walkeep_core::partial::Needed;

use super::files::PATIENCE;
use super::{Refusal, backup_manifest};
use crate::codec;
use crate::repository::ClusterRepository;
use crate::repository::manifest::ManifestEntries;
use crate::repository::packs::{Lost, Packs};

/// Written last: without it no server starts.
pub const CONTROL: &str = "global/pg_control";
/// Where links to tablespaces are described; rewritten.
pub const TABLESPACE_MAP: &str = "tablespace_map";
/// Files that say what kind of start it is. A backup of a standby brings one, which would make the copy a standby too: not restored.
pub const SIGNALS: [&str; 2] = ["standby.signal", "recovery.signal"];
const REQUIRED: [&str; 3] = ["PG_VERSION", "backup_label", CONTROL];
/// PG_VERSION has three bytes, a map one line for each tablespace.
const SMALL: u64 = 4 << 20;

/// What a manifest says on the whole.
#[derive(Debug, Clone, Default)]
pub struct Layout {
    /// Files.
    pub files: u64,
    /// Their bytes.
    pub bytes: u64,
    /// The bytes of them that are written; those of the others are left empty.
    pub written: u64,
    /// What all files take in packs.
    pub stored: u64,
    /// What is read of it.
    pub fetched: u64,
    /// Bytes written of each tablespace's files that lie outside the data directory.
    pub outside: HashMap<u32, u64>,
    /// Whether PostgreSQL's own manifest is among the files.
    pub has_backup_manifest: bool,
    /// Blocks whose checksum was wrong when the backup was taken.
    pub bad_blocks: u64,
    /// Whether the group may read: then folders have mode 0750.
    pub group_access: bool,
    small: HashMap<String, Content>,
}

/// The few files that are read before the others.
#[derive(Debug, Clone)]
pub struct Small {
    /// `PG_VERSION`.
    pub version: Vec<u8>,
    /// `tablespace_map`, if there is one.
    pub tablespace_map: Option<Vec<u8>>,
    /// `global/pg_control`.
    pub control: Vec<u8>,
}

impl Layout {
    /// Reads and checks the manifest of which these files are `needed`, whose packs must be among those that are there.
    pub async fn read(
        repository: &Arc<ClusterRepository>,
        manifest: &ManifestEntries,
        record: &BackupRecord,
        needed: &Needed,
    ) -> Result<Self> {
        let packs = repository.packs().await?;
        let (repository, manifest, record, needed) = (repository.clone(), manifest.clone(), record.clone(), needed.clone());
        spawn_blocking(move || Self::read_with(&repository, &packs, &manifest, &record, &needed)).await?
    }

    fn read_with(
        repository: &ClusterRepository,
        packs: &Packs,
        manifest: &ManifestEntries,
        record: &BackupRecord,
        needed: &Needed,
    ) -> Result<Self> {
        let refuse = |reason: String| Refusal::Backup { backup: record.id.to_string(), reason };
        let (mut layout, mut lost) = (Self::default(), Lost::default());
        let mut files: HashSet<String> = HashSet::new();
        let mut folders: HashSet<String> = HashSet::new();
        for entry in manifest.iter()? {
            let entry = entry?;
            let path = entry.path.as_str();
            for (at, _) in path.match_indices('/') {
                if !folders.contains(&path[..at]) {
                    folders.insert(path[..at].to_owned());
                }
            }
            match &entry.kind {
                EntryKind::Dir => drop(folders.insert(path.to_owned())),
                EntryKind::Tablespace => {
                    let known = entry.path.tablespace().is_some_and(|(oid, _)| record.tablespaces.iter().any(|space| space.oid == oid));
                    if !known {
                        bail!(refuse(format!("its manifest has a tablespace, {path}, that its record has not")));
                    }
                }
                EntryKind::File { content, .. } => {
                    if needed.content(&entry.path) {
                        lost.note(repository, packs, &entry.path, content);
                    }
                    if !files.insert(path.to_owned()) {
                        bail!(refuse(format!("its manifest has {path} twice")));
                    }
                    layout.note_file(&entry, record, needed).map_err(refuse)?;
                }
            }
        }
        if let Some(both) = files.iter().find(|file| folders.contains(*file)) {
            bail!(refuse(format!("its manifest has {both} as a file and as a folder")));
        }
        if let Some(missing) = REQUIRED.iter().find(|required| !files.contains(**required)) {
            bail!(refuse(format!("its manifest has no {missing}")));
        }
        if (layout.files, layout.bytes) != (record.files, record.bytes) {
            let (files, bytes) = (layout.files, layout.bytes);
            bail!(refuse(format!("its manifest has {files} files of {bytes} bytes, its record {} of {}", record.files, record.bytes)));
        }
        if !lost.is_nothing() {
            bail!(refuse(format!("{lost}. An older backup may do: --backup ID, as `walkeep backups` lists them")));
        }
        Ok(layout)
    }

    fn note_file(&mut self, entry: &Entry, record: &BackupRecord, needed: &Needed) -> std::result::Result<(), String> {
        let EntryKind::File { content, bad_blocks } = &entry.kind else { return Ok(()) };
        let (path, size) = (entry.path.as_str(), content.size());
        self.bad_blocks += bad_blocks.len() as u64;
        self.files += 1;
        self.bytes = self.bytes.saturating_add(size);
        let stored = content.stored();
        self.stored = self.stored.saturating_add(stored);
        let written = if needed.content(&entry.path) { size } else { 0 };
        self.written = self.written.saturating_add(written);
        self.fetched = self.fetched.saturating_add(if needed.content(&entry.path) { stored } else { 0 });
        if let Some((oid, _)) = entry.path.tablespace()
            && record.tablespaces.iter().any(|space| space.oid == oid)
        {
            let sum = self.outside.entry(oid).or_default();
            *sum = sum.saturating_add(written);
        }
        self.has_backup_manifest |= path == backup_manifest::FILE;
        if path == "PG_VERSION" {
            self.group_access = entry.mode & 0o040 != 0;
        }
        if ["PG_VERSION", TABLESPACE_MAP, CONTROL].contains(&path) {
            if size > SMALL {
                return Err(format!("{path} has {size} bytes"));
            }
            self.small.insert(path.to_owned(), content.clone());
        }
        Ok(())
    }
}

impl Small {
    /// Reads them out of the repository, which also proves that its packs can be read.
    pub async fn read(repository: &ClusterRepository, layout: &Layout, cancel: &CancellationToken) -> Result<Self> {
        let read = |name: &'static str| async move {
            let Some(content) = layout.small.get(name) else { return Ok::<_, anyhow::Error>(None) };
            Ok(Some(read_file(repository, content, name, cancel).await?))
        };
        Ok(Self {
            version: read("PG_VERSION").await?.unwrap_or_default(),
            tablespace_map: read(TABLESPACE_MAP).await?,
            control: read(CONTROL).await?.unwrap_or_default(),
        })
    }

    /// Refuses a backup whose record names another major version or cluster than its files, and one that no server on this machine could be
    /// started with. Answers what pg_control says.
    pub fn check(&self, record: &BackupRecord) -> Result<ControlFile> {
        let refuse = |reason: String| Refusal::Backup { backup: record.id.to_string(), reason };
        let found = String::from_utf8_lossy(&self.version);
        if found.trim() != record.major_version.to_string() {
            bail!(refuse(format!("its PG_VERSION says {:?}, its record PostgreSQL {}", found.trim(), record.major_version)));
        }
        let control =
            ControlFile::parse(&self.control).map_err(|error| refuse(format!("no server here can read its pg_control: {error}")))?;
        if !control.is_of(record.major_version) {
            let (version, major) = (control.control_version, record.major_version);
            bail!(refuse(format!("its pg_control has version {version}, which PostgreSQL {major} does not write")));
        }
        if (control.system, control.segment_size) != (record.system_identifier, record.segment_size) {
            bail!(refuse(format!(
                "its pg_control says system identifier {} and segments of {} bytes, its record {} and {}",
                control.system,
                control.segment_size.bytes(),
                record.system_identifier,
                record.segment_size.bytes()
            )));
        }
        Ok(control)
    }
}

/// The bytes of a file, which is small.
pub(super) async fn read_file(
    repository: &ClusterRepository,
    content: &Content,
    file: &str,
    cancel: &CancellationToken,
) -> Result<Vec<u8>> {
    let mut extents = Vec::with_capacity(content.extents().len());
    for extent in content.extents() {
        extents.push(read_extent(repository, extent, file, cancel).await?);
    }
    let mut bytes = Vec::new();
    for run in content.runs() {
        let length = usize::try_from(run.length).context("a file larger than memory")?;
        match run.source {
            Source::Zeros => bytes.resize(bytes.len() + length, 0),
            // The manifest was checked: it has the extent, and the extent so many bytes.
            Source::Extent { index, from } => {
                let from = from as usize;
                bytes.extend_from_slice(extents.get(index as usize).and_then(|extent| extent.get(from..from + length)).unwrap_or_default());
            }
        }
    }
    Ok(bytes)
}

async fn read_extent(repository: &ClusterRepository, extent: &Extent, file: &str, cancel: &CancellationToken) -> Result<Bytes> {
    match read_extent_of(repository, extent, file, PATIENCE, cancel).await? {
        Some(plain) => Ok(plain),
        None => {
            let damage = anyhow::Error::new(super::files::damaged(repository, extent, file));
            let read = |place: ClusterRepository| async move { read_extent_of(&place, extent, file, Duration::ZERO, cancel).await }.boxed();
            let key = repository.layout().key(&ObjectName::Pack(extent.pack));
            let whole = repository.elsewhere(&key, damage, super::files::is_damage, read).await?;
            whole.ok_or_else(|| super::files::damaged(repository, extent, file).into())
        }
    }
}

/// `None` if it does not have its hash.
async fn read_extent_of(
    repository: &ClusterRepository,
    extent: &Extent,
    file: &str,
    patience: Duration,
    cancel: &CancellationToken,
) -> Result<Option<Bytes>> {
    let frame = super::files::get(repository, extent.pack, extent.offset..extent.offset + extent.stored, patience, cancel).await;
    let frame = frame.with_context(|| format!("read {file}"))?;
    let plain = codec::decompress(&frame, extent.plain as usize).ok().filter(|plain| codec::blake3(plain) == extent.hash);
    Ok(plain.map(Bytes::from))
}
