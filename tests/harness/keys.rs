//! Keys of age, for repositories that are encrypted.
//!
//! With `WALKEEP_TEST_ENCRYPTION=1` every Walkeep of a test run encrypts, for one pair of keys that all of them have, unless its story says otherwise.

use std::process::Command;
use std::sync::OnceLock;

use crate::walkeep::{binary, run};

/// An identity and its recipient.
#[derive(Debug, Clone)]
pub struct Pair {
    /// The secret.
    pub identity: String,
    /// What is public of it.
    pub recipient: String,
}

impl Pair {
    /// A new one.
    #[track_caller]
    pub fn generate() -> Self {
        let made = run(Command::new(binary("walkeep")).args(["key", "generate", "--json"])).expect_code(0).json();
        let text = |name: &str| made[name].as_str().unwrap_or_else(|| panic!("no {name} in {made}")).to_owned();
        Self { identity: text("identity"), recipient: text("recipient") }
    }
}

/// What one configuration has of keys.
#[derive(Debug, Clone, Default)]
pub struct Keys {
    /// Public keys, in the recipients file.
    pub recipients: Vec<String>,
    /// Secret ones, in the identity file.
    pub identities: Vec<String>,
}

impl Keys {
    /// For a host that only writes.
    pub fn to_write(pairs: &[&Pair]) -> Self {
        Self { recipients: pairs.iter().map(|pair| pair.recipient.clone()).collect(), identities: Vec::new() }
    }

    /// For a host that only reads.
    pub fn to_read(pairs: &[&Pair]) -> Self {
        Self { recipients: Vec::new(), identities: pairs.iter().map(|pair| pair.identity.clone()).collect() }
    }

    /// Those of every Walkeep of this run, if it encrypts.
    pub(crate) fn of_this_run() -> Option<Self> {
        static PAIR: OnceLock<Pair> = OnceLock::new();
        let pair = is_everything_encrypted().then(|| PAIR.get_or_init(Pair::generate))?;
        Some(Self { recipients: vec![pair.recipient.clone()], identities: vec![pair.identity.clone()] })
    }
}

/// Whether every repository of this run is encrypted.
pub fn is_everything_encrypted() -> bool {
    std::env::var_os("WALKEEP_TEST_ENCRYPTION").is_some_and(|value| value == "1")
}

/// How the names of stored zstd files end in this run.
pub fn suffix() -> &'static str {
    if is_everything_encrypted() { ".zst.age" } else { ".zst" }
}
