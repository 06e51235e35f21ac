//! Walkeep's story tests: the real binaries against real PostgreSQL and a real S3 server. `make test` builds what they need.
//!
//! One binary with one module for each story, so that they share the S3 server and link once.
#![allow(clippy::unwrap_used)]

mod access;
mod alone;
mod backups;
mod backwards;
mod clocks;
mod conflicts;
mod decoder;
mod delta;
mod disk_faults;
mod encryption;
mod estimates;
mod extract;
mod failover;
mod gaps;
mod harness;
mod incremental;
mod index;
mod kill_loop;
mod killed_steps;
mod leases;
mod least_privilege;
mod lineage;
mod local_backup;
mod log;
mod many_relations;
mod minimal;
mod names;
mod other_history;
mod parts;
mod picture;
mod places;
mod process_faults;
mod protect;
mod recovery;
mod restore;
mod retention;
mod same_moment;
mod schedules;
mod several;
mod standbys;
mod store_faults;
mod story;
mod streaming;
mod support;
mod tablespaces;
mod targets;
mod timelines;
mod trees;
mod waiting_backups;
