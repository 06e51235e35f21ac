//! Logs: lines for people on standard error, or JSON for machines.

use std::io::IsTerminal;

use anyhow::{Context, Result};
use tracing_subscriber::EnvFilter;

use crate::config::LogConfig;

/// Starts logging; once in a process. `WALKEEP_LOG_LEVEL` and `[log] level` take a level or a filter such as `info,walkeep::stream=debug`.
pub fn start(config: &LogConfig) -> Result<()> {
    // A bare word that is no level would be taken for a module's name, and nothing at all would be logged.
    let is_level = |part: &str| part.contains('=') || ["error", "warn", "info", "debug", "trace", "off"].contains(&part.trim());
    anyhow::ensure!(
        config.level.split(',').all(is_level),
        "[log] level: {:?} is not a level (error, warn, info, debug, trace) or a filter such as info,walkeep::stream=debug",
        config.level
    );
    let filter = EnvFilter::try_new(&config.level).with_context(|| format!("[log] level: {:?} is not a level or filter", config.level))?;
    let builder = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr).with_target(false);
    // A log that nobody reads any more is no reason to panic, which telling of it on the same standard error would do.
    let builder = builder.log_internal_errors(false);
    let started = if config.json {
        builder.json().flatten_event(true).try_init()
    } else {
        builder.with_ansi(std::io::stderr().is_terminal()).try_init()
    };
    started.map_err(|error| anyhow::anyhow!("start logging: {error}"))
}
