//! The command line that both shims understand: by hand, because a parser would cost more than the shims' work.
//!
//! An option on the command line beats its environment variable. A socket, however given, beats a configuration.

use std::ffi::{OsStr, OsString};
use std::fmt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::config::{self, DEFAULT_CLUSTER};

/// What one shim takes.
pub struct Syntax {
    /// What the files are called in messages.
    pub files: &'static [&'static str],
    /// The environment variable for `--timeout`.
    pub timeout_variable: &'static str,
    /// Whether `--walkeep` is an option.
    pub starts_walkeep: bool,
}

/// What the command line asks for.
#[derive(Debug, PartialEq, Eq)]
pub enum Invocation {
    /// The work.
    Run(Options),
    /// `--help`.
    Help,
    /// `--version`.
    Version,
}

/// The options and files given.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Options {
    /// `--socket`.
    pub socket: Option<PathBuf>,
    /// `--config`.
    pub config: Option<PathBuf>,
    /// `--cluster`.
    pub cluster: Option<String>,
    /// `--timeout`.
    pub timeout: Option<Duration>,
    /// `--walkeep`.
    pub walkeep: Option<PathBuf>,
    /// As many as the syntax has.
    pub files: Vec<OsString>,
}

/// The command line is wrong. Its text says how.
#[derive(Debug, PartialEq, Eq)]
pub struct UsageError(String);

impl UsageError {
    /// With its text.
    pub fn new(text: impl Into<String>) -> Self {
        Self(text.into())
    }
}

impl fmt::Display for UsageError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for UsageError {}

/// Reads the arguments (without the program's name), and the environment for what they do not give.
pub fn parse(
    syntax: &Syntax,
    arguments: impl IntoIterator<Item = OsString>,
    environment: impl Fn(&str) -> Option<OsString>,
) -> Result<Invocation, UsageError> {
    let mut given = Given::default();
    let mut arguments = arguments.into_iter();
    let mut only_files = false;
    while let Some(argument) = arguments.next() {
        match argument.to_str() {
            _ if only_files => given.files.push(argument),
            Some("--") => only_files = true,
            Some("-h" | "--help") => return Ok(Invocation::Help),
            Some("-V" | "--version") => return Ok(Invocation::Version),
            Some(text) if text.starts_with('-') => {
                let (name, value) = text.split_once('=').map_or((text, None), |(name, value)| (name, Some(value.into())));
                let place = given.place(syntax, name).ok_or_else(|| UsageError(format!("unknown option {name}")))?;
                let value = value.or_else(|| arguments.next()).filter(|value: &OsString| !value.is_empty());
                *place = Some(value.ok_or_else(|| UsageError(format!("{name} needs a value")))?);
            }
            _ => given.files.push(argument),
        }
    }
    let environment = |name: &str| environment(name).filter(|value| !value.is_empty());
    given.checked(syntax, environment).map(Invocation::Run)
}

#[derive(Default)]
struct Given {
    socket: Option<OsString>,
    config: Option<OsString>,
    cluster: Option<OsString>,
    timeout: Option<OsString>,
    walkeep: Option<OsString>,
    files: Vec<OsString>,
}

impl Given {
    fn place(&mut self, syntax: &Syntax, name: &str) -> Option<&mut Option<OsString>> {
        match name {
            "--socket" => Some(&mut self.socket),
            "--config" => Some(&mut self.config),
            "--cluster" => Some(&mut self.cluster),
            "--timeout" => Some(&mut self.timeout),
            "--walkeep" if syntax.starts_walkeep => Some(&mut self.walkeep),
            _ => None,
        }
    }

    fn checked(self, syntax: &Syntax, environment: impl Fn(&str) -> Option<OsString>) -> Result<Options, UsageError> {
        if self.files.len() != syntax.files.len() {
            return Err(UsageError(format!("expected {}, found {} arguments", syntax.files.join(" and "), self.files.len())));
        }
        if let Some(at) = self.files.iter().position(|file| file.is_empty()) {
            return Err(UsageError(format!("{} is empty", syntax.files.get(at).unwrap_or(&"a file"))));
        }
        let walkeep = self.walkeep.or_else(|| environment("WALKEEP_BIN"));
        Ok(Options {
            socket: self.socket.or_else(|| environment("WALKEEP_SOCKET")).map(PathBuf::from),
            config: self.config.or_else(|| environment("WALKEEP_CONFIG")).map(PathBuf::from),
            cluster: self.cluster.or_else(|| environment("WALKEEP_CLUSTER")).as_deref().map(cluster).transpose()?,
            timeout: self.timeout.or_else(|| environment(syntax.timeout_variable)).as_deref().map(duration).transpose()?,
            walkeep: walkeep.filter(|_| syntax.starts_walkeep).map(PathBuf::from),
            files: self.files,
        })
    }
}

impl Options {
    /// The agent's socket, absolute: the one given, or the configuration's, or the default.
    pub fn socket(&self) -> Result<PathBuf, UsageError> {
        let cluster = self.cluster.as_deref();
        let socket = match (&self.socket, &self.config) {
            (Some(socket), _) => socket.clone(),
            (None, Some(path)) => {
                let problem = |why: &dyn fmt::Display| UsageError(format!("{}: {why}", path.display()));
                let text = std::fs::read_to_string(path).map_err(|error| problem(&error))?;
                config::socket_from_config(&text, cluster).map_err(|error| problem(&error))?
            }
            (None, None) => config::default_socket(cluster.unwrap_or(DEFAULT_CLUSTER)),
        };
        absolute(&socket)
    }
}

/// `path` from the working directory, without resolving symbolic links.
pub fn absolute(path: &Path) -> Result<PathBuf, UsageError> {
    std::path::absolute(path).map_err(|error| UsageError(format!("cannot make {} absolute: {error}", path.display())))
}

/// A name that can stand in a path.
fn cluster(value: &OsStr) -> Result<String, UsageError> {
    let fits = |name: &&str| !name.starts_with('.') && !name.contains('/') && !name.chars().any(char::is_control);
    let name = value.to_str().filter(fits).ok_or_else(|| UsageError(format!("{} is not a cluster's name", value.display())))?;
    Ok(name.to_owned())
}

/// `500ms`, `90s`, `90`, `5m`, `1h`.
fn duration(value: &OsStr) -> Result<Duration, UsageError> {
    let parsed = value.to_str().and_then(|text| {
        let digits = text.trim_end_matches(|c: char| c.is_ascii_alphabetic());
        let unit_ms = match text.get(digits.len()..)? {
            "ms" => 1,
            "" | "s" => 1_000,
            "m" | "min" => 60_000,
            "h" => 3_600_000,
            _ => return None,
        };
        let number: u32 = digits.bytes().all(|b| b.is_ascii_digit()).then(|| digits.parse().ok()).flatten()?;
        Some(Duration::from_millis(u64::from(number) * unit_ms)).filter(|duration| !duration.is_zero())
    });
    parsed.ok_or_else(|| UsageError(format!("{} is not a time such as 500ms, 90s or 5m", value.display())))
}

#[cfg(test)]
mod tests {
    use super::*;

    const SYNTAX: Syntax = Syntax { files: &["%f", "%p"], timeout_variable: "WALKEEP_RESTORE_TIMEOUT", starts_walkeep: true };

    fn parse_words(words: &[&str], environment: &[(&str, &str)]) -> Result<Invocation, UsageError> {
        let lookup = |name: &str| environment.iter().find(|(key, _)| *key == name).map(|(_, value)| value.into());
        parse(&SYNTAX, words.iter().map(OsString::from), lookup)
    }

    #[test]
    fn options_beat_the_environment() {
        let environment =
            [("WALKEEP_SOCKET", "/env.sock"), ("WALKEEP_CLUSTER", "env"), ("WALKEEP_RESTORE_TIMEOUT", "2m"), ("WALKEEP_CONFIG", "")];
        let options = Options {
            socket: Some("/arg.sock".into()),
            cluster: Some("env".into()),
            timeout: Some(Duration::from_secs(120)),
            files: vec!["name".into(), "path".into()],
            ..Options::default()
        };
        assert_eq!(parse_words(&["--socket=/arg.sock", "name", "path"], &environment), Ok(Invocation::Run(options)));
    }

    #[test]
    fn wrong_command_lines_are_told() {
        for (words, expected) in [
            (&["a"] as &[&str], "expected %f and %p, found 1 arguments"),
            (&["a", "b", "c"], "expected %f and %p, found 3 arguments"),
            (&["", "b"], "%f is empty"),
            (&["--sock", "x", "a", "b"], "unknown option --sock"),
            (&["a", "b", "--socket"], "--socket needs a value"),
            (&["--socket=", "a", "b"], "--socket needs a value"),
            (&["--cluster", "../x", "a", "b"], "../x is not a cluster's name"),
            (&["--timeout", "0", "a", "b"], "0 is not a time such as 500ms, 90s or 5m"),
            (&["--timeout", "1d", "a", "b"], "1d is not a time such as 500ms, 90s or 5m"),
            (&["--timeout", "-1", "a", "b"], "-1 is not a time such as 500ms, 90s or 5m"),
        ] {
            assert_eq!(parse_words(words, &[]), Err(UsageError(expected.into())), "{words:?}");
        }
    }

    #[test]
    fn help_needs_nothing_else() {
        assert_eq!(parse_words(&["--help"], &[]), Ok(Invocation::Help));
        assert_eq!(parse_words(&["a", "-V"], &[]), Ok(Invocation::Version));
        assert!(matches!(parse_words(&["--", "-h", "b"], &[]), Ok(Invocation::Run(_))));
    }

    #[test]
    fn the_socket_has_a_default_for_each_cluster() {
        let of = |cluster: Option<&str>| Options { cluster: cluster.map(Into::into), ..Options::default() }.socket();
        assert_eq!(of(None), Ok("/run/walkeep/main.sock".into()));
        assert_eq!(of(Some("two")), Ok("/run/walkeep/two.sock".into()));
        let missing = Options { config: Some("/nonexistent/walkeep.toml".into()), ..Options::default() };
        assert!(missing.socket().is_err_and(|error| error.to_string().starts_with("/nonexistent/walkeep.toml: ")));
    }
}
