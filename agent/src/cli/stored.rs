//! How much is stored, and what that costs, for `walkeep status`: as the last look at everything counted it.

use std::collections::BTreeMap;
use std::sync::Arc;

use chrono::{DateTime, Utc};
use serde::Serialize;
use walkeep_core::verify::{Amount, Group};

use super::output;
use crate::config::ClusterConfig;
use crate::repository::ClusterRepository;
use crate::verify::memory::{Memory, Outcome};
use crate::verify::numbered;

/// One repository.
#[derive(Debug, Serialize)]
pub struct Stored {
    repository: String,
    counted_at: DateTime<Utc>,
    objects: u64,
    bytes: u64,
    kinds: BTreeMap<Group, Amount>,
    /// By the store's class; a directory has none.
    storage_classes: BTreeMap<String, Amount>,
    /// For storing it, by list prices; nothing where no price is known.
    estimated_usd_per_month: Option<f64>,
}

impl Stored {
    /// Of each repository of the cluster that was counted from this host.
    pub fn of(cluster: &ClusterConfig, repository: &Arc<ClusterRepository>) -> Vec<Self> {
        let one = |(_, repository): (usize, Arc<ClusterRepository>)| {
            Self::among(cluster, repository.repository().url(), Memory::outcome_of(cluster, &repository)?)
        };
        numbered(repository).filter_map(one).collect()
    }

    fn among(cluster: &ClusterConfig, repository: String, outcome: Outcome) -> Option<Self> {
        let (tally, counted_at) = outcome.tally.zip(outcome.looked_at)?;
        let Amount { objects, bytes } = tally.total();
        let estimated_usd_per_month = cluster.prices_of(&repository).and_then(|prices| prices.of_a_month(&tally));
        Some(Self { repository, counted_at, objects, bytes, kinds: tally.kinds, storage_classes: tally.classes, estimated_usd_per_month })
    }

    /// In a line; `several`: with the repository's name.
    pub fn words(&self, several: bool, now: DateTime<Utc>) -> String {
        let age = output::duration((now - self.counted_at).to_std().unwrap_or_default());
        let cost = match self.estimated_usd_per_month {
            Some(usd) => format!(", about {usd:.2} USD a month for storage by list prices"),
            None => String::new(),
        };
        let place = if several { format!(" in {}", self.repository) } else { String::new() };
        format!("{}, {}{place}{cost}; counted {age} ago", output::count(self.objects, "object"), output::bytes(self.bytes))
    }
}

#[cfg(test)]
mod tests {
    use chrono::TimeDelta;

    use super::*;

    #[test]
    fn a_line_says_how_much_and_what_it_costs() {
        let now = DateTime::from_timestamp(1_800_000_000, 0).unwrap();
        let mut stored = Stored {
            repository: "s3://a".into(),
            counted_at: now - TimeDelta::hours(3),
            objects: 1234,
            bytes: 12 << 30,
            kinds: BTreeMap::new(),
            storage_classes: BTreeMap::new(),
            estimated_usd_per_month: Some(0.276),
        };
        assert_eq!(stored.words(false, now), "1234 objects, 12.00 GiB, about 0.28 USD a month for storage by list prices; counted 3h ago");
        stored.estimated_usd_per_month = None;
        assert_eq!(stored.words(true, now), "1234 objects, 12.00 GiB in s3://a; counted 3h ago");
    }
}
