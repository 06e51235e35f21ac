//! A store that fails on demand, for tests: rules say which calls fail and how, and nothing is left to chance.

use std::ops::Range;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;

use crate::{Error, ErrorKind, Key, ListRequest, Lock, Locked, Operation, Page, Probed, Put, Readiness, Result, SharedStore, Store, Thaw};

/// What goes wrong with a call.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Fault {
    /// It fails before anything happened.
    Fail(ErrorKind),
    /// It succeeds, but the caller sees [`ErrorKind::Transient`]: did my put land?
    LoseAnswer,
    /// A get answers only this many bytes.
    Truncate(usize),
    /// A get answers with a bit of this byte flipped (counted around the body's end).
    Flip(usize),
    /// It takes this much longer.
    Delay(Duration),
    /// It never ends.
    Hang,
}

/// Which calls go wrong, and how.
#[derive(Debug, Clone)]
pub struct Rule {
    operation: Operation,
    place: String,
    skip: u64,
    times: u64,
    fault: Fault,
}

impl Rule {
    /// Every call of `operation`.
    pub fn new(operation: Operation, fault: Fault) -> Self {
        Self { operation, place: String::new(), skip: 0, times: u64::MAX, fault }
    }

    /// Only calls whose key (or prefix, for a listing) contains `text`.
    pub fn on(mut self, text: impl Into<String>) -> Self {
        self.place = text.into();
        self
    }

    /// Not before the `n`-th such call from now on, counted from 1.
    pub fn from_call(mut self, n: u64) -> Self {
        self.skip = n.saturating_sub(1);
        self
    }

    /// Only this many such calls.
    pub fn times(mut self, n: u64) -> Self {
        self.times = n;
        self
    }

    /// Whether the rule strikes this call, which it counts.
    fn strikes(&mut self, operation: Operation, place: &str) -> bool {
        if operation != self.operation || !place.contains(&self.place) || self.times == 0 {
            return false;
        }
        if self.skip > 0 {
            self.skip -= 1;
            return false;
        }
        self.times -= 1;
        true
    }
}

#[derive(Debug, Default)]
struct State {
    rules: Vec<Rule>,
    calls: Vec<(Operation, String)>,
}

/// A store with faults.
#[derive(Debug)]
pub struct FaultyStore {
    inner: SharedStore,
    state: Mutex<State>,
}

impl FaultyStore {
    /// `inner`, as yet without faults.
    pub fn new(inner: SharedStore) -> Self {
        Self { inner, state: Mutex::default() }
    }

    /// Adds a rule. The first rule that strikes a call decides.
    pub fn inject(&self, rule: Rule) {
        self.state().rules.push(rule);
    }

    /// Takes all rules back.
    pub fn heal(&self) {
        self.state().rules.clear();
    }

    /// How often `operation` was called, failures included.
    pub fn count(&self, operation: Operation) -> usize {
        self.state().calls.iter().filter(|(called, _)| *called == operation).count()
    }

    /// Every call so far, in order: the operation and its key or prefix.
    pub fn calls(&self) -> Vec<(Operation, String)> {
        self.state().calls.clone()
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Counts the call; fails, waits or does nothing; the answer says what to do to the result.
    async fn before(&self, operation: Operation, place: &str) -> Result<Option<Fault>> {
        let fault = {
            let mut state = self.state();
            state.calls.push((operation, place.to_owned()));
            state.rules.iter_mut().find_map(|rule| rule.strikes(operation, place).then(|| rule.fault.clone()))
        };
        match &fault {
            Some(Fault::Fail(kind)) => return Err(Error::at(*kind, operation.as_str(), place).because("injected")),
            Some(Fault::Delay(time)) => tokio::time::sleep(*time).await,
            Some(Fault::Hang) => std::future::pending().await,
            _ => {}
        }
        Ok(fault)
    }

    async fn call<T>(&self, operation: Operation, place: &str, call: impl Future<Output = Result<T>>) -> Result<T> {
        let fault = self.before(operation, place).await?;
        let answer = call.await?;
        match fault {
            Some(Fault::LoseAnswer) => Err(Error::at(ErrorKind::Transient, operation.as_str(), place).because("the answer was lost")),
            _ => Ok(answer),
        }
    }
}

#[async_trait]
impl Store for FaultyStore {
    fn url(&self) -> String {
        self.inner.url()
    }

    async fn put_if_absent(&self, key: &Key, body: Bytes) -> Result<Put> {
        self.call(Operation::Put, key.as_str(), self.inner.put_if_absent(key, body)).await
    }

    async fn replace_in_doubt(&self, key: &Key, body: Bytes) -> Result<bool> {
        self.call(Operation::Put, key.as_str(), self.inner.replace_in_doubt(key, body)).await
    }

    async fn get(&self, key: &Key, range: Option<Range<u64>>) -> Result<Bytes> {
        let fault = self.before(Operation::Get, key.as_str()).await?;
        let body = self.inner.get(key, range).await?;
        match fault {
            Some(Fault::LoseAnswer) => Err(Error::new(ErrorKind::Transient, "get", key).because("the answer was lost")),
            Some(Fault::Truncate(keep)) => Ok(body.slice(..keep.min(body.len()))),
            Some(Fault::Flip(at)) => {
                let mut bytes = body.to_vec();
                let at = at.checked_rem(bytes.len()).unwrap_or(0);
                if let Some(byte) = bytes.get_mut(at) {
                    *byte ^= 1;
                }
                Ok(bytes.into())
            }
            _ => Ok(body),
        }
    }

    async fn list(&self, request: &ListRequest) -> Result<Page> {
        self.call(Operation::List, &request.prefix, self.inner.list(request)).await
    }

    async fn delete(&self, key: &Key) -> Result<()> {
        self.call(Operation::Delete, key.as_str(), self.inner.delete(key)).await
    }

    async fn readiness(&self, key: &Key) -> Result<Readiness> {
        self.inner.readiness(key).await
    }

    async fn thaw(&self, key: &Key, thaw: Thaw) -> Result<Readiness> {
        self.inner.thaw(key, thaw).await
    }

    /// Goes through the faults of each call a probe makes, too.
    async fn probe(&self, scratch: &Key) -> Result<Probed> {
        self.before(Operation::Probe, scratch.as_str()).await?;
        crate::probe::probe(self, scratch).await
    }

    fn lock_of(&self, key: &Key) -> Option<Lock> {
        self.inner.lock_of(key)
    }

    async fn locked(&self, key: &Key) -> Result<Option<Locked>> {
        self.call(Operation::Probe, key.as_str(), self.inner.locked(key)).await
    }

    async fn lock_anew(&self, key: &Key) -> Result<()> {
        self.call(Operation::Probe, key.as_str(), self.inner.lock_anew(key)).await
    }
}
