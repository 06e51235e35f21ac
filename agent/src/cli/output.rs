//! How things are shown: lines, JSON, tables, sizes and times.
//!
//! The only place that writes to standard output and standard error. The standard library's macros panic when the reader has gone
//! (`walkeep status | head -1`); here such a reader is none, and the command goes on: a restore is not given up because nobody watches.

use std::fmt::Arguments;
use std::io::{self, ErrorKind, Write};
use std::sync::Mutex;
use std::sync::PoisonError;
use std::time::Duration;

use anyhow::{Context, Result};
use serde::Serialize;
use walkeep_core::backup::Keep;

/// Prints one line for whoever ran the command.
macro_rules! say {
    ($($text:tt)*) => { $crate::cli::output::line(format_args!($($text)*)) };
}

/// Prints one line on standard error.
macro_rules! tell {
    ($($text:tt)*) => { $crate::cli::output::error_line(format_args!("{}\n", format_args!($($text)*))) };
}

pub(crate) use {say, tell};

/// What went wrong first with standard output, other than that its reader has gone: a full disk behind a redirection.
static LOST: Mutex<Option<io::Error>> = Mutex::new(None);

/// What comes behind all else that is told.
static LATER: Mutex<Vec<String>> = Mutex::new(Vec::new());

/// Tells it on standard error, behind how the command ended.
pub fn tell_later(text: String) {
    LATER.lock().unwrap_or_else(PoisonError::into_inner).push(text);
}

/// Tells what was to be told last.
pub fn tell_rest() {
    let rest = std::mem::take(&mut *LATER.lock().unwrap_or_else(PoisonError::into_inner));
    rest.iter().for_each(|text| tell!("{text}"));
}

/// Writes the line; see [`say`].
pub fn line(text: Arguments<'_>) {
    note(writeln!(io::stdout().lock(), "{text}"));
}

/// Writes to standard error, of whose failure nobody could be told; see [`tell`].
pub fn error_line(text: Arguments<'_>) {
    let _ = io::stderr().lock().write_fmt(text);
}

fn note(written: io::Result<()>) {
    if let Err(error) = written
        && error.kind() != ErrorKind::BrokenPipe
    {
        LOST.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert(error);
    }
}

/// Whether everything said has arrived, or nobody reads it.
pub fn finish() -> Result<()> {
    note(io::stdout().flush());
    match LOST.lock().unwrap_or_else(PoisonError::into_inner).take() {
        Some(error) => Err(error).context("the command did its work, but standard output did not take all of its words"),
        None => Ok(()),
    }
}

/// Prints a value as JSON.
pub fn json(value: &impl Serialize) -> Result<()> {
    say!("{}", serde_json::to_string_pretty(value)?);
    Ok(())
}

/// A table with plain borders, for terminals and logs alike.
pub fn table(header: &[&str]) -> comfy_table::Table {
    let mut table = comfy_table::Table::new();
    table.load_preset(comfy_table::presets::UTF8_HORIZONTAL_ONLY).set_header(header.iter().copied());
    table
}

/// A number of things: `1 file`, `2 files`.
pub fn count(number: u64, what: &str) -> String {
    format!("{number} {what}{}", if number == 1 { "" } else { "s" })
}

/// Bytes for people: `16 MiB`.
pub fn bytes(bytes: u64) -> String {
    indicatif::BinaryBytes(bytes).to_string()
}

/// A duration for people, to the second or better.
pub fn duration(duration: Duration) -> String {
    let rounded =
        if duration.as_secs() > 0 { Duration::from_secs(duration.as_secs()) } else { Duration::from_millis(duration.as_millis() as u64) };
    humantime::format_duration(rounded).to_string()
}

/// A time for people, in UTC.
pub fn time(time: chrono::DateTime<chrono::Utc>) -> String {
    time.format("%Y-%m-%d %H:%M:%S UTC").to_string()
}

/// For how long a backup is kept beyond the retention policy.
pub fn kept(keep: &Keep) -> String {
    match keep {
        Keep::Forever => "forever".into(),
        Keep::Until(until) => format!("until {}", time(*until)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_is_singular() {
        assert_eq!([0, 1, 2].map(|number| count(number, "file")), ["0 files", "1 file", "2 files"]);
    }
}
