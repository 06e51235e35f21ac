//! What the process takes of its host, whatever its clusters: by the names that Prometheus' own libraries use (`process_...`), and its tasks.

use std::sync::LazyLock;

use prometheus::core::Collector as _;
use prometheus::process_collector::ProcessCollector;
use prometheus::proto::MetricFamily;
use prometheus::{IntGauge, Opts};
use tokio::runtime::Handle;

/// One for the process, as its counter of CPU time must never go back.
static PROCESS: LazyLock<ProcessCollector> = LazyLock::new(ProcessCollector::for_self);

/// As they are now.
///
/// # Errors
/// None that the host could cause: what cannot be read in `/proc` is left out.
pub fn families() -> prometheus::Result<Vec<MetricFamily>> {
    let tasks = IntGauge::with_opts(Opts::new("walkeep_tasks", "Tasks of the agent that have begun and not ended."))?;
    if let Ok(runtime) = Handle::try_current() {
        tasks.set(runtime.metrics().num_alive_tasks().try_into().unwrap_or(i64::MAX));
    }
    let mut families = PROCESS.collect();
    families.extend(tasks.collect());
    Ok(families)
}
