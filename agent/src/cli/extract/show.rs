//! What an extract shows: its plan, how far it is, what came of it.

use serde::Serialize;
use walkeep_core::identifier::{printable, quote};
use walkeep_core::plan::RestorePlan;
use walkeep_core::target::Transaction;

use crate::cli::output;
use crate::cli::scratch::Shown;
use crate::extract::{Report, Told};

/// How far it is.
pub fn told(shown: &Shown, told: &Told<'_>) {
    match told {
        Told::Restoring(state) => shown.restoring(state),
        Told::Recovering(done, total) => shown.recovering(*done, *total),
        Told::Copying(what) => shown.moment(format_args!("copying {}", printable(what))),
        Told::Note(note) => {
            shown.restored();
            output::tell!("note: {}", printable(note));
        }
    }
}

/// What came of it.
pub fn report(shown: &Shown, report: &Report, seconds: f64) {
    let line = |text: std::fmt::Arguments<'_>| if shown.talks() { output::say!("{text}") } else { output::tell!("{text}") };
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
