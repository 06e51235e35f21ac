//! The stream of a base backup, read to its end and checked.

use std::collections::HashMap;
use std::future::Future;
use std::sync::Arc;

use anyhow::{Context, Result, bail};
use chrono::{DateTime, Utc};
use tokio_util::sync::CancellationToken;
use walkeep_core::backup::BackupBegun;
use walkeep_core::backup::Tablespace;
use walkeep_core::label::BackupLabel;
use walkeep_core::layout::BackupId;
use walkeep_core::manifest::{Entry, EntryKind};
use walkeep_core::relative_path::RelativePath;
use walkeep_core::{Lsn, TimelineId};

use super::announce;
use super::damage::{Damage, bad_page};
use super::pack::{FileFacts, Older, Packed, Packer};
use super::postgres_manifest::{Expected, Sum, compare};
use super::workers::Workers;
use crate::postgres::tar::Entry as TarEntry;
use crate::postgres::{BackupError, BackupEvent, BaseBackupStream};
use crate::repository::ClusterRepository;
use crate::transfer::{Meter, Stage};

const LABEL_FILE: &str = "backup_label";
const MANIFEST_FILE: &str = "backup_manifest";
/// PostgreSQL writes a few hundred bytes.
const LABEL_LIMIT: usize = 64 << 10;
/// Without these a directory is no cluster, or not a copy that can be recovered.
const REQUIRED: [&str; 3] = [LABEL_FILE, "PG_VERSION", "global/pg_control"];

/// Where events come from: a server, or a test.
pub trait Source: Send {
    fn next(&mut self) -> impl Future<Output = Result<Option<BackupEvent>, BackupError>> + Send;
}

impl Source for BaseBackupStream {
    fn next(&mut self) -> impl Future<Output = Result<Option<BackupEvent>, BackupError>> + Send {
        BaseBackupStream::next(self)
    }
}

/// A base backup whose data is stored; nothing shows it yet.
#[derive(Debug)]
pub struct Received {
    pub id: BackupId,
    pub start_lsn: Lsn,
    pub timeline: TimelineId,
    pub stop_lsn: Lsn,
    pub stop_timeline: TimelineId,
    pub label: BackupLabel,
    pub tablespaces: Vec<Tablespace>,
    /// What was stored.
    pub packed: Packed,
}

/// Reads a base backup that began at `began` by the server's clock, stores its data and compares it with the server's manifest.
pub async fn receive(
    repository: Arc<ClusterRepository>,
    mut source: impl Source,
    (began, begun): (DateTime<Utc>, &BackupBegun),
    (workers, older): (Workers, Older),
    damage: &Damage,
    meter: &mut Meter<'_>,
    cancel: &CancellationToken,
) -> Result<Received> {
    let Some(BackupEvent::Started { start_lsn, timeline, tablespaces, data_directory_kb }) = source.next().await? else {
        bail!("the server's base backup does not begin as it should");
    };
    let id = BackupId::new(began, start_lsn);
    tracing::info!(backup = %id, %start_lsn, timeline = timeline.get(), "backup: receiving");
    announce(&repository, &id, begun, cancel).await?;
    let sizes = tablespaces.iter().map(|space| space.size_kb).chain([data_directory_kb]);
    meter.stage(Stage::Copying, sizes.sum::<Option<u64>>().map(|kb| kb.saturating_mul(1024)));
    let mut receiver = Receiver {
        packer: Packer::new(repository.clone(), id.clone(), workers, older, cancel.clone())?,
        files: HashMap::new(),
        present: None,
        label: Vec::new(),
        postgres_manifest: Vec::new(),
    };
    // A tablespace created with allow_in_place_tablespaces lies within the data directory and moves with it.
    let (outside, inside): (Vec<_>, Vec<_>) = tablespaces.into_iter().partition(|space| space.location.starts_with('/'));
    for (oid, kind) in outside.iter().map(|s| (s.oid, EntryKind::Tablespace)).chain(inside.iter().map(|s| (s.oid, EntryKind::Dir))) {
        let path = RelativePath::parse(&format!("pg_tblspc/{oid}"))?;
        receiver.packer.other(Entry { path, mode: 0o700, mtime: None, kind }).await?;
    }
    let (stop_lsn, stop_timeline) = loop {
        match source.next().await? {
            Some(BackupEvent::Finished { stop_lsn, timeline, notices, damaged }) => {
                notices.iter().for_each(|notice| remark(&notice.message, &outside, damage));
                damage.certain(damaged);
                break (stop_lsn, timeline);
            }
            Some(event) => receiver.take(event, meter).await?,
            None => bail!("the server's base backup ended without a stop position"),
        }
    };
    let Receiver { packer, files, label, postgres_manifest, .. } = receiver;
    let packed = packer.finish().await?;

    if let Some(missing) = REQUIRED.iter().find(|required| !files.contains_key(**required)) {
        bail!("the server sent no {missing}: this is no base backup");
    }
    let label = BackupLabel::parse(&label).context("read the backup_label the server sent")?;
    if (label.start, label.timeline) != (start_lsn, timeline) {
        bail!("the backup_label the server sent begins at {}, the backup at {start_lsn}", label.start);
    }
    let sizes = tablespace_sizes(&files);
    let system = repository.identity().system_identifier;
    tokio::task::spawn_blocking(move || compare(&postgres_manifest, &Expected { system, start: start_lsn, stop: stop_lsn, files: &files }))
        .await??;
    let tablespace = |space: crate::postgres::Tablespace| Tablespace {
        oid: space.oid,
        path: space.location,
        bytes: sizes.get(&space.oid).copied().unwrap_or_default(),
    };
    let tablespaces = outside.into_iter().map(tablespace).collect();
    Ok(Received { id, start_lsn, timeline, stop_lsn, stop_timeline, label, tablespaces, packed })
}

/// What the server remarks: that a page is bad, or something else.
fn remark(message: &str, tablespaces: &[crate::postgres::Tablespace], damage: &Damage) {
    match bad_page(message) {
        Some((file, block)) => {
            // The file of a tablespace comes by its place.
            let space = tablespaces.iter().find_map(|space| Some((space.oid, file.strip_prefix(&space.location)?)));
            let path = space.map_or_else(|| file.trim_start_matches("./").to_owned(), |(oid, rest)| format!("pg_tblspc/{oid}{rest}"));
            damage.told(&path, block);
        }
        None => tracing::warn!(message, "backup: the server remarks"),
    }
}

struct Receiver {
    packer: Packer,
    /// Everything received, to be compared with the server's manifest.
    files: HashMap<String, Sum>,
    /// The file being received, how many bytes it still lacks, and what came.
    present: Option<(FileFacts, u64, Sum)>,
    label: Vec<u8>,
    postgres_manifest: Vec<u8>,
}

impl Receiver {
    async fn take(&mut self, event: BackupEvent, meter: &mut Meter<'_>) -> Result<()> {
        match event {
            BackupEvent::Entry(TarEntry::File { path, mode, size, mtime }) => {
                let path = RelativePath::parse(&path)?;
                // Size and sum follow at its end.
                if self.files.insert(path.as_str().to_owned(), Sum::default()).is_some() {
                    bail!("the server sent {path} twice");
                }
                let mtime = i64::try_from(mtime).ok().and_then(|seconds| DateTime::from_timestamp(seconds, 0));
                self.present = Some((FileFacts { path, mode: mode & 0o777, mtime }, size, Sum::default()));
                Ok(())
            }
            BackupEvent::Entry(TarEntry::Data(bytes)) => {
                let Some((facts, left, sum)) = &mut self.present else { bail!("the server sent data of no file") };
                let Some(less) = left.checked_sub(bytes.len() as u64) else { bail!("{} is longer than announced", facts.path) };
                *left = less;
                sum.add(&bytes);
                if facts.path.as_str() == LABEL_FILE && self.label.len() + bytes.len() <= LABEL_LIMIT {
                    self.label.extend_from_slice(&bytes);
                }
                self.packer.data(&bytes).await?;
                meter.bytes(bytes.len() as u64);
                Ok(())
            }
            BackupEvent::Entry(TarEntry::FileEnd) => {
                let Some((facts, 0, sum)) = self.present.take() else { bail!("the server ended a file before its end") };
                meter.file();
                self.files.insert(facts.path.as_str().to_owned(), sum);
                self.packer.file(facts).await
            }
            BackupEvent::Entry(TarEntry::Directory { path, mode }) => {
                let entry = Entry { path: RelativePath::parse(&path)?, mode: mode & 0o777, mtime: None, kind: EntryKind::Dir };
                self.packer.other(entry).await
            }
            BackupEvent::Entry(TarEntry::Symlink { path, target }) => {
                // Tablespaces' links come as the file tablespace_map; pg_wal comes as a folder even where it is a link.
                bail!("the server sent a link, {path} to {target}: Walkeep keeps none but those of tablespaces")
            }
            BackupEvent::Manifest(bytes) => {
                self.postgres_manifest.extend_from_slice(&bytes);
                Ok(self.packer.data(&bytes).await?)
            }
            BackupEvent::ManifestEnd => {
                self.packer.file(FileFacts { path: RelativePath::parse(MANIFEST_FILE)?, mode: 0o600, mtime: None }).await
            }
            BackupEvent::Progress(_) => Ok(()),
            BackupEvent::Started { .. } | BackupEvent::Finished { .. } => bail!("the server's base backup is out of order"),
        }
    }
}

fn tablespace_sizes(files: &HashMap<String, Sum>) -> HashMap<u32, u64> {
    let mut sizes = HashMap::new();
    for (path, sum) in files {
        if let Some((oid, _)) = RelativePath::parse(path).ok().and_then(|path| path.tablespace().map(|(oid, _)| (oid, ()))) {
            *sizes.entry(oid).or_default() += sum.size;
        }
    }
    sizes
}

#[cfg(test)]
mod tests;
