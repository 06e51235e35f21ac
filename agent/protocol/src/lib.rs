//! What Walkeep's shims say to the agent over its Unix socket, and what both shims share.
//!
//! One connection carries one [`Request`] and one [`Response`], each in one [`frame`]. PostgreSQL waits for the shims, so this crate
//! uses the standard library only: a shim starts as fast as `/bin/true`. It does not know what a WAL file is: names and paths
//! travel as PostgreSQL gave them, and the agent decides what they mean and which of them it may touch.
#![deny(missing_docs)]

pub mod client;
pub mod config;
pub mod frame;
pub mod notice;
pub mod options;
pub mod request;
pub mod response;

mod fields;

pub use client::{CallError, call};
pub use fields::DecodeError;
pub use frame::FrameError;
pub use request::{Request, Verb};
pub use response::Response;
