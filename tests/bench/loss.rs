//! What was lost: commits that were confirmed and are not there again. Pure.

use std::collections::BTreeSet;

use crate::load::{Commit, Confirmed};

/// A host's loss.
#[derive(Debug, Clone, Copy)]
pub struct Loss {
    /// Commits that were confirmed to their clients.
    pub confirmed: usize,
    /// Of these, how many are not there.
    pub lost: usize,
    /// How long before the kill the first of them was confirmed: at most this much time is gone.
    pub age: f64,
    /// From the last confirmed commit that is there to the last confirmed one.
    pub span: f64,
    /// Commits that are there though nobody was told: they were under way.
    pub unconfirmed: usize,
}

impl Loss {
    /// Compares what was confirmed before the kill with what was restored.
    pub fn of(confirmed: &[Confirmed], restored: &BTreeSet<Commit>, killed: f64) -> Self {
        let (there, lost): (Vec<&Confirmed>, Vec<&Confirmed>) = confirmed.iter().partition(|one| restored.contains(&one.commit));
        let last = |ones: &[&Confirmed]| ones.iter().map(|one| one.at).fold(f64::NEG_INFINITY, f64::max);
        let first_lost = lost.iter().map(|one| one.at).fold(f64::INFINITY, f64::min);
        Self {
            confirmed: confirmed.len(),
            lost: lost.len(),
            age: if lost.is_empty() { 0.0 } else { (killed - first_lost).max(0.0) },
            span: if lost.is_empty() { 0.0 } else { (last(&lost) - last(&there).max(first_lost)).max(0.0) },
            unconfirmed: restored.len().saturating_sub(there.len()),
        }
    }
}
