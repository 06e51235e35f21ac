//! Writer leases: objects that say whose turn it is to write a timeline. When a lease may be taken, `walkeep_core::lease` decides.

use bytes::Bytes;
use walkeep_core::TimelineId;
use walkeep_core::layout::ObjectName;
use walkeep_core::lease::{LeaseName, LeaseRecord};
use walkeep_core::sealed;
use walkeep_store::{ErrorKind, ListRequest, Put, list_all};

use super::{ClusterRepository, Error, Result};

impl ClusterRepository {
    /// The lease of `timeline` that is in force: the one with the highest epoch.
    pub async fn newest_lease(&self, timeline: TimelineId) -> Result<Option<LeaseRecord>> {
        match self.list_leases(self.layout().leases_prefix(timeline)).await?.last() {
            Some(newest) => self.listed_lease(*newest).await.map(Some),
            None => Ok(None),
        }
    }

    /// The leases in force, one a timeline, in the timelines' order.
    pub async fn newest_leases(&self) -> Result<Vec<LeaseRecord>> {
        let names = self.list_leases(self.layout().every_lease_prefix()).await?;
        let mut newest = Vec::new();
        for of_timeline in names.chunk_by(|one, next| one.timeline == next.timeline) {
            if let Some(name) = of_timeline.last() {
                newest.push(self.listed_lease(*name).await?);
            }
        }
        Ok(newest)
    }

    async fn list_leases(&self, prefix: String) -> Result<Vec<LeaseName>> {
        let page = list_all(self.store().as_ref(), ListRequest { prefix, ..ListRequest::default() }).await?;
        let names = page.objects.iter().filter_map(|listed| match self.layout().parse(listed.key.as_str()) {
            Some(ObjectName::Lease(lease)) => Some(lease),
            _ => None,
        });
        let mut names: Vec<LeaseName> = names.collect();
        names.sort_unstable();
        Ok(names)
    }

    async fn listed_lease(&self, name: LeaseName) -> Result<LeaseRecord> {
        let gone = || Error::corrupt(self.layout().key(&ObjectName::Lease(name)), "it was listed a moment ago and is gone");
        self.lease(name).await?.ok_or_else(gone)
    }

    /// A lease; `None` if there is none of that name.
    pub async fn lease(&self, name: LeaseName) -> Result<Option<LeaseRecord>> {
        let object = ObjectName::Lease(name);
        let corrupt = |reason: &dyn std::fmt::Display| Error::corrupt(self.layout().key(&object), reason);
        let parse = |body: &[u8]| {
            let record: LeaseRecord = sealed::from_json(body).map_err(|error| corrupt(&error))?;
            if record.name == name { Ok(record) } else { Err(corrupt(&"it is the lease of another name")) }
        };
        self.parsed(&object, parse).await
    }

    /// Takes a lease; false if somebody else has taken it.
    pub async fn put_lease(&self, lease: &LeaseRecord) -> Result<bool> {
        let body = Bytes::from(sealed::to_json(lease).map_err(Error::encode)?);
        match self.store().put_if_absent(&self.key(&ObjectName::Lease(lease.name))?, body).await {
            // The same bytes: our own put, whose answer was lost.
            Ok(Put::Created | Put::AlreadySame) => Ok(true),
            Err(error) if error.kind() == ErrorKind::AlreadyExists => Ok(false),
            Err(error) => Err(error.into()),
        }
    }
}
