//! How a command ends badly: exit code, words, what to do next.

use std::process::ExitCode;

use super::output;
use crate::{archive, postgres, repository};

/// Exit codes, as the README has them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Exit {
    /// It failed.
    Failed,
    /// The command line or the configuration is wrong.
    Usage,
    /// It cannot or must not be done; nothing was changed.
    Refused,
    /// Verification found damage.
    Damaged,
    /// `wal fetch`: the file is proven absent. PostgreSQL reads 1 to 125 from a restore_command as just that.
    Absent,
    /// `wal fetch`: it could not be had, or nobody knows. Above 125, or PostgreSQL would take it for the end of WAL and open the server.
    NotFetched,
}

impl Exit {
    /// [`Exit::NotFetched`] as a number.
    pub const NOT_FETCHED: u8 = 126;
}

impl Exit {
    /// The exit code.
    pub const fn number(self) -> u8 {
        match self {
            Self::Failed | Self::Absent => 1,
            Self::Usage => 2,
            Self::Refused => 3,
            Self::Damaged => 4,
            Self::NotFetched => Self::NOT_FETCHED,
        }
    }
}

impl From<Exit> for ExitCode {
    fn from(exit: Exit) -> Self {
        ExitCode::from(exit.number())
    }
}

/// A command's failure.
#[derive(Debug)]
pub struct Failure {
    /// The exit code.
    pub exit: Exit,
    /// What happened.
    pub error: anyhow::Error,
    /// What to do next.
    pub hint: Option<String>,
}

impl Failure {
    /// The command line or the configuration is wrong.
    pub fn usage(error: anyhow::Error) -> Self {
        Self { exit: Exit::Usage, error, hint: None }
    }

    /// It cannot or must not be done.
    pub fn refused(reason: impl Into<String>) -> Self {
        Self { exit: Exit::Refused, error: anyhow::Error::msg(reason.into()), hint: None }
    }

    /// With what to do next.
    pub fn hint(mut self, hint: impl Into<String>) -> Self {
        self.hint = Some(hint.into());
        self
    }

    /// Tells it on standard error.
    pub fn print(&self) {
        let kind = if self.exit == Exit::Refused { "refused" } else { "error" };
        output::tell!("{kind}: {:#}", self.error);
        if let Some(hint) = &self.hint {
            output::tell!("hint: {hint}");
        }
    }
}

impl From<anyhow::Error> for Failure {
    fn from(error: anyhow::Error) -> Self {
        let repository = error.chain().find_map(|cause| cause.downcast_ref::<repository::Error>());
        let exit = if repository.is_some_and(repository::Error::is_configuration) { Exit::Usage } else { Exit::Failed };
        let of_repository = repository.map(repository::Error::hint);
        let of_archive = error.chain().find_map(|cause| cause.downcast_ref::<archive::ArchiveError>()).map(archive::ArchiveError::hint);
        let hint = of_archive.or(of_repository).or_else(|| postgres::hint(&error)).map(str::to_owned);
        Self { exit, error, hint }
    }
}

impl From<repository::Error> for Failure {
    fn from(error: repository::Error) -> Self {
        anyhow::Error::new(error).into()
    }
}
