//! One of several repositories, opened when it is first asked: so one that is out of reach keeps nobody from working with the others.
//!
//! It is used only once it was proven to keep the same cluster as the others: marker and identities are read first, and compared with those of the one that was
//! opened first.

use std::fmt;
use std::ops::Range;
use std::sync::Arc;

use async_trait::async_trait;
use bytes::Bytes;
use futures::future::BoxFuture;
use tokio::sync::{Mutex, OnceCell};
use walkeep_core::layout::ClusterName;
use walkeep_store::{
    Error as StoreError, ErrorKind, Key, ListRequest, Lock, Locked, Page, Probed, Put, Readiness, Result as StoreResult, SharedStore,
    Store, Thaw,
};

use super::{ClusterIdentity, Error, Repository, Result};

/// How to open the store.
pub type OpenStore = Arc<dyn Fn() -> BoxFuture<'static, Result<SharedStore>> + Send + Sync>;

/// What the repository that was opened first knows of the cluster: the others have to know the same.
#[derive(Debug, Clone, Default)]
pub struct Agreed(Arc<Mutex<Option<Known>>>);

/// What a repository knows of the cluster.
#[derive(Debug)]
struct Known {
    url: String,
    identities: Vec<ClusterIdentity>,
}

/// Such a repository, as a store.
pub struct PlaceStore {
    url: String,
    cluster: ClusterName,
    open: OpenStore,
    agreed: Agreed,
    opened: OnceCell<SharedStore>,
}

impl PlaceStore {
    /// The repository at `url`, which `open` opens.
    pub fn new(url: String, cluster: ClusterName, open: OpenStore, agreed: Agreed) -> Self {
        Self { url, cluster, open, agreed, opened: OnceCell::new() }
    }

    /// Opens it, unless that was done.
    pub async fn ready(&self) -> Result<()> {
        self.opened.get_or_try_init(|| self.open_and_prove()).await.map(drop)
    }

    async fn open_and_prove(&self) -> Result<SharedStore> {
        let store = (self.open)().await?;
        let repository = Repository::open(store.clone()).await?;
        let known = repository.identities(&self.cluster).await?;
        if known.is_empty() {
            return Err(Error::UnknownCluster { url: self.url.clone(), cluster: self.cluster.to_string() });
        }
        let mut agreed = self.agreed.0.lock().await;
        match agreed.as_ref() {
            None => *agreed = Some(Known { url: self.url.clone(), identities: known }),
            Some(first) => {
                if let Some(reason) = difference(&first.identities, &known) {
                    let (one, other, cluster) = (first.url.clone(), self.url.clone(), self.cluster.to_string());
                    return Err(Error::Disagree { one, other, cluster, reason });
                }
            }
        }
        Ok(store)
    }

    async fn store(&self) -> StoreResult<&SharedStore> {
        self.opened.get_or_try_init(|| self.open_and_prove()).await.map_err(|error| self.not_opened(error))
    }

    /// Never "not found": that is said of an object by a repository that was reached.
    fn not_opened(&self, error: Error) -> StoreError {
        let kind = match &error {
            Error::Store(error) if error.kind() != ErrorKind::NotFound && error.kind() != ErrorKind::AlreadyExists => error.kind(),
            _ => ErrorKind::Unusable,
        };
        StoreError::at(kind, "open", &self.url).because(format!("{error:#}"))
    }
}

/// In what two repositories differ; `None` if they mean the same clusters by a name.
pub fn difference(one: &[ClusterIdentity], other: &[ClusterIdentity]) -> Option<String> {
    let said = |identity: &ClusterIdentity| {
        let form = if identity.form.is_usual() { "" } else { ", encrypted" };
        format!("PostgreSQL {} with system identifier {}{form}", identity.major_version, identity.system_identifier)
    };
    let same = |(one, other): (&ClusterIdentity, &ClusterIdentity)| one.same_cluster(other) && one.form == other.form;
    match one.iter().zip(other).find(|pair| !same(*pair)) {
        Some((one, other)) => Some(format!("the first keeps {}, the other {}", said(one), said(other))),
        None if one.len() != other.len() => Some(format!(
            "the first knows {} identities of it, the other {}: `walkeep init` makes the missing ones known",
            one.len(),
            other.len()
        )),
        None => None,
    }
}

impl fmt::Debug for PlaceStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PlaceStore").field("url", &self.url).field("opened", &self.opened.initialized()).finish_non_exhaustive()
    }
}

#[async_trait]
impl Store for PlaceStore {
    fn url(&self) -> String {
        self.url.clone()
    }

    async fn put_if_absent(&self, key: &Key, body: Bytes) -> StoreResult<Put> {
        self.store().await?.put_if_absent(key, body).await
    }

    async fn get(&self, key: &Key, range: Option<Range<u64>>) -> StoreResult<Bytes> {
        self.store().await?.get(key, range).await
    }

    async fn list(&self, request: &ListRequest) -> StoreResult<Page> {
        self.store().await?.list(request).await
    }

    async fn delete(&self, key: &Key) -> StoreResult<()> {
        self.store().await?.delete(key).await
    }

    async fn delete_many(&self, keys: &[Key]) -> StoreResult<Vec<(Key, StoreError)>> {
        self.store().await?.delete_many(keys).await
    }

    async fn readiness(&self, key: &Key) -> StoreResult<Readiness> {
        self.store().await?.readiness(key).await
    }

    async fn thaw(&self, key: &Key, thaw: Thaw) -> StoreResult<Readiness> {
        self.store().await?.thaw(key, thaw).await
    }

    async fn probe(&self, scratch: &Key) -> StoreResult<Probed> {
        self.store().await?.probe(scratch).await
    }

    fn lock_of(&self, key: &Key) -> Option<Lock> {
        self.opened.get()?.lock_of(key)
    }

    async fn locked(&self, key: &Key) -> StoreResult<Option<Locked>> {
        self.store().await?.locked(key).await
    }

    async fn lock_anew(&self, key: &Key) -> StoreResult<()> {
        self.store().await?.lock_anew(key).await
    }
}

#[cfg(test)]
mod tests {
    use chrono::DateTime;
    use futures::FutureExt;
    use walkeep_core::layout::Form;
    use walkeep_core::{MajorVersion, SegmentSize, SystemIdentifier};
    use walkeep_store::MemoryStore;

    use super::*;

    fn identity(system: u64, form: Form) -> ClusterIdentity {
        ClusterIdentity {
            system_identifier: SystemIdentifier::new(system),
            major_version: MajorVersion::new(15),
            segment_size: SegmentSize::new(1 << 20).unwrap(),
            since: DateTime::UNIX_EPOCH,
            form,
        }
    }

    async fn place(url: &str, identities: &[ClusterIdentity], agreed: &Agreed) -> PlaceStore {
        let (store, cluster): (SharedStore, ClusterName) = (Arc::new(MemoryStore::new()), "main".parse().unwrap());
        let repository = Repository::create(store.clone()).await.unwrap();
        for (number, identity) in (1..).zip(identities) {
            repository.add_identity(&cluster, number, identity).await.unwrap();
        }
        let open: OpenStore = Arc::new(move || std::future::ready(Ok(store.clone())).boxed());
        PlaceStore::new(url.into(), cluster, open, agreed.clone())
    }

    #[tokio::test]
    async fn repositories_that_do_not_agree_are_refused_with_both_names() {
        let agreed = Agreed::default();
        let mine = identity(7, Form::Zstd);
        place("one", std::slice::from_ref(&mine), &agreed).await.ready().await.unwrap();
        let same = ClusterIdentity { since: DateTime::UNIX_EPOCH + chrono::TimeDelta::days(1), ..mine.clone() };
        place("same", &[same], &agreed).await.ready().await.unwrap();
        for (others, word) in [
            (vec![identity(8, Form::Zstd)], "system identifier 8"),
            (vec![identity(7, Form::Age)], "encrypted"),
            (vec![mine.clone(), identity(8, Form::Zstd)], "2"),
        ] {
            let other = place("other", &others, &agreed).await;
            let error = other.ready().await.unwrap_err();
            let text = error.to_string();
            assert!(matches!(error, Error::Disagree { .. }) && ["one", "other", word].iter().all(|word| text.contains(word)), "{text}");
            assert_eq!(other.get(&"a".parse().unwrap(), None).await.unwrap_err().kind(), ErrorKind::Unusable);
        }
        assert!(matches!(place("new", &[], &agreed).await.ready().await, Err(Error::UnknownCluster { .. })));
    }
}
