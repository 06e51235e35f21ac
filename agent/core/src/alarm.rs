//! What is wrong, and who is told of it when.
//!
//! [`Judge`] is shown what was measured ([`Signs`]) and says what is wrong: by the same rules, under the same names, as the alerts for Prometheus
//! (`packaging/prometheus`), so that whoever has none is told the same. [`Teller`] decides what of that is said, said again, taken back, and how often.

mod judge;
mod kinds;
mod message;
mod signs;
mod teller;
#[cfg(test)]
mod tests;

use std::time::Duration;

use serde::{Deserialize, Serialize};

pub use judge::{Judge, Judged};
pub use kinds::{AlarmKind, Severity};
pub use message::{Event, Message, Said};
pub use signs::{
    ArtifactSigns, ClockSigns, DrillSigns, EndSigns, ExpireSigns, RepositorySigns, ScheduleSigns, Signs, SlotSigns, VerifySigns,
};
pub use teller::{Rules, Teller};

/// Something that is wrong.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Alarm {
    /// What.
    #[serde(rename = "alarm")]
    pub kind: AlarmKind,
    /// Which of several: a schedule, an artifact, a repository. Empty where there is only one.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub subject: String,
    /// In a sentence.
    pub text: String,
}

/// How long, for people: its largest unit, and that whole.
pub fn so_long(time: Duration) -> String {
    match time.as_secs() {
        seconds @ ..120 => format!("{seconds} s"),
        seconds @ 120..7200 => format!("{} min", seconds / 60),
        seconds @ 7200..172_800 => format!("{} h", seconds / 3600),
        seconds => format!("{} days", seconds / 86_400),
    }
}

/// How much, for people.
fn so_much(bytes: u64) -> String {
    match bytes {
        ..10_000 => format!("{bytes} B"),
        10_000..10_000_000 => format!("{} kB", bytes / 1000),
        10_000_000..10_000_000_000 => format!("{} MB", bytes / 1_000_000),
        _ => format!("{} GB", bytes / 1_000_000_000),
    }
}
