//! What the server's clock said where: a bounded sample of the ends of transactions, spread evenly however many there are.

use crate::lsn::Lsn;
use crate::time::PgTimestamp;

/// Twice as many are kept at most.
const ENOUGH: usize = 512;

/// A bounded sample of the ends of transactions: what the server's clock said where.
#[derive(Debug, Default)]
pub struct Clock {
    kept: Vec<(Lsn, PgTimestamp)>,
    /// Each so many is kept, less one.
    passed_over: u64,
    since_kept: u64,
    last: Option<(Lsn, PgTimestamp)>,
}

impl Clock {
    /// Takes the next, in LSN order.
    pub fn add(&mut self, lsn: Lsn, time: PgTimestamp) {
        self.last = Some((lsn, time));
        if self.since_kept < self.passed_over && !self.kept.is_empty() {
            self.since_kept += 1;
            return;
        }
        self.since_kept = 0;
        self.kept.push((lsn, time));
        if self.kept.len() == 2 * ENOUGH {
            let mut index = 0;
            self.kept.retain(|_| {
                index += 1;
                index % 2 == 1
            });
            self.passed_over = 2 * self.passed_over + 1;
            self.since_kept = self.passed_over.div_ceil(2);
        }
    }

    /// The sample, with the last.
    pub fn finish(mut self) -> Vec<(Lsn, PgTimestamp)> {
        let last = self.last.filter(|last| self.kept.last() != Some(last));
        self.kept.extend(last);
        self.kept
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_sample_is_bounded_even_and_has_both_ends() {
        for number in [0, 1, 2, 1000, 1024, 1025, 100_000] {
            let mut clock = Clock::default();
            (0..number).for_each(|index| clock.add(Lsn::new(index * 10), PgTimestamp::from_micros(index as i64)));
            let sample = clock.finish();
            assert!(sample.len() <= 2 * ENOUGH + 1 && sample.len() as u64 >= number.min(ENOUGH as u64), "{number}: {}", sample.len());
            assert_eq!(sample.first().map(|first| first.0), (number > 0).then_some(Lsn::ZERO));
            assert_eq!(sample.last().map(|last| last.0), number.checked_sub(1).map(|last| Lsn::new(last * 10)));
            let steps: Vec<u64> = sample.windows(2).map(|pair| pair[1].0.bytes_since(pair[0].0)).collect();
            let even = steps.iter().take(steps.len().saturating_sub(1));
            assert!(even.clone().max() <= even.min().map(|least| least * 2).as_ref(), "{number}: {steps:?}");
        }
    }
}
