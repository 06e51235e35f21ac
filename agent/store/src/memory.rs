//! A store in memory, for tests: the promises of a [`Store`] and nothing else.

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime};

use async_trait::async_trait;
use bytes::Bytes;

use crate::listing::{PageBuilder, folder_of};
use crate::{Error, ErrorKind, Key, ListRequest, Listed, Lock, Locked, Page, Probed, Put, Result, Store};

#[derive(Debug)]
struct Object {
    body: Bytes,
    modified: SystemTime,
    locked: Option<Locked>,
}

/// Objects in memory.
#[derive(Debug, Default)]
pub struct MemoryStore {
    objects: Mutex<BTreeMap<Key, Object>>,
    lock: Option<Lock>,
}

impl MemoryStore {
    /// An empty store.
    pub fn new() -> Self {
        Self::default()
    }

    /// An empty store that locks all that is put.
    pub fn locking(lock: Lock) -> Self {
        Self { lock: Some(lock), ..Self::default() }
    }

    /// Locks an object otherwise, or not at all; a test's tool, no store's call.
    pub fn set_lock(&self, key: &Key, locked: Option<Locked>) {
        self.objects().entry(key.clone()).and_modify(|object| object.locked = locked);
    }

    /// Replaces an object's bytes, as damage or an attacker would; a test's tool, no store's call.
    pub fn overwrite(&self, key: &Key, body: Bytes) {
        self.objects().insert(key.clone(), Object { body, modified: SystemTime::now(), locked: self.lock_now() });
    }

    /// Makes all objects so much older; a test's tool, no store's call.
    pub fn age(&self, by: Duration) {
        self.objects().values_mut().for_each(|object| object.modified -= by);
    }

    /// Whether it has an object; a test's question, no store's call.
    pub fn contains(&self, key: &Key) -> bool {
        self.objects().contains_key(key)
    }

    /// How many objects there are.
    pub fn len(&self) -> usize {
        self.objects().len()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.objects().is_empty()
    }

    fn lock_now(&self) -> Option<Locked> {
        self.lock.map(|lock| Locked { mode: lock.mode, until: SystemTime::now() + lock.time() })
    }

    fn objects(&self) -> MutexGuard<'_, BTreeMap<Key, Object>> {
        // No code under this lock leaves the map half changed.
        self.objects.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[async_trait]
impl Store for MemoryStore {
    fn url(&self) -> String {
        "memory:".to_owned()
    }

    async fn put_if_absent(&self, key: &Key, body: Bytes) -> Result<Put> {
        let mut objects = self.objects();
        match objects.get(key) {
            None => {
                // A copy: a body may be a slice of something much larger.
                objects.insert(
                    key.clone(),
                    Object { body: Bytes::copy_from_slice(&body), modified: SystemTime::now(), locked: self.lock_now() },
                );
                Ok(Put::Created)
            }
            Some(there) if there.body == body => Ok(Put::AlreadySame),
            Some(_) => Err(Error::new(ErrorKind::AlreadyExists, "put", key)),
        }
    }

    async fn get(&self, key: &Key, range: Option<Range<u64>>) -> Result<Bytes> {
        let objects = self.objects();
        let Object { body, .. } = objects.get(key).ok_or_else(|| Error::new(ErrorKind::NotFound, "get", key))?;
        Ok(match range {
            None => body.clone(),
            Some(range) => cut(body, &range),
        })
    }

    async fn list(&self, request: &ListRequest) -> Result<Page> {
        let objects = self.objects();
        let mut page = PageBuilder::new(request);
        let mut folder = None;
        // Neither a prefix nor `start_after` need be a key: compare their texts.
        for (key, Object { body, modified, .. }) in objects.iter() {
            let text = key.as_str();
            if !text.starts_with(&request.prefix) || request.start_after.as_deref().is_some_and(|after| text <= after) {
                continue;
            }
            let room = match folder_of(request, text) {
                Some(same) if folder.as_deref() == Some(same) => true,
                Some(other) => {
                    folder = Some(other.to_owned());
                    page.folder(other.to_owned())
                }
                None => {
                    page.object(Listed { key: key.clone(), size: body.len() as u64, modified: *modified, class: None, storage_class: None })
                }
            };
            if !room {
                break;
            }
        }
        Ok(page.finish())
    }

    async fn delete(&self, key: &Key) -> Result<()> {
        self.objects().remove(key);
        Ok(())
    }

    async fn probe(&self, scratch: &Key) -> Result<Probed> {
        crate::probe::probe(self, scratch).await
    }

    fn lock_of(&self, _: &Key) -> Option<Lock> {
        self.lock
    }

    async fn locked(&self, key: &Key) -> Result<Option<Locked>> {
        self.objects().get(key).map(|object| object.locked).ok_or_else(|| Error::new(ErrorKind::NotFound, "look at the lock of", key))
    }

    async fn lock_anew(&self, key: &Key) -> Result<()> {
        let mut objects = self.objects();
        let object = objects.get_mut(key).ok_or_else(|| Error::new(ErrorKind::NotFound, "lock", key))?;
        object.locked = self.lock.and_then(|lock| lock.anew(object.locked, SystemTime::now())).or(object.locked);
        Ok(())
    }
}

/// The bytes `range` of `body`, cut at its end.
pub(crate) fn cut(body: &Bytes, range: &Range<u64>) -> Bytes {
    let at = |position: u64| usize::try_from(position).map_or(body.len(), |position| position.min(body.len()));
    let (start, end) = (at(range.start), at(range.end));
    body.slice(start..end.max(start))
}
