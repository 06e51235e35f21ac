//! A repository: typed verbs over an object store.
//!
//! It knows WAL files, parts, backups and gaps, and how each is stored; it does not know S3, sockets or PostgreSQL. The promises kept here:
//! an object is created once and never changed ([`wal`]), what is read back is proven by its hash, and "absent" is answered only when
//! the repository's marker was read in the same breath ([`Repository::prove_reached`]).

pub mod archived;
pub mod artifacts;
pub mod audit;
pub mod backups;
pub mod catalog;
pub mod clusters;
pub mod drills;
mod encrypted;
mod error;
pub mod expiry;
pub mod frontier;
pub mod gaps;
pub mod holds;
pub mod identity;
pub mod index;
pub mod later;
pub mod leases;
pub mod locks;
pub mod look;
pub mod manifest;
pub mod names;
pub mod opened;
pub mod packs;
pub mod place;
pub mod prove;
pub mod several;
pub mod stored;
pub mod trail;
pub mod unfinished;
pub mod wal;
pub mod whole;

use std::sync::Arc;

use bytes::Bytes;
use serde::{Deserialize, Serialize};
use walkeep_core::layout::{ClusterLayout, ClusterName, MARKER_KEY, ObjectName};
use walkeep_store::several::Proof;
use walkeep_store::{ErrorKind, Key, ObservedStore, Observer, Put, SharedStore};

use crate::encryption::Encryption;
pub use error::{Error, Result};
pub use identity::ClusterIdentity;

/// The format of the repository, in its marker.
const FORMAT: u32 = 1;

/// The marker object: what proves that the repository was reached.
#[derive(Debug, Serialize, Deserialize)]
struct Marker {
    walkeep_repository: u32,
}

/// A repository that was reached.
#[derive(Debug, Clone)]
pub struct Repository {
    store: SharedStore,
}

impl Repository {
    /// Opens a repository that [`Repository::create`] made.
    pub async fn open(store: SharedStore) -> Result<Self> {
        let repository = Self { store };
        repository.prove_reached().await?;
        Ok(repository)
    }

    /// The repository in a store in which it was found already.
    pub fn reached(store: SharedStore) -> Self {
        Self { store }
    }

    /// Proves that the store can hold a repository and puts the marker there; no error if it is there already.
    pub async fn create(store: SharedStore) -> Result<Self> {
        let marker = Marker { walkeep_repository: FORMAT };
        let body = Bytes::from(serde_json::to_vec(&marker).map_err(Error::encode)?);
        match store.put_if_absent(&key(MARKER_KEY)?, body).await {
            Ok(Put::Created | Put::AlreadySame) => {}
            Err(error) if error.kind() == ErrorKind::AlreadyExists => {}
            Err(error) => return Err(error.into()),
        }
        Self::open(store).await
    }

    /// Reads the marker: only after this may a missing object be called absent. Of several repositories each one's, where each has to say so.
    pub async fn prove_reached(&self) -> Result<()> {
        match self.store.several().filter(|several| several.proof() == Proof::Every) {
            None => self.read_marker().await,
            Some(several) => {
                for store in several.places() {
                    Self { store }.read_marker().await?;
                }
                Ok(())
            }
        }
    }

    async fn read_marker(&self) -> Result<()> {
        let body = match self.store.get(&key(MARKER_KEY)?, None).await {
            Ok(body) => body,
            Err(error) if error.kind() == ErrorKind::NotFound => return Err(Error::NoRepository { url: self.store.url() }),
            Err(error) => return Err(error.into()),
        };
        let marker: Marker = serde_json::from_slice(&body).map_err(|error| Error::corrupt(MARKER_KEY, error))?;
        match marker.walkeep_repository {
            FORMAT => Ok(()),
            found => Err(Error::Format { url: self.store.url(), found, known: FORMAT }),
        }
    }

    /// Where it lies, for messages.
    pub fn url(&self) -> String {
        self.store.url()
    }

    /// The store below.
    pub fn store(&self) -> &SharedStore {
        &self.store
    }
}

/// One cluster identity's part of a repository.
#[derive(Clone)]
pub struct ClusterRepository {
    repository: Repository,
    cluster: ClusterName,
    identity: ClusterIdentity,
    layout: ClusterLayout,
    /// zstd's level for what is stored.
    level: i32,
    /// The same for segments and their parts.
    wal_level: i32,
    /// The keys, where it is encrypted.
    encryption: Option<Arc<Encryption>>,
    pack_headers: Arc<encrypted::PackHeaders>,
    let_go: Arc<expiry::LetGo>,
    /// Is told how each call to the store ended.
    observer: Option<Arc<dyn Observer>>,
}

impl std::fmt::Debug for ClusterRepository {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { repository, cluster, identity, .. } = self;
        f.debug_struct("ClusterRepository")
            .field("repository", repository)
            .field("cluster", cluster)
            .field("identity", identity)
            .finish_non_exhaustive()
    }
}

impl ClusterRepository {
    /// The part of `repository` that belongs to the cluster called `cluster` with this identity.
    pub fn new(repository: Repository, cluster: ClusterName, identity: ClusterIdentity, level: i32) -> Self {
        let layout = ClusterLayout::new(&cluster, identity.system_identifier).with(identity.form);
        Self {
            repository,
            cluster,
            identity,
            layout,
            level,
            wal_level: level,
            encryption: None,
            pack_headers: Arc::default(),
            let_go: Arc::default(),
            observer: None,
        }
    }

    /// The same with another level for segments and their parts.
    pub fn with_wal_level(mut self, level: i32) -> Self {
        self.wal_level = level;
        self
    }

    /// The same, `observer` being told how each call to the store ended.
    pub fn observed(mut self, observer: Arc<dyn Observer>) -> Self {
        self.repository.store = Arc::new(ObservedStore::new(self.repository.store, observer.clone()));
        self.observer = Some(observer);
        self
    }

    /// The repository it is a part of.
    pub fn repository(&self) -> &Repository {
        &self.repository
    }

    /// The cluster's name.
    pub fn cluster(&self) -> &ClusterName {
        &self.cluster
    }

    /// Which cluster it is: system identifier, segment size, major version.
    pub fn identity(&self) -> &ClusterIdentity {
        &self.identity
    }

    /// The keys.
    pub fn layout(&self) -> &ClusterLayout {
        &self.layout
    }

    /// zstd's level for what is stored.
    pub fn compression_level(&self) -> i32 {
        self.level
    }

    fn store(&self) -> &SharedStore {
        &self.repository.store
    }

    fn key(&self, name: &ObjectName) -> Result<Key> {
        key(&self.layout.key(name))
    }
}

/// Keys made by the layout are valid; an error here is a defect, told as one.
fn key(text: &str) -> Result<Key> {
    text.parse().map_err(Error::encode)
}

/// Runs CPU work (compression, hashing) off the async threads.
async fn on_blocking_thread<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> Result<T> {
    tokio::task::spawn_blocking(work).await.map_err(Error::encode)
}

#[cfg(test)]
pub(crate) mod tests;
