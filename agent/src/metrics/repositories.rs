//! What is counted of each of several repositories: one row of samples for each, by its url. With one repository there are none.

use std::sync::OnceLock;
use std::time::{Duration, SystemTime};

use prometheus::{GaugeVec, IntCounterVec, IntGaugeVec, Opts};
use walkeep_store::Several;
use walkeep_store::several::PlaceState;

use super::Maker;

/// What waits for longer is late.
const LONG: Duration = Duration::from_secs(3600);

/// The metrics of several repositories.
#[derive(Debug)]
pub struct RepositoryMetrics {
    several: OnceLock<Several>,
    up: IntGaugeVec,
    queue: IntGaugeVec,
    behind: GaugeVec,
    stuck: IntGaugeVec,
    copied_objects: IntCounterVec,
    copied_bytes: IntCounterVec,
    differing: IntCounterVec,
    fallbacks: IntCounterVec,
}

impl RepositoryMetrics {
    pub(super) fn new(maker: &Maker<'_>) -> prometheus::Result<Self> {
        let counter = |name: &str, help: &str, labels: &[&str]| maker.registered(IntCounterVec::new(Opts::new(name, help), labels)?);
        Ok(Self {
            several: OnceLock::new(),
            up: maker.int_gauge_vec("walkeep_repository_up", "0 while a repository does not answer.", "repository")?,
            queue: maker.int_gauge_vec(
                "walkeep_repository_queue_objects",
                "Objects that a repository lacks and that wait to be brought there.",
                "repository",
            )?,
            behind: maker.registered(GaugeVec::new(
                Opts::new("walkeep_repository_behind_seconds", "For how long the oldest of them has been waiting, in seconds; 0 if none."),
                &["repository"],
            )?)?,
            stuck: maker.int_gauge_vec(
                "walkeep_repository_stuck_objects",
                "Those of them that no other repository can give: damaged there, or archived.",
                "repository",
            )?,
            copied_objects: counter(
                "walkeep_repository_copied_objects_total",
                "Objects brought to a repository that need not have them before they are acknowledged.",
                &["repository"],
            )?,
            copied_bytes: counter("walkeep_repository_copied_bytes_total", "Their bytes.", &["repository"])?,
            differing: counter(
                "walkeep_repository_differing_objects_total",
                "Objects found in a repository with other content than in another one: alarm on any.",
                &["repository"],
            )?,
            fallbacks: counter(
                "walkeep_repository_fallbacks_total",
                "Reads that another repository had to answer, by what was wrong in this one: missing, unreachable, damaged.",
                &["repository", "reason"],
            )?,
        })
    }

    /// These are the repositories, from now on.
    pub fn watch(&self, several: Several) {
        let _ = self.several.set(several);
    }

    /// For a scrape.
    pub(super) fn refresh(&self) {
        for state in self.several.get().map(Several::states).unwrap_or_default() {
            self.show(&state);
        }
    }

    /// Whether each answers and lacks nothing for long; `None` with one.
    pub(super) fn are_alike(&self) -> Option<bool> {
        let is_behind = |since: SystemTime| SystemTime::now().duration_since(since).unwrap_or_default() > LONG;
        let states = self.several.get()?.states();
        Some(states.iter().all(|state| state.down.is_none() && !state.behind_since.is_some_and(is_behind)))
    }

    fn show(&self, state: &PlaceState) {
        let url = [state.url.as_str()];
        let behind = state.behind_since.map(|since| SystemTime::now().duration_since(since).unwrap_or_default());
        self.up.with_label_values(&url).set(i64::from(state.down.is_none()));
        self.queue.with_label_values(&url).set(i64::try_from(state.queued).unwrap_or(i64::MAX));
        self.stuck.with_label_values(&url).set(i64::try_from(state.stuck).unwrap_or(i64::MAX));
        self.behind.with_label_values(&url).set(behind.unwrap_or_default().as_secs_f64());
        let fallbacks =
            [("missing", state.fallbacks.missing), ("unreachable", state.fallbacks.unreachable), ("damaged", state.fallbacks.damaged)];
        for (reason, count) in fallbacks {
            raise(&self.fallbacks, &[state.url.as_str(), reason], count);
        }
        raise(&self.copied_objects, &url, state.carried_objects);
        raise(&self.copied_bytes, &url, state.carried_bytes);
        raise(&self.differing, &url, state.differing);
    }
}

/// Raises a counter to what was counted elsewhere.
fn raise(counter: &IntCounterVec, labels: &[&str], to: u64) {
    let counter = counter.with_label_values(labels);
    counter.inc_by(to.saturating_sub(counter.get()));
}
