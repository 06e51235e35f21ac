//! The configuration file as it is written: names and types of keys, nothing decided.

pub mod artifacts;
pub mod drill;
pub mod notify;

use std::collections::BTreeMap;

use anyhow::{Result, anyhow};
use artifacts::{RawArtifact, RawDump};
use drill::RawDrill;
use notify::RawNotify;

use super::metrics::RawMetrics;
use serde::Deserialize;

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Raw {
    #[serde(default)]
    pub cluster: BTreeMap<String, RawCluster>,
    #[serde(default)]
    pub listen: RawListen,
    #[serde(default)]
    pub log: RawLog,
    #[serde(default)]
    pub metrics: RawMetrics,
    #[serde(default)]
    pub notify: RawNotify,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RawCluster {
    pub connection: Option<String>,
    pub data_directory: Option<String>,
    pub config_files: Option<bool>,
    pub spool: Option<String>,
    pub spool_limit: Option<String>,
    pub socket: Option<String>,
    pub slot: Option<String>,
    pub application_name: Option<String>,
    pub upload_interval: Option<String>,
    pub acknowledge: Option<String>,
    pub protect: Option<String>,
    pub slot_limit: Option<String>,
    pub compression_level: Option<i32>,
    pub wal_compression_level: Option<i32>,
    pub upload_parallelism: Option<usize>,
    pub stream: Option<bool>,
    pub acknowledge_rule: Option<String>,
    pub compare_interval: Option<String>,
    #[serde(default)]
    pub encryption: RawEncryption,
    #[serde(default)]
    pub repository: Vec<RawRepository>,
    #[serde(default)]
    pub backup: Vec<RawBackup>,
    pub retention: Option<RawRetention>,
    #[serde(default)]
    pub artifact: Vec<RawArtifact>,
    pub dump: Option<RawDump>,
    #[serde(default)]
    pub verify: RawVerify,
    #[serde(default)]
    pub drill: RawDrill,
}

/// What the agent looks at by itself.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RawVerify {
    pub check: Option<String>,
    pub scrub: Option<String>,
    pub rate: Option<String>,
}

/// What is kept for how long.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RawRetention {
    pub window: Option<String>,
    pub daily: Option<u32>,
    pub weekly: Option<u32>,
    pub monthly: Option<u32>,
    pub yearly: Option<u32>,
    pub minimum_backups: Option<u32>,
    pub timezone: Option<String>,
    pub grace: Option<String>,
    pub automatic: Option<bool>,
}

/// Keys.
#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RawEncryption {
    pub recipients: Option<OneOrMore>,
    pub recipients_file: Option<String>,
    pub identity_file: Option<String>,
    pub fingerprint_key_file: Option<String>,
    pub identity: Option<String>,
}

/// Texts: what does not fit is not shown, as it may be a secret.
#[derive(Clone, Deserialize)]
#[serde(untagged)]
pub enum OneOrMore {
    One(String),
    More(Vec<String>),
}

impl OneOrMore {
    /// All of them; those in one text stand apart by commas or spaces, as in the environment.
    pub fn texts(&self) -> Vec<&str> {
        match self {
            Self::One(text) => text.split([',', ' ', '\n']).filter(|text| !text.is_empty()).collect(),
            Self::More(texts) => texts.iter().map(String::as_str).collect(),
        }
    }
}

impl std::fmt::Debug for OneOrMore {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("OneOrMore (not shown)")
    }
}

impl std::fmt::Debug for RawEncryption {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("RawEncryption (not shown)")
    }
}

/// A schedule.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RawBackup {
    pub schedule: Option<String>,
    pub timezone: Option<String>,
    pub jitter: Option<String>,
    pub catch_up: Option<bool>,
    pub label: Option<String>,
    pub keep: Option<String>,
    pub full: Option<bool>,
    pub max_rate: Option<String>,
    pub spread_checkpoint: Option<bool>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RawRepository {
    pub url: Option<String>,
    pub endpoint: Option<String>,
    pub region: Option<String>,
    pub path_style: Option<bool>,
    pub storage_class: Option<String>,
    pub wal_storage_class: Option<String>,
    pub backup_storage_class: Option<String>,
    pub object_lock: Option<String>,
    pub object_lock_days: Option<u32>,
    pub as_of: Option<String>,
    pub encryption: Option<String>,
    pub kms_key_id: Option<String>,
    pub ca_file: Option<String>,
    pub profile: Option<String>,
    pub access_key_id: Option<String>,
    pub secret_access_key_file: Option<String>,
    pub session_token_file: Option<String>,
    pub timeout: Option<String>,
    pub prices: Option<String>,
}

impl RawRepository {
    /// The keys given that only a bucket understands.
    pub fn keys_of_s3(&self) -> Vec<&'static str> {
        let given = [
            ("endpoint", self.endpoint.is_some()),
            ("region", self.region.is_some()),
            ("path_style", self.path_style.is_some()),
            ("storage_class", self.storage_class.is_some()),
            ("wal_storage_class", self.wal_storage_class.is_some()),
            ("backup_storage_class", self.backup_storage_class.is_some()),
            ("object_lock", self.object_lock.is_some()),
            ("object_lock_days", self.object_lock_days.is_some()),
            ("as_of", self.as_of.is_some()),
            ("encryption", self.encryption.is_some()),
            ("kms_key_id", self.kms_key_id.is_some()),
            ("ca_file", self.ca_file.is_some()),
            ("profile", self.profile.is_some()),
            ("access_key_id", self.access_key_id.is_some()),
            ("secret_access_key_file", self.secret_access_key_file.is_some()),
            ("session_token_file", self.session_token_file.is_some()),
            ("timeout", self.timeout.is_some()),
            ("prices", self.prices.is_some()),
        ];
        given.into_iter().filter(|(_, given)| *given).map(|(key, _)| key).collect()
    }
}

/// The line of a key in the table number `index` of a cluster's `list` (`repository`, `backup`), if it is in the file and not from the environment.
pub fn line_of_key(text: &str, cluster: &str, list: &str, index: usize, key: &str) -> Option<usize> {
    #[derive(Deserialize)]
    struct Located {
        #[serde(default)]
        cluster: BTreeMap<String, LocatedCluster>,
    }
    #[derive(Deserialize)]
    struct LocatedCluster {
        #[serde(default)]
        repository: Vec<Keys>,
        #[serde(default)]
        backup: Vec<Keys>,
    }
    type Keys = BTreeMap<toml::Spanned<String>, toml::Value>;
    let located: Located = toml::from_str(text).ok()?;
    let cluster = located.cluster.get(cluster)?;
    let tables = if list == "backup" { &cluster.backup } else { &cluster.repository };
    let keys = tables.get(index)?.keys();
    let start = keys.into_iter().find(|known| known.get_ref() == key)?.span().start;
    Some(text.get(..start)?.matches('\n').count() + 1)
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RawListen {
    pub http: Option<String>,
    pub page: Option<bool>,
    pub token: Option<RawSecret>,
    pub token_file: Option<String>,
}

/// A text that must not be shown.
#[derive(Default, Deserialize)]
#[serde(transparent)]
pub struct RawSecret(pub String);

impl std::fmt::Debug for RawSecret {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("RawSecret (not shown)")
    }
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RawLog {
    pub format: Option<String>,
    pub level: Option<String>,
}

/// The file as a table, so that the environment can be laid over it before it is checked.
pub fn parse_table(text: &str, described: &str) -> Result<toml::Table> {
    // Checked against the types too, while positions are known: an unknown key is told with its line.
    toml::from_str::<Raw>(text).map_err(|error| located(&error, text, described))?;
    toml::from_str(text).map_err(|error| located(&error, text, described))
}

/// The table with the environment laid over it.
pub fn from_table(table: toml::Table, text: &str, described: &str) -> Result<Raw> {
    table.try_into().map_err(|error: toml::de::Error| located(&error, text, described))
}

fn located(error: &toml::de::Error, text: &str, described: &str) -> anyhow::Error {
    let message = error.message().trim();
    match error.span() {
        Some(span) => {
            let before = text.get(..span.start.min(text.len())).unwrap_or(text);
            let line = before.matches('\n').count() + 1;
            anyhow!("{described}, line {line}: {message}")
        }
        None => anyhow!("{described}: {message}"),
    }
}
