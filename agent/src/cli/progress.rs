//! Progress on the terminal: bytes, rate, time left.

use indicatif::{ProgressBar, ProgressStyle};

use crate::transfer::{Stage, Transfer};

/// A bar on standard error; nothing where that is no terminal.
pub struct Bar {
    bar: ProgressBar,
    doing: &'static str,
}

impl Bar {
    /// A bar for a job that is `doing` something.
    pub fn new(doing: &'static str) -> Self {
        let bar = ProgressBar::new(0);
        let template = "{msg:24} {bar:30} {binary_bytes} of {binary_total_bytes}, {binary_bytes_per_sec}, {eta} left";
        bar.set_style(ProgressStyle::with_template(template).unwrap_or_else(|_| ProgressStyle::default_bar()));
        Self { bar, doing }
    }

    /// Shows the job's state.
    pub fn show(&self, state: &Transfer) {
        if let Some(total) = state.total {
            self.bar.set_length(total.max(state.done));
        }
        self.bar.set_position(state.done);
        self.bar.set_message(match state.stage {
            Stage::Starting => "waiting for a checkpoint",
            Stage::Copying => self.doing,
            Stage::WaitingForWal => "waiting for its WAL",
            Stage::Finishing => "finishing",
        });
    }

    /// Takes the bar away.
    pub fn finish(&self) {
        self.bar.finish_and_clear();
    }
}

/// A running number of things on standard error; nothing where that is no terminal.
pub struct Count {
    bar: ProgressBar,
}

impl Count {
    /// For a job that is `doing` something.
    pub fn new(doing: &'static str) -> Self {
        let bar = ProgressBar::no_length();
        bar.set_style(ProgressStyle::with_template("{msg:24} {pos}, {per_sec}").unwrap_or_else(|_| ProgressStyle::default_spinner()));
        bar.set_message(doing);
        Self { bar }
    }

    /// Shows how many.
    pub fn show(&self, number: u64) {
        self.bar.set_position(number);
    }

    /// Takes it away.
    pub fn finish(&self) {
        self.bar.finish_and_clear();
    }
}
