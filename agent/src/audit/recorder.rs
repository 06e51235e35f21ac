//! What the agent's jobs tell of themselves, stored beside them: no job waits for the trail.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;
use walkeep_core::audit::{Kind, Outcome};

use super::refusals::Refusals;
use super::{Deed, Trail};
use crate::repository::ClusterRepository;
use crate::retry::Backoff;

/// Records that wait for a repository that is away. What comes beyond them is counted.
const WAITING: usize = 1000;
/// How often refused requests are looked through.
const TICK: Duration = Duration::from_secs(5);
/// A stop waits so long for what was told last.
const LAST: Duration = Duration::from_secs(2);
/// Between tries.
const AGAIN: Backoff = Backoff { first: Duration::from_secs(1), most: Duration::from_secs(60), deadline: None };

/// Where jobs tell what they did.
#[derive(Debug, Clone)]
pub struct Recorder(Option<Arc<Told>>);

#[derive(Debug)]
struct Told {
    deeds: mpsc::Sender<Deed>,
    refusals: Mutex<Refusals>,
    /// Those that found no place.
    lost: AtomicU64,
}

/// The end where deeds are taken from.
#[derive(Debug)]
pub struct Deeds {
    deeds: mpsc::Receiver<Deed>,
    told: Arc<Told>,
}

impl Recorder {
    /// Both ends.
    pub fn new() -> (Self, Deeds) {
        let (sender, receiver) = mpsc::channel(WAITING);
        let told = Arc::new(Told { deeds: sender, refusals: Mutex::default(), lost: AtomicU64::new(0) });
        (Self(Some(told.clone())), Deeds { deeds: receiver, told })
    }

    /// For who is in no agent: a command records itself.
    pub fn nobody() -> Self {
        Self(None)
    }

    /// Tells what was done.
    pub fn done(&self, deed: Deed) {
        if let Some(told) = &self.0 {
            told.pass_on(deed);
        }
    }

    /// Something begins that a stop of the agent may cut off: this is told then, unless it ends before.
    pub fn if_given_up(&self, deed: Deed) -> GivenUp {
        GivenUp { recorder: self.clone(), deed: Some(deed.saying("given up: the agent stops")) }
    }

    /// Tells that something was refused. The same reason again is counted for a while.
    pub fn refused(&self, reason: &str, deed: Deed) {
        if let Some(told) = &self.0 {
            let first = told.refusals().refused(reason, deed, Instant::now());
            first.into_iter().for_each(|deed| told.pass_on(deed));
        }
    }
}

/// See [`Recorder::if_given_up`].
#[derive(Debug)]
pub struct GivenUp {
    recorder: Recorder,
    deed: Option<Deed>,
}

impl GivenUp {
    /// It ended by itself, well or not.
    pub fn ended(mut self) {
        self.deed = None;
    }
}

impl Drop for GivenUp {
    fn drop(&mut self) {
        // It ends now; it was put into words when it began.
        self.deed.take().into_iter().for_each(|deed| self.recorder.done(Deed { time: chrono::Utc::now(), ..deed }));
    }
}

impl Told {
    fn refusals(&self) -> std::sync::MutexGuard<'_, Refusals> {
        self.refusals.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn pass_on(&self, deed: Deed) {
        if self.deeds.try_send(deed).is_err() {
            self.lost.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// What says that some are missing.
    fn lost(&self) -> Option<Deed> {
        let lost = self.lost.swap(0, Ordering::Relaxed);
        (lost > 0).then(|| {
            let deed = Deed::new("agent", Kind::AUDIT, Outcome::Failed).of("records", lost);
            deed.saying("the repository was away, and so many records had no place to wait")
        })
    }
}

/// Stores what is told until `stop` fires; then what was told last, if that is quickly done.
pub async fn run(repository: Arc<ClusterRepository>, mut deeds: Deeds, stop: CancellationToken) {
    let mut writer = Writer { repository, trail: Trail::new(), stop: stop.clone() };
    let mut tick = tokio::time::interval(TICK);
    loop {
        tokio::select! {
            biased;
            () = stop.cancelled() => break,
            deed = deeds.deeds.recv() => match deed {
                Some(deed) => writer.store(deed).await,
                None => break,
            },
            _ = tick.tick() => {
                let due = deeds.told.refusals().due(Instant::now());
                for deed in due.into_iter().chain(deeds.told.lost()) {
                    writer.store(deed).await;
                }
            }
        }
    }
    let mut left = Vec::new();
    while let Ok(deed) = deeds.deeds.try_recv() {
        left.push(deed);
    }
    left.extend(deeds.told.lost());
    let last = async {
        for deed in &left {
            if let Err(error) = writer.trail.append(&writer.repository, deed).await {
                tracing::warn!(error = format!("{error:#}"), kind = %deed.kind, "an audit record is not stored: the agent stops");
            }
        }
    };
    if tokio::time::timeout(LAST, last).await.is_err() {
        tracing::warn!(records = left.len(), "audit records could not be stored in time: the agent stops");
    }
}

struct Writer {
    repository: Arc<ClusterRepository>,
    trail: Trail,
    stop: CancellationToken,
}

impl Writer {
    /// Until it is stored or the agent stops: what comes meanwhile waits.
    async fn store(&mut self, deed: Deed) {
        let mut tries = 0;
        loop {
            let Err(error) = self.trail.append(&self.repository, &deed).await else { return };
            tries += 1;
            let (error, wait) = (format!("{error:#}"), AGAIN.wait(tries));
            match tries {
                1 => tracing::warn!(error, kind = %deed.kind, "an audit record is not stored yet; trying again"),
                _ => tracing::debug!(error, tries, "an audit record is not stored yet"),
            }
            if self.stop.run_until_cancelled(tokio::time::sleep(wait)).await.is_none() {
                tracing::warn!(kind = %deed.kind, outcome = %deed.outcome, error, "an audit record is not stored: the agent stops");
                return;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use walkeep_core::audit::chain::check;

    use super::*;
    use crate::repository::tests::memory;

    #[tokio::test]
    async fn what_is_told_is_stored_and_what_has_no_place_is_counted() {
        let (repository, _) = memory().await;
        let repository = Arc::new(repository);
        let (recorder, deeds) = Recorder::new();
        for number in 0..WAITING + 3 {
            recorder.done(Deed::new("agent", Kind::BACKUP, Outcome::Done).of("number", number));
        }
        let stop = CancellationToken::new();
        let task = tokio::spawn(run(repository.clone(), deeds, stop.clone()));
        let records = loop {
            let records = repository.all_audit_records().await.unwrap();
            if records.len() > WAITING {
                break records;
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        };
        let checked = check("main", repository.identity().system_identifier, records.iter().map(|(n, b)| (*n, b.as_ref())), None);
        assert_eq!(checked.findings, []);
        let lost = checked.records.iter().find(|known| known.record.entry.kind == Kind::AUDIT).unwrap();
        assert_eq!(lost.record.entry.subject["records"], "3");
        // What is told last, at the stop, is stored too.
        stop.cancel();
        recorder.refused("user", Deed::new("agent", Kind::REQUEST, Outcome::Refused));
        task.await.unwrap();
        assert_eq!(repository.all_audit_records().await.unwrap().len(), WAITING + 2);
    }
}
