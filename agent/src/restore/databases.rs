//! Which databases a backup has, and who is its superuser: read out of its shared catalogs, a few small files, before anything else is.
//!
//! These are the files as the backup copied them: a database made or renamed since is not there, one dropped since still is, and a page may be
//! torn. Good enough to choose what to fetch, if the choice is compared later with what the recovered server says; nothing else may rest on it.

use std::collections::{BTreeSet, HashMap};

use anyhow::{Context, Result};
use tokio::task::spawn_blocking;
use tokio_util::sync::CancellationToken;
use walkeep_core::manifest::{Content, EntryKind};
use walkeep_core::partial::{BOOTSTRAP_ROLE, Needed, PG_AUTHID, PG_DATABASE, SHARED_MAP, names, relation_map};
use walkeep_core::plan::RestorePlan;

use super::layout::read_file;
use super::{Refusal, read_record};
use crate::repository::ClusterRepository;

/// A shared catalog that is larger is not looked into: half a million databases.
const LIMIT: u64 = 64 << 20;

/// What the shared catalogs of a backup say.
#[derive(Debug, Clone, Default)]
pub struct Shared {
    /// OIDs and names of databases, of all row versions there are.
    pub databases: Vec<(u32, String)>,
    /// Names of the role that initdb made.
    pub superusers: Vec<String>,
    /// Where tablespaces were.
    pub tablespaces: Vec<(u32, String)>,
}

impl Shared {
    /// The OIDs under which a database of this name is known.
    pub fn oids(&self, database: &str) -> Vec<u32> {
        self.databases.iter().filter(|(_, name)| name == database).map(|(oid, _)| *oid).collect()
    }

    /// What is needed of the backup of `plan` for these databases: their files, those of the templates, and everything that belongs to no database.
    pub fn only(&self, plan: &RestorePlan, names: &[String]) -> Result<Needed, Refusal> {
        let mut oids = BTreeSet::new();
        for name in names {
            let found = self.oids(name);
            if found.is_empty() {
                let mut known: Vec<_> = self.databases.iter().map(|(_, name)| name.as_str()).collect();
                known.sort_unstable();
                known.dedup();
                let reason = format!("it has no database {name:?}; it has: {}", known.join(", "));
                return Err(Refusal::Backup { backup: plan.backup.id.to_string(), reason });
            }
            oids.extend(found);
        }
        oids.extend(["template0", "template1"].iter().flat_map(|name| self.oids(name)));
        Ok(Needed::Databases(oids))
    }
}

/// Reads them for the backup of `plan`. What cannot be understood is left out.
pub async fn shared(repository: &ClusterRepository, plan: &RestorePlan, cancel: &CancellationToken) -> Result<Shared> {
    let record = read_record(repository, plan).await?;
    let manifest = repository.get_manifest(&record).await?;
    let files = spawn_blocking(move || -> Result<HashMap<String, Content>> {
        let mut files = HashMap::new();
        for entry in manifest.iter()? {
            let entry = entry?;
            if let EntryKind::File { content, .. } = entry.kind
                && entry.path.as_str().starts_with("global/")
                && content.size() <= LIMIT
            {
                files.insert(entry.path.as_str().to_owned(), content);
            }
        }
        Ok(files)
    });
    let files = files.await.context("read the manifest")??;
    let read = async |name: String| -> Result<Vec<u8>> {
        let Some(content) = files.get(&name) else { return Ok(Vec::new()) };
        read_file(repository, content, &name, cancel).await
    };
    let map = relation_map(&read(SHARED_MAP.to_owned()).await?).unwrap_or_default();
    let catalog = async |oid: u32| -> Result<Vec<(u32, String)>> {
        let Some((_, number)) = map.iter().find(|(of, _)| *of == oid) else { return Ok(Vec::new()) };
        Ok(names(&read(format!("global/{number}")).await?))
    };
    let superusers = catalog(PG_AUTHID).await?.into_iter().filter(|(oid, _)| *oid == BOOTSTRAP_ROLE).map(|(_, name)| name);
    Ok(Shared {
        superusers: superusers.collect(),
        databases: catalog(PG_DATABASE).await?,
        tablespaces: record.tablespaces.iter().map(|space| (space.oid, space.path.clone())).collect(),
    })
}
