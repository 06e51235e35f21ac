//! The repository before it is changed: of a real server, with something of every kind.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use serde::{Deserialize, Serialize};
use tokio_util::sync::CancellationToken;
use walkeep::backup;
use walkeep::encryption::Encryption;
use walkeep::encryption::keys::{self, Identities, Recipients, RecipientsSource};
use walkeep::index::rebuild;
use walkeep::postgres::ConnectionParams;
use walkeep::repository::holds::Hold;
use walkeep::repository::{ClusterIdentity, ClusterRepository, Repository};
use walkeep::transfer::unwatched;
use walkeep_core::backup::Keep;
use walkeep_core::catalog::GapCause;
use walkeep_core::expiry::{End, Expiry, ExpiryEnd};
use walkeep_core::layout::{ClusterName, Form, GapName, PartName};
use walkeep_core::lease::{LeaseName, LeaseRecord, Writer};
use walkeep_core::{Lsn, MajorVersion, SegmentNumber, SegmentSize, SystemIdentifier, TimelineId, WalFileName};
use walkeep_store::{ListRequest, MemoryStore, Store, list_all};
use walkeep_tests::Cluster;

use super::Objects;

const SEGMENT: u64 = 1 << 20;

/// A repository as objects, and the keys to it.
pub struct Origin {
    pub cluster: ClusterName,
    pub objects: Objects,
    pub keys: Option<Keys>,
}

/// An identity and its recipient.
#[derive(Clone, Serialize, Deserialize)]
pub struct Keys {
    identity: String,
    recipient: String,
}

impl Origin {
    pub fn form(&self) -> &'static str {
        if self.keys.is_some() { "encrypted" } else { "plain" }
    }

    pub fn encryption(&self) -> Option<Arc<Encryption>> {
        self.keys.as_ref().map(encryption)
    }

    /// Writes it to a folder, for another process.
    pub fn store(&self, folder: &Path) {
        for (key, body) in &self.objects {
            let path = folder.join("objects").join(key.as_str());
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, body).unwrap();
        }
        std::fs::write(folder.join("origin.json"), serde_json::to_vec(&(self.cluster.as_str(), &self.keys)).unwrap()).unwrap();
    }

    /// Reads what [`Origin::store`] wrote.
    pub fn load(folder: &Path) -> Self {
        let (cluster, keys): (String, Option<Keys>) = serde_json::from_slice(&std::fs::read(folder.join("origin.json")).unwrap()).unwrap();
        let mut objects = Objects::new();
        let root = folder.join("objects");
        let mut folders = vec![root.clone()];
        while let Some(folder) = folders.pop() {
            for entry in std::fs::read_dir(folder).unwrap() {
                let path = entry.unwrap().path();
                match path.is_dir() {
                    true => folders.push(path),
                    false => {
                        let key = path.strip_prefix(&root).unwrap().to_str().unwrap().parse().unwrap();
                        objects.insert(key, Bytes::from(std::fs::read(path).unwrap()));
                    }
                }
            }
        }
        Self { cluster: cluster.parse().unwrap(), objects, keys }
    }
}

fn encryption(keys: &Keys) -> Arc<Encryption> {
    let recipients = RecipientsSource::new(Recipients::parse_list(&keys.recipient).unwrap(), None);
    Arc::new(Encryption::new(recipients, Identities::parse_list(&keys.identity, "test").unwrap()))
}

/// A plain one and an encrypted one of the same server.
pub fn make() -> (Origin, Origin) {
    let server = Cluster::builder().segment_mib(1).archiving().start();
    server.archive_by(None);
    server.sql("CREATE TABLE t AS SELECT n, md5(n::text) AS text FROM generate_series(1, 2000) AS n");
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().unwrap();
    let (identity, recipient) = keys::generate();
    let keys = Keys { identity: identity.reveal().to_owned(), recipient };
    let plain = runtime.block_on(stored(&server, None));
    let encrypted = runtime.block_on(stored(&server, Some(keys)));
    (plain, encrypted)
}

async fn stored(server: &Cluster, keys: Option<Keys>) -> Origin {
    let store = Arc::new(MemoryStore::new());
    let repository = Repository::create(store.clone()).await.unwrap();
    let cluster: ClusterName = "main".parse().unwrap();
    let identity = ClusterIdentity {
        system_identifier: SystemIdentifier::new(server.system_identifier()),
        major_version: MajorVersion::new(server.version()),
        segment_size: SegmentSize::new(SEGMENT).unwrap(),
        since: chrono::Utc::now(),
        form: if keys.is_some() { Form::Age } else { Form::Zstd },
    };
    repository.add_identity(&cluster, 1, &identity).await.unwrap();
    let repository = ClusterRepository::new(repository, cluster.clone(), identity, 1).with_encryption(keys.as_ref().map(encryption));
    let repository = Arc::new(repository);
    let stop = CancellationToken::new();
    let archiving = tokio::spawn(archive(repository.clone(), server.oracle(), stop.clone()));
    let params = ConnectionParams::parse(&server.connection(), &|_| None).unwrap();
    let mut ids = Vec::new();
    for label in ["first", "second"] {
        let options = backup::Options::new(label);
        let taken = backup::take(repository.clone(), &params, options, &unwatched, &CancellationToken::new()).await;
        ids.push(taken.unwrap().id);
        tokio::task::block_in_place(|| server.sql("UPDATE t SET text = md5(text) WHERE n % 50 = 0"));
        tokio::time::sleep(Duration::from_millis(1100)).await;
    }
    let last: WalFileName = tokio::task::block_in_place(|| server.archive_now()).parse().unwrap();
    while repository.get_stored_wal(last).await.unwrap().is_none() {
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    stop.cancel();
    archiving.await.unwrap();
    let catalog = repository.load_catalog().await.unwrap().catalog;
    rebuild::rebuild(&repository, &catalog, TimelineId::FIRST, &CancellationToken::new(), &mut |_, _| {}).await.unwrap();
    records(&repository, &catalog, &ids).await;
    let listed = list_all(store.as_ref(), ListRequest::default()).await.unwrap().objects;
    let mut objects = Objects::new();
    for listed in listed {
        let body = store.get(&listed.key, None).await.unwrap();
        objects.insert(listed.key, body);
    }
    Origin { cluster, objects, keys }
}

/// Brings what the server archives into the repository.
async fn archive(repository: Arc<ClusterRepository>, from: std::path::PathBuf, stop: CancellationToken) {
    let mut done = std::collections::HashSet::new();
    loop {
        let stopped = stop.is_cancelled();
        for entry in std::fs::read_dir(&from).unwrap() {
            let name = entry.unwrap().file_name().into_string().unwrap();
            if let Ok(file) = name.parse::<WalFileName>()
                && done.insert(name.clone())
            {
                repository.put_wal(file, Bytes::from(std::fs::read(from.join(name)).unwrap())).await.unwrap();
            }
        }
        if stopped {
            return;
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

/// A record of every kind, a timeline's history, and an unfinished segment behind the last one.
async fn records(repository: &ClusterRepository, catalog: &walkeep_core::catalog::Catalog, ids: &[walkeep_core::layout::BackupId]) {
    let (one, size) = (TimelineId::FIRST, catalog.segment_size());
    let end = catalog.frontier(one).unwrap();
    let next: SegmentNumber = size.segment_of(end);
    let writer = Writer {
        id: "0123456789abcdef".into(),
        life: "fedcba9876543210".into(),
        host: "db1".into(),
        pid: 7,
        servers: vec!["db1:5432".into()],
        at: None,
        slot: "walkeep".into(),
    };
    for epoch in 1..=2 {
        let name = LeaseName { timeline: one, epoch };
        let lease = LeaseRecord { name, writer: writer.clone(), taken_at: chrono::Utc::now(), by_operator: false };
        assert!(repository.put_lease(&lease).await.unwrap());
    }
    let content: Vec<u8> = (0..40_000u32).map(|at| (at / 11) as u8).collect();
    for (from, to, epoch) in [(0, 8192, 1), (8192, 30_000, 1), (20_000, 40_000, 2)] {
        let part = PartName { segment: next.name(one, size), from, to, epoch };
        repository.put_part(part, Bytes::copy_from_slice(&content[from as usize..to as usize])).await.unwrap();
    }
    // A gap that was filled since, and one from before everything.
    let at = |number: u64| Lsn::new(number * SEGMENT);
    let first = catalog.segments(one).next().unwrap().get();
    let filled = GapName { timeline: one, from: at(first + 1), to: at(first + 2) };
    repository.put_gap(filled, GapCause::MinimalWal).await.unwrap();
    repository.close_gap(filled).await.unwrap();
    repository.put_gap(GapName { timeline: one, from: Lsn::new(8), to: at(first) }, GapCause::SlotLost).await.unwrap();
    for keep in [Some(Keep::Forever), None] {
        let hold = Hold { backup: ids[0].clone(), keep, at: chrono::Utc::now(), host: "db1".into() };
        repository.put_hold(&hold).await.unwrap();
    }
    // What was let go was brought back.
    for number in 1..=2 {
        let (at, host) = (chrono::Utc::now(), "db1".to_owned());
        let backups = vec![ids[0].clone()];
        let record = Expiry { backups, ..Expiry::new(number, at, host.clone()) };
        assert!(repository.put_expiry(&record).await.unwrap());
        repository.end_expiry(number, &ExpiryEnd { number: Some(number), end: End::Undone, at, host }).await.unwrap();
    }
}
