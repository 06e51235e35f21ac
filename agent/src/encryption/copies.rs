//! The host's own copies of what it stored and must read again: a host that only writes cannot read it back.
//!
//! The manifest of the last backup, so that the next one finds what has not changed; the parts of the segment under way, with which an agent that begins
//! anew compares; the index; what relations were called. They lie unencrypted on the host whose database they are of. A copy is believed only as long as the object's fingerprint says that it holds
//! the same, and losing them costs a full backup.

use std::path::{Path, PathBuf};
use std::time::SystemTime;

use bytes::Bytes;
use serde::{Deserialize, Serialize};
use walkeep_core::layout::{BackupId, ObjectName};

use crate::codec::Description;
use crate::durable;

/// Bytes of parts, and of everything else but manifests; the oldest go.
const LIMIT: u64 = 128 << 20;
/// Backups whose manifests are kept: the last one, the one under way, and what two interrupted ones stored.
const MANIFESTS: usize = 4;

/// The folder with the copies.
#[derive(Debug, Default)]
pub struct OwnCopies {
    folder: Option<PathBuf>,
}

/// An object as it was before it was encrypted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OwnCopy {
    /// What it was described as.
    pub description: Description,
    /// The zstd file.
    pub object: Bytes,
}

/// A copy's first line.
#[derive(Serialize, Deserialize)]
struct Line {
    description: Description,
}

impl OwnCopies {
    /// In `folder`, which is made when there is something to keep.
    pub fn in_folder(folder: &Path) -> Self {
        Self { folder: Some(folder.to_owned()) }
    }

    /// Whether the object is one that this host reads again. Maps of changed blocks are read by every backup, the index by the agent that goes on with it.
    pub fn wants(name: &ObjectName) -> bool {
        use ObjectName::{BackupManifest, Blocks, Digest, Names, Part};
        matches!(name, BackupManifest(..) | Part(_) | Digest(_) | Blocks(_) | Names(_))
    }

    /// Keeps a copy of an object that is stored. What cannot be kept is not: the object is what counts. Writes files: call it on a blocking thread.
    pub fn keep(&self, name: &ObjectName, description: &Description, object: &[u8]) {
        let Some((folder, path)) = self.place(name).filter(|_| Self::wants(name)) else { return };
        let write = || -> anyhow::Result<()> {
            durable::create_dir(&folder, durable::PRIVATE_DIR)?;
            if let Some(parent) = path.parent().filter(|parent| *parent != folder) {
                durable::create_dir(parent, durable::PRIVATE_DIR)?;
            }
            let mut content = serde_json::to_vec(&Line { description: description.clone() })?;
            content.push(b'\n');
            content.extend_from_slice(object);
            durable::Staged::write_volatile(&path, &content, durable::PRIVATE_FILE)?.publish()?;
            match name {
                ObjectName::BackupManifest(_, 1) => prune_manifests(&folder),
                ObjectName::BackupManifest(..) => Ok(()),
                _ => prune(path.parent().unwrap_or(&folder)),
            }
        };
        if let Err(error) = write() {
            tracing::warn!(error = format!("{error:#}"), "no copy is kept of an object that this host may want to read again");
        }
    }

    /// The copy of an object; `None` if there is none. Reads a file: call it on a blocking thread.
    pub fn get(&self, name: &ObjectName) -> Option<OwnCopy> {
        let (_, path) = self.place(name).filter(|_| Self::wants(name))?;
        let content = Bytes::from(std::fs::read(path).ok()?);
        let line = content.iter().position(|byte| *byte == b'\n')?;
        let Line { description } = serde_json::from_slice(&content[..line]).ok()?;
        Some(OwnCopy { description, object: content.slice(line + 1..) })
    }

    /// Forgets the copy of an object.
    pub fn forget(&self, name: &ObjectName) {
        if let Some((_, path)) = self.place(name).filter(|_| Self::wants(name)) {
            // One that stays is not believed: the object is gone, or another one.
            drop(std::fs::remove_file(path));
        }
    }

    fn place(&self, name: &ObjectName) -> Option<(PathBuf, PathBuf)> {
        let folder = self.folder.clone()?;
        let path = match name {
            ObjectName::BackupManifest(id, piece) => folder.join(id.as_str()).join(format!("manifest.{piece}")),
            ObjectName::Part(part) => {
                folder.join("parts").join(format!("{}-{:08X}-{:08X}.{:08X}", part.segment, part.from, part.to, part.epoch))
            }
            ObjectName::Digest(digest) => folder.join(format!(
                "index-{}-{}-{:016X}-{:016X}",
                digest.timeline.hex(),
                digest.level.get(),
                digest.from.get(),
                digest.to.get()
            )),
            ObjectName::Blocks(blocks) => {
                folder.join(format!("blocks-{}-{:016X}-{:016X}", blocks.timeline.hex(), blocks.from.get(), blocks.to.get()))
            }
            ObjectName::Names(names) => folder.join(format!("names-{}-{:016X}", names.timeline.hex(), names.lsn.get())),
            _ => return None,
        };
        Some((folder, path))
    }
}

/// Leaves the manifests of the newest backups.
fn prune_manifests(folder: &Path) -> anyhow::Result<()> {
    let mut backups: Vec<BackupId> = Vec::new();
    for entry in std::fs::read_dir(folder)? {
        backups.extend(entry?.file_name().to_str().and_then(|name| name.parse::<BackupId>().ok()));
    }
    backups.sort_unstable();
    for id in backups.iter().rev().skip(MANIFESTS) {
        std::fs::remove_dir_all(folder.join(id.as_str()))?;
    }
    Ok(())
}

/// Removes the oldest of the small ones while they are too much.
fn prune(folder: &Path) -> anyhow::Result<()> {
    let mut files: Vec<(SystemTime, u64, PathBuf)> = Vec::new();
    for entry in std::fs::read_dir(folder)? {
        let entry = entry?;
        let Ok(found) = entry.metadata() else { continue };
        if found.is_file() {
            files.push((found.modified()?, found.len(), entry.path()));
        }
    }
    let mut bytes: u64 = files.iter().map(|(_, bytes, _)| bytes).sum();
    files.sort_unstable();
    for (_, length, path) in files {
        if bytes <= LIMIT {
            break;
        }
        std::fs::remove_file(path)?;
        bytes -= length;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use chrono::DateTime;
    use walkeep_core::layout::SnapshotName;
    use walkeep_core::{Lsn, SystemIdentifier, TimelineId};

    fn description(content: &[u8]) -> Description {
        Description::of("x".into(), SystemIdentifier::new(7), None, content)
    }

    fn manifest(second: i64, piece: u32) -> ObjectName {
        ObjectName::BackupManifest(BackupId::new(DateTime::from_timestamp(second, 0).unwrap(), Lsn::new(1)), piece)
    }

    #[test]
    fn a_copy_is_as_it_was_kept_and_only_some_are() {
        let folder = tempfile::tempdir().unwrap();
        let copies = OwnCopies::in_folder(&folder.path().join("own"));
        let snapshot = ObjectName::Names(SnapshotName { timeline: TimelineId::FIRST, lsn: Lsn::new(1) });
        for (name, object) in [(snapshot.clone(), &b"a\nb"[..]), (manifest(1, 2), b"")] {
            assert_eq!(copies.get(&name), None);
            copies.keep(&name, &description(object), object);
            assert_eq!(copies.get(&name), Some(OwnCopy { description: description(object), object: Bytes::copy_from_slice(object) }));
        }
        copies.forget(&snapshot);
        assert_eq!(copies.get(&snapshot), None);
        let segment = ObjectName::Wal("000000010000000000000001".parse().unwrap());
        copies.keep(&segment, &description(b"x"), b"x");
        assert_eq!(copies.get(&segment), None, "segments are too large");
        OwnCopies::default().keep(&snapshot, &description(b"x"), b"x");
    }

    #[test]
    fn the_last_backups_manifests_stay_and_the_rest_is_bounded() {
        let folder = tempfile::tempdir().unwrap();
        let copies = OwnCopies::in_folder(folder.path());
        for second in 1..=6 {
            copies.keep(&manifest(second, 1), &description(b"m"), b"m");
            copies.keep(&manifest(second, 2), &description(b"m"), b"m");
        }
        let kept: Vec<bool> = (1..=6).map(|second| copies.get(&manifest(second, 1)).is_some()).collect();
        assert_eq!(kept, [false, false, true, true, true, true]);
        let names = |lsn| ObjectName::Names(SnapshotName { timeline: TimelineId::FIRST, lsn: Lsn::new(lsn) });
        let large = vec![0; LIMIT as usize / 2];
        for lsn in 1..=3 {
            copies.keep(&names(lsn), &description(&large), &large);
            std::thread::sleep(std::time::Duration::from_millis(20));
        }
        assert_eq!((copies.get(&names(1)), copies.get(&names(2)), copies.get(&names(3)).is_some()), (None, None, true));
        assert!(copies.get(&manifest(4, 2)).is_some());
    }
}
