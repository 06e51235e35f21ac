//! The proof that a store keeps its promises, the same for every store.

use std::hash::{BuildHasher, RandomState};
use std::time::{SystemTime, UNIX_EPOCH};

use bytes::Bytes;

use crate::{Error, ErrorKind, Key, Probed, Result, Store};

/// Creates `scratch`, tries to create it again with other bytes, reads it back and removes it.
///
/// That the removal is denied is no failure: an archive's role need not be able to delete. The object then stays, and the next probe
/// meets it: refusing to overwrite it proves as much.
pub(crate) async fn probe(store: &dyn Store, scratch: &Key) -> Result<Probed> {
    let first = unique("first");
    match store.put_if_absent(scratch, first.clone()).await {
        Ok(_) => {}
        Err(error) if error.kind() == ErrorKind::AlreadyExists => return remove(store, scratch).await,
        Err(error) => return Err(error),
    }
    match store.put_if_absent(scratch, unique("second")).await {
        Err(error) if error.kind() == ErrorKind::AlreadyExists => {}
        Err(error) => return Err(error),
        Ok(_) => {
            // Best effort: the store is refused whatever becomes of its scratch object.
            let _ = store.delete(scratch).await;
            return Err(Error::new(ErrorKind::Unusable, "probe", scratch).because(
                "a second object was created under the same key: the server ignores If-None-Match and would overwrite the archive",
            ));
        }
    }
    if store.get(scratch, None).await? != first {
        return Err(Error::new(ErrorKind::Corrupt, "probe", scratch));
    }
    remove(store, scratch).await
}

async fn remove(store: &dyn Store, scratch: &Key) -> Result<Probed> {
    match store.delete(scratch).await {
        Ok(()) => Ok(Probed::Removed),
        Err(error) if error.kind() == ErrorKind::Denied => Ok(Probed::Left),
        Err(error) => Err(error),
    }
}

/// Bytes that no other probe writes, or two probes at once would take each other's object for their own.
fn unique(word: &str) -> Bytes {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_nanos();
    let random = RandomState::new().hash_one(now);
    Bytes::from(format!("walkeep probe, {word}: {now:x}{random:016x}\n"))
}
