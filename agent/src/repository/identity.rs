//! Which cluster a repository keeps: `<cluster>/cluster.json`, and `cluster.2.json`, … for later identities of the same name.
//!
//! The records are immutable like everything else. A cluster that is initialised anew or upgraded with pg_upgrade gets another system
//! identifier; its WAL is refused until somebody says, by an explicit step, that this name now means the new one.

use bytes::Bytes;
use serde::{Deserialize, Serialize};
use walkeep_core::layout::{ClusterName, Form};
use walkeep_core::{MajorVersion, SegmentSize, SystemIdentifier, sealed};
use walkeep_store::{ErrorKind, Put};

use super::place::difference;
use super::{Error, Repository, Result, key};

/// One identity of a cluster.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ClusterIdentity {
    /// What `initdb` called it.
    pub system_identifier: SystemIdentifier,
    /// Its major version.
    pub major_version: MajorVersion,
    /// Bytes in a WAL segment.
    pub segment_size: SegmentSize,
    /// When it was made known, by this host's clock; for people.
    pub since: chrono::DateTime<chrono::Utc>,
    /// What its objects are: said once, when it was made known, and for all of them.
    #[serde(rename = "encryption", default, skip_serializing_if = "Form::is_usual")]
    pub form: Form,
}

impl ClusterIdentity {
    /// Whether both describe one cluster: everything but the time, and how it is stored.
    pub fn same_cluster(&self, other: &Self) -> bool {
        let facts = |identity: &Self| (identity.system_identifier, identity.major_version, identity.segment_size);
        facts(self) == facts(other)
    }
}

/// More identities than any cluster will have; a bound for the search.
const MOST_IDENTITIES: u32 = 1000;

fn record_key(cluster: &ClusterName, number: u32) -> String {
    match number {
        1 => format!("{cluster}/cluster.json"),
        number => format!("{cluster}/cluster.{number}.json"),
    }
}

impl Repository {
    /// All identities of `cluster`, oldest first; the last is the present one.
    pub async fn identities(&self, cluster: &ClusterName) -> Result<Vec<ClusterIdentity>> {
        let mut identities = Vec::new();
        for number in 1..=MOST_IDENTITIES {
            let name = record_key(cluster, number);
            match self.store().get(&key(&name)?, None).await {
                Ok(body) => identities.push(sealed::from_json(&body).map_err(|error| Error::corrupt(name, error))?),
                Err(error) if error.kind() == ErrorKind::NotFound => break,
                Err(error) => return Err(error.into()),
            }
        }
        Ok(identities)
    }

    /// Adds an identity. `number` is its place, counted from 1, which must be free: of two that add at once, one is told of a conflict.
    pub async fn add_identity(&self, cluster: &ClusterName, number: u32, identity: &ClusterIdentity) -> Result<()> {
        let name = record_key(cluster, number);
        let body = Bytes::from(sealed::to_json(identity).map_err(Error::encode)?);
        match self.store().put_if_absent(&key(&name)?, body).await? {
            Put::Created | Put::AlreadySame => Ok(()),
        }
    }

    /// Makes known of `cluster` what the repository at `other` knows of it. Fails if something else is known already.
    pub async fn know_the_same(&self, cluster: &ClusterName, other: &str, identities: &[ClusterIdentity]) -> Result<()> {
        let known = self.identities(cluster).await?;
        let common = identities.get(..known.len().min(identities.len())).unwrap_or_default();
        if let Some(reason) = difference(common, &known) {
            return Err(Error::Disagree { one: other.to_owned(), other: self.url(), cluster: cluster.to_string(), reason });
        }
        for (number, identity) in (1..).zip(identities).skip(known.len()) {
            self.add_identity(cluster, number, identity).await?;
        }
        Ok(())
    }
}
