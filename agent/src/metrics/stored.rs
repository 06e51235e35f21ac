//! What is stored in each repository, as the last look at everything counted it: no request is made for this.

use prometheus::{GaugeVec, IntGaugeVec, Opts};
use walkeep_core::price::Prices;
use walkeep_core::verify::Group;

use super::Maker;
use crate::verify::memory::Outcome;

/// The metrics of what is stored.
#[derive(Debug)]
pub struct StoredMetrics {
    objects: IntGaugeVec,
    bytes: GaugeVec,
    counted: IntGaugeVec,
    cost: GaugeVec,
}

impl StoredMetrics {
    pub(super) fn new(maker: &Maker<'_>) -> prometheus::Result<Self> {
        let labels = ["repository", "kind"];
        Ok(Self {
            objects: maker.registered(IntGaugeVec::new(
                Opts::new(
                    "walkeep_repository_objects",
                    "Objects of this cluster in a repository, by kind, when everything was last looked at.",
                ),
                &labels,
            )?)?,
            bytes: maker.registered(GaugeVec::new(Opts::new("walkeep_repository_bytes", "Their bytes, as they are stored."), &labels)?)?,
            counted: maker.int_gauge_vec(
                "walkeep_repository_counted_timestamp_seconds",
                "When they were counted, as a Unix time.",
                "repository",
            )?,
            cost: maker.registered(GaugeVec::new(
                Opts::new(
                    "walkeep_repository_cost_estimate_usd",
                    "Estimated US dollars a month for storing them, by list prices; no sample where no price is known.",
                ),
                &["repository"],
            )?)?,
        })
    }

    /// How it stands, as it is remembered of each repository. One that was not counted yet has no samples.
    pub fn stands(&self, outcomes: &[(String, Outcome)], prices: impl Fn(&str) -> Option<Prices>) {
        for (url, outcome) in outcomes {
            let Some((tally, at)) = outcome.tally.as_ref().zip(outcome.looked_at) else { continue };
            for group in Group::ALL {
                let (amount, labels) = (tally.of(group), [url.as_str(), group.as_str()]);
                self.objects.with_label_values(&labels).set(i64::try_from(amount.objects).unwrap_or(i64::MAX));
                self.bytes.with_label_values(&labels).set(amount.bytes as f64);
            }
            self.counted.with_label_values(&[url.as_str()]).set(at.timestamp());
            match prices(url).and_then(|prices| prices.of_a_month(tally)) {
                Some(cost) => self.cost.with_label_values(&[url.as_str()]).set(cost),
                None => drop(self.cost.remove_label_values(&[url.as_str()])),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use chrono::DateTime;
    use walkeep_core::price::Prices;
    use walkeep_core::verify::{Amount, Group, Tally};

    use crate::metrics::Metrics;
    use crate::metrics::tests::page_of;
    use crate::verify::memory::Outcome;

    #[test]
    fn each_repository_tells_what_was_counted_there() {
        let metrics = Metrics::new().unwrap();
        let mut tally = Tally::default();
        let amount = Amount { objects: 3, bytes: 10 << 30 };
        tally.kinds.insert(Group::Packs, amount);
        tally.classes.insert("STANDARD".into(), amount);
        let counted = Outcome { tally: Some(tally), looked_at: DateTime::from_timestamp(1_800_000_000, 0), ..Outcome::default() };
        let outcomes = [("s3://a".into(), counted.clone()), ("s3://b".into(), Outcome::default()), ("file:///c".into(), counted)];
        metrics.stored.stands(&outcomes, |url| (url == "s3://a").then(|| "STANDARD=0.5".parse::<Prices>().unwrap()));
        let text = page_of(&metrics);
        for line in [
            "walkeep_repository_objects{kind=\"packs\",repository=\"s3://a\"} 3",
            "walkeep_repository_objects{kind=\"wal\",repository=\"s3://a\"} 0",
            "walkeep_repository_bytes{kind=\"packs\",repository=\"s3://a\"} 10737418240",
            "walkeep_repository_counted_timestamp_seconds{repository=\"s3://a\"} 1800000000",
            "walkeep_repository_cost_estimate_usd{repository=\"s3://a\"} 5",
        ] {
            assert!(text.lines().any(|found| found == line), "{line} in\n{text}");
        }
        assert!(!text.contains("s3://b"), "it was not counted");
        assert!(!text.contains("cost_estimate_usd{repository=\"file:///c\"}"), "nobody knows what a directory costs");
    }
}
