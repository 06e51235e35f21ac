//! What a drill shows while it is under way.

use std::io::IsTerminal;
use std::sync::Mutex;
use std::sync::PoisonError;

use walkeep_core::identifier::printable;
use walkeep_core::plan::RestorePlan;

use crate::cli::{output, plan, progress};
use crate::drill::Told;

/// Where things are shown.
pub struct Shown {
    /// Standard output is for people.
    talks: bool,
    terminal: bool,
    bar: Mutex<Option<progress::Bar>>,
}

impl Shown {
    /// On standard output, or only what is worth a line of standard error.
    pub fn new(talks: bool) -> Self {
        Self { talks, terminal: std::io::stderr().is_terminal(), bar: Mutex::new(None) }
    }

    /// The plan.
    pub fn plan(&self, plan: &RestorePlan) {
        if self.talks {
            plan::print(plan);
            output::say!("");
        }
    }

    /// How far it is.
    pub fn told(&self, told: &Told<'_>) {
        let mut bar = self.bar.lock().unwrap_or_else(PoisonError::into_inner);
        if let Told::Restoring(state) = told {
            bar.get_or_insert_with(|| progress::Bar::new("restoring")).show(state);
            return;
        }
        if let Some(bar) = bar.take() {
            bar.finish();
        }
        match told {
            Told::Recovering(done, total) if self.terminal => {
                output::error_line(format_args!("\rreplaying WAL: {done} of {total} files \x1b[K"));
            }
            Told::Checking(what) if self.terminal => output::error_line(format_args!("\rlooking at {}\x1b[K", printable(what))),
            Told::Checked(checked) if self.terminal => {
                output::error_line(format_args!("\r{}: {}\x1b[K\n", printable(&checked.name), checked.outcome));
            }
            _ => {}
        }
    }

    /// Takes away what was shown for the moment.
    pub fn finish(&self) {
        if let Some(bar) = self.bar.lock().unwrap_or_else(PoisonError::into_inner).take() {
            bar.finish();
        }
        if self.terminal {
            output::error_line(format_args!("\r\x1b[K"));
        }
    }
}
