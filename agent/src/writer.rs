//! Who this agent is, among those that may write the archive: `writer.json` in the spool, and what is known of this process.
//!
//! The identity lies where the WAL lies that is received and not yet stored: an agent that goes on with the spool is the same writer, on whatever host.
//! What follows from it, `walkeep_core::lease` decides.

use std::path::Path;

use anyhow::{Context, Result};
use serde::{Deserialize, Serialize};
use walkeep_core::lease::Writer;

use crate::durable;
use crate::postgres::ConnectionParams;

/// The file's name in the spool.
const FILE: &str = "writer.json";

#[derive(Debug, Serialize, Deserialize)]
struct Identity {
    id: String,
}

/// This process as a writer. The spool's identity is made if there is none; the folder must exist.
pub fn this_process(spool: &Path, params: &ConnectionParams, slot: &str) -> Result<Writer> {
    let host = host();
    Ok(Writer {
        id: identity(spool)?,
        life: random_id()?,
        pid: std::process::id(),
        servers: params.server_names(&host),
        at: None,
        slot: slot.to_owned(),
        host,
    })
}

/// What this host calls itself.
pub fn host() -> String {
    rustix::system::uname().nodename().to_string_lossy().into_owned()
}

/// The identity in the spool, if there is one that can be read.
pub fn known_identity(spool: &Path) -> Result<Option<String>> {
    let path = spool.join(FILE);
    let content = match std::fs::read(&path) {
        Ok(content) => content,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(error).with_context(|| format!("read {}", path.display())),
    };
    let identity = serde_json::from_slice::<Identity>(&content).ok().filter(|identity| !identity.id.is_empty());
    if identity.is_none() {
        tracing::warn!(file = %path.display(), "the writer's identity cannot be read");
    }
    Ok(identity.map(|identity| identity.id))
}

/// Where there is none, another one is taken: one that has to prove that whoever wrote before is gone.
fn identity(spool: &Path) -> Result<String> {
    if let Some(id) = known_identity(spool)? {
        return Ok(id);
    }
    let identity = Identity { id: random_id()? };
    durable::write_file(&spool.join(FILE), &serde_json::to_vec(&identity)?, durable::PRIVATE_FILE)?;
    Ok(identity.id)
}

/// Chance, as 32 digits.
pub fn random_id() -> Result<String> {
    let mut bytes = [0; 16];
    let filled =
        rustix::rand::getrandom(&mut bytes[..], rustix::rand::GetRandomFlags::empty()).context("ask the kernel for random bytes")?;
    anyhow::ensure!(filled == bytes.len(), "the kernel gave {filled} random bytes");
    Ok(hex::encode(bytes))
}

/// Chance, as a number.
pub fn random_number() -> Result<u32> {
    u32::from_str_radix(random_id()?.get(..8).unwrap_or_default(), 16).context("understand chance")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_spool_is_the_identity_and_each_process_a_life() {
        let folder = tempfile::tempdir().expect("a folder");
        let params = ConnectionParams::parse("host=db1,/run/postgresql port=5433 user=u", &|_| None).expect("parameters");
        let of = || this_process(folder.path(), &params, "walkeep").expect("a writer");
        let (first, second) = (of(), of());
        assert_eq!((first.id.len(), &first.id), (32, &second.id));
        assert_ne!(first.life, second.life);
        assert_eq!(first.servers, ["db1:5433".to_owned(), format!("{}:5433", first.host)]);
        std::fs::write(folder.path().join(FILE), "{").expect("writes");
        assert_ne!(of().id, first.id);
    }
}
