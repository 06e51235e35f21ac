//! agent

pub mod server;
pub mod wal_path;
