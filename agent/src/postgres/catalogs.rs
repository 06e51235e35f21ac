//! The questions behind a catalog snapshot: which databases there are, and what is in the catalogs of one.
//!
//! Everything asked here is readable by every role. Sessions are short, and wait for no lock long: `CREATE DATABASE` and `DROP DATABASE` wait a few
//! seconds for others to leave a database, and then fail.

use std::pin::pin;

use futures::TryStreamExt;
use tokio_postgres::types::{FromSql, ToSql, Type};
use tokio_postgres::{Client, Row};
use walkeep_core::names::{Relation, RelationKind, SnapshotWriter};
use walkeep_core::{Lsn, PgTimestamp, SystemIdentifier, TimelineId};

use super::error::Error;
use super::params::ConnectionParams;
use super::sql::connect_sql;

/// The first OID that initdb does not give: what is below is the system's own.
const FIRST_USER_OID: u32 = 16_384;

/// A name in the database's own bytes: in a database of encoding SQL_ASCII they may be no UTF-8.
struct Text(String);

impl<'a> FromSql<'a> for Text {
    fn from_sql(_: &Type, raw: &'a [u8]) -> Result<Self, Box<dyn std::error::Error + Sync + Send>> {
        Ok(Self(String::from_utf8_lossy(raw).into_owned()))
    }

    fn accepts(kind: &Type) -> bool {
        *kind == Type::NAME
    }
}

/// Where a server stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Place {
    /// Which cluster it is.
    pub system: SystemIdentifier,
    /// Whether it is a standby.
    pub in_recovery: bool,
    /// Up to where WAL was written, or replayed.
    pub written: Lsn,
    /// Up to where it was inserted, or replayed: no commit lies behind that anybody can see.
    pub inserted: Lsn,
    /// The timeline; a standby does not tell by SQL.
    pub timeline: Option<TimelineId>,
    /// Its clock.
    pub now: PgTimestamp,
}

/// Asks where the server stands.
pub async fn place(client: &Client) -> Result<Place, Error> {
    let query = "SELECT (SELECT system_identifier::text FROM pg_catalog.pg_control_system()), recovers, \
                 CASE WHEN recovers THEN pg_catalog.pg_last_wal_replay_lsn() ELSE pg_catalog.pg_current_wal_lsn() END::text, \
                 CASE WHEN recovers THEN pg_catalog.pg_last_wal_replay_lsn() ELSE pg_catalog.pg_current_wal_insert_lsn() END::text, \
                 CASE WHEN NOT recovers THEN left(pg_catalog.pg_walfile_name(pg_catalog.pg_current_wal_lsn()), 8) END, \
                 (extract(epoch FROM clock_timestamp() - timestamptz '2000-01-01 00:00+00') * 1000000)::bigint \
                 FROM (SELECT pg_catalog.pg_is_in_recovery() AS recovers) AS state";
    let row = client.query_one(query, &[]).await?;
    let wrong = |what: &str| Error::Protocol(format!("the server does not tell {what}"));
    let lsn = |column| -> Result<Lsn, Error> {
        row.try_get::<_, Option<&str>>(column)?.and_then(|text| text.parse().ok()).ok_or_else(|| wrong("its WAL position"))
    };
    let system = row.try_get::<_, &str>(0)?.parse().map(SystemIdentifier::new).map_err(|_| wrong("its system identifier"))?;
    Ok(Place {
        system,
        in_recovery: row.try_get(1)?,
        written: lsn(2)?,
        inserted: lsn(3)?,
        timeline: row.try_get::<_, Option<&str>>(4)?.and_then(TimelineId::parse_hex),
        now: PgTimestamp::from_micros(row.try_get(5)?),
    })
}

/// A row of `pg_database`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DatabaseRow {
    /// Its oid.
    pub oid: u32,
    /// Its name.
    pub name: String,
    /// Its default tablespace.
    pub tablespace: u32,
    /// Whether anybody may connect to it.
    pub connectable: bool,
    /// Whether it is there to be copied.
    pub template: bool,
}

/// The databases.
pub async fn databases(client: &Client) -> Result<Vec<DatabaseRow>, Error> {
    // A limit of -2: a DROP DATABASE was under way, and nobody may connect any more.
    let query =
        "SELECT oid, datname, dattablespace, datallowconn AND datconnlimit <> -2, datistemplate FROM pg_catalog.pg_database ORDER BY oid";
    let row = |row: Row| -> Result<DatabaseRow, Error> {
        let name = row.try_get::<_, Text>(1)?.0;
        Ok(DatabaseRow { oid: row.try_get(0)?, name, tablespace: row.try_get(2)?, connectable: row.try_get(3)?, template: row.try_get(4)? })
    };
    client.query(query, &[]).await?.into_iter().map(row).collect()
}

/// Connects to a database of the cluster, for a question that waits for nobody.
pub async fn connect(params: &ConnectionParams, database: &str) -> Result<Client, Error> {
    let client = connect_sql(&params.for_database(database)).await?;
    client.batch_execute("SET lock_timeout = '3s'; SET statement_timeout = '60s'").await?;
    Ok(client)
}

/// Writes the schemas and relations of the database that `client` is connected to, as they are in one moment.
pub async fn relations(client: &Client, writer: &mut SnapshotWriter) -> Result<(), Error> {
    let query = "SELECT c.oid, c.relfilenode, c.reltablespace, c.relkind::text, c.relpersistence::text, c.relnamespace, c.relname, n.nspname, \
                 coalesce(i.indrelid, t.oid, p.inhparent, s.refobjid, 0::oid) \
                 FROM pg_catalog.pg_class c JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace \
                 LEFT JOIN pg_catalog.pg_index i ON i.indexrelid = c.oid \
                 LEFT JOIN pg_catalog.pg_class t ON c.relkind = 't' AND t.reltoastrelid = c.oid \
                 LEFT JOIN pg_catalog.pg_inherits p ON c.relispartition AND p.inhrelid = c.oid \
                 LEFT JOIN (SELECT objid, min(refobjid::bigint)::oid AS refobjid FROM pg_catalog.pg_depend \
                 WHERE classid = 1259 AND refclassid = 1259 AND deptype IN ('a', 'i') GROUP BY objid) s ON c.relkind = 'S' AND s.objid = c.oid \
                 WHERE c.oid >= $1 AND c.relkind IN ('r', 'i', 'S', 't', 'm', 'p') AND c.relpersistence <> 't' ORDER BY c.oid";
    let mut schemas = std::collections::HashSet::new();
    let first: [&(dyn ToSql + Sync); 1] = [&FIRST_USER_OID];
    let mut rows = pin!(client.query_raw(query, first).await?);
    while let Some(row) = rows.try_next().await? {
        let letter = |column| -> Result<char, Error> { Ok(row.try_get::<_, &str>(column)?.chars().next().unwrap_or(' ')) };
        let Some(kind) = RelationKind::of_letter(letter(3)?) else { continue };
        let relation = Relation {
            oid: row.try_get(0)?,
            file: row.try_get(1)?,
            tablespace: row.try_get(2)?,
            kind,
            persistence: letter(4)?,
            schema: row.try_get(5)?,
            name: row.try_get::<_, Text>(6)?.0,
            owner: row.try_get(8)?,
        };
        if schemas.insert(relation.schema) {
            writer.schema(relation.schema, &row.try_get::<_, Text>(7)?.0);
        }
        writer.relation(&relation);
    }
    Ok(())
}

/// What tells that relations of a database were made, rewritten or renamed, without reading its catalogs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Seen {
    /// The highest `pg_class.oid`. New ones are higher, until the counter of the cluster begins anew.
    pub oid: u32,
    /// The highest `pg_class.relfilenode`.
    pub file: u32,
    /// How many rows of `pg_class` and `pg_namespace` were updated, as the server's statistics count them.
    pub updates: i64,
    /// A sum over the names of relations and schemas.
    pub names: i64,
}

/// Whether relations that are not temporary were made, rewritten or renamed since `before`, and what there is to be seen now. Reads a few pages of indexes,
/// and `pg_class` where rows of it were updated: a new name is no new number.
pub async fn made_since(client: &Client, before: Seen) -> Result<(bool, Seen), Error> {
    let query = "WITH space AS (SELECT 0::oid AS oid UNION ALL SELECT oid FROM pg_catalog.pg_tablespace) \
                 SELECT EXISTS (SELECT FROM pg_catalog.pg_class WHERE oid > $1 AND relpersistence <> 't' AND relkind IN ('r', 'i', 'S', 't', 'm', 'p')) \
                 OR EXISTS (SELECT FROM space, LATERAL (SELECT FROM pg_catalog.pg_class \
                 WHERE reltablespace = space.oid AND relfilenode > $2 AND relpersistence <> 't' LIMIT 1) AS newer), \
                 coalesce((SELECT max(oid) FROM pg_catalog.pg_class), 0::oid), \
                 coalesce((SELECT max(highest) FROM space, LATERAL \
                 (SELECT max(relfilenode) AS highest FROM pg_catalog.pg_class WHERE reltablespace = space.oid) AS of), 0::oid), \
                 coalesce(pg_catalog.pg_stat_get_tuples_updated('pg_catalog.pg_class'::regclass), 0) \
                 + coalesce(pg_catalog.pg_stat_get_tuples_updated('pg_catalog.pg_namespace'::regclass), 0)";
    let row = client.query_one(query, &[&before.oid, &before.file]).await?;
    let (made, oid, file, updates): (bool, u32, u32, i64) = (row.try_get(0)?, row.try_get(1)?, row.try_get(2)?, row.try_get(3)?);
    let names = if updates == before.updates { before.names } else { names(client).await? };
    Ok((made || names != before.names, Seen { oid, file, updates, names }))
}

async fn names(client: &Client) -> Result<i64, Error> {
    let query = "SELECT (coalesce((SELECT sum(pg_catalog.hashtext(oid::text || ' ' || relnamespace::text || ' ' || relname::text)) FROM pg_catalog.pg_class \
                 WHERE relpersistence <> 't' AND oid >= 16384), 0) \
                 + coalesce((SELECT sum(pg_catalog.hashtext(oid::text || ' ' || nspname::text)) FROM pg_catalog.pg_namespace), 0))::int8";
    Ok(client.query_one(query, &[]).await?.try_get(0)?)
}
