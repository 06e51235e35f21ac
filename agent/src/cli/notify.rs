//! `walkeep notify`: who is told when something is wrong, and whether that arrives.

use std::time::Instant;

use anyhow::anyhow;
use chrono::Utc;
use clap::Args;
use serde::Serialize;
use walkeep_core::alarm::Message;

use super::failure::{Exit, Failure};
use super::{Global, output, setup};
use crate::notify::{Channel, From};

/// Arguments of `walkeep notify`.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  walkeep notify             who is told
  walkeep notify --test      tells each of them, and says whether it arrived

The agent tells what is wrong, that it still is, and that it is over, by [notify] of the configuration. The heartbeat is not tried: whoever
watches it would take a try for a sign of life. Exit code 1 if a message did not arrive.")]
pub struct NotifyArgs {
    /// Send a message by every way that is configured
    #[arg(long)]
    test: bool,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

/// A way of telling, and how a try of it ended.
#[derive(Debug, Serialize)]
struct Tried {
    channel: &'static str,
    to: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    arrived: Option<bool>,
    #[serde(skip_serializing_if = "Option::is_none")]
    seconds: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    error: Option<String>,
}

/// Runs the command.
pub async fn run(global: &Global, args: NotifyArgs) -> Result<(), Failure> {
    let config = setup::config(global)?;
    let channels = Channel::all(&config.notify);
    if channels.is_empty() {
        let nobody = anyhow!("nobody is told: there is neither webhook nor email nor command in [notify]");
        return Err(Failure::usage(nobody).hint("See [notify] in walkeep.example.toml."));
    }
    let (message, from) = (Message::test(Utc::now()), From::here(&config.cluster));
    let mut all = Vec::new();
    for channel in &channels {
        let mut tried = Tried { channel: channel.as_str(), to: channel.words(), arrived: None, seconds: None, error: None };
        if args.test {
            let began = Instant::now();
            let sent = channel.send(&message, &from).await;
            (tried.arrived, tried.seconds) = (Some(sent.is_ok()), Some(began.elapsed().as_secs_f64()));
            tried.error = sent.err().map(|error| format!("{error:#}"));
        }
        if !args.json {
            print(&tried);
        }
        all.push(tried);
    }
    if args.json {
        output::json(&all)?;
    }
    let failed: Vec<_> = all.iter().filter(|tried| tried.arrived == Some(false)).map(|tried| tried.channel).collect();
    match failed.is_empty() {
        true => Ok(()),
        false => Err(Failure { exit: Exit::Failed, error: anyhow!("no message arrived by {}", failed.join(", ")), hint: None }),
    }
}

fn print(tried: &Tried) {
    let Tried { channel, to, arrived, seconds, error } = tried;
    let how = match (arrived, error) {
        (None, _) => String::new(),
        (Some(true), _) => format!(": taken after {:.1} s; look whether it is there", seconds.unwrap_or_default()),
        (_, error) => format!(": FAILED: {}", error.as_deref().unwrap_or_default()),
    };
    output::say!("{channel:8} {to}{how}");
}
