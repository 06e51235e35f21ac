//! A store that lies in several places: each object in every one of them, byte for byte.
//!
//! Whoever uses it goes on with one [`Store`] and does not know how many there are. Objects are never changed, so a place that is behind lacks some keys and
//! nothing else, and catching up is copying these ([`follow`]), found out by its queue or by comparing listings ([`compare`]). Which place has to have an
//! object before a put is answered is the operator's rule ([`StoredWhen`]); from how many places it takes to call something absent, the asker's ([`Proof`]).
//!
//! The first place, the primary, decides who was first where two put different bytes under one key: it is asked first, and what it refused goes nowhere else.
//! Nothing here knows what keys mean; where that matters (what is copied, and in what order) a [`Guide`] from above is asked.

pub mod compare;
pub mod follow;
mod health;
mod known;
mod place;
mod put;
mod queue;
mod read;

use std::fmt;
use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;

pub use compare::{Compared, Mark, Sink, compare};
pub use follow::Guide;
use known::Known;
pub use place::{Fallbacks, PlaceState};
use place::{Place, Reason};
use queue::Lacking;

use crate::{Error, ErrorKind, Key, ListRequest, Listed, Lock, Locked, Page, Probed, Put, Readiness, Result, SharedStore, Store, Thaw};

/// Where an object has to be before a put is answered.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum StoredWhen {
    /// In the primary; the others follow.
    #[default]
    Primary,
    /// In every place.
    All,
    /// In one: the primary, or another where that does not answer. The others follow.
    Any,
}

/// What it takes to call something absent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Proof {
    /// Every place says so.
    Every,
    /// A place says so that has all that was ever acknowledged: the primary, or with [`StoredWhen::Any`] one that is known to have caught up.
    Enough,
    /// Those say so that can be asked: for looking at what is left when a place is lost.
    Reachable,
}

/// How places follow that need not have an object before a put is answered.
pub enum Follow {
    /// By their queues, which somebody empties ([`Several::follow`]).
    Queued,
    /// At once, for processes that end.
    Awaited {
        /// The put waits so long at most.
        patience: Duration,
        /// Is told the number of a place that did not take something, or may not have.
        left: Box<dyn Fn(usize) + Send + Sync>,
        /// As [`Guide::names_others`]: what does is not put where something was left behind.
        names_others: fn(&Key) -> bool,
    },
}

impl fmt::Debug for Follow {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Queued => f.write_str("Queued"),
            Self::Awaited { patience, .. } => write!(f, "Awaited({patience:?})"),
        }
    }
}

#[derive(Debug)]
struct Shared {
    places: Vec<Place>,
    known: Known,
    when: StoredWhen,
    follow: Follow,
}

/// Such a store. A clone is the same one.
#[derive(Debug, Clone)]
pub struct Several {
    shared: Arc<Shared>,
    proof: Proof,
}

impl Several {
    /// The places, the primary first. Something is absent if [`Proof::Enough`] says so.
    pub fn new(places: Vec<SharedStore>, when: StoredWhen, follow: Follow) -> Self {
        let places: Vec<Place> = places.into_iter().map(Place::new).collect();
        let known = Known::new(places.len());
        Self { shared: Arc::new(Shared { places, known, when, follow }), proof: Proof::Enough }
    }

    /// The same, with another idea of what proves absence.
    pub fn demanding(&self, proof: Proof) -> Self {
        Self { shared: self.shared.clone(), proof }
    }

    /// What it takes to call something absent.
    pub fn proof(&self) -> Proof {
        self.proof
    }

    /// Each place by itself, the primary first.
    pub fn places(&self) -> Vec<SharedStore> {
        self.all().iter().map(|place| place.store.clone()).collect()
    }

    /// How each place is.
    pub fn states(&self) -> Vec<PlaceState> {
        let state = |(index, place): (usize, &Place)| PlaceState { compared: self.known().is_known(index), ..place.state() };
        self.all().iter().enumerate().map(state).collect()
    }

    /// A place is known not to have answered a moment ago, by another process for example: it is passed over for so long.
    pub fn pass_over(&self, place: usize, reason: String, how_long: Duration) {
        if let Some(place) = self.place(place) {
            place.pass_over(reason, how_long);
        }
    }

    /// A comparison of a place with the primary begins. Answers the moment, for [`Self::note_compared`].
    pub fn begin_comparing(&self) -> u64 {
        self.known().begin()
    }

    /// A place and the primary were compared from the beginning to the end, since then, and what either lacks is in its queue.
    pub fn note_compared(&self, place: usize, began: u64) {
        self.known().compared(place, began);
        self.all().iter().for_each(|place| place.queue.wake());
    }

    /// Something may be missing at a place that no queue of this process holds: only comparisons tell what.
    pub fn doubt(&self, place: usize) {
        self.known().doubt(place);
    }

    /// When something came into doubt that a comparison of this place tells about, in the count of [`Self::begin_comparing`]. What queues had no room for is in
    /// doubt from now on.
    pub fn doubted(&self, place: usize) -> u64 {
        for (index, other) in self.all().iter().enumerate().filter(|(_, other)| other.queue.has_overflowed()) {
            self.doubt(index);
            other.queue.take_overflow();
            // What came between the two.
            self.doubt(index);
        }
        self.known().doubted(place)
    }

    /// Whether what a place lacks of the primary is in its queue; of the primary, what it lacks of those that answer.
    fn is_settled(&self, index: usize) -> bool {
        self.known().is_settled(index, |other| self.place(other).is_some_and(Place::answers))
    }

    /// Whether all that a place lacks is in its queue.
    fn is_known(&self, index: usize) -> bool {
        self.known().is_known(index) && self.place(index).is_some_and(|place| !place.queue.has_overflowed())
    }

    /// Whether a place has everything, as far as this process knows, but what no place can give: for that nobody can wait.
    fn is_complete(&self, index: usize) -> bool {
        self.is_known(index) && self.place(index).is_some_and(|place| place.queue.depth() == place.queue.stuck())
    }

    /// Whether something counts as stored that some place may lack, by a rule that wants it in all.
    pub fn counts_too_early(&self) -> bool {
        self.when() == StoredWhen::All && !(0..self.all().len()).all(|index| self.is_complete(index))
    }

    /// What one place has under this key was looked at and is not what was stored; another place has it whole.
    pub fn note_damaged(&self, place: usize, whole_at: usize, key: &str) {
        if let (Some(place), Some(other)) = (self.place(place), self.place(whole_at)) {
            place.fell_back(Reason::Damaged, other, key);
        }
    }

    /// Queues an object for a place that lacks it: one that was listed elsewhere. See [`Self::room`].
    pub fn queue(&self, place: usize, listed: Listed) {
        if let Some(place) = self.place(place) {
            place.queue.add(Lacking::listed(listed));
        }
    }

    /// Waits until few enough objects wait for a place, for who finds many.
    pub async fn room(&self, place: usize) {
        if let Some(place) = self.place(place) {
            place.queue.room().await;
        }
    }

    /// Waits until nothing is queued for a place.
    pub async fn drained(&self, place: usize) {
        if let Some(place) = self.place(place) {
            place.queue.drained().await;
        }
    }

    fn all(&self) -> &[Place] {
        &self.shared.places
    }

    fn place(&self, index: usize) -> Option<&Place> {
        self.all().get(index)
    }

    fn known(&self) -> &Known {
        &self.shared.known
    }

    /// Where an object has to be before a put is answered.
    pub fn when(&self) -> StoredWhen {
        self.shared.when
    }

    /// Removes it wherever it is, and from the queues: it must not come behind the removal.
    async fn remove(&self, key: &Key) -> Result<()> {
        let mut failed = None;
        for place in self.all() {
            if place.queue.forget(key).may_be_there()
                && let Err(error) = place.removing(place.store.delete(key)).await
            {
                failed.get_or_insert_with(|| place.name_it(error, "delete", key.as_str()));
            }
        }
        failed.map_or(Ok(()), Err)
    }
}

#[async_trait]
impl Store for Several {
    fn url(&self) -> String {
        self.all().iter().map(|place| place.url.as_str()).collect::<Vec<_>>().join(" and ")
    }

    async fn put_if_absent(&self, key: &Key, body: Bytes) -> Result<Put> {
        self.put(key, body).await
    }

    /// Wherever it is in doubt.
    async fn replace_in_doubt(&self, key: &Key, body: Bytes) -> Result<bool> {
        let (mut replaced, mut failed) = (false, None);
        for place in self.all() {
            match place.ask(place.store.replace_in_doubt(key, body.clone())).await {
                Ok(there) => replaced |= there,
                Err(error) => drop(failed.get_or_insert_with(|| place.name_it(error, "replace", key.as_str()))),
            }
        }
        if replaced { Ok(true) } else { failed.map_or(Ok(false), Err) }
    }

    async fn get(&self, key: &Key, range: Option<Range<u64>>) -> Result<Bytes> {
        self.read(key, range).await
    }

    async fn list(&self, request: &ListRequest) -> Result<Page> {
        self.list_all_places(request).await
    }

    async fn delete(&self, key: &Key) -> Result<()> {
        self.remove(key).await
    }

    async fn delete_many(&self, keys: &[Key]) -> Result<Vec<(Key, Error)>> {
        let (mut stay, mut failed): (Vec<(Key, Error)>, _) = (Vec::new(), None);
        for place in self.all() {
            let there: Vec<Key> = keys.iter().filter(|key| place.queue.forget(key).may_be_there()).cloned().collect();
            match place.removing(place.store.delete_many(&there)).await {
                Ok(stayed) => stayed.into_iter().for_each(|(key, error)| {
                    if !stay.iter().any(|(other, _)| *other == key) {
                        stay.push((key, error));
                    }
                }),
                Err(error) => {
                    failed.get_or_insert_with(|| place.name_it(error, "delete", there.first().map_or("", Key::as_str)));
                }
            }
        }
        failed.map_or(Ok(stay), Err)
    }

    async fn readiness(&self, key: &Key) -> Result<Readiness> {
        self.readiness_anywhere(key).await
    }

    async fn thaw(&self, key: &Key, thaw: Thaw) -> Result<Readiness> {
        self.thaw_somewhere(key, thaw).await
    }

    /// Each place by itself.
    async fn probe(&self, scratch: &Key) -> Result<Probed> {
        let mut probed = Probed::Removed;
        for place in self.all() {
            match place.store.probe(scratch).await {
                Ok(Probed::Removed) => {}
                Ok(Probed::Left) => probed = Probed::Left,
                Err(error) => return Err(place.name_it(error, "probe", scratch.as_str())),
            }
        }
        Ok(probed)
    }

    /// As the first that locks it does.
    fn lock_of(&self, key: &Key) -> Option<Lock> {
        self.all().iter().find_map(|place| place.store.lock_of(key))
    }

    /// Where it is locked for the shortest time of those that are to lock it.
    async fn locked(&self, key: &Key) -> Result<Option<Locked>> {
        let mut least: Option<Option<Locked>> = None;
        for place in self.all().iter().filter(|place| place.store.lock_of(key).is_some()) {
            let locked = place
                .ask_of_lock(place.store.locked(key))
                .await
                .map_err(|error| place.name_it(error, "look at the lock of", key.as_str()))?;
            least = Some(match (least.flatten(), locked) {
                (Some(one), Some(other)) => Some(if one.until <= other.until { one } else { other }),
                (_, locked) if least.is_none() => locked,
                _ => None,
            });
        }
        Ok(least.flatten())
    }

    /// In every place that has it.
    async fn lock_anew(&self, key: &Key) -> Result<()> {
        let mut failed = None;
        for place in self.all() {
            match place.ask_of_lock(place.store.lock_anew(key)).await {
                // It is on its way there, and locked as it comes.
                Err(error) if error.kind() == ErrorKind::NotFound => {}
                Err(error) => drop(failed.get_or_insert_with(|| place.name_it(error, "lock", key.as_str()))),
                Ok(()) => {}
            }
        }
        failed.map_or(Ok(()), Err)
    }

    fn several(&self) -> Option<&Several> {
        Some(self)
    }

    fn demanding(&self, proof: Proof) -> Option<SharedStore> {
        Some(Arc::new(Several::demanding(self, proof)))
    }
}

/// Whether the error says nothing about the object, but that the place could not be asked for it.
fn is_no_answer(error: &Error) -> bool {
    !matches!(
        error.kind(),
        ErrorKind::NotFound | ErrorKind::AlreadyExists | ErrorKind::Corrupt | ErrorKind::Archived | ErrorKind::Cancelled
    )
}

#[cfg(test)]
mod tests;
