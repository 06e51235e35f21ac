//! Each rule and each fault, over stores in memory.

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex};
use std::time::{Duration, SystemTime};

use async_trait::async_trait;
use bytes::Bytes;
use tokio_util::sync::CancellationToken;

use super::*;
use crate::{ArchiveClass, Fault, FaultyStore, MemoryStore, Operation, Rule, list_all};

/// A store in memory that fails on demand, called `url`.
#[derive(Debug)]
struct Named {
    url: &'static str,
    memory: Arc<MemoryStore>,
    faulty: FaultyStore,
    /// How its objects are, where they are archived.
    frozen: Mutex<Option<Readiness>>,
    /// What it answers who asks about that.
    failing: Mutex<Option<ErrorKind>>,
}

impl Named {
    fn new(url: &'static str) -> Arc<Self> {
        let memory = Arc::new(MemoryStore::new());
        Arc::new(Self {
            url,
            memory: memory.clone(),
            faulty: FaultyStore::new(memory),
            frozen: Mutex::default(),
            failing: Mutex::default(),
        })
    }

    fn fail(&self, kind: ErrorKind) {
        for operation in Operation::ALL {
            self.faulty.inject(Rule::new(operation, Fault::Fail(kind)));
        }
    }

    /// From now on its objects are archived.
    fn freeze(&self) {
        self.faulty.inject(Rule::new(Operation::Get, Fault::Fail(ErrorKind::Archived)));
        *self.frozen.lock().unwrap() = Some(Readiness::Archived(ArchiveClass::Glacier));
    }

    fn has(&self, text: &str) -> bool {
        self.memory.contains(&key(text))
    }
}

#[async_trait]
impl Store for Named {
    fn url(&self) -> String {
        self.url.to_owned()
    }

    async fn put_if_absent(&self, key: &Key, body: Bytes) -> Result<Put> {
        self.faulty.put_if_absent(key, body).await
    }

    async fn get(&self, key: &Key, range: Option<Range<u64>>) -> Result<Bytes> {
        self.faulty.get(key, range).await
    }

    async fn list(&self, request: &ListRequest) -> Result<Page> {
        self.faulty.list(request).await
    }

    async fn delete(&self, key: &Key) -> Result<()> {
        self.faulty.delete(key).await
    }

    async fn readiness(&self, key: &Key) -> Result<Readiness> {
        if let Some(kind) = *self.failing.lock().unwrap() {
            return Err(Error::new(kind, "head", key));
        }
        Ok(self.frozen.lock().unwrap().unwrap_or(Readiness::Ready))
    }

    async fn thaw(&self, key: &Key, _: Thaw) -> Result<Readiness> {
        if let Some(kind) = *self.failing.lock().unwrap() {
            return Err(Error::new(kind, "thaw", key));
        }
        *self.frozen.lock().unwrap() = Some(Readiness::Thawing);
        Ok(Readiness::Thawing)
    }

    async fn probe(&self, scratch: &Key) -> Result<Probed> {
        self.faulty.probe(scratch).await
    }
}

/// Everything below `data/`; what is called `record` names others, and `bad` is damage.
struct Plain;

#[async_trait]
impl Guide for Plain {
    fn passes(&self) -> Vec<String> {
        vec!["data/".into(), "records/".into()]
    }

    fn wants(&self, _: usize, key: &Key) -> bool {
        !key.as_str().contains("unwanted")
    }

    fn enters(&self, folder: &str, beside: &dyn Fn(&str) -> bool) -> bool {
        !beside(&folder.replace(".parts/", ".whole"))
    }

    fn alone(&self, key: &Key) -> bool {
        key.as_str().starts_with("records/")
    }

    fn names_others(&self, key: &Key) -> bool {
        self.alone(key)
    }

    async fn lacks(&self, _: &Key, body: &Bytes, lacking: &BTreeSet<String>) -> std::result::Result<Option<String>, String> {
        Ok(lacking.iter().find(|key| body.ends_with(key.as_bytes())).cloned())
    }

    async fn prove(&self, _: &Key, body: &Bytes) -> std::result::Result<(), String> {
        if body.starts_with(b"bad") { Err("damaged".into()) } else { Ok(()) }
    }

    fn alike(&self, _: &Key, one: &[u8], other: &[u8]) -> bool {
        one.eq_ignore_ascii_case(other)
    }
}

fn key(text: &str) -> Key {
    text.parse().unwrap()
}

fn listed(text: &str) -> Listed {
    Listed { key: key(text), size: 3, modified: SystemTime::UNIX_EPOCH, class: None, storage_class: None }
}

fn body(text: &'static str) -> Bytes {
    Bytes::from_static(text.as_bytes())
}

fn two(when: StoredWhen) -> (Several, Arc<Named>, Arc<Named>) {
    let (one, other) = (Named::new("one"), Named::new("other"));
    (Several::new(vec![one.clone(), other.clone()], when, Follow::Queued), one, other)
}

/// Empties the queue of a place in the background until the token fires.
fn following(several: &Several, index: usize) -> CancellationToken {
    let (several, stop) = (several.clone(), CancellationToken::new());
    let fired = stop.clone();
    tokio::spawn(async move {
        several.follow(index, &Plain, &fired).await;
    });
    stop
}

#[tokio::test(start_paused = true)]
async fn the_others_follow_the_primary_and_a_dead_one_keeps_nobody_waiting() {
    let (several, one, other) = two(StoredWhen::Primary);
    other.fail(ErrorKind::Transient);
    let _stop = following(&several, 1);
    for number in 0..20 {
        assert_eq!(several.put_if_absent(&key(&format!("data/{number}")), body("abc")).await.unwrap(), Put::Created);
    }
    tokio::time::sleep(Duration::from_secs(100)).await;
    let state = &several.states()[1];
    assert_eq!((one.memory.len(), other.memory.len(), state.queued), (20, 0, 20));
    assert!(state.down.is_some() && state.behind_since.is_some());
    // A wrong answer is no outage.
    other.faulty.heal();
    other.faulty.inject(Rule::new(Operation::Put, Fault::LoseAnswer).times(3));
    several.drained(1).await;
    assert_eq!((other.memory.len(), several.states()[1].behind_since), (20, None));
    assert!(several.states()[1].down.is_none());
}

#[tokio::test(start_paused = true)]
async fn what_the_primary_has_goes_everywhere_and_what_it_refuses_nowhere() {
    for when in [StoredWhen::Primary, StoredWhen::All, StoredWhen::Any] {
        let (several, one, other) = two(when);
        let _stop = following(&several, 1);
        one.memory.put_if_absent(&key("data/a"), body("first")).await.unwrap();
        let refused = several.put_if_absent(&key("data/a"), body("second")).await.unwrap_err();
        assert_eq!(refused.kind(), ErrorKind::AlreadyExists, "{when:?}");
        // Whoever finds the same content there in other bytes calls it stored, and does not put it again.
        several.drained(1).await;
        assert_eq!(other.memory.get(&key("data/a"), None).await.unwrap(), "first", "{when:?}");
    }
    let (several, one, _) = two(StoredWhen::Primary);
    one.fail(ErrorKind::Transient);
    assert_eq!(several.put_if_absent(&key("data/a"), body("a")).await.unwrap_err().kind(), ErrorKind::Transient);
    assert_eq!(several.states()[1].queued, 0);
}

#[tokio::test(start_paused = true)]
async fn all_waits_for_all_and_says_for_whom() {
    let (several, one, other) = two(StoredWhen::All);
    other.fail(ErrorKind::Transient);
    let failed = several.put_if_absent(&key("data/a"), body("a")).await.unwrap_err();
    assert!(failed.kind() == ErrorKind::Transient && format!("{failed:#}").contains("other"), "{failed:#}");
    assert!(one.has("data/a"), "the others store all the same");
    other.faulty.heal();
    assert_eq!(several.put_if_absent(&key("data/a"), body("a")).await.unwrap(), Put::AlreadySame, "as the primary has it");
    assert!(other.has("data/a"));
    other.memory.put_if_absent(&key("data/b"), body("other bytes")).await.unwrap();
    assert_eq!(several.put_if_absent(&key("data/b"), body("b")).await.unwrap_err().kind(), ErrorKind::AlreadyExists, "a conflict anywhere");
    // Sealed anew, the same content has other bytes: that they are in the primary must not be taken for everywhere.
    other.fail(ErrorKind::Transient);
    for bytes in ["c, first try", "c, second try", "c, third try"] {
        let failed = several.put_if_absent(&key("data/c"), body(bytes)).await.unwrap_err();
        assert_eq!(failed.kind(), ErrorKind::Transient, "{bytes}");
    }
    assert!(several.counts_too_early());
    other.faulty.heal();
    assert_eq!(several.put_if_absent(&key("data/c"), body("c, last try")).await.unwrap_err().kind(), ErrorKind::AlreadyExists);
    assert_eq!(other.memory.get(&key("data/c"), None).await.unwrap(), "c, first try");
}

#[tokio::test(start_paused = true)]
async fn any_is_content_with_one_and_the_primary_gets_it_later() {
    let (several, one, other) = two(StoredWhen::Any);
    one.fail(ErrorKind::Transient);
    let _stop = following(&several, 0);
    several.put_if_absent(&key("data/a"), body("a")).await.unwrap();
    assert!(other.has("data/a") && !one.has("data/a"));
    // One that never answers costs a moment.
    one.faulty.heal();
    one.faulty.inject(Rule::new(Operation::Put, Fault::Hang).times(1));
    several.pass_over(0, "test".into(), Duration::ZERO);
    several.put_if_absent(&key("data/b"), body("b")).await.unwrap();
    one.faulty.heal();
    several.drained(0).await;
    assert!(one.has("data/a") && one.has("data/b"));
    one.fail(ErrorKind::Transient);
    other.fail(ErrorKind::Denied);
    assert!(several.put_if_absent(&key("data/c"), body("c")).await.is_err());
}

#[tokio::test(start_paused = true)]
async fn what_is_archived_in_one_place_is_read_from_another() {
    let (several, one, other) = two(StoredWhen::Primary);
    several.put_if_absent(&key("data/a"), body("a")).await.unwrap();
    other.memory.put_if_absent(&key("data/a"), body("a")).await.unwrap();
    one.freeze();
    assert_eq!(several.get(&key("data/a"), None).await.unwrap(), "a");
    assert_eq!(several.readiness(&key("data/a")).await.unwrap(), Readiness::Ready);
    let state = several.states().remove(0);
    assert!(state.down.is_none() && state.fallbacks == Fallbacks::default(), "nothing is wrong with the place: {state:?}");
    other.freeze();
    assert_eq!(several.get(&key("data/a"), None).await.unwrap_err().kind(), ErrorKind::Archived);
    assert_eq!(several.readiness(&key("data/a")).await.unwrap(), Readiness::Archived(ArchiveClass::Glacier));
    let thaw = Thaw { days: 1, tier: crate::Tier::Bulk };
    for _ in 0..2 {
        assert_eq!(several.thaw(&key("data/a"), thaw).await.unwrap(), Readiness::Thawing);
    }
    assert_eq!(
        *other.frozen.lock().unwrap(),
        Some(Readiness::Archived(ArchiveClass::Glacier)),
        "one place is enough, and it is asked once"
    );
    other.fail(ErrorKind::Transient);
    assert_eq!(several.get(&key("data/a"), None).await.unwrap_err().kind(), ErrorKind::Archived, "it is there, whatever the others say");
}

/// Absent is only what no place may have.
#[tokio::test(start_paused = true)]
async fn who_does_not_have_it_says_nothing_of_the_others() {
    let (several, one, other) = two(StoredWhen::Primary);
    *one.failing.lock().unwrap() = Some(ErrorKind::NotFound);
    *other.failing.lock().unwrap() = Some(ErrorKind::Transient);
    let thaw = Thaw { days: 1, tier: crate::Tier::Bulk };
    assert_eq!(several.readiness(&key("data/a")).await.unwrap_err().kind(), ErrorKind::Transient);
    assert_eq!(several.thaw(&key("data/a"), thaw).await.unwrap_err().kind(), ErrorKind::Transient);
    let (several, one, other) = two(StoredWhen::Primary);
    for store in [&one, &other] {
        *store.failing.lock().unwrap() = Some(ErrorKind::NotFound);
    }
    assert_eq!(several.readiness(&key("data/a")).await.unwrap_err().kind(), ErrorKind::NotFound);
    *one.failing.lock().unwrap() = Some(ErrorKind::Denied);
    *other.failing.lock().unwrap() = None;
    assert_eq!(several.readiness(&key("data/a")).await.unwrap(), Readiness::Ready);
    other.freeze();
    assert_eq!(several.thaw(&key("data/a"), thaw).await.unwrap(), Readiness::Thawing);
}

#[tokio::test(start_paused = true)]
async fn absence_has_to_be_proven() {
    let (several, one, other) = two(StoredWhen::Primary);
    let kind = async |several: &Several| several.get(&key("data/a"), None).await.map_err(|error| error.kind());
    let [every, enough, reachable] = [Proof::Every, Proof::Enough, Proof::Reachable].map(|proof| several.demanding(proof));
    for all in [&every, &enough, &reachable] {
        assert_eq!(kind(all).await, Err(ErrorKind::NotFound));
    }
    other.fail(ErrorKind::Transient);
    assert_eq!(kind(&every).await, Err(ErrorKind::Transient));
    let told = format!("{:#}", every.get(&key("data/a"), None).await.unwrap_err());
    assert!(told.contains("not in one") && told.contains("other could not be asked") && told.contains("taken out"), "{told}");
    assert_eq!(kind(&enough).await, Err(ErrorKind::NotFound), "the primary has whatever was acknowledged");
    assert_eq!(kind(&reachable).await, Err(ErrorKind::NotFound));
    assert_eq!(every.list(&ListRequest::default()).await.unwrap_err().kind(), ErrorKind::Transient);
    assert!(enough.list(&ListRequest::default()).await.is_ok());

    let (several, one, other) = (several, one, other);
    other.faulty.heal();
    several.pass_over(1, "test".into(), Duration::ZERO);
    one.fail(ErrorKind::Unusable);
    other.memory.put_if_absent(&key("data/b"), body("b")).await.unwrap();
    let [enough, reachable] = [Proof::Enough, Proof::Reachable].map(|proof| several.demanding(proof));
    assert_eq!(kind(&enough).await, Err(ErrorKind::Unusable), "the second may be behind");
    assert!(enough.list(&ListRequest::default()).await.is_err());
    assert_eq!(kind(&reachable).await, Err(ErrorKind::NotFound));
    assert_eq!(reachable.list(&ListRequest::default()).await.unwrap().objects.len(), 1);
    assert_eq!(enough.get(&key("data/b"), None).await.unwrap(), "b", "what is there needs no proof");
    several.note_compared(1, several.begin_comparing());
    assert_eq!(kind(&enough).await, Err(ErrorKind::NotFound), "it is known to lack nothing");
    assert_eq!(several.states()[0].fallbacks.unreachable, 1);
}

/// The third is dead: what only it may have holds up neither the second nor the primary, nor who compares.
#[tokio::test(start_paused = true)]
async fn a_dead_third_holds_up_nobody() {
    for when in [StoredWhen::Primary, StoredWhen::Any] {
        let stores = ["one", "second", "third"].map(Named::new);
        let several = Several::new(stores.iter().map(|store| store.clone() as SharedStore).collect(), when, Follow::Queued);
        stores[2].fail(ErrorKind::Transient);
        for place in [0, 1] {
            several.queue(place, listed("data/only-in-the-third"));
        }
        let _stop = [0, 1, 2].map(|index| following(&several, index));
        for index in 0..2000 {
            several.put_if_absent(&key(&format!("data/{index}")), body("a")).await.unwrap();
        }
        several.note_compared(1, several.begin_comparing());
        several.put_if_absent(&key("records/a"), body("a")).await.unwrap();
        tokio::time::sleep(Duration::from_secs(60)).await;
        assert!((0..2000).all(|index| stores[1].has(&format!("data/{index}"))), "{when:?}");
        // Whether it is named by the record nobody knows; by the primary's own account nobody is missing it.
        assert_eq!(stores[1].has("records/a"), when == StoredWhen::Primary);
        let states = several.states();
        let left = if when == StoredWhen::Primary { [1, 0] } else { [1, 2] };
        assert_eq!([states[0].queued, states[1].queued], left, "{states:?}");
        tokio::time::timeout(Duration::from_secs(1), several.room(1)).await.expect("whoever compares goes on");
        stores[2].faulty.heal();
        stores[2].memory.put_if_absent(&key("data/only-in-the-third"), body("a")).await.unwrap();
        tokio::time::sleep(Duration::from_secs(200)).await;
        assert_eq!(stores[1].has("data/only-in-the-third"), when == StoredWhen::Any);
        assert!(stores[1].has("records/a"));
        assert_eq!(
            several.states().iter().map(|state| state.queued).collect::<Vec<_>>(),
            [0, 0, 1],
            "the third one's record waits for a comparison"
        );
    }
}

/// What was let go of for want of room may be what a record names.
#[tokio::test(start_paused = true)]
async fn no_record_comes_before_its_data() {
    let (several, one, other) = two(StoredWhen::Primary);
    let _stop = following(&several, 1);
    // Put by another process, before this one knew the second.
    one.memory.put_if_absent(&key("data/a"), body("a")).await.unwrap();
    several.put_if_absent(&key("records/a"), body("names a")).await.unwrap();
    several.put_if_absent(&key("data/b"), body("b")).await.unwrap();
    tokio::time::sleep(Duration::from_secs(60)).await;
    assert!(other.has("data/b") && !other.has("records/a"));
    let began = several.begin_comparing();
    several.queue(1, listed("data/a"));
    several.note_compared(1, began);
    several.drained(1).await;
    assert!(other.has("data/a") && other.has("records/a"));
    let puts: Vec<String> = other.faulty.calls().into_iter().filter(|call| call.0 == Operation::Put).map(|call| call.1).collect();
    assert_eq!(puts, ["data/b", "data/a", "records/a"]);
}

/// A frozen place answers nothing, and a slow one answers what is small.
#[tokio::test(start_paused = true)]
async fn a_hanging_place_is_found_out_by_who_gives_up() {
    let (several, one, other) = two(StoredWhen::Primary);
    for store in [&one, &other] {
        store.memory.put_if_absent(&key("data/a"), body("a")).await.unwrap();
    }
    let get = async || {
        let began = tokio::time::Instant::now();
        let got = several.get(&key("data/a"), None).await.map_err(|error| error.kind());
        (got, began.elapsed())
    };
    one.faulty.inject(Rule::new(Operation::Get, Fault::Delay(Duration::from_secs(40))).on("data/a"));
    assert_eq!(get().await, (Ok(body("a")), Duration::from_secs(40)), "it is slow, and alive");
    assert_eq!(several.states()[0].fallbacks, Fallbacks::default());
    one.faulty.heal();
    for operation in Operation::ALL {
        one.faulty.inject(Rule::new(operation, Fault::Hang));
    }
    let (got, took) = get().await;
    assert!(got.is_ok() && took < Duration::from_secs(4), "{took:?}");
    assert!(several.states()[0].down.is_some());
    assert_eq!(get().await, (Ok(body("a")), Duration::ZERO), "it is passed over");
    assert_eq!(several.states()[0].fallbacks.unreachable, 2);
    // It is tried again now and then, and that costs no more.
    for _ in 0..20 {
        tokio::time::sleep(Duration::from_secs(20)).await;
        assert!(get().await.1 < Duration::from_secs(4));
    }
    // What nobody has who answers is not absent.
    let absent = tokio::time::timeout(Duration::from_secs(100), several.get(&key("data/b"), None)).await;
    assert!(!matches!(absent, Ok(Err(error)) if error.kind() == ErrorKind::NotFound));
    one.faulty.heal();
    tokio::time::sleep(Duration::from_secs(100)).await;
    assert!(get().await.0.is_ok() && several.states()[0].down.is_none());
    // With deadlines above, where it is waited for.
    one.faulty.inject(Rule::new(Operation::Put, Fault::Hang));
    for _ in 0..2 {
        assert!(several.states()[0].down.is_none());
        assert!(tokio::time::timeout(Duration::from_secs(5), several.put_if_absent(&key("data/c"), body("c"))).await.is_err());
    }
    assert!(several.states()[0].down.is_some());
}

/// What the primary lacks is no doubt about the others, and what waits for a place is a doubt about that alone.
#[tokio::test(start_paused = true)]
async fn any_knows_what_the_second_lacks_while_the_primary_is_down() {
    let (several, one, other) = two(StoredWhen::Any);
    for text in ["data/a", "data/x/y/z"] {
        one.memory.put_if_absent(&key(text), body("abc")).await.unwrap();
        several.queue(1, listed(text));
    }
    several.note_compared(1, several.begin_comparing());
    one.fail(ErrorKind::Transient);
    let _stop = following(&several, 1);
    let kind = async |text: &str| several.get(&key(text), None).await.map_err(|error| error.kind());
    assert_eq!(kind("data/b").await, Err(ErrorKind::NotFound), "it is none of those that the second lacks");
    assert_eq!(kind("data/a").await, Err(ErrorKind::Transient), "it is one, and the primary cannot be asked");
    // Another process could not bring something to the primary.
    several.doubt(0);
    assert_eq!(kind("data/b").await, Err(ErrorKind::NotFound));
    several.put_if_absent(&key("data/c"), body("c")).await.unwrap();
    assert_eq!(kind("data/c").await.unwrap(), "c");
    // What the second lacks is there all the same.
    let shown = list_all(&several, ListRequest { prefix: "data/".into(), ..ListRequest::default() }).await.unwrap().objects;
    assert_eq!(shown.iter().map(|listed| listed.key.as_str()).collect::<Vec<_>>(), ["data/a", "data/c", "data/x/y/z"]);
    let request = ListRequest { prefix: "data/x/".into(), by_folder: true, ..ListRequest::default() };
    assert_eq!(several.list(&request).await.unwrap().folders, ["data/x/y/"]);
    several.doubt(1);
    assert_eq!(kind("data/b").await, Err(ErrorKind::Transient));
    assert!(several.list(&ListRequest::default()).await.is_err());
    assert_eq!(other.memory.len(), 1);
}

#[tokio::test(start_paused = true)]
async fn what_is_missing_or_damaged_in_one_is_read_from_another() {
    let (several, one, other) = two(StoredWhen::Primary);
    other.memory.put_if_absent(&key("data/a"), body("good")).await.unwrap();
    assert_eq!(several.get(&key("data/a"), Some(1..3)).await.unwrap(), "oo");
    one.memory.put_if_absent(&key("data/a"), body("bad")).await.unwrap();
    let bad = several.get(&key("data/a"), None).await.unwrap();
    assert_eq!(bad, "bad");
    let good = several.get_unlike(&key("data/a"), None, std::slice::from_ref(&bad)).await.unwrap().unwrap();
    assert_eq!(several.get_unlike(&key("data/a"), None, &[bad.clone(), good]).await.unwrap(), None);
    assert_eq!(several.states()[0].fallbacks, Fallbacks { missing: 1, unreachable: 0, damaged: 1 });
    let listed = list_all(&several, ListRequest::default()).await.unwrap().objects;
    assert_eq!(listed.iter().map(|listed| listed.size).collect::<Vec<_>>(), [4], "the longer one, once");
    other.fail(ErrorKind::Transient);
    assert!(several.get_unlike(&key("data/a"), None, &[bad]).await.is_err(), "the other one may be good");
}

#[tokio::test(start_paused = true)]
async fn what_is_removed_is_removed_everywhere_and_does_not_come_back() {
    let (several, one, other) = two(StoredWhen::Primary);
    for text in ["data/a", "data/b"] {
        several.put_if_absent(&key(text), body("a")).await.unwrap();
    }
    several.delete(&key("data/a")).await.unwrap();
    assert_eq!(other.faulty.count(Operation::Delete), 0, "it was never sent there");
    let stop = following(&several, 1);
    several.drained(1).await;
    assert!(!one.has("data/a") && !other.has("data/a") && other.has("data/b"));
    // Removed while it is on its way.
    other.faulty.inject(Rule::new(Operation::Put, Fault::Delay(Duration::from_secs(9))).times(1));
    several.put_if_absent(&key("data/c"), body("c")).await.unwrap();
    tokio::time::sleep(Duration::from_secs(1)).await;
    assert_eq!(several.delete_many(&[key("data/b"), key("data/c")]).await.unwrap().len(), 0);
    several.drained(1).await;
    tokio::time::sleep(Duration::from_secs(1)).await;
    assert!(one.memory.is_empty() && other.memory.is_empty());
    stop.cancel();
    other.fail(ErrorKind::Transient);
    several.put_if_absent(&key("data/d"), body("d")).await.unwrap();
    other.memory.put_if_absent(&key("data/d"), body("d")).await.unwrap();
    several.delete(&key("data/d")).await.unwrap();
    assert!(several.delete(&key("data/e")).await.is_err(), "what could not be removed is told");
}

/// What was put before, by who got no answer, may be in the second already; and a removal there is not done before it was answered.
#[tokio::test(start_paused = true)]
async fn a_removal_asks_wherever_a_put_may_have_landed() {
    let (several, one, other) = two(StoredWhen::Primary);
    for store in [&one, &other] {
        store.memory.put_if_absent(&key("data/a"), body("a")).await.unwrap();
    }
    assert_eq!(several.put_if_absent(&key("data/a"), body("a")).await.unwrap(), Put::AlreadySame);
    several.delete(&key("data/a")).await.unwrap();
    assert!(one.memory.is_empty() && other.memory.is_empty());
    let (several, one, other) = two(StoredWhen::Any);
    one.faulty.inject(Rule::new(Operation::Put, Fault::Delay(Duration::from_secs(4))).times(1));
    several.put_if_absent(&key("data/b"), body("b")).await.unwrap();
    one.memory.put_if_absent(&key("data/b"), body("b")).await.unwrap();
    several.delete(&key("data/b")).await.unwrap();
    assert!(one.memory.is_empty() && other.memory.is_empty());
}

#[tokio::test(start_paused = true)]
async fn what_is_put_again_while_the_old_one_is_removed_stays() {
    let (several, one, other) = two(StoredWhen::Primary);
    let _stop = following(&several, 1);
    let slow = |operation| Rule::new(operation, Fault::Delay(Duration::from_secs(9))).times(1);
    other.faulty.inject(slow(Operation::Put));
    several.put_if_absent(&key("data/a"), body("a")).await.unwrap();
    tokio::time::sleep(Duration::from_secs(1)).await;
    several.delete(&key("data/a")).await.unwrap();
    // The put lands behind that, and is removed again; slowly.
    other.faulty.inject(slow(Operation::Delete));
    tokio::time::sleep(Duration::from_secs(10)).await;
    several.put_if_absent(&key("data/a"), body("a")).await.unwrap();
    several.drained(1).await;
    tokio::time::sleep(Duration::from_secs(60)).await;
    assert!(one.has("data/a") && other.has("data/a"));
}

#[tokio::test(start_paused = true)]
async fn a_process_that_ends_waits_a_moment_and_says_what_it_leaves() {
    let (one, other) = (Named::new("one"), Named::new("other"));
    let places: Vec<SharedStore> = vec![one.clone(), other.clone()];
    let told = Arc::new(std::sync::Mutex::new(Vec::new()));
    let tell = told.clone();
    let left = Box::new(move |place| tell.lock().unwrap().push(place));
    let names_others = |key: &Key| key.as_str().starts_with("records/");
    let several = Several::new(places, StoredWhen::Primary, Follow::Awaited { patience: Duration::from_secs(10), left, names_others });
    several.put_if_absent(&key("data/a"), body("a")).await.unwrap();
    assert!(other.has("data/a") && told.lock().unwrap().is_empty());
    other.faulty.inject(Rule::new(Operation::Put, Fault::Hang));
    let began = tokio::time::Instant::now();
    for number in 0..50 {
        several.put_if_absent(&key(&format!("data/b{number}")), body("b")).await.unwrap();
    }
    assert!(began.elapsed() < Duration::from_secs(11), "one wait, not fifty: {:?}", began.elapsed());
    assert_eq!((one.memory.len(), told.lock().unwrap().clone()), (51, vec![1; 50]));
    // What may name some of these is left behind too, though the place answers again.
    other.faulty.heal();
    tokio::time::sleep(Duration::from_secs(120)).await;
    for text in ["data/c", "records/c"] {
        several.put_if_absent(&key(text), body("c")).await.unwrap();
    }
    assert!(other.has("data/c") && !other.has("records/c"));
    assert_eq!(told.lock().unwrap().len(), 51);
}

#[tokio::test(start_paused = true)]
async fn what_is_copied_is_proven() {
    let (several, one, other) = two(StoredWhen::Primary);
    let third = Named::new("third");
    let several3 = Several::new(vec![one.clone(), third.clone(), other.clone()], StoredWhen::Primary, Follow::Queued);
    one.memory.put_if_absent(&key("data/a"), body("bad one")).await.unwrap();
    third.memory.put_if_absent(&key("data/a"), body("good")).await.unwrap();
    other.memory.put_if_absent(&key("data/b"), body("other bytes")).await.unwrap();
    one.memory.put_if_absent(&key("data/b"), body("bytes")).await.unwrap();
    other.memory.put_if_absent(&key("data/d"), body("ALIKE")).await.unwrap();
    one.memory.put_if_absent(&key("data/d"), body("alike")).await.unwrap();
    for text in ["data/a", "data/b", "data/d", "data/gone"] {
        several3.queue(2, listed(text));
    }
    let _stop = following(&several3, 2);
    several3.drained(2).await;
    assert_eq!(other.memory.get(&key("data/a"), None).await.unwrap(), "good");
    assert_eq!(other.memory.get(&key("data/b"), None).await.unwrap(), "other bytes", "nothing is overwritten");
    assert_eq!(several3.states()[2].differing, 1);
    // Where nobody has it whole, damage is not spread.
    one.memory.put_if_absent(&key("data/c"), body("bad")).await.unwrap();
    several.queue(1, listed("data/c"));
    let _stop = following(&several, 1);
    tokio::time::sleep(Duration::from_secs(60)).await;
    assert!(!other.has("data/c"));
}

/// What may be other bytes than those at hand: nobody puts these elsewhere, and nobody waits for it.
#[tokio::test(start_paused = true)]
async fn what_is_archived_under_the_name_is_there() {
    let archived = || Rule::new(Operation::Put, Fault::Fail(ErrorKind::Archived)).on("data/a");
    let (several, one, other) = two(StoredWhen::Any);
    one.faulty.inject(archived());
    assert_eq!(several.put_if_absent(&key("data/a"), body("a")).await.unwrap_err().kind(), ErrorKind::Archived);
    assert!(!other.has("data/a"));
    let (several, _, other) = two(StoredWhen::Primary);
    other.faulty.inject(archived());
    let _stop = following(&several, 1);
    for text in ["data/a", "data/b"] {
        several.put_if_absent(&key(text), body("a")).await.unwrap();
    }
    tokio::time::sleep(Duration::from_secs(1)).await;
    assert!(other.has("data/b") && several.states()[1].queued == 0);
}

/// A place that lost an fsync of an object gets it anew from who has its bytes, and nobody gets it from there.
#[tokio::test]
async fn what_is_in_doubt_is_put_anew_and_brought_nowhere() {
    let folder = tempfile::tempdir().unwrap();
    let local = Arc::new(crate::LocalStore::open(folder.path()).await.unwrap());
    let (data, doubt) = (folder.path().join("data"), folder.path().join(".doubt~/data"));
    for (place, text) in [(&data, "ALIKE"), (&doubt, "")] {
        std::fs::create_dir_all(place).unwrap();
        std::fs::write(place.join("a"), text).unwrap();
    }
    let one = Named::new("one");
    // As the primary: what it has goes nowhere, and it is said.
    for when in [StoredWhen::Primary, StoredWhen::All, StoredWhen::Any] {
        let several = Several::new(vec![local.clone(), one.clone()], when, Follow::Queued);
        let _stop = following(&several, 1);
        assert!(several.put_if_absent(&key("data/a"), body("alike")).await.unwrap_err().is_in_doubt(), "{when:?}");
        assert!(several.states()[1].queued == 0 && !one.has("data/a"), "{when:?}");
    }
    one.memory.put_if_absent(&key("data/a"), body("alike")).await.unwrap();
    let several = Several::new(vec![one.clone(), local.clone()], StoredWhen::Primary, Follow::Queued);
    several.queue(1, listed("data/a"));
    let _stop = following(&several, 1);
    several.drained(1).await;
    assert_eq!(local.get(&key("data/a"), None).await.unwrap(), "alike");
    assert!(!doubt.join("a").exists());
    // By hand, where one of them cannot be asked.
    std::fs::write(doubt.join("a"), "").unwrap();
    assert!(several.replace_in_doubt(&key("data/a"), body("Alike")).await.unwrap());
    assert!(!several.replace_in_doubt(&key("data/a"), body("other")).await.unwrap(), "it is in doubt no more");
    assert_eq!(local.get(&key("data/a"), None).await.unwrap(), "Alike");
}

/// Damaged or archived wherever else it is: the place goes on lacking it, which stays known, and holds up only what needs it.
#[tokio::test(start_paused = true)]
async fn what_no_other_place_can_give_stays_known_until_it_is_there() {
    let (several, one, other) = two(StoredWhen::All);
    for (text, bytes) in [("data/bad", "bad"), ("data/cold", "c"), ("data/only-here", "bad"), ("data/x", "x")] {
        one.memory.put_if_absent(&key(text), body(bytes)).await.unwrap();
        several.queue(1, listed(text));
    }
    other.memory.put_if_absent(&key("data/only-here"), body("good")).await.unwrap();
    one.faulty.inject(Rule::new(Operation::Get, Fault::Fail(ErrorKind::Archived)).on("data/cold"));
    for (text, bytes) in [("records/1", "names data/x"), ("records/2", "names data/bad")] {
        one.memory.put_if_absent(&key(text), body(bytes)).await.unwrap();
        several.queue(1, listed(text));
    }
    several.note_compared(1, several.begin_comparing());
    let _stop = following(&several, 1);
    tokio::time::sleep(Duration::from_secs(60)).await;
    let state = || several.states().remove(1);
    let there = |texts: &[&str]| texts.iter().map(|text| other.has(text)).collect::<Vec<_>>();
    assert_eq!(there(&["data/bad", "data/cold", "data/x", "records/1", "records/2"]), [false, false, true, true, false]);
    assert_eq!((state().queued, state().aside, state().stuck), (3, 0, 3), "{:?}", state());
    assert!(state().behind_since.is_some() && state().waits_since.is_none() && several.behind_since(1).is_none());
    assert!(!several.counts_too_early(), "nobody waits for what cannot come");
    // A comparison finds it again, and nothing new is held up.
    several.queue(1, listed("data/bad"));
    one.memory.put_if_absent(&key("data/y"), body("y")).await.unwrap();
    several.queue(1, listed("data/y"));
    tokio::time::sleep(Duration::from_secs(60)).await;
    assert!(other.has("data/y") && state().queued == 3);
    let asked = one.faulty.calls().iter().filter(|(operation, key)| *operation == Operation::Get && key == "data/bad").count();
    assert_eq!(asked, 1, "it is not read again and again");
    // One is thawed, the other is put where it was missing.
    one.faulty.heal();
    other.memory.put_if_absent(&key("data/bad"), body("good")).await.unwrap();
    tokio::time::sleep(Duration::from_secs(1000)).await;
    assert_eq!(there(&["data/bad", "data/cold", "records/2"]), [true; 3]);
    assert_eq!((state().queued, state().stuck, state().behind_since), (0, 0, None));
    // What is gone from everywhere is missed nowhere.
    one.memory.put_if_absent(&key("data/z"), body("bad")).await.unwrap();
    several.queue(1, listed("data/z"));
    tokio::time::sleep(Duration::from_secs(60)).await;
    assert_eq!(state().stuck, 1);
    one.memory.delete(&key("data/z")).await.unwrap();
    tokio::time::sleep(Duration::from_secs(1000)).await;
    assert_eq!((state().queued, other.has("data/z")), (0, false));
}

/// Writes down what was found.
#[derive(Default)]
struct Found {
    found: Vec<String>,
    marks: Vec<Mark>,
    /// Fails at this mark.
    until: Option<Mark>,
}

#[async_trait]
impl Sink for Found {
    async fn found(&mut self, found: Compared) -> Result<()> {
        self.found.push(match found {
            Compared::OnlyFirst(listed) => format!("> {}", listed.key),
            Compared::OnlySecond(listed) => format!("< {}", listed.key),
            Compared::Differs(listed, _) => format!("! {}", listed.key),
        });
        Ok(())
    }

    async fn so_far(&mut self, mark: &Mark, _: u64) -> Result<()> {
        if self.until.as_ref() == Some(mark) {
            return Err(Error::at(ErrorKind::Cancelled, "compare", ""));
        }
        self.marks.push(mark.clone());
        Ok(())
    }
}

#[tokio::test]
async fn a_comparison_finds_what_either_lacks_and_goes_on_where_it_was_broken_off() {
    let (one, other) = (MemoryStore::new(), MemoryStore::new());
    let texts = [
        "data/a/1",
        "data/a/2",
        "data/a.b",
        "data/a.b2/3",
        "data/c/d/e",
        "data/c/unwanted",
        "data/c.parts/1",
        "data/x.parts/1",
        "data/x.whole",
        "records/1",
        "elsewhere/1",
    ];
    for text in texts {
        one.put_if_absent(&key(text), body("abc")).await.unwrap();
        if !text.ends_with('1') {
            other.put_if_absent(&key(text), body("abc")).await.unwrap();
        }
    }
    other.put_if_absent(&key("data/f/g"), body("abc")).await.unwrap();
    other.overwrite(&key("data/a/2"), body("abcd"));
    let mut whole = Found::default();
    compare(&one, &other, &Plain, Mark::default(), &mut whole).await.unwrap();
    assert_eq!(whole.found, ["> data/a/1", "! data/a/2", "> data/c.parts/1", "< data/f/g", "> records/1"]);
    for (at, mark) in whole.marks.iter().enumerate() {
        let mut first = Found { until: Some(mark.clone()), ..Found::default() };
        compare(&one, &other, &Plain, Mark::default(), &mut first).await.unwrap_err();
        let mut rest = Found::default();
        compare(&one, &other, &Plain, mark.clone(), &mut rest).await.unwrap();
        assert_eq!(first.marks, whole.marks[..at]);
        first.found.extend(rest.found);
        assert_eq!(first.found, whole.found, "{mark:?}");
    }
}

/// A place that is opened by whoever asks it first, while the others wait: it takes 5 s, and fails until it is let.
#[derive(Debug, Default)]
struct Opening {
    memory: MemoryStore,
    opened: tokio::sync::OnceCell<()>,
    lets: std::sync::atomic::AtomicBool,
}

impl Opening {
    async fn open(&self) -> Result<&MemoryStore> {
        let open = async || {
            tokio::time::sleep(Duration::from_secs(5)).await;
            let lets = self.lets.load(std::sync::atomic::Ordering::Relaxed);
            if lets { Ok(()) } else { Err(Error::at(ErrorKind::Transient, "open", "opening")) }
        };
        self.opened.get_or_try_init(open).await.map(|()| &self.memory)
    }
}

#[async_trait]
impl Store for Opening {
    fn url(&self) -> String {
        "opening".to_owned()
    }

    async fn put_if_absent(&self, key: &Key, body: Bytes) -> Result<Put> {
        self.open().await?.put_if_absent(key, body).await
    }

    async fn get(&self, key: &Key, range: Option<Range<u64>>) -> Result<Bytes> {
        self.open().await?.get(key, range).await
    }

    async fn list(&self, request: &ListRequest) -> Result<Page> {
        self.open().await?.list(request).await
    }

    async fn delete(&self, key: &Key) -> Result<()> {
        self.open().await?.delete(key).await
    }

    async fn probe(&self, scratch: &Key) -> Result<Probed> {
        self.open().await?.probe(scratch).await
    }
}

#[tokio::test(start_paused = true)]
async fn a_removal_does_not_wait_for_who_waits_for_it() {
    let (one, other) = (Named::new("one"), Arc::new(Opening::default()));
    let several = Several::new(vec![one.clone(), other.clone()], StoredWhen::Primary, Follow::Queued);
    for text in ["data/a", "data/b", "data/c", "data/d", "data/e"] {
        several.put_if_absent(&key(text), body("abc")).await.unwrap();
    }
    let _stop = following(&several, 1);
    tokio::time::sleep(Duration::from_secs(1)).await;
    // On its way, as are three others, one of which opens the place next. That the place has it cannot be ruled out, and it does not answer.
    let _ = tokio::time::timeout(Duration::from_secs(1), several.delete(&key("data/a"))).await;
    tokio::time::sleep(Duration::from_secs(60)).await;
    other.lets.store(true, std::sync::atomic::Ordering::Relaxed);
    tokio::time::timeout(Duration::from_secs(300), several.drained(1)).await.expect("everything is brought");
    tokio::time::sleep(Duration::from_secs(60)).await;
    assert_eq!((one.memory.len(), other.memory.len()), (4, 4));
}

#[tokio::test(start_paused = true)]
async fn a_denied_lock_is_an_answer_and_who_does_not_answer_is_not_asked_for_one() {
    let lock = Lock { mode: crate::LockMode::Compliance, days: 30 };
    let place = || Arc::new(FaultyStore::new(Arc::new(MemoryStore::locking(lock))));
    let (one, other) = (place(), place());
    let several = Several::new(vec![one.clone(), other.clone()], StoredWhen::All, Follow::Queued);
    let pack = key("main/packs/1");
    several.put_if_absent(&pack, body("one")).await.unwrap();
    other.inject(Rule::new(Operation::Probe, Fault::Fail(ErrorKind::Denied)));
    assert_eq!(several.lock_anew(&pack).await.unwrap_err().kind(), ErrorKind::Denied);
    assert!(several.states()[1].down.is_none());
    several.pass_over(1, "test".into(), Duration::from_secs(60));
    let asked = [one.count(Operation::Probe), other.count(Operation::Probe)];
    assert_eq!(several.lock_anew(&pack).await.unwrap_err().kind(), ErrorKind::Transient);
    assert_eq!([one.count(Operation::Probe), other.count(Operation::Probe)], [asked[0] + 1, asked[1]]);
}
