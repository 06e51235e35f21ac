//! What the store gives back, compared with plain copies: what `archive_command` copied, and the servers' own `pg_wal`.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use walkeep_tests::try_wait_for;
use walkeep_tests::walkeep::Output;

use super::world::{SEGMENT_MIB, Server, World};
use crate::support::MIB;

const SIZE: u64 = SEGMENT_MIB * MIB;
/// Parts that are not needed any more go after 10 s.
const PARTS_GO: Duration = Duration::from_secs(30);
/// So many segments before the confirmed position are looked at each time; all of them in the end.
const LOOK_BACK: u64 = 3;

fn name(timeline: u32, segment: u64) -> String {
    let per_log = (4 << 30) / SIZE;
    format!("{timeline:08X}{:08X}{:08X}", segment / per_log, segment % per_log)
}

impl World {
    /// Fetches what was confirmed on the present timeline, at this very moment: no agent is there to mend anything.
    pub fn look_for_confirmed(&self) {
        let server = self.primary();
        if let Some(confirmed) = self.confirmed.get(&server.timeline) {
            self.compare_up_to(server, *confirmed, confirmed.saturating_sub(LOOK_BACK * SIZE));
        }
    }

    /// The timeline's bytes before `end`, from the segment of `from` on.
    fn compare_up_to(&self, server: &Server, end: u64, from: u64) {
        if end <= server.begins {
            return;
        }
        for segment in from.max(server.begins) / SIZE..=(end - 1) / SIZE {
            let name = name(server.timeline, segment);
            let bytes = (end - segment * SIZE).min(SIZE) as usize;
            let fetched = self.fetch(&name).unwrap_or_else(|output| {
                panic!("{name} is confirmed up to byte {bytes} and cannot be fetched: exit {:?}\n{}", output.code, output.stderr)
            });
            let copy = self.copy_of(server, &name);
            same(&name, &fetched[..bytes], &copy[..bytes]);
        }
    }

    fn fetch(&self, name: &str) -> Result<Vec<u8>, Output> {
        let to = self.reader.scratch().dir("fetched").join(name);
        let _ = std::fs::remove_file(&to);
        let output = self.reader.run(&["wal", "fetch", name, &to.to_string_lossy()]);
        if output.ok() { Ok(std::fs::read(&to).unwrap()) } else { Err(output) }
    }

    /// What the server wrote under this name. All servers copy into the first one's folder: they have its configuration.
    fn copy_of(&self, server: &Server, name: &str) -> Vec<u8> {
        let places = [self.servers[0].cluster.oracle(), server.cluster.pg_wal()];
        let found = places.iter().find_map(|place| std::fs::read(place.join(name)).ok());
        found.unwrap_or_else(|| panic!("there is no plain copy of {name}"))
    }

    /// Everything, byte for byte.
    pub fn compare(&self) {
        let stored = self.stored();
        let mut compared = 0;
        for (at, server) in self.servers.iter().enumerate() {
            let whole: BTreeSet<&String> = stored.whole.iter().filter(|name| timeline_of(name) == server.timeline).collect();
            for name in &whole {
                let fetched = self.fetch(name).unwrap_or_else(|output| panic!("{name} is stored, and {output:?}"));
                same(name, &fetched, &self.copy_of(server, name));
            }
            compared += whole.len();
            // No segment is left out, up to where the next timeline begins.
            let first = server.begins / SIZE;
            let next = self.servers.get(at + 1);
            let last = match next {
                Some(next) => next.begins / SIZE,
                None => whole.iter().map(|name| number_of(name) + 1).max().unwrap_or(first),
            };
            let missing: Vec<_> = (first..last).map(|number| name(server.timeline, number)).filter(|name| !whole.contains(name)).collect();
            assert!(missing.is_empty(), "not stored of timeline {}: {missing:?}", server.timeline);
            if let Some(next) = next {
                self.compare_end(server, next);
            }
            if let Some(confirmed) = self.confirmed.get(&server.timeline) {
                self.compare_up_to(server, *confirmed, confirmed.saturating_sub(LOOK_BACK * SIZE));
            }
        }
        eprintln!("{compared} segments compared on {} timelines, {} in parts", self.servers.len(), stored.parts.len());
        let status = self.reader.ok(&["status", "--json"]).json();
        assert_eq!(status["gaps"], serde_json::json!([]), "{status}");
        let mut twice = Vec::new();
        let gone = try_wait_for(PARTS_GO, || {
            let stored = self.stored();
            twice = stored.parts.into_iter().filter(|(segment, _)| stored.whole.contains(segment)).collect();
            twice.is_empty().then_some(())
        });
        assert!(gone.is_some(), "stored whole and in parts: {twice:?}");
    }

    /// The old timeline up to the switch: what the new one begins with.
    fn compare_end(&self, old: &Server, new: &Server) {
        let (segment, offset) = (new.begins / SIZE, (new.begins % SIZE) as usize);
        if offset == 0 {
            return;
        }
        let (before, after) = (name(old.timeline, segment), name(new.timeline, segment));
        let fetched = self.fetch(&before).unwrap_or_else(|output| panic!("the end of timeline {}: {output:?}", old.timeline));
        same(&before, &fetched[..offset], &self.copy_of(new, &after)[..offset]);
        // What the old primary had written beyond the switch point may be there, or nothing.
        let wal = fetched.iter().rposition(|byte| *byte != 0).map_or(0, |last| last + 1);
        same(&before, &fetched[..wal], &self.copy_of(old, &before)[..wal]);
        let history = format!("{:08X}.history", new.timeline);
        let fetched = self.fetch(&history).unwrap_or_else(|output| panic!("{history}: {output:?}"));
        same(&history, &fetched, &std::fs::read(new.cluster.pg_wal().join(&history)).unwrap());
    }

    fn stored(&self) -> Stored {
        let mut stored = Stored::default();
        for (key, _) in self.bucket.list("main/") {
            let Some(file) = key.split('/').find(|part| part.len() > 24 && part[..24].bytes().all(|b| b.is_ascii_hexdigit())) else {
                continue;
            };
            let segment = file[..24].to_owned();
            match &file[24..] {
                ".zst" | ".zst.age" => drop(stored.whole.insert(segment)),
                ".parts" => stored.parts.entry(segment).or_default().push(key.rsplit('/').next().unwrap_or_default().to_owned()),
                _ => {}
            }
        }
        stored
    }
}

/// What the bucket lists.
#[derive(Default)]
struct Stored {
    whole: BTreeSet<String>,
    parts: BTreeMap<String, Vec<String>>,
}

fn timeline_of(name: &str) -> u32 {
    u32::from_str_radix(&name[..8], 16).unwrap()
}

fn number_of(name: &str) -> u64 {
    let half = |from| u64::from_str_radix(&name[from..from + 8], 16).unwrap();
    half(8) * ((4 << 30) / SIZE) + half(16)
}

fn same(name: &str, fetched: &[u8], copy: &[u8]) {
    if fetched != copy {
        let at = fetched.iter().zip(copy).position(|(a, b)| a != b).unwrap_or(fetched.len().min(copy.len()));
        panic!("{name} differs from the plain copy from byte {at} on; {} and {} bytes", fetched.len(), copy.len());
    }
}
