//! What one store has and another lacks, found out from their listings.
//!
//! Folder by folder: within one folder every server sorts alike, and no more than a folder's names are in memory. It can be broken off and taken up again at
//! the folder where it was. A listing may be stale: what it does not show yet, the next comparison finds, and what it still shows is put once more and is
//! there already.

use std::collections::{BTreeMap, BTreeSet};

use async_trait::async_trait;

use super::Guide;
use crate::{ListRequest, Listed, Result, Store, list_all};

/// How far a comparison is: the passes before are done, and in this one all folders before this one.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Mark {
    /// The number of the pass.
    pub pass: usize,
    /// The folder that comes next.
    pub folder: String,
}

/// What an object is in one store, seen from the other.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Compared {
    /// The second lacks it.
    OnlyFirst(Listed),
    /// The first lacks it.
    OnlySecond(Listed),
    /// Both have it, with different sizes.
    Differs(Listed, Listed),
}

/// Is told what a comparison finds.
#[async_trait]
pub trait Sink: Send {
    /// An object. The comparison waits until this ends, and ends itself if it fails.
    async fn found(&mut self, found: Compared) -> Result<()>;

    /// The comparison is so far; of this pass, or of the one that came to its end with this, so many objects are in both.
    async fn so_far(&mut self, mark: &Mark, alike: u64) -> Result<()>;
}

/// Compares what `guide` names, from `mark` on.
pub async fn compare(first: &dyn Store, second: &dyn Store, guide: &dyn Guide, mark: Mark, sink: &mut dyn Sink) -> Result<()> {
    for (pass, prefix) in guide.passes().into_iter().enumerate().skip(mark.pass) {
        let from = if pass == mark.pass { mark.folder.as_str() } else { "" };
        let mut alike = 0;
        // The next one last. Parents before what lies in them, neighbours in the order of their names: so in the order of their whole names.
        let mut folders = vec![prefix];
        while let Some(folder) = folders.pop() {
            let is_before = folder.as_str() < from;
            if is_before && !from.starts_with(&folder) {
                continue;
            }
            sink.so_far(&Mark { pass, folder: folder.clone() }, alike).await?;
            let request = ListRequest { prefix: folder, by_folder: true, ..ListRequest::default() };
            let (here, there) = tokio::try_join!(list_all(first, request.clone()), list_all(second, request))?;
            let names: BTreeSet<&str> = here.objects.iter().chain(&there.objects).map(|listed| listed.key.as_str()).collect();
            let beside = |key: &str| names.contains(key);
            let below: BTreeSet<&String> = here.folders.iter().chain(&there.folders).collect();
            folders.extend(below.into_iter().rev().filter(|folder| guide.enters(folder, &beside)).cloned());
            if is_before {
                continue;
            }
            let mut there: BTreeMap<_, _> = there.objects.into_iter().map(|listed| (listed.key.clone(), listed)).collect();
            for listed in here.objects {
                let other = there.remove(&listed.key);
                if !guide.wants(pass, &listed.key) {
                    continue;
                }
                match other {
                    None => sink.found(Compared::OnlyFirst(listed)).await?,
                    Some(other) if other.size != listed.size => sink.found(Compared::Differs(listed, other)).await?,
                    Some(_) => alike += 1,
                }
            }
            for listed in there.into_values().filter(|listed| guide.wants(pass, &listed.key)) {
                sink.found(Compared::OnlySecond(listed)).await?;
            }
        }
        sink.so_far(&Mark { pass: pass + 1, folder: String::new() }, alike).await?;
    }
    Ok(())
}
