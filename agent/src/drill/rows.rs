//! Rows of tables against a sample of the running server. What that can prove is `walkeep_core::drill::rows`' to say.

use std::collections::BTreeMap;
use std::time::Instant;

use anyhow::{Context, Result};
use tokio_postgres::Client;
use walkeep_core::drill::rows::{self, SampledDatabase, Since, Snapshot};
use walkeep_core::drill::{Checked, Kind};
use walkeep_core::identifier::quote;

use super::{Looking, Told};
use crate::extract::look;
use crate::scratch_server::Server;

/// More transactions that began since are not asked for one by one.
const ASKED: u64 = 100_000;

/// Compares every database that the sample has.
pub async fn compare(looking: &mut Looking<'_>, server: &Server, user: &str, databases: &[String]) {
    let options = looking.options;
    let began = Instant::now();
    let sample = match &options.sample {
        Ok(sample) => sample,
        Err(why) => return looking.add(Checked::not_done(Kind::Rows, "rows", why.as_str()), began),
    };
    for (database, why) in &sample.left_out {
        let name = format!("rows of {}", quote(database));
        looking.add(Checked::not_done(Kind::Rows, &name, format!("the sample has none of it: {why}")), began);
    }
    for sampled in &sample.databases {
        let began = Instant::now();
        let name = format!("rows of {}", quote(&sampled.name));
        (looking.watch)(Told::Checking(&name));
        let compared = match databases.contains(&sampled.name) {
            true => one(server, user, sampled).await,
            false => gone(server, user, super::any_database(databases), sampled, &name).await,
        };
        looking.looked(Kind::Rows, &name, compared, began);
    }
}

async fn one(server: &Server, user: &str, sampled: &SampledDatabase) -> Result<Checked> {
    let client = server.connect(user, &sampled.name).await?;
    let since = since(&client, &sampled.snapshot).await.context("ask what was committed since the sample")?;
    let now = count(&client, sampled).await?;
    Ok(rows::compare(sampled, &now, since))
}

/// Of a database that is not there. Numbers of transactions are those of all databases.
async fn gone(server: &Server, user: &str, database: &str, sampled: &SampledDatabase, name: &str) -> Result<Checked> {
    let client = server.connect(user, database).await?;
    Ok(match since(&client, &sampled.snapshot).await.context("ask what was committed since the sample")? {
        Since::Nothing => {
            Checked::failed(Kind::Rows, name, "the database is not there, it was when rows were counted, and nothing was committed since")
        }
        Since::Something => {
            Checked::not_done(Kind::Rows, name, "the database is not there; transactions committed since rows were counted")
        }
    })
}

/// Whether a transaction that the sample did not see has committed.
async fn since(client: &Client, seen: &Snapshot) -> Result<Since> {
    let next: String = client.query_one("SELECT pg_snapshot_xmax(pg_current_snapshot())::text", &[]).await?.try_get(0)?;
    let next: u64 = next.parse().context("understand a transaction's number")?;
    if next.saturating_sub(seen.xmax) > ASKED {
        return Ok(Since::Something);
    }
    let unseen: Vec<String> = seen.running.iter().copied().chain(seen.xmax..next).map(|xid| xid.to_string()).collect();
    // What is too old to be known may have committed.
    let query = "SELECT count(*) FROM unnest($1::text[]) AS unseen (xid) \
         WHERE coalesce(pg_catalog.pg_xact_status(xid::xid8), 'committed') = 'committed'";
    let committed: i64 = client.query_one(query, &[&unseen]).await?.try_get(0)?;
    Ok(if committed == 0 { Since::Nothing } else { Since::Something })
}

/// The rows of those tables of the sample that are there.
async fn count(client: &Client, sampled: &SampledDatabase) -> Result<BTreeMap<(String, String), u64>> {
    let there = look::tables(client).await?;
    let mut counted = BTreeMap::new();
    for table in &sampled.tables {
        let Some(found) = there.iter().find(|found| found.schema == table.schema && found.name == table.name) else { continue };
        counted.insert((table.schema.clone(), table.name.clone()), look::count(client, found).await?);
    }
    Ok(counted)
}
