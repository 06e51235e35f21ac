//! The end of `walkeep check`: WAL that the server writes now is stored, and what is stored is this server's.

use std::time::{Duration, Instant, SystemTime};

use anyhow::{Result, bail, ensure};
use tokio_postgres::{Client, Error};
use walkeep_core::page::{LONG_HEADER_SIZE, PAGE_SIZE, SHORT_HEADER_SIZE};
use walkeep_core::{Lsn, SegmentSize, TimelineId, WalFileName, page};

use super::output;
use crate::repository::{self, ClusterRepository};

/// No record of the message is as long, with page headers between.
const RECORD: u64 = 1024;

/// Has the server write a word into the WAL and end the segment, waits until that is stored, reads it back and looks for the word: a clone may have brought
/// the same name first. Answers whether it could be read here, too.
pub async fn prove(client: &Client, timeline: TimelineId, repository: &ClusterRepository, timeout: Duration) -> Result<(String, bool)> {
    let size = repository.identity().segment_size;
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).map_or(0, |since| since.as_nanos());
    let word = format!("check {} {now}", std::process::id());
    let behind: Lsn = match end_segment(client, &word, size).await {
        Ok(text) => text.parse()?,
        Err(error) => bail!(
            "the server did not end its WAL segment: {}; grant it: GRANT EXECUTE ON FUNCTION pg_switch_wal() TO the role",
            crate::chain(&error)
        ),
    };
    let segment = size.segment_of(behind).name(timeline, size);
    let began = Instant::now();
    loop {
        let read = repository.get_wal(WalFileName::Segment(segment)).await;
        if let Err(repository::Error::CannotDecrypt { .. }) = &read
            && !repository.can_read()
        {
            let after = output::duration(began.elapsed());
            let text = "not read back, as this host has no identity to decrypt it with";
            return Ok((format!("{segment} was stored {after} after the server ended it; {text}"), false));
        }
        if let Some(found) = read? {
            page::check_segment(segment, size, repository.identity().system_identifier, None, &found.content)?;
            ensure!(
                carries(&found.content, usize::try_from(size.offset_of(behind))?, word.as_bytes()),
                "{segment} is in the repository with other content than this server wrote: a second server archives under its names. Find and stop it \
                 before anything else; `walkeep timelines` and `walkeep lease` show who writes"
            );
            let after = output::duration(began.elapsed());
            return Ok((format!("{segment} was stored {after} after the server ended it, and read back whole"), true));
        }
        ensure!(
            began.elapsed() < timeout,
            "{segment} is not in the repository {} after the server ended it; see the agent's log and pg_stat_archiver",
            output::duration(timeout)
        );
        tokio::time::sleep(Duration::from_millis(250)).await;
    }
}

/// Where the record of the word ends, in a segment that has ended. The switch is a statement of its own, so that the word is written before it.
async fn end_segment(client: &Client, word: &str, size: SegmentSize) -> Result<String, Error> {
    let behind = loop {
        let row = client.query_one("select pg_logical_emit_message(false, 'walkeep', $1)::text", &[&word]).await?;
        let behind: String = row.try_get(0)?;
        // A record at the very beginning may have begun in the segment before; one more is behind it.
        if behind.parse().is_ok_and(|lsn| size.offset_of(lsn) <= RECORD) { continue } else { break behind }
    };
    client.query_one("select pg_switch_wal()::text", &[]).await?;
    Ok(behind)
}

/// Whether a record that ends at this offset has the word. Headers of pages may lie in it.
fn carries(segment: &[u8], end: usize, word: &[u8]) -> bool {
    let page = PAGE_SIZE as usize;
    let is_content = |at: &usize| at % page >= if *at < page { LONG_HEADER_SIZE } else { SHORT_HEADER_SIZE };
    let begin = end.saturating_sub(RECORD as usize);
    let content: Vec<u8> = (begin..end).filter(is_content).filter_map(|at| segment.get(at).copied()).collect();
    content.windows(word.len()).any(|found| found == word)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_word_is_found_over_the_header_of_a_page_too() {
        let mut segment = vec![0; 3 * PAGE_SIZE as usize];
        segment[9000..9004].copy_from_slice(b"word");
        assert!(carries(&segment, 9010, b"word"));
        assert!(
            !carries(&segment, 9003, b"word") && !carries(&segment, 9010 + RECORD as usize, b"word") && !carries(&segment, 9010, b"other")
        );
        let (page, header) = (2 * PAGE_SIZE as usize, SHORT_HEADER_SIZE);
        segment[page - 2..page].copy_from_slice(b"or");
        segment[page + header..page + header + 4].copy_from_slice(b"acle");
        assert!(carries(&segment, page + header + 4, b"oracle"));
        assert!(!carries(&[], 9010, b"word"), "one that is too short");
    }
}
