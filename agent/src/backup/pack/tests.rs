use super::*;
use crate::codec;
use crate::repository::tests::{memory, over, record};
use walkeep_core::layout::ObjectName;
use walkeep_store::{ErrorKind, Fault, FaultyStore, MemoryStore, Operation, Rule, Store};

fn facts(path: &str) -> FileFacts {
    FileFacts { path: RelativePath::parse(path).unwrap(), mode: 0o600, mtime: None }
}

/// Bytes that do not compress.
fn noise(len: usize, mut seed: u64) -> Vec<u8> {
    let mut next = || {
        seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (seed >> 33) as u8
    };
    (0..len).map(|_| next()).collect()
}

fn packer(repository: &Arc<ClusterRepository>, older: Older) -> Packer {
    Packer::new(repository.clone(), record(1).id, Workers::start(2, 1).unwrap(), older, CancellationToken::new()).unwrap()
}

/// The contents of all files of a manifest.
async fn read_back(repository: &ClusterRepository, packed: Packed) -> Vec<(String, Content, Vec<u8>)> {
    let mut record = record(1);
    record.manifest_sha256 = packed.trailer.sha256;
    record.manifest_pieces = packed.last.number;
    repository.put_manifest(&record.id, &packed.last).await.unwrap();
    let entries: Vec<Entry> = repository.get_manifest(&record).await.unwrap().iter().unwrap().collect::<Result<_, _>>().unwrap();
    let mut files = Vec::new();
    for entry in entries {
        let EntryKind::File { content, .. } = entry.kind else { panic!("{} is a file", entry.path) };
        let mut bytes = vec![0; content.size() as usize];
        for (extent, placements) in content.extents().iter().zip(content.placements()) {
            let frame = repository.get_extents(extent.pack, extent.offset..extent.offset + extent.stored).await.unwrap();
            let plain = codec::decompress(&frame, extent.plain as usize).unwrap();
            assert_eq!(codec::blake3(&plain), extent.hash);
            for place in placements {
                bytes[place.offset as usize..][..place.length as usize]
                    .copy_from_slice(&plain[place.from as usize..][..place.length as usize]);
            }
        }
        files.push((entry.path.to_string(), content, bytes));
    }
    files
}

#[tokio::test]
async fn files_come_back_from_their_extents() {
    let (repository, _) = memory().await;
    let repository = Arc::new(repository);
    let mut packer = packer(&repository, Older::default());
    let files = [
        ("a", noise(20 << 20, 1)),
        ("b", Vec::new()),
        ("c", vec![0; (3 << 20) + 17]),
        ("d", noise(EXTENT, 2)),
        ("e", vec![7; 1 << 20]),
        ("e again", vec![7; 1 << 20]),
        ("f", noise(100, 3)),
    ];
    for (name, content) in &files {
        for piece in content.chunks(300_001) {
            packer.data(piece).await.unwrap();
        }
        packer.file(facts(name)).await.unwrap();
    }
    let packed = packer.finish().await.unwrap();
    let totals = packed.totals;
    assert_eq!((totals.files, totals.bytes), (7, files.iter().map(|(_, content)| content.len() as u64).sum()));
    let sevens = codec::compress(&vec![7; EXTENT], 1).unwrap().len() as u64;
    let notes = 2 * codec::note(record(1).id.to_string().as_bytes()).len() as u64;
    assert_eq!(
        totals.stored,
        totals.referenced - sevens + notes,
        "what comes again is stored once, and each of two packs says whose it is"
    );
    let read = read_back(&repository, packed).await;
    assert!(read.iter().map(|(name, _, bytes)| (name.as_str(), bytes)).eq(files.iter().map(|(name, bytes)| (*name, bytes))));
    assert_eq!(read[2].1.stored(), 0, "zeros are not stored");
}

#[tokio::test]
async fn what_an_older_backup_has_is_referred_to() {
    let (repository, store) = memory().await;
    let repository = Arc::new(repository);
    let mut file = noise(5 * EXTENT, 4);
    let mut first = packer(&repository, Older::default());
    first.data(&file).await.unwrap();
    first.file(facts("a")).await.unwrap();
    let before = read_back(&repository, first.finish().await.unwrap()).await.remove(0).1;

    // One block changed, told as such; the same file, read whole; and one that went elsewhere.
    file[3 * EXTENT + 9000] ^= 1;
    let changed = 3 * EXTENT as u64 + 8192;
    let older = Older::new(before.extents().iter().map(|extent| (extent.hash, *extent)).collect());
    let mut second = packer(&repository, older);
    let recipe = Recipe::of(&before, file.len() as u64, std::slice::from_ref(&(changed..changed + 8192)));
    for ranges in recipe.fresh.clone() {
        let bytes = ranges.into_iter().flat_map(|range| file[range.start as usize..range.end as usize].to_vec()).collect();
        second.extent(None, move || Ok(Plain { bytes, bad_blocks: vec![9] })).await.unwrap();
    }
    second.file_of(facts("patched"), recipe).await.unwrap();
    for (index, piece) in file.chunks(EXTENT).enumerate() {
        let (piece, expected) = (piece.to_vec(), Some(before.extents()[index]));
        second.extent(expected, move || Ok(Plain { bytes: piece, bad_blocks: Vec::new() })).await.unwrap();
    }
    second.file(facts("read")).await.unwrap();
    second.data(&file[..2 * EXTENT]).await.unwrap();
    second.file(facts("moved")).await.unwrap();
    let packed = second.finish().await.unwrap();
    assert_eq!((packed.totals.files, packed.totals.bad_blocks), (3, 1));
    let stored = packed.totals.stored;
    assert!(stored > 8192 + EXTENT as u64 && stored < 8192 + EXTENT as u64 + 1000, "{stored} bytes");
    // It has the name of the first, whose manifest is not needed any more.
    let first = repository.layout().key(&ObjectName::BackupManifest(record(1).id, 1)).parse().unwrap();
    store.delete(&first).await.unwrap();
    let read = read_back(&repository, packed).await;
    assert!(read[0].2 == file && read[1].2 == file && read[2].2 == file[..2 * EXTENT]);
    assert_eq!((read[0].1.extents().len(), read[0].1.runs().len()), (6, 7));
}

#[tokio::test]
async fn a_repository_that_refuses_ends_the_backup() {
    let faulty = Arc::new(FaultyStore::new(Arc::new(MemoryStore::new())));
    let repository = Arc::new(over(faulty.clone()).await);
    faulty.inject(Rule::new(Operation::Put, Fault::Fail(ErrorKind::Denied)).on("packs/"));
    let mut packer = packer(&repository, Older::default());
    packer.data(&noise(100, 1)).await.unwrap();
    packer.file(facts("a")).await.unwrap();
    let error = packer.finish().await.map(|_| ()).unwrap_err();
    assert!(format!("{error:#}").contains("access denied"), "{error:#}");
}

#[tokio::test(start_paused = true)]
async fn a_lost_answer_is_asked_again() {
    let faulty = Arc::new(FaultyStore::new(Arc::new(MemoryStore::new())));
    let repository = Arc::new(over(faulty.clone()).await);
    faulty.inject(Rule::new(Operation::Put, Fault::LoseAnswer).on("packs/").times(2));
    let mut packer = packer(&repository, Older::default());
    packer.data(&noise(100, 1)).await.unwrap();
    packer.file(facts("a")).await.unwrap();
    packer.finish().await.map(|_| ()).unwrap();
}

#[tokio::test]
async fn where_little_is_new_files_do_not_wait_for_a_full_pack() {
    let (repository, store) = memory().await;
    let repository = Arc::new(repository);
    let mut packer = packer(&repository, Older::default());
    for number in 0..HELD + 10 {
        packer.data(&number.to_le_bytes()).await.unwrap();
        packer.file(facts(&format!("base/5/{number}"))).await.unwrap();
        assert!(packer.held <= HELD, "{} extents wait", packer.held);
    }
    let packed = packer.finish().await.unwrap();
    assert_eq!(packed.totals.files, HELD as u64 + 10);
    let packs = repository.packs_before(std::time::SystemTime::now() + PATIENCE).await.unwrap();
    assert_eq!(packs.len(), 2, "{packs:?}");
    drop(store);
}
