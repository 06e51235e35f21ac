//! Samples of rows: how many each table of the running server has, in a state that it once showed. What a drill can conclude from one is
//! `walkeep_core::drill::rows`' to say.
//!
//! Counting is reading: the smallest tables are counted, up to so many bytes, in one transaction for each database, which ends soon, as it keeps vacuum
//! from removing rows meanwhile.

use std::collections::BTreeMap;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use chrono::{DateTime, Utc};
use tokio_postgres::Client;
use walkeep_core::drill::rows::{RowSample, SampleName, SampledDatabase, SampledTable};
use walkeep_core::identifier::always_quoted;
use walkeep_core::{Lsn, SystemIdentifier};

use crate::config::ByteSize;
use crate::postgres::catalogs;
use crate::postgres::{ConnectionParams, connect_sql};

/// One database takes no longer.
const ONE_DATABASE: Duration = Duration::from_secs(60);
/// Nor do all of them together.
const ALL: Duration = Duration::from_secs(300);
/// No more tables of a database are counted.
const TABLES: i64 = 5000;

/// Counts the rows of the cluster `system`, reading no more than `limit` bytes of tables.
pub async fn take(params: &ConnectionParams, system: SystemIdentifier, limit: ByteSize) -> Result<RowSample> {
    tokio::time::timeout(ALL, take_all(params, system, limit)).await.context("the databases took too long")?
}

async fn take_all(params: &ConnectionParams, system: SystemIdentifier, limit: ByteSize) -> Result<RowSample> {
    let client = connect_sql(params).await.context("connect for SQL")?;
    let place = catalogs::place(&client).await.context("ask where the server stands")?;
    ensure!(place.system == system, "the server has system identifier {}, not {system}", place.system);
    // What a standby shows is behind, and its positions are another server's.
    let timeline = place.timeline.filter(|_| !place.in_recovery).context("the server is a standby: rows are counted on the primary")?;
    let taken_at = place.now.to_utc().unwrap_or_default();
    let (mut counted, mut left_out, mut budget) = (Vec::new(), BTreeMap::new(), limit.0);
    for database in catalogs::databases(&client).await.context("list the databases")? {
        if database.template || !database.connectable {
            continue;
        }
        let one = tokio::time::timeout(ONE_DATABASE, count(params, &database.name, system, &mut budget)).await;
        match one.context("it took too long").flatten() {
            Ok(of_it) => counted.push(of_it),
            Err(error) => drop(left_out.insert(database.name, format!("{error:#}"))),
        }
    }
    ensure!(!counted.is_empty(), "no database could be counted: {left_out:?}");
    let end = catalogs::place(&client).await.context("ask where the server stands")?;
    ensure!((end.in_recovery, end.timeline) == (place.in_recovery, place.timeline), "the server was promoted meanwhile");
    let lsn = counted.iter().map(|database| database.lsn).max().unwrap_or(end.inserted);
    Ok(RowSample { format: RowSample::FORMAT, name: SampleName { timeline, lsn }, taken_at, databases: counted, left_out })
}

/// The tables of one database, the smallest first.
async fn count(params: &ConnectionParams, database: &str, system: SystemIdentifier, budget: &mut u64) -> Result<SampledDatabase> {
    let client = catalogs::connect(params, database).await?;
    // Of several hosts another one may answer now.
    let place = catalogs::place(&client).await?;
    ensure!(place.system == system && !place.in_recovery, "another server answered");
    // A policy that hides rows is an error then, and no smaller number.
    client.batch_execute("SET row_security = off; BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY").await?;
    // The first statement takes the snapshot. What that sees stands in the WAL before; so it does before a position that is asked for behind it.
    let snapshot: String = client.query_one("SELECT pg_catalog.pg_current_snapshot()::text", &[]).await?.try_get(0)?;
    let lsn: String = client.query_one("SELECT pg_catalog.pg_current_wal_insert_lsn()::text", &[]).await?.try_get(0)?;
    let (snapshot, lsn): (_, Lsn) = (snapshot.parse()?, lsn.parse().ok().context("understand the server's position")?);
    // Unlogged tables are empty behind a recovery; partitions are counted each by itself.
    let from = "FROM pg_catalog.pg_class c JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace \
         WHERE c.relkind = 'r' AND c.relpersistence = 'p' AND n.nspname <> 'information_schema' AND n.nspname !~ '^pg_'";
    let all: i64 = client.query_one(&format!("SELECT count(*) {from}"), &[]).await.context("count the tables")?.try_get(0)?;
    let smallest = format!(
        "SELECT schema, name, pg_catalog.pg_relation_size(oid) FROM (SELECT c.oid, n.nspname::text AS schema, c.relname::text AS name {from} \
         AND pg_catalog.has_table_privilege(c.oid, 'SELECT') AND pg_catalog.has_schema_privilege(n.oid, 'USAGE') \
         ORDER BY c.relpages, 2, 3 LIMIT {TABLES}) AS smallest ORDER BY 3, 1, 2"
    );
    let rows = client.query(&smallest, &[]).await.context("list the tables")?;
    let mut tables = Vec::new();
    for row in rows {
        let (schema, name, size): (String, String, Option<i64>) = (row.try_get(0)?, row.try_get(1)?, row.try_get(2)?);
        // One that was dropped meanwhile has no size.
        let Some(size) = size.map(i64::unsigned_abs).filter(|size| *size <= *budget) else { continue };
        *budget -= size;
        tables.extend(rows_of(&client, &schema, &name).await?.map(|rows| SampledTable { schema, name, rows }));
    }
    client.batch_execute("COMMIT").await?;
    let left_out = all.unsigned_abs().saturating_sub(tables.len() as u64);
    Ok(SampledDatabase { name: database.to_owned(), snapshot, lsn, tables, left_out })
}

/// Nothing where the table is locked for long, or a policy hides rows of it.
async fn rows_of(client: &Client, schema: &str, name: &str) -> Result<Option<u64>> {
    client.batch_execute("SAVEPOINT one").await?;
    let query = format!("SELECT count(*) FROM ONLY {}.{}", always_quoted(schema), always_quoted(name));
    match client.query_one(&query, &[]).await {
        Ok(row) => Ok(Some(row.try_get::<_, i64>(0)?.unsigned_abs())),
        Err(error) if client.is_closed() => Err(error.into()),
        Err(_) => {
            client.batch_execute("ROLLBACK TO SAVEPOINT one").await?;
            Ok(None)
        }
    }
}

/// Whether the next one is due.
pub fn is_due(last: Option<DateTime<Utc>>, every: Duration, now: DateTime<Utc>) -> bool {
    let every = chrono::TimeDelta::from_std(every).unwrap_or(chrono::TimeDelta::MAX);
    // A time that is still to come is of a clock that was ahead.
    last.is_none_or(|last| last > now || now - last >= every)
}
