//! The harness itself: what stories rely on is checked before a story is believed.

mod binaries;
mod cluster;
mod faults;
mod store;
