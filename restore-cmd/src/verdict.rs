//! From what happened to the exit status, and how long to wait for it.
//!
//! A standby asks again by itself after 1 to 125, and dies above. So there trouble with a segment ends soon and with 1: the standby goes
//! on to stream instead. Not so for history files: a wrong "not there" makes the next promotion choose a timeline that exists. And not
//! while `promote` stands in the data directory: the standby is about to open, and would open without the WAL that could not be fetched.
//! (PostgreSQL removes that file when it begins to promote; what it asks for later looks like any standby's question.)

use std::fmt;
use std::path::Path;
use std::time::Duration;

/// The time ran out, and whoever was asked could not say.
pub const TIME_RAN_OUT: u8 = 200;
/// The time ran out with nobody to ask.
pub const NOBODY_TO_ASK: u8 = 201;
/// The command line or the configuration is wrong.
pub const WRONG_USAGE: u8 = 202;
/// The agent refused the request for good: asking again would not help.
pub const REFUSED: u8 = 204;
/// A panic.
pub const INTERNAL_ERROR: u8 = 203;
/// What a standby is told in trouble, and everybody when the file is proven absent.
const ABSENT: u8 = 1;
// Above 125, as PostgreSQL needs it, and none that could be the shell's: 126 and 127 (it could not run the shim at all), 128 + signal.

/// How long a standby waits: it cannot stream meanwhile.
const STANDBY_PATIENCE: Duration = Duration::from_secs(10);

/// Who asks, and for what.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Asker {
    /// A recovery that ends where the archive ends, or a standby for a file it must not be wrong about.
    Recovery,
    /// A standby, for what it will ask for again.
    Standby,
}

impl Asker {
    /// Who asks for the file `name` in this data directory.
    pub fn find(data_directory: &Path, name: &str) -> Self {
        let stands = |file: &str| data_directory.join(file).symlink_metadata().is_ok();
        // What cannot be told is taken for the case in which being wrong costs more.
        if stands("standby.signal") && !stands("promote") && !name.ends_with(".history") { Self::Standby } else { Self::Recovery }
    }

    pub fn is_standby(self) -> bool {
        self == Self::Standby
    }

    /// For how long trouble is tried again.
    pub fn patience(self, timeout: Duration) -> Duration {
        match self {
            Self::Recovery => timeout,
            Self::Standby => timeout.min(STANDBY_PATIENCE),
        }
    }
}

/// How the fetch ended.
#[derive(Debug)]
pub enum Verdict {
    /// The file is in place.
    Done,
    /// Proven not to be in the repository.
    Absent(String),
    /// Refused, and asking again would have the same answer.
    Refused(Trouble),
    /// The deadline passed; this was the last that went wrong.
    Trouble(Trouble),
}

impl Verdict {
    /// The exit status. `asker` is asked only now: somebody may have promoted meanwhile.
    pub fn exit_code(&self, asker: impl FnOnce() -> Asker) -> u8 {
        match self {
            Self::Done => 0,
            Self::Absent(_) => ABSENT,
            Self::Refused(_) | Self::Trouble(_) => match (asker(), self) {
                (Asker::Standby, _) => ABSENT,
                (Asker::Recovery, Self::Refused(_)) => REFUSED,
                (Asker::Recovery, Self::Trouble(Trouble::Nobody { .. })) => NOBODY_TO_ASK,
                (Asker::Recovery, _) => TIME_RAN_OUT,
            },
        }
    }
}

/// What went wrong in one try.
#[derive(Debug, PartialEq, Eq)]
pub enum Trouble {
    /// Somebody listens, but there was no answer, or one that settles nothing.
    NoAnswer { message: String, hint: Option<String> },
    /// No agent listens, and no fetch service could be started or be reached.
    Nobody {
        message: String,
        /// The service says that its configuration is wrong.
        misconfigured: bool,
    },
}

impl Trouble {
    /// Whether waiting can help only because an agent may be starting.
    pub fn is_misconfigured(&self) -> bool {
        matches!(self, Self::Nobody { misconfigured: true, .. })
    }

    /// What whoever was asked says to do about it.
    pub fn given_hint(&self) -> Option<&str> {
        match self {
            Self::NoAnswer { hint, .. } => hint.as_deref(),
            Self::Nobody { .. } => None,
        }
    }

    /// What to do about it.
    pub fn hint(&self) -> String {
        match self {
            Self::NoAnswer { hint: Some(hint), .. } => hint.clone(),
            Self::NoAnswer { hint: None, .. } => "PostgreSQL can be started again once this is mended: nothing is lost.".into(),
            Self::Nobody { misconfigured: true, .. } => "Correct the configuration, or start the agent.".into(),
            Self::Nobody { .. } => {
                "Start the agent, or say with --config, --socket and --walkeep what to start and where it may listen.".into()
            }
        }
    }
}

impl fmt::Display for Trouble {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NoAnswer { message, .. } | Self::Nobody { message, .. } => f.write_str(message),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_absence_is_one_unless_a_standby_will_ask_again() {
        let answer = || Verdict::Trouble(Trouble::NoAnswer { message: String::new(), hint: None });
        let nobody = || Verdict::Trouble(Trouble::Nobody { message: String::new(), misconfigured: true });
        let refused = || Verdict::Refused(Trouble::NoAnswer { message: String::new(), hint: None });
        for asker in [Asker::Recovery, Asker::Standby] {
            assert_eq!(Verdict::Done.exit_code(|| asker), 0);
            assert_eq!(Verdict::Absent(String::new()).exit_code(|| asker), 1);
        }
        assert_eq!(answer().exit_code(|| Asker::Standby), 1);
        assert_eq!(answer().exit_code(|| Asker::Recovery), 200);
        assert_eq!(nobody().exit_code(|| Asker::Recovery), 201);
        assert_eq!(refused().exit_code(|| Asker::Standby), 1);
        assert_eq!(refused().exit_code(|| Asker::Recovery), 204);
    }

    #[test]
    fn every_status_stops_postgresql_and_is_not_the_shells() {
        for code in [TIME_RAN_OUT, NOBODY_TO_ASK, WRONG_USAGE, INTERNAL_ERROR, REFUSED] {
            assert!(code > 128 + 64, "{code} could be a signal's");
        }
    }
}
