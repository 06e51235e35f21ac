//! Bringing to a place what it lacks: empties its queue, with patience for as long as it does not answer.

use std::collections::{BTreeSet, HashSet};
use std::sync::atomic::Ordering;
use std::time::{Duration, SystemTime};

use async_trait::async_trait;
use bytes::Bytes;
use futures::StreamExt;
use futures::stream::FuturesUnordered;
use tokio_util::sync::CancellationToken;

use super::place::Place;
use super::queue::{Item, Turn};
use super::{Several, StoredWhen};
use crate::{ErrorKind, Key};

/// Objects that are brought to a place at the same time.
const PARALLEL: usize = 4;
/// The first bytes of an object, by which two are compared.
const FRONT: u64 = 4096;
/// The first wait for a place that does not answer.
const FIRST: Duration = Duration::from_millis(500);
/// No wait is longer.
const MOST: Duration = Duration::from_secs(30);
/// After so long what was set aside is looked for again.
const ASIDE: Duration = Duration::from_secs(10);
/// And what nobody could give: for that it has to be read wherever it lies.
const STUCK: Duration = Duration::from_secs(900);

/// What whoever brings objects from place to place has to know of their meaning.
#[async_trait]
pub trait Guide: Send + Sync + 'static {
    /// Where to look for what a place lacks: prefixes that end with `/`, in the order in which they are to be brought: what is named by others first.
    fn passes(&self) -> Vec<String>;

    /// Whether the object is to be brought where it is missing, in this pass. What is nobody's, or was let go, is not.
    fn wants(&self, pass: usize, key: &Key) -> bool;

    /// Whether to look into a folder. `beside` are the objects that lie beside it, in any place.
    fn enters(&self, folder: &str, beside: &dyn Fn(&str) -> bool) -> bool;

    /// Whether the object names others, or they are of no use without it: then it is brought behind all that were put before it, and before all others.
    fn alone(&self, key: &Key) -> bool;

    /// Whether the object names others, and is to be believed only where these are: then it is not brought while anything is missing that was put before it.
    fn names_others(&self, key: &Key) -> bool;

    /// What of the objects `lacking` one that names others needs, or may need: with that missing it is not to be believed. Fails if that cannot be told at present.
    async fn lacks(&self, key: &Key, body: &Bytes, lacking: &BTreeSet<String>) -> Result<Option<String>, String>;

    /// Whether these bytes are what was stored under this key; else what is wrong.
    async fn prove(&self, key: &Key, body: &Bytes) -> Result<(), String>;

    /// Whether two objects under this key, of which these are the first bytes, hold the same though their bytes differ.
    fn alike(&self, key: &Key, one: &[u8], other: &[u8]) -> bool;
}

/// What became of an object.
enum Brought {
    /// It is there now, or was already.
    There { bytes: u64 },
    /// It is nowhere any more.
    Gone,
    /// The place has other bytes: told, and nothing that trying again would help.
    Differs,
    /// Nobody can give it whole before somebody does something about it.
    Stuck(String),
    /// The place could not be asked.
    Later(String),
    /// Somebody who may have it could not be asked.
    Aside(String),
}

impl Several {
    /// Brings to a place what is in its queue, until `stop`.
    pub async fn follow(&self, index: usize, guide: &dyn Guide, stop: &CancellationToken) {
        let Some(place) = self.place(index) else { return };
        let (mut under_way, mut told_stuck) = (FuturesUnordered::new(), HashSet::new());
        let (mut failures, mut not_before) = (0u32, tokio::time::Instant::now());
        let (mut settled, mut look_again) = (false, tokio::time::Instant::now());
        let mut look_for_stuck = tokio::time::Instant::now() + STUCK;
        let turn = |key: &Key| match (guide.names_others(key), guide.alone(key)) {
            (true, _) => Turn::Last,
            (false, true) => Turn::Alone,
            (false, false) => Turn::Any,
        };
        loop {
            if settled != self.is_settled(index) || tokio::time::Instant::now() >= look_again {
                settled = self.is_settled(index);
                look_again = tokio::time::Instant::now() + ASIDE;
                if place.queue.aside() > 0 {
                    place.queue.take_up();
                }
            }
            if tokio::time::Instant::now() >= look_for_stuck {
                look_for_stuck = tokio::time::Instant::now() + STUCK;
                place.queue.take_up_stuck();
            }
            let room = if failures == 0 { PARALLEL } else { 1 };
            while under_way.len() < room && tokio::time::Instant::now() >= not_before {
                let Some(item) = place.queue.take(turn, settled) else { break };
                // All of it within the future, which is polled beside the others: they may wait for each other, as for a place that is being opened.
                under_way.push(async move {
                    let brought = self.bring(index, &item, guide).await;
                    let forgotten = match &brought {
                        Brought::There { .. } => place.queue.done(&item),
                        Brought::Gone | Brought::Differs => place.queue.done(&item),
                        Brought::Stuck(_) => place.queue.set_stuck(item.clone()),
                        Brought::Later(_) => place.queue.put_back(item.clone()),
                        Brought::Aside(_) => place.queue.set_aside(item.clone()),
                    };
                    if forgotten {
                        if let Err(error) = place.store.delete(&item.key).await {
                            tracing::debug!(key = %item.key, repository = place.url, %error, "an object stays that was removed elsewhere meanwhile");
                        }
                        place.queue.removed(&item.key);
                    }
                    (item.key, brought)
                });
            }
            let waits = tokio::time::Instant::now() < not_before;
            let (is_aside, is_stuck) = (place.queue.aside() > 0, place.queue.has_stuck());
            let (key, brought) = tokio::select! {
                () = stop.cancelled() => return,
                Some(ended) = under_way.next() => ended,
                () = tokio::time::sleep_until(not_before), if waits => continue,
                () = tokio::time::sleep_until(look_again), if is_aside => continue,
                () = tokio::time::sleep_until(look_for_stuck), if is_stuck => continue,
                () = place.queue.until(|| place.queue.has_waiting() || (is_aside && settled != self.is_settled(index))), if !waits && under_way.is_empty() => continue,
                () = place.queue.next_change(), if !waits && !under_way.is_empty() => continue,
            };
            match brought {
                Brought::There { bytes } => {
                    failures = 0;
                    if told_stuck.remove(&key) {
                        tracing::info!(%key, repository = place.url, "this repository has the object that no other one could give");
                    }
                    place.counts.carried_objects.fetch_add(u64::from(bytes > 0), Ordering::Relaxed);
                    place.counts.carried_bytes.fetch_add(bytes, Ordering::Relaxed);
                }
                Brought::Gone | Brought::Differs => {
                    failures = 0;
                    told_stuck.remove(&key);
                }
                Brought::Stuck(reason) => {
                    failures = 0;
                    // Once for each: tried again it is as it was.
                    if told_stuck.insert(key.clone()) {
                        tracing::error!(%key, repository = place.url, reason, "this repository lacks an object that no other one can give: it stays without");
                    }
                }
                Brought::Aside(reason) => {
                    failures = 0;
                    tracing::debug!(%key, repository = place.url, reason, "an object cannot be had for this repository at present");
                }
                Brought::Later(reason) => {
                    failures = failures.saturating_add(1);
                    let wait = FIRST.saturating_mul(1u32.checked_shl(failures.min(16) - 1).unwrap_or(u32::MAX)).min(MOST);
                    not_before = tokio::time::Instant::now() + wait;
                    // One that does not answer was told already.
                    if failures == 1 && place.state().down.is_none() {
                        tracing::warn!(%key, repository = place.url, reason, "an object cannot be brought to this repository; trying again");
                    }
                    tracing::debug!(repository = place.url, reason, wait_ms = wait.as_millis() as u64, "objects wait for this repository");
                }
            }
        }
    }

    /// Brings one object to a place.
    async fn bring(&self, index: usize, item: &Item, guide: &dyn Guide) -> Brought {
        let Some(place) = self.place(index) else { return Brought::Gone };
        let body = match &item.body {
            Some(body) => body.clone(),
            None => match self.body_for(index, &item.key, guide).await {
                Ok(body) => body,
                Err(Brought::Stuck(reason)) => return self.unless_there(place, &item.key, reason).await,
                Err(brought) => return brought,
            },
        };
        let stuck = if guide.names_others(&item.key) { place.queue.stuck_keys() } else { BTreeSet::new() };
        if !stuck.is_empty() {
            match guide.lacks(&item.key, &body, &stuck).await {
                Ok(None) => {}
                Ok(Some(lacks)) => return Brought::Stuck(format!("it needs {lacks}, which this repository lacks")),
                Err(reason) => return Brought::Aside(reason),
            }
        }
        let (bytes, front) = (body.len() as u64, body.slice(..body.len().min(FRONT as usize)));
        match place.insist(place.store.put_if_absent(&item.key, body.clone())).await {
            Ok(crate::Put::Created) => Brought::There { bytes },
            Ok(crate::Put::AlreadySame) => Brought::There { bytes: 0 },
            Err(error) if error.kind() == ErrorKind::AlreadyExists => {
                match place.insist(place.store.get(&item.key, Some(0..FRONT))).await {
                    Ok(there) if guide.alike(&item.key, &there, &front) => match error.is_in_doubt() {
                        true => match place.insist(place.store.replace_in_doubt(&item.key, body)).await {
                            Ok(_) => Brought::There { bytes },
                            Err(error) => Brought::Later(format!("{error:#}")),
                        },
                        false => Brought::There { bytes: 0 },
                    },
                    Err(error) if super::is_no_answer(&error) => Brought::Later(format!("{error:#}")),
                    _ => {
                        place.differs(&item.key);
                        Brought::Differs
                    }
                }
            }
            // It is there, and what it holds only a thaw would show.
            Err(error) if error.kind() == ErrorKind::Archived => Brought::There { bytes: 0 },
            Err(error) => Brought::Later(format!("{error:#}")),
        }
    }

    /// Nobody can give an object: then the place lacks it, or it is the only one that has it whole, or somebody has put it there by hand.
    async fn unless_there(&self, place: &Place, key: &Key, reason: String) -> Brought {
        match place.insist(place.store.get(key, Some(0..FRONT))).await {
            Err(error) if error.kind() == ErrorKind::NotFound => Brought::Stuck(reason),
            Err(error) if super::is_no_answer(&error) => Brought::Later(format!("{error:#}")),
            _ => Brought::There { bytes: 0 },
        }
    }

    /// The bytes of an object from another place than this one, proven.
    async fn body_for(&self, index: usize, key: &Key, guide: &dyn Guide) -> Result<Bytes, Brought> {
        let (mut otherwise, mut not_in_primary) = (Brought::Gone, false);
        for (number, other) in self.all().iter().enumerate().filter(|(other, _)| *other != index) {
            match other.ask(other.store.get(key, None)).await {
                Ok(body) => match guide.prove(key, &body).await {
                    Ok(()) => return Ok(body),
                    Err(reason) => {
                        tracing::debug!(%key, repository = other.url, reason, "not copied: what is stored there is not what its name says");
                        stuck(&mut otherwise, format!("damaged in {}: {reason}", other.url));
                    }
                },
                Err(error) if error.kind() == ErrorKind::NotFound => not_in_primary |= number == 0,
                Err(error) if matches!(error.kind(), ErrorKind::Corrupt | ErrorKind::Archived) => {
                    stuck(&mut otherwise, format!("{}: {error:#}", other.url));
                }
                Err(error) => otherwise = Brought::Aside(format!("{}: {error:#}", other.url)),
            }
        }
        // But with "any" whatever was acknowledged is in the primary, or removed: if one of the others has it all the same, a comparison finds it again.
        match otherwise {
            Brought::Aside(_) if not_in_primary && self.when() != StoredWhen::Any => Err(Brought::Gone),
            otherwise => Err(otherwise),
        }
    }

    /// When something was put that is still to be brought to a place; `None` if nothing is. What nobody can give is not on its way.
    pub fn behind_since(&self, index: usize) -> Option<SystemTime> {
        self.place(index).and_then(|place| place.queue.oldest_on_its_way())
    }
}

/// Notes why one of the others cannot give it. Of one that could not be asked it may be had whole later.
fn stuck(otherwise: &mut Brought, reason: String) {
    match otherwise {
        Brought::Stuck(reasons) => *reasons = format!("{reasons}; {reason}"),
        Brought::Aside(_) => {}
        _ => *otherwise = Brought::Stuck(reason),
    }
}
