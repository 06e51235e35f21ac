//! A point of the past that nobody chose.

use crate::catalog::Window;
use crate::lsn::Lsn;

/// A position within what can be restored: each byte of WAL is as likely as any other. `chance` is a number that nobody chose; nothing if nothing can be.
pub fn point(windows: &[Window], chance: u64) -> Option<Lsn> {
    let stretches: Vec<_> = windows.iter().map(|window| (window.earliest.lsn, window.latest)).collect();
    within(&stretches, chance)
}

fn within(stretches: &[(Lsn, Lsn)], chance: u64) -> Option<Lsn> {
    let positions = |(from, to): &(Lsn, Lsn)| u128::from(to.get().saturating_sub(from.get())) + 1;
    let all: u128 = stretches.iter().map(positions).sum();
    // Of 2^64 numbers as many fall to each position as to any other, give or take one.
    let mut at = (u128::from(chance) * all) >> 64;
    for stretch in stretches {
        let here = positions(stretch);
        if at < here {
            return Some(stretch.0.saturating_add(u64::try_from(at).ok()?));
        }
        at -= here;
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_position_of_every_window_can_be_it_and_no_other() {
        assert_eq!(within(&[], 7), None);
        assert_eq!(within(&[(Lsn::new(5), Lsn::new(5))], u64::MAX), Some(Lsn::new(5)));
        let stretches = [(Lsn::new(100), Lsn::new(102)), (Lsn::new(1000), Lsn::new(1000))];
        let points: Vec<u64> = (0..4u64).map(|quarter| within(&stretches, quarter << 62).map_or(0, Lsn::get)).collect();
        assert_eq!(points, [100, 101, 102, 1000]);
        assert_eq!(within(&stretches, u64::MAX), Some(Lsn::new(1000)));
    }
}
