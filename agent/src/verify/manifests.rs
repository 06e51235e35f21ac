//! Manifests as a whole: each line checked up to the hash that the backup's record names, and every extent looked for in the packs that are listed.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::io::Read;
use std::sync::Arc;

use tokio::task::spawn_blocking;
use walkeep_core::backup::BackupRecord;
use walkeep_core::layout::{BackupId, ObjectName, PackId};
use walkeep_core::manifest::EntryKind;
use walkeep_core::relative_path::RelativePath;

use crate::repository::packs::{Fault, Packs};
use crate::repository::{ClusterRepository, Error, Result};

/// So many packs that are not as they should be are kept with what needs them.
const NAMED: usize = 10_000;

/// What manifests refer to and is not there.
#[derive(Debug, Default)]
pub struct Faults {
    packs: HashMap<PackId, PackFault>,
}

/// What is wrong with a pack, as far as a listing tells.
#[derive(Debug)]
pub struct PackFault {
    fault: Fault,
    /// The first file that needs it.
    file: RelativePath,
    files: u64,
    /// The backups that do.
    pub backups: BTreeSet<BackupId>,
}

impl PackFault {
    /// Whether the pack is there, and ends too early.
    pub fn is_cut_off(&self) -> bool {
        matches!(self.fault, Fault::CutOff(_))
    }

    /// In words.
    pub fn reason(&self) -> String {
        let what = match self.fault {
            Fault::Gone => "it is gone".to_owned(),
            Fault::CutOff(bytes) => format!("it is cut off at {bytes} bytes"),
        };
        match self.files {
            1 => format!("{what}; {} needs it", self.file),
            files => format!("{what}; {} and {} more need that", self.file, files - 1),
        }
    }
}

/// What a manifest was found to be.
#[derive(Debug, Default)]
pub struct Manifest {
    /// Extents of its files.
    pub extents: u64,
    /// Why the record is not believed.
    pub contradiction: Option<String>,
}

impl Faults {
    /// The packs, with what is wrong.
    pub fn iter(&self) -> impl Iterator<Item = (PackId, &PackFault)> {
        self.packs.iter().map(|(pack, fault)| (*pack, fault))
    }
}

/// Reads the manifest of a backup to its end; notes which extents cannot be in the packs.
pub async fn read(
    repository: &ClusterRepository,
    record: &BackupRecord,
    packs: Arc<Packs>,
    mut faults: Faults,
) -> (Faults, Result<Manifest>) {
    let manifest = match repository.get_manifest(record).await {
        Ok(manifest) => manifest,
        Err(error) => return (faults, Err(error)),
    };
    let (id, files, bytes) = (record.id.clone(), record.files, record.bytes);
    let read = spawn_blocking(move || {
        let read = (|| {
            let (mut read, mut counted) = (Manifest::default(), (0u64, 0u64));
            for entry in manifest.iter()? {
                let entry = entry?;
                let EntryKind::File { content, .. } = &entry.kind else { continue };
                counted = (counted.0 + 1, counted.1.saturating_add(content.size()));
                read.extents += content.extents().len() as u64;
                let mut told = BTreeMap::new();
                told.extend(content.extents().iter().filter_map(|extent| Some((extent.pack, packs.fault(extent)?))));
                for (pack, fault) in told {
                    if faults.packs.len() >= NAMED && !faults.packs.contains_key(&pack) {
                        continue;
                    }
                    let new = || PackFault { fault, file: entry.path.clone(), files: 0, backups: BTreeSet::new() };
                    let known = faults.packs.entry(pack).or_insert_with(new);
                    known.files += 1;
                    known.backups.insert(id.clone());
                }
            }
            if counted != (files, bytes) {
                read.contradiction =
                    Some(format!("it says {files} files with {bytes} bytes, and its manifest has {} with {}", counted.0, counted.1));
            }
            Ok(read)
        })();
        (faults, read)
    });
    match read.await {
        Ok(read) => read,
        Err(error) => (Faults::default(), Err(Error::Internal(error.to_string()))),
    }
}

/// Which piece of a manifest that was found damaged is; the first if that does not show.
pub async fn damaged_piece(repository: &ClusterRepository, record: &BackupRecord) -> Result<ObjectName> {
    let name = |piece| ObjectName::BackupManifest(record.id.clone(), piece);
    for piece in 1..=record.manifest_pieces.max(1) {
        let opens = match repository.get_manifest_piece(&record.id, piece).await {
            Ok(bytes) => spawn_blocking(move || opens(&bytes)).await.unwrap_or(false),
            Err(Error::Corrupt { .. }) => false,
            Err(error) => return Err(error),
        };
        if !opens {
            return Ok(name(piece));
        }
    }
    Ok(name(1))
}

/// Whether zstd takes it for whole.
fn opens(piece: &[u8]) -> bool {
    let Ok(mut plain) = zstd::stream::read::Decoder::with_buffer(piece) else { return false };
    let mut buffer = vec![0; 64 << 10];
    loop {
        match plain.read(&mut buffer) {
            Ok(0) => return true,
            Ok(_) => {}
            Err(_) => return false,
        }
    }
}
