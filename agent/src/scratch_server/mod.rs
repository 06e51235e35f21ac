//! Throw-away PostgreSQL servers beside the running one: a private folder that goes away whatever happens, the programs, the server itself.
//!
//! Such a server listens on a socket in its private folder only, archives nothing, and knows no standby, slot, subscription or library of the
//! original. What it is started on, and what it is asked, is the caller's.

mod fill;
mod place;
mod programs;
mod server;

pub use fill::{Filling, fill};
pub use place::{Place, remove_left, watch};
pub use programs::{Clients, NotFound, Programs, newest_installed};
pub use server::{Ended, NO_LIBRARIES, Recovery, Server, Settings};
