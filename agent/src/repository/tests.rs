//! What the tests of this crate share: a repository in memory and values to put there.

use std::sync::Arc;

use chrono::DateTime;
use walkeep_core::backup::{BackupMethod, BackupRecord};
use walkeep_core::layout::{BackupId, Form};
use walkeep_core::sha256::Sha256Sum;
use walkeep_core::{Lsn, MajorVersion, SegmentName, SegmentNumber, SegmentSize, SystemIdentifier, TimelineId};
use walkeep_store::{MemoryStore, SharedStore};

use crate::encryption::Encryption;

use super::{ClusterIdentity, ClusterRepository, Repository};

/// A repository in memory, 1 MiB segments, system identifier 7.
pub(crate) async fn memory() -> (ClusterRepository, Arc<MemoryStore>) {
    let store = Arc::new(MemoryStore::new());
    (over(store.clone()).await, store)
}

/// The same over any store.
pub(crate) async fn over(store: SharedStore) -> ClusterRepository {
    of_form(store, Form::Zstd).await
}

/// The same, encrypted with these keys.
pub(crate) async fn encrypted(store: SharedStore, keys: Encryption) -> ClusterRepository {
    of_form(store, Form::Age).await.with_encryption(Some(Arc::new(keys)))
}

async fn of_form(store: SharedStore, form: Form) -> ClusterRepository {
    let identity = ClusterIdentity {
        system_identifier: SystemIdentifier::new(7),
        major_version: MajorVersion::new(15),
        segment_size: SegmentSize::new(1 << 20).unwrap(),
        since: DateTime::UNIX_EPOCH,
        form,
    };
    let repository = Repository::create(store).await.unwrap();
    ClusterRepository::new(repository, "main".parse().unwrap(), identity, 3)
}

/// A segment of timeline 1.
pub(crate) fn segment(number: u64) -> SegmentName {
    SegmentNumber::new(number).name(TimelineId::FIRST, SegmentSize::new(1 << 20).unwrap())
}

/// The record of a backup that begins with segment `number` and ends in it.
pub(crate) fn record(number: u64) -> BackupRecord {
    let at = |second: u64| DateTime::from_timestamp(1_795_219_200 + (number * 60 + second) as i64, 0).unwrap();
    let start_lsn = Lsn::new(number << 20);
    BackupRecord {
        format: BackupRecord::FORMAT,
        id: BackupId::new(at(0), start_lsn),
        cluster: "main".into(),
        system_identifier: SystemIdentifier::new(7),
        label: "nightly".into(),
        timeline: TimelineId::FIRST,
        stop_timeline: None,
        start_lsn,
        stop_lsn: start_lsn.saturating_add(1000),
        checkpoint_lsn: None,
        started_at: at(0),
        ended_at: at(9),
        server_version_num: 150_018,
        major_version: MajorVersion::new(15),
        segment_size: SegmentSize::new(1 << 20).unwrap(),
        method: BackupMethod::BaseBackup,
        from_standby: false,
        files: 0,
        bytes: 0,
        bytes_stored: 0,
        bytes_referenced: 0,
        tablespaces: Vec::new(),
        manifest_sha256: Sha256Sum::new([0; 32]),
        manifest_pieces: 1,
        parent: None,
        keep: None,
        due: None,
        data_checksums: None,
        damage: None,
    }
}
