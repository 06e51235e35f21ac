//! Where else something is that is damaged or missing in one repository, and whether it is whole there.

use std::collections::{BTreeSet, HashMap, HashSet};
use std::time::{Duration, SystemTime};

use bytes::Bytes;
use futures::{StreamExt, stream};
use walkeep_core::artifact::ArtifactPlace;
use walkeep_core::backup::BackupRecord;
use walkeep_core::catalog::{Catalog, WalRange};
use walkeep_core::drill::{DrillId, Form};
use walkeep_core::layout::{BackupId, ObjectName, PackId};
use walkeep_core::verify::{Finding, Kind, Stretch};
use walkeep_core::{Lsn, SegmentNumber, TimelineId, WalFileName};
use walkeep_store::{ListRequest, Listed};

use super::deep::{Known, packs_named_by};
use super::places::{Everywhere, SeenPlace};
use crate::repository::trail::{self, Lies};
use crate::repository::{ClusterRepository, Error, Result};

/// Of a longer stretch nobody looks where its segments are.
const LONGEST: u64 = 100_000;
/// So many objects are read by a verification to see whether they are whole elsewhere; behind that the other repository's own verification is believed.
const PROVEN: usize = 256;
/// Objects read at a time.
const PARALLEL: usize = 4;
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
    /// Whether nothing of it is known to be nowhere.
    pub complete: bool,
    /// Whether there may be more of it, as this host cannot decrypt what names that.
    pub blind: bool,
}

impl Copies {
    fn add(&mut self, name: ObjectName, at: Vec<(usize, Listed)>) {
        match at.is_empty() {
            true => self.complete = false,
            false => self.objects.push(Wanted { name, at }),
        }
    }

    /// Whether that is known to be all of it.
    pub fn are_all(&self) -> bool {
        self.complete && !self.blind
    }

    /// Whether all of them were put elsewhere only when the repository was behind.
    pub fn were_put_behind(&self, since: SystemTime) -> bool {
        let is_new = |wanted: &Wanted| wanted.at.iter().any(|(_, listed)| listed.modified + LATE >= since);
        self.are_all() && !self.objects.is_empty() && self.objects.iter().all(is_new)
    }

    /// When the last of them was put.
    pub fn last_put(&self) -> Option<SystemTime> {
        self.objects.iter().flat_map(|wanted| &wanted.at).map(|(_, listed)| listed.modified).max()
    }
}

impl Wanted {
    fn key(&self) -> Option<String> {
        self.at.first().map(|(_, listed)| listed.key.to_string())
    }
}

/// Who has what of several objects, by key.
#[derive(Debug, Clone, Default)]
pub struct Having {
    who: Vec<(String, BTreeSet<usize>)>,
    /// Whether nothing of it is only listed there, and cannot be proven by this host.
    pub proven: bool,
}

impl Having {
    /// Who has the object with this key, and of whom the others have to come that none of these has; of a stretch without such an object all that have something.
    pub fn of(self, key: &str) -> (Vec<usize>, Vec<usize>) {
        let all = || self.who.iter().flat_map(|(_, numbers)| numbers.iter().copied()).collect::<BTreeSet<usize>>();
        let Some((_, having)) = self.who.iter().find(|(of, _)| of == key) else { return (all().into_iter().collect(), Vec::new()) };
        let others = self.who.iter().filter(|(_, numbers)| numbers.is_disjoint(having));
        let besides: BTreeSet<usize> = others.flat_map(|(_, numbers)| numbers.iter().copied()).collect();
        (having.iter().copied().collect(), besides.into_iter().collect())
    }
}

impl Everywhere {
    /// What the others have of that which is wrong in the repository of this number.
    pub async fn copies(&self, number: usize, finding: &Finding) -> Result<Copies> {
        let Some(own) = self.at(number) else { return Ok(Copies::default()) };
        let others: Vec<&SeenPlace> = self.seen.iter().filter(|seen| seen.number != number).collect();
        if let Some(stretch) = finding.stretch {
            return of_wal(&own.catalog, &others, stretch).await;
        }
        let Some(name) = own.repository.layout().parse(&finding.key) else { return Ok(Copies::default()) };
        match &name {
            ObjectName::BackupRecord(id) if finding.kind == Kind::Missing => return self.of_backup(own, &others, id).await,
            ObjectName::ArtifactRecord(place) if finding.kind == Kind::Missing => return of_artifact(own, &others, place).await,
            ObjectName::DrillRecord(id) if finding.kind == Kind::Missing => return of_drill(own, &others, id).await,
            _ => {}
        }
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

    /// The repositories that list all of it, where nothing is known to be wrong with it; none if something of it is nowhere.
    pub fn listed_by(&self, copies: &Copies) -> Having {
        if !copies.complete {
            return Having::default();
        }
        let one = |wanted: &Wanted| Some((wanted.key()?, wanted.at.iter().map(|(number, _)| *number).collect()));
        let proven = !copies.blind && copies.objects.iter().all(|wanted| self.can_prove(&wanted.name));
        Having { who: copies.objects.iter().filter_map(one).collect(), proven }
    }

    /// Whether this host can tell of such an object whether it is whole.
    pub fn can_prove(&self, name: &ObjectName) -> bool {
        self.seen.iter().all(|seen| seen.repository.can_prove(name))
    }

    /// The repositories in which all of it is whole, as it is read there, and may take the place of what the one of this number has, or at least listed, where this
    /// host cannot tell; none if something of it is nowhere.
    pub async fn whole_in(&self, target: usize, copies: &Copies, budget: &mut Budget) -> Having {
        if !copies.complete {
            return Having::default();
        }
        let read = copies.objects.len().min(budget.0);
        budget.0 -= read;
        let (proven, listed) = copies.objects.split_at(read);
        let reads: Vec<_> = proven.iter().map(|wanted| self.first_whole(target, wanted)).collect();
        let found: Vec<Option<(usize, bool)>> = stream::iter(reads).buffered(PARALLEL).collect().await;
        let believed = listed.iter().map(|wanted| wanted.at.first().map(|(number, _)| (*number, self.can_prove(&wanted.name))));
        let all: Vec<(usize, bool)> = found.into_iter().chain(believed).collect::<Option<_>>().unwrap_or_default();
        let proven = !copies.blind && all.iter().all(|(_, proven)| *proven);
        let having = |(wanted, (number, _)): (&Wanted, (usize, bool))| Some((wanted.key()?, BTreeSet::from([number])));
        Having { who: copies.objects.iter().zip(all).filter_map(having).collect(), proven }
    }

    /// The first in which it is whole, else the first in which this host cannot tell; and which of the two it is.
    async fn first_whole(&self, target: usize, wanted: &Wanted) -> Option<(usize, bool)> {
        let mut listed = None;
        for (number, _) in &wanted.at {
            let Some(seen) = self.at(*number) else { continue };
            match seen.repository.whole_object(&wanted.name).await {
                Err(Error::CannotDecrypt { .. }) => listed = listed.or(Some((*number, false))),
                Ok(Some(good)) => match self.doubt_of_record(&wanted.name, seen, target, &good).await {
                    Ok(None) => return Some((*number, true)),
                    Ok(Some(doubt)) => tracing::debug!(object = ?wanted.name, repository = number, doubt, "not known to be the good one"),
                    Err(error) => tracing::debug!(object = ?wanted.name, repository = number, %error, "not known to be the good one"),
                },
                Ok(None) => {}
                // Also where it could not be asked: what is not known to be whole is not called so.
                Err(error) => tracing::debug!(object = ?wanted.name, repository = number, %error, "not known to be whole there"),
            }
        }
        listed
    }

    /// Why a record of the trail must not take the place of what the repository of this number has.
    async fn doubt_of_record(&self, name: &ObjectName, source: &SeenPlace, target: usize, good: &Bytes) -> Result<Option<String>> {
        let (ObjectName::Audit(number), Some(own)) = (name, self.at(target)) else { return Ok(None) };
        let lying = match own.repository.stored_object(name).await {
            Err(error) if error.is_damage() => Err(()),
            read => Ok(read?),
        };
        let lies = match &lying {
            Ok(Some(bytes)) => Lies::Bytes(bytes),
            Ok(None) => Lies::Nothing,
            Err(()) => Lies::Unreadable,
        };
        trail::doubt(&source.repository, &own.repository, &self.beside([source.number, target]), *number, good, lies).await
    }

    /// All but these, with their numbers.
    pub(super) fn beside(&self, but: [usize; 2]) -> Vec<(usize, ClusterRepository)> {
        let others = self.seen.iter().filter(|seen| !but.contains(&seen.number));
        others.map(|seen| (seen.number, seen.repository.as_ref().clone())).collect()
    }
}

impl Everywhere {
    /// A backup whose record is missing: all that another repository has of it and this one does not, or damaged, the record last. It is complete only if
    /// everything that its manifest names is there or can be brought, from whichever repository has that.
    async fn of_backup(&self, own: &SeenPlace, others: &[&SeenPlace], id: &BackupId) -> Result<Copies> {
        let record = ObjectName::BackupRecord(id.clone());
        let of_record = listed_in(others, &record).await?;
        let having = others.iter().find(|other| of_record.iter().any(|(number, _)| *number == other.number));
        let Some((other, backup)) = having.and_then(|other| Some((other, other.catalog.backup(id)?))) else { return Ok(Copies::default()) };
        let is_bad = |name: &ObjectName| own.bad.contains(&own.repository.layout().key(name));
        let folder = own.listing.backups.get(id).cloned().unwrap_or_default();
        let begun = others.iter().any(|other| other.listing.backups.get(id).is_some_and(|folder| folder.begun)) && !folder.begun;
        let pieces = (1..=backup.manifest_pieces.max(1)).map(|piece| (piece, ObjectName::BackupManifest(id.clone(), piece)));
        let pieces = pieces.filter(|(piece, name)| !folder.pieces.contains(piece) || is_bad(name)).map(|(_, name)| name);
        let lacks = pieces.chain(begun.then(|| ObjectName::BackupBegun(id.clone())));
        let (packs, known) = self.packs_of(other, backup).await?;
        let mut copies = Copies { objects: Vec::new(), complete: known != Known::Part, blind: known == Known::Nothing };
        for name in lacks {
            let at = listed_in(others, &name).await?;
            copies.add(name, at);
        }
        let put = of_record.first().map_or(SystemTime::UNIX_EPOCH, |(_, listed)| listed.modified);
        let lacks = |pack: &PackId| own.packs.bytes_of(pack).is_none() || is_bad(&ObjectName::Pack(*pack));
        for pack in packs.into_iter().filter(lacks) {
            let name = ObjectName::Pack(pack);
            let at = others.iter().filter_map(|other| {
                let key = other.repository.layout().key(&name);
                let bytes = other.packs.bytes_of(&pack).filter(|_| !other.bad.contains(&key))?;
                // It was put before the record, and may be older.
                Some((other.number, Listed { key: key.parse().ok()?, size: bytes, modified: put, class: None, storage_class: None }))
            });
            copies.add(name.clone(), at.collect());
        }
        copies.add(record, of_record);
        Ok(copies)
    }

    /// The packs that a backup's manifest names, and how much of it could be read: where one repository does not have it whole, its pieces may lie in several.
    async fn packs_of(&self, other: &SeenPlace, backup: &BackupRecord) -> Result<(HashSet<PackId>, Known)> {
        let (packs, known) = packs_named_by(&other.repository, backup).await?;
        let Some(all) = self.all.as_ref().filter(|_| known != Known::All && other.repository.can_read()) else { return Ok((packs, known)) };
        match packs_named_by(all, backup).await {
            Ok(read) => Ok(read),
            Err(error) => {
                tracing::debug!(backup = %backup.id, %error, "its manifest cannot be read from all repositories together");
                Ok((packs, known))
            }
        }
    }
}

/// An artifact whose record is missing, in the same way.
async fn of_artifact(own: &SeenPlace, others: &[&SeenPlace], place: &ArtifactPlace) -> Result<Copies> {
    let record = ObjectName::ArtifactRecord(place.clone());
    let of_record = listed_in(others, &record).await?;
    let having = others.iter().find(|other| of_record.iter().any(|(number, _)| *number == other.number));
    let Some(other) = having else { return Ok(Copies::default()) };
    let artifact = match other.repository.artifact(place).await {
        Ok(Some(artifact)) => artifact,
        Ok(None) | Err(Error::Corrupt { .. }) => return Ok(Copies::default()),
        Err(error) => return Err(error),
    };
    let there = own.listing.artifacts.get(place).cloned().unwrap_or_default();
    let pieces = (1..=artifact.pieces).filter(|piece| !there.pieces.contains(piece));
    let pieces = pieces.map(|piece| ObjectName::ArtifactPiece(place.clone(), piece));
    let begun = ObjectName::ArtifactBegun(place.clone());
    let of_begun = listed_in(others, &begun).await?;
    let summary = (!there.summary).then(|| ObjectName::ArtifactSummary(place.clone()));
    let mut copies = Copies { complete: true, ..Copies::default() };
    if !of_begun.is_empty() && listed_in(&[own], &begun).await?.is_empty() {
        copies.add(begun, of_begun);
    }
    for name in pieces.chain(summary) {
        let at = listed_in(others, &name).await?;
        copies.add(name, at);
    }
    copies.add(record, of_record);
    Ok(copies)
}

/// A drill whose record is missing, with its report.
async fn of_drill(own: &SeenPlace, others: &[&SeenPlace], id: &DrillId) -> Result<Copies> {
    let there = own.listing.drills.get(id).cloned().unwrap_or_default();
    let record = ObjectName::DrillRecord(id.clone());
    let of_record = listed_in(others, &record).await?;
    let mut copies = Copies { complete: true, ..Copies::default() };
    for form in Form::ALL.into_iter().filter(|form| !there.forms.contains(form)) {
        let name = ObjectName::DrillReport(id.clone(), form);
        let at = listed_in(others, &name).await?;
        copies.add(name, at);
    }
    copies.add(record, of_record);
    Ok(copies)
}

/// Those of them that list it and have nothing to say against it.
pub(super) async fn listed_in(others: &[&SeenPlace], name: &ObjectName) -> Result<Vec<(usize, Listed)>> {
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

/// Segment by segment: whole where one of the others has it whole, else its parts. One listing of each other repository for each 4 GiB.
async fn of_wal(own: &Catalog, others: &[&SeenPlace], stretch: Stretch) -> Result<Copies> {
    let size = own.segment_size();
    let (first, last) = (size.segment_of(stretch.from).get(), size.segment_of(Lsn::new(stretch.to.get().saturating_sub(1))).get());
    if last < first || last - first >= LONGEST {
        return Ok(Copies::default());
    }
    let lacks = |number: &SegmentNumber| {
        let part = part_of(stretch, number.start(size), number.end(size));
        part.from < part.to && !covers(own, stretch, part)
    };
    let numbers: Vec<SegmentNumber> = (first..=last).map(SegmentNumber::new).filter(lacks).collect();
    let mut having = Vec::new();
    for other in others {
        having.push((*other, files_of(other, stretch.timeline, &numbers).await?));
    }
    let of_one = |number: &SegmentNumber| {
        let whole = ObjectName::Wal(WalFileName::Segment(number.name(stretch.timeline, size)));
        let at: Vec<_> = having.iter().filter_map(|(other, files)| Some((other.number, files.get(number)?.whole.clone()?))).collect();
        if !at.is_empty() {
            return Some(vec![Wanted { name: whole, at }]);
        }
        let part = part_of(stretch, number.start(size), number.end(size));
        let (other, files) = having.iter().find(|(other, files)| {
            covers(&other.catalog, stretch, part) && files.get(number).is_some_and(|files| !files.parts.is_empty())
        })?;
        let parts = files.get(number)?.parts.iter();
        Some(parts.map(|(name, listed)| Wanted { name: name.clone(), at: vec![(other.number, listed.clone())] }).collect())
    };
    let found: Vec<Option<Vec<Wanted>>> = numbers.iter().map(of_one).collect();
    let complete = !found.is_empty() && found.iter().all(Option::is_some);
    Ok(Copies { objects: found.into_iter().flatten().flatten().collect(), complete, blind: false })
}

/// What is listed of a segment.
#[derive(Default)]
struct Files {
    whole: Option<Listed>,
    parts: Vec<(ObjectName, Listed)>,
}

/// What another repository lists of these segments and has nothing to say against.
async fn files_of(other: &SeenPlace, timeline: TimelineId, numbers: &[SegmentNumber]) -> Result<HashMap<SegmentNumber, Files>> {
    let (layout, size) = (other.repository.layout(), other.repository.identity().segment_size);
    let mut files: HashMap<SegmentNumber, Files> = numbers.iter().map(|number| (*number, Files::default())).collect();
    let logs: BTreeSet<u32> = numbers.iter().map(|number| number.name(timeline, size).log()).collect();
    for log in logs {
        let mut request = ListRequest { prefix: layout.log_prefix(timeline, log), ..ListRequest::default() };
        loop {
            let page = other.repository.list_page(&request).await?;
            for listed in page.objects.into_iter().filter(|listed| !other.bad.contains(listed.key.as_str())) {
                let name = layout.parse(listed.key.as_str());
                match &name {
                    Some(ObjectName::Wal(WalFileName::Segment(segment))) => {
                        let known = segment.number(size).and_then(|number| files.get_mut(&number));
                        known.into_iter().for_each(|files| files.whole = Some(listed.clone()));
                    }
                    Some(ObjectName::Part(part)) => {
                        let known = part.segment.number(size).and_then(|number| files.get_mut(&number));
                        known.into_iter().for_each(|files| files.parts.extend(name.clone().map(|name| (name, listed.clone()))));
                    }
                    _ => {}
                }
            }
            match page.next {
                Some(next) => request.start_after = Some(next),
                None => break,
            }
        }
    }
    Ok(files)
}

/// What of a stretch lies in a segment.
fn part_of(stretch: Stretch, start: Lsn, end: Lsn) -> WalRange {
    WalRange { from: stretch.from.max(start), to: stretch.to.min(end) }
}

fn covers(catalog: &Catalog, stretch: Stretch, part: WalRange) -> bool {
    catalog.stored_ranges(stretch.timeline).iter().any(|stored| stored.from <= part.from && part.to <= stored.to)
}
