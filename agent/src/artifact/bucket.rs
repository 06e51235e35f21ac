//! The objects below a prefix of a bucket, as a tar file.

use bytes::Bytes;
use std::time::UNIX_EPOCH;

use anyhow::{Context, Result, bail, ensure};
use walkeep_core::tar_header::{self, Entry, Kind, header, padding};
use walkeep_store::{ErrorKind, Key, ListRequest, Listed, SharedStore};

use super::flow::{Ended, Flow, Notes, Source};

/// Bytes read at a time.
const STRETCH: u64 = 8 << 20;

/// Begins with everything in `store`, whose own prefix it is.
pub fn start(store: SharedStore) -> Flow {
    Flow::of(|source| async move {
        let (mut notes, mut files) = (Notes::default(), 0);
        let mut request = ListRequest::default();
        loop {
            let page = store.list(&request).await.context("list the bucket")?;
            ensure!(
                page.foreign == 0,
                "there are objects in {} whose names Walkeep cannot read (it knows A-Z a-z 0-9 . _ - and /): nothing is stored, as not all would be. \
                 A command that copies them, such as rclone, can be an artifact instead",
                store.url()
            );
            for listed in &page.objects {
                match object(&store, listed, &source).await? {
                    true => files += 1,
                    false => notes.add(&format!("{} went while it was looked at", listed.key)),
                }
            }
            match page.next {
                Some(next) => request.start_after = Some(next),
                None => break,
            }
        }
        source.put(Bytes::from_static(&tar_header::END)).await?;
        Ok(Ended { files: Some(files), notes, stderr: None })
    })
}

/// Answers whether it was there.
async fn object(store: &SharedStore, listed: &Listed, source: &Source) -> Result<bool> {
    let size = listed.size;
    let first = match stretch(store, &listed.key, 0, size).await {
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(false),
        first => first.with_context(|| format!("read {}", listed.key))?,
    };
    let mtime = listed.modified.duration_since(UNIX_EPOCH).map_or(0, |time| i64::try_from(time.as_secs()).unwrap_or(0));
    let entry = Entry { name: listed.key.as_str().as_bytes(), kind: Kind::File { size }, mode: 0o644, uid: 0, gid: 0, mtime };
    source.put(Bytes::from(header(&entry))).await?;
    let mut at = 0;
    let mut next = first;
    loop {
        at += next.len() as u64;
        let read = next.len();
        if read > 0 {
            source.put(next).await?;
        }
        if at >= size {
            break;
        }
        if read == 0 {
            bail!("{} became shorter while it was read", listed.key);
        }
        next = stretch(store, &listed.key, at, size).await.with_context(|| format!("read {}", listed.key))?;
    }
    source.put(Bytes::from(vec![0; padding(size)])).await?;
    if size > STRETCH {
        ensure!(is_still(store, listed).await?, "{} was replaced while it was read: its bytes would be of two contents", listed.key);
    }
    Ok(true)
}

/// Whether it is the object that was listed, as far as stores tell: by its length and the second in which it was put. What is read at once is never torn.
async fn is_still(store: &SharedStore, listed: &Listed) -> Result<bool> {
    let request = ListRequest { prefix: listed.key.as_str().to_owned(), ..ListRequest::default() };
    let page = store.list(&request).await.with_context(|| format!("look at {} again", listed.key))?;
    let now = page.objects.iter().find(|object| object.key == listed.key);
    Ok(now.is_some_and(|now| (now.size, now.modified) == (listed.size, listed.modified)))
}

async fn stretch(store: &SharedStore, key: &Key, from: u64, size: u64) -> walkeep_store::Result<Bytes> {
    if from >= size {
        return Ok(Bytes::new());
    }
    store.get(key, Some(from..size.min(from + STRETCH))).await
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use walkeep_store::{MemoryStore, Store};

    use super::*;

    #[tokio::test]
    async fn every_object_is_an_entry() {
        let store = Arc::new(MemoryStore::new());
        for (key, length) in [("a/b", 3), ("empty", 0), ("large", STRETCH as usize + 100)] {
            store.put_if_absent(&key.parse().unwrap(), Bytes::from(vec![7; length])).await.unwrap();
        }
        let mut flow = start(store);
        let tar = flow.piece().await.unwrap();
        assert_eq!(flow.ended().await.unwrap().files, Some(3));
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join("x.tar"), &tar).unwrap();
        let listed = std::process::Command::new("tar").args(["-tvf"]).arg(folder.path().join("x.tar")).output().unwrap();
        let listed = String::from_utf8(listed.stdout).unwrap();
        assert!(listed.lines().count() == 3 && listed.contains(&format!("{} ", STRETCH + 100)), "{listed}");
    }
}
