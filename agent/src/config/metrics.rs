//! `[metrics]`: how those learn how a command ended who cannot scrape it, and under which names.

use std::path::PathBuf;

use anyhow::{Context, Result, ensure};
use serde::Deserialize;

use super::check_url;

/// As it is written.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RawMetrics {
    pub textfile: Option<PathBuf>,
    pub pushgateway: Option<String>,
    pub backup_names: Option<bool>,
}

/// Checked.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct MetricsConfig {
    /// The folder from which node_exporter reads files.
    pub textfile: Option<PathBuf>,
    /// The Pushgateway's URL, without a slash at its end.
    pub pushgateway: Option<String>,
    /// Whether the names that backup scripts commonly use are given too.
    pub backup_names: bool,
}

/// Checks it.
pub fn check(raw: RawMetrics) -> Result<MetricsConfig> {
    let RawMetrics { textfile, pushgateway, backup_names } = raw;
    if let Some(folder) = &textfile {
        ensure!(folder.is_absolute(), "textfile: {} is not an absolute path of a folder", folder.display());
    }
    if let Some(url) = &pushgateway {
        // It would be shown in every error.
        ensure!(!url.contains('@'), "pushgateway: there is an account in it; give one without, on a network of your own");
        let uri = check_url(url).context("pushgateway")?;
        ensure!(uri.query().is_none(), "pushgateway: write http://host:9091, without a query");
    }
    let pushgateway = pushgateway.map(|url| url.trim_end_matches('/').to_owned());
    Ok(MetricsConfig { textfile, pushgateway, backup_names: backup_names.unwrap_or_default() })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> Result<MetricsConfig> {
        check(toml::from_str(text)?)
    }

    #[test]
    fn what_is_written_is_understood_or_refused() {
        let config = read("textfile = \"/var/lib/prometheus/node-exporter\"\npushgateway = \"http://push:9091/\"").unwrap();
        assert_eq!((config.pushgateway.as_deref(), config.backup_names), (Some("http://push:9091"), false));
        for (text, reason) in [
            ("textfile = \"here\"", "absolute"),
            ("pushgateway = \"push:9091\"", "not a URL"),
            ("pushgateway = \"http://me:sentinel@push\"", "an account"),
            ("pushgateway = \"http://push?a=b\"", "without a query"),
        ] {
            let error = format!("{:#}", read(text).unwrap_err());
            assert!(error.contains(reason) && !error.contains("sentinel"), "{text}: {error}");
        }
    }
}
