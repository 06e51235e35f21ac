//! The operator's queries, and whether they answer what is expected.

use std::pin::pin;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use chrono::SecondsFormat;
use futures::StreamExt;
use tokio_postgres::SimpleQueryMessage;
use walkeep_core::drill::{Checked, Kind};

use super::{Looking, Told};
use crate::config::DrillCheck;
use crate::scratch_server::Server;

/// How much later than the server a query is given up here.
const PATIENCE: Duration = Duration::from_secs(10);
/// No more of an answer is read.
const ANSWER: usize = 64 << 10;

/// Asks all of them. One that fails is a failed check, and no reason not to ask the others.
pub async fn ask(looking: &mut Looking<'_>, server: &Server, user: &str) {
    let options = looking.options;
    for check in &options.checks {
        let began = Instant::now();
        (looking.watch)(Told::Checking(&check.name));
        // The server gives it up first.
        let asked = tokio::time::timeout(check.timeout + PATIENCE, one(looking, server, user, check)).await;
        let checked = match asked.with_context(|| format!("no answer within {}", humantime::format_duration(check.timeout))).flatten() {
            Ok((answer, cut)) => check.expected.judge(&check.name, &answer, cut),
            Err(error) => {
                let failed = Checked::failed(Kind::Query, &check.name, format!("{error:#}"));
                Checked { expected: Some(check.expected.to_string()), ..failed }
            }
        };
        looking.add(checked, began);
    }
}

/// The answer as `psql -At` prints it, and whether there was more of it.
async fn one(looking: &Looking<'_>, server: &Server, user: &str, check: &DrillCheck) -> Result<(String, bool)> {
    let database = check.database.as_ref().unwrap_or(&looking.options.usual_database);
    let client = server.connect(user, database).await?;
    // What it changed others would see.
    let last = looking.plan.last_replayed.and_then(|last| last.time.to_utc());
    let recovered = last.unwrap_or(looking.plan.backup.ended_at);
    let settings = format!(
        "SET default_transaction_read_only = on; SET statement_timeout = {}; SET walkeep.recovered_to = '{}'",
        check.timeout.as_millis().min(i32::MAX as u128),
        recovered.to_rfc3339_opts(SecondsFormat::Micros, true)
    );
    client.batch_execute(&settings).await.context("set up the session")?;
    // One statement, which cannot end the transaction that it is in: a server refuses to prepare several. Nor can it make that one of writing: there was a query.
    client.prepare(&check.query).await.context("prepare it, one statement")?;
    client.batch_execute("BEGIN TRANSACTION READ ONLY; SELECT").await.context("begin a transaction that only reads")?;
    let mut messages = pin!(client.simple_query_raw(&check.query).await?);
    let mut answer = String::new();
    while let Some(message) = messages.next().await {
        let SimpleQueryMessage::Row(row) = message? else { continue };
        if answer.len() > ANSWER {
            return Ok((answer, true));
        }
        let columns: Vec<&str> = (0..row.len()).map(|column| row.get(column).unwrap_or_default()).collect();
        let left = ANSWER.saturating_mul(2).saturating_sub(answer.len());
        answer.extend(columns.join("|").chars().take(left));
        answer.push('\n');
    }
    let cut = answer.len() > ANSWER;
    Ok((answer, cut))
}
