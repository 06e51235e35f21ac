//! Who may read what is stored: recipients, which are public, and identities, which are not.

use std::fmt;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use age::secrecy::ExposeSecret;
use age::x25519;

use crate::config::Secret;

/// More than anybody has; so many fit into the front of an object that is read to know what it is.
pub const MOST_RECIPIENTS: usize = 20;

/// A key, or a file of keys, cannot be used.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct KeyError(pub(super) String);

/// Public keys: whatever is stored can be read with the identity of any of them.
#[derive(Clone, Default)]
pub struct Recipients(Vec<x25519::Recipient>);

impl Recipients {
    /// Reads one key, as `age-keygen` writes it.
    pub fn parse(text: &str) -> Result<x25519::Recipient, KeyError> {
        let text = text.trim();
        // Whoever mixes them up must not find the secret in a log.
        if text.to_ascii_uppercase().contains("AGE-SECRET-KEY-") {
            return Err(KeyError("an identity (AGE-SECRET-KEY-...) stands where a recipient (age1...) belongs: not shown".into()));
        }
        text.parse().map_err(|_| KeyError(format!("{text:?} is not a recipient: write age1..., as `walkeep key generate` prints it")))
    }

    /// Reads a list of keys: one a line, with empty lines and lines that begin with `#` between.
    pub fn parse_list(text: &str) -> Result<Self, KeyError> {
        let mut recipients = Self::default();
        for (at, line) in lines(text) {
            let recipient = Self::parse(line).map_err(|error| KeyError(format!("line {at}: {error}")))?;
            recipients.add(recipient)?;
        }
        Ok(recipients)
    }

    /// Adds one, unless it is there.
    pub fn add(&mut self, recipient: x25519::Recipient) -> Result<(), KeyError> {
        if self.texts().contains(&recipient.to_string()) {
            return Ok(());
        }
        if self.0.len() == MOST_RECIPIENTS {
            return Err(KeyError(format!("more than {MOST_RECIPIENTS} recipients")));
        }
        self.0.push(recipient);
        Ok(())
    }

    /// As text, in order.
    pub fn texts(&self) -> Vec<String> {
        self.0.iter().map(x25519::Recipient::to_string).collect()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = &x25519::Recipient> {
        self.0.iter()
    }
}

impl fmt::Debug for Recipients {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.texts()).finish()
    }
}

/// Where recipients come from: the configuration, and a file that is read again whenever it has changed, so that `walkeep key add` needs no restart.
#[derive(Debug)]
pub struct RecipientsSource {
    written: Recipients,
    file: Option<PathBuf>,
    read: Mutex<Option<(Stamp, Arc<Recipients>)>>,
}

/// What of a file tells that it is another one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Stamp {
    inode: u64,
    bytes: u64,
    changed: (i64, i64),
}

impl RecipientsSource {
    /// Those `written`, and those in `file`.
    pub fn new(written: Recipients, file: Option<PathBuf>) -> Self {
        Self { written, file, read: Mutex::default() }
    }

    /// The file, if one is configured.
    pub fn file(&self) -> Option<&Path> {
        self.file.as_deref()
    }

    /// Those that stand in the configuration itself.
    pub fn written(&self) -> &Recipients {
        &self.written
    }

    /// The recipients now. A file that cannot be read, or has become nonsense, leaves those in force that it had: nothing must be stored for fewer readers by mistake.
    pub fn now(&self) -> Result<Arc<Recipients>, KeyError> {
        let Some(file) = &self.file else { return Ok(Arc::new(self.written.clone())) };
        let mut read = self.read.lock().unwrap_or_else(PoisonError::into_inner);
        match stamp(file).and_then(|stamp| self.read_anew(file, stamp, &mut read)) {
            Ok(recipients) => Ok(recipients),
            Err(error) => match read.as_ref() {
                Some((_, recipients)) => {
                    tracing::warn!(%error, "the recipients stay as they were");
                    Ok(recipients.clone())
                }
                None => Err(error),
            },
        }
    }

    /// Those that are written and those in `text`, which stands in `file` or is to. A file that names nobody was emptied by mistake, whoever else is written.
    pub fn with(&self, file: &Path, text: &str) -> Result<Recipients, KeyError> {
        let listed = Recipients::parse_list(text).map_err(|error| KeyError(format!("{}: {error}", file.display())))?;
        if listed.is_empty() {
            return Err(KeyError(format!("{} names no recipient", file.display())));
        }
        let mut all = self.written.clone();
        for recipient in listed.0 {
            all.add(recipient)?;
        }
        Ok(all)
    }

    fn read_anew(&self, file: &Path, stamp: Stamp, read: &mut Option<(Stamp, Arc<Recipients>)>) -> Result<Arc<Recipients>, KeyError> {
        if let Some((known, recipients)) = read
            && *known == stamp
        {
            return Ok(recipients.clone());
        }
        let text = std::fs::read_to_string(file).map_err(|error| unreadable(file, &error))?;
        let all = self.with(file, &text)?;
        if read.is_some() {
            tracing::info!(recipients = all.0.len(), file = %file.display(), "the recipients have changed");
        }
        let all = Arc::new(all);
        *read = Some((stamp, all.clone()));
        Ok(all)
    }
}

fn stamp(file: &Path) -> Result<Stamp, KeyError> {
    let found = std::fs::metadata(file).map_err(|error| unreadable(file, &error))?;
    Ok(Stamp { inode: found.ino(), bytes: found.len(), changed: (found.mtime(), found.mtime_nsec()) })
}

/// Secret keys: what this host can read.
#[derive(Clone, Default)]
pub struct Identities(Arc<Vec<x25519::Identity>>);

impl Identities {
    /// Reads identities, as `age-keygen` writes them. Errors never show what was read.
    pub fn parse_list(text: &str, place: &str) -> Result<Self, KeyError> {
        let mut identities = Vec::new();
        for (at, line) in lines(text) {
            let wrong = |what: &str| KeyError(format!("{place}, line {at}: {what} (not shown)"));
            if line.starts_with("age1") {
                return Err(wrong("a recipient stands where an identity (AGE-SECRET-KEY-1...) belongs"));
            }
            if line.starts_with("AGE-PLUGIN-") || line.starts_with("age-encryption.org/") || line.starts_with("-----BEGIN") {
                return Err(wrong("identities of plugins, with passphrases and of ssh are not supported: AGE-SECRET-KEY-1... is"));
            }
            identities.push(line.parse().map_err(|_| wrong("it is not an identity (AGE-SECRET-KEY-1...)"))?);
        }
        match identities.is_empty() {
            true => Err(KeyError(format!("{place} has no identity"))),
            false => Ok(Self(Arc::new(identities))),
        }
    }

    /// Those in a file.
    pub fn read(file: &Path) -> Result<Self, KeyError> {
        let text = std::fs::read_to_string(file).map(Secret::from).map_err(|error| unreadable(file, &error))?;
        Self::parse_list(text.reveal(), &file.display().to_string())
    }

    /// These and others.
    pub fn and(&self, others: &Self) -> Self {
        Self(Arc::new(self.0.iter().chain(others.0.iter()).cloned().collect()))
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Their recipients, in order.
    pub fn recipients(&self) -> Vec<String> {
        self.0.iter().map(|identity| identity.to_public().to_string()).collect()
    }

    /// Each with its recipient.
    pub(super) fn each(&self) -> impl Iterator<Item = (String, &dyn age::Identity)> {
        self.0.iter().map(|identity| (identity.to_public().to_string(), identity as &dyn age::Identity))
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = &dyn age::Identity> {
        self.0.iter().map(|identity| identity as &dyn age::Identity)
    }
}

impl fmt::Debug for Identities {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} identities (not shown)", self.0.len())
    }
}

/// A new identity: as text, and its recipient.
pub fn generate() -> (Secret, String) {
    let identity = x25519::Identity::generate();
    let recipient = identity.to_public().to_string();
    (Secret::from(identity.to_string().expose_secret().to_owned()), recipient)
}

fn unreadable(file: &Path, error: &io::Error) -> KeyError {
    KeyError(format!("{} cannot be read: {error}", file.display()))
}

/// The lines that say something, with their numbers.
fn lines(text: &str) -> impl Iterator<Item = (usize, &str)> {
    let numbered = text.lines().enumerate().map(|(at, line)| (at + 1, line.trim()));
    numbered.filter(|(_, line)| !line.is_empty() && !line.starts_with('#'))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lists_are_as_age_writes_them() {
        let ((one, first), (other, second)) = (generate(), generate());
        let text = format!("# a comment\n\n  {first}  \n{second}\n{first}\n");
        assert_eq!(Recipients::parse_list(&text).unwrap().texts(), [first.clone(), second.clone()]);
        let identities = format!("# created: today\n# public key: {first}\n{}\n{}\n", one.reveal(), other.reveal());
        assert_eq!(Identities::parse_list(&identities, "x").unwrap().recipients(), [first, second]);
    }

    /// Whoever puts the one where the other belongs reads what is wrong, and not the secret.
    #[test]
    fn a_secret_is_never_shown() {
        let (identity, recipient) = generate();
        let spoilt = format!("{}X", identity.reveal());
        let shown = [
            Recipients::parse_list(identity.reveal()).unwrap_err().to_string(),
            Recipients::parse_list(&format!("identity = \"{}\"", identity.reveal())).unwrap_err().to_string(),
            Identities::parse_list(&recipient, "the file").unwrap_err().to_string(),
            Identities::parse_list(&spoilt, "the file").unwrap_err().to_string(),
            format!("{:?}", Identities::parse_list(identity.reveal(), "x").unwrap()),
            format!("{identity:?}"),
        ];
        for text in shown {
            assert!(text.contains("not shown") && !text.contains(&identity.reveal()[15..40]), "{text}");
        }
        assert!(Identities::parse_list("# nothing\n", "the file").unwrap_err().to_string().contains("has no identity"));
    }

    #[test]
    fn a_changed_file_is_read_again_and_a_spoilt_one_changes_nothing() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("recipients");
        let keys: Vec<String> = (0..3).map(|_| generate().1).collect();
        let written = Recipients::parse_list(&keys[0]).unwrap();
        let source = RecipientsSource::new(written, Some(file.clone()));
        assert!(source.now().is_err(), "never read");
        std::fs::write(&file, format!("{}\n", keys[1])).unwrap();
        assert_eq!(source.now().unwrap().texts(), keys[..2]);
        std::fs::write(&file, format!("{}\n{}\n", keys[1], keys[2])).unwrap();
        assert_eq!(source.now().unwrap().texts(), keys);
        for spoilt in ["age1nonsense", "", "# nobody\n"] {
            std::fs::write(&file, spoilt).unwrap();
            assert_eq!(source.now().unwrap().texts(), keys);
        }
        std::fs::remove_file(&file).unwrap();
        assert_eq!(source.now().unwrap().texts(), keys);
    }

    #[test]
    fn there_is_a_most() {
        let many: Vec<String> = (0..=MOST_RECIPIENTS).map(|_| generate().1).collect();
        assert!(Recipients::parse_list(&many.join("\n")).unwrap_err().to_string().contains("more than 20"));
    }
}
