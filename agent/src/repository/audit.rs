//! The audit trail: records under numbers that are taken by conditional put, each naming the hash of the one before.
//!
//! Who comes second takes the next number, behind what the other one wrote; so no record is lost, and the chain has no branches. Of several repositories all are
//! asked for the record before a new one: what one of them lost or changed must not be named by the next record as if it were the only one.

use std::time::Duration;

use bytes::Bytes;
use futures::future::join_all;
use futures::{StreamExt, TryStreamExt, stream};
use walkeep_core::audit::copies::Copies;
use walkeep_core::audit::{End, Entry, Head, Record, hash};
use walkeep_core::layout::ObjectName;
use walkeep_store::{ErrorKind, ListRequest, Put, list_all};

use super::catalog::READS;
use super::{ClusterRepository, Error, Result};

/// Records that a page of a listing is sure to have, if there are so many: a tenth of what stores answer.
const PAGE: u32 = 100;
/// So long one of several repositories is waited for when all are asked for the last record.
const ANSWER: Duration = Duration::from_secs(2);

impl ClusterRepository {
    /// Adds a record behind `head`, which is where the trail was seen to end (`None`: it is looked for), and follows it there.
    pub async fn append_audit(&self, head: &mut Option<Head>, entry: &Entry) -> Result<Head> {
        let mut last = match *head {
            // It was written or compared by this process: whatever lies there now.
            Some(head) => End::of(head),
            None => self.audit_end().await?,
        };
        loop {
            let record = Record::at_end(last, self.cluster().as_str(), self.identity().system_identifier, entry.clone());
            let record = record.ok_or_else(|| Error::encode("the audit trail has no more numbers"))?;
            let body = Bytes::from(serde_json::to_vec_pretty(&record).map_err(Error::encode)?);
            let name = ObjectName::Audit(record.number);
            match self.store().put_if_absent(&self.key(&name)?, body.clone()).await {
                Ok(Put::Created | Put::AlreadySame) => {
                    let put = Head::of(record.number, &body);
                    *head = Some(put);
                    return Ok(put);
                }
                Err(error) if error.kind() == ErrorKind::AlreadyExists => {
                    // What was written before this one may differ from place to place as well.
                    (last, *head) = (self.end_at(record.number).await?, None);
                }
                Err(error) => return Err(error.into()),
            }
        }
    }

    /// The last record, found with few requests however long the trail is, as all repositories have it.
    pub async fn audit_end(&self) -> Result<End> {
        match self.last_audit_number().await? {
            Some(number) => self.end_at(number).await,
            None => Ok(End::default()),
        }
    }

    async fn end_at(&self, number: u32) -> Result<End> {
        let copies = self.audit_copies(number).await;
        if copies.differ() {
            tracing::warn!(number, %copies, "the last record of the audit trail is not the same in all repositories: `walkeep verify` says what to do");
        }
        if let Some(end) = copies.end(number) {
            return Ok(end);
        }
        let name = ObjectName::Audit(number);
        let body = self.audit_bytes(&name).await?;
        let gone = || Error::corrupt(self.layout().key(&name), "it was there a moment ago and is gone");
        let head = Head::of(number, &body.ok_or_else(gone)?);
        Ok(End { unconfirmed: self.store().several().is_some(), ..End::of(head) })
    }

    /// The hash of a record in each of several repositories that has it and answers soon; nothing with one.
    pub async fn audit_copies(&self, number: u32) -> Copies {
        let name = ObjectName::Audit(number);
        let down: Vec<bool> =
            self.store().several().map(|several| several.states().iter().map(|state| state.down.is_some()).collect()).unwrap_or_default();
        let asked = (1..).zip(self.each()).filter(|(place, _)| !down.get(*place - 1).is_some_and(|down| *down));
        let ask = async |(place, repository): (usize, Self)| {
            let answer = tokio::time::timeout(ANSWER, repository.stored_object(&name)).await;
            answer.ok()?.ok()?.map(|bytes| (place, hash(&bytes)))
        };
        Copies::of(join_all(asked.map(ask)).await.into_iter().flatten())
    }

    /// A record as it is stored: what it says is for the chain to prove, and damage is to be seen there.
    async fn audit_bytes(&self, name: &ObjectName) -> Result<Option<Bytes>> {
        self.parsed(name, |body| Ok(Bytes::copy_from_slice(body))).await
    }

    /// All records, as they are stored.
    pub async fn all_audit_records(&self) -> Result<Vec<(u32, Bytes)>> {
        let request = ListRequest { prefix: self.layout().audit_prefix(), ..ListRequest::default() };
        let listed = list_all(self.store().as_ref(), request).await?.objects;
        self.audit_records(listed.iter().filter_map(|listed| self.audit_number(listed.key.as_str()))).await
    }

    /// The same, with what cannot be read for being damaged.
    pub async fn audit_records_and_damaged(
        &self,
        numbers: impl IntoIterator<Item = u32>,
    ) -> Result<(Vec<(u32, Bytes)>, Vec<(u32, String)>)> {
        let read = |number: u32| async move {
            match self.audit_bytes(&ObjectName::Audit(number)).await {
                Err(error) if error.is_damage() => Ok(Some((number, Err(error.to_string())))),
                read => read.map(|body| body.map(|body| (number, Ok(body)))),
            }
        };
        let numbers: Vec<u32> = numbers.into_iter().collect();
        let read: Vec<_> = stream::iter(numbers.into_iter().map(read)).buffered(READS).try_collect().await?;
        let (mut records, mut damaged) = (Vec::new(), Vec::new());
        for (number, read) in read.into_iter().flatten() {
            match read {
                Ok(body) => records.push((number, body)),
                Err(reason) => damaged.push((number, reason)),
            }
        }
        Ok((records, damaged))
    }

    /// These records, as they are stored, without those that are not there.
    pub async fn audit_records(&self, numbers: impl IntoIterator<Item = u32>) -> Result<Vec<(u32, Bytes)>> {
        let read =
            |number: u32| async move { Ok::<_, Error>(self.audit_bytes(&ObjectName::Audit(number)).await?.map(|body| (number, body))) };
        let numbers: Vec<u32> = numbers.into_iter().collect();
        let read: Vec<_> = stream::iter(numbers.into_iter().map(read)).buffered(READS).try_collect().await?;
        Ok(read.into_iter().flatten().collect())
    }

    /// The highest number: a page of the listing, where that is not all of it further and further behind it, and then in between.
    async fn last_audit_number(&self) -> Result<Option<u32>> {
        let (mut last, more) = self.audit_page(0).await?;
        if !more {
            return Ok(last);
        }
        // Behind `low` there are some; behind `high` there are none.
        let (mut low, mut high) = (last.unwrap_or_default(), None::<u32>);
        loop {
            let ask = match high {
                None => low.saturating_mul(2).max(low.saturating_add(1)),
                // One page has it.
                Some(high) if high - low <= PAGE => low,
                Some(high) => low + (high - low) / 2,
            };
            let (found, more) = self.audit_page(ask).await?;
            match found {
                Some(found) if more => (last, low) = (Some(found), found),
                Some(found) => return Ok(Some(found)),
                None if ask == low => return Ok(last),
                None => high = Some(ask),
            }
        }
    }

    /// The highest number on one page of the listing behind `after`, and whether there is a further page.
    async fn audit_page(&self, after: u32) -> Result<(Option<u32>, bool)> {
        let start_after = (after > 0).then(|| self.layout().key(&ObjectName::Audit(after)));
        let page = self.store().list(&ListRequest { prefix: self.layout().audit_prefix(), start_after, ..ListRequest::default() }).await?;
        Ok((page.objects.iter().filter_map(|listed| self.audit_number(listed.key.as_str())).max(), page.next.is_some()))
    }

    fn audit_number(&self, key: &str) -> Option<u32> {
        match self.layout().parse(key)? {
            ObjectName::Audit(number) => Some(number),
            _ => None,
        }
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use std::collections::BTreeMap;
    use std::sync::Arc;

    use chrono::DateTime;
    use walkeep_core::audit::chain::check;
    use walkeep_core::audit::{Actor, Kind, Outcome};
    use walkeep_store::Store;

    use super::*;
    use crate::repository::tests::memory;

    pub(crate) fn entry(pid: u32) -> Entry {
        Entry {
            time: DateTime::UNIX_EPOCH,
            actor: Actor { uid: 26, user: None, login: None, sudo_user: None, ssh_from: None, host: "db1".into(), pid },
            program: "walkeep".into(),
            command: "backup".into(),
            kind: Kind::BACKUP,
            subject: BTreeMap::new(),
            outcome: Outcome::Done,
            message: None,
            begun: None,
        }
    }

    async fn checked(repository: &ClusterRepository) -> walkeep_core::audit::chain::Checked {
        let records = repository.all_audit_records().await.unwrap();
        let of = records.iter().map(|(number, bytes)| (*number, bytes.as_ref()));
        check("main", repository.identity().system_identifier, of, None)
    }

    #[tokio::test]
    async fn writers_at_once_lose_nothing_and_follow_each_other() {
        let (repository, _) = memory().await;
        let repository = Arc::new(repository);
        let writer = |pid: u32| {
            let repository = repository.clone();
            tokio::spawn(async move {
                let mut head = None;
                for _ in 0..25 {
                    repository.append_audit(&mut head, &entry(pid)).await.unwrap();
                }
            })
        };
        let writers: Vec<_> = (1..=4).map(writer).collect();
        for writer in writers {
            writer.await.unwrap();
        }
        let checked = checked(&repository).await;
        assert_eq!((checked.findings.as_slice(), checked.records.len(), checked.head.number), (&[][..], 100, 100));
        for pid in 1..=4 {
            assert_eq!(checked.records.iter().filter(|known| known.record.entry.actor.pid == pid).count(), 25);
        }
        assert_eq!(repository.audit_end().await.unwrap(), End::of(checked.head));
    }

    #[tokio::test]
    async fn the_end_of_a_long_trail_is_found_with_few_requests() {
        for records in [0u32, 1, 999, 1000, 1001, 2000, 2001, 3500, 20_321] {
            let (repository, store) = memory().await;
            for number in 1..=records {
                let key = repository.layout().key(&ObjectName::Audit(number)).parse().unwrap();
                store.put_if_absent(&key, Bytes::from(number.to_string())).await.unwrap();
            }
            assert_eq!(repository.last_audit_number().await.unwrap(), (records > 0).then_some(records), "{records}");
            let expected = if records == 0 { Head::default() } else { Head::of(records, records.to_string().as_bytes()) };
            assert_eq!(repository.audit_end().await.unwrap(), End::of(expected));
        }
    }

    #[tokio::test]
    async fn what_is_not_a_record_is_left_alone() {
        let (repository, store) = memory().await;
        let key = format!("{}notes.txt", repository.layout().audit_prefix()).parse().unwrap();
        store.put_if_absent(&key, Bytes::from_static(b"x")).await.unwrap();
        let mut head = None;
        assert_eq!(repository.append_audit(&mut head, &entry(1)).await.unwrap().number, 1);
        // What was remembered is behind: another process went on.
        let (mut one, mut other) = (head, head);
        repository.append_audit(&mut one, &entry(2)).await.unwrap();
        assert_eq!(repository.append_audit(&mut other, &entry(3)).await.unwrap().number, 3);
        let checked = checked(&repository).await;
        assert_eq!((checked.findings.len(), checked.records.len()), (0, 3));
    }
}
