//! Several repositories of one cluster: the first is the primary, and one rule says which of them have to have something before it is acknowledged.

use anyhow::{Context, Result, bail, ensure};
use walkeep_core::layout::ClusterName;
use walkeep_store::several::StoredWhen;

use super::RepositoryConfig;
use super::raw::RawRepository;
use super::same_place::{Shared, shared};
use super::values::check_repository;

/// The primary and the others.
pub fn check(raw: &[RawRepository], name: &ClusterName) -> Result<(RepositoryConfig, Vec<RepositoryConfig>)> {
    let place = |index: usize| match raw.len() {
        1 => format!("[[cluster.{name}.repository]]"),
        _ => format!("[[cluster.{name}.repository]] number {}", index + 1),
    };
    let mut checked: Vec<RepositoryConfig> = Vec::new();
    for (index, raw) in raw.iter().enumerate() {
        let repository = check_repository(raw).with_context(|| place(index))?;
        for (other, before) in checked.iter().enumerate() {
            let (other, url) = (other + 1, before.url());
            match repository.shares_with(before) {
                None => {}
                Some(Shared::Same) => bail!("{}: it is the same as number {other}, {url}: a copy of itself protects nothing", place(index)),
                Some(Shared::Within) => bail!("{}: it lies within number {other}, {url}: give each a directory of its own", place(index)),
                Some(Shared::Around) => bail!("{}: number {other}, {url}, lies within it: give each a directory of its own", place(index)),
            }
        }
        checked.push(repository);
    }
    let mut checked = checked.into_iter();
    match checked.next() {
        Some(primary) => Ok((primary, checked.collect())),
        None => bail!("no [[cluster.{name}.repository]]: say where to store, url = \"s3://bucket/prefix\" or \"file:///srv/walkeep\""),
    }
}

/// The rule.
pub fn rule(written: Option<&str>, further: usize) -> Result<StoredWhen> {
    let rule = match written {
        None => return Ok(StoredWhen::Primary),
        Some("primary") => StoredWhen::Primary,
        Some("all") => StoredWhen::All,
        Some("any") => StoredWhen::Any,
        Some(other) => bail!("acknowledge_rule: {other:?} is none of \"primary\", \"all\" and \"any\""),
    };
    ensure!(further > 0, "acknowledge_rule: goes with more than one [[cluster.NAME.repository]] only");
    Ok(rule)
}

impl RepositoryConfig {
    /// How it lies to another one, if they are not apart.
    fn shares_with(&self, other: &Self) -> Option<Shared> {
        match (self, other) {
            (Self::Local { path }, Self::Local { path: other }) => shared(path, other),
            // Two buckets of one name may lie on two servers.
            _ => (self.url() == other.url() && self.endpoint() == other.endpoint()).then_some(Shared::Same),
        }
    }

    fn endpoint(&self) -> Option<&str> {
        match self {
            Self::Local { .. } => None,
            Self::S3(s3) => s3.endpoint.as_deref(),
        }
    }
}
