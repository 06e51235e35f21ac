//! What a place still lacks: keys in the order in which they were put elsewhere, and the bytes of as many of them as there is room for.
//!
//! It lives in memory. What is lost with the process a comparison finds again; bytes for which there is no room are read from another place.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::SystemTime;

use bytes::Bytes;
use tokio::sync::Notify;

use crate::{Key, Listed};

/// Bytes that are kept for one place.
const BYTES: usize = 64 << 20;
/// Keys that are.
const KEYS: usize = 100_000;
/// A comparison adds no more while so many wait.
const ROOM: usize = 1000;

/// An object that a place lacks.
#[derive(Debug, Clone)]
pub struct Lacking {
    pub key: Key,
    /// Its bytes, if they are at hand.
    pub body: Option<Bytes>,
    /// So many, as far as is known.
    pub size: u64,
    /// When it was put elsewhere.
    pub since: SystemTime,
    /// Whether nobody tried to put it at this place before.
    pub new: bool,
}

impl Lacking {
    /// It was put elsewhere just now, and is `new` there.
    pub fn put(key: &Key, body: &Bytes, new: bool) -> Self {
        Self { key: key.clone(), body: Some(body.clone()), size: body.len() as u64, since: SystemTime::now(), new }
    }

    /// It lies elsewhere.
    pub fn there(key: &Key) -> Self {
        Self { key: key.clone(), body: None, size: 0, since: SystemTime::now(), new: false }
    }

    /// It was listed elsewhere.
    pub fn listed(listed: Listed) -> Self {
        Self { key: listed.key, body: None, size: listed.size, since: listed.modified, new: false }
    }
}

/// In what order objects may be brought, by their keys.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Turn {
    /// Beside any other.
    Any,
    /// Behind all before it, and before all others.
    Alone,
    /// The same, and only where nothing before it is missing: it names others.
    Last,
}

/// An object to be brought to a place.
#[derive(Debug, Clone)]
pub struct Item {
    pub key: Key,
    /// Its bytes, if they are still in memory.
    pub body: Option<Bytes>,
    size: u64,
    /// When it was put elsewhere.
    since: SystemTime,
    number: u64,
    /// Whether it may have been put here before: then it may be there.
    tried: bool,
    /// Whether it was set aside because it names others.
    last: bool,
    /// Whether nobody could give it when it was looked for last.
    stuck: bool,
}

/// What became of an object that is to be removed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Forgotten {
    /// It was on its way and nothing of it was sent.
    NeverSent,
    /// Whoever brings it there removes it again, but it may be there.
    OnItsWay,
    /// Nothing is known of it.
    Unknown,
}

impl Forgotten {
    /// Whether the place may have it.
    pub fn may_be_there(self) -> bool {
        self != Self::NeverSent
    }
}

#[derive(Debug, Default)]
struct State {
    next: u64,
    waiting: BTreeMap<u64, Item>,
    /// What waits for something else than this place.
    aside: BTreeMap<u64, Item>,
    /// What no other place can give until somebody does something about it.
    stuck: BTreeMap<u64, Item>,
    numbers: HashMap<Key, u64>,
    bytes: usize,
    flying: HashMap<Key, Flying>,
    overflowed: Option<SystemTime>,
}

#[derive(Debug)]
struct Flying {
    size: u64,
    since: SystemTime,
    alone: bool,
    stuck: bool,
    /// It was removed meanwhile.
    forgotten: bool,
}

/// The queue of a place.
#[derive(Debug, Default)]
pub struct Queue {
    state: Mutex<State>,
    changed: Notify,
}

impl Queue {
    /// Adds an object; one that waits already stays where it is.
    pub fn add(&self, lacking: Lacking) {
        let Lacking { key, body, size, since, new } = lacking;
        let mut state = self.state();
        if state.numbers.contains_key(&key) || state.flying.get(&key).is_some_and(|flying| !flying.forgotten) {
            return;
        }
        if state.waiting.len() + state.aside.len() + state.stuck.len() >= KEYS {
            state.overflowed.get_or_insert(since);
            return;
        }
        let body = body.filter(|body| state.bytes + body.len() <= BYTES);
        state.bytes += body.as_ref().map_or(0, Bytes::len);
        let number = state.next;
        state.next += 1;
        state.numbers.insert(key.clone(), number);
        state.waiting.insert(number, Item { key, body, size, since, number, tried: !new, last: false, stuck: false });
        drop(state);
        self.changed.notify_waiters();
    }

    /// The next object, if its turn lets it be brought beside those that are on their way. What names others is set aside while some of them are, or it is
    /// not `settled` that all the others are queued.
    pub fn take(&self, turn: impl Fn(&Key) -> Turn, settled: bool) -> Option<Item> {
        let mut state = self.state();
        let settled = settled && state.overflowed.is_none();
        loop {
            let (number, turn) = state.waiting.first_key_value().map(|(number, item)| (*number, turn(&item.key)))?;
            let behind_others = state.aside.first_key_value().is_some_and(|(first, _)| *first < number);
            if turn == Turn::Last && (!settled || behind_others) {
                let item = state.waiting.remove(&number)?;
                state.aside.insert(number, Item { last: true, stuck: false, ..item });
                continue;
            }
            let is_alone = turn != Turn::Any;
            let key_is_flying = state.waiting.get(&number).is_some_and(|item| state.flying.contains_key(&item.key));
            if key_is_flying || (is_alone && !state.flying.is_empty()) || state.flying.values().any(|flying| flying.alone) {
                return None;
            }
            let item = state.waiting.remove(&number)?;
            state.numbers.remove(&item.key);
            state.flying.insert(
                item.key.clone(),
                Flying { size: item.size, since: item.since, alone: is_alone, stuck: item.stuck, forgotten: false },
            );
            return Some(item);
        }
    }

    /// An object is there, or need not be. Whether it was removed meanwhile: then it is on its way until [`Self::removed`], so that one that is put anew is
    /// not brought before, and removed with it.
    pub fn done(&self, item: &Item) -> bool {
        let mut state = self.state();
        state.bytes -= item.body.as_ref().map_or(0, Bytes::len);
        let forgotten = state.flying.get(&item.key).is_some_and(|flying| flying.forgotten);
        if !forgotten {
            state.flying.remove(&item.key);
        }
        drop(state);
        self.changed.notify_waiters();
        forgotten
    }

    /// An object that was removed while it was on its way was removed behind it.
    pub fn removed(&self, key: &Key) {
        self.state().flying.remove(key);
        self.changed.notify_waiters();
    }

    /// An object could not be brought: it is the next one again. Whether it was removed meanwhile, as [`Self::done`]; then it is not.
    pub fn put_back(&self, item: Item) -> bool {
        self.keep(item, |state| &mut state.waiting)
    }

    /// An object cannot be had at present: the others are brought before it. Whether it was removed meanwhile.
    pub fn set_aside(&self, item: Item) -> bool {
        self.keep(Item { stuck: false, ..item }, |state| &mut state.aside)
    }

    /// No other place can give an object: it holds up nothing, and is looked for again by [`Self::take_up_stuck`]. Whether it was removed meanwhile.
    pub fn set_stuck(&self, item: Item) -> bool {
        self.keep(Item { stuck: true, ..item }, |state| &mut state.stuck)
    }

    fn keep(&self, item: Item, among: impl Fn(&mut State) -> &mut BTreeMap<u64, Item>) -> bool {
        let mut state = self.state();
        let forgotten = state.flying.get(&item.key).is_some_and(|flying| flying.forgotten);
        if forgotten {
            state.bytes -= item.body.as_ref().map_or(0, Bytes::len);
        } else {
            state.flying.remove(&item.key);
            state.numbers.insert(item.key.clone(), item.number);
            among(&mut state).insert(item.number, Item { tried: true, ..item });
        }
        drop(state);
        self.changed.notify_waiters();
        forgotten
    }

    /// What was set aside has its turn again.
    pub fn take_up(&self) {
        let mut state = self.state();
        for (mut number, item) in std::mem::take(&mut state.aside) {
            if item.last {
                // Behind what a comparison found meanwhile.
                number = state.next;
                state.next += 1;
                state.numbers.insert(item.key.clone(), number);
            }
            state.waiting.insert(number, Item { number, last: false, ..item });
        }
        drop(state);
        self.changed.notify_waiters();
    }

    /// What nobody could give is looked for again.
    pub fn take_up_stuck(&self) {
        let mut state = self.state();
        let stuck = std::mem::take(&mut state.stuck);
        state.waiting.extend(stuck);
        drop(state);
        self.changed.notify_waiters();
    }

    /// How many are set aside.
    pub fn aside(&self) -> usize {
        self.state().aside.len()
    }

    /// Whether any waits for [`Self::take_up_stuck`].
    pub fn has_stuck(&self) -> bool {
        !self.state().stuck.is_empty()
    }

    /// How many nobody could give, those among them that are being looked for again.
    pub fn stuck(&self) -> usize {
        let state = self.state();
        let looked_for = state.waiting.values().filter(|item| item.stuck).count();
        state.stuck.len() + looked_for + state.flying.values().filter(|flying| flying.stuck).count()
    }

    /// The keys of those that are not on their way.
    pub fn stuck_keys(&self) -> BTreeSet<String> {
        let state = self.state();
        let looked_for = state.waiting.values().filter(|item| item.stuck);
        state.stuck.values().chain(looked_for).map(|item| item.key.to_string()).collect()
    }

    /// Somebody has to look again.
    pub fn wake(&self) {
        self.changed.notify_waiters();
    }

    /// An object is removed.
    pub fn forget(&self, key: &Key) -> Forgotten {
        let mut state = self.state();
        let is_flying = state.flying.get_mut(key).map(|flying| flying.forgotten = true).is_some();
        let number = state.numbers.remove(key);
        let item = number.and_then(|number| {
            let waits = state.waiting.remove(&number);
            waits.or_else(|| state.aside.remove(&number)).or_else(|| state.stuck.remove(&number))
        });
        let Some(item) = item else { return if is_flying { Forgotten::OnItsWay } else { Forgotten::Unknown } };
        state.bytes -= item.body.as_ref().map_or(0, Bytes::len);
        drop(state);
        self.changed.notify_waiters();
        if is_flying || item.tried { Forgotten::OnItsWay } else { Forgotten::NeverSent }
    }

    /// Whether the place may lack this object.
    pub fn holds(&self, key: &Key) -> bool {
        let state = self.state();
        state.numbers.contains_key(key) || state.flying.contains_key(key)
    }

    /// The objects that the place may lack whose keys begin with this.
    pub fn below(&self, prefix: &str) -> Vec<Listed> {
        let state = self.state();
        let kept = state.waiting.values().chain(state.aside.values()).chain(state.stuck.values());
        let waiting = kept.map(|item| (&item.key, item.size, item.since));
        let flying = state.flying.iter().filter(|(_, flying)| !flying.forgotten).map(|(key, flying)| (key, flying.size, flying.since));
        let below = waiting.chain(flying).filter(|(key, ..)| key.as_str().starts_with(prefix));
        below.map(|(key, size, modified)| Listed { key: key.clone(), size, modified, class: None, storage_class: None }).collect()
    }

    /// How many wait or are on their way.
    pub fn depth(&self) -> usize {
        let state = self.state();
        state.waiting.len() + state.aside.len() + state.stuck.len() + state.flying.len()
    }

    /// When the oldest of them was put elsewhere.
    pub fn oldest(&self) -> Option<SystemTime> {
        self.oldest_of(|_| true)
    }

    /// The same without those that nobody can give.
    pub fn oldest_on_its_way(&self) -> Option<SystemTime> {
        self.oldest_of(|stuck| !stuck)
    }

    fn oldest_of(&self, wanted: impl Fn(bool) -> bool) -> Option<SystemTime> {
        let state = self.state();
        let kept = state.waiting.values().chain(state.aside.values()).chain(state.stuck.values()).map(|item| (item.stuck, item.since));
        let all = kept.chain(state.flying.values().map(|flying| (flying.stuck, flying.since)));
        all.filter(|(stuck, _)| wanted(*stuck)).map(|(_, since)| since).chain(state.overflowed).min()
    }

    /// Whether more had to be added than there was room for.
    pub fn has_overflowed(&self) -> bool {
        self.state().overflowed.is_some()
    }

    /// The same; it is forgotten by that.
    pub fn take_overflow(&self) -> bool {
        self.state().overflowed.take().is_some()
    }

    /// Waits until something changes, if `look` says that there is nothing to do.
    pub async fn until(&self, mut look: impl FnMut() -> bool) {
        loop {
            let changed = self.changed.notified();
            tokio::pin!(changed);
            changed.as_mut().enable();
            if look() {
                return;
            }
            changed.await;
        }
    }

    /// Whether something waits that nobody brings.
    pub fn has_waiting(&self) -> bool {
        !self.state().waiting.is_empty()
    }

    /// Waits until something changes.
    pub async fn next_change(&self) {
        let mut looked = false;
        self.until(|| std::mem::replace(&mut looked, true)).await;
    }

    /// Waits until a comparison may add something.
    pub async fn room(&self) {
        self.until(|| self.state().waiting.len() < ROOM).await;
    }

    /// Waits until it is empty.
    pub async fn drained(&self) {
        self.until(|| self.depth() == 0).await;
    }

    fn state(&self) -> MutexGuard<'_, State> {
        // No code under this lock leaves it half changed.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(text: &str) -> Key {
        text.parse().unwrap()
    }

    fn add(queue: &Queue, text: &str) {
        queue.add(Lacking::put(&key(text), &Bytes::from_static(b"abc"), true));
    }

    fn turn(key: &Key) -> Turn {
        match key.as_str() {
            text if text.starts_with("record") => Turn::Last,
            text if text.starts_with("history") => Turn::Alone,
            _ => Turn::Any,
        }
    }

    fn take(queue: &Queue) -> Option<String> {
        queue.take(turn, true).map(|item| item.key.to_string())
    }

    #[test]
    fn what_names_others_comes_after_them_and_alone() {
        let queue = Queue::default();
        for text in ["a", "b", "record", "c", "a"] {
            add(&queue, text);
        }
        let (a, b) = (queue.take(turn, true).unwrap(), queue.take(turn, true).unwrap());
        assert!(queue.take(turn, true).is_none(), "a and b are on their way");
        queue.done(&a);
        assert!(!queue.put_back(b.clone()));
        assert_eq!(queue.take(turn, true).unwrap().key, b.key, "what failed is the next one again");
        queue.done(&b);
        let record = queue.take(turn, true).unwrap();
        assert!(turn(&record.key) == Turn::Last && queue.take(turn, true).is_none());
        queue.done(&record);
        assert_eq!(queue.take(turn, true).unwrap().key, key("c"));
        assert_eq!(queue.depth(), 1);
    }

    #[test]
    fn what_cannot_be_had_holds_up_only_what_names_it() {
        let queue = Queue::default();
        for text in ["a", "record/1", "history", "b"] {
            add(&queue, text);
        }
        let a = queue.take(turn, true).unwrap();
        assert!(!queue.set_aside(a.clone()));
        let history = queue.take(turn, true).unwrap();
        assert_eq!((history.key.as_str(), queue.aside()), ("history", 2));
        queue.done(&history);
        assert_eq!(take(&queue).unwrap(), "b");
        assert!(queue.holds(&a.key) && queue.below("record/").len() == 1 && queue.depth() == 3);
        queue.take_up();
        assert_eq!((take(&queue).unwrap(), take(&queue)), ("a".into(), None));
    }

    #[test]
    fn what_nobody_can_give_holds_up_nothing_and_is_not_forgotten() {
        let queue = Queue::default();
        for text in ["a", "record/1", "b"] {
            add(&queue, text);
        }
        let a = queue.take(turn, true).unwrap();
        assert!(!queue.set_stuck(a.clone()));
        assert_eq!((queue.stuck(), queue.aside(), queue.depth()), (1, 0, 3));
        add(&queue, "a");
        assert_eq!(queue.depth(), 3, "a comparison finds it again");
        queue.take_up();
        for text in ["record/1", "b"] {
            let item = queue.take(turn, true).unwrap();
            assert_eq!(item.key.as_str(), text);
            queue.done(&item);
        }
        assert!(queue.take(turn, true).is_none() && queue.holds(&a.key) && queue.below("a").len() == 1);
        assert!(queue.oldest().is_some() && queue.oldest_on_its_way().is_none());
        queue.take_up_stuck();
        assert_eq!((queue.stuck(), queue.has_stuck(), queue.stuck_keys().len(), queue.oldest_on_its_way()), (1, false, 1, None));
        let again = queue.take(turn, true).unwrap();
        assert_eq!(
            (again.key.as_str(), queue.stuck(), queue.oldest_on_its_way()),
            ("a", 1, None),
            "looked for, and not on its way as others are"
        );
        assert!(!queue.set_stuck(again));
        assert_eq!((queue.forget(&a.key), queue.depth()), (Forgotten::OnItsWay, 0));
    }

    #[test]
    fn what_names_others_waits_until_all_of_them_are_queued() {
        let queue = Queue::default();
        for text in ["record", "a"] {
            add(&queue, text);
        }
        let a = queue.take(turn, false).unwrap();
        assert_eq!((a.key.as_str(), queue.aside()), ("a", 1));
        queue.done(&a);
        queue.take_up();
        // More than there was room for may have been what it names.
        for number in 0..KEYS {
            queue.add(Lacking::there(&key(&number.to_string())));
        }
        assert!(queue.has_overflowed());
        assert_eq!(take(&queue).unwrap(), "0");
        assert!(queue.take_overflow());
        queue.take_up();
        assert_eq!(queue.forget(&key("record")), Forgotten::NeverSent);
    }

    #[test]
    fn what_is_removed_does_not_come_behind_its_removal() {
        let queue = Queue::default();
        for text in ["a", "b", "c"] {
            add(&queue, text);
        }
        let (a, b) = (queue.take(|_| Turn::Any, true).unwrap(), queue.take(|_| Turn::Any, true).unwrap());
        assert_eq!(queue.forget(&a.key), Forgotten::OnItsWay);
        assert!(queue.done(&a), "to be removed again");
        assert!(!queue.put_back(b.clone()));
        assert_eq!(queue.forget(&b.key), Forgotten::OnItsWay, "it was tried, and may have landed");
        assert_eq!(queue.forget(&key("c")), Forgotten::NeverSent);
        queue.add(Lacking::there(&key("c")));
        assert_eq!(queue.forget(&key("c")), Forgotten::OnItsWay, "somebody may have put it here before");
        // Put anew while the old one is being removed: it is brought behind that, and can be removed in its turn.
        add(&queue, "a");
        assert!(queue.take(turn, true).is_none());
        assert_eq!(queue.forget(&a.key), Forgotten::OnItsWay);
        add(&queue, "a");
        queue.removed(&a.key);
        let again = queue.take(turn, true).unwrap();
        assert!(again.key == a.key && !queue.done(&again));
        assert_eq!(queue.forget(&key("d")), Forgotten::Unknown);
        assert_eq!((queue.depth(), queue.state().bytes), (0, 0));
    }

    #[test]
    fn memory_is_bounded() {
        let queue = Queue::default();
        let body = Bytes::from(vec![0; BYTES / 2]);
        for text in ["a", "b", "c"] {
            queue.add(Lacking::put(&key(text), &body, true));
        }
        let items: Vec<_> = std::iter::from_fn(|| queue.take(|_| Turn::Any, true)).collect();
        assert_eq!(items.iter().map(|item| item.body.is_some()).collect::<Vec<_>>(), [true, true, false]);
        assert!(!items.iter().any(|item| queue.done(item)));
        assert_eq!(queue.state().bytes, 0);
        for number in 0..=KEYS {
            queue.add(Lacking::there(&key(&number.to_string())));
        }
        assert_eq!(queue.depth(), KEYS);
        assert!(queue.take_overflow() && !queue.take_overflow());
    }
}
