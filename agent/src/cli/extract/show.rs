//! What an extract shows: its plan, how far it is, what came of it.

use std::io::IsTerminal;
use std::sync::Mutex;
use std::sync::PoisonError;

use serde::Serialize;
use walkeep_core::identifier::{printable, quote};
use walkeep_core::plan::RestorePlan;
use walkeep_core::target::Transaction;

use crate::cli::{output, plan, progress};
use crate::extract::{Report, Told};

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
            Told::Note(note) => output::tell!("note: {}", printable(note)),
            Told::Recovering(done, total) if self.terminal => {
                output::error_line(format_args!("\rreplaying WAL: {done} of {total} files \x1b[K"));
            }
            Told::Copying(what) if self.terminal => output::error_line(format_args!("\rcopying {}\x1b[K", printable(what))),
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

    /// What came of it.
    pub fn report(&self, report: &Report, seconds: f64) {
        let line = |text: std::fmt::Arguments<'_>| if self.talks { output::say!("{text}") } else { output::tell!("{text}") };
        line(format_args!("database      {}", printable(&report.database)));
        for table in &report.tables {
            let rows = output::count(table.rows, "row");
            let name = printable(&format!("{}.{}", quote(&table.schema), quote(&table.name)));
            match table.rows_there {
                Some(there) => line(format_args!("table         {name}: {rows} read, {there} there now")),
                None => line(format_args!("table         {name}: {rows}")),
            }
        }
        if let Some(rows) = report.rows {
            line(format_args!("query         {}", output::count(rows, "row")));
        }
        let (fetched, stored) = (output::bytes(report.fetched_bytes), output::bytes(report.backup_stored_bytes));
        line(format_args!("fetched       {fetched} of the backup's {stored}, and the WAL"));
        let steps: Vec<_> = report.steps.iter().map(|step| format!("{} {:.1} s", step.step, step.seconds)).collect();
        line(format_args!("took          {seconds:.1} s: {}", steps.join(", ")));
    }
}

/// The same for programs.
#[derive(Serialize)]
pub struct Json<'j> {
    #[serde(flatten)]
    report: &'j Report,
    backup: &'j str,
    stop_lsn: String,
    last_replayed: &'j Option<Transaction>,
    seconds: f64,
}

impl<'j> Json<'j> {
    /// Of this plan and report.
    pub fn new(plan: &'j RestorePlan, report: &'j Report, seconds: f64) -> Self {
        Self { report, backup: plan.backup.id.as_str(), stop_lsn: plan.stop_lsn.to_string(), last_replayed: &plan.last_replayed, seconds }
    }
}
