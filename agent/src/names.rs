//! Catalog snapshots: taken from the server, stored if they say something new, and read to name what the WAL tells by number.
//!
//! What a snapshot is and how it names, is the core's ([`walkeep_core::names`]); when one is taken, the agent's (`daemon/names.rs`) and the
//! backup's business. A snapshot that cannot be taken is nobody's failure: what it would have named is told by number.

use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use tokio::sync::Notify;
use walkeep_core::blake3::Blake3Sum;
use walkeep_core::journal::{Entry, Move};
use walkeep_core::layout::SnapshotName;
use walkeep_core::names::{Header, NamedEntry, Naming, SnapshotWriter, body, named, questions};
use walkeep_core::{Lsn, SystemIdentifier, TimelineHistory};

use crate::codec::blake3;
use crate::postgres::catalogs::{self, DatabaseRow};
use crate::postgres::{ConnectionParams, Options, ReplicationConnection, connect_sql};
use crate::repository::{ClusterRepository, Error};

/// No database may hold up a snapshot for longer.
const ONE_DATABASE: Duration = Duration::from_secs(60);
/// Nor may all of them together.
const ALL: Duration = Duration::from_secs(300);

/// Whoever sees that relations were made or rewritten asks by this for a new snapshot; it is taken soon, and once for many askings.
#[derive(Debug, Clone, Default)]
pub struct NamesWanted(Arc<Notify>);

impl NamesWanted {
    /// Asks.
    pub fn poke(&self) {
        self.0.notify_one();
    }

    /// Waits until somebody asks.
    pub async fn wanted(&self) {
        self.0.notified().await;
    }
}

/// A snapshot that was taken.
#[derive(Debug)]
pub struct Taken {
    /// Its header.
    pub header: Header,
    writer: SnapshotWriter,
    /// Databases whose catalogs could not be read, and why.
    pub unread: Vec<(String, String)>,
}

/// Reads the catalogs of all databases of the cluster `system` that let us in.
pub async fn take(params: &ConnectionParams, system: SystemIdentifier) -> Result<Taken> {
    tokio::time::timeout(ALL, take_all(params, system)).await.context("the databases took too long")?
}

async fn take_all(params: &ConnectionParams, system: SystemIdentifier) -> Result<Taken> {
    let client = connect_sql(params).await.context("connect for SQL")?;
    let begin = catalogs::place(&client).await.context("ask where the server stands")?;
    ensure!(begin.system == system, "the server has system identifier {}, not {system}", begin.system);
    let timeline = match begin.timeline {
        Some(timeline) => timeline,
        // A standby's.
        None => ReplicationConnection::connect(params, &Options::default()).await?.identify_system().await?.timeline,
    };
    let (mut writer, mut unread) = (SnapshotWriter::default(), Vec::new());
    for database in catalogs::databases(&client).await.context("list the databases")? {
        let DatabaseRow { oid, name, tablespace, connectable, .. } = &database;
        let mut of_it = writer.part();
        let why = match connectable {
            false => Some("it takes no connections".to_owned()),
            true => {
                let read = tokio::time::timeout(ONE_DATABASE, read(params, name, system, begin.written, &mut of_it)).await;
                read.context("no answer in time").flatten().err().map(|error| format!("{error:#}"))
            }
        };
        writer.database(*oid, name, *tablespace, why.as_deref());
        match why {
            None => writer.append(of_it),
            Some(why) if *connectable && !database.template => unread.push((name.clone(), why)),
            Some(_) => {}
        }
    }
    if !unread.is_empty() {
        // One that was dropped meanwhile is nothing to tell.
        let left = catalogs::databases(&client).await.context("list the databases")?;
        unread.retain(|(name, _)| left.iter().any(|database| database.connectable && database.name == *name));
    }
    let end = catalogs::place(&client).await.context("ask where the server stands")?;
    ensure!((end.in_recovery, end.timeline) == (begin.in_recovery, begin.timeline), "the server was promoted meanwhile");
    let (format, lsn, until, left_out) = (Header::FORMAT, begin.written, end.inserted, writer.left_out());
    Ok(Taken { header: Header { format, timeline, lsn, until, taken_at: begin.now, left_out }, writer, unread })
}

async fn read(params: &ConnectionParams, database: &str, system: SystemIdentifier, from: Lsn, writer: &mut SnapshotWriter) -> Result<()> {
    let client = catalogs::connect(params, database).await?;
    // Of several hosts another one may answer now.
    let place = catalogs::place(&client).await?;
    ensure!(place.system == system && place.inserted >= from, "another server answered, which is not as far");
    Ok(catalogs::relations(&client, writer).await?)
}

/// Stores snapshots, each only if it says something new.
#[derive(Debug)]
pub struct Keeper {
    repository: Arc<ClusterRepository>,
    /// What the newest one says.
    newest: Option<Blake3Sum>,
}

impl Keeper {
    /// Stores into `repository`.
    pub fn new(repository: Arc<ClusterRepository>) -> Self {
        Self { repository, newest: None }
    }

    /// Whether the newest snapshot stored says something else. Asks the repository the first time only.
    pub async fn is_news(&mut self, taken: &Taken) -> Result<bool> {
        if self.newest.is_none() {
            let names = self.repository.list_names().await.context("list the catalog snapshots")?;
            if let Some(newest) = names.last() {
                match self.repository.names_text(*newest).await {
                    Ok(text) => self.newest = std::str::from_utf8(&text).ok().map(|text| blake3(body(text).as_bytes())),
                    Err(Error::Corrupt { key, reason }) => tracing::warn!(key, reason, "the newest catalog snapshot cannot be read"),
                    Err(Error::CannotDecrypt { .. }) => {
                        tracing::debug!("the newest catalog snapshot cannot be read here: another one is stored")
                    }
                    Err(error) => return Err(error).context("read the newest catalog snapshot"),
                }
            }
        }
        Ok(self.newest != Some(blake3(taken.writer.body().as_bytes())))
    }

    /// Stores it.
    pub async fn store(&mut self, taken: Taken) -> Result<SnapshotName> {
        let name = SnapshotName { timeline: taken.header.timeline, lsn: taken.header.lsn };
        let (hash, relations) = (blake3(taken.writer.body().as_bytes()), taken.writer.relations());
        self.repository.put_names(name, taken.writer.finish(&taken.header)).await.context("store the catalog snapshot")?;
        self.newest = Some(hash);
        tracing::debug!(timeline = name.timeline.get(), lsn = %name.lsn, relations, "stored a catalog snapshot");
        Ok(name)
    }
}

/// Takes a snapshot beside a base backup, and stores it if it is news. What goes wrong is told: the backup is good without.
pub async fn beside_backup(keeper: &mut Keeper, params: &ConnectionParams) {
    let system = keeper.repository.identity().system_identifier;
    let stored = async {
        let taken = take(params, system).await?;
        if keeper.is_news(&taken).await? {
            keeper.store(taken).await?;
        }
        anyhow::Ok(())
    };
    if let Err(error) = stored.await {
        tracing::warn!(error = format!("{error:#}"), "no catalog snapshot beside the backup: what is dropped may be told by number only");
    }
}

/// Which snapshots were there to be asked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Asked {
    /// How many there are along the path.
    pub snapshots: usize,
    /// The first and the last.
    pub reach: Option<(Lsn, Lsn)>,
    /// Those that could not be read, and why.
    pub damaged: Vec<String>,
}

/// Names what `entries` removed, by the snapshots along `path`. Reads no more of these than it needs, one at a time.
pub async fn name_entries<'a>(
    repository: &ClusterRepository,
    path: &TimelineHistory,
    entries: &[&'a Entry],
    moves: &[Move],
) -> Result<(Vec<NamedEntry<'a>>, Asked)> {
    let questions = questions(entries);
    let mut asked = Asked { snapshots: 0, reach: None, damaged: Vec::new() };
    if questions.is_empty() {
        return Ok((named(entries, Vec::new()), asked));
    }
    let mut snapshots = along(repository, path).await?;
    snapshots.sort_by_key(|name| name.lsn);
    asked.snapshots = snapshots.len();
    asked.reach = snapshots.first().zip(snapshots.last()).map(|(first, last)| (first.lsn, last.lsn));
    let mut naming = Naming::new(snapshots.iter().map(|name| name.lsn).collect(), moves, &questions);
    while let Some(at) = naming.wants() {
        let snapshot = match repository.names(snapshots[at]).await {
            Ok(snapshot) => Some(snapshot),
            Err(Error::Corrupt { key, reason }) => {
                asked.damaged.push(format!("{key}: {reason}"));
                None
            }
            Err(error) => return Err(error).context("read a catalog snapshot"),
        };
        naming = tokio::task::spawn_blocking(move || {
            naming.show(at, snapshot.as_ref());
            naming
        })
        .await?;
    }
    Ok((named(entries, naming.finish()), asked))
}

/// The snapshots of servers that were on `path` then.
pub async fn along(repository: &ClusterRepository, path: &TimelineHistory) -> Result<Vec<SnapshotName>> {
    let mut snapshots = repository.list_names().await.context("list the catalog snapshots")?;
    snapshots.retain(|name| path.contains(name.timeline, name.lsn));
    Ok(snapshots)
}
