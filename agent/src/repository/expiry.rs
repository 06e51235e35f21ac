//! What left the catalog: the records of it, and how each went on.
//!
//! A record is put under the next free number and hides what it names from then on. Whether it is carried out or taken back is decided once, by a note that
//! only one can put ([`ClusterRepository::end_expiry`]). Records whose objects are gone are merged into the next one and removed.

use std::collections::BTreeMap;
use std::time::SystemTime;

use bytes::Bytes;
use futures::{StreamExt, TryStreamExt, stream};
use walkeep_core::expiry::{End, Expired, ExpiredWal, Expiry, ExpiryEnd};
use walkeep_core::layout::{BackupId, ObjectName};
use walkeep_core::{Lsn, SegmentName, SegmentNumber, TimelineId, WalFileName, sealed};
use walkeep_store::{ErrorKind, Key, ListRequest, Put, list_all};

use super::backups::Damaged;
use super::catalog::READS;
use super::{ClusterRepository, Error, Result};

/// How often a listing is made again of which something is gone when it is read.
const TRIES: usize = 5;
/// So many segments may be archived at the same time, in any order.
const SIDE_BY_SIDE: u64 = 5;

/// A record, and how it went on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KnownExpiry {
    /// The record.
    pub record: Expiry,
    /// When it was put, by the store's clock.
    pub put: SystemTime,
    /// How it went on; `None` while its time of grace runs.
    pub end: Option<ExpiryEnd>,
    /// Whether all that it names is gone, as others say: it was merged, and a repository that was away has brought it back.
    pub merged: bool,
}

impl KnownExpiry {
    /// Whether what it names is out of the catalog.
    pub fn hides(&self) -> bool {
        self.end.as_ref().is_none_or(|end| end.end == End::Removing)
    }

    /// Whether something that it hides is not gone yet.
    pub fn is_pending(&self) -> bool {
        self.hides() && !self.record.is_memory() && !self.merged
    }
}

/// Marks those of which all is gone, as others of them say.
pub fn mark_merged(known: &mut [KnownExpiry]) {
    let records: Vec<Expiry> = known.iter().map(|known| known.record.clone()).collect();
    for known in known {
        let record = &known.record;
        // Of two that only say what is gone the later took over the earlier.
        let others = records.iter().filter(|other| !record.is_memory() || other.number > record.number);
        known.merged = known.hides() && record.is_gone_by(others);
    }
}

/// The highest segment of each timeline of which it was made sure that it was not let go.
pub(super) type LetGo = tokio::sync::Mutex<BTreeMap<TimelineId, SegmentNumber>>;

/// A place in a listing of WAL.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WalPage {
    log: u32,
    start_after: Option<String>,
}

impl ClusterRepository {
    /// All records, by number, and the next free number.
    pub async fn expiries(&self) -> Result<(Vec<KnownExpiry>, u32)> {
        let (known, next, damaged) = self.believable_expiries().await?;
        match damaged.into_iter().next() {
            None => Ok((known, next)),
            Some(Damaged { key, reason }) => Err(Error::corrupt(key, reason)),
        }
    }

    /// The same, with the records that cannot be believed beside them.
    pub async fn believable_expiries(&self) -> Result<(Vec<KnownExpiry>, u32, Vec<Damaged>)> {
        for _ in 0..TRIES {
            let (listed, mut known, next, damaged) = self.read_expiries().await?;
            if known.len() + damaged.len() == listed {
                mark_merged(&mut known);
                return Ok((known, next, damaged));
            }
            // One that was listed is gone: the one that took it over was not in that listing.
        }
        Err(Error::corrupt(self.layout().expired_prefix(), "its records are listed and cannot be read, again and again"))
    }

    async fn read_expiries(&self) -> Result<(usize, Vec<KnownExpiry>, u32, Vec<Damaged>)> {
        let request = ListRequest { prefix: self.layout().expired_prefix(), ..ListRequest::default() };
        let (mut records, mut ends): (BTreeMap<u32, SystemTime>, BTreeMap<u32, ()>) = Default::default();
        for listed in list_all(self.store().as_ref(), request).await?.objects {
            match self.layout().parse(listed.key.as_str()) {
                Some(ObjectName::Expiry(number)) => drop(records.insert(number, listed.modified)),
                Some(ObjectName::ExpiryEnd(number)) => drop(ends.insert(number, ())),
                _ => {}
            }
        }
        let (listed, last) = (records.len(), records.keys().chain(ends.keys()).max().copied());
        let read = |(number, put): (u32, SystemTime)| {
            let ended = ends.contains_key(&number);
            async move {
                let name = ObjectName::Expiry(number);
                let parse = |body: &[u8]| Expiry::parse(number, body).map_err(|error| Error::corrupt(self.layout().key(&name), error));
                let Some(record) = self.parsed(&name, parse).await? else { return Ok(None) };
                let end = match ended {
                    true => self.end_of(number).await?,
                    false => None,
                };
                // It was merged into another one at this moment.
                Ok((end.is_some() == ended).then_some(KnownExpiry { record, put, end, merged: false }))
            }
        };
        let read = |record| {
            let read = read(record);
            async move { self.read_or_damaged(read.await) }
        };
        let read: Vec<_> = stream::iter(records.into_iter().map(read)).buffered(READS).try_collect().await?;
        let (mut known, mut damaged) = (Vec::new(), Vec::new());
        for read in read {
            match read {
                Ok(found) => known.extend(found),
                Err(found) => damaged.push(found),
            }
        }
        Ok((listed, known, last.map_or(1, |last| last.saturating_add(1)), damaged))
    }

    /// Everything that is out of the catalog. What a record that cannot be believed hid is in it again, for who looks whether it is there: a plan tells.
    pub async fn expired(&self) -> Result<Expired> {
        Ok(self.expired_and_damaged().await?.0)
    }

    /// The same, and the records that cannot be believed.
    pub async fn expired_and_damaged(&self) -> Result<(Expired, Vec<Damaged>)> {
        let mut expired = Expired::default();
        let (known, _, damaged) = self.believable_expiries().await?;
        known.iter().filter(|known| known.hides()).for_each(|known| expired.add(&known.record));
        Ok((expired, damaged))
    }

    /// Fails where the segment lies in WAL that was let go: no plan would see it, so nobody must be told that it is stored. Asks nothing as long as a
    /// timeline goes on behind what was asked for: only what was stored, and what lies before, is let go.
    pub async fn refuse_let_go(&self, segment: SegmentName) -> Result<()> {
        let (size, timeline) = (self.identity().segment_size, segment.timeline());
        let Some(number) = segment.number(size) else { return Ok(()) };
        let mut passed = self.let_go.lock().await;
        let highest = passed.get(&timeline).copied();
        if highest.is_none_or(|highest| number.get().saturating_add(SIDE_BY_SIDE) <= highest.get())
            && self.expired().await?.has_segment(timeline, number.start(size))
        {
            return Err(Error::LetGo { segment });
        }
        passed.insert(timeline, highest.map_or(number, |highest| highest.max(number)));
        Ok(())
    }

    /// Puts a record; false if its number is taken.
    pub async fn put_expiry(&self, record: &Expiry) -> Result<bool> {
        let body = Bytes::from(sealed::to_json(record).map_err(Error::encode)?);
        match self.store().put_if_absent(&self.key(&ObjectName::Expiry(record.number))?, body).await {
            Ok(Put::Created | Put::AlreadySame) => Ok(true),
            Err(error) if error.kind() == ErrorKind::AlreadyExists => Ok(false),
            Err(error) => Err(error.into()),
        }
    }

    /// Decides how a record goes on, or answers what was decided before.
    pub async fn end_expiry(&self, number: u32, end: &ExpiryEnd) -> Result<End> {
        let body = Bytes::from(sealed::to_json(end).map_err(Error::encode)?);
        match self.store().put_if_absent(&self.key(&ObjectName::ExpiryEnd(number))?, body).await {
            Ok(Put::Created | Put::AlreadySame) => Ok(end.end),
            Err(error) if error.kind() == ErrorKind::AlreadyExists => {
                let decided = self.end_of(number).await?;
                let gone = || Error::corrupt(self.layout().key(&ObjectName::ExpiryEnd(number)), "it was there a moment ago and is gone");
                decided.map(|decided| decided.end).ok_or_else(gone)
            }
            Err(error) => Err(error.into()),
        }
    }

    /// Removes a record that hides nothing any more, or whose content another one has taken over.
    pub async fn remove_expiry(&self, number: u32) -> Result<()> {
        // The note last: without it what was taken back would be out of the catalog again.
        self.store().delete(&self.key(&ObjectName::Expiry(number))?).await?;
        Ok(self.store().delete(&self.key(&ObjectName::ExpiryEnd(number))?).await?)
    }

    /// The keys of these backups' records.
    pub fn records_of(&self, backups: &[BackupId]) -> Result<Vec<Key>> {
        backups.iter().map(|id| self.key(&ObjectName::BackupRecord(id.clone()))).collect()
    }

    /// What else is stored of a backup, but packs; nothing while its record is there.
    pub async fn rest_of_backup(&self, id: &BackupId) -> Result<Vec<Key>> {
        let request = ListRequest { prefix: self.layout().backup_prefix(id), ..ListRequest::default() };
        let objects = list_all(self.store().as_ref(), request).await?.objects;
        let record = self.key(&ObjectName::BackupRecord(id.clone()))?;
        match objects.iter().any(|listed| listed.key == record) {
            true => Ok(Vec::new()),
            false => Ok(objects.into_iter().map(|listed| listed.key).collect()),
        }
    }

    /// Where [`Self::expired_wal_page`] begins.
    pub fn expired_wal(&self, wal: ExpiredWal) -> WalPage {
        let size = self.identity().segment_size;
        WalPage { log: size.segment_of(wal.from).name(wal.timeline, size).log(), start_after: None }
    }

    /// The keys of some of the WAL, a page of a listing at a time, and where the next one begins.
    pub async fn expired_wal_page(&self, wal: ExpiredWal, page: WalPage) -> Result<(Vec<Key>, Option<WalPage>)> {
        let size = self.identity().segment_size;
        let WalPage { log, start_after } = page;
        let request = ListRequest { prefix: self.layout().log_prefix(wal.timeline, log), start_after, ..ListRequest::default() };
        let listed = self.store().list(&request).await?;
        let goes = |name: ObjectName| {
            let segment = match name {
                ObjectName::Wal(WalFileName::Segment(segment) | WalFileName::Partial(segment)) => segment,
                ObjectName::Wal(WalFileName::BackupHistory { segment, .. }) | ObjectName::OtherPartial { segment, .. } => segment,
                ObjectName::Part(part) => part.segment,
                _ => return false,
            };
            segment.number(size).is_some_and(|number| wal.from <= number.start(size) && number.end(size) <= wal.to)
        };
        let keys = listed.objects.into_iter().map(|listed| listed.key);
        let keys = keys.filter(|key| self.layout().parse(key.as_str()).is_some_and(goes)).collect();
        let last = size.segment_of(Lsn::new(wal.to.get().saturating_sub(1))).name(wal.timeline, size).log();
        let next = match listed.next {
            Some(next) => Some(WalPage { log, start_after: Some(next) }),
            None => (log < last).then(|| WalPage { log: log + 1, start_after: None }),
        };
        Ok((keys, next))
    }

    /// The keys of the maps of changed blocks of that WAL: they are of use to the backups that began in it only.
    pub async fn expired_blocks(&self, wal: ExpiredWal) -> Result<Vec<Key>> {
        let blocks = self.list_blocks(wal.timeline, Some(wal.from)).await?;
        let gone = blocks.into_iter().filter(|name| wal.from <= name.from && name.to <= wal.to);
        gone.map(|name| self.key(&ObjectName::Blocks(name))).collect()
    }

    /// Removes objects; answers those that the store does not let go.
    pub async fn remove_objects(&self, keys: &[Key]) -> Result<Vec<(Key, walkeep_store::Error)>> {
        Ok(self.store().delete_many(keys).await?)
    }

    pub(super) async fn end_of(&self, number: u32) -> Result<Option<ExpiryEnd>> {
        let name = ObjectName::ExpiryEnd(number);
        let corrupt = |reason: &dyn std::fmt::Display| Error::corrupt(self.layout().key(&name), reason);
        let parse = |body: &[u8]| {
            let end: ExpiryEnd = sealed::from_json(body).map_err(|error| corrupt(&error))?;
            match end.number.is_none_or(|of| of == number) {
                true => Ok(end),
                false => Err(corrupt(&"it is of another record: the object was moved or exchanged")),
            }
        };
        self.parsed(&name, parse).await
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::repository::tests::{memory, record, segment};
    use chrono::DateTime;

    fn expiry(number: u32) -> Expiry {
        Expiry {
            backups: vec![record(1).id],
            wal: vec![ExpiredWal { timeline: TimelineId::FIRST, from: Lsn::new(1 << 20), to: Lsn::new(2 << 20) }],
            ..Expiry::new(number, DateTime::UNIX_EPOCH, "db1".into())
        }
    }

    fn end(end: End) -> ExpiryEnd {
        ExpiryEnd { number: None, end, at: DateTime::UNIX_EPOCH, host: "db1".into() }
    }

    #[tokio::test]
    async fn what_a_record_names_is_out_of_the_catalog_until_it_is_taken_back() {
        let (repository, _) = memory().await;
        for number in [1, 2] {
            repository.commit_backup(&record(number)).await.unwrap();
            repository.put_wal(WalFileName::Segment(segment(number)), Bytes::from(vec![1; 1 << 20])).await.unwrap();
        }
        let seen = async || {
            let catalog = repository.load_catalog().await.unwrap().catalog;
            (catalog.backups().len(), catalog.segment_totals(TimelineId::FIRST).0, repository.backups().await.unwrap().expired.len())
        };
        assert_eq!(seen().await, (2, 2, 0));
        assert!(repository.put_expiry(&expiry(1)).await.unwrap());
        assert_eq!(seen().await, (1, 1, 1));
        assert_eq!(repository.end_expiry(1, &end(End::Undone)).await.unwrap(), End::Undone);
        assert_eq!(repository.end_expiry(1, &end(End::Removing)).await.unwrap(), End::Undone, "it is decided once");
        assert_eq!(seen().await, (2, 2, 0));
        repository.remove_expiry(1).await.unwrap();
        assert_eq!((seen().await, repository.expiries().await.unwrap()), ((2, 2, 0), (Vec::new(), 1)));
    }

    #[tokio::test]
    async fn wal_that_nobody_would_see_is_refused() {
        let (repository, _) = memory().await;
        repository.put_expiry(&expiry(1)).await.unwrap();
        assert!(matches!(repository.refuse_let_go(segment(1)).await, Err(Error::LetGo { .. })));
        repository.refuse_let_go(segment(2)).await.unwrap();
        repository.refuse_let_go(segment(20)).await.unwrap();
        // Put back: it is looked at anew, however long the process has run.
        assert!(matches!(repository.refuse_let_go(segment(1)).await, Err(Error::LetGo { .. })));
    }

    #[tokio::test]
    async fn of_two_that_take_a_number_one_wins() {
        let (repository, _) = memory().await;
        let other = Expiry { host: "db2".into(), ..expiry(1) };
        assert!(repository.put_expiry(&expiry(1)).await.unwrap());
        assert!(!repository.put_expiry(&other).await.unwrap());
        assert_eq!(repository.expiries().await.unwrap().1, 2);
    }

    #[tokio::test]
    async fn a_record_that_cannot_be_believed_is_told_and_stops_who_lets_go() {
        let (repository, store) = memory().await;
        repository.put_expiry(&expiry(1)).await.unwrap();
        store.overwrite(&repository.key(&ObjectName::Expiry(1)).unwrap(), Bytes::from(serde_json::to_vec(&expiry(2)).unwrap()));
        assert!(matches!(repository.expiries().await, Err(Error::Corrupt { .. })), "who lets go must know all of it");
        let loaded = repository.load_catalog().await.unwrap();
        assert!(loaded.damaged.len() == 1 && loaded.damaged[0].key.ends_with("expired/00000001.json"), "{:?}", loaded.damaged);
    }
}
