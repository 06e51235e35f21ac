//! A versioned bucket as it was: what was deleted or put over since is read as it lay there then.
//!
//! For the day on which somebody with credentials has removed everything: in a bucket with versions a removal only hides. Nothing is written.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::ops::Range;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::SystemTime;

use async_trait::async_trait;
use aws_sdk_s3::operation::list_object_versions::ListObjectVersionsOutput;
use aws_sdk_s3::primitives::DateTime;
use aws_sdk_s3::types::EncodingType;
use bytes::Bytes;

use super::errors::Failure;
use super::{S3Store, listing};
use crate::listing::{PageBuilder, folder_of};
use crate::{ArchiveClass, Error, ErrorKind, Key, ListRequest, Listed, Page, Probed, Put, Readiness, Result, Store, Thaw};

/// A bucket at a moment of the past, by the bucket's own clock, to the second.
#[derive(Debug)]
pub struct PastS3Store {
    store: S3Store,
    at: SystemTime,
    /// Whether an object of this name is the same whenever it was put: then one that seems to be later counts where there is no other.
    timeless: fn(&str) -> bool,
    /// Versions that listings have told of: who reads has listed before, mostly.
    known: Mutex<HashMap<Key, String>>,
    /// What lies below the prefix that was listed last. The past does not change, and a listing is asked for page by page.
    listed: Mutex<Option<(String, Arc<Versions>)>>,
}

/// The versions that were there, by name.
type Versions = BTreeMap<String, Version>;

/// The version of an object that was there.
#[derive(Debug)]
struct Version {
    id: String,
    size: u64,
    put: SystemTime,
    class: Option<ArchiveClass>,
    storage_class: &'static str,
}

/// Versions and removals of a prefix, the latest of each key that is not later than a moment.
#[derive(Default)]
struct Found {
    then: BTreeMap<String, (SystemTime, Option<Version>)>,
    /// The earliest later version of what is timeless.
    later: BTreeMap<String, Version>,
}

impl Found {
    fn note(&mut self, name: String, at: SystemTime, version: Option<Version>) {
        match self.then.get(&name) {
            // Newest first: of the same second the first one is the later.
            Some((known, _)) if *known >= at => {}
            _ => drop(self.then.insert(name, (at, version))),
        }
    }

    fn note_later(&mut self, name: String, version: Version) {
        match self.later.get(&name) {
            Some(known) if known.put <= version.put => {}
            _ => drop(self.later.insert(name, version)),
        }
    }

    fn versions(self) -> Versions {
        let mut versions: Versions = self.then.into_iter().filter_map(|(name, (_, version))| Some((name, version?))).collect();
        for (name, version) in self.later {
            versions.entry(name).or_insert(version);
        }
        versions
    }
}

impl PastS3Store {
    /// `store` as it was at this moment.
    pub fn new(store: S3Store, at: SystemTime) -> Self {
        Self { store, at, timeless: |_| false, known: Mutex::default(), listed: Mutex::default() }
    }

    /// Of names for which `is_timeless` says so any version will do: SeaweedFS gives an object another time when its lock is prolonged.
    pub fn with_timeless(self, is_timeless: fn(&str) -> bool) -> Self {
        Self { timeless: is_timeless, ..self }
    }

    fn read_only(&self, action: &'static str, place: &str) -> Error {
        Error::at(ErrorKind::Misconfigured, action, place)
            .because("the repository is read as it was at an earlier moment (as_of): nothing is written")
    }

    async fn page_of(
        &self,
        prefix: &str,
        from: &Option<(String, Option<String>)>,
    ) -> std::result::Result<ListObjectVersionsOutput, Failure> {
        let S3Store { client, options, .. } = &self.store;
        let list = client.list_object_versions().bucket(&options.bucket).encoding_type(EncodingType::Url);
        let list = list.prefix(format!("{}{prefix}", self.store.prefix));
        let list = match from {
            Some((key, version)) => list.key_marker(key).set_version_id_marker(version.clone()),
            None => list,
        };
        list.send().await.map_err(Failure::from_sdk)
    }

    /// One request after the other, each within the store's own deadline: together they may take long.
    async fn found(&self, action: &'static str, prefix: &str, only: Option<&str>) -> Result<Versions> {
        let (mut found, mut from) = (Found::default(), None);
        loop {
            let output = self.store.call(action, prefix, self.store.request(|| self.page_of(prefix, &from))).await?;
            let encoded = output.encoding_type == Some(EncodingType::Url);
            let name =
                |key: Option<&str>| listing::plain(&self.store.prefix, encoded, key).filter(|name| only.is_none_or(|only| only == name));
            let time = |at: Option<&DateTime>| at.and_then(|at| SystemTime::try_from(*at).ok());
            let moment = |at: Option<&DateTime>| time(at).filter(|at| *at <= self.at);
            for version in output.versions() {
                let (Some(name), Some(put)) = (name(version.key()), time(version.last_modified())) else { continue };
                let size = version.size().and_then(|size| u64::try_from(size).ok()).unwrap_or_default();
                let id = version.version_id().unwrap_or("null").to_owned();
                let class = version.storage_class().and_then(|class| ArchiveClass::named(class.as_str()));
                let storage_class = listing::storage_class(version.storage_class().map(|class| class.as_str()));
                let version = Version { id, size, put, class, storage_class };
                match put <= self.at {
                    true => found.note(name, put, Some(version)),
                    false if (self.timeless)(&name) => found.note_later(name, version),
                    false => {}
                }
            }
            for removal in output.delete_markers() {
                if let (Some(name), Some(at)) = (name(removal.key()), moment(removal.last_modified())) {
                    found.note(name, at, None);
                }
            }
            if !output.is_truncated.unwrap_or_default() {
                break;
            }
            let decoded = |text: &str| if encoded { listing::decode(text) } else { Some(text.to_owned()) };
            let next = output.next_key_marker().and_then(decoded).map(|key| (key, output.next_version_id_marker().map(str::to_owned)));
            if next.is_none() || next == from {
                return Err(Error::at(ErrorKind::Transient, action, prefix).because("the listing of versions does not advance"));
            }
            from = next;
        }
        Ok(found.versions())
    }

    async fn below(&self, prefix: &str) -> Result<Arc<Versions>> {
        let listed = self.listed.lock().unwrap_or_else(PoisonError::into_inner).clone();
        if let Some((_, versions)) = listed.filter(|(listed, _)| listed == prefix) {
            return Ok(versions);
        }
        let versions = Arc::new(self.found("list", prefix, None).await?);
        *self.listed.lock().unwrap_or_else(PoisonError::into_inner) = Some((prefix.to_owned(), versions.clone()));
        Ok(versions)
    }

    async fn version_of(&self, key: &Key) -> Result<String> {
        if let Some(known) = self.known.lock().unwrap_or_else(PoisonError::into_inner).get(key) {
            return Ok(known.clone());
        }
        let found = self.found("get", key.as_str(), Some(key.as_str())).await?;
        let absent = || Error::new(ErrorKind::NotFound, "get", key).because("it was not there at that moment");
        let version = found.into_values().next().ok_or_else(absent)?;
        self.known.lock().unwrap_or_else(PoisonError::into_inner).insert(key.clone(), version.id.clone());
        Ok(version.id)
    }

    async fn page(&self, request: &ListRequest) -> Result<Page> {
        let found = self.below(&request.prefix).await?;
        let floor = request.start_after.as_deref().unwrap_or_default();
        let (mut page, mut folders) = (PageBuilder::new(request), BTreeSet::new());
        for (name, version) in found.iter() {
            let Ok(key) = name.parse::<Key>() else { continue };
            if name.as_str() <= floor {
                continue;
            }
            if let Some(folder) = folder_of(request, name) {
                let is_new = !folders.contains(folder) && format!("{folder}{}", crate::listing::LAST).as_str() > floor;
                if is_new && !page.folder(folder.to_owned()) {
                    break;
                }
                folders.insert(folder.to_owned());
                continue;
            }
            self.known.lock().unwrap_or_else(PoisonError::into_inner).insert(key.clone(), version.id.clone());
            if !page.object(Listed {
                key,
                size: version.size,
                modified: version.put,
                class: version.class,
                storage_class: Some(version.storage_class),
            }) {
                break;
            }
        }
        Ok(page.finish())
    }
}

#[async_trait]
impl Store for PastS3Store {
    fn url(&self) -> String {
        self.store.url()
    }

    async fn put_if_absent(&self, key: &Key, _: Bytes) -> Result<Put> {
        Err(self.read_only("put", key.as_str()))
    }

    async fn get(&self, key: &Key, range: Option<Range<u64>>) -> Result<Bytes> {
        let version = self.version_of(key).await?;
        self.store.call("get", key.as_str(), self.store.read(key, Some(&version), range.as_ref())).await
    }

    async fn list(&self, request: &ListRequest) -> Result<Page> {
        self.page(request).await
    }

    async fn delete(&self, key: &Key) -> Result<()> {
        Err(self.read_only("delete", key.as_str()))
    }

    async fn readiness(&self, key: &Key) -> Result<Readiness> {
        let version = self.version_of(key).await?;
        self.store.readiness_of(key, Some(&version)).await
    }

    async fn thaw(&self, key: &Key, thaw: Thaw) -> Result<Readiness> {
        let version = self.version_of(key).await?;
        self.store.thaw_of(key, Some(&version), thaw).await
    }

    async fn probe(&self, scratch: &Key) -> Result<Probed> {
        Err(self.read_only("probe", scratch.as_str()))
    }
}
