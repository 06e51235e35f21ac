//! How fast is read: bytes a second, and bytes in memory at a time.

use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use tokio::sync::{Semaphore, SemaphorePermit};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

/// A permit stands for so many bytes.
const PERMIT: u64 = 1 << 20;
/// Bytes of objects in memory at a time, but for a single one that is larger.
const PERMITS: u32 = 96;

/// A limit of bytes a second, over all that wait.
#[derive(Debug)]
pub struct Pace {
    rate: Option<u64>,
    /// When the next may begin.
    next: Mutex<Option<Instant>>,
}

impl Pace {
    /// So many bytes a second; without a limit as fast as it goes.
    pub fn of(rate: Option<u64>) -> Self {
        Self { rate: rate.filter(|rate| *rate > 0), next: Mutex::new(None) }
    }

    /// Waits for its turn to read so many bytes, or until `cancel` fires.
    pub async fn wait(&self, bytes: u64, cancel: &CancellationToken) {
        let Some(rate) = self.rate else { return };
        let turn = {
            let mut next = self.next.lock().unwrap_or_else(PoisonError::into_inner);
            let turn = next.map_or_else(Instant::now, |next| next.max(Instant::now()));
            *next = Some(turn + Duration::from_secs_f64(bytes as f64 / rate as f64));
            turn
        };
        tokio::select! {
            () = tokio::time::sleep_until(turn) => {}
            () = cancel.cancelled() => {}
        }
    }
}

/// Memory for objects on their way.
#[derive(Debug)]
pub struct Room(Semaphore);

impl Default for Room {
    fn default() -> Self {
        Self(Semaphore::new(PERMITS as usize))
    }
}

impl Room {
    /// Waits until there is room for an object of so many bytes; of what it holds, hardly more is in memory.
    pub async fn take(&self, bytes: u64) -> Option<SemaphorePermit<'_>> {
        // Twice: as it is stored, and decrypted.
        let permits = u32::try_from((bytes * 2).div_ceil(PERMIT)).unwrap_or(PERMITS).clamp(1, PERMITS);
        self.0.acquire_many(permits).await.ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn bytes_take_their_time() {
        let (pace, cancel, began) = (Pace::of(Some(100)), CancellationToken::new(), Instant::now());
        for _ in 0..4 {
            pace.wait(50, &cancel).await;
        }
        assert_eq!(began.elapsed().as_millis(), 1500, "the first goes at once");
        pace.wait(1_000_000, &cancel).await;
        cancel.cancel();
        pace.wait(50, &cancel).await;
        assert!(began.elapsed() < Duration::from_secs(3));
        let (free, began) = (Pace::of(None), Instant::now());
        free.wait(u64::MAX, &cancel).await;
        assert_eq!(began.elapsed(), Duration::ZERO);
    }

    #[tokio::test]
    async fn one_that_is_too_large_goes_alone() {
        let room = Room::default();
        let held = room.take(1 << 40).await;
        assert!(held.is_some());
        assert!(tokio::time::timeout(Duration::from_millis(10), room.take(1)).await.is_err());
        drop(held);
        assert!(room.take(1).await.is_some());
    }
}
