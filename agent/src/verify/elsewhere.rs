//! Where else something is that is damaged or missing in one repository, and whether it is whole there.

use std::collections::{BTreeSet, HashSet};
use std::time::{Duration, SystemTime};

use futures::{StreamExt, TryStreamExt, stream};
use walkeep_core::catalog::{Catalog, WalRange};
use walkeep_core::layout::ObjectName;
use walkeep_core::verify::{Finding, Stretch};
use walkeep_core::{Lsn, SegmentNumber, WalFileName};
use walkeep_store::{ListRequest, Listed};

use super::places::{Everywhere, SeenPlace};
use crate::repository::{Error, Result};

/// Of a longer stretch nobody looks where its segments are.
const LONGEST: u64 = 100_000;
/// So many objects are read by a verification to see whether they are whole elsewhere; behind that the other repository's own verification is believed.
const PROVEN: usize = 256;
/// Requests at a time.
const PARALLEL: usize = 8;
/// A repository is known to be behind a little later than it is.
const LATE: Duration = Duration::from_secs(60);

/// How many objects may still be read.
pub struct Budget(usize);

impl Default for Budget {
    fn default() -> Self {
        Self(PROVEN)
    }
}

/// An object, and who else has it.
#[derive(Debug, Clone)]
pub struct Wanted {
    /// Its name.
    pub name: ObjectName,
    /// The numbers of the repositories that list it and in which nothing is known to be wrong with it, in their order.
    pub at: Vec<(usize, Listed)>,
}

/// The objects that stand for what is wrong in one repository.
#[derive(Debug, Clone, Default)]
pub struct Copies {
    /// Those that others have.
    pub objects: Vec<Wanted>,
    /// Whether that is all of it.
    pub complete: bool,
}

impl Copies {
    /// Whether all of them were put elsewhere only when the repository was behind.
    pub fn were_put_behind(&self, since: SystemTime) -> bool {
        let is_new = |wanted: &Wanted| wanted.at.iter().any(|(_, listed)| listed.modified + LATE >= since);
        self.complete && !self.objects.is_empty() && self.objects.iter().all(is_new)
    }
}

impl Everywhere {
    /// What the others have of that which is wrong in the repository of this number.
    pub async fn copies(&self, number: usize, finding: &Finding) -> Result<Copies> {
        let Some(own) = self.seen.iter().find(|seen| seen.number == number) else { return Ok(Copies::default()) };
        let others: Vec<&SeenPlace> = self.seen.iter().filter(|seen| seen.number != number).collect();
        if let Some(stretch) = finding.stretch {
            return of_wal(&own.catalog, &others, stretch).await;
        }
        let Some(name) = own.repository.layout().parse(&finding.key) else { return Ok(Copies::default()) };
        // Of two records of the trail that do not fit together either may be the changed one.
        let mut names = vec![name.clone()];
        if let ObjectName::Audit(record) = name {
            names.extend(record.checked_add(1).map(ObjectName::Audit));
        }
        let mut copies = Copies::default();
        for (index, name) in names.into_iter().enumerate() {
            let at = listed_in(&others, &name).await?;
            copies.complete |= index == 0 && !at.is_empty();
            if !at.is_empty() {
                copies.objects.push(Wanted { name, at });
            }
        }
        Ok(copies)
    }

    /// The repositories in which all of it is whole, as it is read there; none if something of it is nowhere.
    pub async fn whole_in(&self, copies: &Copies, budget: &mut Budget) -> Vec<usize> {
        if !copies.complete {
            return Vec::new();
        }
        let read = copies.objects.len().min(budget.0);
        budget.0 -= read;
        let (proven, listed) = copies.objects.split_at(read);
        let reads: Vec<_> = proven.iter().map(|wanted| self.first_whole(wanted)).collect();
        let found: Vec<Option<usize>> = stream::iter(reads).buffered(PARALLEL / 2).collect().await;
        let believed = listed.iter().map(|wanted| wanted.at.first().map(|(number, _)| *number));
        let all: Option<BTreeSet<usize>> = found.into_iter().chain(believed).collect();
        all.unwrap_or_default().into_iter().collect()
    }

    async fn first_whole(&self, wanted: &Wanted) -> Option<usize> {
        for (number, _) in &wanted.at {
            let Some(seen) = self.seen.iter().find(|seen| seen.number == *number) else { continue };
            match seen.repository.whole_object(&wanted.name).await {
                Ok(Some(_)) => return Some(*number),
                Ok(None) => {}
                // Also where it could not be asked: what is not known to be whole is not called so.
                Err(error) => tracing::debug!(object = ?wanted.name, repository = number, %error, "not known to be whole there"),
            }
        }
        None
    }
}

/// Those of them that list it and have nothing to say against it.
async fn listed_in(others: &[&SeenPlace], name: &ObjectName) -> Result<Vec<(usize, Listed)>> {
    let mut at = Vec::new();
    for other in others {
        let key = other.repository.layout().key(name);
        if other.bad.contains(&key) {
            continue;
        }
        let page = other.repository.list_page(&ListRequest { prefix: key.clone(), ..ListRequest::default() }).await?;
        at.extend(page.objects.into_iter().find(|listed| listed.key.as_str() == key).map(|listed| (other.number, listed)));
    }
    Ok(at)
}

/// Segment by segment: whole where one of the others has it whole, else its parts.
async fn of_wal(own: &Catalog, others: &[&SeenPlace], stretch: Stretch) -> Result<Copies> {
    let size = own.segment_size();
    let (first, last) = (size.segment_of(stretch.from).get(), size.segment_of(Lsn::new(stretch.to.get().saturating_sub(1))).get());
    if last < first || last - first >= LONGEST {
        return Ok(Copies::default());
    }
    let whole: Vec<HashSet<SegmentNumber>> = others.iter().map(|other| other.catalog.segments(stretch.timeline).collect()).collect();
    let lacks = |number: &SegmentNumber| {
        let part = part_of(stretch, number.start(size), number.end(size));
        part.from < part.to && !covers(own, stretch, part)
    };
    let numbers = (first..=last).map(SegmentNumber::new).filter(lacks);
    let of_one = |number: SegmentNumber| {
        let whole = &whole;
        async move {
            let segment = number.name(stretch.timeline, size);
            let name = ObjectName::Wal(WalFileName::Segment(segment));
            let having: Vec<&SeenPlace> =
                others.iter().zip(whole).filter(|(_, whole)| whole.contains(&number)).map(|(other, _)| *other).collect();
            let at = listed_in(&having, &name).await?;
            if !at.is_empty() {
                return Ok(Some(vec![Wanted { name, at }]));
            }
            let part = part_of(stretch, number.start(size), number.end(size));
            for other in others.iter().filter(|other| covers(&other.catalog, stretch, part)) {
                let prefix = other.repository.layout().parts_prefix(segment);
                let page = other.repository.list_page(&ListRequest { prefix, ..ListRequest::default() }).await?;
                let parts: Vec<Wanted> = page
                    .objects
                    .into_iter()
                    .filter_map(|listed| {
                        let name = other.repository.layout().parse(listed.key.as_str())?;
                        Some(Wanted { name, at: vec![(other.number, listed)] })
                    })
                    .collect();
                if !parts.is_empty() {
                    return Ok(Some(parts));
                }
            }
            Ok::<_, Error>(None)
        }
    };
    let found: Vec<Option<Vec<Wanted>>> = stream::iter(numbers.map(of_one).collect::<Vec<_>>()).buffered(PARALLEL).try_collect().await?;
    let complete = !found.is_empty() && found.iter().all(Option::is_some);
    Ok(Copies { objects: found.into_iter().flatten().flatten().collect(), complete })
}

/// What of a stretch lies in a segment.
fn part_of(stretch: Stretch, start: Lsn, end: Lsn) -> WalRange {
    WalRange { from: stretch.from.max(start), to: stretch.to.min(end) }
}

fn covers(catalog: &Catalog, stretch: Stretch, part: WalRange) -> bool {
    catalog.stored_ranges(stretch.timeline).iter().any(|stored| stored.from <= part.from && part.to <= stored.to)
}
