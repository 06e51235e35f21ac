//! Commits per minute, and stretches of minutes that are alike.

use std::collections::btree_map;

use serde::{Deserialize, Serialize};

use crate::time::PgTimestamp;

/// A minute of the server's clock.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Minute {
    /// When it begins.
    pub minute: PgTimestamp,
    /// Transactions that committed.
    pub commits: u64,
    /// Transactions and subtransactions that rolled back and had written something.
    pub aborts: u64,
}

impl Minute {
    pub(super) fn count(entry: btree_map::Entry<'_, i64, Self>, number: i64, committed: bool) {
        let minute = entry.or_insert(Self { minute: PgTimestamp::from_micros(number * MICROS), commits: 0, aborts: 0 });
        minute.commits += u64::from(committed);
        minute.aborts += u64::from(!committed);
    }
}

const MICROS: i64 = 60_000_000;

/// Minutes that follow each other with about as many commits each.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Stretch {
    /// When it begins.
    pub from: PgTimestamp,
    /// How many minutes it is.
    pub minutes: u64,
    /// Commits in the quietest and in the busiest of them.
    pub commits: (u64, u64),
    /// Commits in all.
    pub total: u64,
    /// Rolled back in all.
    pub aborts: u64,
}

/// Folds minutes, in order, while the busiest has at most twice the commits of the quietest. Idle minutes between are in none.
pub fn stretches(minutes: &[Minute]) -> Vec<Stretch> {
    let mut folded: Vec<Stretch> = Vec::new();
    for minute in minutes {
        let (at, commits, aborts) = (minute.minute, minute.commits, minute.aborts);
        if let Some(last) = folded.last_mut() {
            let follows = last.from.micros() + last.minutes as i64 * MICROS == at.micros();
            let (low, high) = (last.commits.0.min(commits), last.commits.1.max(commits));
            if follows && high <= low.saturating_mul(2) {
                last.minutes += 1;
                last.commits = (low, high);
                last.total += commits;
                last.aborts += aborts;
                continue;
            }
        }
        folded.push(Stretch { from: at, minutes: 1, commits: (commits, commits), total: commits, aborts });
    }
    folded
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn alike_minutes_are_one_stretch() {
        let minute = |number: i64, commits| Minute { minute: PgTimestamp::from_micros(number * MICROS), commits, aborts: 1 };
        let folded = stretches(&[minute(0, 10), minute(1, 15), minute(2, 20), minute(3, 21), minute(9, 21)]);
        let seen: Vec<_> = folded.iter().map(|stretch| (stretch.minutes, stretch.commits, stretch.total, stretch.aborts)).collect();
        assert_eq!(seen, [(3, (10, 20), 45, 3), (1, (21, 21), 21, 1), (1, (21, 21), 21, 1)]);
        assert!(stretches(&[]).is_empty());
    }
}
