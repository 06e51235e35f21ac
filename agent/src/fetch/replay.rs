//! How fast a recovery replays: timed from its requests, which come one segment after the other as fast as it can.
//!
//! A standby is not measured: it waits for WAL that is still to be written.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use chrono::Utc;
use tokio::time::Instant;
use walkeep_core::plan::estimate::{Measured, MeasuredBy};
use walkeep_core::{SegmentName, SegmentNumber, SegmentSize};

use crate::rates::RatesFile;

/// Between two notes of a recovery that goes on.
const EVERY: Duration = Duration::from_secs(5);
/// Recoveries that are remembered; when there are more, all are forgotten.
const SERVERS: usize = 16;

/// Measures the recoveries that are served.
#[derive(Debug)]
pub struct ReplayMeter {
    file: RatesFile,
    /// By the folder that segments are put into.
    runs: Mutex<HashMap<PathBuf, Run>>,
}

/// Segments asked for one after the other.
#[derive(Debug, Clone, Copy)]
struct Run {
    began: Instant,
    /// The newest segment, when it was asked for, and what lies before it.
    last: SegmentNumber,
    asked: Instant,
    bytes: u64,
    noted: Instant,
}

impl Run {
    fn measured(&self) -> Measured {
        let millis = self.asked.duration_since(self.began).as_millis();
        Measured { bytes: self.bytes, millis: u64::try_from(millis).unwrap_or(u64::MAX), at: Utc::now(), by: MeasuredBy::Recovery }
    }
}

impl ReplayMeter {
    /// A meter that keeps what it finds in `file`.
    pub fn new(file: RatesFile) -> Self {
        Self { file, runs: Mutex::default() }
    }

    /// A segment of so many bytes that was asked for at `asked` is at its destination.
    pub fn served(&self, segment: SegmentName, size: u64, asked: Instant, destination: &Path) {
        let Some(number) = SegmentSize::new(size).ok().and_then(|size| segment.number(size)) else { return };
        let measured = {
            let mut runs = self.runs.lock().unwrap_or_else(PoisonError::into_inner);
            let folder = destination.parent().unwrap_or(destination).to_owned();
            let known = runs.get(&folder).copied();
            let run = match known {
                // Asked for anew.
                Some(run) if run.last == number => return,
                Some(run) if run.last.next() == number => Run { last: number, asked, bytes: run.bytes.saturating_add(size), ..run },
                _ => Run { began: asked, last: number, asked, bytes: 0, noted: asked },
            };
            let due = asked.duration_since(run.noted) >= EVERY;
            if known.is_none() && runs.len() >= SERVERS {
                runs.clear();
            }
            runs.insert(folder, Run { noted: if due { asked } else { run.noted }, ..run });
            due.then(|| run.measured())
        };
        measured.into_iter().for_each(|measured| self.note(measured));
    }

    /// There is no such file for this server: its recovery is over, or about to begin.
    pub fn absent(&self, destination: &Path) {
        let folder = destination.parent().unwrap_or(destination);
        let ended = self.runs.lock().unwrap_or_else(PoisonError::into_inner).remove(folder);
        ended.iter().for_each(|run| self.note(run.measured()));
    }

    /// Beside the answer: a recovery does not wait for a measurement.
    fn note(&self, measured: Measured) {
        let file = self.file.clone();
        let noted = move || file.note(measured);
        match tokio::runtime::Handle::try_current() {
            Ok(runtime) => drop(runtime.spawn_blocking(noted)),
            Err(_) => noted(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SIZE: u64 = 1 << 20;

    fn segment(timeline: u32, number: u64) -> SegmentName {
        format!("{timeline:08X}00000000{number:08X}").parse().unwrap()
    }

    #[test]
    fn a_recovery_is_measured_from_one_request_to_the_next() {
        let folder = tempfile::tempdir().unwrap();
        let file = RatesFile::at(folder.path().join("rates.json"));
        let meter = ReplayMeter::new(file.clone());
        let began = Instant::now();
        let (here, there) = (Path::new("/a/pg_wal/RECOVERYXLOG"), Path::new("/b/pg_wal/RECOVERYXLOG"));
        let served =
            |timeline, number, millis, to| meter.served(segment(timeline, number), SIZE, began + Duration::from_millis(millis), to);
        // Begun anew, since the first look is for the checkpoint; another server between; a timeline's end; the last one twice.
        served(1, 9, 0, here);
        served(1, 3, 100, here);
        served(1, 4, 300, here);
        served(7, 5, 400, there);
        served(2, 5, 700, here);
        served(2, 5, 900, here);
        assert_eq!(file.load().replay, None, "it is not over");
        meter.absent(here);
        let replay = file.load().replay.unwrap();
        assert_eq!((replay.bytes, replay.millis, replay.by), (2 * SIZE, 600, MeasuredBy::Recovery));
        // Of one request nothing can be told.
        meter.absent(there);
        meter.absent(there);
        assert_eq!(file.load().replay, Some(replay));
        // One that goes on is noted now and then.
        (10..20).for_each(|number| served(1, number, number * 1000, here));
        assert_eq!(file.load().replay.map(|replay| (replay.bytes, replay.millis)), Some((5 * SIZE, 5000)));
    }
}
