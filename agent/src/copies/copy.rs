//! `walkeep copy`: the history of a cluster from one repository into another.
//!
//! Both are compared folder by folder, and what the target lacks is read, proven, and put. Interrupted, it is begun again and goes on by the comparison: what is there
//! is there. A backup's record comes behind everything that it needs, and not at all where a pack of that is damaged,
//! so the target can be restored from at every moment. Nothing is overwritten.

use std::collections::BTreeSet;
use std::sync::Arc;

use anyhow::{Context, Result, ensure};
use async_trait::async_trait;
use bytes::Bytes;
use futures::stream::{self, StreamExt};
use serde::Serialize;
use tokio::sync::Mutex;
use tokio_util::sync::CancellationToken;
use walkeep_core::layout::{ClusterName, ObjectName};
use walkeep_store::several::{Compared, Guide, Mark, Sink, compare};
use walkeep_store::{ArchiveClass, ErrorKind, Key, Listed, Put, SharedStore};

use super::Contents;
use crate::pace::Pace;
use crate::repository::several::Proven;
use crate::repository::{self, ClusterIdentity, ClusterRepository, Repository, trail};
use crate::retry::{Backoff, retry};

/// Objects on their way at the same time.
const PARALLEL: usize = 4;
/// Objects that are looked for before they are brought.
const BATCH: usize = 256;
/// How long either repository may fail before the copy does.
const PATIENCE: Backoff = Backoff::within(std::time::Duration::from_secs(600));

/// What to do.
#[derive(Debug, Clone, Copy, Default)]
pub struct CopyOptions {
    /// Only find out what there is to do.
    pub dry_run: bool,
    /// At most so many kB a second.
    pub rate_kb: Option<u32>,
}

/// What was done, or with a dry run what there is to do.
#[derive(Debug, Clone, Default, Serialize)]
pub struct Copied {
    /// Objects that the target lacked.
    pub objects: u64,
    /// Their bytes.
    pub bytes: u64,
    /// Objects that both had.
    pub there_already: u64,
    /// Objects that went from the source meanwhile.
    pub gone: u64,
    /// Objects of the source that are not what their names say: not copied.
    pub damaged: Vec<String>,
    /// Objects that the target has with other content: left as they are.
    pub differing: Vec<String>,
    /// Objects that lie in an archived storage class, in one of the two, and were not copied: they have to be thawed.
    pub archived: Vec<String>,
    /// Their bytes.
    pub archived_bytes: u64,
    /// Records of backups and artifacts of which the target does not have all, because of those: not copied.
    pub incomplete: Vec<String>,
}

impl Copied {
    /// Whether the target has all that the source has.
    pub fn is_whole(&self) -> bool {
        !self.is_damaged() && self.archived.is_empty() && self.incomplete.is_empty()
    }

    /// Whether anything is not what it should be; what is archived will be had as it was.
    pub fn is_damaged(&self) -> bool {
        !self.damaged.is_empty() || !self.differing.is_empty()
    }
}

/// Copies all that `from` has of a cluster.
pub async fn copy(
    from: SharedStore,
    to: SharedStore,
    cluster: &ClusterName,
    options: CopyOptions,
    with: &(dyn Fn(Repository, ClusterIdentity) -> ClusterRepository + Sync),
    cancel: &CancellationToken,
    tell: &(dyn Fn(&Copied) + Sync),
) -> Result<Copied> {
    let source = Repository::open(from.clone()).await?;
    let identities = source.identities(cluster).await?;
    ensure!(!identities.is_empty(), repository::Error::UnknownCluster { url: source.url(), cluster: cluster.to_string() });
    agree(&source, &to, cluster, &identities, options.dry_run).await?;
    let mut work = Work {
        from,
        to,
        options,
        cancel,
        tell,
        pace: Mutex::new(Pace::new(options.rate_kb)),
        copied: Copied::default(),
        pending: Vec::new(),
        guide: None,
        alike: (0, 0),
        there: 0,
        pass: 0,
        lacking: BTreeSet::new(),
    };
    for identity in identities {
        let repository = Arc::new(with(source.clone(), identity));
        let guide = Contents::load(repository.clone()).await.context("read what was let go")?;
        work.guide = Some((repository, guide.clone()));
        let (from, to) = (work.from.clone(), work.to.clone());
        compare(from.as_ref(), to.as_ref(), &guide, Mark::default(), &mut work).await.context("compare the repositories")?;
        work.bring().await?;
        (work.alike, work.pass) = ((work.alike.0 + work.alike.1, 0), 0);
    }
    Ok(work.copied)
}

/// Makes the target a repository that knows the cluster as the source does. Fails if it knows it otherwise.
async fn agree(source: &Repository, to: &SharedStore, cluster: &ClusterName, identities: &[ClusterIdentity], dry_run: bool) -> Result<()> {
    let target = match Repository::open(to.clone()).await {
        Err(repository::Error::NoRepository { .. }) if dry_run => return Ok(()),
        Err(repository::Error::NoRepository { .. }) => Repository::create(to.clone()).await?,
        opened => opened?,
    };
    match dry_run {
        true => Ok(()),
        false => Ok(target.know_the_same(cluster, &source.url(), identities).await?),
    }
}

struct Work<'a> {
    from: SharedStore,
    to: SharedStore,
    options: CopyOptions,
    cancel: &'a CancellationToken,
    tell: &'a (dyn Fn(&Copied) + Sync),
    pace: Mutex<Pace>,
    copied: Copied,
    pending: Vec<Listed>,
    guide: Option<(Arc<ClusterRepository>, Contents)>,
    /// Objects that both have: of the passes before, and of this one.
    alike: (u64, u64),
    /// Those of which that showed only when they were put.
    there: u64,
    pass: usize,
    /// What the target does not get as it should be.
    lacking: BTreeSet<String>,
}

/// What became of an object.
enum Outcome {
    Copied(u64),
    There,
    Gone,
    Damaged(String),
    Differs,
    Archived,
    Incomplete(String),
}

impl Work<'_> {
    /// Brings what was found, in its order.
    async fn bring(&mut self) -> Result<()> {
        let pending = std::mem::take(&mut self.pending);
        let Some((repository, guide)) = self.guide.clone() else { return Ok(()) };
        let mut rest = pending.as_slice();
        while let Some(first) = rest.first() {
            ensure!(!self.cancel.is_cancelled(), "interrupted; run again, it goes on where it was");
            // Those that name others by themselves, the others side by side.
            let together = match guide.alone(&first.key) {
                true => 1,
                false => rest.iter().take_while(|listed| !guide.alone(&listed.key)).count(),
            };
            let (now, later) = rest.split_at(together);
            rest = later;
            let this = &*self;
            let outcomes = stream::iter(now.iter().cloned()).map(|listed| this.bring_one(&repository, &guide, listed)).buffered(PARALLEL);
            let outcomes: Vec<(Listed, Result<Outcome>)> = outcomes.collect().await;
            for (Listed { key, size, .. }, outcome) in outcomes {
                let outcome = outcome?;
                if matches!(outcome, Outcome::Gone | Outcome::Damaged(_) | Outcome::Differs | Outcome::Archived) {
                    self.lacking.insert(key.to_string());
                }
                match outcome {
                    Outcome::Copied(bytes) => {
                        (self.copied.objects, self.copied.bytes) = (self.copied.objects + 1, self.copied.bytes + bytes)
                    }
                    Outcome::There => self.there += 1,
                    Outcome::Gone => self.copied.gone += 1,
                    Outcome::Damaged(reason) => self.copied.damaged.push(format!("{key}: {reason}")),
                    Outcome::Differs => self.copied.differing.push(key.to_string()),
                    Outcome::Archived => {
                        self.copied.archived.push(key.to_string());
                        self.copied.archived_bytes += size;
                    }
                    Outcome::Incomplete(reason) => self.copied.incomplete.push(format!("{key}: {reason}")),
                }
            }
            self.tell();
        }
        Ok(())
    }

    fn tell(&mut self) {
        self.copied.there_already = self.alike.0 + self.alike.1 + self.there;
        (self.tell)(&self.copied);
    }

    async fn bring_one(&self, repository: &ClusterRepository, guide: &Contents, listed: Listed) -> (Listed, Result<Outcome>) {
        let outcome = match self.try_one(repository, guide, &listed.key).await {
            // The others are to be had all the same.
            Err(error) if error.chain().any(is_archived) => Ok(Outcome::Archived),
            outcome => outcome,
        };
        (listed, outcome)
    }

    async fn try_one(&self, repository: &ClusterRepository, guide: &Contents, key: &Key) -> Result<Outcome> {
        let body = match patiently("reading an object", self.cancel, || self.from.get(key, None)).await {
            Ok(body) => body,
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(Outcome::Gone),
            Err(error) if error.kind() == ErrorKind::Corrupt => return Ok(Outcome::Damaged(format!("{error:#}"))),
            Err(error) => return Err(error).with_context(|| format!("read {key} from {}", self.from.url())),
        };
        let Some(name) = repository.layout().parse(key.as_str()) else { return Ok(Outcome::Gone) };
        let proven = match repository.prove_object(&name, &body).await {
            Ok(proven) => proven,
            Err(error) if error.is_damage() => return Ok(Outcome::Damaged(error.to_string())),
            Err(error) => return Err(error.into()),
        };
        if let ObjectName::Audit(number) = name {
            let prove = || trail::misplaced(repository, number, &body);
            let misplaced =
                retry("proving a record of the audit trail", PATIENCE, self.cancel, repository::Error::is_transient, prove).await?;
            if let Some(reason) = misplaced {
                return Ok(Outcome::Damaged(reason));
            }
        }
        if let Some(reason) = guide.lacking_of(key, &body, &self.lacking).await? {
            return Ok(Outcome::Incomplete(reason));
        }
        self.pace.lock().await.pass(body.len() as u64).await;
        match patiently("storing an object", self.cancel, || self.to.put_if_absent(key, body.clone())).await {
            Ok(Put::Created) => {}
            Ok(Put::AlreadySame) => return Ok(Outcome::There),
            Err(error) if error.kind() == ErrorKind::AlreadyExists => {
                return match self.other_bytes(guide, key, &body).await? {
                    Outcome::There if error.is_in_doubt() => self.put_in_doubt(key, body).await,
                    outcome => Ok(outcome),
                };
            }
            Err(error) => return Err(error).with_context(|| format!("store {key} in {}", self.to.url())),
        }
        if proven == Proven::Outside {
            // Its content has no sum that could be checked here: what counts is that the same bytes come back.
            let back =
                patiently("reading it back", self.cancel, || self.to.get(key, None)).await.with_context(|| format!("read {key} back"))?;
            ensure!(back == body, "{key} came back from {} with other bytes than were stored", self.to.url());
        }
        Ok(Outcome::Copied(body.len() as u64))
    }

    /// The target cannot vouch for what it has.
    async fn put_in_doubt(&self, key: &Key, body: Bytes) -> Result<Outcome> {
        let replace = || self.to.replace_in_doubt(key, body.clone());
        let replaced = patiently("storing an object once more", self.cancel, replace).await;
        replaced.with_context(|| format!("store {key} in {}", self.to.url()))?;
        Ok(Outcome::Copied(body.len() as u64))
    }

    async fn other_bytes(&self, guide: &Contents, key: &Key, body: &Bytes) -> Result<Outcome> {
        let there = patiently("reading an object", self.cancel, || self.to.get(key, None)).await;
        let there = there.with_context(|| format!("read {key} from {}", self.to.url()))?;
        Ok(if guide.alike(key, body, &there) { Outcome::There } else { Outcome::Differs })
    }
}

async fn patiently<T, F: Future<Output = walkeep_store::Result<T>>>(
    what: &str,
    cancel: &CancellationToken,
    call: impl FnMut() -> F,
) -> walkeep_store::Result<T> {
    retry(what, PATIENCE, cancel, |error: &walkeep_store::Error| error.kind().is_transient(), call).await
}

#[async_trait]
impl Sink for Work<'_> {
    async fn found(&mut self, found: Compared) -> walkeep_store::Result<()> {
        match found {
            Compared::OnlyFirst(listed) if self.options.dry_run => {
                self.copied.objects += 1;
                self.copied.bytes += listed.size;
                // Of Intelligent-Tiering a listing does not tell.
                if listed.class.is_some_and(|class| class != ArchiveClass::IntelligentTiering) {
                    self.copied.archived.push(listed.key.to_string());
                    self.copied.archived_bytes += listed.size;
                }
            }
            // Of other sizes they may still hold the same.
            Compared::OnlyFirst(listed) | Compared::Differs(listed, _) => self.pending.push(listed),
            Compared::OnlySecond(_) => {}
        }
        if self.pending.len() >= BATCH {
            self.bring().await.map_err(stopped)?;
        }
        Ok(())
    }

    async fn so_far(&mut self, mark: &Mark, alike: u64) -> walkeep_store::Result<()> {
        if self.cancel.is_cancelled() {
            return Err(walkeep_store::Error::at(ErrorKind::Cancelled, "compare", mark.folder.clone()));
        }
        if mark.pass == self.pass {
            self.alike.1 = alike;
        } else {
            // Before anything that names what came before.
            self.bring().await.map_err(stopped)?;
            (self.alike, self.pass) = ((self.alike.0 + alike, 0), mark.pass);
        }
        self.tell();
        Ok(())
    }
}

fn is_archived(cause: &(dyn std::error::Error + 'static)) -> bool {
    let of_store = || cause.downcast_ref::<walkeep_store::Error>().is_some_and(|error| error.kind() == ErrorKind::Archived);
    cause.downcast_ref::<repository::Error>().map_or_else(of_store, |error| error.archived().is_some())
}

/// The comparison ends with the copy's own error, and says it.
fn stopped(error: anyhow::Error) -> walkeep_store::Error {
    let kind =
        error.chain().find_map(|cause| cause.downcast_ref::<walkeep_store::Error>()).map_or(ErrorKind::Cancelled, |error| error.kind());
    walkeep_store::Error::at(kind, "copy", "objects").because(format!("{error:#}"))
}
