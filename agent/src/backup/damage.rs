//! Pages that were bad when a backup read them, collected while it runs.
//!
//! The backup holds them as they are; which relation they belong to is asked at its end, as numbers say little to people.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use anyhow::{Context, Result};
use walkeep_core::backup::{BadPage, DamageReport};
use walkeep_core::relation_file::RelationFile;
use walkeep_core::relative_path::RelativePath;

use crate::postgres::ConnectionParams;
use crate::postgres::catalogs;

/// Pages that are named one by one; more are counted.
const NAMED: usize = 1000;
/// Databases that are asked for names.
const DATABASES: usize = 20;
/// Blocks of a file before the next one begins, as everybody builds PostgreSQL.
const SEGMENT_BLOCKS: u32 = 131_072;
const ASKING: Duration = Duration::from_secs(30);

/// Bad pages.
#[derive(Debug, Default)]
pub struct Damage(Mutex<Found>);

#[derive(Debug, Default)]
struct Found {
    pages: u64,
    /// The server says that there are, whatever it named.
    certain: bool,
    named: BTreeSet<(String, u32)>,
}

impl Damage {
    /// Notes bad blocks of a file, by their numbers within the relation.
    pub fn note(&self, path: &RelativePath, blocks: &[u32]) {
        if blocks.is_empty() {
            return;
        }
        tracing::warn!(file = %path, ?blocks, "backup: pages have wrong checksums");
        let mut found = self.found();
        found.pages += blocks.len() as u64;
        for block in blocks {
            if found.named.len() < NAMED {
                found.named.insert((path.as_str().to_owned(), *block));
            }
        }
    }

    /// Notes a page that the server told of, by its number within the file.
    pub fn told(&self, file: &str, block: u32) {
        let block = block.saturating_add(RelationFile::parse(file).map_or(0, |file| file.first_block(SEGMENT_BLOCKS)));
        tracing::warn!(file, block, "backup: the server says that a page has a wrong checksum");
        let mut found = self.found();
        found.pages += 1;
        if found.named.len() < NAMED {
            found.named.insert((file.to_owned(), block));
        }
    }

    /// Notes what the server says on the whole: it names the first pages of a file only, in its own language.
    pub fn certain(&self, damaged: bool) {
        self.found().certain |= damaged;
    }

    fn found(&self) -> MutexGuard<'_, Found> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What is to be recorded; `None` if every page was fine. The server is asked for names; without an answer there are none.
    pub async fn report(&self, params: &ConnectionParams) -> Option<DamageReport> {
        let (pages, mut named) = {
            let found = self.found();
            let page = |(file, block): &(String, u32)| BadPage { file: file.clone(), block: *block, relation: None };
            (found.pages.max(u64::from(found.certain)), found.named.iter().map(page).collect::<Vec<_>>())
        };
        if pages == 0 {
            return None;
        }
        match tokio::time::timeout(ASKING, name_relations(params, &mut named)).await.context("no answer in time").flatten() {
            Ok(()) => {}
            Err(error) => tracing::warn!(error = %format_args!("{error:#}"), "backup: the damaged relations could not be named"),
        }
        Some(DamageReport { pages, named })
    }
}

/// File and block of a server's warning, in any language that quotes the file: `checksum verification failed in file "./base/5/1234", block 7: ...`.
pub fn bad_page(message: &str) -> Option<(&str, u32)> {
    let is_quote = |c: char| matches!(c, '"' | '«' | '»' | '„' | '“' | '”' | '「' | '」' | '『' | '』');
    let mut parts = message.splitn(3, is_quote);
    let (file, rest) = (parts.nth(1)?.trim(), parts.next()?);
    let digits = rest.trim_start_matches(|c: char| !c.is_ascii_digit());
    let end = digits.find(|c: char| !c.is_ascii_digit()).unwrap_or(digits.len());
    // The sums come after the block's number; a line without them is about something else.
    let more = digits.get(end..)?.trim_start();
    (file.contains('/') && more.starts_with([':', '：'])).then_some(())?;
    Some((file, digits.get(..end)?.parse().ok()?))
}

async fn name_relations(params: &ConnectionParams, pages: &mut [BadPage]) -> Result<()> {
    let mut wanted: BTreeMap<u32, BTreeSet<(u32, u32)>> = BTreeMap::new();
    for file in pages.iter().filter_map(|page| RelationFile::parse(&page.file)) {
        wanted.entry(file.relation.database).or_default().insert((file.relation.tablespace, file.relation.number));
    }
    let client = crate::postgres::connect_sql(params).await?;
    let databases = catalogs::databases(&client).await?;
    let mut names = BTreeMap::new();
    for (database, relations) in wanted.into_iter().take(DATABASES) {
        // Shared relations are known in every database.
        let row = databases.iter().find(|row| row.connectable && (row.oid == database || database == 0));
        let Some(row) = row else { continue };
        let client = catalogs::connect(params, &row.name).await?;
        for (tablespace, number) in relations {
            let query = "SELECT n.nspname || '.' || c.relname FROM pg_catalog.pg_class c JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace \
                         WHERE c.oid = pg_catalog.pg_filenode_relation($1, $2)";
            if let Some(found) = client.query_opt(query, &[&tablespace, &number]).await? {
                let name: String = found.try_get(0)?;
                names.insert((database, tablespace, number), if database == 0 { name } else { format!("{}.{name}", row.name) });
            }
        }
    }
    for page in pages {
        let file = RelationFile::parse(&page.file).map(|file| file.relation);
        page.relation = file.and_then(|file| names.get(&(file.database, file.tablespace, file.number)).cloned());
    }
    Ok(())
}

#[cfg(test)]
impl Damage {
    /// The blocks named.
    pub fn blocks(&self) -> Vec<u32> {
        self.found().named.iter().map(|(_, block)| *block).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_server_s_warnings_are_read() {
        let of_15 = "checksum verification failed in file \"./base/5/1234.1\", block 2: calculated 5D8D but expected 8B3D";
        assert_eq!(bad_page(of_15), Some(("./base/5/1234.1", 2)));
        let german = "Prüfsummenprüfung fehlgeschlagen in Datei »./base/5/1234«, Block 7: berechnet 5D8D, aber erwartet 8B3D";
        assert_eq!(bad_page(german), Some(("./base/5/1234", 7)));
        let further = "further checksum verification failures in file \"./base/5/1234\" will not be reported";
        for other in
            [further, "", "\"", "file \"./base/5/1\"", "could not verify checksum in file \"./base/5/1\", block 0: read buffer size 5"]
        {
            assert!(bad_page(other).is_none() || other.starts_with("could not"), "{other}");
        }
    }

    #[test]
    fn pages_are_counted_and_the_first_named() {
        let damage = Damage::default();
        let path = RelativePath::parse("base/5/1").unwrap();
        damage.note(&path, &[]);
        assert_eq!(damage.found().pages, 0);
        damage.note(&path, &(0..2000).collect::<Vec<_>>());
        let found = damage.found();
        assert_eq!((found.pages, found.named.len()), (2000, NAMED));
    }
}
