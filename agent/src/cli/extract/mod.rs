//! `walkeep extract`: tables, or the rows of a query, out of a moment of the past, beside the running server.

mod show;

use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Instant;

use anyhow::{Context, Result, anyhow};
use clap::{Args, ValueEnum};
use walkeep_core::identifier::printable;
use walkeep_core::plan::RestorePlan;

use super::failure::Failure;
use super::restore::restore_command;
use super::scratch::Shown;
use super::target::TargetArgs;
use super::trail::Told;
use super::{Global, ask, output, plan, scratch, setup};
use crate::config::Config;
use crate::extract::{self, Format, Options, Output, Refused, Report, TableName, Target, Wanted};
use crate::planning::Share;
use crate::postgres::{ConnectionParams, without_password};
use crate::restore;
use crate::scratch_server::{self, Place, Programs};

/// Arguments of `walkeep extract`.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  walkeep extract --table public.orders --at '2026-11-20 14:30:00+01' --into 'host=/run/postgresql dbname=shop'
  walkeep extract --table orders --lsn 16/B374D848 --exclusive --database shop --out orders.dump
  walkeep extract --schema shop --at '2026-11-20 14:30:00+01' --as shop_before --into 'host=/run/postgresql dbname=shop'
  walkeep extract --query 'SELECT * FROM orders WHERE id < 100' --xid 4711 --exclusive --out orders.csv

The running server is not touched: a throw-away server is started on a restored copy, in a private folder that is removed
at the end. It listens on a socket in there only, and archives nothing. Everything that goes into the server of --into goes
in one transaction. A password belongs into PGPASSWORD or a password file rather than into --into.")]
pub struct ExtractArgs {
    /// A table, as in orders, shop.orders or '"Shop"."Orders"'; may be given several times
    #[arg(long, value_name = "[S.]T", required_unless_present_any = ["schema", "query"])]
    table: Vec<String>,
    /// All tables of a schema; may be given several times
    #[arg(long, value_name = "S")]
    schema: Vec<String>,
    /// The rows of a query, as CSV with a header
    #[arg(long, value_name = "SQL", conflicts_with_all = ["table", "schema", "into", "as_schema", "without_foreign_keys", "no_owner", "format"])]
    query: Option<String>,
    #[command(flatten)]
    target: TargetArgs,
    /// The server that gets the tables: a libpq connection string or URL
    #[arg(long, value_name = "DSN", required_unless_present = "out", conflicts_with = "out")]
    into: Option<String>,
    /// The file to write: NAME.dump for pg_restore, NAME.sql, or - for standard output; CSV for a query
    #[arg(long, value_name = "FILE")]
    out: Option<PathBuf>,
    /// How FILE is written, if its name does not say
    #[arg(long, value_enum, conflicts_with = "into")]
    format: Option<FormatArg>,
    /// The database that has them [default: the one of the configuration's connection, else the only one that has them]
    #[arg(long, value_name = "NAME")]
    database: Option<String>,
    /// Put the tables into this schema instead of their own
    #[arg(long = "as", value_name = "SCHEMA")]
    as_schema: Option<String>,
    /// Drop tables of these names in the server of --into, or overwrite FILE
    #[arg(long)]
    replace: bool,
    /// Do not ask
    #[arg(long)]
    yes: bool,
    /// Leave foreign keys out
    #[arg(long)]
    without_foreign_keys: bool,
    /// Leave owners and rights out
    #[arg(long)]
    no_owner: bool,
    /// A folder with PostgreSQL's programs (postgres, pg_dump, psql); may be given several times
    #[arg(long, value_name = "DIR", env = "WALKEEP_PG_BIN", value_delimiter = ':')]
    bin_dir: Vec<PathBuf>,
    /// The folder in which the throw-away server gets a folder of its own [default: the one with the spool, or the system's for temporary files]
    #[arg(long, value_name = "DIR")]
    scratch: Option<PathBuf>,
    /// Restore the files of every database, not only of the one that is asked for
    #[arg(long)]
    everything: bool,
    /// Files read at the same time
    #[arg(long, default_value_t = 8)]
    parallel: usize,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum FormatArg {
    /// SQL
    Plain,
    /// For pg_restore
    Custom,
}

/// Arguments of the process that removes a scratch folder after its starter's death.
#[derive(Debug, Args)]
pub struct WatchArgs {
    /// The folder
    folder: PathBuf,
}

/// Waits for the end of standard input and removes the folder, if that is still there.
pub fn watch(args: &WatchArgs) -> Result<(), Failure> {
    Ok(scratch_server::watch(&args.folder, &mut std::io::stdin().lock())?)
}

/// Runs the command.
pub async fn run(global: &Global, args: ExtractArgs, told: &Told<'_>) -> Result<(), Failure> {
    args.target.check().map_err(Failure::usage)?;
    args.tell(told);
    let began = Instant::now();
    let (wanted, output) = (args.wanted().map_err(Failure::usage)?, args.output().map_err(Failure::usage)?);
    if let Output::File { path, .. } = &output
        && path.exists()
        && !args.replace
    {
        return Err(Failure::refused(format!("{} exists; nothing was done", path.display())).hint("--replace overwrites it"));
    }
    let config = setup::config(global)?;
    if rustix::process::geteuid().is_root() {
        return scratch::go_on_as_server_account(&config, "extract");
    }
    asked(&args)?;
    let stop = setup::stop_on_signals()?;
    let target = match &output {
        Output::Into(text) => {
            let mut target = Target::connect(text.reveal(), &wanted, args.as_schema.as_deref(), args.replace).await.map_err(failure)?;
            if args.replace && !args.yes {
                target.asking(Box::new(|tables| Box::pin(confirm(tables))));
            }
            Some(target)
        }
        _ => None,
    };
    let repository = Arc::new(setup::what_is_left(&config.cluster, &stop).await?);
    let planned = plan::make(&repository, &config.cluster, &args.target, Share::Part).await;
    if args.json {
        planned.as_ref().err().map_or(Ok(()), plan::json_refusal)?;
    }
    let plan = planned?;
    let planned_in = began.elapsed().as_secs_f64();
    let options = args.options(&config, &plan, wanted, output)?;
    // Standard output is for the rows, or for JSON.
    let shown = Shown::new(!args.json && !matches!(options.output, Output::Stdout));
    shown.plan(&plan);
    let parent = scratch::parent(args.scratch.as_deref(), &config, &plan);
    let (place, removed) = Place::make(&parent, &format!("walkeep extract of cluster {}", config.cluster.name))?;
    for path in removed {
        output::tell!("removed {}, which an extract that was killed had left", path.display());
    }
    let watch = |told: extract::Told<'_>| show::told(&shown, &told);
    let extracted = tokio::select! {
        done = extract::extract(repository, &plan, &options, target.as_ref(), &place, &watch, &stop) => done,
        () = stop.cancelled() => Err(anyhow!("cancelled")),
    };
    shown.finish();
    if let Some(target) = &target {
        target.settle().await;
    }
    let closing = Instant::now();
    let closed = tokio::task::spawn_blocking(|| place.close()).await.context("remove the scratch folder")?;
    let mut report = extracted.map_err(failure)?;
    closed?;
    report.steps.push(extract::Step { step: "remove", seconds: closing.elapsed().as_secs_f64() });
    report.steps.insert(0, extract::Step { step: "plan", seconds: planned_in });
    finish(&args, &shown, &plan, &report, began)
}

fn finish(args: &ExtractArgs, shown: &Shown, plan: &RestorePlan, report: &Report, began: Instant) -> Result<(), Failure> {
    let seconds = began.elapsed().as_secs_f64();
    if args.into.as_ref().is_some_and(|text| without_password(text, &[]).is_ok_and(|(_, password)| password.is_some())) {
        output::tell!(
            "warning: while this ran, other users of this host could read the password in --into: use PGPASSWORD or a password file"
        );
    }
    if args.json {
        output::json(&show::Json::new(plan, report, seconds))?;
    } else {
        show::report(shown, report, seconds);
    }
    Ok(())
}

impl ExtractArgs {
    /// A query may hold what nobody but its author is to see, and a connection string a password.
    fn tell(&self, told: &Told<'_>) {
        told.of("target", self.target.words());
        match &self.query {
            Some(_) => told.of("what", "the rows of a query"),
            None => told.of("what", [self.table.as_slice(), &self.schema].concat().join(", ")),
        }
        match (&self.into, &self.out) {
            (Some(text), _) => {
                if let Ok(params) = ConnectionParams::parse(text, &|name| std::env::var(name).ok()) {
                    let host = params.hosts().iter().map(ToString::to_string).collect::<Vec<_>>().join(", ");
                    told.of("into", format!("{} at {host}", params.dbname()));
                }
            }
            (None, Some(out)) => told.of("out", out.display()),
            (None, None) => {}
        }
    }

    fn wanted(&self) -> Result<Wanted> {
        if let Some(query) = &self.query {
            return Ok(Wanted::Query(query.clone()));
        }
        let tables = self.table.iter().map(|name| TableName::parse(name)).collect::<Result<_>>()?;
        Ok(Wanted::Tables { tables, schemas: self.schema.clone() })
    }

    fn output(&self) -> Result<Output> {
        if let Some(text) = &self.into {
            return Ok(Output::Into(text.clone().into()));
        }
        let path = self.out.as_deref().context("--into or --out is needed")?;
        if path == Path::new("-") {
            anyhow::ensure!(!self.json, "--json and --out - both need standard output");
            anyhow::ensure!(!matches!(self.format, Some(FormatArg::Custom)), "--out - writes SQL; name a file for another format");
            return Ok(Output::Stdout);
        }
        let by_name = match path.extension().and_then(OsStr::to_str) {
            Some("dump") => Some(Format::Custom),
            Some("sql") => Some(Format::Plain),
            _ => None,
        };
        let asked = self.format.map(|format| match format {
            FormatArg::Plain => Format::Plain,
            FormatArg::Custom => Format::Custom,
        });
        let csv = self.query.is_some().then_some(Format::Plain);
        let unclear = || format!("{}: name the file NAME.dump or NAME.sql, or say --format", path.display());
        let format = asked.or(by_name).or(csv).with_context(unclear)?;
        Ok(Output::File { path: std::path::absolute(path)?, format })
    }

    fn options(&self, config: &Config, plan: &RestorePlan, wanted: Wanted, output: Output) -> Result<Options, Failure> {
        let programs = Programs::new(plan.backup.major_version, &self.bin_dir, config.cluster.data_directory.as_deref());
        let clients = match &wanted {
            Wanted::Query(_) => None,
            Wanted::Tables { .. } => Some(programs.clients().map_err(scratch::missing)?),
        };
        Ok(Options {
            wanted,
            database: self.database.clone(),
            usual_database: setup::connection(&config.cluster)?.dbname().to_owned(),
            output,
            replace: self.replace,
            schema: self.as_schema.clone(),
            without_foreign_keys: self.without_foreign_keys,
            owners: !self.no_owner,
            everything: self.everything,
            parallelism: self.parallel.clamp(1, 64),
            restore_command: restore_command(config)?,
            postgres: programs.postgres().map_err(scratch::missing)?,
            clients,
        })
    }
}

/// What drops tables asks first, and where nobody can answer, that is told before the work.
fn asked(args: &ExtractArgs) -> Result<(), Failure> {
    if !args.replace || args.into.is_none() || args.yes || ask::possible() {
        return Ok(());
    }
    let reason =
        "tables of these names in the database of --into are dropped and made anew, in one transaction, and nobody is there to be asked";
    Err(Failure::refused(reason).hint("--yes says that this is wanted"))
}

/// Asks whether these tables may be dropped.
async fn confirm(tables: Vec<String>) -> Result<bool> {
    let tables = tables.join(", ");
    ask::ask(format!("in the database of --into these tables are dropped and made anew, in one transaction: {tables}.")).await
}

fn failure(error: anyhow::Error) -> Failure {
    let error = match error.downcast::<Refused>() {
        Ok(Refused { reason, hint }) => {
            return Failure { hint: hint.map(|hint| printable(&hint)), ..Failure::refused(printable(&reason)) };
        }
        Err(error) => error,
    };
    match error.downcast::<restore::Refusal>() {
        Ok(refusal) => Failure::refused(refusal.to_string()),
        Err(error) => error.into(),
    }
}
