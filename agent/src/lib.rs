//! Walkeep's agent: everything that opens a file or a socket.

pub mod postgres;
