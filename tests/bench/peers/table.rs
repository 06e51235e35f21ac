//! The figures of a run, and the one table of them.

use anyhow::Result;
use walkeep_tests::process;

use crate::data::Data;
use crate::meter::Measured;
use crate::numbers::{largest, median};
use crate::tool::{Kind, REFERENCE, StoreKind};

/// One measurement of one piece of work.
#[derive(Debug, Default, Clone)]
pub struct Sample {
    /// Seconds.
    pub wall: f64,
    /// Seconds of processor time.
    pub cpu: f64,
    /// Bytes of memory.
    pub peak: f64,
    /// Of these, what a process has that runs anyway.
    pub beside: f64,
    /// Seconds of each call.
    pub calls: Vec<f64>,
    /// Calls that failed before they succeeded.
    pub repeated: u32,
    /// Bytes that were worked on.
    pub bytes: u64,
    /// Bytes that the repository grew by.
    pub growth: Option<u64>,
    /// Files whose content is not the original's.
    pub differing: usize,
    /// Only its calls are worth a look: what each of them worked on is nothing.
    pub calls_only: bool,
}

impl Sample {
    /// With what was measured.
    pub fn of(measured: Measured) -> Self {
        let Measured { wall, cpu, peak, beside, calls, repeated } = measured;
        Self { wall, cpu, peak: peak as f64, beside: beside as f64, calls, repeated, ..Self::default() }
    }
}

/// Samples by work, store and tool, in the order in which they came first.
#[derive(Debug, Default)]
pub struct Table(Vec<Row>);

#[derive(Debug)]
struct Row {
    work: &'static str,
    kind: Kind,
    store: StoreKind,
    samples: Vec<Sample>,
    trouble: Option<String>,
}

impl Table {
    /// Adds a measurement, or why there is none.
    pub fn add(&mut self, work: &'static str, kind: Kind, store: StoreKind, sample: Result<Sample>) {
        let at = self.0.iter().position(|row| (row.work, row.kind, row.store) == (work, kind, store)).unwrap_or_else(|| {
            self.0.push(Row { work, kind, store, samples: Vec::new(), trouble: None });
            self.0.len() - 1
        });
        let row = &mut self.0[at];
        match sample {
            Ok(sample) => {
                let Sample { wall, cpu, peak, growth, differing, .. } = &sample;
                eprintln!(
                    "{work} {} {}: {wall:.2} s, CPU {cpu:.2} s, {:.0} MB of memory, growth {growth:?}, {differing} differing",
                    kind.name(),
                    store.name(),
                    peak / 1e6
                );
                row.samples.push(sample);
            }
            Err(error) => {
                eprintln!("{work} {} {} FAILED: {error:#}", kind.name(), store.name());
                row.trouble = Some(format!("{error:#}"));
            }
        }
    }

    /// Nothing failed, and nothing that came back differs.
    pub fn is_sound(&self) -> bool {
        self.0.iter().all(|row| row.trouble.is_none() && row.samples.iter().all(|sample| sample.differing == 0))
    }

    /// Prints it, in Markdown.
    pub fn print(&self, data: &Data, rounds: u32) {
        println!("\n{}, medians of {rounds} rounds; {}; {}", machine(), data.words, versions());
        println!("(x: of {} on the same store)\n", REFERENCE.name());
        println!("| work | store | tool | wall s (min..max) | x | CPU s/GB | x | call p50 / p99 ms | memory MB (agent) | grown MB | x | |");
        println!("|---|---|---|---|---|---|---|---|---|---|---|---|");
        let mut works: Vec<_> = Vec::new();
        self.0.iter().for_each(|row| {
            if !works.contains(&(row.work, row.store)) {
                works.push((row.work, row.store))
            }
        });
        for (work, store) in works {
            let rows: Vec<_> = self.0.iter().filter(|row| (row.work, row.store) == (work, store)).collect();
            let reference = rows.iter().find(|row| row.kind == REFERENCE).map(|row| Figures::of(row));
            rows.iter().for_each(|row| row.print(reference.as_ref()));
        }
    }
}

/// Medians of a row.
struct Figures {
    wall: f64,
    /// A GB, or a call.
    cpu: f64,
    calls: Vec<f64>,
    peak: f64,
    beside: f64,
    growth: f64,
}

impl Figures {
    fn of(row: &Row) -> Self {
        let of = |value: &dyn Fn(&Sample) -> f64| median(&row.samples.iter().map(value).collect::<Vec<_>>());
        let mut calls: Vec<f64> = row.samples.iter().flat_map(|sample| sample.calls.clone()).collect();
        calls.sort_by(f64::total_cmp);
        let share = |sample: &Sample| if sample.bytes > 0 { sample.cpu / (sample.bytes as f64 / 1e9) } else { 0.0 };
        Self {
            wall: of(&|sample| sample.wall),
            cpu: of(&share),
            calls,
            peak: of(&|sample| sample.peak),
            beside: of(&|sample| sample.beside),
            growth: of(&|sample| sample.growth.unwrap_or(0) as f64),
        }
    }

    /// A share of the calls took no longer, in ms.
    fn call(&self, share: f64) -> f64 {
        let at = ((self.calls.len() as f64 * share) as usize).min(self.calls.len().saturating_sub(1));
        self.calls.get(at).copied().unwrap_or(0.0) * 1e3
    }
}

impl Row {
    fn print(&self, reference: Option<&Figures>) {
        let head = format!("| {} | {} | {} |", self.work, self.store.name(), self.kind.name());
        if let Some(trouble) = &self.trouble {
            let reason = trouble.lines().last().unwrap_or_default().replace('|', "/");
            return println!("{head} failed: {reason} | | | | | | | | |");
        }
        let own = Figures::of(self);
        let times = |value: f64, of: fn(&Figures) -> f64| match reference.map(of).filter(|of| *of > 0.0) {
            Some(of) => format!("{:.2}", value / of),
            None => String::new(),
        };
        let walls: Vec<f64> = self.samples.iter().map(|sample| sample.wall).collect();
        let least = walls.iter().copied().fold(f64::INFINITY, f64::min);
        let calls = match own.calls.len() > self.samples.len() {
            true => format!("{:.1} / {:.1}", own.call(0.5), own.call(0.99)),
            false => String::new(),
        };
        let growth =
            if self.samples.iter().any(|sample| sample.growth.is_some()) { format!("{:.1}", own.growth / 1e6) } else { String::new() };
        let grown = if growth.is_empty() { String::new() } else { times(own.growth, |figures| figures.growth) };
        let cpu = if self.samples.iter().any(|sample| sample.calls_only) { String::new() } else { format!("{:.2}", own.cpu) };
        let differing: usize = self.samples.iter().map(|sample| sample.differing).sum();
        let repeated: u32 = self.samples.iter().map(|sample| sample.repeated).sum();
        let memory = match own.beside > 0.0 {
            true => format!("{:.0} ({:.0})", own.peak / 1e6, own.beside / 1e6),
            false => format!("{:.0}", own.peak / 1e6),
        };
        let mut remarks = Vec::new();
        if differing > 0 {
            remarks.push(format!("WORTHLESS: {differing} files differ from the original"));
        }
        if repeated > 0 {
            remarks.push(format!("{repeated} calls failed and were repeated"));
        }
        println!(
            "{head} {:.2} ({least:.2}..{:.2}) | {} | {cpu} | {} | {calls} | {memory} | {growth} | {grown} | {} |",
            own.wall,
            largest(&walls),
            times(own.wall, |figures| figures.wall),
            times(own.cpu, |figures| figures.cpu),
            remarks.join("; "),
        );
    }
}

/// What it ran on, and when.
fn machine() -> String {
    let text = |path: &str| std::fs::read_to_string(path).unwrap_or_default();
    let cpu = text("/proc/cpuinfo");
    let model = cpu.lines().find_map(|line| line.strip_prefix("model name")).map_or("", |rest| rest.trim_start_matches([' ', '\t', ':']));
    let memory =
        text("/proc/meminfo").lines().find_map(|line| Some(line.strip_prefix("MemTotal:")?.trim().trim_end_matches(" kB").to_owned()));
    let gigabytes = memory.and_then(|kilobytes| kilobytes.parse::<u64>().ok()).unwrap_or(0) >> 20;
    let load = text("/proc/loadavg");
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    let date = process::run(std::process::Command::new("date").args(["-u", "+%F %R UTC"])).unwrap_or_default();
    let load = load.split(' ').next().unwrap_or_default();
    format!("{cores} cores of {model}, {gigabytes} GiB, load {load} at the end, {}", date.trim())
}

fn versions() -> String {
    let first = |program: &std::path::Path, word: &str| {
        let told = process::run(std::process::Command::new(program).arg(word)).unwrap_or_default();
        told.lines().next().unwrap_or_default().to_owned()
    };
    let postgres = walkeep_tests::postgres::client(walkeep_tests::postgres::default_version(), "psql");
    [first(&postgres, "--version"), first("pgbackrest".as_ref(), "version"), first(&crate::tool::rclone(), "version")].join(", ")
}
