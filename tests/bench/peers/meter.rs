//! What a piece of work costs: its time, and the processor time and memory of everything it starts.
//!
//! The work is done by a process of its own, this program started once more: daemons that a tool detaches come back to it (it is their subreaper), and what
//! it has waited for is what the work has cost. It runs as the servers' account and starts commands as PostgreSQL does: `sh -c`, one after another,
//! in the data directory.

use std::fs::File;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use rustix::process::{WaitOptions, getpid, set_child_subreaper, wait};
use serde::{Deserialize, Serialize};
use walkeep_tests::{Scratch, process, user};

/// The word that makes this program do a job.
pub const RUNNER: &str = "--runner";

/// How often memory is looked at.
const SAMPLE: Duration = Duration::from_millis(100);
/// What a daemon may go on for behind the last success.
const AFTERWARDS: Duration = Duration::from_secs(120);
/// An agent that takes no processor time for so long has nothing left to do.
const QUIET: Duration = Duration::from_millis(1500);
/// Mebibytes: about what the largest piece of work writes.
const TOUCHED_MIB: u32 = 2560;
/// A tick of /proc's times: they are told in this unit on every Linux.
const TICKS: f64 = 100.0;

/// Commands to run one after another.
#[derive(Debug, Default, Serialize, Deserialize)]
pub struct Job {
    /// Where.
    pub folder: PathBuf,
    /// With these variables and no others.
    pub environment: Vec<(String, String)>,
    /// Steps before the clock starts.
    pub warm: Vec<Step>,
    /// The work.
    pub steps: Vec<Step>,
    /// How often each is tried.
    pub tries: u32,
    /// A process that runs anyway and does a part of the work.
    pub beside: Option<u32>,
}

/// One command.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Step {
    /// As a shell has it.
    pub command: String,
    /// A file to be renamed when it succeeded.
    pub rename: Option<(PathBuf, PathBuf)>,
}

/// What a job took.
#[derive(Debug, Serialize, Deserialize)]
pub struct Measured {
    /// Seconds to the last success.
    pub wall: f64,
    /// Seconds of processor time, to the end of the last daemon.
    pub cpu: f64,
    /// Bytes of memory at most.
    pub peak: u64,
    /// Of these, what the process beside had.
    pub beside: u64,
    /// Seconds of each successful call.
    pub calls: Vec<f64>,
    /// Calls that failed and were repeated.
    pub repeated: u32,
}

/// Does the job in a process of its own.
pub fn measure(job: &Job) -> Result<Measured> {
    let scratch = Scratch::new();
    let program = scratch.join("peers");
    // The target folder may lie where the servers' account cannot go.
    process::run(Command::new("install").args(["-m", "755"]).arg(std::env::current_exe()?).arg(&program))?;
    let order = scratch.write("job.json", serde_json::to_vec(job)?, 0o600);
    let told = process::run(user::command(&program).arg(RUNNER).arg(&order))?;
    serde_json::from_str(&told).with_context(|| format!("read what was measured: {told}"))
}

/// The other process's side.
pub fn run_job(order: &str) -> ExitCode {
    match do_job(Path::new(order)).and_then(|measured| Ok(serde_json::to_string(&measured)?)) {
        Ok(told) => {
            println!("{told}");
            ExitCode::SUCCESS
        }
        Err(error) => {
            eprintln!("{error:#}");
            ExitCode::FAILURE
        }
    }
}

fn do_job(order: &Path) -> Result<Measured> {
    let job: Job = serde_json::from_slice(&std::fs::read(order)?)?;
    let mut runner = Runner { log: order.with_file_name("log"), job: &job, calls: Vec::new(), repeated: 0 };
    set_child_subreaper(Some(getpid())).context("become the subreaper")?;
    for step in &job.warm {
        runner.step(step)?;
    }
    settle(job.beside)?;
    (runner.calls, runner.repeated) = (Vec::new(), 0);
    touch_page_cache(order.parent().context("an order lies in a folder")?)?;
    let sampling = Sampling::default();
    std::thread::scope(|scope| {
        scope.spawn(|| sampling.sample(job.beside));
        let (before, began) = (cpu(job.beside), Instant::now());
        let done = job.steps.iter().try_for_each(|step| runner.step(step));
        let wall = began.elapsed().as_secs_f64();
        let settled = done.and_then(|()| settle(job.beside));
        sampling.over.store(true, Ordering::Relaxed);
        settled?;
        let cpu = cpu(job.beside) - before;
        let (peak, beside) = sampling.peak();
        Ok(Measured { wall, cpu, peak, beside, calls: runner.calls, repeated: runner.repeated })
    })
}

/// Makes the system hand out pages for files that it has had before, as it does where all memory is in use. This machine's host takes free memory back within
/// seconds, and gives it again page by page at fifteen times the price of writing it (seen: 280 MB/s instead of 4 GB/s into the page cache): then a tool
/// is measured by what others had freed just before it.
fn touch_page_cache(folder: &Path) -> Result<()> {
    let path = folder.join("touched");
    let (mut file, piece) = (File::create(&path)?, vec![1; 1 << 20]);
    let written = (0..TOUCHED_MIB).try_for_each(|_| file.write_all(&piece));
    std::fs::remove_file(&path)?;
    Ok(written?)
}

struct Runner<'a> {
    job: &'a Job,
    log: PathBuf,
    calls: Vec<f64>,
    repeated: u32,
}

impl Runner<'_> {
    fn step(&mut self, step: &Step) -> Result<()> {
        for attempt in 1.. {
            let began = Instant::now();
            let log = File::options().create(true).append(true).open(&self.log)?;
            let mut shell = Command::new("/bin/sh");
            shell.args(["-c", &step.command]).current_dir(&self.job.folder).env_clear();
            shell.envs(self.job.environment.iter().map(|(name, value)| (name, value)));
            let status = shell.stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log).status()?;
            if status.success() {
                self.calls.push(began.elapsed().as_secs_f64());
                break;
            }
            if attempt >= self.job.tries.max(1) {
                bail!("{} ended with {status}:\n{}", step.command, process::tail(&process::read_log(&self.log)));
            }
            self.repeated += 1;
            std::thread::sleep(Duration::from_millis(200));
        }
        if let Some((from, to)) = &step.rename {
            std::fs::rename(from, to).with_context(|| format!("rename {} to {}", from.display(), to.display()))?;
        }
        Ok(())
    }
}

/// Waits for every process that was started, and until the one beside rests.
fn settle(beside: Option<u32>) -> Result<()> {
    let deadline = Instant::now() + AFTERWARDS;
    let (mut busy, mut since) = (beside.map_or(0.0, times), Instant::now());
    loop {
        // No child at all is an error here, and the end there is to be.
        while let Ok(Some(_)) = wait(WaitOptions::NOHANG) {}
        let now = beside.map_or(0.0, times);
        if now > busy {
            (busy, since) = (now, Instant::now());
        }
        let ended = process::descendants(std::process::id()).is_empty();
        if ended && (beside.is_none() || since.elapsed() >= QUIET) {
            return Ok(());
        }
        if Instant::now() > deadline {
            bail!("something goes on {AFTERWARDS:?} after its work was done");
        }
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// The peak of the memory of all that was started.
#[derive(Debug, Default)]
struct Sampling {
    over: AtomicBool,
    /// In all, and of the process beside.
    peak: Mutex<(u64, u64)>,
}

impl Sampling {
    fn sample(&self, beside: Option<u32>) {
        while !self.over.load(Ordering::Relaxed) {
            let below = process::descendants(std::process::id());
            let (below, beside): (u64, u64) = (below.into_iter().map(resident).sum(), beside.map_or(0, resident));
            let mut peak = self.peak.lock().unwrap_or_else(PoisonError::into_inner);
            *peak = (*peak).max((below + beside, beside));
            drop(peak);
            std::thread::sleep(SAMPLE);
        }
    }

    fn peak(&self) -> (u64, u64) {
        *self.peak.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Seconds that children waited for have taken, and the process beside.
fn cpu(beside: Option<u32>) -> f64 {
    let own = fields(std::process::id());
    own.get(2..4).map_or(0.0, |children| children.iter().sum::<f64>()) / TICKS + beside.map_or(0.0, times)
}

/// Seconds that a process and the children it has waited for have taken.
fn times(pid: u32) -> f64 {
    fields(pid).iter().sum::<f64>() / TICKS
}

/// The four times of `/proc/PID/stat`: own in user mode and in the kernel, those of children.
fn fields(pid: u32) -> Vec<f64> {
    let text = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    let behind_the_name = text.rsplit_once(')').map_or("", |(_, rest)| rest);
    behind_the_name.split_whitespace().skip(11).take(4).filter_map(|field| field.parse().ok()).collect()
}

fn resident(pid: u32) -> u64 {
    let text = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    let line = text.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    line.and_then(|line| line.trim().trim_end_matches("kB").trim().parse::<u64>().ok()).unwrap_or(0) * 1024
}
