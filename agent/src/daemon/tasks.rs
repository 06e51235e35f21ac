//! The long-lived tasks of one cluster's agent.

use tokio_util::task::TaskTracker;
use tokio_util::task::task_tracker::TaskTrackerWaitFuture;
use tracing::Instrument;

/// Such tasks. Each logs in the name of whoever spawns it: of the cluster, where a process serves several.
#[derive(Debug, Clone, Default)]
pub struct Tasks(TaskTracker);

impl Tasks {
    /// Spawns one.
    pub fn spawn(&self, task: impl Future<Output = ()> + Send + 'static) {
        self.0.spawn(task.in_current_span());
    }

    /// No more will come from outside.
    pub fn close(&self) {
        self.0.close();
    }

    /// Until all have ended, behind [`Self::close`].
    pub fn wait(&self) -> TaskTrackerWaitFuture<'_> {
        self.0.wait()
    }

    /// How many have not.
    pub fn len(&self) -> usize {
        self.0.len()
    }
}
