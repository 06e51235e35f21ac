//! Catalog snapshots while the agent runs: so that a table created after the last base backup has a name when it is dropped.
//!
//! A snapshot is taken soon after somebody asks for one ([`NamesWanted`]), else once an hour, and only if WAL was written since; it is stored
//! only if it says something new. Who asks at present is a look at each database's highest numbers and the names in it, every few seconds while WAL is
//! written. On an idle server neither SQL nor a request to the store is made.

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use walkeep_core::{Lsn, TimelineId};

use crate::config::ClusterConfig;
use crate::names::{Keeper, NamesWanted, take};
use crate::postgres::catalogs::{self, Seen};
use crate::postgres::{ConnectionParams, connect_sql};
use crate::progress::{Phase, Progress};
use crate::repository::ClusterRepository;
use crate::writer;

/// Between two looks at the databases' highest numbers.
const LOOK: Duration = Duration::from_secs(10);
/// One look must not take longer.
const LOOK_DEADLINE: Duration = Duration::from_secs(30);
/// A look connects to no more databases; the others follow with the next.
const LOOKED_AT: usize = 8;
/// Between the first wish for a snapshot and taking it: a migration makes many tables.
const GATHER: Duration = Duration::from_secs(3);
/// Between two snapshots, asked for or not.
const APART: Duration = Duration::from_secs(30);
/// Without being asked: for what a look may have missed.
const HOURLY: Duration = Duration::from_secs(3600);
/// So many failures in a row are said.
const SAID: u32 = 3;

/// Takes snapshots until `stop`.
pub async fn run(
    cluster: ClusterConfig,
    params: ConnectionParams,
    repository: Arc<ClusterRepository>,
    progress: Arc<Progress>,
    wanted: NamesWanted,
    stop: CancellationToken,
) {
    let mut keeping = Keeping {
        keeper: Keeper::new(repository.clone()),
        cluster,
        params,
        repository,
        looked_at: None,
        seen: HashMap::new(),
        next: 0,
        told: BTreeSet::new(),
        failures: 0,
    };
    // The first as soon as the stream goes on.
    let (mut due, mut taken_at, mut looked_at) = (Some(Instant::now()), None::<Instant>, None);
    let mut moved = true;
    loop {
        let wake = due.map_or_else(|| Instant::now() + LOOK, |due| due.min(Instant::now() + LOOK));
        tokio::select! {
            () = tokio::time::sleep_until(wake) => {}
            () = wanted.wanted() => {
                let soon = Instant::now() + GATHER;
                let wish = taken_at.map_or(soon, |taken| soon.max(taken + APART));
                due = Some(due.map_or(wish, |due| due.min(wish)));
                continue;
            }
            () = stop.cancelled() => return,
        }
        let now = progress.snapshot();
        if keeping.cluster.stream {
            if now.phase != Phase::Streaming {
                due = due.map(|due| due.max(Instant::now() + Duration::from_secs(1)));
                continue;
            }
            let new = looked_at.replace(now.received) != Some(now.received);
            moved |= new;
            if new || keeping.next != 0 {
                keeping.look(&wanted, &stop).await;
            }
        } else {
            moved = true;
            keeping.look(&wanted, &stop).await;
        }
        let hourly = moved && taken_at.is_some_and(|taken| taken.elapsed() >= HOURLY);
        if hourly || due.is_some_and(|due| due <= Instant::now()) {
            (due, taken_at, moved) = (None, Some(Instant::now()), false);
            if !keeping.snapshot(&stop).await {
                due = Some(Instant::now() + APART);
            }
        }
    }
}

struct Keeping {
    keeper: Keeper,
    cluster: ClusterConfig,
    params: ConnectionParams,
    repository: Arc<ClusterRepository>,
    /// Where the server's WAL stood at the last look.
    looked_at: Option<Lsn>,
    /// What was seen of each database.
    seen: HashMap<u32, Seen>,
    /// Where the next look begins, where there are many databases.
    next: usize,
    /// Databases that were told to let nobody in.
    told: BTreeSet<String>,
    failures: u32,
}

impl Keeping {
    /// Asks for a snapshot if relations were made or rewritten since the last look.
    async fn look(&mut self, wanted: &NamesWanted, stop: &CancellationToken) {
        let looked = tokio::select! {
            looked = tokio::time::timeout(LOOK_DEADLINE, self.look_once()) => looked.context("no answer in time").flatten(),
            () = stop.cancelled() => return,
        };
        match looked {
            Ok(true) => wanted.poke(),
            Ok(false) => {}
            Err(error) => tracing::debug!(error = format!("{error:#}"), "cannot look for new relations"),
        }
    }

    async fn look_once(&mut self) -> Result<bool> {
        let client = connect_sql(&self.params).await.context("connect for SQL")?;
        let inserted = catalogs::place(&client).await?.inserted;
        if self.looked_at.replace(inserted) == Some(inserted) && self.next == 0 {
            return Ok(false);
        }
        let mut databases = catalogs::databases(&client).await?;
        databases.retain(|database| database.connectable && !database.template && !self.told.contains(&database.name));
        let (known, first_look) = (self.seen.len(), self.seen.is_empty());
        self.seen.retain(|oid, _| databases.iter().any(|database| database.oid == *oid));
        let mut new = self.seen.len() != known;
        let (count, first) = (databases.len(), self.next);
        self.next = if count > LOOKED_AT { (first + LOOKED_AT) % count } else { 0 };
        for at in 0..count.min(LOOKED_AT) {
            let database = &databases[(first + at) % count];
            let client = match catalogs::connect(&self.params, &database.name).await {
                Ok(client) => client,
                // The snapshot tells it.
                Err(error) => {
                    tracing::debug!(database = database.name, %error, "cannot look for new relations");
                    continue;
                }
            };
            let before = self.seen.get(&database.oid).copied();
            let (made, now) = catalogs::made_since(&client, before.unwrap_or_default()).await?;
            self.seen.insert(database.oid, now);
            new |= if before.is_some() { made } else { !first_look };
        }
        Ok(new)
    }

    /// Takes a snapshot, and stores it if it is news; false if that failed.
    async fn snapshot(&mut self, stop: &CancellationToken) -> bool {
        let result = tokio::select! {
            result = self.snapshot_once() => result,
            () = stop.cancelled() => return true,
        };
        match result {
            Ok(()) => self.failures = 0,
            Err(error) => {
                self.failures += 1;
                let error = format!("{error:#}");
                match self.failures {
                    SAID => tracing::warn!(error, "no catalog snapshot can be stored: what is dropped may be told by number only"),
                    _ => tracing::debug!(error, "no catalog snapshot could be stored"),
                }
            }
        }
        self.failures == 0
    }

    async fn snapshot_once(&mut self) -> Result<()> {
        let taken = take(&self.params, self.repository.identity().system_identifier).await?;
        for (database, why) in &taken.unread {
            if self.told.insert(database.clone()) {
                tracing::warn!(database, why, "the catalogs of a database cannot be read: what is dropped there is told by number only");
            }
        }
        self.told.retain(|database| taken.unread.iter().any(|(unread, _)| unread == database));
        if self.keeper.is_news(&taken).await? && self.may_write(taken.header.timeline, taken.header.lsn).await? {
            self.keeper.store(taken).await?;
        }
        Ok(())
    }

    /// Whether the timeline is this agent's to write, as far as anybody has written it. A copied server's names are not this one's.
    async fn may_write(&self, timeline: TimelineId, lsn: Lsn) -> Result<bool> {
        if !self.cluster.stream {
            return Ok(true);
        }
        let Some(lease) = self.repository.newest_lease(timeline).await.context("look who writes the timeline")? else { return Ok(true) };
        let ours = writer::known_identity(&self.cluster.spool)?.is_some_and(|id| id == lease.writer.id);
        if !ours {
            tracing::debug!(timeline = timeline.get(), %lsn, holder = %lease.writer, "no catalog snapshot of a timeline that another agent writes");
        }
        Ok(ours)
    }
}
