//! PostgreSQL's `backup_manifest` for what was restored, so that `pg_verifybackup` can check the directory before a server starts on it.
//!
//! A backup that came by `BASE_BACKUP` has the server's own, which is left as it is. For others it is made of what was written: sizes and sums of the files,
//! and the WAL that recovery needs. Format: PostgreSQL's documentation, "Backup Manifest Format"; version 1 up to PostgreSQL 16, 2 from 17 on.

use std::fmt::Write as _;
use std::fs;
use std::time::UNIX_EPOCH;

use anyhow::{Context, Result};
use chrono::{DateTime, Utc};
use serde_json::json;
use walkeep_core::backup::BackupRecord;
use walkeep_core::manifest::EntryKind;

use super::layout::{SIGNALS, TABLESPACE_MAP};
use super::target_dir::Target;
use crate::codec;
use crate::durable;
use crate::repository::manifest::ManifestEntries;

/// Its name.
pub const FILE: &str = "backup_manifest";

/// Writes it. `sums` are those of the manifest's files in order; a file without one has no content, and there is no manifest for such a directory.
pub fn write(target: &Target, manifest: &ManifestEntries, record: &BackupRecord, sums: &[Option<u32>]) -> Result<()> {
    let version = if record.major_version.get() >= 17 { 2 } else { 1 };
    let mut text = format!("{{ \"PostgreSQL-Backup-Manifest-Version\": {version},\n");
    if version == 2 {
        writeln!(text, "\"System-Identifier\": {},", record.system_identifier.get())?;
    }
    text.push_str("\"Files\": [");
    let mut numbers = 0..;
    let mut separator = "\n";
    for entry in manifest.iter()? {
        let entry = entry?;
        let EntryKind::File { content, .. } = &entry.kind else { continue };
        let number = numbers.next().unwrap_or_default();
        let name = entry.path.as_str();
        if SIGNALS.contains(&name) || name == FILE {
            continue;
        }
        let (path, size, sum) = match name {
            // Written anew, for where the tablespaces are now and for this recovery.
            _ if name == TABLESPACE_MAP || name.ends_with(".conf") => {
                let path = target.data.join(name);
                let Ok(bytes) = fs::read(&path) else { continue };
                (path, bytes.len() as u64, crc32c::crc32c(&bytes))
            }
            _ => {
                let Some(path) = target.place(&entry.path) else { continue };
                let Some(sum) = sums.get(number).copied().flatten() else { return Ok(()) };
                (path, content.size(), sum)
            }
        };
        let modified =
            fs::symlink_metadata(&path).and_then(|found| found.modified()).with_context(|| format!("look at {}", path.display()))?;
        let seconds = modified.duration_since(UNIX_EPOCH).map_or(0, |time| time.as_secs());
        let modified = i64::try_from(seconds).ok().and_then(|seconds| DateTime::<Utc>::from_timestamp(seconds, 0)).unwrap_or_default();
        let line = json!({
            "Path": name,
            "Size": size,
            "Last-Modified": modified.format("%Y-%m-%d %H:%M:%S GMT").to_string(),
            "Checksum-Algorithm": "CRC32C",
            "Checksum": hex::encode(sum.to_le_bytes()),
        });
        write!(text, "{separator}{line}")?;
        separator = ",\n";
    }
    // A standby may have followed its primary to a new timeline meanwhile; what lies between is replayed along its history, not known here.
    let ranges = match record.stop_timeline {
        None => {
            json!([{ "Timeline": record.timeline.get(), "Start-LSN": record.start_lsn.to_string(), "End-LSN": record.stop_lsn.to_string() }])
        }
        Some(_) => json!([]),
    };
    write!(text, "\n],\n\"WAL-Ranges\": {ranges},\n")?;
    let sum = hex::encode(codec::sha256(text.as_bytes()));
    writeln!(text, "\"Manifest-Checksum\": \"{sum}\"}}")?;
    durable::write_file(&target.data.join(FILE), text.as_bytes(), durable::PRIVATE_FILE)
}
