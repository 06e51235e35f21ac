//! What a server has of an unfinished segment by itself: a standby that streamed it from its primary, above all.
//!
//! PostgreSQL takes what restore_command brings before what lies in `pg_wal`, and puts it in its place. An end of the WAL out of the repository that is
//! shorter than what was streamed, and replayed, would take the rest away: the promotion ends in a panic, and what the dead primary's clients were told is
//! committed is gone. So such an end is not there for who has at least as much of it.

use std::fs::File;
use std::io::{ErrorKind, Read};
use std::path::Path;

use bytes::Bytes;
use walkeep_core::SegmentName;

/// Whether the file of that name beside `destination` begins with the first `wal` bytes of `content`. What cannot be read is none: PostgreSQL could not
/// read it either.
pub(super) async fn has_as_much(segment: SegmentName, destination: &Path, content: &Bytes, wal: u64) -> bool {
    let own = destination.with_file_name(segment.to_string());
    if own == destination {
        return false;
    }
    let (content, shown) = (content.slice(..wal as usize), own.display().to_string());
    let compared = tokio::task::spawn_blocking(move || begins_with(&own, &content)).await;
    match compared.map_err(std::io::Error::other).flatten() {
        Ok(same) => same,
        Err(error) if error.kind() == ErrorKind::NotFound => false,
        Err(error) => {
            tracing::warn!(file = shown, %error, "cannot read what the server has of the unfinished segment");
            false
        }
    }
}

fn begins_with(path: &Path, content: &[u8]) -> std::io::Result<bool> {
    let mut file = File::open(path)?;
    let mut own = vec![0; 1 << 18];
    for piece in content.chunks(own.len()) {
        let own = &mut own[..piece.len()];
        match file.read_exact(own) {
            Ok(()) if own == piece => {}
            Ok(()) => return Ok(false),
            Err(error) if error.kind() == ErrorKind::UnexpectedEof => return Ok(false),
            Err(error) => return Err(error),
        }
    }
    Ok(true)
}
