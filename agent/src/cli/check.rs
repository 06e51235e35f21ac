//! `walkeep check`: each link of the chain, one after the other, and what to do about the one that is broken.

use std::time::Duration;

use anyhow::{Context, Result, anyhow, ensure};
use clap::Args;
use serde::Serialize;
use walkeep_core::TimelineId;

use super::failure::{Exit, Failure};
use super::slot::{self, Said};
use super::{Global, end_to_end, output, setup};
use crate::config::{Acknowledge, ClusterConfig, Config};
use crate::postgres::replication::{Options, ReplicationConnection};
use crate::postgres::{self, ConnectionParams, catalogs, sql};
use crate::repository::{self, ClusterRepository};
use crate::writer;

/// Arguments of `walkeep check`.
#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  walkeep check\n  walkeep check --timeout 5min --json")]
pub struct CheckArgs {
    /// How long to wait for WAL written now to be in the repository
    #[arg(long, default_value = "60s", value_parser = humantime::parse_duration)]
    timeout: Duration,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

/// One link.
#[derive(Debug, Serialize)]
struct Finding {
    step: &'static str,
    ok: bool,
    /// It works, but not as it should.
    warning: bool,
    text: String,
}

/// Collects findings and shows them as they come.
struct Findings {
    all: Vec<Finding>,
    json: bool,
    /// WAL was seen to be stored, by a host that has nothing to decrypt it with.
    unread: bool,
}

impl Findings {
    fn add(&mut self, step: &'static str, result: Result<String>) -> bool {
        let (ok, text) = match result {
            Ok(text) => (true, text),
            Err(error) => (false, format!("{error:#}")),
        };
        self.push(Finding { step, ok, warning: false, text });
        ok
    }

    fn warn(&mut self, step: &'static str, text: String) {
        self.push(Finding { step, ok: true, warning: true, text });
    }

    fn say(&mut self, step: &'static str, said: Said) {
        match said {
            Said::Well(text) => drop(self.add(step, Ok(text))),
            Said::Ill(text) => self.warn(step, text),
            Said::Failed(text) => drop(self.add(step, Err(anyhow!(text)))),
        }
    }

    fn push(&mut self, finding: Finding) {
        if !self.json {
            let mark = match (finding.ok, finding.warning) {
                (false, _) => "FAIL",
                (true, true) => "warn",
                (true, false) => "ok",
            };
            output::say!("{mark:<5} {:<12} {}", finding.step, finding.text);
        }
        self.all.push(finding);
    }
}

/// Runs the command: exit 0 if every link holds, else 1.
pub async fn run(global: &Global, args: CheckArgs) -> Result<(), Failure> {
    let config = setup::config(global)?;
    setup::refuse_past(&config.cluster)?;
    let params = setup::connection(&config.cluster)?;
    setup::check_repository(&config.cluster)?;
    let mut findings = Findings { all: Vec::new(), json: args.json, unread: false };
    let exit = if check(&config, &params, &args, &mut findings).await { Exit::Usage } else { Exit::Failed };
    if args.json {
        output::json(&findings.all)?;
    }
    let failed: Vec<&str> = findings.all.iter().filter(|finding| !finding.ok).map(|finding| finding.step).collect();
    if failed.is_empty() {
        if !args.json {
            output::say!(
                "\nWAL written now is in the repository{}.",
                match findings.unread {
                    false => ", and what was read back is what the server wrote",
                    true =>
                        "; what is in it this host cannot read, and nothing was read back: `walkeep verify --deep` where an identity is does that",
                }
            );
        }
        return Ok(());
    }
    Err(Failure { exit, error: anyhow!("{} did not pass: {}", config.cluster.name, failed.join(", ")), hint: None })
}

/// Looks at each link; whether the configuration is at fault.
async fn check(config: &Config, params: &ConnectionParams, args: &CheckArgs, findings: &mut Findings) -> bool {
    let cluster = &config.cluster;
    let stop = tokio_util::sync::CancellationToken::new();
    let repository = setup::cluster_repository(cluster, &stop).await;
    let reached = repository.as_ref().map(|repository| format!("{} knows {}", repository.repository().url(), cluster.name));
    findings.add("repository", reached.map_err(|error| anyhow!("{error:#}. {}", error.hint())));
    let misconfigured = repository.as_ref().is_err_and(repository::Error::is_configuration);
    if let Ok(repository) = &repository {
        match repository.each() {
            each if each.is_empty() => drop(findings.add("permissions", probe(repository).await)),
            each => {
                for one in &each {
                    let url = one.repository().url();
                    let probed = probe(one).await.with_context(|| url.clone());
                    findings.add("permissions", probed.map(|text| format!("{url}: {text}")));
                }
            }
        }
    }
    let answers = setup::agent_answers(cluster).await;
    let silent = || anyhow!("nobody answers on {}: start `walkeep agent`, as the server's user", cluster.socket.display());
    findings.add("agent", answers.then(|| format!("answers on {}", cluster.socket.display())).ok_or_else(silent));
    let server = match Server::connect(params).await {
        Ok(server) => server,
        Err(error) => {
            let hint = postgres::hint(&error).map(|hint| format!(". {hint}")).unwrap_or_default();
            findings.add("server", Err(anyhow!("{error:#}{hint}")));
            return misconfigured;
        }
    };
    findings.add("server", Ok(format!("PostgreSQL {}, timeline {}", server.settings.server_version_num / 10_000, server.timeline)));
    settings(&server, cluster, findings).await;
    names(&server, params, findings).await;
    if let Ok(repository) = repository {
        findings.add("identity", identity(&server, &repository));
        if cluster.stream {
            findings.add("writer", writes(&server, &repository, cluster).await);
        }
        if answers {
            let stored = end_to_end::prove(&server.client, server.timeline, &repository, args.timeout).await;
            findings.unread = matches!(stored, Ok((_, false)));
            findings.add("end to end", stored.map(|(text, _)| text));
        }
    }
    misconfigured
}

async fn probe(repository: &ClusterRepository) -> Result<String> {
    let key = setup::probe_key(repository.cluster())?;
    let probed = repository.repository().store().probe(&key).await?;
    let left = setup::left_behind(probed, &key).map(|text| format!("; {text}")).unwrap_or_default();
    Ok(format!("objects can be created once, read and listed; other content under the same name is refused{left}"))
}

/// What was learned from the server.
struct Server {
    client: tokio_postgres::Client,
    settings: sql::Settings,
    system: walkeep_core::SystemIdentifier,
    timeline: TimelineId,
}

impl Server {
    async fn connect(params: &ConnectionParams) -> Result<Self> {
        let connected = ReplicationConnection::connect(params, &Options::default()).await;
        let mut replication = connected.context("connect for replication")?;
        let identity = replication.identify_system().await?;
        let client = sql::connect_sql(params).await.context(
            "connect for SQL, without which nobody sees how the slot is, nor whether commits wait (before PostgreSQL 15, protect = \"primary\" cannot act)",
        )?;
        let settings = sql::settings(&client).await.context("read the settings")?;
        let (system, timeline) = (identity.system, identity.timeline);
        Ok(Self { client, settings, system, timeline })
    }
}

async fn settings(server: &Server, cluster: &ClusterConfig, findings: &mut Findings) {
    let settings = &server.settings;
    let level = match settings.wal_level.as_str() {
        "minimal" => Err(anyhow!("wal_level is minimal: set it to replica and restart the server")),
        level => Ok(format!("wal_level = {level}")),
    };
    findings.add("wal_level", level);
    let command = settings.archive_command.as_deref().unwrap_or_default();
    match (settings.archive_mode.as_str(), command) {
        ("off", _) => findings
            .warn("archiving", "archive_mode is off: only the stream brings WAL; set it on, so that nothing is lost with the slot".into()),
        (_, "") => {
            findings.warn("archiving", "archive_command is empty: finished WAL piles up in pg_wal; see `walkeep init` for the line".into())
        }
        (mode, command) if command.contains("walkeep") => drop(findings.add("archiving", Ok(format!("archive_mode = {mode}, {command}")))),
        (_, command) => findings.warn("archiving", format!("archive_command is not Walkeep's: {command}")),
    }
    findings.add("archiver", archiver(server).await);
    match sql::slot_state(&server.client, &cluster.slot).await {
        Ok(Some(_)) if !cluster.stream => findings.warn(
            "slot",
            format!(
                "the slot {0} is there, but stream = false: nobody reads from it, and it holds WAL until the disk is full; drop it: \
                 SELECT pg_drop_replication_slot('{0}')",
                cluster.slot
            ),
        ),
        Ok(None) if !cluster.stream => drop(findings.add("slot", Ok("none, and none needed: stream = false".into()))),
        Ok(state) => {
            let given_up = if state.is_none() { slot::given_up(cluster) } else { None };
            findings.say("slot", given_up.map_or_else(|| slot::state_in_words(state.as_ref(), cluster), Said::Failed));
        }
        Err(error) => drop(findings.add("slot", Err(error.into()))),
    }
    if cluster.stream {
        // Without the rate the limit is told in bytes.
        let rate = sql::wal_rate(&server.client).await.unwrap_or_default();
        findings.say("slot limit", slot::limit_in_words(settings, rate, cluster));
        slot::other_threats(settings, cluster).into_iter().for_each(|text| findings.warn("slot limit", text));
    }
    if cluster.stream {
        let waited = sql::waited_for(&server.client, &cluster.application_name).await;
        match waited.map(|waited| possible_loss(waited, cluster)) {
            Ok((text, true)) => drop(findings.add("loss", Ok(text))),
            Ok((text, false)) => findings.warn("loss", text),
            Err(error) => drop(findings.add("loss", Err(error.into()))),
        }
    }
}

/// Whether what is dropped can be named: the catalogs of every database have to be read.
async fn names(server: &Server, params: &ConnectionParams, findings: &mut Findings) {
    /// More are not tried: each is a connection.
    const TRIED: usize = 100;
    let mut databases = match catalogs::databases(&server.client).await {
        Ok(databases) => databases,
        Err(error) => {
            findings.add("names", Err(error.into()));
            return;
        }
    };
    databases.retain(|database| database.connectable && !database.template);
    let mut refused = Vec::new();
    for database in databases.iter().take(TRIED) {
        if let Err(error) = catalogs::connect(params, &database.name).await {
            refused.push(format!("{} ({error})", database.name));
        }
    }
    match refused.is_empty() {
        true => {
            let count = databases.len() as u64;
            findings.add("names", Ok(format!("what is dropped can be named, in {}", output::count(count, "database"))));
        }
        false => findings.warn(
            "names",
            format!(
                "what is dropped is told by number in databases that do not let the agent in (pg_hba.conf, CONNECT): {}",
                refused.join(", ")
            ),
        ),
    }
}

/// Which commits can be lost with the server's disk in this configuration, and whether that is all as it should be.
fn possible_loss(waited: sql::Waited, cluster: &ClusterConfig) -> (String, bool) {
    let interval = humantime::format_duration(cluster.upload_interval);
    match (waited.commits, cluster.acknowledge) {
        (true, _) if waited.remote_apply => {
            let text = "commits wait for the agent, and synchronous_commit = remote_apply is set: such a commit never returns, for the agent applies \
                        nothing; set synchronous_commit = on";
            (text.into(), false)
        }
        (true, Acknowledge::Repository) => {
            ("none: a commit returns when it is in the repository, as long as no other standby is enough for it".into(), true)
        }
        (true, Acknowledge::Spool) => {
            let text = format!(
                "none with the server alone: a commit returns when it is on this agent's disk. With the server and this host together, what came in the \
                 last {interval} and the time of an upload"
            );
            (text, true)
        }
        (false, _) => {
            let text = format!(
                "with the server, commits of the last {interval} and the time of an upload; more while the repository is out of reach. None if \
                 synchronous_standby_names names {}",
                cluster.application_name
            );
            (text, true)
        }
    }
}

/// Whether the last thing that archive_command did was to fail.
async fn archiver(server: &Server) -> Result<String> {
    let stats = sql::archiver_stats(&server.client).await?;
    let failing = match (stats.last_failed_at, stats.last_archived_at) {
        (Some(failed), Some(archived)) => failed > archived,
        (failed, _) => failed.is_some(),
    };
    ensure!(
        !failing,
        "archive_command fails for {} ({} times since the statistics began); PostgreSQL's log has the reason, from walkeep-archive-cmd",
        stats.last_failed.unwrap_or_default(),
        stats.failed
    );
    let (archived, last) = (u64::try_from(stats.archived).unwrap_or_default(), stats.last_archived);
    Ok(format!("{} archived, the last one {}", output::count(archived, "file"), last.unwrap_or_else(|| "none yet".into())))
}

fn identity(server: &Server, repository: &ClusterRepository) -> Result<String> {
    let known = repository.identity();
    ensure!(
        server.system == known.system_identifier,
        "the server has system identifier {}, the repository keeps {}: is this the right server? After initdb or pg_upgrade: `walkeep init --new-identity`",
        server.system,
        known.system_identifier
    );
    ensure!(
        server.settings.segment_size == known.segment_size,
        "the server has WAL segments of {} bytes, the repository expects {}",
        server.settings.segment_size.bytes(),
        known.segment_size.bytes()
    );
    Ok(format!("system identifier {} on both sides", known.system_identifier))
}

/// Whether the server's timeline is this agent's to write.
async fn writes(server: &Server, repository: &ClusterRepository, cluster: &ClusterConfig) -> Result<String> {
    let Some(lease) = repository.newest_lease(server.timeline).await? else {
        return Ok(format!("timeline {} has no writer yet", server.timeline));
    };
    let (epoch, holder) = (lease.name.epoch, lease.writer);
    ensure!(
        writer::known_identity(&cluster.spool)?.is_some_and(|id| id == holder.id),
        "timeline {} is written by {holder}, epoch {epoch}, and not by an agent with the spool {}. Should that one be gone for good, see `walkeep lease --help`",
        server.timeline,
        cluster.spool.display()
    );
    Ok(format!("timeline {} is written by this agent, epoch {epoch}", server.timeline))
}
