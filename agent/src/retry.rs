//! The one retry helper: backoff with jitter, a deadline, cancellation.
//!
//! It decides *when* to try again; whether an error is worth it is the caller's word (`is_transient`).

use std::fmt::Display;
use std::future::Future;
use std::time::{Duration, Instant};

use tokio_util::sync::CancellationToken;

/// How long to wait between tries, and how long in all.
#[derive(Debug, Clone, Copy)]
pub struct Backoff {
    /// The first wait.
    pub first: Duration,
    /// No wait is longer.
    pub most: Duration,
    /// Give up when a further wait would end after this much time since the first try; `None`: never.
    pub deadline: Option<Duration>,
}

impl Backoff {
    /// For work that must be done in the end: for ever, at most 30 s apart.
    pub const FOREVER: Backoff = Backoff { first: Duration::from_millis(200), most: Duration::from_secs(30), deadline: None };

    /// The same, given up after `deadline`.
    pub const fn within(deadline: Duration) -> Backoff {
        Backoff { first: Duration::from_millis(200), most: Duration::from_secs(5), deadline: Some(deadline) }
    }

    /// The wait before try number `tries` + 1: doubled each time, and somewhere between half of that and all of it, so that many
    /// clients of one troubled server do not come back at the same instant.
    pub fn wait(&self, tries: u32) -> Duration {
        let doubled = self.first.saturating_mul(1u32.checked_shl(tries.saturating_sub(1)).unwrap_or(u32::MAX)).min(self.most);
        doubled.mul_f64(0.5 + 0.5 * random_fraction())
    }
}

/// Enough randomness for jitter: the standard library's per-map keys.
fn random_fraction() -> f64 {
    use std::hash::{BuildHasher, Hasher};
    let random = std::collections::hash_map::RandomState::new().build_hasher().finish();
    (random >> 11) as f64 / (1u64 << 53) as f64
}

/// Runs `operation` until it succeeds, fails for good, the deadline passes or `cancel` fires; answers its last result.
pub async fn retry<T, E, F, Fut>(
    what: &str,
    backoff: Backoff,
    cancel: &CancellationToken,
    is_transient: impl Fn(&E) -> bool,
    mut operation: F,
) -> Result<T, E>
where
    E: Display,
    F: FnMut() -> Fut,
    Fut: Future<Output = Result<T, E>>,
{
    let began = Instant::now();
    let mut tries = 0;
    loop {
        let error = match operation().await {
            Ok(value) => return Ok(value),
            Err(error) => error,
        };
        tries += 1;
        let wait = backoff.wait(tries);
        let too_late = backoff.deadline.is_some_and(|deadline| began.elapsed() + wait > deadline);
        if !is_transient(&error) || too_late || cancel.is_cancelled() {
            return Err(error);
        }
        tracing::warn!(tries, wait_ms = wait.as_millis() as u64, error = %format_args!("{error:#}"), "{what} failed; trying again");
        tokio::select! {
            () = tokio::time::sleep(wait) => {}
            () = cancel.cancelled() => return Err(error),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::cell::Cell;

    #[tokio::test(start_paused = true)]
    async fn tries_until_it_succeeds_or_must_not() {
        let cancel = CancellationToken::new();
        let calls = Cell::new(0);
        let attempt = |fail_until: u32| {
            calls.set(calls.get() + 1);
            let now = calls.get();
            async move { if now < fail_until { Err("transient") } else { Ok(now) } }
        };
        assert_eq!(retry("x", Backoff::FOREVER, &cancel, |_| true, || attempt(4)).await, Ok(4));
        calls.set(0);
        assert_eq!(retry("x", Backoff::FOREVER, &cancel, |_| false, || attempt(4)).await, Err("transient"));
        assert_eq!(calls.get(), 1);
    }

    #[tokio::test(start_paused = true)]
    async fn gives_up_at_the_deadline() {
        let cancel = CancellationToken::new();
        let began = tokio::time::Instant::now();
        let backoff = Backoff { first: Duration::from_millis(1), most: Duration::from_millis(1), deadline: Some(Duration::ZERO) };
        let result: Result<(), &str> = retry("x", backoff, &cancel, |_| true, || async { Err("down") }).await;
        assert_eq!(result, Err("down"));
        assert!(began.elapsed() < Duration::from_secs(1));
    }

    #[test]
    fn waits_grow_and_are_bounded() {
        let backoff = Backoff::FOREVER;
        assert!(backoff.wait(1) <= backoff.first);
        assert!(backoff.wait(200) <= backoff.most && backoff.wait(200) >= backoff.most / 2);
    }
}
