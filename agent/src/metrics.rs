//! What the agent counts, and how it is exposed to Prometheus.
//!
//! Gauges that follow the stream are set from [`Progress`] when a scrape comes; counters are counted where things happen. Names say their
//! unit. Nothing here decides anything.

mod artifacts;
mod backups;
mod common_names;
mod drills;
mod host;
mod notify;
mod outside;
mod page;
mod process;
mod repositories;
mod requests;
mod signs;
mod stored;
mod verify;

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use prometheus::{Gauge, IntCounter, IntCounterVec, IntGauge, IntGaugeVec, Opts, Registry};

pub use artifacts::ArtifactMetrics;
pub use backups::BackupMetrics;
use common_names::CommonNames;
pub use drills::DrillMetrics;
pub use host::{Disk, HostMetrics};
pub use notify::NotifyMetrics;
pub use outside::{Other, OutsideMetrics};
pub use page::render;
pub use repositories::RepositoryMetrics;
use requests::RequestMetrics;
pub use stored::StoredMetrics;
pub use verify::VerifyMetrics;
use walkeep_core::backup::BackupRecord;
use walkeep_store::{ErrorKind, Observer, Operation};

use crate::progress::{Phase, Progress, SlotHold};
use crate::repository::Error;
use crate::repository::wal::Stored;

/// Kinds of `walkeep_errors_total` that a rule may ask for.
const ERRORS: [&str; 13] = [
    "transient",
    "denied",
    DELETE_DENIED,
    "unusable",
    "no_credentials",
    "misconfigured",
    "full",
    "corrupt",
    "conflict",
    "lease",
    "no_repository",
    "open",
    "spool",
];
/// Apart from what is denied otherwise: who keeps an archive may deny it on purpose, and nothing is lost.
const DELETE_DENIED: &str = "delete_denied";

/// How WAL came to be stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Source {
    /// A segment by the stream.
    Stream,
    /// A file by archive_command.
    Archive,
    /// A part of an unfinished segment.
    Part,
}

impl Source {
    const ALL: [Self; 3] = [Self::Stream, Self::Archive, Self::Part];

    const fn as_str(self) -> &'static str {
        match self {
            Self::Stream => "stream",
            Self::Archive => "archive",
            Self::Part => "part",
        }
    }
}

/// What is known of the slot.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct SlotState {
    /// PostgreSQL's `wal_status`: reserved, extended, unreserved, lost; `missing` if there is no slot.
    pub wal_status: String,
    /// Whether somebody streams from it.
    pub active: bool,
    /// WAL the server may still write before it drops what the slot needs, in bytes; `None` without a limit.
    pub safe_wal_size: Option<i64>,
    /// WAL that it holds back on the server, in bytes.
    pub retained: Option<i64>,
}

/// The metrics of one agent.
#[derive(Debug)]
pub struct Metrics {
    registry: Registry,
    received: Gauge,
    spooled: Gauge,
    durable: Gauge,
    server_end: Gauge,
    indexed: Gauge,
    lag_bytes: IntGauge,
    lag_seconds: Gauge,
    possible_loss: Gauge,
    recoverable_until: Gauge,
    contact_seconds: Gauge,
    phase: IntGaugeVec,
    commits_wait: IntGauge,
    objects: IntCounterVec,
    bytes: IntCounterVec,
    errors: IntCounterVec,
    conflicts: IntCounter,
    archived: IntCounterVec,
    fetched: IntCounterVec,
    oldest_ready: Gauge,
    ready_files: IntGauge,
    slot_status: IntGaugeVec,
    slot_active: IntGauge,
    slot_safe_bytes: IntGauge,
    slot_retained_bytes: IntGauge,
    slot_given_up: IntGauge,
    backup_due: IntGauge,
    backup_bad_pages: IntGauge,
    gaps: IntGauge,
    /// What is 0 above, and whether it is so or was not looked at yet.
    known: Known,
    requests: RequestMetrics,
    /// Of this host.
    pub host: HostMetrics,
    /// Of the backups that the agent takes.
    pub backups: BackupMetrics,
    /// Of artifacts.
    pub artifacts: ArtifactMetrics,
    /// Of drills.
    pub drills: DrillMetrics,
    /// Of what the agent verifies.
    pub verify: VerifyMetrics,
    /// Of what is stored.
    pub stored: StoredMetrics,
    /// Of each of several repositories.
    pub repositories: RepositoryMetrics,
    /// Of the servers that are talked to.
    pub outside: OutsideMetrics,
    /// Of what is told to people.
    pub notify: NotifyMetrics,
    common_names: CommonNames,
}

/// Whether something was looked at since this process began.
#[derive(Debug, Default)]
struct Known {
    gaps: AtomicBool,
    backup: AtomicBool,
}

impl Metrics {
    /// A registry of its own, so that tests and several agents do not meet.
    pub fn new() -> prometheus::Result<Self> {
        let registry = Registry::new();
        let maker = Maker(&registry);
        let metrics = Self {
            received: maker.gauge("walkeep_wal_received_bytes", "End of the WAL received from the server, as a byte position (LSN).")?,
            spooled: maker.gauge("walkeep_wal_spooled_bytes", "End of the WAL fsynced in the spool, as a byte position (LSN).")?,
            durable: maker.gauge("walkeep_wal_durable_bytes", "End of the WAL durable in the repository, as a byte position (LSN).")?,
            server_end: maker.gauge("walkeep_wal_server_bytes", "End of the server's WAL as it last told, as a byte position (LSN).")?,
            indexed: maker.gauge("walkeep_wal_indexed_bytes", "End of the WAL that the index tells of, as a byte position (LSN).")?,
            lag_bytes: maker.int_gauge("walkeep_wal_lag_bytes", "WAL the server has that is not durable in the repository, in bytes.")?,
            lag_seconds: maker
                .gauge("walkeep_wal_lag_seconds", "For how long the oldest WAL that is not durable has been waiting, in seconds.")?,
            possible_loss: maker.gauge(
                "walkeep_possible_loss_seconds",
                "How many seconds of commits would be lost if the server were lost now; -1 if no WAL was seen yet.",
            )?,
            recoverable_until: maker.gauge(
                "walkeep_recoverable_until_timestamp_seconds",
                "The moment up to which all WAL is durable in the repository, as a Unix time; 0 if none was seen yet.",
            )?,
            contact_seconds: maker.gauge("walkeep_server_contact_seconds", "Seconds since the server was last heard of; -1 if never.")?,
            phase: maker.int_gauge_vec("walkeep_stream_phase", "1 for what the stream is doing, 0 for the others.", "phase")?,
            commits_wait: maker
                .int_gauge("walkeep_commits_wait", "1 while commits on the server wait for this agent: it is a synchronous standby.")?,
            objects: maker.counter_vec("walkeep_stored_objects_total", "Objects stored: segments and other files, and parts.", "source")?,
            bytes: maker.counter_vec("walkeep_stored_bytes_total", "Bytes written to the repository for them.", "source")?,
            errors: maker.counter_vec("walkeep_errors_total", "Failed calls to the repository, and what was refused, by kind.", "kind")?,
            conflicts: maker.counter("walkeep_conflicts_total", "Files refused because their name holds other content: alarm on any.")?,
            archived: maker.counter_vec("walkeep_archive_requests_total", "Answers to archive_command.", "answer")?,
            fetched: maker.counter_vec("walkeep_fetch_requests_total", "Answers to restore_command.", "answer")?,
            oldest_ready: maker
                .gauge("walkeep_oldest_ready_seconds", "Age of the oldest .ready file in archive_status, in seconds; 0 if none.")?,
            ready_files: maker.int_gauge("walkeep_ready_files", "Files that wait for archive_command.")?,
            slot_status: maker.int_gauge_vec("walkeep_slot_wal_status", "1 for the slot's wal_status, 0 for the others.", "status")?,
            slot_active: maker.int_gauge("walkeep_slot_active", "1 while somebody streams from the slot.")?,
            slot_safe_bytes: maker
                .int_gauge("walkeep_slot_safe_wal_bytes", "WAL until max_slot_wal_keep_size endangers the slot; -1 without a limit.")?,
            slot_retained_bytes: maker.int_gauge(
                "walkeep_slot_retained_bytes",
                "WAL that the slot holds back on the server, in bytes; -1 if that is not known.",
            )?,
            slot_given_up: maker.int_gauge(
                "walkeep_slot_given_up",
                "1 from when the slot was given up to protect the server until WAL comes again: alarm on it.",
            )?,
            backup_bad_pages: maker
                .int_gauge("walkeep_backup_bad_pages", "Pages with wrong checksums in the last base backup that the agent took.")?,
            backup_due: maker
                .int_gauge("walkeep_backup_due", "1 while the agent has yet to take a base backup behind a gap (protect = \"primary\").")?,
            gaps: maker.int_gauge("walkeep_gaps", "Recorded gaps in the archive that are not closed.")?,
            known: Known::default(),
            requests: RequestMetrics::new(&maker)?,
            host: HostMetrics::new(&maker)?,
            backups: BackupMetrics::new(&maker)?,
            artifacts: ArtifactMetrics::new(&maker)?,
            drills: DrillMetrics::new(&maker)?,
            verify: VerifyMetrics::new(&maker)?,
            stored: StoredMetrics::new(&maker)?,
            repositories: RepositoryMetrics::new(&maker)?,
            outside: OutsideMetrics::new(&maker)?,
            notify: NotifyMetrics::new(&maker)?,
            common_names: CommonNames::default(),
            registry: registry.clone(),
        };
        metrics.begin_at_zero();
        Ok(metrics)
    }

    /// Rates need a first sample: every known label exists from the start.
    fn begin_at_zero(&self) {
        for source in Source::ALL {
            self.objects.with_label_values(&[source.as_str()]).reset();
            self.bytes.with_label_values(&[source.as_str()]).reset();
        }
        for kind in ERRORS {
            self.errors.with_label_values(&[kind]).reset();
        }
        for answer in ["done", "failed"] {
            self.archived.with_label_values(&[answer]).reset();
            self.fetched.with_label_values(&[answer]).reset();
        }
        self.fetched.with_label_values(&["absent"]).reset();
        self.slot_safe_bytes.set(-1);
        self.slot_retained_bytes.set(-1);
    }

    /// How many objects were stored so far, from every source.
    pub fn objects_stored(&self) -> u64 {
        Source::ALL.iter().map(|source| self.objects.with_label_values(&[source.as_str()]).get()).sum()
    }

    /// How many of them archive_command brought.
    pub fn objects_archived(&self) -> u64 {
        self.objects.with_label_values(&[Source::Archive.as_str()]).get()
    }

    /// Something was stored.
    pub fn stored(&self, source: Source, stored: Stored) {
        if let Stored::New { bytes } = stored {
            self.objects.with_label_values(&[source.as_str()]).inc();
            self.bytes.with_label_values(&[source.as_str()]).inc_by(bytes);
        }
    }

    /// The index tells of the WAL up to here.
    pub fn set_indexed(&self, to: walkeep_core::Lsn) {
        self.indexed.set(to.get() as f64);
    }

    /// What is stored, or who asks, does not allow it. Where it was the store that failed, that was counted when its call ended.
    pub fn refused(&self, error: &Error) {
        if !matches!(error, Error::Store(_)) {
            self.error(error.kind());
        }
    }

    /// Something failed that is no call to the store.
    pub fn error(&self, kind: &str) {
        self.errors.with_label_values(&[kind]).inc();
        if kind == "conflict" {
            self.conflicts.inc();
        }
    }

    /// archive_command was answered.
    pub fn archive_answer(&self, answer: &str) {
        self.archived.with_label_values(&[answer]).inc();
    }

    /// restore_command was answered.
    pub fn fetch_answer(&self, answer: &str) {
        self.fetched.with_label_values(&[answer]).inc();
    }

    /// What waits for archive_command.
    pub fn ready(&self, files: u64, oldest_seconds: f64) {
        self.ready_files.set(i64::try_from(files).unwrap_or(i64::MAX));
        self.oldest_ready.set(oldest_seconds);
    }

    /// What is known of the slot.
    pub fn slot(&self, slot: &SlotState) {
        for status in ["reserved", "extended", "unreserved", "lost", "missing"] {
            self.slot_status.with_label_values(&[status]).set(i64::from(slot.wal_status == status));
        }
        self.slot_active.set(i64::from(slot.active));
        self.slot_safe_bytes.set(slot.safe_wal_size.unwrap_or(-1));
        self.slot_retained_bytes.set(slot.retained.unwrap_or(-1));
    }

    /// Whether gaps are open, as far as is known.
    pub fn has_open_gaps(&self) -> bool {
        self.gaps.get() > 0
    }

    /// How many gaps are open.
    pub fn open_gaps(&self, gaps: usize) {
        self.gaps.set(i64::try_from(gaps).unwrap_or(i64::MAX));
        self.known.gaps.store(true, Ordering::Relaxed);
    }

    /// How many gaps were open when they were last counted.
    pub fn gaps_counted(&self) -> i64 {
        self.gaps.get()
    }

    /// What the last base backup found.
    pub fn backup_taken(&self, record: &BackupRecord) {
        let pages = record.damage.as_ref().map_or(0, |damage| damage.pages);
        self.backup_bad_pages.set(pages.try_into().unwrap_or(i64::MAX));
        self.known.backup.store(true, Ordering::Relaxed);
    }

    /// Whether a base backup has yet to be taken behind a gap.
    pub fn backup_due(&self, due: bool) {
        self.backup_due.set(i64::from(due));
    }

    /// Sets what follows from elsewhere.
    fn refresh(&self, progress: &Progress) {
        let now = progress.snapshot();
        self.received.set(now.received.get() as f64);
        self.spooled.set(now.spooled.get() as f64);
        self.durable.set(now.durable.get() as f64);
        self.server_end.set(now.server_end.get() as f64);
        self.lag_bytes.set(i64::try_from(now.lag_bytes()).unwrap_or(i64::MAX));
        self.lag_seconds.set(now.lag.as_secs_f64());
        let loss = now.possible_loss();
        self.possible_loss.set(loss.map_or(-1.0, |loss| loss.as_secs_f64()));
        let present = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        self.recoverable_until.set(loss.map_or(0.0, |loss| present.saturating_sub(loss).as_secs_f64()));
        self.contact_seconds.set(now.last_contact.map_or(-1.0, |at| at.elapsed().as_secs_f64()));
        for phase in [Phase::Off, Phase::Connecting, Phase::Waiting, Phase::Streaming, Phase::SpoolFull, Phase::Stopped] {
            self.phase.with_label_values(&[phase.as_str()]).set(i64::from(phase == now.phase));
        }
        self.slot_given_up.set(i64::from(progress.slot() != SlotHold::Held));
        self.commits_wait.set(i64::from(progress.commits_wait()));
        self.repositories.refresh();
        self.refresh_common_names();
    }
}

/// Of the repository's store: whoever makes a call, it is counted here if it fails, and nowhere else.
impl Observer for Metrics {
    fn ended(&self, operation: Operation, elapsed: Duration, bytes: u64, failure: Option<ErrorKind>) {
        self.requests.ended(operation, elapsed, bytes);
        match (operation, failure) {
            (Operation::Delete, Some(ErrorKind::Denied)) => self.error(DELETE_DENIED),
            (_, Some(kind)) if kind.is_failure() => self.error(kind.as_str()),
            _ => {}
        }
    }
}

/// Makes metrics and registers them.
struct Maker<'a>(&'a Registry);

impl Maker<'_> {
    fn registered<C: prometheus::core::Collector + Clone + 'static>(&self, collector: C) -> prometheus::Result<C> {
        self.0.register(Box::new(collector.clone()))?;
        Ok(collector)
    }

    fn gauge(&self, name: &str, help: &str) -> prometheus::Result<Gauge> {
        self.registered(Gauge::new(name, help)?)
    }

    fn int_gauge(&self, name: &str, help: &str) -> prometheus::Result<IntGauge> {
        self.registered(IntGauge::new(name, help)?)
    }

    fn int_gauge_vec(&self, name: &str, help: &str, label: &str) -> prometheus::Result<IntGaugeVec> {
        self.registered(IntGaugeVec::new(Opts::new(name, help), &[label])?)
    }

    fn counter(&self, name: &str, help: &str) -> prometheus::Result<IntCounter> {
        self.registered(IntCounter::new(name, help)?)
    }

    fn counter_vec(&self, name: &str, help: &str, label: &str) -> prometheus::Result<IntCounterVec> {
        self.registered(IntCounterVec::new(Opts::new(name, help), &[label])?)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use bytes::Bytes;
    use tokio_util::sync::CancellationToken;
    use walkeep_store::{Fault, FaultyStore, GuardedStore, ListRequest, MemoryStore, ObservedStore, Rule, Store};

    use super::page::page_of;
    use super::*;
    use crate::repository::tests::over;

    #[test]
    fn a_scrape_shows_every_metric_from_the_start() {
        let metrics = Metrics::new().unwrap();
        metrics.stored(Source::Stream, Stored::New { bytes: 7 });
        metrics.error("conflict");
        let text = page_of(&metrics);
        for line in [
            "walkeep_stored_bytes_total{source=\"stream\"} 7",
            "walkeep_stored_objects_total{source=\"archive\"} 0",
            "walkeep_conflicts_total 1",
            "walkeep_stream_phase{phase=\"connecting\"} 1",
            "walkeep_wal_lag_seconds 0",
            "walkeep_server_contact_seconds -1",
            "walkeep_possible_loss_seconds -1",
            "walkeep_recoverable_until_timestamp_seconds 0",
            "walkeep_request_duration_seconds_count{operation=\"put\"} 0",
            concat!("walkeep_build_info{version=\"", env!("CARGO_PKG_VERSION"), "\"} 1"),
        ] {
            assert!(text.lines().any(|found| found == line), "{line} in\n{text}");
        }
    }

    /// How often each kind was counted that was at all.
    fn counted(metrics: &Metrics) -> Vec<(String, u64)> {
        let text = page_of(metrics);
        let lines = text.lines().filter_map(|line| line.strip_prefix("walkeep_errors_total{kind=\"")?.split_once("\"} "));
        lines.map(|(kind, count)| (kind.to_owned(), count.parse().unwrap())).filter(|(_, count)| *count > 0).collect()
    }

    fn once(kind: &str) -> Vec<(String, u64)> {
        vec![(kind.to_owned(), 1)]
    }

    #[tokio::test]
    async fn each_failed_call_is_counted_once_by_its_kind() {
        use ErrorKind::*;
        for operation in Operation::ALL {
            for kind in [NotFound, AlreadyExists, Denied, NoCredentials, Full, Transient, Corrupt, Unusable, Misconfigured, Cancelled] {
                let store = Arc::new(FaultyStore::new(Arc::new(MemoryStore::new())));
                let metrics = Arc::new(Metrics::new().unwrap());
                let repository = over(store.clone()).await.observed(metrics.clone());
                store.inject(Rule::new(operation, Fault::Fail(kind)));
                let (store, key) = (repository.repository().store(), "a".parse().unwrap());
                let failed = match operation {
                    Operation::Put => store.put_if_absent(&key, Bytes::new()).await.map(drop),
                    Operation::Get => store.get(&key, None).await.map(drop),
                    Operation::List => store.list(&ListRequest::default()).await.map(drop),
                    Operation::Delete => store.delete(&key).await,
                    Operation::Probe => store.probe(&key).await.map(drop),
                };
                let error = failed.unwrap_err();
                assert_eq!(error.kind(), kind);
                // Whoever made the call passes it on.
                metrics.refused(&error.into());
                let expected = match (operation, kind) {
                    // These are what it answers, and the agent's own wish.
                    (_, NotFound | AlreadyExists | Cancelled) => vec![],
                    (Operation::Delete, Denied) => once("delete_denied"),
                    _ => once(kind.as_str()),
                };
                assert_eq!(counted(&metrics), expected, "{operation:?} {kind:?}");
            }
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_call_that_was_cut_off_is_not_counted_and_one_that_took_too_long_is() {
        let store = Arc::new(FaultyStore::new(Arc::new(MemoryStore::new())));
        let (metrics, stop) = (Arc::new(Metrics::new().unwrap()), CancellationToken::new());
        let guarded = GuardedStore::new(store.clone(), Duration::from_secs(60), stop.clone());
        let repository = over(Arc::new(guarded)).await.observed(metrics.clone());
        store.inject(Rule::new(Operation::Get, Fault::Hang));
        let ask = || repository.repository().prove_reached();
        tokio::time::timeout(Duration::from_secs(1), ask()).await.unwrap_err();
        assert_eq!(counted(&metrics), [], "it was given up by whoever asked");
        let (cut, ()) = tokio::join!(ask(), async { stop.cancel() });
        assert!(cut.is_err());
        assert_eq!(counted(&metrics), [], "the agent stops");
        let guarded = GuardedStore::new(store, Duration::from_secs(60), CancellationToken::new());
        let slow = ObservedStore::new(Arc::new(guarded), metrics.clone());
        slow.get(&"a".parse().unwrap(), None).await.unwrap_err();
        assert_eq!(counted(&metrics), once("transient"));
    }

    #[tokio::test]
    async fn what_is_no_call_is_counted_where_it_is_found() {
        let metrics = Arc::new(Metrics::new().unwrap());
        let repository = over(Arc::new(MemoryStore::new())).await.observed(metrics.clone());
        let file = walkeep_core::WalFileName::History(walkeep_core::TimelineId::new(2).unwrap());
        repository.put_wal(file, Bytes::from_static(b"one")).await.unwrap();
        let conflict = repository.put_wal(file, Bytes::from_static(b"other")).await.unwrap_err();
        assert_eq!(counted(&metrics), []);
        metrics.refused(&conflict);
        assert_eq!(counted(&metrics), once("conflict"));
    }
}
