//! What a drill shows while it is under way.

use walkeep_core::identifier::printable;

use crate::cli::scratch::Shown;
use crate::drill::Told;

/// How far it is.
pub fn told(shown: &Shown, told: &Told<'_>) {
    match told {
        Told::Restoring(state) => shown.restoring(state),
        Told::Recovering(done, total) => shown.recovering(*done, *total),
        Told::Checking(what) => shown.moment(format_args!("looking at {}", printable(what))),
        Told::Checked(checked) => shown.moment(format_args!("{}: {}\n", printable(&checked.name), checked.outcome)),
    }
}
