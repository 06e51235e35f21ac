//! Several repositories of one cluster: the first is the primary, and one rule says which of them have to have something before it is acknowledged.

use anyhow::{Context, Result, bail, ensure};
use walkeep_core::layout::ClusterName;
use walkeep_store::several::StoredWhen;

use super::RepositoryConfig;
use super::raw::RawRepository;
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
        // Two buckets of one name may lie on two servers.
        let same = |other: &RepositoryConfig| other.url() == repository.url() && other.endpoint() == repository.endpoint();
        if let Some(other) = checked.iter().position(same) {
            bail!("{}: it is the same as number {}, {}: a copy of itself protects nothing", place(index), other + 1, repository.url());
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
    fn endpoint(&self) -> Option<&str> {
        match self {
            Self::Local { .. } => None,
            Self::S3(s3) => s3.endpoint.as_deref(),
        }
    }
}
