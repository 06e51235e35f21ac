//! `walkeep audit`: who did what, and whether the trail is whole.

use std::collections::BTreeSet;

use anyhow::anyhow;
use clap::Args;
use serde::Serialize;
use walkeep_core::PgTimestamp;
use walkeep_core::audit::chain::{Checked, Finding, Known, check};
use walkeep_core::audit::{Head, Outcome};
use walkeep_core::layout::ObjectName;
use walkeep_core::sha256::Sha256Sum;
use walkeep_core::target::parse_time;

use super::failure::{Exit, Failure};
use super::{Global, output, setup};
use crate::repository::ClusterRepository;

/// Arguments of `walkeep audit`.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  walkeep audit                                        everything, and whether the trail is whole
  walkeep audit --from '2026-11-20 00:00:00+01' --kind restore
  walkeep audit --check --expect 9f86d081884c7d65...   is it whole, and is the record still there whose hash was noted?

Records are in the repository, each with the hash of the one before. All of them are read and checked, whatever is shown. Exit code 4 if one was
changed, is missing, or was put in between. That the end was cut off shows only if its hash was noted elsewhere: the last line has it.")]
pub struct AuditArgs {
    /// From this moment, with its zone
    #[arg(long, value_name = "TIME")]
    from: Option<String>,
    /// To this moment, with its zone
    #[arg(long, value_name = "TIME")]
    to: Option<String>,
    /// Only records of this kind: backup, restore, expire, ...
    #[arg(long, value_name = "KIND")]
    kind: Option<String>,
    /// Check only, show no records
    #[arg(long)]
    check: bool,
    /// A hash that was noted: its record must be there
    #[arg(long, value_name = "HASH")]
    expect: Option<String>,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

#[derive(Debug, Serialize)]
struct Report<'a> {
    cluster: &'a str,
    head: Head,
    /// How many there are in all.
    total: usize,
    records: &'a [&'a Known],
    /// Of restores and the like that began: no record says how they ended.
    without_end: &'a [u32],
    /// Their hosts' clocks went back: earlier than their own beginning, or by more than a day than the record before.
    backwards: &'a [u32],
    findings: &'a [Finding],
}

/// Runs the command.
pub async fn run(global: &Global, args: AuditArgs) -> Result<(), Failure> {
    let time = |text: &Option<String>| text.as_deref().map(parse_time).transpose().map_err(|error| Failure::usage(anyhow!(error)));
    let (from, to) = (time(&args.from)?, time(&args.to)?);
    let expected = args.expect.as_deref().map(parse_hash).transpose()?;
    let config = setup::config(global)?;
    let stop = setup::stop_on_signals()?;
    let repository = setup::cluster_repository(&config.cluster, &stop).await?;
    let objects = repository.all_audit_records().await?;
    let objects = objects.iter().map(|(number, body)| (*number, body.as_ref()));
    let mut checked = check(repository.cluster().as_str(), repository.identity().system_identifier, objects, expected);
    // One of several repositories was read: that the others have the same its own chain does not tell.
    let ends: BTreeSet<u32> = checked.questioned().chain((checked.head.number > 0).then_some(checked.head.number)).collect();
    for number in ends {
        let copies = repository.audit_copies(number).await;
        checked.findings.extend(copies.differ().then_some(Finding::Differs { number, copies }));
    }
    let wanted = |known: &&Known| {
        let entry = &known.record.entry;
        let time = PgTimestamp::from_utc(entry.time);
        !args.check
            && from.is_none_or(|from| time >= from)
            && to.is_none_or(|to| time <= to)
            && args.kind.as_ref().is_none_or(|kind| entry.kind.as_str() == kind)
    };
    let records: Vec<&Known> = checked.records.iter().filter(wanted).collect();
    let without_end = without_end(&checked);
    if args.json {
        output::json(&Report {
            cluster: repository.cluster().as_str(),
            head: checked.head,
            total: checked.records.len(),
            records: &records,
            without_end: &without_end,
            backwards: &checked.backwards,
            findings: &checked.findings,
        })?;
    } else {
        print(&records, &without_end);
        told(&checked);
    }
    match checked.findings.as_slice() {
        [] => Ok(()),
        findings => Err(broken(&repository, findings)),
    }
}

fn parse_hash(text: &str) -> Result<Sha256Sum, Failure> {
    let parsed = serde_json::from_value(serde_json::Value::from(text.trim().to_lowercase()));
    parsed.map_err(|error| Failure::usage(anyhow!(error).context("--expect")))
}

/// Beginnings of which no later record tells the end.
fn without_end(checked: &Checked) -> Vec<u32> {
    let ended: Vec<u32> = checked.records.iter().filter_map(|known| known.record.entry.begun).collect();
    let begun = checked.records.iter().filter(|known| known.record.entry.outcome == Outcome::Begun);
    begun.map(|known| known.record.number).filter(|number| !ended.contains(number)).collect()
}

fn print(records: &[&Known], without_end: &[u32]) {
    if records.is_empty() {
        return;
    }
    let mut table = output::table(&["", "time", "who", "what", "of", "result"]);
    for known in records {
        let (number, entry) = (known.record.number, &known.record.entry);
        let of = entry.subject.iter().map(|(name, value)| format!("{name} {value}")).collect::<Vec<_>>().join(", ");
        let message = entry.message.as_ref().map_or_else(String::new, |message| format!(": {message}"));
        let open = if without_end.contains(&number) { ", and no record of its end" } else { "" };
        let result = format!("{}{open}{message}", entry.outcome);
        table.add_row([number.to_string(), output::time(entry.time), entry.actor.to_string(), entry.command.clone(), of, result]);
    }
    output::say!("{table}");
}

fn told(checked: &Checked) {
    for number in &checked.backwards {
        output::tell!(
            "note: record {number} is earlier than its own beginning or, by more than a day, than the one before it: its host's clock went back"
        );
    }
    match checked.head.hash {
        None => output::say!("the trail is empty"),
        Some(sha256) => {
            output::say!(
                "{}; the last is number {}, sha256 {sha256}",
                output::count(checked.records.len() as u64, "record"),
                checked.head.number
            );
        }
    }
}

/// The damage, by the objects' keys.
fn broken(repository: &ClusterRepository, findings: &[Finding]) -> Failure {
    let named = |finding: &Finding| match finding.number() {
        Some(number) => format!("{} ({finding})", repository.layout().key(&ObjectName::Audit(number))),
        None => finding.to_string(),
    };
    let named: Vec<String> = findings.iter().map(named).collect();
    let hint = "somebody who may write to the repository changed it, or it was damaged: compare with another copy or another version of the objects";
    Failure { exit: Exit::Damaged, error: anyhow!("the audit trail is broken: {}", named.join("; ")), hint: Some(hint.into()) }
}
