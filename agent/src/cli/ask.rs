//! Asking a person before something is deleted or overwritten.

use std::io::IsTerminal;

use anyhow::{Context, Result};

use super::output;

/// Whether somebody is there to be asked.
pub fn possible() -> bool {
    std::io::stdin().is_terminal()
}

/// Asks; anything but yes is no.
pub async fn ask(question: String) -> Result<bool> {
    let (tell, told) = tokio::sync::oneshot::channel();
    // Not a thread of the runtime, which would wait for an answer when the command is cancelled.
    std::thread::spawn(move || {
        output::error_line(format_args!("\r\x1b[K{question} Go on? [y/N] "));
        let mut answer = String::new();
        let read = std::io::stdin().read_line(&mut answer);
        let _ = tell.send(read.map(|_| ["y", "yes"].contains(&answer.trim().to_lowercase().as_str())));
    });
    told.await.context("ask")?.context("read the answer")
}
