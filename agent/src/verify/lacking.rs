//! What each of several repositories lacks of the others: seen by none of them that looks at itself alone, so not where a repository never had it, and not where
//! it went with everything that tells of it.
//!
//! Two repositories are never listed at the same moment, and others work in them: what one seems to lack is looked for again, and told only once it is still
//! not there, the other one still has it, nothing has let it go meanwhile, and it was not put just now.
//!
//! Packs are compared only by who cannot read which backups need them. One that no backup needs any more may lie in one repository alone, for as long as its store
//! does not let it go: so only one that was put while a backup was taken that is still there is missing elsewhere, and any other one is a note.

use std::time::{Duration, SystemTime};

use walkeep_core::WalFileName;
use walkeep_core::catalog::WalRange;
use walkeep_core::expiry::Expired;
use walkeep_core::layout::{BackupId, ObjectName};
use walkeep_core::verify::{self, Finding, Judge, Kind, Side, Stretch};
use walkeep_store::ListRequest;

use super::elsewhere::Copies;
use super::places::{Everywhere, SeenPlace};
use super::run::Wish;
use crate::repository::{Error, Result};

/// Between looks at what seems to be lacking.
pub(super) const PAUSES: [Duration; 2] = [Duration::from_secs(1), Duration::from_secs(4)];
/// What was put less long ago may be on its way to the others, and nobody has noted yet that they are behind.
const YOUNG: Duration = Duration::from_secs(60);
/// So many packs that one lacks of another are told of.
const PACKS: usize = 1000;

impl Everywhere {
    /// What each lacks, with its number.
    pub(super) async fn lacking(&self, wish: &Wish<'_>) -> Result<Vec<(usize, Finding)>> {
        let mut lacking = self.compared(wish.backup);
        for pause in PAUSES {
            if lacking.is_empty() {
                return Ok(lacking);
            }
            self.wait(wish, pause).await?;
            lacking = self.still(lacking).await?;
        }
        let (mut youngest, mut there) = (None, Vec::new());
        for (number, finding) in lacking {
            let copies = self.copies(number, &finding).await?;
            // Nobody has it any more: it went from the others too.
            if let Some(put) = copies.last_put() {
                youngest = youngest.max(Some(put));
                let finding = self.with_its_backup(number, finding, &copies);
                there.push((number, finding));
            }
        }
        let age = |put: SystemTime| SystemTime::now().duration_since(put).unwrap_or_default();
        let Some(rest) = youngest.and_then(|put| YOUNG.checked_sub(age(put))).filter(|rest| !rest.is_zero()) else { return Ok(there) };
        self.wait(wish, rest).await?;
        self.still(there).await
    }

    pub(super) async fn wait(&self, wish: &Wish<'_>, time: Duration) -> Result<()> {
        tokio::select! {
            () = tokio::time::sleep(time) => Ok(()),
            () = wish.cancel.cancelled() => Err(Error::cancelled("verify", "compare the repositories")),
        }
    }

    /// As they were listed.
    fn compared(&self, backup: Option<&BackupId>) -> Vec<(usize, Finding)> {
        let mut all = Vec::new();
        for own in &self.seen {
            let judge = Judge::new(&own.catalog, own.repository.layout());
            let mut found = verify::Findings::default();
            for other in self.seen.iter().filter(|other| other.number != own.number) {
                found.extend(verify::lacking(&judge, side(own), side(other), &own.holes, backup).into_sorted());
                if backup.is_none() && [own, other].iter().any(|side| side.unread) {
                    let packs = verify::packs_lacking(side(own), side(other)).into_iter().take(PACKS);
                    found.extend(packs.map(|pack| judge.pack_lacking(pack, None)));
                }
            }
            found.retain(|finding| !own.bad.contains(&finding.key));
            all.extend(found.into_sorted().into_iter().map(|finding| (own.number, finding)));
        }
        all
    }

    /// Of a pack the backup that was taken when it was put.
    fn with_its_backup(&self, number: usize, finding: Finding, copies: &Copies) -> Finding {
        let Some(own) = self.at(number) else { return finding };
        let (Kind::Missing, Some(ObjectName::Pack(pack))) = (finding.kind, own.repository.layout().parse(&finding.key)) else {
            return finding;
        };
        let mut put = copies.objects.iter().flat_map(|wanted| &wanted.at).map(|(_, listed)| listed.modified.into());
        let taken = |put| self.seen.iter().find_map(|seen| verify::taken_when(seen.catalog.backups(), put));
        let backup = put.find_map(taken);
        Judge::new(&own.catalog, own.repository.layout()).pack_lacking(pack, backup.map(|backup| &backup.id))
    }

    /// What of it is not there yet, and is not let go now.
    async fn still(&self, lacking: Vec<(usize, Finding)>) -> Result<Vec<(usize, Finding)>> {
        let mut let_go = Vec::new();
        for seen in &self.seen {
            let_go.push(seen.repository.expired().await?);
        }
        let mut still = Vec::new();
        for (number, finding) in lacking {
            let Some(own) = self.at(number) else { continue };
            let lacks = match finding.stretch {
                Some(stretch) => lacks_wal(own, stretch, &let_go).await?,
                None => !is_let_go(own, &finding.key, &let_go) && !is_there(own, &finding.key).await?,
            };
            if lacks {
                still.push((number, finding));
            }
        }
        Ok(still)
    }
}

pub(super) fn side(seen: &SeenPlace) -> Side<'_> {
    Side { catalog: &seen.catalog, listing: &seen.listing, packs: seen.packs.lengths() }
}

async fn is_there(own: &SeenPlace, key: &str) -> Result<bool> {
    let page = own.repository.list_page(&ListRequest { prefix: key.to_owned(), ..ListRequest::default() }).await?;
    Ok(page.objects.iter().any(|listed| listed.key.as_str() == key))
}

/// Whether anything of a stretch is still not there and not let go.
async fn lacks_wal(own: &SeenPlace, stretch: Stretch, let_go: &[Expired]) -> Result<bool> {
    let now = own.repository.wal_within(stretch.timeline, stretch.from, stretch.to).await?;
    let mut rest = vec![WalRange { from: stretch.from, to: stretch.to }];
    for stored in now.stored_ranges(stretch.timeline) {
        let parts = |range: WalRange| {
            [WalRange { from: range.from, to: range.to.min(stored.from) }, WalRange { from: range.from.max(stored.to), to: range.to }]
        };
        rest = rest.into_iter().flat_map(parts).filter(|range| range.from < range.to).collect();
    }
    for expired in let_go {
        rest = rest.into_iter().flat_map(|range| expired.without(stretch.timeline, range)).collect();
    }
    Ok(!rest.is_empty())
}

fn is_let_go(own: &SeenPlace, key: &str, let_go: &[Expired]) -> bool {
    let size = own.repository.identity().segment_size;
    let gone = |expired: &Expired| match own.repository.layout().parse(key) {
        Some(ObjectName::BackupRecord(id) | ObjectName::Hold(id, _)) => expired.has_backup(&id),
        Some(ObjectName::ArtifactRecord(place)) => expired.has_artifact(&place),
        Some(
            ObjectName::Wal(WalFileName::Partial(segment) | WalFileName::BackupHistory { segment, .. })
            | ObjectName::OtherPartial { segment, .. },
        ) => segment.number(size).is_some_and(|number| expired.has_segment(segment.timeline(), number.start(size))),
        _ => false,
    };
    let_go.iter().any(gone)
}
