//! The configuration: as written (TOML, environment) and as checked.
//!
//! [`raw`] mirrors the file and refuses unknown keys with file, line and key; [`Config::load`] turns it into checked values with defaults
//! filled in. Every key can be given by an environment variable too (see [`environment`]). Secrets come by file or environment only and
//! never appear in `Debug`.

mod artifacts;
mod drill;
mod encryption;
mod environment;
mod fleet;
mod listen;
mod metrics;
mod notify;
mod raw;
mod repositories;
mod retention;
mod same_place;
mod schedules;
mod secret_file;
mod values;
mod verify;

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use chrono::{DateTime, Utc};
use walkeep_core::layout::ClusterName;
use walkeep_core::price::Prices;
use walkeep_store::s3::Lock;
use walkeep_store::several::StoredWhen;

pub use artifacts::{ArtifactConfig, ArtifactSource, DumpConfig, Runs};
pub use drill::{Amcheck, DrillCheck, DrillConfig, DrillPoint, Wish};
pub use encryption::EncryptionConfig;
pub use listen::ListenConfig;
pub use metrics::MetricsConfig;
pub use notify::{EmailConfig, MailTls, NotifyConfig, check_url};
pub use retention::{GRACE, Retention};
pub use schedules::{ScheduledBackup, keep_for};
pub use secret_file::SecretSource;
pub use values::{ByteSize, Secret};
pub use verify::Verify;

/// Where the configuration lies unless told otherwise.
pub const DEFAULT_PATH: &str = "/etc/walkeep/walkeep.toml";

/// Everything one process needs to know: one cluster, its repository, where to listen and how to log.
#[derive(Debug, Clone)]
pub struct Config {
    /// The file it was read from, if there is one.
    pub path: Option<PathBuf>,
    /// The cluster.
    pub cluster: ClusterConfig,
    /// Where metrics, health and the page are served, and to whom.
    pub listen: ListenConfig,
    /// Where it goes how commands ended.
    pub metrics: MetricsConfig,
    /// Who is told what is wrong.
    pub notify: NotifyConfig,
    /// Logging.
    pub log: LogConfig,
    /// What is set and means nothing.
    pub warnings: Vec<String>,
}

/// One cluster.
#[derive(Debug, Clone)]
pub struct ClusterConfig {
    /// Its name: `[cluster.NAME]`.
    pub name: ClusterName,
    /// How to reach the server: a libpq connection string or URL. May hold a password: not shown.
    pub connection: Secret,
    /// The server's data directory, if it is on this host.
    pub data_directory: Option<PathBuf>,
    /// Whether a backup of the data directory takes configuration files along that lie outside it.
    pub config_files: bool,
    /// The folder for WAL that is not yet in the repository.
    pub spool: PathBuf,
    /// The most the spool may hold; when it is full the agent stops reading and the server keeps the WAL.
    pub spool_limit: ByteSize,
    /// The socket that the shims talk to.
    pub socket: PathBuf,
    /// The physical replication slot.
    pub slot: String,
    /// `application_name` of the stream, which `synchronous_standby_names` may name.
    pub application_name: String,
    /// How often unfinished WAL is stored.
    pub upload_interval: Duration,
    /// What a reported flush position promises.
    pub acknowledge: Acknowledge,
    /// What counts more when the repository does not keep up and the spool is full.
    pub protect: Protect,
    /// zstd's level for backups.
    pub compression_level: i32,
    /// The same for WAL.
    pub wal_compression_level: i32,
    /// Segments stored at the same time.
    pub upload_parallelism: usize,
    /// Whether the agent streams; without, only archive_command brings WAL.
    pub stream: bool,
    /// The keys, if what is stored is encrypted.
    pub encryption: Option<EncryptionConfig>,
    /// The repository; of several, the primary.
    pub repository: RepositoryConfig,
    /// The other repositories, which have the same in them.
    pub further: Vec<RepositoryConfig>,
    /// In which of them something has to be before it is acknowledged.
    pub stored_when: StoredWhen,
    /// How often they are compared.
    pub compare_interval: Duration,
    /// The backups that the agent takes by itself, and when.
    pub backups: Vec<ScheduledBackup>,
    /// What is kept for how long; without it everything is.
    pub retention: Option<Retention>,
    /// What is kept beside WAL and backups.
    pub artifacts: Vec<ArtifactConfig>,
    /// Dumps of databases.
    pub dump: Option<DumpConfig>,
    /// What the agent verifies by itself.
    pub verify: Verify,
    /// Drills.
    pub drill: DrillConfig,
}

impl ClusterConfig {
    /// Every repository, the primary first.
    pub fn repositories(&self) -> impl Iterator<Item = &RepositoryConfig> {
        std::iter::once(&self.repository).chain(&self.further)
    }

    /// What storing costs in the repository at this URL.
    pub fn prices_of(&self, url: &str) -> Option<Prices> {
        self.repositories().find(|repository| repository.url() == url)?.prices()
    }

    /// Where all of them are, as their store tells it once it is open.
    pub fn repository_url(&self) -> String {
        self.repositories().map(RepositoryConfig::url).collect::<Vec<_>>().join(" and ")
    }
}

/// What a reported flush position promises.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Acknowledge {
    /// The bytes are durable in the repository.
    Repository,
    /// The bytes are fsynced in the spool on this host.
    Spool,
}

/// What counts more when the repository does not keep up and the spool is full.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Protect {
    /// The archive: the slot holds whatever is not stored, on the server's disk.
    Archive,
    /// The server: it may hold so much, then the slot is given up.
    Primary {
        /// Bytes of WAL that the slot may hold back.
        slot_limit: ByteSize,
    },
}

/// Where a repository lies and how to reach it.
#[derive(Debug, Clone)]
pub enum RepositoryConfig {
    /// A directory, `file:///srv/walkeep`.
    Local {
        /// The directory.
        path: PathBuf,
    },
    /// S3 or compatible, `s3://bucket/prefix`.
    S3(Box<S3Config>),
}

impl RepositoryConfig {
    /// The moment as of which it is read, if that is not the present.
    pub fn as_of(&self) -> Option<DateTime<Utc>> {
        match self {
            Self::Local { .. } => None,
            Self::S3(s3) => s3.as_of,
        }
    }

    /// What storing there costs: nothing that anybody could know of a directory, and of another server than Amazon's only what is configured.
    pub fn prices(&self) -> Option<Prices> {
        match self {
            Self::Local { .. } => None,
            Self::S3(s3) if s3.endpoint.is_some() => s3.prices.clone(),
            Self::S3(s3) => Some(Prices::of_aws().but(s3.prices.clone().unwrap_or_default())),
        }
    }

    /// Its URL, as its store tells it once it is open.
    pub fn url(&self) -> String {
        match self {
            Self::Local { path } => format!("file://{}", path.display()),
            Self::S3(s3) if s3.prefix.is_empty() => format!("s3://{}", s3.bucket),
            Self::S3(s3) => format!("s3://{}/{}", s3.bucket, s3.prefix),
        }
    }
}

/// An S3 repository.
#[derive(Debug, Clone, Default)]
pub struct S3Config {
    /// The bucket.
    pub bucket: String,
    /// What every key begins with; empty or without a slash at its ends.
    pub prefix: String,
    /// Another server than AWS.
    pub endpoint: Option<String>,
    /// The region; AWS's usual sources if absent.
    pub region: Option<String>,
    /// Bucket in the path instead of the host name; by default with an `endpoint`.
    pub path_style: Option<bool>,
    /// Storage class of new objects.
    pub storage_class: Option<String>,
    /// That of whole segments.
    pub wal_storage_class: Option<String>,
    /// That of backups' data, dumps and artifacts.
    pub backup_storage_class: Option<String>,
    /// Object lock of what stays until retention lets it go.
    pub object_lock: Option<Lock>,
    /// The bucket is read as it was at this moment, and not written.
    pub as_of: Option<DateTime<Utc>>,
    /// Server-side encryption.
    pub encryption: ServerSideEncryption,
    /// The CA to trust, instead of the system's.
    pub ca_file: Option<PathBuf>,
    /// A profile of the shared AWS configuration files.
    pub profile: Option<String>,
    /// A static key's ID.
    pub access_key_id: Option<String>,
    /// The file that holds the static key's secret.
    pub secret_access_key_file: Option<PathBuf>,
    /// The file that holds a session token for the static key.
    pub session_token_file: Option<PathBuf>,
    /// The most one request may take, its retries included.
    pub timeout: Option<Duration>,
    /// What storing costs, where it is not what Amazon lists.
    pub prices: Option<Prices>,
}

/// Encryption by the S3 server.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub enum ServerSideEncryption {
    /// Whatever the bucket does by itself.
    #[default]
    Bucket,
    /// With keys of S3.
    Aes256,
    /// With a key of KMS; the account's default key without an ID.
    Kms {
        /// The key's ID or ARN.
        key_id: Option<String>,
    },
}

/// Logging.
#[derive(Debug, Clone)]
pub struct LogConfig {
    /// Lines for people or JSON.
    pub json: bool,
    /// `error`, `warn`, `info`, `debug`, `trace`, or a filter as tracing has it.
    pub level: String,
}

/// Where to look for the configuration, from the command line and the environment.
#[derive(Debug, Clone, Default)]
pub struct Selection {
    /// `--config` or `WALKEEP_CONFIG`.
    pub path: Option<PathBuf>,
    /// `--cluster` or `WALKEEP_CLUSTER`; needed if the file has several.
    pub cluster: Option<String>,
    /// `--as-of`: the repository's `as_of`.
    pub as_of: Option<String>,
}

/// Keys of the file that are secrets and have a file of their own instead.
const SECRETS: [&[&str]; 4] = [&["listen", "token"], &["notify", "webhook"], &["notify", "heartbeat"], &["notify", "email", "password"]];

impl Config {
    /// Reads and checks the configuration. Every error says which file, line and key, and what would be right.
    pub fn load(selection: &Selection) -> Result<Self> {
        let as_of = environment::variable_of_repository(0, "as_of");
        let env = |name: &str| selection.as_of.clone().filter(|_| name == as_of).or_else(|| std::env::var(name).ok());
        let mut config = Self::load_with(selection, &env)?;
        config.warnings = environment::unknown(std::env::vars_os().filter_map(|(name, _)| name.into_string().ok()));
        Ok(config)
    }

    /// The clusters of the file, by name.
    fn names(selection: &Selection) -> Result<Vec<String>> {
        let (path, text) = read_text(selection.path.as_deref())?;
        let described = path.as_deref().map_or_else(|| "the environment".into(), |path| path.display().to_string());
        let table = raw::parse_table(&text, &described)?;
        Ok(clusters(&table).into_iter().cloned().collect())
    }

    fn load_with(selection: &Selection, env: &dyn Fn(&str) -> Option<String>) -> Result<Self> {
        let (path, text) = read_text(selection.path.as_deref())?;
        let described = path.as_deref().map_or_else(|| "the environment".into(), |path| path.display().to_string());
        let mut table = raw::parse_table(&text, &described)?;
        let name = choose_cluster(&table, selection.cluster.as_deref(), &described)?;
        environment::overlay(&mut table, &name, env).with_context(|| format!("read the environment on top of {described}"))?;
        let raw: raw::Raw = raw::from_table(table, &text, &described)?;
        encryption::refuse_shown_identity(&text, &name, path.as_deref())?;
        secret_file::refuse_shown(&text, path.as_deref(), &SECRETS)?;
        refuse_keys_of_s3_beside_a_directory(&raw, &name, &text, &described)?;
        let place = |index, key: &str| place_of_schedule(&name, index, key, &text, &described, env);
        let backups = schedules::check(&raw, &name, &place)?;
        values::check(raw, &name, path, backups, env).with_context(|| format!("check the configuration in {described}"))
    }
}

fn read_text(path: Option<&Path>) -> Result<(Option<PathBuf>, String)> {
    let chosen = path.unwrap_or(Path::new(DEFAULT_PATH));
    match std::fs::read(chosen) {
        Ok(bytes) => {
            let text = String::from_utf8(bytes).map_err(|error| {
                let line = error.as_bytes()[..error.utf8_error().valid_up_to()].iter().filter(|b| **b == b'\n').count() + 1;
                anyhow::anyhow!("{}, line {line}: not UTF-8 text", chosen.display())
            })?;
            Ok((Some(std::path::absolute(chosen)?), text))
        }
        // Without a file everything may come from the environment; a file that was named must be there.
        Err(error) if error.kind() == std::io::ErrorKind::NotFound && path.is_none() => Ok((None, String::new())),
        Err(error) => Err(error).with_context(|| format!("read the configuration {}", chosen.display())),
    }
}

/// Where a key of schedule number `index` was given; of one that was not, where the schedule is.
fn place_of_schedule(
    name: &ClusterName,
    index: usize,
    key: &str,
    text: &str,
    described: &str,
    env: &dyn Fn(&str) -> Option<String>,
) -> String {
    let variable = environment::variable_of_backup(key);
    match raw::line_of_key(text, name.as_str(), "backup", index, key) {
        _ if index == 0 && env(&variable).is_some() => variable,
        Some(line) => format!("{described}, line {line}: {key}"),
        None => format!("{described}, [[cluster.{name}.backup]] number {}: {key}", index + 1),
    }
}

/// Whoever writes them there believes that they have an effect.
fn refuse_keys_of_s3_beside_a_directory(raw: &raw::Raw, name: &ClusterName, text: &str, described: &str) -> Result<()> {
    let repositories = raw.cluster.get(name.as_str()).map(|cluster| cluster.repository.as_slice()).unwrap_or_default();
    for (index, repository) in repositories.iter().enumerate() {
        let Some(key) = repository.keys_of_s3().into_iter().next() else { continue };
        if !repository.url.as_deref().is_some_and(|url| url.starts_with("file://")) {
            continue;
        }
        let place = match raw::line_of_key(text, name.as_str(), "repository", index, key) {
            Some(line) => format!("{described}, line {line}: {key}"),
            None => environment::variable_of_repository(index, key),
        };
        bail!("{place}: goes with an s3:// url only, and the repository is a directory");
    }
    Ok(())
}

fn clusters(table: &toml::Table) -> Vec<&String> {
    table.get("cluster").and_then(toml::Value::as_table).map(|clusters| clusters.keys().collect()).unwrap_or_default()
}

fn choose_cluster(table: &toml::Table, wanted: Option<&str>, described: &str) -> Result<ClusterName> {
    let names = clusters(table);
    let listed = || names.iter().map(|name| name.as_str()).collect::<Vec<_>>().join(", ");
    let chosen = match (wanted, names.as_slice()) {
        (Some(wanted), []) => wanted,
        (Some(wanted), names) if names.iter().any(|name| *name == wanted) => wanted,
        (Some(wanted), _) => bail!("no [cluster.{wanted}] in {described}; it has: {}", listed()),
        (None, []) => "main",
        (None, [only]) => only.as_str(),
        (None, _) => bail!("several clusters in {described} ({}): say which with --cluster or WALKEEP_CLUSTER", listed()),
    };
    Ok(chosen.parse()?)
}

#[cfg(test)]
mod tests;
