//! One of several repositories, opened when it is first asked: so one that is out of reach keeps nobody from working with the others.
//!
//! It is used only once it was proven to keep the same cluster as the others: marker and identities are read first, and compared with those of the one that was
//! opened first.

use std::sync::Arc;

use async_trait::async_trait;
use futures::future::BoxFuture;
use tokio::sync::Mutex;
use walkeep_core::layout::ClusterName;
use walkeep_store::{ErrorKind, Key, Lock, SharedStore};

use super::opened::{Open, OpenedStore};
use super::{ClusterIdentity, Error, Repository, Result};

/// How to open the store.
pub type OpenStore = Arc<dyn Fn() -> BoxFuture<'static, Result<SharedStore>> + Send + Sync>;

/// How objects are locked that are put there, as it is configured.
pub type LockRule = Arc<dyn Fn(&Key) -> Option<Lock> + Send + Sync>;

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
pub type PlaceStore = OpenedStore<OpenPlace>;

impl PlaceStore {
    /// The repository at `url`, which `open` opens.
    pub fn of(url: String, cluster: ClusterName, open: OpenStore, locks: LockRule, agreed: Agreed) -> Self {
        Self::new(OpenPlace { url, cluster, open, locks, agreed })
    }
}

/// How it is opened.
pub struct OpenPlace {
    url: String,
    cluster: ClusterName,
    open: OpenStore,
    locks: LockRule,
    agreed: Agreed,
}

#[async_trait]
impl Open for OpenPlace {
    type Error = Error;

    fn url(&self) -> &str {
        &self.url
    }

    async fn open(&self) -> Result<SharedStore> {
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

    fn lock_of(&self, key: &Key) -> Option<Lock> {
        (self.locks)(key)
    }

    fn kind(error: &Error) -> ErrorKind {
        match error {
            Error::Store(error) if error.kind() != ErrorKind::NotFound && error.kind() != ErrorKind::AlreadyExists => error.kind(),
            _ => ErrorKind::Unusable,
        }
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

#[cfg(test)]
mod tests {
    use chrono::DateTime;
    use futures::FutureExt;
    use walkeep_core::layout::Form;
    use walkeep_core::{MajorVersion, SegmentSize, SystemIdentifier};
    use walkeep_store::{MemoryStore, Store};

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
        PlaceStore::of(url.into(), cluster, open, Arc::new(|_| None), agreed.clone())
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
