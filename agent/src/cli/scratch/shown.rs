//! What is shown of a throw-away server: its plan, how far the restore into it and its recovery are, and lines for the moment.

use std::fmt::Arguments;
use std::io::IsTerminal;
use std::sync::Mutex;
use std::sync::PoisonError;

use walkeep_core::plan::RestorePlan;

use crate::cli::{output, plan, progress};
use crate::transfer::Transfer;

/// Where things are shown.
pub struct Shown {
    talks: bool,
    terminal: bool,
    bar: Mutex<Option<progress::Bar>>,
}

impl Shown {
    /// On standard output, if that `talks` to people, or only what is worth a line of standard error.
    pub fn new(talks: bool) -> Self {
        Self { talks, terminal: std::io::stderr().is_terminal(), bar: Mutex::new(None) }
    }

    /// Whether standard output is for people.
    pub fn talks(&self) -> bool {
        self.talks
    }

    /// The plan.
    pub fn plan(&self, plan: &RestorePlan) {
        if self.talks {
            plan::print(plan);
            output::say!("");
        }
    }

    /// How far the restore is.
    pub fn restoring(&self, state: &Transfer) {
        self.bar.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert_with(|| progress::Bar::new("restoring")).show(state);
    }

    /// How far the recovery is, in files of WAL.
    pub fn recovering(&self, done: u64, total: u64) {
        self.moment(format_args!("replaying WAL: {done} of {total} files "));
    }

    /// A line that the next one takes the place of; on a terminal only.
    pub fn moment(&self, text: Arguments<'_>) {
        self.restored();
        if self.terminal {
            output::error_line(format_args!("\r{text}\x1b[K"));
        }
    }

    /// The restore is over.
    pub fn restored(&self) {
        if let Some(bar) = self.bar.lock().unwrap_or_else(PoisonError::into_inner).take() {
            bar.finish();
        }
    }

    /// Takes away what was shown for the moment.
    pub fn finish(&self) {
        self.moment(format_args!(""));
    }
}
