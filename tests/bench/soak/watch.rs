//! What the agent's process takes, from minute to minute.

use std::collections::BTreeMap;
use std::fs;
use std::time::Duration;

use crate::world::World;

/// A window of this many minutes has a moment in which no job runs: what is open then is open for ever.
const WINDOW: u64 = 4;
/// In the first minute caches and pools fill.
const WARM: u64 = 1;

#[derive(Debug, Clone, Copy)]
struct Sample {
    minute: u64,
    resident_mib: f64,
    files: f64,
    sockets: f64,
    threads: f64,
    tasks: Option<f64>,
    spool_mib: f64,
}

/// The samples so far.
#[derive(Debug)]
pub struct Watch {
    samples: Vec<Sample>,
}

impl Watch {
    pub const fn new() -> Self {
        Self { samples: Vec::new() }
    }

    pub fn look(&mut self, world: &World, at: Duration) {
        let pid = world.agent.pid();
        let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
        let field = |name: &str| {
            let line = status.lines().find_map(|line| line.strip_prefix(name)).unwrap_or_default();
            line.trim().trim_end_matches(" kB").parse::<f64>().unwrap_or_default()
        };
        let open: Vec<_> =
            fs::read_dir(format!("/proc/{pid}/fd")).unwrap().flatten().filter_map(|file| fs::read_link(file.path()).ok()).collect();
        let sockets = open.iter().filter(|file| file.to_string_lossy().starts_with("socket:")).count();
        self.samples.push(Sample {
            minute: at.as_secs() / 60,
            resident_mib: field("VmRSS:") / 1024.0,
            files: (open.len() - sockets) as f64,
            sockets: sockets as f64,
            threads: field("Threads:"),
            tasks: world.agent.metric("walkeep_tasks"),
            spool_mib: world.agent.metric("walkeep_spool_bytes").unwrap_or_default() / f64::from(1 << 20),
        });
    }

    fn minutes(&self) -> BTreeMap<u64, Vec<Sample>> {
        let mut minutes: BTreeMap<u64, Vec<Sample>> = BTreeMap::new();
        self.samples.iter().for_each(|sample| minutes.entry(sample.minute).or_default().push(*sample));
        minutes
    }

    /// Smallest and largest of each, a line a minute.
    pub fn print(&self) {
        println!("\n| minute | resident MiB | files | sockets | tasks | threads | spool MiB |\n|---|---|---|---|---|---|---|");
        for (minute, samples) in self.minutes() {
            let range = |value: &dyn Fn(&Sample) -> Option<f64>, digits: usize| {
                let values: Vec<f64> = samples.iter().filter_map(value).collect();
                format!("{:.digits$} to {:.digits$}", smallest(&values), values.iter().copied().fold(0.0, f64::max))
            };
            println!(
                "| {minute} | {} | {} | {} | {} | {} | {} |",
                range(&|sample| Some(sample.resident_mib), 0),
                range(&|sample| Some(sample.files), 0),
                range(&|sample| Some(sample.sockets), 0),
                range(&|sample| sample.tasks, 0),
                range(&|sample| Some(sample.threads), 0),
                range(&|sample| Some(sample.spool_mib), 1),
            );
        }
        println!();
    }

    /// What there is more of at rest than there was: the smallest values of the last minutes beside those of the first.
    pub fn growth(&self) -> Vec<String> {
        let last = self.samples.last().map_or(0, |sample| sample.minute);
        let first = |sample: &Sample| (WARM..WARM + WINDOW).contains(&sample.minute);
        let behind = |sample: &Sample| sample.minute + WINDOW > last && !first(sample);
        let mut grown = Vec::new();
        let mut compare = |what: &str, value: &dyn Fn(&Sample) -> Option<f64>, factor: f64, more: f64| {
            let least = |which: &dyn Fn(&Sample) -> bool| {
                smallest(&self.samples.iter().filter(|sample| which(sample)).filter_map(value).collect::<Vec<_>>())
            };
            let (before, after) = (least(&first), least(&behind));
            println!("{what} at rest: {before:.0} in minutes {WARM} to {}, {after:.0} in the last {WINDOW}", WARM + WINDOW - 1);
            if !before.is_finite() || !after.is_finite() {
                grown.push(format!("{what}: too short to compare"));
            } else if after > before * factor + more {
                grown.push(format!("{what}: {after:.0}, where it was {before:.0}"));
            }
        };
        // malloc keeps what it had once; a leak of one object for each request would be far beyond this.
        compare("resident MiB", &|sample| Some(sample.resident_mib), 1.15, 6.0);
        compare("files", &|sample| Some(sample.files), 1.0, 2.0);
        // Kept open for the next request, by the S3 client.
        compare("sockets", &|sample| Some(sample.sockets), 1.0, 6.0);
        compare("tasks", &|sample| sample.tasks, 1.0, 6.0);
        // Of the pool for blocking work, which is at rest only where nothing at all happens: the most counts.
        let most = |which: &dyn Fn(&Sample) -> bool| {
            self.samples.iter().filter(|sample| which(sample)).map(|sample| sample.threads).fold(0.0, f64::max)
        };
        let (before, after) = (most(&first), most(&behind));
        println!("threads at most: {before:.0} in minutes {WARM} to {}, {after:.0} in the last {WINDOW}", WARM + WINDOW - 1);
        if after > before * 1.5 + 4.0 {
            grown.push(format!("threads: {after:.0}, where it was {before:.0}"));
        }
        grown
    }
}

/// Infinite of none.
fn smallest(values: &[f64]) -> f64 {
    values.iter().copied().fold(f64::INFINITY, f64::min)
}
