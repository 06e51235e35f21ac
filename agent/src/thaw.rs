//! Thawing: what a restore needs and cannot be read at once, as it lies in an archived storage class; having it made readable, and waiting for that.
//!
//! Nothing is kept of it here: the store knows what it was asked for, so whoever runs this again goes on where it is.

use std::collections::BTreeMap;
use std::fmt;
use std::time::{Duration, SystemTime};

use futures::{StreamExt, TryStreamExt, stream};
use serde::Serialize;
use tokio::time::{Instant, timeout_at};
use tokio_util::sync::CancellationToken;
use walkeep_core::partial::Needed;
use walkeep_core::plan::{Estimate, RestorePlan};
use walkeep_store::{ArchiveClass, Key, Readiness, Thaw, Tier};

use crate::repository::archived::Archived;
use crate::repository::{ClusterRepository, Error, Result};
use crate::retry::{Backoff, retry};

/// Requests at a time.
const PARALLEL: usize = 16;
/// An outage of the store is waited for, for each request.
const PATIENCE: Duration = Duration::from_secs(120);
/// A copy that ends so much too early will do.
const SLACK: Duration = Duration::from_secs(12 * 3600);
/// For so much longer than a restore is thought to take copies have to stay.
const MARGIN: Duration = Duration::from_secs(6 * 3600);
/// Between two looks at what is being thawed: at first, and behind a while. Each look asks for every object, so they become fewer with the time that it takes.
const LOOKS: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(60));
/// A look delays who waits by such a share of the time waited at most, and never by more than that.
const DELAY: (u32, Duration) = (20, Duration::from_secs(15 * 60));

/// What cannot be read at once, and what can only for some time.
#[derive(Debug, Clone, Default)]
pub struct Frozen {
    /// Nobody has asked for these.
    pub archived: Vec<Archived>,
    /// These are being thawed.
    pub thawing: Vec<Archived>,
    /// Of these there are copies, until then.
    pub thawed: Vec<(Archived, Option<SystemTime>)>,
}

/// What lies in one class.
#[derive(Debug, Clone, Serialize)]
pub struct Share {
    /// The class, by S3's name.
    pub class: &'static str,
    /// Objects.
    pub objects: u64,
    /// Their bytes.
    pub bytes: u64,
    /// Those of them that are being thawed already.
    pub thawing: u64,
    /// How long thawing takes, mostly, in seconds from and to, for each tier.
    pub seconds: BTreeMap<&'static str, (u64, u64)>,
}

impl Frozen {
    /// Whether everything can be read.
    pub fn is_nothing(&self) -> bool {
        self.archived.is_empty() && self.thawing.is_empty()
    }

    fn all(&self) -> impl Iterator<Item = &Archived> {
        self.archived.iter().chain(&self.thawing)
    }

    /// Objects that cannot be read now, and their bytes.
    pub fn totals(&self) -> (u64, u64) {
        (self.all().count() as u64, self.all().map(|archived| archived.bytes).sum())
    }

    /// By class.
    pub fn shares(&self) -> Vec<Share> {
        let mut shares: BTreeMap<ArchiveClass, Share> = BTreeMap::new();
        for (archived, thawing) in self.archived.iter().map(|one| (one, 0)).chain(self.thawing.iter().map(|one| (one, 1))) {
            let share = shares.entry(archived.class).or_insert_with(|| {
                let seconds = Tier::ALL.into_iter().filter_map(|tier| Some((tier.as_str(), archived.class.takes(tier)?)));
                let seconds = seconds.map(|(tier, (from, to))| (tier, (from.as_secs(), to.as_secs()))).collect();
                Share { class: archived.class.as_str(), objects: 0, bytes: 0, thawing: 0, seconds }
            });
            (share.objects, share.bytes, share.thawing) = (share.objects + 1, share.bytes + archived.bytes, share.thawing + thawing);
        }
        shares.into_values().collect()
    }

    /// A class that does not know this tier.
    pub fn without(&self, tier: Tier) -> Option<ArchiveClass> {
        self.archived.iter().map(|archived| archived.class).find(|class| class.takes(tier).is_none())
    }

    /// When the first copy ends that a restore, begun now, might still need: it may take twice as long as it is estimated to, and some hours more.
    pub fn ends_too_early(&self, estimate: Option<&Estimate>, now: SystemTime) -> Option<SystemTime> {
        let seconds = estimate.and_then(|estimate| estimate.seconds.or(estimate.fetch.seconds)).unwrap_or_default();
        let needed = now + Duration::from_secs(seconds) * 2 + MARGIN;
        self.thawed.iter().filter_map(|(_, until)| *until).min().filter(|until| *until < needed)
    }

    /// How long it takes at most, as a rule. What is being thawed was perhaps asked for in the slowest tier.
    pub fn longest(&self, tier: Tier) -> Duration {
        let asked = self.archived.iter().filter_map(|archived| archived.class.takes(tier));
        let under_way = self.thawing.iter().filter_map(|archived| archived.class.takes(Tier::Bulk));
        asked.chain(under_way).map(|(_, to)| to).max().unwrap_or_default()
    }
}

impl fmt::Display for Frozen {
    /// `12 objects of 3145728 bytes in GLACIER`
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (at, share) in self.shares().iter().enumerate() {
            let (comma, plural) = (if at == 0 { "" } else { ", " }, if share.objects == 1 { "" } else { "s" });
            write!(f, "{comma}{} object{plural} of {} bytes in {}", share.objects, share.bytes, share.class)?;
            if share.thawing > 0 {
                write!(f, " ({} being thawed)", share.thawing)?;
            }
        }
        Ok(())
    }
}

/// What of a restore by this plan cannot be read at once: its WAL, and the packs of the files that are needed.
pub async fn of_plan(repository: &ClusterRepository, plan: &RestorePlan, needed: &Needed, cancel: &CancellationToken) -> Result<Frozen> {
    let mut objects = repository.archived_wal(&plan.wal).await?;
    if let Some(record) = repository.backup(&plan.backup.id).await? {
        objects.extend(repository.archived_packs(&record, needed).await?);
    }
    look(repository, objects, cancel).await
}

/// Asks of each of these how it is.
pub async fn look(repository: &ClusterRepository, objects: Vec<Archived>, cancel: &CancellationToken) -> Result<Frozen> {
    let one = |object: Archived| async move {
        let call = || async { repository.readiness(&object).await };
        let readiness = retry("looking at an archived object", Backoff::within(PATIENCE), cancel, Error::is_transient, call).await?;
        Ok::<_, Error>((object, readiness))
    };
    let looked: Vec<_> = stream::iter(objects.into_iter().map(one)).buffered(PARALLEL).try_collect().await?;
    let mut frozen = Frozen::default();
    for (object, readiness) in looked {
        frozen.note(object, readiness);
    }
    Ok(frozen)
}

impl Frozen {
    fn note(&mut self, object: Archived, readiness: Readiness) {
        match readiness {
            Readiness::Ready => {}
            Readiness::Thawed { until } => self.thawed.push((object, until)),
            Readiness::Thawing => self.thawing.push(object),
            // Of Intelligent-Tiering the object itself says more than its listing.
            Readiness::Archived(class) => self.archived.push(Archived { class, ..object }),
        }
    }
}

/// What was asked for.
#[derive(Debug, Clone, Copy, Default, Serialize)]
pub struct Asked {
    /// Objects that are thawed by this.
    pub objects: u64,
    /// Their bytes.
    pub bytes: u64,
    /// Objects whose copies stay longer by this.
    pub prolonged: u64,
}

/// Has everything thawed that is not, and copies that end too early kept longer. Answers what was asked for, and what is not readable yet.
pub async fn ask(repository: &ClusterRepository, frozen: Frozen, thaw: Thaw, cancel: &CancellationToken) -> Result<(Asked, Frozen)> {
    // Whoever runs it again the same day does not want each copy asked for anew.
    let enough = SystemTime::now() + Duration::from_secs(u64::from(thaw.days) * 24 * 3600) - SLACK;
    let (short, long): (Vec<_>, Vec<_>) = frozen.thawed.into_iter().partition(|(_, until)| until.is_some_and(|until| until < enough));
    let (short, long): (Vec<Archived>, _) = (short.into_iter().map(|(object, _)| object).collect(), long);
    let asked = Asked {
        objects: frozen.archived.len() as u64,
        bytes: frozen.archived.iter().map(|archived| archived.bytes).sum(),
        prolonged: short.len() as u64,
    };
    let mut rest = Frozen { archived: Vec::new(), thawing: frozen.thawing, thawed: long };
    let one = |object: Archived| async move {
        let call = || async { repository.thaw(&object, thaw).await };
        let readiness = retry("having an object thawed", Backoff::within(PATIENCE), cancel, Error::is_transient, call).await?;
        Ok::<_, Error>((object, readiness))
    };
    let mut asking = stream::iter(frozen.archived.into_iter().chain(short).map(one)).buffered(PARALLEL);
    while let Some((object, readiness)) = asking.try_next().await? {
        match readiness {
            // It was asked for; a server that does not say so at once is looked at again.
            Readiness::Archived(_) => rest.thawing.push(object),
            readiness => rest.note(object, readiness),
        }
    }
    Ok((asked, rest))
}

/// How a wait ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Waited {
    /// Everything can be read.
    Ready,
    /// The time is over.
    TooLong,
    /// Somebody stopped it.
    Cancelled,
}

/// Waits until everything can be read, telling how much is: objects and bytes. While the store cannot be asked nothing is known to have changed.
pub async fn wait(
    repository: &ClusterRepository,
    frozen: &mut Frozen,
    most: Duration,
    cancel: &CancellationToken,
    tell: &(dyn Fn(&Frozen) + Sync),
) -> Result<Waited> {
    let (began, mut pause) = (Instant::now(), LOOKS.0);
    loop {
        tell(frozen);
        if frozen.is_nothing() {
            return Ok(Waited::Ready);
        }
        if began.elapsed() >= most {
            return Ok(Waited::TooLong);
        }
        tokio::select! {
            () = tokio::time::sleep(pause.min(most.saturating_sub(began.elapsed()))) => {}
            () = cancel.cancelled() => return Ok(Waited::Cancelled),
        }
        pause = longer(pause, began.elapsed());
        match frozen.look_again(repository, began + most).await {
            Ok(()) => {}
            Err(_) if cancel.is_cancelled() => return Ok(Waited::Cancelled),
            Err(error) if error.is_transient() => {
                tracing::warn!(%error, "the store cannot be asked what is thawed; looking again later");
            }
            Err(error) => return Err(error),
        }
    }
}

fn longer(pause: Duration, waited: Duration) -> Duration {
    (pause * 2).min((waited / DELAY.0).clamp(LOOKS.1, DELAY.1))
}

impl Frozen {
    /// Asks of each again how it is. What was not answered stays as it was known.
    async fn look_again(&mut self, repository: &ClusterRepository, deadline: Instant) -> Result<()> {
        let (archived, thawing) = (std::mem::take(&mut self.archived), std::mem::take(&mut self.thawing));
        let known = archived.into_iter().map(|object| (object, false)).chain(thawing.into_iter().map(|object| (object, true)));
        let mut left: BTreeMap<Key, (Archived, bool)> = known.map(|(object, thawing)| (object.key.clone(), (object, thawing))).collect();
        let objects: Vec<Archived> = left.values().map(|(object, _)| object.clone()).collect();
        let one = |object: Archived| async move { (repository.readiness(&object).await, object) };
        let mut asked = stream::iter(objects.into_iter().map(one)).buffer_unordered(PARALLEL);
        let outcome = loop {
            match timeout_at(deadline, asked.next()).await {
                Ok(Some((Ok(readiness), object))) => {
                    left.remove(&object.key);
                    self.note(object, readiness);
                }
                Ok(Some((Err(error), _))) => break Err(error),
                Ok(None) | Err(_) => break Ok(()),
            }
        };
        for (object, thawing) in left.into_values() {
            if thawing { self.thawing.push(object) } else { self.archived.push(object) }
        }
        outcome
    }
}

#[cfg(test)]
mod tests {
    use std::ops::Range;
    use std::sync::{Arc, Mutex};

    use async_trait::async_trait;
    use bytes::Bytes;
    use walkeep_core::plan::estimate::Part;
    use walkeep_store::{Error as StoreError, ErrorKind, ListRequest, MemoryStore, Page, Probed, Put, Result as StoreResult, Store};

    use super::*;
    use crate::repository::tests::over;

    /// A store in memory that answers what is archived from a list, and is away where that is empty.
    #[derive(Debug)]
    struct Told {
        memory: MemoryStore,
        answers: Mutex<Vec<Option<Readiness>>>,
        asked: Mutex<Vec<Instant>>,
    }

    #[async_trait]
    impl Store for Told {
        fn url(&self) -> String {
            self.memory.url()
        }

        async fn put_if_absent(&self, key: &Key, body: Bytes) -> StoreResult<Put> {
            self.memory.put_if_absent(key, body).await
        }

        async fn get(&self, key: &Key, range: Option<Range<u64>>) -> StoreResult<Bytes> {
            self.memory.get(key, range).await
        }

        async fn list(&self, request: &ListRequest) -> StoreResult<Page> {
            self.memory.list(request).await
        }

        async fn delete(&self, key: &Key) -> StoreResult<()> {
            self.memory.delete(key).await
        }

        async fn readiness(&self, key: &Key) -> StoreResult<Readiness> {
            self.asked.lock().unwrap().push(Instant::now());
            let answer = self.answers.lock().unwrap().pop().flatten();
            answer.ok_or_else(|| StoreError::new(ErrorKind::Transient, "head", key))
        }

        async fn probe(&self, scratch: &Key) -> StoreResult<Probed> {
            self.memory.probe(scratch).await
        }
    }

    #[tokio::test(start_paused = true)]
    async fn an_outage_ends_no_wait_and_long_waits_ask_seldom() {
        let told = |answers: Vec<Option<Readiness>>| {
            Arc::new(Told { memory: MemoryStore::new(), answers: answers.into(), asked: Mutex::default() })
        };
        let (cancel, hours) = (CancellationToken::new(), |hours: u64| Duration::from_secs(hours * 3600));
        // Popped from the end: an hour of an outage in the middle, and then it is there.
        let away = std::iter::repeat_n(None, 30);
        let store = told([Some(Readiness::Thawed { until: None })].into_iter().chain(away).chain([Some(Readiness::Thawing)]).collect());
        let repository = over(store.clone()).await;
        let mut frozen = Frozen { archived: vec![archived(1, ArchiveClass::Glacier)], ..Frozen::default() };
        assert_eq!(wait(&repository, &mut frozen, hours(12), &cancel, &|_| {}).await.unwrap(), Waited::Ready);
        assert_eq!((frozen.thawed.len(), store.asked.lock().unwrap().len()), (1, 32));
        let store = told(Vec::new());
        let repository = over(store.clone()).await;
        let mut frozen = Frozen {
            thawing: vec![archived(1, ArchiveClass::Glacier)],
            archived: vec![archived(2, ArchiveClass::Glacier)],
            ..Frozen::default()
        };
        assert_eq!(wait(&repository, &mut frozen, hours(24), &cancel, &|_| {}).await.unwrap(), Waited::TooLong);
        assert_eq!((frozen.thawing.len(), frozen.archived.len()), (1, 1));
        let asked = store.asked.lock().unwrap().clone();
        let mut looks: Vec<Duration> = asked.windows(2).map(|pair| pair[1] - pair[0]).collect();
        looks.retain(|between| !between.is_zero());
        assert!(looks.len() < 200 && looks.iter().all(|between| *between <= DELAY.1), "{} looks", looks.len());
        assert_eq!(looks.iter().max(), Some(&DELAY.1));
    }

    fn archived(number: u8, class: ArchiveClass) -> Archived {
        Archived { key: format!("main/{number}").parse().unwrap(), bytes: 10, class }
    }

    #[test]
    fn copies_that_end_within_a_restore_are_told() {
        let day = Duration::from_secs(24 * 3600);
        let (now, copy) = (SystemTime::now(), |until| (archived(1, ArchiveClass::Glacier), until));
        let frozen =
            |until: Duration| Frozen { thawed: vec![copy(None), copy(Some(now + until)), copy(Some(now + day * 90))], ..Frozen::default() };
        let ends = |estimate: Option<&Estimate>, until| frozen(until).ends_too_early(estimate, now).is_some();
        assert_eq!((ends(None, MARGIN / 2), ends(None, day)), (true, false));
        let part = |seconds: u64| Part { bytes: 1, seconds: Some(seconds), bytes_per_second: None, measured: None };
        let long = Estimate { fetch: part(86_400), replay: part(0), seconds: None };
        assert_eq!((ends(Some(&long), day * 2), ends(Some(&long), day * 3)), (true, false));
    }

    #[test]
    fn what_lies_where_is_told_by_class() {
        let frozen = Frozen {
            archived: vec![archived(1, ArchiveClass::Glacier), archived(2, ArchiveClass::DeepArchive)],
            thawing: vec![archived(3, ArchiveClass::Glacier)],
            thawed: vec![(archived(4, ArchiveClass::Glacier), None)],
        };
        assert_eq!(frozen.to_string(), "2 objects of 20 bytes in GLACIER (1 being thawed), 1 object of 10 bytes in DEEP_ARCHIVE");
        assert_eq!((frozen.totals(), frozen.is_nothing()), ((3, 30), false));
        assert_eq!(frozen.without(Tier::Expedited), Some(ArchiveClass::DeepArchive));
        assert_eq!(frozen.without(Tier::Bulk), None);
        assert_eq!(frozen.longest(Tier::Standard), Duration::from_secs(12 * 3600));
        assert_eq!(frozen.shares()[0].seconds["expedited"], (60, 300));
        assert!(Frozen { archived: Vec::new(), thawing: Vec::new(), ..frozen }.is_nothing());
    }
}
