//! How things are shown: JSON, tables, sizes and times.

use std::time::Duration;

use anyhow::Result;
use serde::Serialize;

/// Prints a value as JSON.
pub fn json(value: &impl Serialize) -> Result<()> {
    println!("{}", serde_json::to_string_pretty(value)?);
    Ok(())
}

/// A table with plain borders, for terminals and logs alike.
pub fn table(header: &[&str]) -> comfy_table::Table {
    let mut table = comfy_table::Table::new();
    table.load_preset(comfy_table::presets::UTF8_HORIZONTAL_ONLY).set_header(header.iter().copied());
    table
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
