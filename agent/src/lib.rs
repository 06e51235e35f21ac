//! Walkeep: WAL archiving and point-in-time recovery for PostgreSQL.
//!
//! This crate is the agent and the command line, the only place with tokio, connections and the S3 SDK. Dependencies point downward:
//! commands and daemon, then jobs, then [`repository`], then stores ([`walkeep_store`]) and [`codec`]. Decisions live in
//! [`walkeep_core`]; ARCHITECTURE.md at the top of the repository has the map.

pub mod codec;
pub mod config;
pub mod durable;
pub mod fetch;
pub mod repository;
pub mod retry;
