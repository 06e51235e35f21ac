//! `[cluster.NAME.verify]`: what the agent looks at by itself.

use std::time::Duration;

use anyhow::{Context, Result, ensure};

use super::raw::RawVerify;
use super::schedules::time;
use super::values::ByteSize;
use super::{RepositoryConfig, S3Config};

const DAY: Duration = Duration::from_secs(86_400);
/// Everything is read once in so long.
const SCRUB: Duration = DAY.saturating_mul(30);
/// Bytes a second: a disk and a network hardly notice it.
const RATE: u64 = 20 << 20;
/// A shorter time would be spent on nothing else.
const SHORTEST: Duration = Duration::from_secs(5);

/// What the agent verifies.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Verify {
    /// Listings, records and manifests are looked at so often; never without.
    pub check: Option<Duration>,
    /// Everything is read once in so long; nothing without.
    pub scrub: Option<Duration>,
    /// Whether a repository is read too where reading is paid by the byte.
    pub read_what_costs: bool,
    /// Bytes a second that are read at most.
    pub rate: u64,
}

/// Checks what was written; the repositories say what reading costs.
pub fn check<'a>(raw: &RawVerify, mut repositories: impl Iterator<Item = &'a RepositoryConfig>) -> Result<Verify> {
    let every = |text: Option<&str>, usual: Option<Duration>| match text {
        None => Ok(usual),
        Some("off") => Ok(None),
        Some(text) => time(text).and_then(|time| {
            ensure!(time >= SHORTEST, "must be at least 5s");
            Ok(Some(time))
        }),
    };
    let scrub = repositories.any(|repository| !costs_by_the_byte(repository)).then_some(SCRUB);
    let rate = raw.rate.as_deref().map(|rate| ByteSize::parse(rate.strip_suffix("/s").unwrap_or(rate)));
    let rate = rate.transpose().context("rate")?.map_or(RATE, |rate| rate.0);
    ensure!(rate > 0, "rate: must not be 0; scrub = \"off\" reads nothing");
    Ok(Verify {
        check: every(raw.check.as_deref(), Some(DAY)).context("check")?,
        scrub: every(raw.scrub.as_deref(), scrub).context("scrub")?,
        read_what_costs: raw.scrub.is_some(),
        rate,
    })
}

/// Whether what is read is paid for beyond the request, or thawed, or moved to a dearer class by being read.
fn costs_by_the_byte(repository: &RepositoryConfig) -> bool {
    match repository {
        RepositoryConfig::Local { .. } => false,
        RepositoryConfig::S3(s3) => {
            let S3Config { storage_class, .. } = s3.as_ref();
            storage_class.as_deref().is_some_and(|class| !matches!(class, "STANDARD" | "REDUCED_REDUNDANCY" | "EXPRESS_ONEZONE"))
        }
    }
}

impl Verify {
    /// Whether a repository is read by itself.
    pub fn reads(&self, repository: &RepositoryConfig) -> bool {
        self.read_what_costs || !costs_by_the_byte(repository)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn s3(class: Option<&str>) -> RepositoryConfig {
        RepositoryConfig::S3(Box::new(S3Config { storage_class: class.map(str::to_owned), ..S3Config::default() }))
    }

    #[test]
    fn everything_is_read_once_a_month_where_reading_is_not_paid_by_the_byte() {
        for (repository, scrub) in [
            (RepositoryConfig::Local { path: "/srv".into() }, Some(SCRUB)),
            (s3(None), Some(SCRUB)),
            (s3(Some("STANDARD")), Some(SCRUB)),
            (s3(Some("STANDARD_IA")), None),
            (s3(Some("GLACIER_IR")), None),
        ] {
            let usual = Verify { check: Some(DAY), scrub, read_what_costs: false, rate: RATE };
            assert_eq!(check(&RawVerify::default(), [&repository].into_iter()).unwrap(), usual);
        }
        // Of several those are read that cost nothing.
        let several = [s3(Some("STANDARD_IA")), s3(None)];
        let read = check(&RawVerify::default(), several.iter()).unwrap();
        assert_eq!(several.each_ref().map(|repository| read.reads(repository)), [false, true]);
        let text = |check: &str, scrub: &str, rate: &str| RawVerify {
            check: Some(check.to_owned()),
            scrub: Some(scrub.to_owned()),
            rate: Some(rate.to_owned()),
        };
        let said = check(&text("off", "7d", "1MiB/s"), [&s3(Some("GLACIER_IR"))].into_iter()).unwrap();
        assert_eq!(said, Verify { check: None, scrub: Some(7 * DAY), read_what_costs: true, rate: 1 << 20 });
        for wrong in [text("1s", "off", "1B"), text("1d", "soon", "1B"), text("1d", "1d", "0B"), text("1d", "1d", "fast")] {
            assert!(check(&wrong, [&s3(None)].into_iter()).is_err(), "{wrong:?}");
        }
    }
}
