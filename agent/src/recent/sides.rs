//! Either parts, or segments ahead of their turn.
//!
//! Two jobs store WAL that is not whole up to there: the stream stores parts of the segment being written, archive_command's side stores segments before
//! PostgreSQL offers them. Each is harmless by itself. Together they could leave a segment of which only parts are stored, confirmed to the server, with a whole
//! one behind it: a hole, at which a recovery must stop. So they exclude each other. The stream has the right of way: it holds commits.

use std::sync::Arc;

use tokio::sync::watch;

/// Who is storing.
#[derive(Debug, Default)]
pub struct Sides(watch::Sender<Count>);

#[derive(Debug, Default, Clone, Copy)]
struct Count {
    /// Segments on their way before their turn.
    ahead: usize,
    /// Parts on their way, or waiting for these segments.
    parts: usize,
}

/// A segment on its way before its turn, or the look for the next.
#[derive(Debug)]
#[must_use]
pub struct AheadGuard(Arc<Sides>);

/// A part on its way.
#[derive(Debug)]
#[must_use]
pub struct PartGuard(Arc<Sides>);

impl Sides {
    /// The right to store a segment before its turn; none while parts are stored or wait.
    pub fn ahead(self: &Arc<Self>) -> Option<AheadGuard> {
        let mut free = false;
        self.0.send_if_modified(|count| {
            free = count.parts == 0;
            count.ahead += usize::from(free);
            free
        });
        free.then(|| AheadGuard(self.clone()))
    }

    /// The right to store a part, as soon as no segment is on its way before its turn; no more begin meanwhile.
    pub async fn part(self: &Arc<Self>) -> PartGuard {
        self.0.send_modify(|count| count.parts += 1);
        // Before the wait: whoever gives it up stands back again.
        let guard = PartGuard(self.clone());
        // The sender is `self`: it cannot be gone.
        let _ = self.0.subscribe().wait_for(|count| count.ahead == 0).await;
        guard
    }
}

impl Drop for AheadGuard {
    fn drop(&mut self) {
        self.0.0.send_modify(|count| count.ahead -= 1);
    }
}

impl Drop for PartGuard {
    fn drop(&mut self) {
        self.0.0.send_modify(|count| count.parts -= 1);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn parts_wait_for_segments_ahead_and_hold_up_the_next() {
        let sides = Arc::new(Sides::default());
        let (one, two) = (sides.ahead().unwrap(), sides.ahead().unwrap());
        let mut part = Box::pin(sides.part());
        assert!(futures::poll!(&mut part).is_pending());
        assert!(sides.ahead().is_none(), "a part waits");
        drop(one);
        assert!(futures::poll!(&mut part).is_pending());
        drop(two);
        let part = part.await;
        // Parts do not exclude each other.
        let other = sides.part().await;
        drop(part);
        assert!(sides.ahead().is_none());
        drop(other);
        assert!(sides.ahead().is_some());
    }

    #[tokio::test]
    async fn a_wait_that_is_given_up_holds_up_nobody() {
        let sides = Arc::new(Sides::default());
        let ahead = sides.ahead().unwrap();
        let mut part = Box::pin(sides.part());
        assert!(futures::poll!(&mut part).is_pending());
        drop(part);
        assert!(sides.ahead().is_some());
        drop(ahead);
    }
}
