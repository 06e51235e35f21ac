//! When the fetch service has work, and how long it has had none.
//!
//! Where no agent runs, restore_command starts a fetch service, which must leave by itself when recovery is over.

use std::time::Duration;

use tokio::sync::watch;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

/// Counts requests under way and remembers when the last one ended.
#[derive(Debug)]
pub struct Activity {
    state: watch::Sender<State>,
}

#[derive(Debug, Clone, Copy)]
struct State {
    busy: usize,
    idle_since: Instant,
}

/// A request under way; it ends when this is dropped.
#[derive(Debug)]
#[must_use]
pub struct Busy<'a> {
    activity: &'a Activity,
}

impl Activity {
    /// Idle since now.
    pub fn new() -> Self {
        Self { state: watch::Sender::new(State { busy: 0, idle_since: Instant::now() }) }
    }

    /// A request begins.
    pub fn begin(&self) -> Busy<'_> {
        self.state.send_modify(|state| state.busy += 1);
        Busy { activity: self }
    }

    /// Time since the last request ended; zero while there is one.
    pub fn idle_for(&self) -> Duration {
        let state = *self.state.borrow();
        if state.busy > 0 { Duration::ZERO } else { state.idle_since.elapsed() }
    }

    /// Waits until there was no request for `time`: true then, false if `cancel` fired before.
    pub async fn wait_idle(&self, time: Duration, cancel: &CancellationToken) -> bool {
        let mut changes = self.state.subscribe();
        loop {
            let State { busy, idle_since } = *changes.borrow_and_update();
            if busy == 0 && idle_since.elapsed() >= time {
                return true;
            }
            tokio::select! {
                () = cancel.cancelled() => return false,
                // The sender is `self`: it cannot be gone.
                _ = changes.changed() => {}
                () = tokio::time::sleep_until(idle_since + time), if busy == 0 => {}
            }
        }
    }
}

impl Default for Activity {
    fn default() -> Self {
        Self::new()
    }
}

impl Drop for Busy<'_> {
    fn drop(&mut self) {
        self.activity.state.send_modify(|state| {
            state.busy -= 1;
            state.idle_since = Instant::now();
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MINUTE: Duration = Duration::from_secs(60);

    #[tokio::test(start_paused = true)]
    async fn idleness_begins_anew_with_every_request() {
        let activity = Activity::new();
        let began = Instant::now();
        let work = async {
            tokio::time::sleep(MINUTE / 2).await;
            let busy = activity.begin();
            tokio::time::sleep(MINUTE * 5).await;
            assert_eq!(activity.idle_for(), Duration::ZERO);
            drop(busy);
        };
        let cancel = CancellationToken::new();
        let ((), idle) = tokio::join!(work, activity.wait_idle(MINUTE, &cancel));
        assert!(idle);
        assert_eq!(began.elapsed().as_secs(), 30 + 300 + 60);
        assert!(activity.idle_for() >= MINUTE);
    }

    #[tokio::test(start_paused = true)]
    async fn a_stop_ends_the_wait() {
        let (activity, cancel) = (Activity::new(), CancellationToken::new());
        let _busy = activity.begin();
        let stop = async {
            tokio::time::sleep(MINUTE * 10).await;
            cancel.cancel();
        };
        assert!(!tokio::join!(stop, activity.wait_idle(MINUTE, &cancel)).1);
    }
}
