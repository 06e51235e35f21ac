//! What is asked of the scratch server: which tables there are, what belongs to them, how many rows they have.

use std::collections::BTreeSet;

use anyhow::{Context, Result};
use tokio_postgres::Client;

use super::name::TableName;
use walkeep_core::identifier::{always_quoted, printable, quote};

/// A table.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Table {
    /// Its OID.
    pub oid: u32,
    /// Its schema.
    pub schema: String,
    /// Its name.
    pub name: String,
    /// Whether it consists of partitions.
    pub partitioned: bool,
    /// Its owner.
    pub owner: String,
}

impl Table {
    /// For SQL and for pg_dump.
    pub fn quoted(&self) -> String {
        format!("{}.{}", always_quoted(&self.schema), always_quoted(&self.name))
    }

    /// For people.
    pub fn shown(&self) -> String {
        printable(&format!("{}.{}", quote(&self.schema), quote(&self.name)))
    }

    fn is(&self, wanted: &TableName) -> bool {
        self.name == wanted.name && wanted.schema.as_ref().is_none_or(|schema| *schema == self.schema)
    }
}

/// Tables, by what is asked for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Found {
    /// These.
    All(Vec<Table>),
    /// None of this name.
    Missing(TableName),
    /// Several of this name.
    Several(TableName, Vec<Table>),
}

/// The databases that let one in: OID and name. Into one whose removal was cut off (a limit of -2) nobody gets.
pub async fn databases(client: &Client) -> Result<Vec<(u32, String)>> {
    let rows = client
        .query("SELECT oid, datname::text FROM pg_catalog.pg_database WHERE datallowconn AND datconnlimit <> -2 ORDER BY datname", &[])
        .await?;
    rows.iter().map(|row| Ok((row.try_get(0)?, row.try_get(1)?))).collect()
}

/// All tables of the database that are the users'.
pub async fn tables(client: &Client) -> Result<Vec<Table>> {
    let query = "SELECT c.oid, n.nspname::text, c.relname::text, c.relkind = 'p', pg_catalog.pg_get_userbyid(c.relowner)::text \
         FROM pg_catalog.pg_class c JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace \
         WHERE c.relkind IN ('r', 'p') AND c.relpersistence <> 't' AND n.nspname <> 'information_schema' AND n.nspname !~ '^pg_' \
         ORDER BY n.nspname, c.relname";
    let rows = client.query(query, &[]).await.context("list the tables")?;
    rows.iter()
        .map(|row| {
            let (oid, schema, name) = (row.try_get(0)?, row.try_get(1)?, row.try_get(2)?);
            Ok(Table { oid, schema, name, partitioned: row.try_get(3)?, owner: row.try_get(4)? })
        })
        .collect()
}

/// Those asked for.
pub fn choose(tables: &[Table], wanted: &[TableName], schemas: &[String]) -> Found {
    let mut chosen: Vec<Table> = tables.iter().filter(|table| schemas.contains(&table.schema)).cloned().collect();
    for wanted in wanted {
        let found: Vec<&Table> = tables.iter().filter(|table| table.is(wanted)).collect();
        match found.as_slice() {
            [] => return Found::Missing(wanted.clone()),
            [only] if chosen.contains(only) => {}
            [only] => chosen.push((*only).clone()),
            several => return Found::Several(wanted.clone(), several.iter().map(|table| (*table).clone()).collect()),
        }
    }
    let empty = schemas.iter().find(|schema| !tables.iter().any(|table| table.schema == **schema));
    match empty {
        Some(schema) => Found::Missing(TableName { schema: Some(schema.clone()), name: "*".to_owned() }),
        None => Found::All(chosen),
    }
}

/// The chosen tables, with the partitions of those that consist of such.
pub async fn with_partitions(client: &Client, chosen: &[Table], all: &[Table]) -> Result<Vec<Table>> {
    let roots: Vec<u32> = chosen.iter().filter(|table| table.partitioned).map(|table| table.oid).collect();
    let query = "WITH RECURSIVE tree AS (SELECT inhrelid FROM pg_catalog.pg_inherits WHERE inhparent = ANY ($1) \
         UNION SELECT i.inhrelid FROM pg_catalog.pg_inherits i JOIN tree ON i.inhparent = tree.inhrelid) SELECT inhrelid FROM tree";
    let mut oids: BTreeSet<u32> = chosen.iter().map(|table| table.oid).collect();
    for row in client.query(query, &[&roots]).await.context("list the partitions")? {
        oids.insert(row.try_get(0)?);
    }
    Ok(all.iter().filter(|table| oids.contains(&table.oid)).cloned().collect())
}

/// The rows of a table.
pub async fn count(client: &Client, table: &Table) -> Result<u64> {
    // What inherits from a table, without being a partition, is a table of its own.
    let only = if table.partitioned { "" } else { "ONLY " };
    let row = client.query_one(&format!("SELECT count(*) FROM {only}{}", table.quoted()), &[]).await;
    let rows: i64 = row.with_context(|| format!("count the rows of {}", table.shown()))?.try_get(0)?;
    Ok(rows.unsigned_abs())
}

/// A foreign key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ForeignKey {
    /// The table that has it.
    pub table: String,
    /// Its name.
    pub name: String,
    /// The table that it refers to: schema and name.
    pub to: (String, String),
    /// `FOREIGN KEY (a) REFERENCES b(c)`.
    pub definition: String,
}

impl ForeignKey {
    /// The statement that makes it.
    pub fn statement(&self) -> String {
        format!("ALTER TABLE {} ADD CONSTRAINT {} {};", self.table, quote(&self.name), self.definition)
    }
}

/// Foreign keys from these tables to others, and from others to these.
pub async fn foreign_keys(client: &Client, tables: &[Table]) -> Result<(Vec<ForeignKey>, Vec<ForeignKey>)> {
    let query = "SELECT quote_ident(n.nspname) || '.' || quote_ident(c.relname), k.conname::text, fn.nspname::text, f.relname::text, \
         pg_catalog.pg_get_constraintdef(k.oid), k.conrelid = ANY ($1) \
         FROM pg_catalog.pg_constraint k JOIN pg_catalog.pg_class c ON c.oid = k.conrelid JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace \
         JOIN pg_catalog.pg_class f ON f.oid = k.confrelid JOIN pg_catalog.pg_namespace fn ON fn.oid = f.relnamespace \
         WHERE k.contype = 'f' AND k.conparentid = 0 AND (k.conrelid = ANY ($1)) <> (k.confrelid = ANY ($1)) ORDER BY 1, 2";
    let (mut out, mut into) = (Vec::new(), Vec::new());
    for row in client.query(query, &[&oids(tables)]).await.context("list the foreign keys")? {
        let key = ForeignKey {
            table: row.try_get(0)?,
            name: row.try_get(1)?,
            to: (row.try_get(2)?, row.try_get(3)?),
            definition: row.try_get(4)?,
        };
        if row.try_get(5)? { out.push(key) } else { into.push(key) }
    }
    Ok((out, into))
}

/// Views that read these tables.
pub async fn views(client: &Client, tables: &[Table]) -> Result<Vec<String>> {
    let query = "SELECT DISTINCT quote_ident(n.nspname) || '.' || quote_ident(v.relname) FROM pg_catalog.pg_depend d \
         JOIN pg_catalog.pg_rewrite r ON r.oid = d.objid AND d.classid = 'pg_catalog.pg_rewrite'::pg_catalog.regclass \
         JOIN pg_catalog.pg_class v ON v.oid = r.ev_class JOIN pg_catalog.pg_namespace n ON n.oid = v.relnamespace \
         WHERE d.refclassid = 'pg_catalog.pg_class'::pg_catalog.regclass AND d.refobjid = ANY ($1) AND v.relkind IN ('v', 'm') ORDER BY 1";
    let rows = client.query(query, &[&oids(tables)]).await.context("list the views")?;
    rows.iter().map(|row| Ok(row.try_get(0)?)).collect()
}

/// Names that come with the tables: themselves, indexes, sequences they own; schema and name.
pub async fn relations(client: &Client, tables: &[Table]) -> Result<Vec<(String, String)>> {
    let query = "SELECT DISTINCT n.nspname::text, c.relname::text FROM pg_catalog.pg_class c JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace \
         WHERE c.oid = ANY ($1) OR c.oid IN (SELECT indexrelid FROM pg_catalog.pg_index WHERE indrelid = ANY ($1)) \
         OR (c.relkind = 'S' AND c.oid IN (SELECT objid FROM pg_catalog.pg_depend WHERE classid = 'pg_catalog.pg_class'::pg_catalog.regclass \
         AND refclassid = 'pg_catalog.pg_class'::pg_catalog.regclass AND deptype IN ('a', 'i') AND refobjid = ANY ($1))) ORDER BY 1, 2";
    let rows = client.query(query, &[&oids(tables)]).await.context("list what belongs to the tables")?;
    rows.iter().map(|row| Ok((row.try_get(0)?, row.try_get(1)?))).collect()
}

/// Rolls back what was prepared: not committed at the target, it is not there, and its locks would be waited for.
pub async fn roll_back_prepared(client: &Client) -> Result<()> {
    for row in client.query("SELECT gid FROM pg_catalog.pg_prepared_xacts WHERE database = current_database()", &[]).await? {
        let gid: &str = row.try_get(0)?;
        client.batch_execute(&format!("ROLLBACK PREPARED '{}'", gid.replace('\'', "''"))).await.context("roll back what was prepared")?;
    }
    Ok(())
}

/// Makes the session one in which nothing of the operator's runs, and in which definitions are written for any other session.
pub async fn settle(client: &Client) -> Result<()> {
    // No trigger runs here, event triggers neither. A bound of a partition is a date in whatever style the database has.
    let settings = "SET session_replication_role = replica; SET search_path = pg_catalog; \
         SET datestyle = 'ISO'; SET intervalstyle = 'postgres'; SET extra_float_digits = 3";
    client.batch_execute(settings).await.context("set up the session")
}

/// Makes the scratch server's tables what is to be copied: foreign keys go if they are not wanted, and the schema is the one asked for.
pub async fn prepare(client: &Client, tables: &mut [Table], without_foreign_keys: bool, schema: Option<&str>) -> Result<()> {
    if without_foreign_keys {
        let query = "SELECT k.conrelid, k.conname::text FROM pg_catalog.pg_constraint k WHERE k.contype = 'f' AND k.conparentid = 0 AND k.conrelid = ANY ($1)";
        for row in client.query(query, &[&oids(tables)]).await? {
            let (oid, key): (u32, &str) = (row.try_get(0)?, row.try_get(1)?);
            if let Some(table) = tables.iter().find(|table| table.oid == oid) {
                client.batch_execute(&format!("ALTER TABLE {} DROP CONSTRAINT {}", table.quoted(), always_quoted(key))).await?;
            }
        }
    }
    if let Some(schema) = schema {
        let quoted = always_quoted(schema);
        client.batch_execute(&format!("CREATE SCHEMA IF NOT EXISTS {quoted}")).await?;
        for table in tables {
            let moved = client.batch_execute(&format!("ALTER TABLE {} SET SCHEMA {quoted}", table.quoted())).await;
            moved.with_context(|| format!("put {} into schema {schema}", table.shown()))?;
            schema.clone_into(&mut table.schema);
        }
    }
    Ok(())
}

/// Their OIDs.
pub fn oids(tables: &[Table]) -> Vec<u32> {
    tables.iter().map(|table| table.oid).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn table(oid: u32, schema: &str, name: &str) -> Table {
        Table { oid, schema: schema.into(), name: name.into(), partitioned: false, owner: "o".into() }
    }

    #[test]
    fn a_name_without_schema_must_be_the_only_one() {
        let all = [table(1, "a", "t"), table(2, "b", "t"), table(3, "b", "u")];
        let wanted = |names: &[&str]| names.iter().map(|name| TableName::parse(name).expect("a name")).collect::<Vec<_>>();
        assert_eq!(choose(&all, &wanted(&["u", "b.u"]), &[]), Found::All(vec![all[2].clone()]));
        assert_eq!(choose(&all, &wanted(&["t"]), &[]), Found::Several(wanted(&["t"])[0].clone(), all[..2].to_vec()));
        assert_eq!(choose(&all, &wanted(&["a.t", "c.t"]), &[]), Found::Missing(wanted(&["c.t"])[0].clone()));
        assert_eq!(choose(&all, &wanted(&["a.t"]), &["b".into()]), Found::All(vec![all[1].clone(), all[2].clone(), all[0].clone()]));
        assert!(matches!(choose(&all, &[], &["c".into()]), Found::Missing(_)));
    }
}
