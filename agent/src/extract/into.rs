//! The server that gets the tables: what is in the way there, before anything is sent.

use std::collections::{BTreeSet, HashSet};

use anyhow::{Context, Result, bail};
use tokio_postgres::Client;

use super::look::{ForeignKey, Table};
use super::{Refused, refuse};
use walkeep_core::identifier::{always_quoted, printable, quote};

/// What was found there.
#[derive(Debug, Clone, Default)]
pub struct Ready {
    /// Schemas to be made.
    pub schemas: Vec<String>,
    /// Tables that are there, to be replaced, for SQL.
    pub replaced: Vec<String>,
    /// The same, for people.
    pub replaced_shown: Vec<String>,
    /// The names of the settings it knows.
    pub settings: HashSet<String>,
}

/// What is to come.
#[derive(Debug)]
pub struct Coming<'t> {
    /// The tables.
    pub tables: &'t [Table],
    /// Names that come with them: schema and name.
    pub relations: &'t [(String, String)],
    /// Foreign keys to other tables.
    pub foreign_keys: &'t [ForeignKey],
    /// Whether tables that are there are dropped.
    pub replace: bool,
    /// Whether they get the owners they had.
    pub owners: bool,
}

/// Whether the server takes tables at all.
pub async fn check_writable(client: &Client) -> Result<()> {
    let standby: bool = client.query_one("SELECT pg_catalog.pg_is_in_recovery()", &[]).await?.try_get(0)?;
    if standby {
        bail!(refuse("the server of --into is a standby, which takes no tables").hint("name the primary"));
    }
    Ok(())
}

/// Refuses tables that are there. Known before anything is restored, if their names say the schema.
pub async fn check_names(client: &Client, tables: &[(String, String)]) -> Result<()> {
    let there = existing(client, tables).await?;
    if there.is_empty() { Ok(()) } else { Err(in_the_way(&there.into_iter().map(|relation| relation.shown).collect::<Vec<_>>()).into()) }
}

fn in_the_way(shown: &[String]) -> Refused {
    let (is, it) = if shown.len() == 1 { ("is", "it") } else { ("are", "them") };
    refuse(format!("{} {is} there already in the database of --into; nothing was changed", shown.join(", ")))
        .hint(format!("--replace drops {it} and makes {it} anew, in one transaction; --as SCHEMA puts the old state beside {it}"))
}

/// Looks for everything that would make the loading fail, and refuses by name.
pub async fn look(client: &Client, coming: &Coming<'_>) -> Result<Ready> {
    let there = existing(client, coming.relations).await?;
    let is_table = |schema: &str, name: &str| coming.tables.iter().any(|table| table.schema == schema && table.name == name);
    let (tables, others): (Vec<_>, Vec<_>) = there.into_iter().partition(|relation| is_table(&relation.schema, &relation.name));
    if !coming.replace && !tables.is_empty() {
        bail!(in_the_way(&tables.iter().map(|relation| relation.shown.clone()).collect::<Vec<_>>()));
    }
    let oids: HashSet<u32> = tables.iter().map(|relation| relation.oid).collect();
    if let Some(relation) = tables.iter().find(|relation| !["r", "p"].contains(&relation.kind.as_str())) {
        bail!(refuse(format!("{} is there in the database of --into, and is no table; nothing was changed", relation.shown)));
    }
    let foreign: Vec<_> = others.iter().filter(|relation| relation.of.is_none_or(|of| !oids.contains(&of))).collect();
    if let Some(relation) = foreign.first() {
        let what = if relation.kind == "i" { "an index of another table" } else { "another relation" };
        let reason =
            format!("{}, which comes with the tables, is {what} already in the database of --into; nothing was changed", relation.shown);
        bail!(refuse(reason).hint("--as SCHEMA puts everything into another schema"));
    }
    let replaced: Vec<u32> = tables.iter().map(|relation| relation.oid).collect();
    not_coming_back(client, &replaced).await?;
    missing_references(client, coming).await?;
    if coming.owners {
        missing_owners(client, coming.tables).await?;
    }
    let schemas: BTreeSet<&str> = coming.tables.iter().map(|table| table.schema.as_str()).collect();
    let query = "SELECT name FROM unnest($1::text[]) AS name WHERE name NOT IN (SELECT nspname FROM pg_catalog.pg_namespace) ORDER BY 1";
    let missing = client.query(query, &[&schemas.into_iter().collect::<Vec<_>>()]).await.context("look for the schemas")?;
    let settings = client.query("SELECT name FROM pg_catalog.pg_settings", &[]).await.context("list the settings")?;
    Ok(Ready {
        schemas: missing.iter().map(|row| row.try_get(0)).collect::<Result<_, _>>()?,
        replaced: tables.iter().map(|relation| format!("{}.{}", always_quoted(&relation.schema), always_quoted(&relation.name))).collect(),
        replaced_shown: replaced_shown(client, &replaced).await?,
        settings: settings.iter().map(|row| row.try_get(0)).collect::<Result<_, _>>()?,
    })
}

struct Existing {
    oid: u32,
    schema: String,
    name: String,
    kind: String,
    /// The table whose index it is, or that owns it.
    of: Option<u32>,
    shown: String,
}

async fn existing(client: &Client, relations: &[(String, String)]) -> Result<Vec<Existing>> {
    let (schemas, names): (Vec<&str>, Vec<&str>) = relations.iter().map(|(schema, name)| (schema.as_str(), name.as_str())).unzip();
    let query = "SELECT c.oid, n.nspname::text, c.relname::text, c.relkind::text, coalesce((SELECT indrelid FROM pg_catalog.pg_index WHERE indexrelid = c.oid), \
         (SELECT min(refobjid::bigint)::oid FROM pg_catalog.pg_depend WHERE c.relkind = 'S' AND classid = 'pg_catalog.pg_class'::pg_catalog.regclass \
         AND refclassid = 'pg_catalog.pg_class'::pg_catalog.regclass AND objid = c.oid AND deptype IN ('a', 'i'))) \
         FROM pg_catalog.pg_class c JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace \
         JOIN unnest($1::text[], $2::text[]) AS wanted (schema, name) ON n.nspname = wanted.schema AND c.relname = wanted.name ORDER BY 2, 3";
    let rows = client.query(query, &[&schemas, &names]).await.context("look for tables of these names")?;
    rows.iter()
        .map(|row| {
            let (schema, name): (String, String) = (row.try_get(1)?, row.try_get(2)?);
            let shown = printable(&format!("{}.{}", quote(&schema), quote(&name)));
            Ok(Existing { oid: row.try_get(0)?, schema, name, kind: row.try_get(3)?, of: row.try_get(4)?, shown })
        })
        .collect()
}

/// Refuses to drop what belongs to these tables and is not one of them: partitions that were made after the target would be lost with their rows.
async fn not_coming_back(client: &Client, replaced: &[u32]) -> Result<()> {
    let query = "WITH RECURSIVE tree AS (SELECT inhrelid, inhparent FROM pg_catalog.pg_inherits WHERE inhparent = ANY ($1) \
         UNION SELECT i.inhrelid, i.inhparent FROM pg_catalog.pg_inherits i JOIN tree ON i.inhparent = tree.inhrelid) \
         SELECT DISTINCT format('%s.%s', quote_ident(n.nspname), quote_ident(c.relname)), c.relispartition, tree.inhparent::pg_catalog.regclass::text \
         FROM tree JOIN pg_catalog.pg_class c ON c.oid = tree.inhrelid JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace \
         WHERE NOT tree.inhrelid = ANY ($1) ORDER BY 1, 3";
    let rows = client.query(query, &[&replaced]).await.context("list what belongs to the tables to be replaced")?;
    let mut lost = Vec::new();
    for row in rows {
        let (child, partition, parent): (&str, bool, &str) = (row.try_get(0)?, row.try_get(1)?, row.try_get(2)?);
        lost.push(format!("{child} ({} {parent})", if partition { "a partition of" } else { "inherits from" }));
    }
    if lost.is_empty() {
        return Ok(());
    }
    let reason = format!(
        "--replace would drop what is in the database of --into and does not come back out of the past: {}; nothing was changed",
        lost.join(", ")
    );
    bail!(refuse(reason).hint("--as SCHEMA puts the old state beside it; or detach it first (ALTER TABLE ... DETACH PARTITION)"))
}

/// The tables to be dropped as a question names them.
async fn replaced_shown(client: &Client, replaced: &[u32]) -> Result<Vec<String>> {
    let query = "SELECT quote_ident(n.nspname) || '.' || quote_ident(c.relname) || coalesce((SELECT ' (a partition of ' || string_agg(inhparent::pg_catalog.regclass::text, ', ') || ')' \
         FROM pg_catalog.pg_inherits WHERE inhrelid = c.oid AND c.relispartition AND NOT inhparent = ANY ($1)), '') \
         FROM pg_catalog.pg_class c JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace WHERE c.oid = ANY ($1) ORDER BY 1";
    let rows = client.query(query, &[&replaced]).await.context("name the tables to be replaced")?;
    rows.iter().map(|row| Ok(printable(row.try_get(0)?))).collect()
}

async fn missing_references(client: &Client, coming: &Coming<'_>) -> Result<()> {
    let wanted: Vec<_> = coming.foreign_keys.iter().map(|key| key.to.clone()).collect();
    let there: HashSet<_> = existing(client, &wanted).await?.into_iter().map(|relation| (relation.schema, relation.name)).collect();
    let missing: Vec<_> = coming.foreign_keys.iter().filter(|key| !there.contains(&key.to)).collect();
    if missing.is_empty() {
        return Ok(());
    }
    let told = missing.iter().map(|key| format!("{} of {} needs {}.{}", key.name, key.table, quote(&key.to.0), quote(&key.to.1)));
    let reason = format!(
        "foreign keys would fail, as the tables they refer to are not in the database of --into: {}; nothing was changed",
        told.collect::<Vec<_>>().join("; ")
    );
    bail!(refuse(reason).hint("name those tables with --table too, or leave the keys out with --without-foreign-keys"))
}

async fn missing_owners(client: &Client, tables: &[Table]) -> Result<()> {
    let owners: BTreeSet<&str> = tables.iter().map(|table| table.owner.as_str()).collect();
    let query = "SELECT name FROM unnest($1::text[]) AS name WHERE name NOT IN (SELECT rolname FROM pg_catalog.pg_roles) ORDER BY 1";
    let missing = client.query(query, &[&owners.into_iter().collect::<Vec<_>>()]).await.context("look for the owners")?;
    let missing: Vec<String> = missing.iter().map(|row| row.try_get(0)).collect::<Result<_, _>>()?;
    if missing.is_empty() {
        return Ok(());
    }
    let missing = missing.iter().map(|role| quote(role)).collect::<Vec<_>>().join(", ");
    let reason = format!("the tables belong to {missing}, and the server of --into has no such role; nothing was changed");
    bail!(refuse(reason).hint("--no-owner leaves them to the role that loads them, without the rights that others had"))
}
