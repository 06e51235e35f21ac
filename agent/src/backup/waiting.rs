//! A backup that waits for the repository says so in its lock file, where `walkeep status` reads it.
//!
//! The log has every try. Whoever only looks would see a backup under way that does nothing. What is looked at are the calls themselves, so it does
//! not matter which step of a backup tries again; when one gives up is decided there. On WAL that is not stored a backup waits in [`super::wal`].

use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::{Duration, Instant};

use walkeep_store::{ErrorKind, Observer, Operation};

use super::lock::BackupLock;
use crate::repository::ClusterRepository;

/// What is tried again for so long is told, as is WAL that does not come.
const TOLD_AFTER: Duration = Duration::from_secs(10);
/// Who tries again does so sooner than this. After it, what failed was let be, and nobody waits for it any more.
const LET_BE: Duration = Duration::from_secs(90);

/// The repository for a backup under this lock.
pub fn told(repository: &ClusterRepository, lock: &Arc<BackupLock>) -> Arc<ClusterRepository> {
    Arc::new(repository.clone().observed(Arc::new(Waiting(Arc::new(Told::new(lock))))))
}

struct Waiting(Arc<Told>);

struct Told {
    /// Whoever still holds the repository when the backup is over does not hold the lock.
    lock: Weak<BackupLock>,
    calls: Mutex<Calls>,
    writing: Mutex<()>,
}

impl Observer for Waiting {
    fn ended(&self, operation: Operation, elapsed: Duration, _: u64, failure: Option<ErrorKind>) {
        let mut calls = self.0.calls();
        let before = calls.waits();
        calls.ended(operation, elapsed, failure, Instant::now());
        if calls.waits() != before {
            let told = self.0.clone();
            drop(tokio::task::spawn_blocking(move || told.note()));
        }
    }
}

impl Told {
    fn new(lock: &Arc<BackupLock>) -> Self {
        Self { lock: Arc::downgrade(lock), calls: Mutex::default(), writing: Mutex::default() }
    }

    fn calls(&self) -> MutexGuard<'_, Calls> {
        self.calls.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn note(&self) {
        // Threads may come in another order than what they were started for: the last one writes what is so then.
        let _turn = self.writing.lock().unwrap_or_else(PoisonError::into_inner);
        let waits = self.calls().waits();
        if let Some(lock) = self.lock.upgrade()
            && let Err(error) = lock.note(waits.as_deref())
        {
            tracing::warn!(%error, waits, "backup: what it waits for cannot be written into its lock file");
        }
    }
}

/// Which calls fail, at most one of each operation.
#[derive(Debug, Default)]
struct Calls(Vec<Failing>);

/// An operation of which none succeeded since.
#[derive(Debug)]
struct Failing {
    operation: Operation,
    kind: ErrorKind,
    /// The first of these calls began.
    since: Instant,
    /// The last one ended.
    last: Instant,
    times: u32,
}

impl Calls {
    fn ended(&mut self, operation: Operation, elapsed: Duration, failure: Option<ErrorKind>, now: Instant) {
        let began = now.checked_sub(elapsed).unwrap_or(now);
        match failure {
            Some(ErrorKind::Cancelled) => {}
            Some(kind) if kind.is_failure() => {
                self.0.retain(|failing| failing.operation != operation || began.saturating_duration_since(failing.last) < LET_BE);
                match self.0.iter_mut().find(|failing| failing.operation == operation) {
                    Some(failing) => (failing.kind, failing.last, failing.times) = (kind, now, failing.times + 1),
                    None => self.0.push(Failing { operation, kind, since: began, last: now, times: 1 }),
                }
            }
            // It answers.
            _ => self.0.retain(|failing| failing.operation != operation && now.saturating_duration_since(failing.last) < LET_BE),
        }
    }

    /// What is tried again for long, in words.
    fn waits(&self) -> Option<String> {
        let again =
            self.0.iter().filter(|failing| failing.times > 1 && failing.last.saturating_duration_since(failing.since) >= TOLD_AFTER);
        let longest = again.min_by_key(|failing| failing.since)?;
        Some(format!("it waits for the repository ({}: {})", longest.operation.as_str(), longest.kind.as_str()))
    }
}

#[cfg(test)]
mod tests {
    use walkeep_store::{Fault, FaultyStore, MemoryStore, Rule};

    use super::*;
    use crate::repository::tests::over;

    /// A call that ends so many seconds after the first moment, having lasted so long, and what is said then.
    type Call = (u64, Operation, u64, Option<ErrorKind>, Option<&'static str>);

    #[track_caller]
    fn check(calls: &[Call]) {
        let (mut known, start) = (Calls::default(), Instant::now() + Duration::from_secs(1000));
        for (at, operation, lasted, failure, said) in calls {
            known.ended(*operation, Duration::from_secs(*lasted), *failure, start + Duration::from_secs(*at));
            let said = said.map(|said| format!("it waits for the repository ({said})"));
            assert_eq!(known.waits(), said, "{operation:?} after {at} s");
        }
    }

    use ErrorKind::{AlreadyExists, Cancelled, Denied, Full, NotFound, Transient};
    use Operation::{Get, List, Put};

    #[test]
    fn what_is_tried_again_for_long_is_told_until_it_succeeds() {
        check(&[
            (0, Put, 0, Some(Full), None),
            (9, Put, 0, Some(Full), None),
            (10, Put, 0, Some(Full), Some("put: full")),
            (11, List, 0, None, Some("put: full")),
            (12, Get, 0, Some(Transient), Some("put: full")),
            (15, Put, 0, Some(Denied), Some("put: denied")),
            (16, Put, 0, Some(Cancelled), Some("put: denied")),
            (17, Put, 0, None, None),
            (23, Get, 0, Some(Transient), Some("get: transient")),
            (24, Get, 0, Some(NotFound), None),
            (30, Put, 0, Some(Full), None),
            (45, Put, 0, Some(AlreadyExists), None),
        ]);
        // A call that hangs fails late: it began long ago.
        check(&[(60, Get, 60, Some(Transient), None), (125, Get, 60, Some(Transient), Some("get: transient"))]);
    }

    #[test]
    fn what_was_let_be_is_not_waited_for() {
        check(&[(60, Get, 60, Some(Transient), None), (70, Put, 1, None, None)]);
        // Hours later once more, and once more.
        check(&[(0, Get, 0, Some(Transient), None), (9000, Get, 0, Some(Transient), None)]);
        check(&[
            (0, Get, 0, Some(Transient), None),
            (20, Get, 0, Some(Transient), Some("get: transient")),
            (109, Put, 0, None, Some("get: transient")),
            (110, Put, 0, None, None),
        ]);
    }

    #[tokio::test]
    async fn the_lock_file_tells_it() {
        let spool = tempfile::tempdir().unwrap();
        let lock = Arc::new(BackupLock::take(spool.path(), "the agent").unwrap());
        let waits = async |expected: bool| {
            let said = || BackupLock::holder(spool.path()).unwrap().ends_with("; it waits for the repository (get: full)");
            let soon = async {
                while said() != expected {
                    tokio::time::sleep(Duration::from_millis(5)).await;
                }
            };
            tokio::time::timeout(Duration::from_secs(20), soon).await.expect("it is said in time");
        };
        let store = Arc::new(FaultyStore::new(Arc::new(MemoryStore::new())));
        let told = Arc::new(Told::new(&lock));
        let repository = over(store.clone()).await.observed(Arc::new(Waiting(told.clone())));
        store.inject(Rule::new(Operation::Get, Fault::Fail(Full)));
        repository.repository().prove_reached().await.unwrap_err();
        told.calls().0[0].since -= TOLD_AFTER;
        waits(false).await;
        repository.repository().prove_reached().await.unwrap_err();
        waits(true).await;
        store.heal();
        repository.repository().prove_reached().await.unwrap();
        waits(false).await;
        drop(lock);
        assert_eq!(BackupLock::holder(spool.path()), None, "whoever has the repository still has no lock");
        repository.repository().prove_reached().await.unwrap();
    }
}
