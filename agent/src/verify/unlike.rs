//! Objects that do not have the same size in all repositories: one of them is damaged. Which one, reading tells whoever can open them; to who cannot, nothing does.

use std::collections::BTreeMap;

use walkeep_core::blake3::Blake3Sum;
use walkeep_core::layout::ObjectName;
use walkeep_core::verify::{self, Finding, Judge, Unlike};

use super::Found;
use super::elsewhere::listed_in;
use super::lacking::{PAUSES, side};
use super::places::{Everywhere, SeenPlace};
use super::repair::PATIENCE;
use super::run::Wish;
use crate::repository::prove::Proof;
use crate::repository::{ClusterRepository, Error, Result};
use crate::retry::{Backoff, retry};

/// So many of them are looked at; the next look finds more.
const MOST: usize = 256;

/// What has another size elsewhere.
#[derive(Debug, Default)]
pub(super) struct Sizes {
    /// What was read and is damaged, or is whole and holds something else, with the repository's number.
    pub wrong: Vec<(usize, Finding)>,
    /// What nobody here can tell of.
    pub unproven: Vec<Found>,
}

/// What a read of an object tells.
enum What {
    Whole(Option<Blake3Sum>),
    Damaged(String),
    Unknown,
}

impl Everywhere {
    /// What does not have the same size everywhere.
    pub(super) async fn sizes(&self, wish: &Wish<'_>) -> Result<Sizes> {
        let mut found = Sizes::default();
        let mut unlike = {
            let sides: Vec<_> = self.seen.iter().map(|seen| (seen.number, side(seen))).collect();
            verify::unlike(&sides, wish.backup)
        };
        // Nothing of it is on its way, as what is stored does not grow; what was in doubt may be replaced meanwhile. What is known to be damaged is told.
        for pause in PAUSES {
            if unlike.is_empty() {
                return Ok(found);
            }
            unlike.truncate(MOST);
            self.wait(wish, pause).await?;
            unlike = self.still_unlike(unlike).await?;
        }
        for one in unlike {
            self.tell(one, wish, &mut found).await?;
        }
        Ok(found)
    }

    async fn still_unlike(&self, unlike: Vec<Unlike>) -> Result<Vec<Unlike>> {
        let (all, mut still): (Vec<&SeenPlace>, _) = (self.seen.iter().collect(), Vec::new());
        for one in unlike {
            let listed = listed_in(&all, &one.name).await?;
            let sizes = listed.into_iter().map(|(number, listed)| (number, listed.size)).collect();
            still.extend(Some(Unlike { sizes, ..one }).filter(|one| differ(&one.sizes)));
        }
        Ok(still)
    }

    async fn tell(&self, Unlike { name, sizes }: Unlike, wish: &Wish<'_>, found: &mut Sizes) -> Result<()> {
        let others = |number: usize| sizes.iter().filter(move |(other, _)| **other != number).map(|(other, bytes)| (*other, *bytes));
        let (mut whole, mut rest) = (None::<(usize, Option<Blake3Sum>)>, sizes.clone());
        for (number, bytes) in &sizes {
            let Some(seen) = self.at(*number) else { continue };
            match what(&seen.repository, &name, wish).await? {
                What::Damaged(reason) => {
                    rest.remove(number);
                    let elsewhere = others(*number).map(|(other, bytes)| format!("{bytes} in repository {other}")).collect::<Vec<_>>();
                    let reason = format!("it has {bytes} bytes here and {}: {reason}", elsewhere.join(" and "));
                    found.wrong.extend(seen.damaged(&name, reason).map(|finding| (*number, finding)));
                }
                // Encrypted or compressed twice, it may be the same all the same.
                What::Whole(content) => {
                    rest.remove(number);
                    let judge = Judge::new(&seen.catalog, seen.repository.layout());
                    match &whole {
                        Some((other, Some(known))) if content.is_some_and(|content| content != *known) => {
                            found.wrong.push((*number, judge.differs(&name, *other)));
                        }
                        Some(_) => {}
                        None => whole = Some((*number, content)),
                    }
                }
                What::Unknown => {}
            }
        }
        let as_the_whole_one = |bytes: &u64| whole.as_ref().is_none_or(|(number, _)| sizes.get(number) == Some(bytes));
        let is_settled = rest.is_empty() || !differ(&rest) && rest.len() < sizes.len() && rest.values().all(as_the_whole_one);
        if is_settled || self.were_sealed_apart(&name, &sizes).await {
            return Ok(());
        }
        for (number, bytes) in &rest {
            let Some(seen) = self.at(*number) else { continue };
            let others: Vec<(usize, u64)> = others(*number).filter(|(_, others)| others != bytes).collect();
            let finding = Judge::new(&seen.catalog, seen.repository.layout()).sizes_differ(&name, *bytes, &others);
            let (listed_in, url) = (others.iter().map(|(other, _)| *other).collect(), seen.repository.repository().url());
            found.unproven.push(Found { repository: *number, url, finding, whole_in: Vec::new(), listed_in });
        }
        Ok(())
    }

    /// Whether each of them was encrypted by itself out of the same, for other recipients.
    async fn were_sealed_apart(&self, name: &ObjectName, sizes: &BTreeMap<usize, u64>) -> bool {
        let mut fronts = Vec::new();
        for (number, bytes) in sizes {
            let Some(seen) = self.at(*number) else { return false };
            match seen.repository.front(name).await {
                Ok(front) => fronts.push((front, *bytes)),
                Err(error) => {
                    tracing::debug!(object = ?name, repository = number, %error, "its front cannot be read");
                    return false;
                }
            }
        }
        let (Some(seen), Some(((front, bytes), rest))) = (self.seen.first(), fronts.split_first()) else { return false };
        rest.iter().all(|(other, others)| others == bytes || seen.repository.were_sealed_apart(name, (front, *bytes), (other, *others)))
    }
}

/// Reads it; what seems to be damaged twice.
async fn what(repository: &ClusterRepository, name: &ObjectName, wish: &Wish<'_>) -> Result<What> {
    if !repository.can_prove(name) {
        return Ok(What::Unknown);
    }
    let once = || async {
        match name {
            ObjectName::Pack(pack) => repository.prove_pack(*pack, Vec::new()).await.map(|proven| match proven.proof {
                // It has the hash that names it.
                Proof::Unreadable => (Proof::Whole, None),
                proof => (proof, None),
            }),
            // It does not say itself what it must hold.
            ObjectName::BackupManifest(..) => repository.whole_object(name).await.map(|_| (Proof::Whole, None)),
            name => repository.prove_with_content(name).await,
        }
    };
    let mut proven = retry("verify", Backoff::within(PATIENCE), wish.cancel, Error::is_transient, once).await;
    if proven.as_ref().is_err_and(Error::is_damage) {
        proven = retry("verify", Backoff::within(PATIENCE), wish.cancel, Error::is_transient, once).await;
    }
    match proven {
        Ok((Proof::Whole, content)) => Ok(What::Whole(content)),
        Ok((Proof::Unreadable | Proof::Gone, _)) => Ok(What::Unknown),
        Err(error) if error.is_damage() => Ok(What::Damaged(error.to_string())),
        Err(error) if wish.cancel.is_cancelled() => Err(error),
        // Such as is archived, or may not be read.
        Err(error) => {
            tracing::debug!(object = ?name, %error, "not read to see why it has another size elsewhere");
            Ok(What::Unknown)
        }
    }
}

fn differ(sizes: &BTreeMap<usize, u64>) -> bool {
    sizes.values().any(|bytes| Some(bytes) != sizes.values().next())
}
