//! How fast a backup may read, or a copy go: so many bytes a second, on the average of a second.

use std::time::Duration;

use tokio::time::{Instant, sleep_until};

/// What may be read at once after a pause.
const BURST: Duration = Duration::from_millis(250);

/// Lets bytes pass at a rate.
#[derive(Debug)]
pub struct Pace {
    /// Bytes a second; `None`: as they come.
    rate: Option<u64>,
    /// Until then, what passed is paid for.
    paid_until: Instant,
}

impl Pace {
    /// At most so many kB a second.
    pub fn new(kb: Option<u32>) -> Self {
        Self { rate: kb.map(|kb| u64::from(kb.max(1)) * 1024), paid_until: Instant::now() }
    }

    /// Waits until so many bytes may pass.
    pub async fn pass(&mut self, bytes: u64) {
        let Some(rate) = self.rate else { return };
        let now = Instant::now();
        self.paid_until = self.paid_until.max(now.checked_sub(BURST).unwrap_or(now)) + Duration::from_secs_f64(bytes as f64 / rate as f64);
        if self.paid_until > now {
            sleep_until(self.paid_until).await;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn the_rate_is_kept() {
        let mut pace = Pace::new(Some(1024));
        let began = Instant::now();
        for _ in 0..40 {
            pace.pass(1 << 18).await;
        }
        let took = began.elapsed();
        assert!((Duration::from_millis(9500)..Duration::from_millis(10_500)).contains(&took), "{took:?}");
        let mut free = Pace::new(None);
        free.pass(u64::MAX).await;
        assert!(began.elapsed() - took < Duration::from_millis(1));
    }
}
