//! What a place still lacks: keys in the order in which they were put elsewhere, and the bytes of as many of them as there is room for.
//!
//! It lives in memory. What is lost with the process a comparison finds again; bytes for which there is no room are read from another place.

use std::collections::{BTreeMap, HashMap};
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
}

impl Lacking {
    /// It was put elsewhere just now.
    pub fn put(key: &Key, body: &Bytes) -> Self {
        Self { key: key.clone(), body: Some(body.clone()), size: body.len() as u64, since: SystemTime::now() }
    }

    /// It lies elsewhere.
    pub fn there(key: &Key) -> Self {
        Self { key: key.clone(), body: None, size: 0, since: SystemTime::now() }
    }

    /// It was listed elsewhere.
    pub fn listed(listed: Listed) -> Self {
        Self { key: listed.key, body: None, size: listed.size, since: listed.modified }
    }
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
    /// Whether it was tried: then it may be there.
    tried: bool,
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
        let Lacking { key, body, size, since } = lacking;
        let mut state = self.state();
        if state.numbers.contains_key(&key) || state.flying.get(&key).is_some_and(|flying| !flying.forgotten) {
            return;
        }
        if state.waiting.len() >= KEYS {
            state.overflowed.get_or_insert(since);
            return;
        }
        let body = body.filter(|body| state.bytes + body.len() <= BYTES);
        state.bytes += body.as_ref().map_or(0, Bytes::len);
        let number = state.next;
        state.next += 1;
        state.numbers.insert(key.clone(), number);
        state.waiting.insert(number, Item { key, body, size, since, number, tried: false });
        drop(state);
        self.changed.notify_waiters();
    }

    /// The next object, if it may be brought beside those that are on their way: one that `alone` names only after all before it, and nothing beside it.
    pub fn take(&self, alone: impl Fn(&Key) -> bool) -> Option<Item> {
        let mut state = self.state();
        let (number, is_alone) = state.waiting.first_key_value().map(|(number, item)| (*number, alone(&item.key)))?;
        let key_is_flying = state.waiting.get(&number).is_some_and(|item| state.flying.contains_key(&item.key));
        if key_is_flying || (is_alone && !state.flying.is_empty()) || state.flying.values().any(|flying| flying.alone) {
            return None;
        }
        let item = state.waiting.remove(&number)?;
        state.numbers.remove(&item.key);
        state.flying.insert(item.key.clone(), Flying { size: item.size, since: item.since, alone: is_alone, forgotten: false });
        Some(item)
    }

    /// An object is there, or need not be; whether it was removed meanwhile.
    pub fn done(&self, item: &Item) -> bool {
        let mut state = self.state();
        state.bytes -= item.body.as_ref().map_or(0, Bytes::len);
        let forgotten = state.flying.remove(&item.key).is_some_and(|flying| flying.forgotten);
        drop(state);
        self.changed.notify_waiters();
        forgotten
    }

    /// An object could not be brought: it is the next one again. Whether it was removed meanwhile; then it is not.
    pub fn put_back(&self, item: Item) -> bool {
        let mut state = self.state();
        let forgotten = state.flying.remove(&item.key).is_some_and(|flying| flying.forgotten);
        if forgotten {
            state.bytes -= item.body.as_ref().map_or(0, Bytes::len);
        } else {
            state.numbers.insert(item.key.clone(), item.number);
            state.waiting.insert(item.number, Item { tried: true, ..item });
        }
        drop(state);
        self.changed.notify_waiters();
        forgotten
    }

    /// An object is removed.
    pub fn forget(&self, key: &Key) -> Forgotten {
        let mut state = self.state();
        if let Some(flying) = state.flying.get_mut(key) {
            flying.forgotten = true;
            return Forgotten::OnItsWay;
        }
        let Some(number) = state.numbers.remove(key) else { return Forgotten::Unknown };
        let Some(item) = state.waiting.remove(&number) else { return Forgotten::Unknown };
        state.bytes -= item.body.as_ref().map_or(0, Bytes::len);
        drop(state);
        self.changed.notify_waiters();
        if item.tried { Forgotten::OnItsWay } else { Forgotten::NeverSent }
    }

    /// Whether the place may lack this object.
    pub fn holds(&self, key: &Key) -> bool {
        let state = self.state();
        state.numbers.contains_key(key) || state.flying.contains_key(key)
    }

    /// The objects that the place may lack whose keys begin with this.
    pub fn below(&self, prefix: &str) -> Vec<Listed> {
        let state = self.state();
        let waiting = state.waiting.values().map(|item| (&item.key, item.size, item.since));
        let flying = state.flying.iter().filter(|(_, flying)| !flying.forgotten).map(|(key, flying)| (key, flying.size, flying.since));
        let below = waiting.chain(flying).filter(|(key, ..)| key.as_str().starts_with(prefix));
        below.map(|(key, size, modified)| Listed { key: key.clone(), size, modified }).collect()
    }

    /// How many wait or are on their way.
    pub fn depth(&self) -> usize {
        let state = self.state();
        state.waiting.len() + state.flying.len()
    }

    /// When the oldest of them was put elsewhere.
    pub fn oldest(&self) -> Option<SystemTime> {
        let state = self.state();
        let waiting = state.waiting.values().map(|item| item.since);
        waiting.chain(state.flying.values().map(|flying| flying.since)).chain(state.overflowed).min()
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
        queue.add(Lacking::put(&key(text), &Bytes::from_static(b"abc")));
    }

    fn names_others(key: &Key) -> bool {
        key.as_str().starts_with("record")
    }

    #[test]
    fn what_names_others_comes_after_them_and_alone() {
        let queue = Queue::default();
        for text in ["a", "b", "record", "c", "a"] {
            add(&queue, text);
        }
        let (a, b) = (queue.take(names_others).unwrap(), queue.take(names_others).unwrap());
        assert!(queue.take(names_others).is_none(), "a and b are on their way");
        queue.done(&a);
        assert!(!queue.put_back(b.clone()));
        assert_eq!(queue.take(names_others).unwrap().key, b.key, "what failed is the next one again");
        queue.done(&b);
        let record = queue.take(names_others).unwrap();
        assert!(names_others(&record.key) && queue.take(names_others).is_none());
        queue.done(&record);
        assert_eq!(queue.take(names_others).unwrap().key, key("c"));
        assert_eq!(queue.depth(), 1);
    }

    #[test]
    fn what_is_removed_does_not_come_behind_its_removal() {
        let queue = Queue::default();
        for text in ["a", "b", "c"] {
            add(&queue, text);
        }
        let (a, b) = (queue.take(|_| false).unwrap(), queue.take(|_| false).unwrap());
        assert_eq!(queue.forget(&a.key), Forgotten::OnItsWay);
        assert!(queue.done(&a), "to be removed again");
        assert!(!queue.put_back(b.clone()));
        assert_eq!(queue.forget(&b.key), Forgotten::OnItsWay, "it was tried, and may have landed");
        assert_eq!(queue.forget(&key("c")), Forgotten::NeverSent);
        assert_eq!(queue.forget(&key("d")), Forgotten::Unknown);
        assert_eq!((queue.depth(), queue.state().bytes), (0, 0));
    }

    #[test]
    fn memory_is_bounded() {
        let queue = Queue::default();
        let body = Bytes::from(vec![0; BYTES / 2]);
        for text in ["a", "b", "c"] {
            queue.add(Lacking::put(&key(text), &body));
        }
        let items: Vec<_> = std::iter::from_fn(|| queue.take(|_| false)).collect();
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
