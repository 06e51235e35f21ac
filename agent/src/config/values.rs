//! From what is written to what is meant: checks and defaults.

use std::fmt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, anyhow, bail, ensure};
use walkeep_core::layout::ClusterName;
use walkeep_core::target::parse_time;
use walkeep_store::s3::{Lock, LockMode};

use super::artifacts;
use super::drill;
use super::encryption;
use super::listen;
use super::raw::{Raw, RawCluster, RawRepository};
use super::repositories;
use super::retention;
use super::verify;
use super::{Acknowledge, ClusterConfig, Config, LogConfig, Protect, RepositoryConfig, S3Config, ScheduledBackup, ServerSideEncryption};
use super::{metrics, notify};

/// A text that must not be shown.
#[derive(Clone, Default)]
pub struct Secret(String);

impl Secret {
    /// The text, for the one place that needs it.
    pub fn reveal(&self) -> &str {
        &self.0
    }
}

impl From<String> for Secret {
    fn from(text: String) -> Self {
        Self(text)
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("(not shown)")
    }
}

/// A number of bytes, written as `512MiB` or `4GB`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct ByteSize(pub u64);

impl std::str::FromStr for ByteSize {
    type Err = anyhow::Error;

    fn from_str(text: &str) -> Result<Self> {
        Self::parse(text)
    }
}

impl ByteSize {
    pub(crate) fn parse(text: &str) -> Result<Self> {
        let text = text.trim();
        let digits = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
        let number: u64 = text[..digits].parse().with_context(|| format!("{text:?} is not a size: write 512MiB or 4GB"))?;
        let unit: u64 = match text[digits..].trim() {
            "B" => 1,
            "kB" => 1000,
            "KiB" => 1 << 10,
            "MB" => 1_000_000,
            "MiB" => 1 << 20,
            "GB" => 1_000_000_000,
            "GiB" => 1 << 30,
            "TB" => 1_000_000_000_000,
            "TiB" => 1 << 40,
            other => bail!("{other:?} is not a unit: use B, kB, KiB, MB, MiB, GB, GiB, TB or TiB"),
        };
        number.checked_mul(unit).map(Self).with_context(|| format!("{text} is too large"))
    }
}

/// With `protect = "primary"` the slot may hold back this much unless the configuration says otherwise: well above the spool's default of 4 GiB, so that
/// an outage fills the spool first, and half of what README proposes for max_slot_wal_keep_size, so that the agent acts before the server does.
const SLOT_LIMIT: ByteSize = ByteSize(10_000_000_000);

/// Checks what was written and fills in the defaults.
pub fn check(
    raw: Raw,
    name: &ClusterName,
    path: Option<PathBuf>,
    backups: Vec<ScheduledBackup>,
    env: &dyn Fn(&str) -> Option<String>,
) -> Result<Config> {
    let Raw { mut cluster, listen, log, metrics, notify } = raw;
    let written = cluster.remove(name.as_str()).unwrap_or_default();
    let cluster = check_cluster(written, name, backups, env).with_context(|| format!("[cluster.{name}]"))?;
    let listen = listen::check(listen, env).context("[listen]")?;
    let json = match log.format.as_deref() {
        None | Some("text") => false,
        Some("json") => true,
        Some(other) => bail!("[log] format: {other:?} is neither text nor json"),
    };
    let metrics = metrics::check(metrics).context("[metrics]")?;
    let notify = notify::check(notify, env).context("[notify]")?;
    Ok(Config {
        path,
        cluster,
        metrics,
        notify,
        listen,
        log: LogConfig { json, level: log.level.unwrap_or_else(|| "info".into()) },
        warnings: Vec::new(),
    })
}

fn check_cluster(
    raw: RawCluster,
    name: &ClusterName,
    backups: Vec<ScheduledBackup>,
    env: &dyn Fn(&str) -> Option<String>,
) -> Result<ClusterConfig> {
    let (repository, further) = repositories::check(&raw.repository, name)?;
    let stored_when = repositories::rule(raw.acknowledge_rule.as_deref(), further.len())?;
    let compare_interval = duration("compare_interval", raw.compare_interval.as_deref(), Duration::from_secs(24 * 3600))?;
    ensure!(compare_interval >= Duration::from_secs(1), "compare_interval: must be at least 1s");
    let slot = raw.slot.unwrap_or_else(|| "walkeep".into());
    let slot_chars = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'_';
    ensure!(
        (1..=63).contains(&slot.len()) && slot.bytes().all(slot_chars),
        "slot: {slot:?} cannot name a replication slot: use 1 to 63 of a-z, 0-9 and _"
    );
    let application_name = raw.application_name.unwrap_or_else(|| "walkeep".into());
    ensure!(
        (1..=63).contains(&application_name.len()) && application_name.bytes().all(|b| (b' '..=b'~').contains(&b)),
        "application_name: {application_name:?} cannot name the stream: use 1 to 63 characters of ASCII"
    );
    let acknowledge = match raw.acknowledge.as_deref() {
        None | Some("repository") => Acknowledge::Repository,
        Some("spool") => Acknowledge::Spool,
        Some(other) => bail!("acknowledge: {other:?} is neither \"repository\" nor \"spool\""),
    };
    let upload_interval = duration("upload_interval", raw.upload_interval.as_deref(), Duration::from_secs(1))?;
    let allowed = Duration::from_millis(100)..=Duration::from_secs(3600);
    ensure!(allowed.contains(&upload_interval), "upload_interval: must be from 100ms to 1h");
    let compression_level = raw.compression_level.unwrap_or(3);
    ensure!((1..=19).contains(&compression_level), "compression_level: must be from 1 to 19");
    // A twelfth more is stored than with 3, for half the work, and the server's host has to do it.
    let wal_compression_level = raw.wal_compression_level.unwrap_or(1);
    ensure!((1..=19).contains(&wal_compression_level), "wal_compression_level: must be from 1 to 19");
    let upload_parallelism = raw.upload_parallelism.unwrap_or(4);
    ensure!((1..=64).contains(&upload_parallelism), "upload_parallelism: must be from 1 to 64");
    let spool_limit = raw.spool_limit.as_deref().map_or(Ok(ByteSize(4 << 30)), ByteSize::parse).context("spool_limit")?;
    ensure!(spool_limit.0 >= 32 << 20, "spool_limit: must be at least 32MiB");
    let stream = raw.stream.unwrap_or(true);
    let protect = protect(raw.protect.as_deref(), raw.slot_limit.as_deref(), spool_limit, stream)?;
    let (artifacts, dump) = artifacts::check(&raw.artifact, raw.dump.as_ref(), name)?;
    let drill = drill::check(&raw.drill, name).context("[drill]")?;
    Ok(ClusterConfig {
        artifacts,
        dump,
        drill,
        name: name.clone(),
        connection: raw.connection.unwrap_or_default().into(),
        data_directory: raw.data_directory.map(|path| absolute("data_directory", &path)).transpose()?,
        config_files: raw.config_files.unwrap_or(true),
        spool: raw.spool.map_or_else(|| Ok(Path::new("/var/lib/walkeep").join(name.as_str())), |path| absolute("spool", &path))?,
        spool_limit,
        socket: raw.socket.map_or_else(|| Ok(PathBuf::from(format!("/run/walkeep/{name}.sock"))), |path| absolute("socket", &path))?,
        slot,
        application_name,
        upload_interval,
        acknowledge,
        compression_level,
        wal_compression_level,
        upload_parallelism,
        stream,
        protect,
        encryption: encryption::check(raw.encryption, name, env)?,
        verify: verify::check(&raw.verify, std::iter::once(&repository).chain(&further)).context("[verify]")?,
        repository,
        further,
        stored_when,
        compare_interval,
        backups,
        retention: raw.retention.as_ref().map(retention::check).transpose().context("[retention]")?,
    })
}

/// The slot keeps on the server what the spool has as well, so a limit below the spool's would throw WAL away with room to spare.
fn protect(written: Option<&str>, slot_limit: Option<&str>, spool_limit: ByteSize, stream: bool) -> Result<Protect> {
    let slot_limit = slot_limit.map(ByteSize::parse).transpose().context("slot_limit")?;
    match written {
        None | Some("archive") => {
            ensure!(slot_limit.is_none(), "slot_limit: goes with protect = \"primary\" only; without it the slot is never given up");
            Ok(Protect::Archive)
        }
        Some("primary") => {
            ensure!(stream, "protect: there is no slot to give up with stream = false");
            let slot_limit = slot_limit.unwrap_or(SLOT_LIMIT.max(ByteSize(spool_limit.0.saturating_mul(2))));
            ensure!(slot_limit >= spool_limit, "slot_limit: must not be less than spool_limit ({} bytes)", spool_limit.0);
            Ok(Protect::Primary { slot_limit })
        }
        Some(other) => bail!("protect: {other:?} is neither \"archive\" nor \"primary\""),
    }
}

pub(super) fn check_repository(raw: &RawRepository) -> Result<RepositoryConfig> {
    let url = raw.url.as_deref().context("url is missing: write s3://bucket/prefix or file:///srv/walkeep")?;
    // Not shown, since what stands there may be a secret.
    ensure!(!url.contains('@'), "url: there is an @ in it; keys do not belong there, but into access_key_id and secret_access_key_file");
    ensure!(
        !raw.endpoint.as_deref().unwrap_or_default().contains('@'),
        "endpoint: there is an @ in it; keys do not belong there, but into access_key_id and secret_access_key_file"
    );
    if let Some(path) = url.strip_prefix("file://") {
        return Ok(RepositoryConfig::Local { path: absolute("url", path)? });
    }
    let Some(place) = url.strip_prefix("s3://") else {
        bail!("url: {url:?} has no known scheme: write s3://bucket/prefix or file:///srv/walkeep");
    };
    let (bucket, prefix) = place.split_once('/').unwrap_or((place, ""));
    ensure!(!bucket.is_empty(), "url: {url:?} names no bucket");
    let in_name = |b: u8| b.is_ascii_alphanumeric() || b"._-".contains(&b);
    ensure!(bucket.bytes().all(in_name), "url: {bucket:?} cannot be a bucket's name: use A-Z a-z 0-9 . _ -");
    let prefix = prefix.trim_matches('/');
    ensure!(
        prefix.is_empty() || prefix.parse::<walkeep_store::Key>().is_ok(),
        "url: the prefix {prefix:?} may contain only A-Z a-z 0-9 . _ - and single slashes"
    );
    raw.endpoint.as_deref().map(check_endpoint).transpose()?;
    let encryption = match (raw.encryption.as_deref(), &raw.kms_key_id) {
        (None, None) => ServerSideEncryption::Bucket,
        (Some("AES256"), None) => ServerSideEncryption::Aes256,
        (Some("AES256"), Some(_)) => bail!("kms_key_id: goes with encryption = \"aws:kms\", not with AES256"),
        (None | Some("aws:kms"), key_id) => ServerSideEncryption::Kms { key_id: key_id.clone() },
        (Some(other), _) => bail!("encryption: {other:?} is neither \"AES256\" nor \"aws:kms\""),
    };
    let object_lock = match (raw.object_lock.as_deref(), raw.object_lock_days) {
        (None, None) => None,
        (Some(_), None) => bail!("object_lock: say for how long, object_lock_days = 30"),
        (None, Some(_)) => bail!("object_lock_days: goes with object_lock = \"governance\" or \"compliance\""),
        (Some(mode), Some(days)) => {
            ensure!((1..=36500).contains(&days), "object_lock_days: must be from 1 to 36500");
            let mode = match mode {
                "governance" => LockMode::Governance,
                "compliance" => LockMode::Compliance,
                other => bail!("object_lock: {other:?} is neither \"governance\" nor \"compliance\""),
            };
            Some(Lock { mode, days })
        }
    };
    check_class("wal_storage_class", raw.wal_storage_class.as_deref())?;
    check_class("storage_class", raw.storage_class.as_deref())?;
    let as_of = raw.as_of.as_deref().map(|text| {
        let time = parse_time(text).map_err(|error| anyhow!("as_of: {error}"))?;
        time.to_utc().with_context(|| format!("as_of: {text:?} is out of range"))
    });
    let file = |key: &str, path: &Option<String>| path.as_deref().map(|path| absolute(key, path)).transpose();
    ensure!(
        raw.access_key_id.is_some() == raw.secret_access_key_file.is_some(),
        "access_key_id and secret_access_key_file go together; without both, AWS's usual sources are asked (environment, profile, roles)"
    );
    Ok(RepositoryConfig::S3(Box::new(S3Config {
        bucket: bucket.into(),
        prefix: prefix.into(),
        endpoint: raw.endpoint.clone(),
        region: raw.region.clone(),
        path_style: raw.path_style,
        storage_class: raw.storage_class.clone(),
        wal_storage_class: raw.wal_storage_class.clone(),
        backup_storage_class: raw.backup_storage_class.clone(),
        object_lock,
        as_of: as_of.transpose()?,
        encryption,
        ca_file: file("ca_file", &raw.ca_file)?,
        profile: raw.profile.clone(),
        access_key_id: raw.access_key_id.clone(),
        secret_access_key_file: file("secret_access_key_file", &raw.secret_access_key_file)?,
        session_token_file: file("session_token_file", &raw.session_token_file)?,
        timeout: raw.timeout.as_deref().map(|text| duration("timeout", Some(text), Duration::ZERO)).transpose()?,
        prices: raw.prices.as_deref().map(str::parse).transpose().context("prices")?,
    })))
}

/// Recovery asks for segments one after the other, and every command for records: neither can wait for hours.
fn check_class(key: &str, class: Option<&str>) -> Result<()> {
    let is_archived = class.is_some_and(|class| matches!(class, "GLACIER" | "DEEP_ARCHIVE"));
    ensure!(!is_archived, "{key}: what lies in that class is read hours later only; GLACIER_IR is as cheap as one can read at once");
    Ok(())
}

/// A scheme, a host and perhaps a port: what the SDK would refuse only at the first request.
fn check_endpoint(endpoint: &str) -> Result<()> {
    let wrong = || format!("endpoint: {endpoint:?} is not an address: write https://host, http://host:9000");
    let rest = endpoint.strip_prefix("https://").or_else(|| endpoint.strip_prefix("http://")).with_context(wrong)?;
    let parsed: axum::http::Uri = endpoint.parse().ok().with_context(wrong)?;
    let authority = rest.split('/').next().unwrap_or_default();
    // An address of IPv6 has colons of its own, in brackets.
    let port = authority.rsplit_once(']').map_or(authority, |(_, after)| after).rsplit_once(':').map(|(_, port)| port);
    ensure!(parsed.host().is_some_and(|host| !host.is_empty()) && port.is_none_or(|port| port.parse::<u16>().is_ok()), wrong());
    ensure!(parsed.query().is_none(), "endpoint: {endpoint:?} has a query, which no request would carry");
    Ok(())
}

pub(super) fn duration(key: &str, text: Option<&str>, default: Duration) -> Result<Duration> {
    let parse =
        |text| humantime::parse_duration(text).with_context(|| format!("{key}: {text:?} is not a duration: write 500ms, 1s or 5min"));
    text.map_or(Ok(default), parse)
}

fn absolute(key: &str, path: &str) -> Result<PathBuf> {
    ensure!(path.starts_with('/'), "{key}: {path:?} is not an absolute path");
    Ok(PathBuf::from(path))
}
