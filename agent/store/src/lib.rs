//! Object stores: whole, immutable objects under keys, on a local directory, S3, in memory.
//!
//! A store knows keys and bytes. It does not know WAL, backups, compression or clusters (that is the repository's work), and it does
//! not decide policy: its [`ErrorKind`]s are named after what a caller can do next. It is a crate of its own so that this wall holds
//! and so that the S3 SDK is compiled against one small module only.
//!
//! Why objects and not files: an object appears whole or not at all, is never changed, and is created only if its name is free. Every
//! store here keeps that promise, and one conformance suite (`tests/conformance.rs`) holds all of them to it.
#![deny(missing_docs)]

pub mod archived;
pub mod error;
pub mod faulty;
pub mod guarded;
pub mod key;
mod listing;
pub mod local;
pub mod memory;
pub mod noticed;
pub mod observed;
mod probe;
pub mod s3;
pub mod several;
pub mod write;

use std::fmt::Debug;
use std::ops::Range;
use std::sync::Arc;
use std::time::SystemTime;

use async_trait::async_trait;
use bytes::Bytes;

pub use archived::{ArchiveClass, Readiness, Thaw, Tier};
pub use error::{Error, ErrorKind, Result};
pub use faulty::{Fault, FaultyStore, Rule};
pub use guarded::GuardedStore;
pub use key::Key;
pub use local::LocalStore;
pub use memory::MemoryStore;
pub use noticed::{Noticed, TlsServer};
pub use observed::{ObservedStore, Observer, Operation};
pub use s3::{Lock, LockMode, Locked, S3Options, S3Store};
pub use several::Several;

/// How a conditional put ended well.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Put {
    /// The object was not there and now is, durably.
    Created,
    /// The very same bytes were there already: an earlier try whose answer was lost, or another writer with the same content.
    AlreadySame,
}

/// One object in a listing.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Listed {
    /// Its key.
    pub key: Key,
    /// Its size in bytes.
    pub size: u64,
    /// When it was put, by the store's clock.
    pub modified: SystemTime,
    /// The class by which it may be archived; [`Store::readiness`] tells whether it can be read.
    pub class: Option<ArchiveClass>,
    /// The class in which it is kept, and by which it is paid for, where the store has such.
    pub storage_class: Option<&'static str>,
}

/// What to list.
#[derive(Debug, Clone, Default)]
pub struct ListRequest {
    /// Only keys that begin with this text (not necessarily at a `/`).
    pub prefix: String,
    /// Only keys that sort after this text; or a page's `next`, unchanged.
    ///
    /// Some S3 servers (SeaweedFS) sort folder by folder, `a/` before `a.b`: there this is exact only among the keys of one folder.
    pub start_after: Option<String>,
    /// Group keys by the next `/` after the prefix: those below are answered once, as a prefix that ends with `/`.
    pub by_folder: bool,
    /// At most about this many objects and folders; the store may answer fewer.
    pub limit: Option<usize>,
}

/// One page of a listing, in the order of keys' bytes. What [`list_all`] answers is in order on every server; on one that sorts otherwise,
/// a later page may hold keys that belong before this one's.
#[derive(Debug, Clone, Default)]
pub struct Page {
    /// Objects.
    pub objects: Vec<Listed>,
    /// Folders, each ending with `/`; only when asked for. A folder is listed if a key below it sorts after `start_after`.
    pub folders: Vec<String>,
    /// Continue with this as `start_after` (not a key: only the store can read it); `None` at the end.
    pub next: Option<String>,
    /// Objects that are there and are not listed, as their names cannot be keys.
    pub foreign: u64,
}

/// An object store.
///
/// Every call ends within the store's own deadlines. A call may be dropped at any time; a dropped put may or may not have created its
/// object, whole.
#[async_trait]
pub trait Store: Debug + Send + Sync + 'static {
    /// Where the store is, for messages: no secrets.
    fn url(&self) -> String;

    /// Creates the object, durably, if no object has this key. No key may be a folder of another (`a` and `a/b`): files cannot be so.
    ///
    /// Fails with [`ErrorKind::AlreadyExists`] if an object with other bytes is there; that object is untouched.
    async fn put_if_absent(&self, key: &Key, body: Bytes) -> Result<Put>;

    /// Puts these bytes in the place of an object that the store called in doubt ([`Error::is_in_doubt`]): no other is ever replaced, and then the answer is false.
    /// That they hold what the object was to hold is the caller's to know.
    async fn replace_in_doubt(&self, _key: &Key, _body: Bytes) -> Result<bool> {
        Ok(false)
    }

    /// Reads the object, or the bytes `range` of it. A range that reaches past the end is cut there; one that begins past the end is
    /// answered with no bytes.
    ///
    /// Fails with [`ErrorKind::NotFound`] only if the store was reached and says that this key is not there.
    async fn get(&self, key: &Key, range: Option<Range<u64>>) -> Result<Bytes>;

    /// One page of keys.
    async fn list(&self, request: &ListRequest) -> Result<Page>;

    /// Removes the object; no error if it was not there.
    async fn delete(&self, key: &Key) -> Result<()>;

    /// Removes all of these that it can, many in one request where the server knows how. Answers those that stay, each with the reason; fails where the
    /// server could not be asked, and then some may be gone.
    async fn delete_many(&self, keys: &[Key]) -> Result<Vec<(Key, Error)>> {
        let mut stay = Vec::new();
        for key in keys {
            match self.delete(key).await {
                Ok(()) => {}
                // The others would be answered the same way.
                Err(error) if error.kind() != ErrorKind::Denied => return Err(error),
                Err(error) => stay.push((key.clone(), error)),
            }
        }
        Ok(stay)
    }

    /// Says that nothing lies below `prefix` (`a/b/`) any more, nor will again: a store that has folders removes an empty one. What holds something stays.
    async fn remove_folder(&self, _prefix: &str) -> Result<()> {
        Ok(())
    }

    /// Whether the object, which is there, can be read at once. A store without such classes need not look.
    async fn readiness(&self, _key: &Key) -> Result<Readiness> {
        Ok(Readiness::Ready)
    }

    /// Has an archived object made readable, and answers how it is now. No error if that was asked for before.
    async fn thaw(&self, key: &Key, _thaw: Thaw) -> Result<Readiness> {
        self.readiness(key).await
    }

    /// Proves that the store keeps its promises (reach, permission, conditional puts), by a small object at `scratch` that it removes again
    /// where it may. Fails with [`ErrorKind::Unusable`] for a server that ignores `If-None-Match`.
    async fn probe(&self, scratch: &Key) -> Result<Probed>;

    /// How an object is locked that is put under this key, if the store was told to lock it.
    fn lock_of(&self, _key: &Key) -> Option<Lock> {
        None
    }

    /// Until when nobody can remove the object for good; `None` where nothing keeps anybody from it.
    async fn locked(&self, _key: &Key) -> Result<Option<Locked>> {
        Ok(None)
    }

    /// Locks the object for as long as if it were put now, where [`Store::lock_of`] says that it is to be locked; never for a shorter time than it is, and not
    /// anew where only [`Lock::slack`] is lacking.
    async fn lock_anew(&self, _key: &Key) -> Result<()> {
        Ok(())
    }

    /// What the calls so far have shown of the server beside their answers. Asks nobody, but the source of credentials where these are due to be renewed.
    async fn noticed(&self) -> Noticed {
        Noticed::default()
    }

    /// The places, if it lies in several.
    fn several(&self) -> Option<&Several> {
        None
    }

    /// The same store with another idea of what proves that an object is absent, if it lies in several places.
    fn demanding(&self, _proof: several::Proof) -> Option<SharedStore> {
        None
    }
}

/// What became of a probe's object.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Probed {
    /// It was removed.
    Removed,
    /// It stays: removing is denied, as it should be for whoever keeps an archive.
    Left,
}

/// A store shared between tasks.
pub type SharedStore = Arc<dyn Store>;

/// Every object and folder that `request` asks for, page by page, in the order of their bytes.
pub async fn list_all(store: &dyn Store, mut request: ListRequest) -> Result<Page> {
    let mut all = Page::default();
    loop {
        let page = store.list(&request).await?;
        all.objects.extend(page.objects);
        all.folders.extend(page.folders);
        match page.next {
            Some(next) => request.start_after = Some(next),
            None => {
                // In order already, but for servers that have another idea of it.
                all.objects.sort_by(|a, b| a.key.cmp(&b.key));
                all.folders.sort();
                return Ok(all);
            }
        }
    }
}
