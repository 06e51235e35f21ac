//! A look at all that is stored of a cluster: everything listed, page by page, and every small record read.
//!
//! For who verifies. Nothing of a page is kept here; what is said of an object that cannot be believed names it.

use std::collections::BTreeSet;

use futures::stream::FuturesUnordered;
use futures::{StreamExt, TryStreamExt, stream};
use walkeep_core::backup::BackupBegun;
use walkeep_core::catalog::{Catalog, GapClosing, GapRecord};
use walkeep_core::expiry::{End, Expiry};
use walkeep_core::layout::{ClusterLayout, GapName, ObjectName};
use walkeep_core::sealed;
use walkeep_core::verify::{Listing, Tally};
use walkeep_core::{TimelineHistory, WalFileName};
use walkeep_store::{ErrorKind, ListRequest, Listed, Page, list_all};

use super::backups::Damaged;
use super::catalog::READS;
use super::packs::Packs;
use super::{ClusterRepository, Error, Result};

/// Pages asked for at the same time.
const PAGES: usize = 8;

/// What is stored, as it was seen at one time.
#[derive(Debug)]
pub struct Seen {
    /// As a catalog.
    pub catalog: Catalog,
    /// As a listing.
    pub listing: Listing,
    /// Counted.
    pub tally: Tally,
    /// The packs.
    pub packs: Packs,
    /// The gaps of which a note says that they were filled.
    pub filled: BTreeSet<GapName>,
    /// The expiries that were taken back.
    pub undone: BTreeSet<u32>,
    /// Records and histories that cannot be believed.
    pub damaged: Vec<Damaged>,
    /// What this host cannot decrypt of the histories.
    pub unreadable: u64,
}

/// What a small record was found to be.
enum Found {
    Gap(GapRecord),
    Filled(GapClosing),
    Undone(u32),
    Whole,
    /// It was listed and is gone.
    Gone,
}

impl Seen {
    /// The keys.
    pub fn layout(&self) -> &ClusterLayout {
        self.listing.layout()
    }
}

impl ClusterRepository {
    /// Looks at everything. `each` is told of every object of Walkeep's.
    pub async fn see(&self, each: &mut (dyn FnMut(&ObjectName, &Listed) + Send)) -> Result<Seen> {
        // An empty listing of a volume that is not mounted must not become "nothing is stored".
        self.repository().prove_reached().await?;
        let (identity, mut catalog) = (self.identity(), self.catalog_builder());
        let mut listing = Listing::new(self.layout().clone(), identity.form, identity.segment_size);
        let (mut packs, mut damaged, mut unreadable) = (Packs::none(identity.form), Vec::new(), 0);
        let mut tally = Tally::default();
        // In the catalog's order: what is taken out or recorded meanwhile is seen whole or not at all.
        match self.expired().await {
            Ok(expired) => catalog.expired(expired),
            // Told of below, where it is read by itself.
            Err(Error::Corrupt { .. }) => {}
            Err(error) => return Err(error),
        }
        match self.backups().await {
            Ok(backups) => {
                backups.records.into_iter().for_each(|record| catalog.backup(record));
                damaged.extend(backups.damaged);
            }
            Err(Error::Corrupt { key, reason }) => damaged.push(Damaged { key, reason }),
            Err(error) => return Err(error),
        }
        self.list_everything(&mut |listed| {
            let Some(name) = listing.object(listed.key.as_str(), listed.size, &mut catalog) else { return };
            if let ObjectName::Pack(id) = name {
                packs.add(id, listed.size);
            }
            tally.add(&name, listed.size, listed.storage_class);
            each(&name, &listed);
        })
        .await?;
        let read =
            |timeline| async move { self.proven(&ObjectName::Wal(WalFileName::History(timeline)), self.get_history(timeline).await) };
        let histories: Vec<Proven<Option<TimelineHistory>>> =
            stream::iter(listing.histories.clone()).map(read).buffered(READS).try_collect().await?;
        for history in histories {
            match history {
                Proven::Read(history) => history.into_iter().for_each(|history| catalog.history(history)),
                Proven::Damaged(found) => damaged.push(found),
                Proven::Unreadable => unreadable += 1,
            }
        }
        let read = |name: &ObjectName| {
            let name = name.clone();
            async move { self.proven(&name, self.check_record(&name).await) }
        };
        let (mut filled, mut undone) = (BTreeSet::new(), BTreeSet::new());
        let mut records = stream::iter(&listing.records).map(read).buffered(READS);
        while let Some(record) = records.try_next().await? {
            match record {
                Proven::Read(Found::Gap(gap)) => catalog.gap(gap),
                Proven::Read(Found::Filled(closing)) => {
                    filled.insert(closing.name);
                    catalog.gap_closing(closing);
                }
                Proven::Read(Found::Undone(number)) => drop(undone.insert(number)),
                Proven::Read(Found::Whole | Found::Gone) | Proven::Unreadable => {}
                Proven::Damaged(found) => damaged.push(found),
            }
        }
        drop(records);
        damaged.sort_by(|a, b| a.key.cmp(&b.key));
        damaged.dedup_by(|a, b| a.key == b.key);
        Ok(Seen { catalog: catalog.build(), listing, tally, packs, filled, undone, damaged, unreadable })
    }

    /// A page of a listing, of what begins with a prefix of the layout's.
    pub async fn list_page(&self, request: &ListRequest) -> Result<Page> {
        Ok(self.store().list(request).await?)
    }

    /// Lists all of the cluster, several folders at a time.
    async fn list_everything(&self, each: &mut (dyn FnMut(Listed) + Send)) -> Result<()> {
        let by_folder =
            async |prefix: String| list_all(self.store().as_ref(), ListRequest { prefix, by_folder: true, ..Default::default() }).await;
        let mut folders = Vec::new();
        let root = by_folder(self.layout().root().to_owned()).await?;
        root.objects.into_iter().for_each(&mut *each);
        for folder in root.folders {
            // The two that are large are listed side by side.
            if folder != self.layout().wal_prefix() && folder != self.layout().packs_prefix() {
                folders.push(folder);
                continue;
            }
            let Page { objects, folders: below, .. } = by_folder(folder.clone()).await?;
            objects.into_iter().for_each(&mut *each);
            // Of packs' 256 folders those with one first letter go together.
            let mut prefixes: Vec<String> = match folder == self.layout().packs_prefix() {
                true => below.into_iter().map(|below| below[..folder.len() + 1].to_owned()).collect(),
                false => below,
            };
            prefixes.dedup();
            folders.extend(prefixes);
        }
        let ask = |prefix: String, start_after: Option<String>| async move {
            let page = self.store().list(&ListRequest { prefix: prefix.clone(), start_after, ..ListRequest::default() }).await?;
            Ok::<_, Error>((prefix, page))
        };
        let (mut folders, mut asked) = (folders.into_iter(), FuturesUnordered::new());
        asked.extend(folders.by_ref().take(PAGES).map(|prefix| ask(prefix, None)));
        while let Some((prefix, page)) = asked.try_next().await? {
            // What lies beside packs' folders was told by the listing of these.
            let begins = prefix.rsplit_once('/').map_or(0, |(folder, _)| folder.len() + 1);
            page.objects
                .into_iter()
                .filter(|listed| prefix.ends_with('/') || listed.key.as_str()[begins..].contains('/'))
                .for_each(&mut *each);
            match page.next {
                Some(next) => asked.push(ask(prefix, Some(next))),
                None => asked.extend(folders.next().map(|prefix| ask(prefix, None))),
            }
        }
        Ok(())
    }

    /// Reads a small record and believes nothing of it unchecked.
    async fn check_record(&self, name: &ObjectName) -> Result<Found> {
        let gone = |there: bool| if there { Found::Whole } else { Found::Gone };
        let checked = match name {
            ObjectName::Gap(gap) => self.gap(*gap).await.map(Found::Gap),
            ObjectName::GapClosing(gap) => self.closing(*gap).await.map(Found::Filled),
            ObjectName::Lease(lease) => self.lease(*lease).await.map(|lease| gone(lease.is_some())),
            ObjectName::Hold(id, number) => self.hold(id, *number).await.map(|hold| gone(hold.is_some())),
            ObjectName::ExpiryEnd(number) => self.end_of(*number).await.map(|end| match end {
                Some(end) if end.end == End::Undone => Found::Undone(*number),
                end => gone(end.is_some()),
            }),
            ObjectName::Expiry(number) => {
                let parse = |body: &[u8]| Expiry::parse(*number, body).map_err(|error| Error::corrupt(self.layout().key(name), error));
                self.parsed(name, parse).await.map(|record| gone(record.is_some()))
            }
            ObjectName::BackupBegun(_) => {
                let parse =
                    |body: &[u8]| sealed::from_json::<BackupBegun>(body).map_err(|error| Error::corrupt(self.layout().key(name), error));
                self.parsed(name, parse).await.map(|begun| gone(begun.is_some()))
            }
            ObjectName::DrillRecord(id) => self.drill(id).await.map(|record| gone(record.is_some())),
            _ => Ok(Found::Whole),
        };
        match checked {
            Err(Error::Store(error)) if error.kind() == ErrorKind::NotFound => Ok(Found::Gone),
            checked => checked,
        }
    }

    /// Whether a small record says what its name does.
    pub(super) async fn check_whole(&self, name: &ObjectName) -> Result<()> {
        match name {
            ObjectName::ArtifactRecord(place) => self.artifact(place).await.map(drop),
            name => self.check_record(name).await.map(drop),
        }
    }

    fn proven<T>(&self, name: &ObjectName, read: Result<T>) -> Result<Proven<T>> {
        let damaged = |reason| Ok(Proven::Damaged(Damaged { key: self.layout().key(name), reason }));
        match read {
            Ok(value) => Ok(Proven::Read(value)),
            Err(Error::Corrupt { reason, .. }) => damaged(reason),
            // A store that keeps sums of its own.
            Err(Error::Store(error)) if error.kind() == ErrorKind::Corrupt => damaged(error.to_string()),
            Err(Error::CannotDecrypt { .. }) => Ok(Proven::Unreadable),
            Err(error) => Err(error),
        }
    }
}

/// What came of a read.
enum Proven<T> {
    Read(T),
    Damaged(Damaged),
    Unreadable,
}
