//! Extracts: tables, or the rows of a query, out of a moment of the past, without touching the running server.
//!
//! A plan is restored into a scratch folder, a throw-away server recovers it to the target, and what was asked for is copied out of that. Of other
//! databases only the lengths of files are restored at first ([`walkeep_core::partial`]); if that turns out not to do, by anything at all, everything is
//! restored and the work begins anew, so that it decides about time only and never about the result.

mod apart;
mod copy;
mod into;
mod left_out;
pub(crate) mod look;
mod name;

use std::collections::BTreeSet;
use std::io::Write;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Instant;

use anyhow::{Context, Result, bail};
use futures::future::BoxFuture;
use serde::Serialize;
use tokio_postgres::Client;
use tokio_util::sync::CancellationToken;
use walkeep_core::partial::Needed;
use walkeep_core::plan::RestorePlan;

use crate::durable::Filled;
use crate::postgres::{ConnectionParams, connect_sql, without_password};
use crate::repository::ClusterRepository;
use crate::restore::{self, Shared};
use crate::scratch_server::{Clients, Filling, Place, Recovery, Server, Settings, fill};
use crate::transfer::Transfer;
pub use copy::Format;
pub use look::Table;
pub use name::TableName;
use walkeep_core::identifier::quote;

/// It cannot or must not be done; nothing was changed.
#[derive(Debug, thiserror::Error)]
#[error("{reason}")]
pub struct Refused {
    /// Why.
    pub reason: String,
    /// What to do.
    pub hint: Option<String>,
}

pub(crate) fn refuse(reason: impl Into<String>) -> Refused {
    Refused { reason: reason.into(), hint: None }
}

impl Refused {
    pub(crate) fn hint(mut self, hint: impl Into<String>) -> Self {
        self.hint = Some(hint.into());
        self
    }
}

/// What is wanted.
#[derive(Debug, Clone)]
pub enum Wanted {
    /// These tables, and all of these schemas.
    Tables {
        /// Tables.
        tables: Vec<TableName>,
        /// Schemas.
        schemas: Vec<String>,
    },
    /// The rows of a query.
    Query(String),
}

/// Where it goes.
#[derive(Debug, Clone)]
pub enum Output {
    /// Into a server: a connection string, which may hold a password.
    Into(crate::config::Secret),
    /// A file.
    File {
        /// Its name.
        path: PathBuf,
        /// How tables are written.
        format: Format,
    },
    /// Standard output, as SQL.
    Stdout,
}

/// What to do.
#[derive(Debug, Clone)]
pub struct Options {
    /// What is wanted.
    pub wanted: Wanted,
    /// In which database; otherwise `usual_database`, or the only one that has it.
    pub database: Option<String>,
    /// The one that is looked into first.
    pub usual_database: String,
    /// Where it goes.
    pub output: Output,
    /// What is there already is dropped, or overwritten.
    pub replace: bool,
    /// The schema that tables are put into, instead of their own.
    pub schema: Option<String>,
    /// Leaves foreign keys out.
    pub without_foreign_keys: bool,
    /// With owners and rights.
    pub owners: bool,
    /// Restores everything from the start.
    pub everything: bool,
    /// Ranged reads at a time.
    pub parallelism: usize,
    /// How the scratch server gets WAL.
    pub restore_command: String,
    /// The server's program.
    pub postgres: PathBuf,
    /// The programs that copy tables; not needed for a query.
    pub clients: Option<Clients>,
}

/// What is told meanwhile.
#[derive(Debug)]
pub enum Told<'t> {
    /// Something to know.
    Note(String),
    /// Files are restored.
    Restoring(&'t Transfer),
    /// WAL is replayed: files fetched of how many.
    Recovering(u64, u64),
    /// Tables are copied: which.
    Copying(&'t str),
}

/// Who is told.
pub type Watch<'w> = dyn Fn(Told<'_>) + Send + Sync + 'w;

/// A table that was copied.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Copied {
    /// Its schema, in the output.
    pub schema: String,
    /// Its name.
    pub name: String,
    /// Its rows, as read in the scratch server.
    pub rows: u64,
    /// Its rows in the other server, when everything was done.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub rows_there: Option<u64>,
}

/// How long a step took.
#[derive(Debug, Clone, Serialize)]
pub struct Step {
    /// Which.
    pub step: &'static str,
    /// How long.
    pub seconds: f64,
}

/// What was done.
#[derive(Debug, Clone, Default, Serialize)]
pub struct Report {
    /// The database.
    pub database: String,
    /// The tables.
    pub tables: Vec<Copied>,
    /// The rows of a query.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub rows: Option<u64>,
    /// Bytes read of the backup's packs.
    pub fetched_bytes: u64,
    /// What the whole backup has there.
    pub backup_stored_bytes: u64,
    /// Whether files of other databases were left empty.
    pub partial: bool,
    /// Pages of other databases that replay would have changed and passed over, as they were left empty.
    pub passed_over_pages: u64,
    /// The steps.
    pub steps: Vec<Step>,
    /// What was not copied, and what else to know.
    pub notes: Vec<String>,
}

/// Does it, in `place`, which is empty. The place is left to the caller to remove.
pub async fn extract(
    repository: Arc<ClusterRepository>,
    plan: &RestorePlan,
    options: &Options,
    target: Option<&Target>,
    place: &Place,
    watch: &Watch<'_>,
    cancel: &CancellationToken,
) -> Result<Report> {
    let began = Instant::now();
    let shared = restore::shared(&repository, plan, cancel).await.context("read the backup's catalogs")?;
    let mut work = Work { repository, plan, options, place, watch, cancel, shared, report: Report::default() };
    work.step("read the backup's catalogs", began);
    let mut needed = work.needed();
    let found = loop {
        let partial = needed != Needed::Everything;
        work.restore(&needed).await?;
        match work.attempt(&needed).await {
            Ok(Attempt::Found(found)) => break found,
            // A file of a database that was left empty may be what was missed, whatever it looks like from here.
            Ok(Attempt::Whole(reason)) if partial => work.again(&reason)?,
            Err(error) if partial && error.downcast_ref::<Refused>().is_none() && !cancel.is_cancelled() => {
                work.again(&format!("{error:#}"))?
            }
            Ok(Attempt::Whole(reason)) => bail!("{reason}"),
            Err(error) => return Err(error),
        }
        needed = Needed::Everything;
    };
    work.report.partial = needed != Needed::Everything;
    work.copy(found, target).await?;
    Ok(work.report)
}

/// The server that gets the tables.
pub struct Target {
    client: Client,
    conninfo: String,
    password: Option<String>,
    asking: Option<Asking>,
}

/// Asks whether these tables may be dropped.
pub type Asking = Box<dyn Fn(Vec<String>) -> BoxFuture<'static, Result<bool>> + Send + Sync>;

impl Target {
    /// Connects, and refuses what is known to be in the way by now, before any WAL is read: a standby, and, unless `replace`, tables that are there.
    pub async fn connect(text: &str, wanted: &Wanted, schema: Option<&str>, replace: bool) -> Result<Self> {
        let params = ConnectionParams::parse(text, &|name| std::env::var(name).ok()).context("--into")?;
        let client = connect_sql(&params).await.with_context(|| format!("connect to the server of --into ({params})"))?;
        let (conninfo, password) = without_password(text, &[("user", params.user()), ("dbname", params.dbname())])?;
        let target = Self { client, conninfo, password, asking: None };
        let checked = target.check(wanted, schema, replace).await;
        target.settle().await;
        checked.map(|()| target)
    }

    async fn check(&self, wanted: &Wanted, schema: Option<&str>, replace: bool) -> Result<()> {
        into::check_writable(&self.client).await?;
        if let (Wanted::Tables { tables, .. }, false) = (wanted, replace) {
            let schema = |table: &TableName| schema.map(str::to_owned).or_else(|| table.schema.clone());
            let known: Vec<_> = tables.iter().filter_map(|table| Some((schema(table)?, table.name.clone()))).collect();
            into::check_names(&self.client, &known).await?;
        }
        Ok(())
    }

    /// Lets `asking` decide before tables are dropped.
    pub fn asking(&mut self, asking: Asking) {
        self.asking = Some(asking);
    }

    async fn ask(&self, dropped: &[String]) -> Result<()> {
        if let (Some(asking), false) = (&self.asking, dropped.is_empty())
            && !asking(dropped.to_vec()).await?
        {
            bail!(refuse("not wanted; nothing was changed"));
        }
        Ok(())
    }

    /// Waits until the server has nothing more to say: at the end of this process it would find nobody to say it to, and complain in its log.
    pub async fn settle(&self) {
        let _ = self.client.batch_execute("").await;
    }
}

/// A server that can be asked, and what was found in it.
struct Found {
    server: Server,
    user: String,
    database: String,
    client: Client,
    tables: Vec<Table>,
    /// Without the partitions of others of them.
    named: Vec<Table>,
}

enum Attempt {
    Found(Box<Found>),
    /// Nothing can be said before everything is restored.
    Whole(String),
}

struct Work<'w> {
    repository: Arc<ClusterRepository>,
    plan: &'w RestorePlan,
    options: &'w Options,
    place: &'w Place,
    watch: &'w Watch<'w>,
    cancel: &'w CancellationToken,
    shared: Shared,
    report: Report,
}

impl Work<'_> {
    /// The database that is looked into first.
    fn first(&self) -> &str {
        self.options.database.as_deref().unwrap_or(&self.options.usual_database)
    }

    /// What to restore at first: the database, and the templates, which new databases are copied from.
    fn needed(&self) -> Needed {
        let mut oids: BTreeSet<u32> = self.shared.oids(self.first()).into_iter().collect();
        if oids.is_empty() || self.options.everything {
            return Needed::Everything;
        }
        oids.extend(["template0", "template1"].iter().flat_map(|name| self.shared.oids(name)));
        Needed::Databases(oids)
    }

    fn again(&mut self, reason: &str) -> Result<()> {
        self.note(format!("{reason}; doing it again with the files of every database"));
        self.place.empty()
    }

    fn note(&mut self, note: String) {
        (self.watch)(Told::Note(note.clone()));
        self.report.notes.push(note);
    }

    fn step(&mut self, step: &'static str, since: Instant) {
        self.report.steps.push(Step { step, seconds: since.elapsed().as_secs_f64() });
    }

    /// Recovers what was restored and looks for what is wanted.
    async fn attempt(&mut self, needed: &Needed) -> Result<Attempt> {
        let began = Instant::now();
        let settings = Settings {
            major: self.plan.backup.major_version,
            segment_size: self.repository.identity().segment_size,
            ignore_invalid_pages: *needed != Needed::Everything,
        };
        let mut server = Server::start(self.place, &self.options.postgres, &settings)?;
        let (total, watch) = (self.plan.wal.len() as u64, self.watch);
        let recovery = server.recovered(&|state| watch(Told::Recovering(state.files.min(total), total))).await?;
        self.step("recovery", began);
        if let Some(reason) = unsound(&recovery, needed) {
            return Ok(Attempt::Whole(reason));
        }
        self.report.passed_over_pages = recovery.invalid.len() as u64;
        // A whole database, so that it can be asked about the others: the template, if it is as it usually is.
        let (user, client) = server.superuser(&self.shared.superusers, &["template1", self.first(), "postgres"]).await?;
        let databases = look::databases(&client).await.context("list the databases")?;
        drop(client);
        if let Some(reason) = self.other_database(&databases, needed) {
            return Ok(Attempt::Whole(reason));
        }
        self.find(server, user, &databases, needed).await
    }

    async fn restore(&mut self, needed: &Needed) -> Result<()> {
        let began = Instant::now();
        let filling = Filling {
            restore_command: self.options.restore_command.clone(),
            needed: needed.clone(),
            parallelism: self.options.parallelism,
            in_use: Vec::new(),
        };
        let (repository, watch) = (self.repository.clone(), self.watch);
        let restored =
            fill(repository, self.plan, &self.shared, self.place, filling, &|state| watch(Told::Restoring(state)), self.cancel).await?;
        self.report.fetched_bytes += restored.fetched;
        self.report.backup_stored_bytes = restored.stored;
        for warning in restored.warnings {
            if !self.report.notes.contains(&warning) {
                self.note(warning);
            }
        }
        self.step("restore", began);
        Ok(())
    }

    /// Whether the database of that name is, at the target, another than the one that was restored.
    fn other_database(&self, databases: &[(u32, String)], needed: &Needed) -> Option<String> {
        let (oid, name) = databases.iter().find(|(_, name)| name == self.first())?;
        needed.may_lack(Some(*oid)).then(|| format!("database {name} is another at the target than in the backup"))
    }

    async fn find(&mut self, server: Server, user: String, databases: &[(u32, String)], needed: &Needed) -> Result<Attempt> {
        let first = self.first().to_owned();
        if !databases.iter().any(|(_, name)| *name == first)
            && (self.options.database.is_some() || matches!(self.options.wanted, Wanted::Query(_)))
        {
            let there = databases.iter().map(|(_, name)| quote(name)).collect::<Vec<_>>().join(", ");
            bail!(
                refuse(format!("there was no database {} at the target; there were: {there}", quote(&first)))
                    .hint("name one with --database")
            );
        }
        let Wanted::Tables { tables: wanted, schemas } = &self.options.wanted else {
            let client = server.connect(&user, &first).await?;
            return Ok(Attempt::Found(Box::new(Found { server, user, database: first, client, tables: Vec::new(), named: Vec::new() })));
        };
        let (mut missing, mut other_kind) = (None, None);
        let mut having = Vec::new();
        let usual = databases.iter().filter(|(_, name)| *name == first);
        let others = databases.iter().filter(|(_, name)| *name != first && self.options.database.is_none());
        for (oid, name) in usual.chain(others) {
            if needed.may_lack(Some(*oid)) {
                let reason = format!("what was asked for is not in database {}, and every database is to be looked into", quote(&first));
                return Ok(Attempt::Whole(reason));
            }
            let client = server.connect(&user, name).await?;
            let all = look::tables(&client).await?;
            match look::choose(&all, wanted, schemas) {
                look::Found::All(named) => {
                    let tables = look::with_partitions(&client, &named, &all).await?;
                    having.push((name.clone(), client, named, tables));
                    if *name == first {
                        break;
                    }
                }
                look::Found::Missing(table) => {
                    if let Some(kind) = left_out::no_table(&client, &table).await? {
                        let reason = format!("{kind} in database {} at the target, and only tables are extracted", quote(name));
                        other_kind
                            .get_or_insert(refuse(reason).hint("--query brings its rows: --query 'SELECT * FROM ...' --out FILE.csv"));
                    }
                    missing.get_or_insert((table, name.clone(), all));
                }
                look::Found::Several(table, several) => {
                    let listed = several.iter().map(Table::shown).collect::<Vec<_>>().join(", ");
                    bail!(
                        refuse(format!("several tables of database {} are called {table}: {listed}", quote(name))).hint("name the schema")
                    );
                }
            }
        }
        if having.len() > 1 {
            let listed = having.iter().map(|(name, ..)| quote(name)).collect::<Vec<_>>().join(", ");
            bail!(refuse(format!("several databases have it: {listed}")).hint("name one with --database"));
        }
        match having.pop() {
            Some((database, client, named, tables)) => {
                Ok(Attempt::Found(Box::new(Found { server, user, database, client, tables, named })))
            }
            None => bail!(other_kind.unwrap_or_else(|| not_there(missing))),
        }
    }

    async fn copy(&mut self, found: Box<Found>, target: Option<&Target>) -> Result<()> {
        let Found { server, user, database, client, mut tables, named } = *found;
        self.report.database.clone_from(&database);
        look::roll_back_prepared(&client).await?;
        if let Wanted::Query(query) = &self.options.wanted {
            return self.copy_query(&client, query).await;
        }
        look::settle(&client).await?;
        for note in left_out::contents(&client, &tables).await? {
            self.note(note);
        }
        for note in apart::take_apart(&client, &tables, self.options.schema.as_deref()).await? {
            self.note(note);
        }
        for note in left_out::children(&client, &tables).await? {
            self.note(note);
        }
        look::prepare(&client, &mut tables, self.options.without_foreign_keys, self.options.schema.as_deref()).await?;
        self.note_dependents(&client, &tables).await?;
        let began = Instant::now();
        let mut rows = Vec::new();
        for table in &tables {
            (self.watch)(Told::Copying(&table.shown()));
            rows.push(look::count(&client, table).await?);
        }
        self.step("count", began);
        let relations = look::relations(&client, &tables).await?;
        let (foreign_keys, _) = look::foreign_keys(&client, &tables).await?;
        // Its snapshot would hold nothing up, but pg_dump takes locks that an open session may have.
        drop(client);
        let environment = server.environment(&user, &database);
        let clients = self.options.clients.as_ref().context("pg_dump and psql are not known: a defect of Walkeep")?;
        let (owners, beside) = (self.options.owners, self.options.schema.is_some());
        let dump = copy::Dump { clients, environment: &environment, tables: &tables, owners, beside };
        let began = Instant::now();
        let mut there = vec![None; tables.len()];
        match (&self.options.output, target) {
            (Output::Into(_), Some(target)) => {
                let coming = into::Coming {
                    tables: &tables,
                    relations: &relations,
                    foreign_keys: &foreign_keys,
                    replace: self.options.replace,
                    owners,
                };
                let ready = into::look(&target.client, &coming).await?;
                target.ask(&ready.replaced_shown).await?;
                let load = copy::Load {
                    conninfo: &target.conninfo,
                    password: target.password.as_deref(),
                    schemas: &ready.schemas,
                    drop: &ready.replaced,
                    settings: &ready.settings,
                    rows: &rows,
                };
                dump.load(&load).await?;
                self.step("load", began);
                let began = Instant::now();
                for (table, there) in tables.iter().zip(&mut there) {
                    *there =
                        Some(look::count(&target.client, table).await.context("the tables were loaded, and could not be counted again")?);
                }
                self.step("count in the other server", began);
            }
            (Output::File { path, format }, _) => {
                let file = Filled::begin(path)?;
                dump.to_file(*format, file.temporary()).await?;
                file.publish(self.options.replace)?;
                self.step("dump", began);
            }
            _ => {
                dump.to_file(Format::Plain, None).await?;
                self.step("dump", began);
            }
        }
        let named: Vec<u32> = named.iter().map(|table| table.oid).collect();
        let of_all = tables.iter().zip(rows).zip(there).filter(|((table, _), _)| named.contains(&table.oid));
        let copied =
            of_all.map(|((table, rows), rows_there)| Copied { schema: table.schema.clone(), name: table.name.clone(), rows, rows_there });
        self.report.tables = copied.collect();
        Ok(())
    }

    async fn copy_query(&mut self, client: &Client, query: &str) -> Result<()> {
        let began = Instant::now();
        (self.watch)(Told::Copying("the query's rows"));
        let rows = match &self.options.output {
            Output::File { path, .. } => {
                let file = Filled::begin_unnamed(path)?;
                let mut to = std::io::BufWriter::with_capacity(walkeep_store::write::STEP, file.file());
                let rows = copy::query(client, query, &mut to).await?;
                to.flush()?;
                drop(to);
                file.publish(self.options.replace)?;
                rows
            }
            _ => copy::query(client, query, &mut std::io::stdout()).await?,
        };
        self.report.rows = Some(rows);
        self.step("query", began);
        Ok(())
    }

    /// What goes with a dropped table and is not copied.
    async fn note_dependents(&mut self, client: &Client, tables: &[Table]) -> Result<()> {
        if self.options.schema.is_some() {
            return Ok(());
        }
        let (_, from_others) = look::foreign_keys(client, tables).await?;
        for key in from_others {
            self.note(format!("not copied, a foreign key of another table: {}", key.statement()));
        }
        for view in look::views(client, tables).await? {
            self.note(format!("not copied, a view that reads it: {view}"));
        }
        Ok(())
    }
}

/// Replay missed pages of what had to be whole.
fn unsound(recovery: &Recovery, needed: &Needed) -> Option<String> {
    let missed = recovery.invalid.iter().find(|page| !needed.may_lack(page.database));
    missed.map(|page| format!("replay missed a page: {}", page.line))
}

fn not_there(missing: Option<(TableName, String, Vec<Table>)>) -> Refused {
    let Some((wanted, database, all)) = missing else {
        return refuse("there was no database to look into at the target").hint("name one with --database");
    };
    let name = if wanted.name == "*" { wanted.schema.clone().unwrap_or_default() } else { wanted.name.clone() };
    let what = if wanted.name == "*" { "schema with tables" } else { "table" };
    let shown = if wanted.name == "*" { quote(&name) } else { wanted.to_string() };
    let refused = refuse(format!("there was no {what} {shown} in database {} at the target", quote(&database)));
    let key = |table: &Table| if wanted.name == "*" { table.schema.clone() } else { table.name.clone() };
    let names: Vec<(String, String)> = all.iter().map(|table| (key(table), table.shown())).collect();
    let similar = name::similar(&name, names.iter().map(|(name, shown)| (name.as_str(), shown.clone())));
    match similar.as_slice() {
        [] => refused.hint("`walkeep log --dropped` tells what was dropped when; --database names another database"),
        similar => refused.hint(format!("there were: {}", similar.join(", "))),
    }
}

#[cfg(test)]
mod tests {
    use walkeep_core::partial::reference;

    use super::*;

    #[test]
    fn a_page_that_was_missed_decides_whether_the_result_can_be_believed() {
        let needed = Needed::Databases(BTreeSet::from([1, 16384]));
        let missed = |path: &str| {
            let line = format!("WARNING:  page 7 of relation {path} is uninitialized");
            unsound(&Recovery { files: 1, invalid: reference(&line).into_iter().collect() }, &needed)
        };
        assert_eq!(missed("base/16385/2619"), None);
        for path in ["base/16384/2619", "base/1/1259", "global/1262", "pg_tblspc/16400/PG_15_202209061/16384/7", "something/new"] {
            assert!(missed(path).is_some_and(|reason| reason.contains(path)), "{path}");
        }
        assert_eq!(unsound(&Recovery::default(), &needed), None);
    }

    #[test]
    fn a_table_that_was_not_there_is_told_with_those_that_are_like_it() {
        let table =
            |schema: &str, name: &str| Table { oid: 1, schema: schema.into(), name: name.into(), partitioned: false, owner: "o".into() };
        let all = vec![table("shop", "orders"), table("shop", "Order Lines"), table("hr", "staff")];
        let missing = |text: &str| not_there(Some((TableName::parse(text).unwrap(), "shop".into(), all.clone())));
        assert_eq!(missing("oders").to_string(), "there was no table oders in database shop at the target");
        assert_eq!(missing("oders").hint.unwrap(), "there were: shop.orders");
        let schema = missing("shopp.\"*\"");
        assert_eq!(schema.to_string(), "there was no schema with tables shopp in database shop at the target");
        assert!(schema.hint.unwrap().contains("shop.orders"));
        assert!(missing("zzzzzzzz").hint.unwrap().contains("walkeep log"));
    }
}
