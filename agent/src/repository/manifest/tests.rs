use super::*;
use crate::repository::tests::{memory, record};
use walkeep_core::blake3::Blake3Sum;
use walkeep_core::layout::PackId;
use walkeep_core::manifest::{Content, Extent};
use walkeep_core::relative_path::RelativePath;

fn entry(path: &str) -> Entry {
    Entry { path: RelativePath::parse(path).unwrap(), mode: 0o700, mtime: None, kind: EntryKind::Dir }
}

fn manifest() -> (BackupRecord, Bytes) {
    let mut record = record(1);
    let mut encoder = ManifestEncoder::new(record.id.clone(), 1 << 20, 3).unwrap();
    for path in ["base", "base/1", "global"] {
        assert!(encoder.entry(&entry(path)).unwrap().is_none());
    }
    let (piece, trailer) = encoder.finish().unwrap();
    record.manifest_sha256 = trailer.sha256;
    (record, piece.bytes)
}

fn read(repository: &ClusterRepository, record: &BackupRecord, object: Bytes) -> Result<Vec<Entry>> {
    let (key, backup) = ("m".to_owned(), record.id.clone());
    let entries =
        ManifestEntries { repository: repository.clone(), key, backup, expected: record.manifest_sha256, pieces: 1, kept: vec![object] };
    entries.iter()?.collect()
}

#[tokio::test]
async fn what_is_written_is_read_and_zstd_opens_it() {
    let (repository, _) = memory().await;
    let (record, object) = manifest();
    assert_eq!(read(&repository, &record, object.clone()).unwrap(), [entry("base"), entry("base/1"), entry("global")]);
    let text = String::from_utf8(zstd::decode_all(&object[..]).unwrap()).unwrap();
    assert_eq!(text.lines().count(), 5);
}

#[tokio::test]
async fn any_damage_is_seen() {
    let (repository, _) = memory().await;
    let (mut record, object) = manifest();
    for at in 0..object.len() {
        let mut bytes = object.to_vec();
        bytes[at] ^= 1;
        // A flip in a part of the frame that means nothing leaves the entries as they are.
        if let Ok(entries) = read(&repository, &record, bytes.into()) {
            assert_eq!(entries.len(), 3, "byte {at}");
        }
        assert!(read(&repository, &record, object.slice(..at)).is_err(), "cut at {at}");
    }
    record.manifest_sha256 = Sha256Sum::new([7; 32]);
    assert!(read(&repository, &record, object).unwrap_err().to_string().contains("record names"));
}

/// A file of 1 GiB, which no two of have an extent in common.
fn large(number: u32) -> Entry {
    let extent = |index: u64| {
        let mut hash = [0; 32];
        for (at, part) in hash.chunks_exact_mut(8).enumerate() {
            let seed = (u64::from(number) << 24 | index << 4 | at as u64).wrapping_mul(0x9E37_79B9_7F4A_7C15);
            part.copy_from_slice(&(seed ^ seed >> 29).wrapping_mul(0xBF58_476D_1CE4_E5B9).to_le_bytes());
        }
        let mut pack = [0; 32];
        pack[..8].copy_from_slice(&(u64::from(number) * 11 + index / 100).to_le_bytes());
        Extent { pack: PackId::new(pack), offset: index % 100 * 170_000, stored: 170_000, plain: 1 << 20, hash: Blake3Sum::new(hash) }
    };
    let content = Content::in_order((0..1024).map(extent).collect()).unwrap();
    Entry {
        path: RelativePath::parse(&format!("base/5/{number}")).unwrap(),
        kind: EntryKind::File { content, bad_blocks: Vec::new() },
        ..entry("x")
    }
}

/// A cluster of some terabytes: its manifest is written and read piece by piece.
#[tokio::test(flavor = "multi_thread")]
async fn a_large_manifest_is_pieces() {
    const FILES: u32 = 300;
    let (repository, _) = memory().await;
    let mut record = record(1);
    let mut encoder = ManifestEncoder::new(record.id.clone(), 1 << 20, 1).unwrap();
    let mut largest = 0;
    for number in 0..FILES {
        if let Some(piece) = encoder.entry(&large(number)).unwrap() {
            largest = largest.max(piece.bytes.len());
            repository.put_manifest(&record.id, &piece).await.unwrap();
        }
    }
    let (last, trailer) = encoder.finish().unwrap();
    repository.put_manifest(&record.id, &last).await.unwrap();
    (record.manifest_pieces, record.manifest_sha256) = (last.number, trailer.sha256);
    assert!(last.number > 64 && largest < 2 * PIECE, "{} pieces, the largest of {largest}", last.number);
    for kept in [KEPT, 1] {
        let mut entries = repository.get_manifest(&record).await.unwrap();
        let whole = entries.kept.len();
        entries.kept.truncate(if kept == KEPT { whole } else { 1 });
        let read = move || entries.iter().unwrap().map(Result::unwrap).zip(0..).filter(|(entry, number)| *entry == large(*number)).count();
        assert_eq!(tokio::task::spawn_blocking(read).await.unwrap(), FILES as usize);
    }
    record.manifest_pieces -= 1;
    let entries = repository.get_manifest(&record).await.unwrap();
    let last = tokio::task::spawn_blocking(move || entries.iter().unwrap().last().unwrap()).await.unwrap();
    assert!(last.unwrap_err().to_string().contains("cut off"));
}
