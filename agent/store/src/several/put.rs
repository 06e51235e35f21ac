//! A put into several places, by the operator's rule.
//!
//! The primary decides who was first. Another place gets only bytes that the primary has (or with [`StoredWhen::Any`], that it could not be asked for), so two
//! writers do not leave different bytes in two places while the primary answers. Other bytes under a key are a conflict wherever they are found: the call
//! fails, and nothing is overwritten anywhere.

use std::sync::atomic::Ordering;
use std::time::Duration;

use bytes::Bytes;
use futures::StreamExt;
use futures::future::join_all;
use futures::stream::FuturesUnordered;

use super::queue::Lacking;
use super::{Follow, Several, StoredWhen};
use crate::{Error, ErrorKind, Key, Put, Result};

/// With [`StoredWhen::Any`], so long the primary is waited for before another place is tried beside it.
const HEAD_START: Duration = Duration::from_secs(3);

impl Several {
    pub(super) async fn put(&self, key: &Key, body: Bytes) -> Result<Put> {
        match self.when() {
            StoredWhen::Primary => {
                let put = self.put_at(0, key, &body).await.inspect_err(|error| self.bring_what_is_there(key, error, 0))?;
                // What an earlier try stored may have been brought to the others too.
                self.follow_up(key, &body, 0, put == Put::Created).await;
                Ok(put)
            }
            StoredWhen::All => self.put_everywhere(key, &body).await,
            StoredWhen::Any => self.put_anywhere(key, &body).await,
        }
    }

    /// Whatever happened at this place before: whoever has something to store tries again by itself, and knows how often.
    async fn put_at(&self, index: usize, key: &Key, body: &Bytes) -> Result<Put> {
        let Some(place) = self.place(index) else {
            return Err(Error::new(ErrorKind::Unusable, "put", key).because("there is no such place"));
        };
        place.insist(place.store.put_if_absent(key, body.clone())).await
    }

    async fn put_everywhere(&self, key: &Key, body: &Bytes) -> Result<Put> {
        let put = match self.put_at(0, key, body).await {
            // It may be an earlier try's, with the same content in other bytes. Whoever finds that out calls it stored, so it is everywhere before.
            // What is in doubt there is brought nowhere.
            Err(taken) if taken.kind() == ErrorKind::AlreadyExists && !taken.is_in_doubt() => {
                let place = self.place(0).ok_or_else(|| Error::new(ErrorKind::Unusable, "put", key))?;
                let there = place.insist(place.store.get(key, None)).await.map_err(|error| place.name_it(error, "get", key.as_str()))?;
                return match self.put_at_others(key, &there).await {
                    Some(failed) if failed.kind() != ErrorKind::AlreadyExists => Err(failed),
                    _ => Err(taken),
                };
            }
            put => put?,
        };
        self.put_at_others(key, body).await.map_or(Ok(put), Err)
    }

    /// Why not all others have it, if that is so: a conflict before anything else.
    async fn put_at_others(&self, key: &Key, body: &Bytes) -> Option<Error> {
        let others = (1..self.all().len()).map(|index| async move { (index, self.put_at(index, key, body).await) });
        let mut failed: Option<Error> = None;
        for (index, outcome) in join_all(others).await {
            let (Err(error), Some(place)) = (outcome, self.place(index)) else { continue };
            if error.kind() != ErrorKind::AlreadyExists {
                // Who asked may give up: what is in the primary is not to be missing here for ever.
                match &self.shared.follow {
                    Follow::Queued => place.queue.add(Lacking::there(key)),
                    Follow::Awaited { left, .. } => left(index),
                }
            }
            let conflict_before = failed.as_ref().is_some_and(|failed| failed.kind() == ErrorKind::AlreadyExists);
            if !conflict_before {
                failed = Some(place.name_it(error, "put", key.as_str()));
            }
        }
        failed
    }

    /// What is there under a key is to be wherever it is not: whose put was answered by nobody did not see to that, and who finds the same content there will
    /// not put it again.
    fn bring_what_is_there(&self, key: &Key, error: &Error, at: usize) {
        if error.kind() == ErrorKind::AlreadyExists && !error.is_in_doubt() && matches!(self.shared.follow, Follow::Queued) {
            let others = self.all().iter().enumerate().filter(|(index, _)| *index != at);
            others.for_each(|(_, place)| place.queue.add(Lacking::there(key)));
        }
    }

    async fn put_anywhere(&self, key: &Key, body: &Bytes) -> Result<Put> {
        // Those that failed a moment ago come last.
        let (up, down): (Vec<usize>, Vec<usize>) =
            (0..self.all().len()).partition(|index| self.place(*index).is_some_and(|place| place.state().down.is_none()));
        let mut next = up.into_iter().chain(down);
        let mut under_way = FuturesUnordered::new();
        let start = |index: usize| async move { (index, self.put_at(index, key, body).await) };
        under_way.extend(next.next().map(start));
        let mut failed = None;
        loop {
            let answered = tokio::select! {
                answered = under_way.next() => answered,
                () = tokio::time::sleep(HEAD_START) => match next.next() {
                    Some(index) => {
                        under_way.push(start(index));
                        continue;
                    }
                    None => under_way.next().await,
                },
            };
            match answered {
                Some((index, Ok(put))) => {
                    drop(under_way);
                    // Another one was asked perhaps, and given up.
                    self.follow_up(key, body, index, false).await;
                    return Ok(put);
                }
                Some((index, Err(error))) => {
                    let named = match self.place(index) {
                        Some(place) => place.name_it(error, "put", key.as_str()),
                        None => error,
                    };
                    // Archived, it is there and cannot be compared: what may be other bytes must not be put into another place.
                    if named.kind() == ErrorKind::Archived {
                        return Err(named);
                    }
                    if named.kind() == ErrorKind::AlreadyExists {
                        self.bring_what_is_there(key, &named, index);
                        return Err(named);
                    }
                    failed.get_or_insert(named);
                    under_way.extend(next.next().map(start));
                }
                None => return Err(failed.unwrap_or_else(|| Error::new(ErrorKind::Transient, "put", key))),
            }
        }
    }

    /// Brings it to all places but the one that has it, or has it brought; `new`: nobody tried to put it there before.
    async fn follow_up(&self, key: &Key, body: &Bytes, has: usize, new: bool) {
        let others = self.all().iter().enumerate().filter(|(index, _)| *index != has);
        match &self.shared.follow {
            Follow::Queued => others.for_each(|(_, place)| place.queue.add(Lacking::put(key, body, new))),
            Follow::Awaited { patience, left, names_others } => {
                let follow = others.map(|(index, place)| async move {
                    if names_others(key) && place.left_behind.load(Ordering::Relaxed) {
                        return left(index);
                    }
                    match place.ask_within(*patience, place.store.put_if_absent(key, body.clone())).await {
                        Ok(_) => {}
                        Err(error) if error.kind() == ErrorKind::AlreadyExists => place.differs(key),
                        Err(error) => {
                            tracing::debug!(%key, repository = place.url, %error, "not brought there");
                            place.left_behind.store(true, Ordering::Relaxed);
                            left(index);
                        }
                    }
                });
                join_all(follow).await;
            }
        }
    }
}
