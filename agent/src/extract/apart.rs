//! Takes tables apart from parents that do not come along, in the scratch server.
//!
//! A dump of a partition, or of a table that inherits, names its parent. Loaded, it would become a part of the parent that is there now: the rows of a
//! table that nobody asked to change would be others. So it is made a table of its own, and told is what makes it a part again. Nothing here runs that.

use anyhow::{Context, Result};
use tokio_postgres::Client;

use super::look::{Table, oids};

/// Detaches what of these tables belongs to others; answers what is to be told. `schema`: where the tables will be, if not where they are.
pub async fn take_apart(client: &Client, tables: &[Table], schema: Option<&str>) -> Result<Vec<String>> {
    // A column that 13 does not have says whether somebody has begun to detach it.
    let query = "SELECT format('%I.%I', pn.nspname, p.relname), format('%I.%I', cn.nspname, c.relname), format('%I.%I', coalesce($2::text, cn.nspname::text), c.relname), \
         c.relispartition, pg_catalog.pg_get_expr(c.relpartbound, c.oid), coalesce((to_jsonb(i) ->> 'inhdetachpending')::boolean, false), i.inhparent \
         FROM pg_catalog.pg_inherits i JOIN pg_catalog.pg_class c ON c.oid = i.inhrelid JOIN pg_catalog.pg_namespace cn ON cn.oid = c.relnamespace \
         JOIN pg_catalog.pg_class p ON p.oid = i.inhparent JOIN pg_catalog.pg_namespace pn ON pn.oid = p.relnamespace \
         WHERE i.inhrelid = ANY ($1) AND NOT i.inhparent = ANY ($1) ORDER BY 2, i.inhseqno";
    let rows = client.query(query, &[&oids(tables), &schema]).await.context("list the parents of the tables")?;
    let parents = rows.iter().map(|row| row.try_get(6)).collect::<Result<Vec<u32>, _>>()?;
    let mut told = drop_foreign_keys_to(client, tables, &parents).await?;
    for row in rows {
        let (parent, child, coming): (&str, &str, &str) = (row.try_get(0)?, row.try_get(1)?, row.try_get(2)?);
        let (partition, bound, pending): (bool, Option<&str>, bool) = (row.try_get(3)?, row.try_get(4)?, row.try_get(5)?);
        let statement = if partition {
            format!("ALTER TABLE {parent} DETACH PARTITION {child}{}", if pending { " FINALIZE" } else { "" })
        } else {
            format!("ALTER TABLE {child} NO INHERIT {parent}")
        };
        client.batch_execute(&statement).await.with_context(|| format!("take {child} apart from {parent}"))?;
        told.push(if partition {
            let bound = bound.unwrap_or("DEFAULT");
            format!(
                "{coming} is a table of its own now, as {parent} was not asked for; this would make it a partition of that: \
                 ALTER TABLE {parent} ATTACH PARTITION {coming} {bound};"
            )
        } else {
            format!(
                "{coming} inherits nothing now, as {parent} was not asked for; this would let it: ALTER TABLE {coming} INHERIT {parent};"
            )
        });
    }
    Ok(told)
}

/// A partition whose rows are referred to by way of its parent cannot be detached. Told is what the tables themselves lose so.
async fn drop_foreign_keys_to(client: &Client, tables: &[Table], parents: &[u32]) -> Result<Vec<String>> {
    let query = "WITH RECURSIVE above AS (SELECT oid FROM unnest($1::oid[]) AS oid \
         UNION SELECT i.inhparent FROM pg_catalog.pg_inherits i JOIN above ON i.inhrelid = above.oid) \
         SELECT format('ALTER TABLE %I.%I DROP CONSTRAINT %I', n.nspname, c.relname, k.conname), \
         format('ALTER TABLE %I.%I ADD CONSTRAINT %I %s;', n.nspname, c.relname, k.conname, pg_catalog.pg_get_constraintdef(k.oid)), \
         k.conrelid = ANY ($2) OR k.conrelid IN (SELECT oid FROM above) \
         FROM pg_catalog.pg_constraint k JOIN pg_catalog.pg_class c ON c.oid = k.conrelid JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace \
         JOIN pg_catalog.pg_class f ON f.oid = k.confrelid \
         WHERE k.contype = 'f' AND k.conparentid = 0 AND f.relkind = 'p' AND k.confrelid IN (SELECT oid FROM above) ORDER BY 1";
    let mut told = Vec::new();
    for row in client.query(query, &[&parents, &oids(tables)]).await.context("list the foreign keys to the parents")? {
        client.batch_execute(row.try_get(0)?).await.context("drop a foreign key to a parent of the tables")?;
        if row.try_get(2)? {
            told.push(format!("not copied, a foreign key to a table whose partition is copied alone: {}", row.try_get::<_, &str>(1)?));
        }
    }
    Ok(told)
}
