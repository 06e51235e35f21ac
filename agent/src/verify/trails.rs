//! Whether several repositories have the same audit trail.
//!
//! Each record names the one before it. So where each trail is whole by itself and the last records are the same, all are: but for those of which a record behind
//! them says that they were not the same when it was written. The last ones and these are compared, however long the trails are.

use std::collections::{BTreeMap, BTreeSet};

use walkeep_core::audit::copies::Copies;
use walkeep_core::audit::hash;
use walkeep_core::layout::ObjectName;
use walkeep_core::verify::{Finding, Judge};

use super::places::{Everywhere, Place};
use super::repair::PATIENCE;
use super::run::Wish;
use crate::repository::{Error, Result};
use crate::retry::{Backoff, retry};

impl Everywhere {
    /// What differs, as each of those that have it is told, with their numbers. Notes what is to be compared by the next look too.
    pub(super) async fn trails(&self, wish: &Wish<'_>, places: &mut [Place]) -> Result<Vec<(usize, Finding)>> {
        if places.len() < 2 || wish.backup.is_some() {
            return Ok(Vec::new());
        }
        let lasts = self.seen.iter().filter_map(|seen| seen.listing.audit.last().copied());
        let questioned = places.iter().flat_map(|place| place.memory.outcome.questioned.iter().copied());
        let numbers: BTreeSet<u32> = lasts.chain(questioned).collect();
        let mut differing: BTreeMap<u32, Copies> = BTreeMap::new();
        for number in numbers {
            let (copies, is_all) = self.copies_of_record(number, wish).await?;
            let settled = is_all && self.seen.len() == places.len() && !copies.differ();
            for place in places.iter_mut() {
                match settled {
                    true => drop(place.memory.outcome.questioned.remove(&number)),
                    false if copies.differ() => drop(place.memory.outcome.questioned.insert(number)),
                    false => {}
                }
            }
            if copies.differ() {
                differing.insert(number, copies);
            }
        }
        let mut found = Vec::new();
        for (number, copies) in differing {
            for seen in copies.repositories().filter_map(|number| self.at(number)) {
                let judge = Judge::new(&seen.catalog, seen.repository.layout());
                found.push((seen.number, judge.record_differs(&ObjectName::Audit(number), &copies)));
            }
        }
        Ok(found)
    }

    /// A record as those have it that do not call it damaged themselves, and whether that is all of those that have it.
    async fn copies_of_record(&self, number: u32, wish: &Wish<'_>) -> Result<(Copies, bool)> {
        let (name, mut copies, mut is_all) = (ObjectName::Audit(number), Vec::new(), true);
        for seen in self.seen.iter().filter(|seen| seen.listing.audit.contains(&number)) {
            if seen.bad.contains(&seen.repository.layout().key(&name)) {
                is_all = false;
                continue;
            }
            let read = || seen.repository.stored_object(&name);
            match retry("verify", Backoff::within(PATIENCE), wish.cancel, Error::is_transient, read).await {
                Ok(Some(bytes)) => copies.push((seen.number, hash(&bytes))),
                Ok(None) => {}
                // The look at that repository told it, where it read it; else the next one does.
                Err(error) if error.is_damage() || error.is_denied() => is_all = false,
                Err(error) => return Err(error),
            }
        }
        Ok((Copies::of(copies), is_all))
    }
}
