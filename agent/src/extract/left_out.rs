//! What does not come along with tables, though one might think so: told, so that nobody finds out later.

use anyhow::{Context, Result};
use tokio_postgres::Client;

use super::look::{Table, count, oids};
use super::name::TableName;
use walkeep_core::identifier::{printable, quote};

/// Tables that inherit from these and were not asked for, with their rows, which a query of the parent would have shown.
pub async fn children(client: &Client, tables: &[Table]) -> Result<Vec<String>> {
    let query = "WITH RECURSIVE tree AS (SELECT inhrelid FROM pg_catalog.pg_inherits WHERE inhparent = ANY ($1) \
         UNION SELECT i.inhrelid FROM pg_catalog.pg_inherits i JOIN tree ON i.inhparent = tree.inhrelid) \
         SELECT c.oid, n.nspname::text, c.relname::text, c.relkind = 'p', pg_catalog.pg_get_userbyid(c.relowner)::text, c.relkind = 'f' FROM tree \
         JOIN pg_catalog.pg_class c ON c.oid = tree.inhrelid JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace \
         WHERE NOT c.oid = ANY ($1) AND c.relkind IN ('r', 'p', 'f') ORDER BY 2, 3";
    let mut told = Vec::new();
    for row in client.query(query, &[&oids(tables)]).await.context("list what inherits from the tables")? {
        let (schema, name) = (row.try_get(1)?, row.try_get(2)?);
        let child = Table { oid: row.try_get(0)?, schema, name, partitioned: row.try_get(3)?, owner: row.try_get(4)? };
        let shown = child.shown();
        told.push(if row.try_get(5)? {
            format!("not copied, a foreign table that belongs to it: {shown}")
        } else {
            let rows = count(client, &child).await?;
            format!("not copied, a table that inherits from it: {shown}, rows: {rows}; --table {shown} brings it too")
        });
    }
    Ok(told)
}

/// Large objects, if the tables look as if they named some; and rows of unlogged tables.
pub async fn contents(client: &Client, tables: &[Table]) -> Result<Vec<String>> {
    let query = "WITH RECURSIVE kind AS (SELECT 'pg_catalog.oid'::pg_catalog.regtype::oid AS oid \
         UNION SELECT t.oid FROM pg_catalog.pg_type t JOIN kind ON t.typbasetype = kind.oid) \
         SELECT c.oid, c.relpersistence = 'u', EXISTS (SELECT FROM pg_catalog.pg_largeobject_metadata) AND EXISTS \
         (SELECT FROM pg_catalog.pg_attribute a WHERE a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped AND a.atttypid IN (SELECT oid FROM kind)) \
         FROM pg_catalog.pg_class c WHERE c.oid = ANY ($1) AND c.relkind <> 'p' ORDER BY c.relname, c.oid";
    let rows = client.query(query, &[&oids(tables)]).await.context("look at the kinds of the tables")?;
    let of = |column: usize| -> Result<Vec<String>> {
        let mut found = Vec::new();
        for row in &rows {
            let (oid, is): (u32, bool) = (row.try_get(0)?, row.try_get(column)?);
            found.extend(tables.iter().filter(|table| is && table.oid == oid).map(Table::shown));
        }
        Ok(found)
    };
    let unlogged =
        of(1)?.into_iter().map(|table| format!("{table} is unlogged: neither backup nor WAL have its rows, and it comes without any"));
    let naming = of(2)?;
    let objects = (!naming.is_empty()).then(|| {
        format!(
            "not copied: large objects, which columns of type oid may refer to, in {}; restore the cluster to get at them",
            naming.join(", ")
        )
    });
    Ok(unlogged.chain(objects).collect())
}

/// What else than a table has the name: told instead of "no table".
pub async fn no_table(client: &Client, wanted: &TableName) -> Result<Option<String>> {
    let query = "SELECT n.nspname::text, c.relname::text, CASE c.relkind WHEN 'm' THEN 'a materialized view' WHEN 'v' THEN 'a view' \
         WHEN 'f' THEN 'a foreign table' WHEN 'S' THEN 'a sequence' WHEN 'r' THEN 'a temporary table' WHEN 'c' THEN 'a type' ELSE 'an index' END \
         FROM pg_catalog.pg_class c JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace \
         WHERE c.relname = $2 AND n.nspname = coalesce($1::text, n.nspname::text) AND n.nspname <> 'information_schema' AND n.nspname !~ '^pg_' ORDER BY 1 LIMIT 1";
    let found = client.query_opt(query, &[&wanted.schema, &wanted.name]).await.context("look for what else is called so")?;
    found
        .map(|row| {
            let (schema, name, kind): (&str, &str, &str) = (row.try_get(0)?, row.try_get(1)?, row.try_get(2)?);
            Ok(printable(&format!("{}.{} is {kind}", quote(schema), quote(name))))
        })
        .transpose()
}
