//! PostgreSQL's own `backup_manifest`, which comes at the end of a base backup: what was received is compared with it.
//!
//! The server computed its sums while it read the files, so a byte that changed anywhere between its disk and our packs is found here.
//! The file itself is stored as it came, for pg_verifybackup.

use std::collections::HashMap;

use serde::Deserialize;
use walkeep_core::{Lsn, SystemIdentifier};

use crate::codec;

/// How many differences are named.
const NAMED: usize = 5;

/// The backup is not what the server says it sent.
#[derive(Debug, thiserror::Error)]
pub enum ManifestMismatch {
    /// Not a manifest.
    #[error("the server's backup_manifest cannot be read: {0}")]
    Malformed(String),
    /// The manifest was damaged on its way.
    #[error("the server's backup_manifest does not have the SHA-256 in its own last line")]
    Checksum,
    /// It is another backup's.
    #[error("the server's backup_manifest is not of this backup: {0}")]
    Foreign(String),
    /// Files differ.
    #[error("{count} files are not as the server's backup_manifest has them: {}", .named.join("; "))]
    Files {
        /// How many.
        count: usize,
        /// The first of them, and what is wrong.
        named: Vec<String>,
    },
}

#[derive(Deserialize)]
struct Manifest {
    #[serde(rename = "System-Identifier")]
    system: Option<u64>,
    #[serde(rename = "Files")]
    files: Vec<File>,
    #[serde(rename = "WAL-Ranges")]
    ranges: Vec<Range>,
    #[serde(rename = "Manifest-Checksum")]
    checksum: String,
}

#[derive(Deserialize)]
struct File {
    #[serde(rename = "Path")]
    path: Option<String>,
    #[serde(rename = "Encoded-Path")]
    encoded: Option<String>,
    #[serde(rename = "Size")]
    size: u64,
    #[serde(rename = "Checksum-Algorithm")]
    algorithm: Option<String>,
    #[serde(rename = "Checksum")]
    checksum: Option<String>,
}

#[derive(Deserialize)]
struct Range {
    #[serde(rename = "Start-LSN")]
    start: String,
    #[serde(rename = "End-LSN")]
    end: String,
}

/// What a manifest must fit.
pub struct Expected<'a> {
    /// The cluster.
    pub system: SystemIdentifier,
    /// Where the backup began.
    pub start: Lsn,
    /// Where it ended.
    pub stop: Lsn,
    /// Every file received.
    pub files: &'a HashMap<String, Sum>,
}

/// What the server's manifest says of a file's bytes: enough to know that what came is what was sent. That it stays so is the extents' matter.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Sum {
    /// How many.
    pub size: u64,
    /// Their CRC-32C.
    pub crc32c: u32,
}

impl Sum {
    /// Goes on with these bytes.
    pub fn add(&mut self, bytes: &[u8]) {
        self.size += bytes.len() as u64;
        self.crc32c = crc32c::crc32c_append(self.crc32c, bytes);
    }
}

/// Compares a backup with the server's manifest of it. CPU work.
pub fn compare(manifest: &[u8], expected: &Expected<'_>) -> Result<(), ManifestMismatch> {
    let malformed = |error: &dyn std::fmt::Display| ManifestMismatch::Malformed(error.to_string());
    let parsed: Manifest = serde_json::from_slice(manifest).map_err(|error| malformed(&error))?;
    // The last line holds the sum of all before it.
    let body = manifest.strip_suffix(b"\n").unwrap_or(manifest);
    let last_line = body.iter().rposition(|byte| *byte == b'\n').map_or(0, |at| at + 1);
    if hex::encode(codec::sha256(&manifest[..last_line])) != parsed.checksum {
        return Err(ManifestMismatch::Checksum);
    }
    if let Some(system) = parsed.system.filter(|system| *system != expected.system.get()) {
        return Err(ManifestMismatch::Foreign(format!("it has system identifier {system}")));
    }
    let lsns = |text: fn(&Range) -> &String| parsed.ranges.iter().map(|range| text(range).parse::<Lsn>().ok()).collect::<Option<Vec<_>>>();
    let (starts, ends) = (lsns(|range| &range.start), lsns(|range| &range.end));
    let (start, stop) = (starts.and_then(|all| all.into_iter().min()), ends.and_then(|all| all.into_iter().max()));
    if (start, stop) != (Some(expected.start), Some(expected.stop)) {
        return Err(ManifestMismatch::Foreign(format!("it does not need WAL from {} to {}", expected.start, expected.stop)));
    }
    compare_files(parsed.files, expected.files)
}

fn compare_files(listed: Vec<File>, received: &HashMap<String, Sum>) -> Result<(), ManifestMismatch> {
    let mut wrong = Vec::new();
    let mut known = 0;
    for file in listed {
        let path = match (file.path, file.encoded) {
            (Some(path), _) => path,
            (None, Some(encoded)) => format!("(hexadecimal) {encoded}"),
            (None, None) => return Err(ManifestMismatch::Malformed("a file without a path".into())),
        };
        let Some(Sum { size, crc32c }) = received.get(&path) else {
            wrong.push(format!("{path}: listed, but not received"));
            continue;
        };
        known += 1;
        // Written as it lies in the server's memory, and all servers that Walkeep knows of are little-endian.
        let written = hex::encode(crc32c.to_le_bytes());
        let same_sum = file.algorithm.as_deref() == Some("CRC32C") && file.checksum.as_deref() == Some(written.as_str());
        if *size != file.size {
            wrong.push(format!("{path}: {size} bytes received, {} sent", file.size));
        } else if !same_sum {
            wrong.push(format!("{path}: another CRC-32C"));
        }
    }
    if known < received.len() {
        wrong.push(format!("{} files received are not listed", received.len() - known));
    }
    if wrong.is_empty() {
        return Ok(());
    }
    let count = wrong.len();
    wrong.truncate(NAMED);
    Err(ManifestMismatch::Files { count, named: wrong })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn manifest(files: &str) -> Vec<u8> {
        let body = format!(
            "{{ \"PostgreSQL-Backup-Manifest-Version\": 1,\n\"Files\": [\n{files}\n],\n\"WAL-Ranges\": [\n\
             {{ \"Timeline\": 1, \"Start-LSN\": \"0/2000028\", \"End-LSN\": \"0/2000100\" }}\n],\n"
        );
        let sum = hex::encode(codec::sha256(body.as_bytes()));
        format!("{body}\"Manifest-Checksum\": \"{sum}\"}}\n").into_bytes()
    }

    fn file(path: &str, content: &[u8]) -> String {
        format!(
            "{{ \"Path\": \"{path}\", \"Size\": {}, \"Last-Modified\": \"2026-11-21 04:08:39 GMT\", \
             \"Checksum-Algorithm\": \"CRC32C\", \"Checksum\": \"{}\" }}",
            content.len(),
            hex::encode(crc32c::crc32c(content).to_le_bytes())
        )
    }

    fn check(manifest: &[u8], received: &[(&str, &[u8])]) -> Result<(), ManifestMismatch> {
        let sum = |content: &[u8]| {
            let mut sum = Sum::default();
            sum.add(content);
            sum
        };
        let files = received.iter().map(|(path, content)| ((*path).to_owned(), sum(content))).collect();
        let (start, stop) = (Lsn::new(0x200_0028), Lsn::new(0x200_0100));
        compare(manifest, &Expected { system: SystemIdentifier::new(7), start, stop, files: &files })
    }

    #[test]
    fn every_difference_is_found() {
        let listed = manifest(&[file("PG_VERSION", b"15\n"), file("base/1/1", b"abc")].join(",\n"));
        check(&listed, &[("PG_VERSION", b"15\n"), ("base/1/1", b"abc")]).unwrap();
        let wrong = |received: &[(&str, &[u8])]| check(&listed, received).unwrap_err().to_string();
        assert!(wrong(&[("PG_VERSION", b"15\n")]).contains("base/1/1: listed, but not received"));
        assert!(wrong(&[("PG_VERSION", b"15\n"), ("base/1/1", b"abd")]).contains("base/1/1: another CRC-32C"));
        assert!(wrong(&[("PG_VERSION", b"15\n"), ("base/1/1", b"abcd")]).contains("4 bytes received, 3 sent"));
        assert!(wrong(&[("PG_VERSION", b"15\n"), ("base/1/1", b"abc"), ("x", b"")]).contains("1 files received are not listed"));
    }

    #[test]
    fn a_changed_manifest_is_found() {
        let good = manifest(&file("PG_VERSION", b"15\n"));
        let text = String::from_utf8(good).unwrap();
        let changed = text.replace("\"Size\": 3", "\"Size\": 4");
        assert!(matches!(check(changed.as_bytes(), &[("PG_VERSION", b"15\n")]), Err(ManifestMismatch::Checksum)));
        assert!(matches!(check(b"{", &[]), Err(ManifestMismatch::Malformed(_))));
        let other = String::from_utf8(manifest(&file("PG_VERSION", b"15\n"))).unwrap();
        let files = HashMap::new();
        let expected = Expected { system: SystemIdentifier::new(7), start: Lsn::new(1), stop: Lsn::new(2), files: &files };
        assert!(matches!(compare(other.as_bytes(), &expected), Err(ManifestMismatch::Foreign(_))));
    }
}
