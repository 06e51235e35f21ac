//! Threads that read, check, hash and compress for a backup: as many as asked, and of low priority, so that the server comes first.
//!
//! Threads of their own and not the runtime's: those write the spool and answer `archive_command`, and may not be made slow. They end with their backup.

use std::sync::{Arc, Mutex, PoisonError, mpsc};

use anyhow::{Context, Result};
use tokio::sync::oneshot;

use crate::codec::Compressor;

/// How much lower than the agent's own their priority is, as `nice` counts it.
const NICE: i32 = 10;

type Job = Box<dyn FnOnce(&mut Compressor) + Send>;

/// The threads of a backup.
#[derive(Debug, Clone)]
pub struct Workers {
    jobs: mpsc::Sender<Job>,
    threads: usize,
}

impl Workers {
    /// Starts `threads` of them, which compress at `level`.
    pub fn start(threads: usize, level: i32) -> Result<Self> {
        let (jobs, queue) = mpsc::channel::<Job>();
        let queue = Arc::new(Mutex::new(queue));
        let threads = threads.max(1);
        for number in 0..threads {
            let (queue, mut compressor) = (queue.clone(), Compressor::new(level).context("prepare to compress")?);
            let work = move || {
                // Of the thread alone, on Linux. Without it the backup is only less gentle.
                let _ = rustix::process::nice(NICE);
                // The lock is let go before the work begins.
                let next = || queue.lock().unwrap_or_else(PoisonError::into_inner).recv();
                while let Ok(job) = next() {
                    job(&mut compressor);
                }
            };
            std::thread::Builder::new().name(format!("backup-{number}")).spawn(work).context("start a thread")?;
        }
        Ok(Self { jobs, threads })
    }

    /// How many there are.
    pub fn threads(&self) -> usize {
        self.threads
    }

    /// Has `job` done by the next one that is free. Nothing is answered if it panics.
    pub fn run<T: Send + 'static>(&self, job: impl FnOnce(&mut Compressor) -> T + Send + 'static) -> oneshot::Receiver<T> {
        let (sender, receiver) = oneshot::channel();
        let job: Job = Box::new(move |compressor| {
            // Whoever does not wait any more needs no answer, nor the work.
            if !sender.is_closed() {
                let _ = sender.send(job(compressor));
            }
        });
        // Threads end with the last sender, and this is one.
        let _ = self.jobs.send(job);
        receiver
    }
}
