//! Logs: lines for people on standard error, or JSON for machines.

use std::io::IsTerminal;

use anyhow::{Context, Result};
use tracing_subscriber::EnvFilter;

use crate::config::LogConfig;

/// Starts logging; once in a process. `WALKEEP_LOG_LEVEL` and `[log] level` take a level or a filter such as `info,walkeep::stream=debug`.
pub fn start(config: &LogConfig) -> Result<()> {
    let filter = EnvFilter::try_new(&config.level).with_context(|| format!("[log] level: {:?} is not a level or filter", config.level))?;
    let builder = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr).with_target(false);
    let started = if config.json {
        builder.json().flatten_event(true).try_init()
    } else {
        builder.with_ansi(std::io::stderr().is_terminal()).try_init()
    };
    started.map_err(|error| anyhow::anyhow!("start logging: {error}"))
}
