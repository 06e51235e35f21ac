//! PostgreSQL's own programs that look for damage: pg_amcheck while the scratch server runs, pg_checksums once it is shut down.

use std::process::{Output, Stdio};
use std::time::Instant;

use anyhow::{Context, Result};
use tokio::process::Command;
use walkeep_core::control::ControlFile;
use walkeep_core::drill::{Checked, Kind};
use walkeep_core::identifier::printable;

use super::{Looking, Told};
use crate::config::Wish;
use crate::scratch_server::{NO_LIBRARIES, Server};

/// Lines of what a program says that a report shows.
const LINES: usize = 20;
/// And so much of each.
const LINE: usize = 500;
/// Tables and indexes that are looked at at a time.
const JOBS: &str = "2";

/// Tables and indexes of every database; `database` is one that is there.
pub async fn amcheck(looking: &mut Looking<'_>, server: &Server, user: &str, database: &str) -> Result<()> {
    let (began, name) = (Instant::now(), "pg_amcheck");
    let wish = looking.options.amcheck;
    let major = looking.plan.backup.major_version;
    let program = match (&looking.options.pg_amcheck, wish.wish) {
        (_, Wish::Off) => {
            looking.add(Checked::not_done(Kind::Amcheck, name, "the configuration says amcheck = \"off\""), began);
            return Ok(());
        }
        _ if major.get() < 14 => {
            let why = format!("PostgreSQL {major} cannot be looked at by it");
            looking.add(not_possible(Kind::Amcheck, name, wish.wish, why), began);
            return Ok(());
        }
        (None, wish) => {
            looking.add(not_possible(Kind::Amcheck, name, wish, "it is not installed here".to_owned()), began);
            return Ok(());
        }
        (Some(program), _) => program,
    };
    (looking.watch)(Told::Checking(name));
    let mut command = Command::new(program);
    command.args(["--all", "--install-missing", "--jobs", JOBS, "--no-password", "--username", user, "--maintenance-db", database]);
    if wish.thorough {
        command.args(["--parent-check", "--rootdescend", "--heapallindexed"]);
    }
    command.envs(server.environment(user, database));
    // Where the extension is made, no trigger of the operator's is to run.
    command.env("PGOPTIONS", format!("{NO_LIBRARIES} -c session_replication_role=replica")).env("PGAPPNAME", "walkeep").env("LC_ALL", "C");
    let output = run(&mut command).await.context("run pg_amcheck")?;
    let said = said(&output);
    let lacks_it = said.contains("extension \"amcheck\" is not available") || said.contains("could not open extension control file");
    let checked = match output.status.success() {
        true => Checked::passed(Kind::Amcheck, name, if wish.thorough { "found nothing, looking thoroughly" } else { "found nothing" }),
        false if lacks_it => {
            not_possible(Kind::Amcheck, name, wish.wish, "PostgreSQL's extension amcheck is not installed here".to_owned())
        }
        false => Checked { found: Some(said), ..Checked::failed(Kind::Amcheck, name, format!("ended with {}", output.status)) },
    };
    looking.add(checked, began);
    Ok(())
}

/// Pages of all files, of a server that was shut down.
pub async fn checksums(looking: &mut Looking<'_>) -> Result<()> {
    let (began, name) = (Instant::now(), "pg_checksums");
    let wish = looking.options.checksums;
    if wish == Wish::Off {
        looking.add(Checked::not_done(Kind::Checksums, name, "the configuration says checksums = \"off\""), began);
        return Ok(());
    }
    let data = looking.place.data();
    let control = tokio::fs::read(data.join("global/pg_control")).await.context("read pg_control")?;
    if ControlFile::parse(&control)?.checksum_version == 0 {
        looking.add(not_possible(Kind::Checksums, name, wish, "the cluster has no checksums".to_owned()), began);
        return Ok(());
    }
    let Some(program) = &looking.options.pg_checksums else {
        looking.add(not_possible(Kind::Checksums, name, wish, "it is not installed here".to_owned()), began);
        return Ok(());
    };
    (looking.watch)(Told::Checking(name));
    let mut command = Command::new(program);
    command.arg("--check").arg("--pgdata").arg(&data).env("LC_ALL", "C");
    let output = run(&mut command).await.context("run pg_checksums")?;
    let said = said(&output);
    let checked = match output.status.success() {
        true => Checked::passed(Kind::Checksums, name, said.lines().collect::<Vec<_>>().join("; ")),
        false => Checked { found: Some(said), ..Checked::failed(Kind::Checksums, name, format!("ended with {}", output.status)) },
    };
    looking.add(checked, began);
    looking.drill.step("pg_checksums", began);
    Ok(())
}

/// What was asked for and cannot be done is a failure; what nobody asked for is not.
fn not_possible(kind: Kind, name: &str, wish: Wish, why: String) -> Checked {
    match wish {
        Wish::On => Checked::failed(kind, name, format!("it was asked for, and {why}")),
        Wish::Auto | Wish::Off => Checked::not_done(kind, name, why),
    }
}

/// Runs it to its end; dropped, it is ended.
async fn run(command: &mut Command) -> Result<Output> {
    command.process_group(0).kill_on_drop(true).stdin(Stdio::null());
    for name in ["PGDATA", "PGSERVICE", "PGPASSWORD", "PGSSLMODE"] {
        command.env_remove(name);
    }
    Ok(command.output().await?)
}

fn said(output: &Output) -> String {
    let text = [&output.stdout[..], &output.stderr[..]].concat();
    let text = String::from_utf8_lossy(&text);
    let lines: Vec<&str> = text.lines().filter(|line| !line.trim().is_empty()).collect();
    let short = |line: &&str| printable(&line.chars().take(LINE).collect::<String>());
    let mut shown: Vec<String> = lines.iter().take(LINES).map(short).collect();
    if lines.len() > LINES {
        shown.push(format!("and {} lines more", lines.len() - LINES));
    }
    shown.join("\n")
}
