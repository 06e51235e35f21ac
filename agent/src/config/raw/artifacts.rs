//! `[[cluster.NAME.artifact]]` and `[cluster.NAME.dump]` as they are written.

use std::collections::BTreeMap;

use serde::Deserialize;

use super::OneOrMore;

/// An artifact.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RawArtifact {
    pub name: Option<String>,
    pub path: Option<String>,
    pub url: Option<String>,
    pub command: Option<OneOrMore>,
    #[serde(default)]
    pub environment: RawEnvironment,
    pub allow_empty: Option<bool>,
    pub endpoint: Option<String>,
    pub region: Option<String>,
    pub path_style: Option<bool>,
    pub ca_file: Option<String>,
    pub profile: Option<String>,
    pub access_key_id: Option<String>,
    pub secret_access_key_file: Option<String>,
    pub session_token_file: Option<String>,
    schedule: Option<String>,
    timezone: Option<String>,
    jitter: Option<String>,
    catch_up: Option<bool>,
    timeout: Option<String>,
    max_size: Option<String>,
    keep: Option<String>,
    keep_last: Option<u32>,
    daily: Option<u32>,
    weekly: Option<u32>,
    monthly: Option<u32>,
    yearly: Option<u32>,
}

/// Dumps of databases.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RawDump {
    pub databases: Option<OneOrMore>,
    pub exclude: Option<OneOrMore>,
    pub format: Option<String>,
    pub jobs: Option<u32>,
    pub options: Option<Vec<String>>,
    pub bin_dir: Option<String>,
    pub scratch: Option<String>,
    schedule: Option<String>,
    timezone: Option<String>,
    jitter: Option<String>,
    catch_up: Option<bool>,
    timeout: Option<String>,
    max_size: Option<String>,
    keep: Option<String>,
    keep_last: Option<u32>,
    daily: Option<u32>,
    weekly: Option<u32>,
    monthly: Option<u32>,
    yearly: Option<u32>,
}

/// What both have: serde lets no table that refuses unknown keys be a part of another.
#[derive(Debug, Default)]
pub struct RawRuns {
    pub schedule: Option<String>,
    pub timezone: Option<String>,
    pub jitter: Option<String>,
    pub catch_up: Option<bool>,
    pub timeout: Option<String>,
    pub max_size: Option<String>,
    pub keep: Option<String>,
    pub keep_last: Option<u32>,
    pub daily: Option<u32>,
    pub weekly: Option<u32>,
    pub monthly: Option<u32>,
    pub yearly: Option<u32>,
}

macro_rules! runs {
    ($raw:expr) => {
        RawRuns {
            schedule: $raw.schedule.clone(),
            timezone: $raw.timezone.clone(),
            jitter: $raw.jitter.clone(),
            catch_up: $raw.catch_up,
            timeout: $raw.timeout.clone(),
            max_size: $raw.max_size.clone(),
            keep: $raw.keep.clone(),
            keep_last: $raw.keep_last,
            daily: $raw.daily,
            weekly: $raw.weekly,
            monthly: $raw.monthly,
            yearly: $raw.yearly,
        }
    };
}

impl RawArtifact {
    /// When, and what is kept.
    pub fn runs(&self) -> RawRuns {
        runs!(self)
    }
}

impl RawDump {
    /// When, and what is kept.
    pub fn runs(&self) -> RawRuns {
        runs!(self)
    }
}

/// Variables, which may be secrets.
#[derive(Default, Deserialize)]
#[serde(transparent)]
pub struct RawEnvironment(pub BTreeMap<String, String>);

impl std::fmt::Debug for RawEnvironment {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("RawEnvironment (not shown)")
    }
}
