//! Objects that the store does not let this host read: one of them is no reason not to look at the others.
//!
//! While a repository is verified such an object reads as damaged, so that whoever meets it goes on as behind damage. What is told of it in the end is only that
//! it could not be read: nobody knows whether it is whole.

use std::collections::BTreeMap;
use std::fmt;
use std::ops::Range;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use async_trait::async_trait;
use bytes::Bytes;
use walkeep_core::layout::ClusterLayout;
use walkeep_store::{Error, ErrorKind, Key, ListRequest, Lock, Locked, Page, Probed, Put, Result, SharedStore, Store};

use crate::repository::ClusterRepository;

/// What was refused, and why.
#[derive(Clone, Debug, Default)]
pub struct Refused(Arc<Mutex<BTreeMap<String, String>>>);

impl Refused {
    /// The repository, as it is looked at. Its marker and what tells its clusters apart are read as ever.
    pub fn over(repository: &ClusterRepository) -> (Arc<ClusterRepository>, Self) {
        let (refused, layout) = (Self::default(), repository.layout().clone());
        let noted = refused.clone();
        let through = repository.through(|inner| Arc::new(Noting { inner, layout, refused: noted }));
        (Arc::new(through), refused)
    }

    /// Whether this object was.
    pub fn has(&self, key: &str) -> bool {
        self.lock().contains_key(key)
    }

    /// How many there are.
    pub fn count(&self) -> u64 {
        self.lock().len() as u64
    }

    /// In words; `None` if nothing was.
    pub fn words(&self) -> Option<String> {
        let refused = self.lock();
        let (key, why) = refused.first_key_value()?;
        Some(match refused.len() - 1 {
            0 => format!("{key} cannot be read: {why}"),
            more => format!("{key} and {more} more cannot be read: {why}"),
        })
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<String, String>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

struct Noting {
    inner: SharedStore,
    layout: ClusterLayout,
    refused: Refused,
}

impl fmt::Debug for Noting {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Noting").field("inner", &self.inner).finish_non_exhaustive()
    }
}

#[async_trait]
impl Store for Noting {
    fn url(&self) -> String {
        self.inner.url()
    }

    async fn get(&self, key: &Key, range: Option<Range<u64>>) -> Result<Bytes> {
        match self.inner.get(key, range).await {
            Err(error) if error.kind() == ErrorKind::Denied && self.layout.parse(key.as_str()).is_some() => {
                let why = format!("{:#}", anyhow::Error::new(error));
                self.refused.lock().insert(key.as_str().to_owned(), why.clone());
                Err(Error::new(ErrorKind::Corrupt, "get", key).because(why))
            }
            got => got,
        }
    }

    async fn put_if_absent(&self, key: &Key, body: Bytes) -> Result<Put> {
        self.inner.put_if_absent(key, body).await
    }

    async fn list(&self, request: &ListRequest) -> Result<Page> {
        self.inner.list(request).await
    }

    async fn delete(&self, key: &Key) -> Result<()> {
        self.inner.delete(key).await
    }

    async fn probe(&self, scratch: &Key) -> Result<Probed> {
        self.inner.probe(scratch).await
    }

    fn lock_of(&self, key: &Key) -> Option<Lock> {
        self.inner.lock_of(key)
    }

    async fn locked(&self, key: &Key) -> Result<Option<Locked>> {
        self.inner.locked(key).await
    }
}
