//! Walkeep: WAL archiving and point-in-time recovery for PostgreSQL.
//!
//! This crate is the agent and the command line, the only place with tokio, connections and the S3 SDK. Dependencies point downward:
//! [`cli`] and [`daemon`], then jobs ([`archive`], [`stream`], …), then [`repository`], then stores ([`walkeep_store`]) and [`codec`];
//! [`postgres`] beside them. Decisions live in [`walkeep_core`]; ARCHITECTURE.md at the top of the repository has the map.

#![cfg_attr(not(test), deny(clippy::print_stdout, clippy::print_stderr))]

pub mod archive;
pub mod artifact;
pub mod audit;
pub mod backup;
pub mod certificate;
pub mod cli;
pub mod codec;
pub mod config;
pub mod copies;
pub mod daemon;
pub mod drill;
pub mod durable;
pub mod encryption;
pub mod expire;
pub mod extract;
pub mod fetch;
mod fleet;
pub mod http;
pub mod index;
pub mod journal;
pub mod lag_file;
pub mod logging;
pub mod metrics;
pub mod names;
pub mod notify;
mod pace;
pub mod page;
pub mod planning;
pub mod postgres;
pub mod progress;
pub mod rates;
pub mod recent;
pub mod repository;
pub mod restore;
pub mod retry;
pub mod sample;
pub mod scratch_server;
pub mod server;
mod server_conf;
pub mod spool;
mod state;
pub mod stream;
pub mod thaw;
pub mod transfer;
pub mod verify;
pub mod wal_path;
pub mod wal_walk;
mod web;
pub mod writer;

/// An error with all its causes, as one sentence.
pub(crate) fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        let said = error.to_string();
        if !text.contains(&said) {
            text.push_str(": ");
            text.push_str(&said);
        }
        cause = error.source();
    }
    text
}
