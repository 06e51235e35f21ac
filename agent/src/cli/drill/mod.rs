//! `walkeep drill`: a restore that is carried out, looked at, and thrown away; and what earlier ones said.

mod choose;
mod last;
mod list;
mod show;

use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, anyhow};
use chrono::{DateTime, Utc};
use clap::Args;
use tokio_util::sync::CancellationToken;
use walkeep_core::drill::{DrillReport, Verdict, text};
use walkeep_core::plan::RestorePlan;

use super::failure::{Exit, Failure};
use super::restore::{in_use, restore_command};
use super::scratch::Shown;
use super::target::TargetArgs;
use super::trail::Told;
use super::{Global, output, scratch, setup};
use crate::config::Config;
use crate::drill::{Drill, End, Options};
use crate::rates::RatesFile;
use crate::repository::ClusterRepository;
use crate::restore;
use crate::scratch_server::{Place, Programs};
use choose::Asked;
pub use last::LastDrill;
pub use list::{ListArgs, list};

/// Storing the report takes no longer.
const STORING: Duration = Duration::from_secs(120);

/// Arguments of `walkeep drill`.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  walkeep drill                                       the point that the configuration says, usually the newest
  walkeep drill --random
  walkeep drill --at '2026-11-20 14:30:00+01' --json
  walkeep drills                                      what earlier drills said

A throw-away server is started on a restored copy, in a private folder that is removed at the end. It listens on a socket in
there only, and archives nothing; the running server is not asked anything. The report is stored in the repository.

Exit codes: 0 it passed; 4 what was restored is not what it should be; 1 it could not be carried out, or there is nothing to
restore; 3 refused (no room, no programs, a target that cannot be reached).")]
pub struct DrillArgs {
    #[command(flatten)]
    target: TargetArgs,
    /// A point that nobody chose, out of all that can be restored
    #[arg(long, conflicts_with_all = ["KindArgs", "timeline", "exclusive", "backup"])]
    random: bool,
    /// The newest point of which the agent has counted rows
    #[arg(long, conflicts_with_all = ["KindArgs", "timeline", "exclusive", "backup", "random"])]
    sampled: bool,
    /// End it after so long, as in 90min [default: what the configuration says, or 6h]
    #[arg(long, value_name = "TIME")]
    deadline: Option<humantime::Duration>,
    /// The folder in which the throw-away server gets a folder of its own [default: what the configuration says, or the one with the spool, or the system's for temporary files]
    #[arg(long, value_name = "DIR")]
    scratch: Option<PathBuf>,
    /// A folder with PostgreSQL's programs (postgres, pg_amcheck, pg_checksums); may be given several times
    #[arg(long, value_name = "DIR", env = "WALKEEP_PG_BIN", value_delimiter = ':')]
    bin_dir: Vec<PathBuf>,
    /// Files read at the same time
    #[arg(long, default_value_t = 8)]
    parallel: usize,
    /// Print the report as JSON
    #[arg(long)]
    json: bool,
    /// For which moment the agent's schedule asked for it
    #[arg(long, hide = true)]
    due: Option<DateTime<Utc>>,
    /// End it when standard input ends: the agent that started it is gone
    #[arg(long, hide = true)]
    until_input_ends: bool,
}

/// Runs the command.
pub async fn run(global: &Global, args: DrillArgs, told: &Told<'_>) -> Result<(), Failure> {
    args.target.check().map_err(Failure::usage)?;
    let config = setup::config(global)?;
    setup::refuse_past(&config.cluster)?;
    if rustix::process::geteuid().is_root() {
        return scratch::go_on_as_server_account(&config, "drill");
    }
    let asked = Asked::of(&args, &config.cluster.drill);
    told.of("target", asked.words());
    let stop = setup::stop_on_signals()?;
    if args.until_input_ends {
        stop_with_input(stop.clone());
    }
    let mut drill = Drill::begin(asked.words(), args.due)?;
    told.of("drill", drill.id());
    let repository = Arc::new(setup::what_is_left(&config.cluster, &stop).await?);
    let deadline = args.deadline.map_or(config.cluster.drill.deadline, Into::into);
    let (mut place, cancel) = (None, stop.child_token());
    let shown = Shown::new(!args.json);
    let job = Job { args: &args, config: &config, repository: &repository, asked: &asked, shown: &shown, told, cancel: &cancel };
    let ended = tokio::select! {
        ended = job.carry_out(&mut drill, &mut place) => ended,
        () = stop.cancelled() => Err(anyhow!("cancelled").into()),
        () = tokio::time::sleep(deadline) => {
            cancel.cancel();
            Err(anyhow!("it took longer than {} (deadline)", humantime::format_duration(deadline)).into())
        }
    };
    shown.finish();
    if let Some(place) = place {
        let began = Instant::now();
        let closed = tokio::task::spawn_blocking(|| place.close()).await.context("remove the scratch folder")?;
        drill.step("remove", began);
        if let Err(error) = closed {
            drill.note(format!("not everything was removed: {error:#}"));
        }
    }
    setup::tell_fallbacks(&repository);
    if let Some(measured) = drill.measured.take() {
        RatesFile::of(&config.cluster).note(measured);
    }
    let cancelled = stop.is_cancelled();
    // Somebody named a target that cannot be reached: that says nothing of what is stored.
    if let Err(failure) = ended.as_ref()
        && asked.is_by_hand()
        && failure.exit != Exit::Failed
        && !cancelled
        && !drill.was_planned()
    {
        return ended;
    }
    let damaged = drill.found_damage();
    let end = match &ended {
        _ if cancelled => End::Cancelled,
        Ok(()) => End::ByItself,
        Err(failure) => End::Failed(&failure.error),
    };
    let report = drill.report(&repository, &end)?;
    let stored = tokio::time::timeout(STORING, store(&config, &report)).await;
    let stored = stored.with_context(|| format!("no answer within {} s", STORING.as_secs())).flatten().context("store the report");
    finish(&args, &report, ended, damaged, stored, told)
}

/// With calls that do not end when the drill was ended: then above all it is to be told.
async fn store(config: &Config, report: &DrillReport) -> anyhow::Result<()> {
    let repository = setup::cluster_repository(&config.cluster, &CancellationToken::new()).await?;
    repository.put_drill(report).await?;
    Ok(())
}

fn finish(
    args: &DrillArgs,
    report: &DrillReport,
    ended: Result<(), Failure>,
    damaged: bool,
    stored: anyhow::Result<()>,
    told: &Told<'_>,
) -> Result<(), Failure> {
    let facts = &report.facts;
    told.of("verdict", facts.verdict);
    if args.json {
        output::json(report)?;
    } else {
        output::say!("{}", text::of(report).trim_end());
    }
    if let Err(error) = &stored {
        output::tell!("warning: this report is not in the repository: {error:#}");
    }
    let failed = |exit, words: String| Failure { exit, error: anyhow!(words), hint: None };
    match (facts.verdict, ended) {
        (Verdict::Passed, _) => Ok(stored?),
        (Verdict::Cancelled, _) => Err(failed(Exit::Failed, "cancelled".to_owned())),
        (Verdict::Failed, Err(failure)) => Err(failure),
        (Verdict::Failed, Ok(())) => {
            let exit = if damaged { Exit::Damaged } else { Exit::Failed };
            Err(failed(exit, facts.reason.clone().unwrap_or_else(|| "the drill failed".to_owned())))
        }
    }
}

/// What a drill is carried out with.
struct Job<'j> {
    args: &'j DrillArgs,
    config: &'j Config,
    repository: &'j Arc<ClusterRepository>,
    asked: &'j Asked,
    shown: &'j Shown,
    told: &'j Told<'j>,
    cancel: &'j CancellationToken,
}

impl Job<'_> {
    async fn carry_out(&self, drill: &mut Drill, place: &mut Option<Place>) -> Result<(), Failure> {
        let chosen = self.asked.choose(self.repository, &self.config.cluster).await?;
        let plan = chosen.plan;
        chosen.notes.into_iter().for_each(|note| drill.note(note));
        drill.planned(&plan, chosen.newest_at);
        self.shown.plan(&plan);
        let options = self.options(&plan).await?;
        self.told.begins().await;
        let named = self.args.scratch.as_deref().or(self.config.cluster.drill.scratch.as_deref());
        let parent = scratch::parent(named, self.config, &plan);
        restore::check_directory(&parent.join("walkeep-scratch"), &options.in_use)
            .map_err(|refusal| Failure::refused(refusal.to_string()))?;
        let (made, removed) = Place::make(&parent, &format!("walkeep drill of cluster {}", self.config.cluster.name))?;
        let place = place.insert(made);
        for path in removed {
            output::tell!("removed {}, which was left by one that was killed", path.display());
        }
        let watch = |told: crate::drill::Told<'_>| show::told(self.shown, &told);
        drill.carry_out(self.repository, &plan, &options, place, &watch, self.cancel).await.map_err(failure)
    }

    async fn options(&self, plan: &RestorePlan) -> Result<Options, Failure> {
        let cluster = &self.config.cluster;
        let named: Vec<PathBuf> = self.args.bin_dir.iter().chain(&cluster.drill.bin_dir).cloned().collect();
        let programs = Programs::new(plan.backup.major_version, &named, cluster.data_directory.as_deref());
        Ok(Options {
            restore_command: restore_command(self.config)?,
            parallelism: self.args.parallel.clamp(1, 64),
            in_use: in_use(cluster, None),
            postgres: programs.postgres().map_err(scratch::missing)?,
            pg_amcheck: programs.pg_amcheck(),
            pg_checksums: programs.pg_checksums(),
            amcheck: cluster.drill.amcheck,
            checksums: cluster.drill.checksums,
            checks: cluster.drill.checks.clone(),
            usual_database: setup::connection(cluster)?.dbname().to_owned(),
            sample: choose::sample(self.repository, plan).await,
        })
    }
}

fn failure(error: anyhow::Error) -> Failure {
    match error.downcast::<restore::Refusal>() {
        Ok(refusal) => Failure::refused(refusal.to_string()),
        Err(error) => error.into(),
    }
}

/// Nobody else would end it where the agent was killed.
fn stop_with_input(stop: CancellationToken) {
    std::thread::spawn(move || {
        // An error is an end too.
        let _ = std::io::copy(&mut std::io::stdin().lock(), &mut std::io::sink());
        stop.cancel();
    });
}
