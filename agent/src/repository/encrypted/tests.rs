use std::path::Path;

use walkeep_core::backup::BackupRecord;
use walkeep_core::layout::{PartName, SnapshotName};
use walkeep_core::{Lsn, TimelineId};
use walkeep_store::{MemoryStore, Store};

use super::*;
use crate::encryption::tests::writer_and_reader;
use crate::repository::manifest::{ManifestEncoder, Piece};
use crate::repository::tests::{encrypted, memory, record, segment};
use crate::repository::wal::Stored;

const SIZE: usize = 1 << 20;

/// A repository as its writer sees it and as its reader does, and the store below.
async fn both(folder: &Path) -> (ClusterRepository, ClusterRepository, Arc<MemoryStore>) {
    let store = Arc::new(MemoryStore::new());
    let (writer, reader) = writer_and_reader(folder);
    (encrypted(store.clone(), writer).await, encrypted(store.clone(), reader).await, store)
}

fn whole(number: u64) -> WalFileName {
    WalFileName::Segment(segment(number))
}

fn content(byte: u8) -> Bytes {
    Bytes::from(vec![byte; SIZE])
}

fn two() -> WalFileName {
    WalFileName::History(TimelineId::new(2).unwrap())
}

const HISTORY: &[u8] = b"1\t0/280000\tno reason\n";

fn part(from: u32, to: u32) -> PartName {
    PartName { segment: segment(9), from, to, epoch: 1 }
}

fn locked<T: std::fmt::Debug>(read: Result<T>) -> String {
    match read {
        Err(Error::CannotDecrypt { key, .. }) => key,
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn the_writer_stores_and_the_reader_reads() {
    let folder = tempfile::tempdir().unwrap();
    let (writer, reader, _) = both(folder.path()).await;
    writer.put_wal(whole(1), content(1)).await.unwrap();
    writer.put_part(part(0, 100), Bytes::from(vec![3; 100])).await.unwrap();
    let pack = writer.pack_object(Bytes::from((0..200_000u32).map(|at| at as u8).collect::<Vec<_>>())).await.unwrap();
    writer.put_pack(&pack).await.unwrap();
    assert_eq!(reader.get_wal(whole(1)).await.unwrap().unwrap().content, content(1));
    assert_eq!(reader.get_tail(segment(9)).await.unwrap(), vec![3; 100]);
    assert_eq!(reader.get_extents(pack.id(), 70_000..70_003).await.unwrap()[..], [70_000u32 as u8, 70_001u32 as u8, 70_002u32 as u8]);
    let short = reader.get_extents(pack.id(), 199_999..200_001).await.unwrap_err();
    assert!(short.to_string().contains("ends before byte 200001"), "{short}");

    assert!(locked(writer.get_wal(whole(1)).await).ends_with("000000010000000000000001.zst.age"));
    assert_eq!(writer.get_tail(segment(9)).await.unwrap(), vec![3; 100], "its own copy");
    locked(writer.get_extents(pack.id(), 0..1).await);
    // What is not there is absent, for both.
    for repository in [&writer, &reader] {
        assert!(repository.get_wal(whole(2)).await.unwrap().is_none());
    }
}

#[tokio::test]
async fn a_host_that_only_writes_knows_its_own_again() {
    let folder = tempfile::tempdir().unwrap();
    let (writer, reader, store) = both(folder.path()).await;
    assert!(matches!(writer.put_wal(whole(1), content(1)).await, Ok(Stored::New { .. })));
    writer.put_wal(two(), Bytes::from_static(HISTORY)).await.unwrap();
    let piece = Piece { number: 1, bytes: Bytes::from_static(b"a piece") };
    let id = record(1).id;
    writer.put_manifest(&id, &piece).await.unwrap();
    assert_eq!(writer.put_manifest(&id, &piece).await.unwrap(), Stored::Already);
    let other = Piece { number: 1, bytes: Bytes::from_static(b"another piece") };
    assert!(matches!(writer.put_manifest(&id, &other).await, Err(Error::Conflict { .. })));
    assert_eq!(writer.get_manifest_piece(&id, 1).await.unwrap(), "a piece", "its own copy");

    // Encrypted twice it is not the same bytes, and it is the same content.
    for repository in [&writer, &reader] {
        assert_eq!(repository.put_wal(whole(1), content(1)).await.unwrap(), Stored::Already);
        assert!(matches!(repository.put_wal(whole(1), content(2)).await, Err(Error::Conflict { .. })));
        assert!(matches!(repository.put_wal(two(), Bytes::from_static(b"1\t0/380000\tother\n")).await, Err(Error::Conflict { .. })));
    }
    assert!(writer.has_segment(segment(1), crate::codec::blake3(&content(1))).await.unwrap());
    assert!(!writer.has_segment(segment(1), crate::codec::blake3(&content(2))).await.unwrap());
    assert!(!writer.has_segment(segment(2), crate::codec::blake3(&content(2))).await.unwrap());
    // Exchanged for another host's since it was stored.
    let elsewhere = tempfile::tempdir().unwrap();
    let (stranger, _, theirs) = both(elsewhere.path()).await;
    stranger.put_wal(whole(1), content(2)).await.unwrap();
    let key = writer.key(&ObjectName::Wal(whole(1))).unwrap();
    let ours = store.get(&key, None).await.unwrap();
    store.overwrite(&key, theirs.get(&key, None).await.unwrap());
    assert!(!writer.has_segment(segment(1), crate::codec::blake3(&content(1))).await.unwrap());
    store.overwrite(&key, ours);
    assert_eq!(writer.get_history(TimelineId::new(2).unwrap()).await.unwrap().unwrap().ancestors().len(), 1);

    // Whose folder is lost can compare no more, and says so; but for histories, which everybody reads.
    let emptied = tempfile::tempdir().unwrap();
    let (other_key, _) = writer_and_reader(emptied.path());
    let lost = encrypted(store, other_key).await;
    locked(lost.put_wal(whole(1), content(1)).await);
    locked(lost.get_manifest_piece(&id, 1).await);
    assert_eq!(lost.put_wal(two(), Bytes::from_static(HISTORY)).await.unwrap(), Stored::Already);
    assert_eq!(lost.get_history(TimelineId::new(2).unwrap()).await.unwrap().unwrap().ancestors().len(), 1);
    assert!(matches!(lost.put_wal(whole(2), content(1)).await, Ok(Stored::New { .. })));
}

#[tokio::test]
async fn parts_that_nobody_reads_are_compared_by_their_fingerprints() {
    let folder = tempfile::tempdir().unwrap();
    let (writer, _, store) = both(folder.path()).await;
    for (from, to) in [(0, 100), (100, 200)] {
        writer.put_part(part(from, to), Bytes::from(vec![from as u8; 100])).await.unwrap();
    }
    std::fs::remove_dir_all(folder.path().join("own")).unwrap();
    locked(writer.get_tail(segment(9)).await);
    let (same, other) = ([vec![0; 100], vec![100; 150]].concat(), [vec![0; 100], vec![7; 150]].concat());
    writer.compare_with_parts(segment(9), &same).await.unwrap();
    assert!(matches!(writer.compare_with_parts(segment(9), &other).await, Err(Error::Conflict { .. })));
    // Whose key is another one compares nothing, and says so.
    let elsewhere = tempfile::tempdir().unwrap();
    let stranger = encrypted(store, writer_and_reader(elsewhere.path()).0).await;
    stranger.compare_with_parts(segment(9), &other).await.unwrap();
}

/// One valid object under another's name.
#[tokio::test]
async fn a_swapped_object_is_found() {
    let folder = tempfile::tempdir().unwrap();
    let (writer, reader, store) = both(folder.path()).await;
    for number in [1, 2] {
        writer.put_wal(whole(number), content(number as u8)).await.unwrap();
        let timeline = TimelineId::new(number as u32 + 1).unwrap();
        writer.put_wal(WalFileName::History(timeline), Bytes::from(format!("1\t0/{number}80000\tno reason\n"))).await.unwrap();
        let name = SnapshotName { timeline: TimelineId::FIRST, lsn: Lsn::new(number) };
        writer.put_names(name, format!("snapshot {number}")).await.unwrap();
    }
    for (from, to) in [(0, 100), (100, 200)] {
        for epoch in [1, 2] {
            writer.put_part(PartName { epoch, ..part(from, to) }, Bytes::from(vec![from as u8; 100])).await.unwrap();
        }
    }
    let three = WalFileName::History(TimelineId::new(3).unwrap());
    let names = |lsn| ObjectName::Names(SnapshotName { timeline: TimelineId::FIRST, lsn: Lsn::new(lsn) });
    let pairs = [
        (ObjectName::Wal(whole(1)), ObjectName::Wal(whole(2))),
        (ObjectName::Wal(two()), ObjectName::Wal(three)),
        (ObjectName::Part(part(0, 100)), ObjectName::Part(part(100, 200))),
        (ObjectName::Part(part(0, 100)), ObjectName::Part(PartName { epoch: 2, ..part(0, 100) })),
        (names(1), names(2)),
        (ObjectName::Wal(whole(1)), ObjectName::Wal(two())),
    ];
    for (one, other) in pairs {
        let key = writer.key(&one).unwrap();
        let (own, strange) = (store.get(&key, None).await.unwrap(), store.get(&writer.key(&other).unwrap(), None).await.unwrap());
        store.overwrite(&key, strange);
        let read = read_as(&reader, &one).await;
        assert!(matches!(read, Err(Error::Corrupt { .. })), "{one:?} with {other:?}: {read:?}");
        // And where nobody reads, a copy of one's own is not taken for it.
        if one.holds_data() {
            locked(read_as(&writer, &one).await);
        }
        store.overwrite(&key, own);
        read_as(&reader, &one).await.unwrap();
    }
}

/// A manifest names its backup, and its record names it.
#[tokio::test]
async fn a_swapped_manifest_is_found() {
    let folder = tempfile::tempdir().unwrap();
    let (writer, reader, store) = both(folder.path()).await;
    let mut records = [record(1), record(2)];
    for record in &mut records {
        let (piece, trailer) = ManifestEncoder::new(record.id.clone(), 1 << 20, 3).unwrap().finish().unwrap();
        writer.put_manifest(&record.id, &piece).await.unwrap();
        record.manifest_sha256 = trailer.sha256;
        let entries = reader.get_manifest(record).await.unwrap();
        assert!(entries.iter().unwrap().all(|entry| entry.is_ok()));
    }
    let key = |record: &BackupRecord| writer.key(&ObjectName::BackupManifest(record.id.clone(), 1)).unwrap();
    store.overwrite(&key(&records[0]), store.get(&key(&records[1]), None).await.unwrap());
    let entries = reader.get_manifest(&records[0]).await.unwrap();
    let read: Result<Vec<_>> = entries.iter().unwrap().collect();
    assert!(matches!(read, Err(Error::Corrupt { .. })), "{read:?}");
    locked(writer.get_manifest(&records[0]).await);
}

async fn read_as(repository: &ClusterRepository, name: &ObjectName) -> Result<()> {
    match name {
        ObjectName::Wal(file @ WalFileName::History(timeline)) => {
            repository.get_history(*timeline).await?;
            repository.get_wal(*file).await.map(drop)
        }
        ObjectName::Wal(file) => repository.get_wal(*file).await.map(drop),
        ObjectName::Part(part) => repository.get_part(*part).await.map(drop),
        ObjectName::Names(name) => repository.names_text(*name).await.map(drop),
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn a_configuration_that_does_not_fit_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let (writer, reader, _) = both(folder.path()).await;
    assert!(writer.check_form().is_ok() && reader.check_form().is_ok());
    assert!(!writer.can_read() && reader.can_read());
    let (plain, _) = memory().await;
    assert!(plain.check_form().is_ok() && plain.can_read());
    let (keys, _) = writer_and_reader(folder.path());
    let refused = plain.with_encryption(Some(Arc::new(keys))).check_form().unwrap_err();
    assert!(refused.is_configuration() && refused.is_permanent() && refused.to_string().contains("is not encrypted"), "{refused}");
    let refused = writer.with_encryption(None).put_wal(whole(1), content(1)).await.unwrap_err();
    assert!(refused.is_configuration() && refused.to_string().contains("has no keys"), "{refused}");
}

/// Whoever cannot decrypt one object can still list, and read what is no secret.
#[tokio::test]
async fn the_catalog_needs_no_identity() {
    let folder = tempfile::tempdir().unwrap();
    let (writer, _, _) = both(folder.path()).await;
    for number in [1, 2] {
        writer.put_wal(whole(number), content(1)).await.unwrap();
    }
    writer.put_wal(two(), Bytes::from_static(HISTORY)).await.unwrap();
    writer.commit_backup(&record(1)).await.unwrap();
    let loaded = writer.load_catalog().await.unwrap();
    assert_eq!((loaded.damaged.len(), loaded.foreign, loaded.catalog.backups().len()), (0, 0, 1));
    assert_eq!(loaded.catalog.stored_ranges(TimelineId::FIRST).len(), 1);
    assert_eq!(loaded.catalog.newest_timeline(), TimelineId::new(2));
}

/// The store lost an fsync of what another writer had put: it begins as it should, and what is behind that nobody knows.
#[tokio::test]
async fn what_is_in_doubt_is_not_called_stored_by_its_fingerprint() {
    let (folder, keys) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let store = Arc::new(walkeep_store::LocalStore::create(folder.path().join("r")).await.unwrap());
    let (writer, reader) = writer_and_reader(keys.path());
    let (writer, reader) = (encrypted(store.clone(), writer).await, encrypted(store.clone(), reader).await);
    let key = writer.layout().wal_key(whole(1));
    let (object, doubt) = (folder.path().join("r").join(&key), folder.path().join("r/.doubt~").join(&key));
    let lose = || {
        let mut bytes = std::fs::read(&object).unwrap();
        let front = bytes.len() / 2;
        assert!(front > 300, "its header stays whole");
        bytes[front..].fill(0);
        std::fs::write(&object, bytes).unwrap();
        std::fs::create_dir_all(doubt.parent().unwrap()).unwrap();
        std::fs::write(&doubt, b"").unwrap();
    };
    let noise = |seed: u8| -> Bytes {
        let mut state = u64::from(seed) + 1;
        let next = |_| {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (state >> 56) as u8
        };
        (0..SIZE).map(next).collect::<Vec<u8>>().into()
    };
    writer.put_wal(whole(1), noise(1)).await.unwrap();
    lose();
    // Other content is a conflict all the same, and nothing is overwritten.
    let before = std::fs::read(&object).unwrap();
    assert!(matches!(writer.put_wal(whole(1), noise(2)).await, Err(Error::Conflict { .. })));
    assert!(std::fs::read(&object).unwrap() == before && doubt.exists());
    assert!(reader.get_wal(whole(1)).await.is_err(), "it was lost");
    // Who has the content puts it where it was lost; without an identity.
    assert_eq!(writer.put_wal(whole(1), noise(1)).await.unwrap(), Stored::Already);
    assert_eq!(reader.get_wal(whole(1)).await.unwrap().unwrap().content, noise(1));
    assert!(!doubt.exists());
    assert_eq!(writer.put_wal(whole(1), noise(1)).await.unwrap(), Stored::Already);
    // Whose fingerprints are others cannot tell what it was to be: refused, not called stored.
    lose();
    let strange = tempfile::tempdir().unwrap();
    let stranger = encrypted(store.clone(), writer_and_reader(strange.path()).0).await;
    let refused = stranger.put_wal(whole(1), noise(1)).await.unwrap_err();
    assert!(refused.to_string().contains("in doubt") && doubt.exists() && refused.is_mendable(), "{refused}");
    // Nor who reads it and finds that it was lost; and what was not lost is proven by that.
    let refused = reader.put_wal(whole(1), noise(1)).await.unwrap_err();
    assert!(refused.to_string().contains("in doubt") && doubt.exists(), "{refused}");
    assert_eq!(writer.put_wal(whole(1), noise(1)).await.unwrap(), Stored::Already);
    std::fs::write(&doubt, b"").unwrap();
    assert_eq!(reader.put_wal(whole(1), noise(1)).await.unwrap(), Stored::Already);
    assert!(!doubt.exists());

    // The same in a repository that is not encrypted, where the content is compressed otherwise.
    let plain = Arc::new(walkeep_store::LocalStore::create(folder.path().join("p")).await.unwrap());
    let usual = crate::repository::tests::over(plain.clone()).await;
    let other_level =
        ClusterRepository::new(usual.repository().clone(), usual.cluster().clone(), usual.identity().clone(), 3).with_wal_level(9);
    usual.put_wal(whole(1), noise(1)).await.unwrap();
    let (object, doubt) = {
        let key = usual.layout().wal_key(whole(1));
        (folder.path().join("p").join(&key), folder.path().join("p/.doubt~").join(&key))
    };
    let mut bytes = std::fs::read(&object).unwrap();
    let last = bytes.len() - 9;
    bytes[last] ^= 1;
    std::fs::write(&object, bytes).unwrap();
    std::fs::create_dir_all(doubt.parent().unwrap()).unwrap();
    std::fs::write(&doubt, b"").unwrap();
    assert_eq!(other_level.put_wal(whole(1), noise(1)).await.unwrap(), Stored::Already);
    assert_eq!(usual.get_wal(whole(1)).await.unwrap().unwrap().content, noise(1));
    assert!(!doubt.exists());
}
