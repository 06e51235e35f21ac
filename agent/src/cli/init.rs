//! `walkeep init`: the repository's records, the slot, and the lines for postgresql.conf.

use std::os::unix::fs::MetadataExt;

use anyhow::{Context, Result, anyhow, bail};
use clap::Args;
use serde::Serialize;
use tokio_util::sync::CancellationToken;
use walkeep_core::control::ControlFile;
use walkeep_core::layout::Form;
use walkeep_core::{MajorVersion, SystemIdentifier};

use super::failure::Failure;
use super::setup::{self, Missing};
use super::trail::Told;
use super::{Global, output};
use crate::config::{ClusterConfig, Config, RepositoryConfig};
use crate::postgres::ConnectionParams;
use crate::postgres::replication::{Created, Options, ReplicationConnection};
use crate::repository::{self, ClusterIdentity, ClusterRepository, Repository};

/// Said of an identity.
const KNOWN: &str = "known already";
/// Said of a slot.
const CREATED: &str = "created";

/// Arguments of `walkeep init`.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  walkeep init                   asks the running server who it is and creates the slot
  walkeep init --offline         reads pg_control in data_directory; creates no slot
  walkeep init --new-identity    after initdb or pg_upgrade under the same name")]
pub struct InitArgs {
    /// Take the identity from the data directory's pg_control; create no slot
    #[arg(long)]
    offline: bool,
    /// The name now means another cluster than the repository knows; what is stored stays
    #[arg(long)]
    new_identity: bool,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

#[derive(Debug, Serialize)]
struct Report {
    cluster: String,
    repository: String,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    further_repositories: Vec<String>,
    system_identifier: SystemIdentifier,
    major_version: MajorVersion,
    segment_bytes: u64,
    identity: &'static str,
    encryption: Option<&'static str>,
    slot: Option<&'static str>,
    postgresql_conf: Vec<String>,
}

/// Runs the command. Doing it again changes nothing.
pub async fn run(global: &Global, args: InitArgs, told: &Told<'_>) -> Result<(), Failure> {
    let config = setup::config(global)?;
    setup::refuse_past(&config.cluster)?;
    let cluster = &config.cluster;
    setup::keys(cluster)?;
    let form = form(cluster)?;
    let (identity, connection) = if args.offline {
        (offline_identity(cluster)?, None)
    } else {
        let (identity, connection) = online_identity(&setup::connection(cluster)?).await?;
        (identity, Some(connection))
    };
    let identity = ClusterIdentity { form, ..identity };
    if !identity.major_version.is_supported() {
        return Err(Failure::refused(format!("PostgreSQL {} is not supported: Walkeep keeps 13 to 18", identity.major_version)));
    }
    let stop = CancellationToken::new();
    let (mut urls, mut known) = (Vec::new(), None);
    // What the primary knows is what all of them have to know.
    let mut identities: Vec<ClusterIdentity> = Vec::new();
    for config in cluster.repositories() {
        let store = setup::store(config, Missing::Create, &stop).await?;
        let probe = setup::probe_key(&cluster.name)?;
        let probed = store.probe(&probe).await.map_err(repository::Error::from);
        let probed = probed.with_context(|| format!("try the repository {}", config.url()))?;
        if let Some(text) = setup::left_behind(probed, &probe) {
            output::tell!("note: {text}");
        }
        let repository = Repository::create(store).await?;
        if let Some(warning) = root_made_it(config, cluster) {
            output::tell!("warning: {warning}");
        }
        if identities.is_empty() {
            known = Some(make_known(&repository, cluster, &identity, args.new_identity).await?);
            identities = repository.identities(&cluster.name).await?;
        } else {
            repository.know_the_same(&cluster.name, &cluster.repository.url(), &identities).await?;
        }
        urls.push(repository.url());
    }
    let slot = match connection {
        // One that nobody reads would hold WAL until the server's disk is full.
        Some(mut connection) if cluster.stream => Some(create_slot(&mut connection, cluster).await?),
        _ => None,
    };
    told.of("system_identifier", identity.system_identifier);
    told.of("repository", urls.join(" and "));
    if known == Some(KNOWN) && slot != Some(CREATED) {
        told.nothing();
    }
    let report = Report {
        cluster: cluster.name.to_string(),
        repository: urls.first().cloned().unwrap_or_default(),
        further_repositories: urls.iter().skip(1).cloned().collect(),
        system_identifier: identity.system_identifier,
        major_version: identity.major_version,
        segment_bytes: identity.segment_size.bytes(),
        identity: known.unwrap_or_default(),
        encryption: (form == Form::Age).then_some("age"),
        slot,
        postgresql_conf: postgresql_conf(&config),
    };
    if args.json {
        output::json(&report)?;
    } else {
        print(&report, cluster);
    }
    Ok(())
}

fn print(report: &Report, cluster: &ClusterConfig) {
    let Report { repository, system_identifier, major_version, identity, .. } = report;
    output::say!("cluster     {} (PostgreSQL {major_version}, system identifier {system_identifier}): {identity}", report.cluster);
    output::say!("repository  {repository}");
    for further in &report.further_repositories {
        output::say!("            {further}: what it lacks is brought there by the agent, or by `walkeep copy`");
    }
    if let Some(encryption) = report.encryption {
        output::say!(
            "encryption  {encryption}; keep the identities where this host is not: without one of them nothing that is stored can be read"
        );
    }
    match report.slot {
        Some(slot) => output::say!("slot        {}: {slot}", cluster.slot),
        None if !cluster.stream => output::say!("slot        not created (stream = false): only archive_command brings WAL"),
        None => output::say!("slot        not created (--offline); the agent creates it when it first connects"),
    }
    output::say!("\nLines for postgresql.conf (archive_mode needs a restart):\n");
    for line in &report.postgresql_conf {
        output::say!("    {line}");
    }
    output::say!("\nThen start the agent (`walkeep agent`), prove it (`walkeep check`) and take the first base backup (`walkeep backup`).");
}

/// What objects shall be: decided here, once for all of them.
fn form(cluster: &ClusterConfig) -> Result<Form, Failure> {
    match &cluster.encryption {
        None => Ok(Form::Zstd),
        Some(keys) if keys.has_recipients() => Ok(Form::Age),
        Some(_) => {
            let reason = "[cluster.NAME.encryption] has an identity and no recipients: nothing could be encrypted";
            Err(Failure::usage(anyhow!(reason))
                .hint("Name the recipients (age1...), recipients or recipients_file; `walkeep key generate` makes a pair."))
        }
    }
}

async fn online_identity(params: &ConnectionParams) -> Result<(ClusterIdentity, ReplicationConnection)> {
    let mut connection = ReplicationConnection::connect(params, &Options::default())
        .await
        .context("connect to the server for replication (without a running server: --offline)")?;
    let identity = connection.identify_system().await?;
    let known = ClusterIdentity {
        system_identifier: identity.system,
        major_version: MajorVersion::from_version_num(connection.server_version_num().await?),
        segment_size: connection.segment_size().await?,
        since: chrono::Utc::now(),
        form: Form::default(),
    };
    Ok((known, connection))
}

fn offline_identity(cluster: &ClusterConfig) -> Result<ClusterIdentity> {
    let directory =
        cluster.data_directory.as_ref().ok_or_else(|| anyhow!("--offline needs data_directory in [cluster.{}]", cluster.name))?;
    let path = directory.join("global/pg_control");
    let control = std::fs::read(&path).with_context(|| format!("read {}", path.display()))?;
    let control = ControlFile::parse(&control).with_context(|| format!("understand {}", path.display()))?;
    let path = directory.join("PG_VERSION");
    let version = std::fs::read_to_string(&path).with_context(|| format!("read {}", path.display()))?;
    let Ok(major) = version.trim().parse() else { bail!("{} says {:?}, which is no version", path.display(), version.trim()) };
    Ok(ClusterIdentity {
        system_identifier: control.system,
        major_version: MajorVersion::new(major),
        segment_size: control.segment_size,
        since: chrono::Utc::now(),
        form: Form::default(),
    })
}

/// What root makes in a directory is closed to the agent, which runs as the server's user.
fn root_made_it(repository: &RepositoryConfig, cluster: &ClusterConfig) -> Option<String> {
    let RepositoryConfig::Local { path } = repository else { return None };
    if !rustix::process::geteuid().is_root() {
        return None;
    }
    let owner = cluster.data_directory.as_ref().and_then(|data| std::fs::metadata(data).ok()).map(|data| (data.uid(), data.gid()));
    let owner = owner.map_or_else(|| "postgres:postgres".to_owned(), |(user, group)| format!("{user}:{group}"));
    Some(format!(
        "run as root: what it makes in {0} is closed to the agent, which runs as the server's user: chown -R {owner} {0}",
        path.display()
    ))
}

async fn make_known(
    repository: &Repository,
    cluster: &ClusterConfig,
    identity: &ClusterIdentity,
    new_identity: bool,
) -> Result<&'static str, Failure> {
    let known = repository.identities(&cluster.name).await?;
    let number = known.len() as u32 + 1;
    match known.last() {
        Some(present) if present.same_cluster(identity) => {
            let present = ClusterRepository::new(repository.clone(), cluster.name.clone(), present.clone(), cluster.compression_level);
            present.with_encryption(setup::keys(cluster)?).check_form()?;
            return Ok(KNOWN);
        }
        Some(present) if !new_identity => {
            let reason = format!(
                "the repository knows {} as PostgreSQL {} with system identifier {}; this is PostgreSQL {} with {}",
                cluster.name, present.major_version, present.system_identifier, identity.major_version, identity.system_identifier
            );
            let hint = "If the name shall mean this cluster from now on (after pg_upgrade or initdb), run `walkeep init --new-identity`. \
                        What is stored of the old one stays. Otherwise choose another cluster name.";
            return Err(Failure::refused(reason).hint(hint));
        }
        _ => {}
    }
    repository.add_identity(&cluster.name, number, identity).await?;
    Ok("now known to the repository")
}

async fn create_slot(connection: &mut ReplicationConnection, cluster: &ClusterConfig) -> Result<&'static str> {
    let created = connection.create_physical_slot(&cluster.slot).await;
    Ok(match created.with_context(|| format!("create the replication slot {}", cluster.slot))? {
        Created::New => CREATED,
        Created::Existed => "exists already",
    })
}

/// The two commands, short: PostgreSQL 15 and older cut an expanded command at 1023 bytes.
fn postgresql_conf(config: &Config) -> Vec<String> {
    let default_socket = format!("/run/walkeep/{}.sock", config.cluster.name);
    let is_default = config.cluster.name.as_str() == "main" && config.cluster.socket.as_os_str() == default_socket.as_str();
    let option = if is_default { String::new() } else { format!(" --socket {}", config.cluster.socket.display()) };
    vec!["wal_level = replica".into(), "archive_mode = on".into(), format!("archive_command = 'walkeep-archive-cmd{option} %p'")]
}
