//! Changed blocks as `pg_walsummary` lists them out of the server's own WAL summaries (17 and later), and as our records refer to them.
//!
//! Of the main and the init fork they must be the same. Apart are the free space map, which the server leaves out since its changes are not
//! all in the WAL, and the visibility map, whose bits are cleared without a reference: whoever builds on block references must take these as
//! changed as wholes (`record/changes.rs`).

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::time::Duration;

use walkeep_core::Lsn;
use walkeep_core::record::{FileChange, Fork, Record, RelFileLocator};
use walkeep_tests::postgres::{own_client, versions};
use walkeep_tests::walkeep::run;
use walkeep_tests::{Scratch, user, wait_until};

use super::{builder, bytes_of, decode, size, work};
use crate::support::{lsn, segments_in};

/// Tablespace, database, file number, and whether it is the init fork.
type File = (u32, u32, u32, bool);

/// What changed of a file.
#[derive(Debug, Default, PartialEq, Eq)]
struct Changed {
    blocks: BTreeSet<u32>,
    /// From here on nothing is what it was: the file was made, cut or removed.
    limit: Option<u32>,
}

type Summary = BTreeMap<File, Changed>;

/// What `pg_walsummary` prints of a file.
fn theirs(program: &Path, file: &Path) -> Summary {
    let mut summary = Summary::new();
    for line in run(user::command(program).arg("--individual").arg(file)).expect_code(0).stdout.lines() {
        // TS 1663, DB 5, REL 16384, FORK main: block 3
        let words: Vec<_> = line.split([' ', ',', ':']).filter(|word| !word.is_empty()).collect();
        let ["TS", space, "DB", database, "REL", relation, "FORK", fork, what, number] = words[..] else { panic!("{line}") };
        let [space, database, relation, number] = [space, database, relation, number].map(|word| word.parse().unwrap());
        if !["main", "init"].contains(&fork) {
            continue;
        }
        let changed = summary.entry((space, database, relation, fork == "init")).or_default();
        match what {
            "block" => _ = changed.blocks.insert(number),
            "limit" => changed.limit = Some(number),
            _ => panic!("{line}"),
        }
    }
    summary
}

/// The same out of a record of ours, by the server's rule: blocks behind a new limit are not listed.
fn add(summary: &mut Summary, record: &Record<'_>) {
    let file = |relation: RelFileLocator, fork| (relation.tablespace, relation.database, relation.number, fork == Fork::Init);
    let mut limit = |file: File, from: u32| {
        let changed = summary.entry(file).or_default();
        if changed.limit.is_none_or(|limit| from < limit) {
            changed.limit = Some(from);
            changed.blocks.retain(|block| *block < from);
        }
    };
    for change in record.file_changes() {
        match change {
            FileChange::Relation { relation, fork, from } => {
                let of = |wanted: &Fork| fork.is_none_or(|fork| fork == *wanted);
                [Fork::Main, Fork::Init].into_iter().filter(of).for_each(|fork| limit(file(relation, fork), from));
            }
            // The server notes it as a file with the number 0.
            FileChange::Database { database, tablespace } => limit((tablespace, database, 0, false), 0),
        }
    }
    for block in record.blocks().filter(|block| matches!(block.fork, Fork::Main | Fork::Init)) {
        summary.entry(file(block.relation, block.fork)).or_default().blocks.insert(block.block);
    }
}

#[test]
fn changed_blocks_are_those_of_the_servers_own_summaries() {
    for version in versions().into_iter().filter(|version| *version >= 17) {
        let Some(program) = own_client(version, "pg_walsummary") else { continue };
        let (places, cluster) = (Scratch::new(), builder(version).conf("summarize_wal", "on").start());
        work(&cluster, &places);
        cluster.sql("CHECKPOINT");
        let redo = cluster.sql("SELECT redo_lsn FROM pg_control_checkpoint()");
        let reached = format!("SELECT coalesce(max(end_lsn) >= '{redo}', false) FROM pg_available_wal_summaries()");
        wait_until("the server has summarized its WAL", Duration::from_secs(60), || cluster.sql(&reached) == "t");
        let summaries: Vec<(u64, u64)> = cluster
            .rows("SELECT start_lsn, end_lsn FROM pg_available_wal_summaries() ORDER BY 1")
            .into_iter()
            .map(|row| (lsn(&row[0]), lsn(&row[1])))
            .collect();
        let start = summaries[0].0;
        let names = segments_in(&cluster.pg_wal()).into_iter();
        let names: Vec<_> = names.filter(|name| u64::from_str_radix(&name[16..], 16).unwrap() >= start / size().bytes()).collect();
        let mut ours: BTreeMap<u64, Summary> = summaries.iter().map(|(start, _)| (*start, Summary::new())).collect();
        decode(&bytes_of(&cluster, &names), start, |record| {
            let of = summaries.iter().find(|(from, to)| (*from..*to).contains(&record.start.get()));
            if let Some((from, _)) = of {
                add(ours.get_mut(from).unwrap(), record);
            }
        });
        let mut blocks = 0;
        for (from, to) in &summaries {
            let file = cluster.pg_wal().join(format!("summaries/00000001{from:016X}{to:016X}.summary"));
            let (ours, theirs) = (&ours[from], theirs(&program, &file));
            blocks += theirs.values().map(|changed| changed.blocks.len()).sum::<usize>();
            let what = format!("PostgreSQL {version}, {} to {}", Lsn::new(*from), Lsn::new(*to));
            for (file, changed) in &theirs {
                assert_eq!(ours.get(file), Some(changed), "{what}: {file:?} is not what pg_walsummary lists");
            }
            let more: Vec<_> =
                ours.iter().filter(|(file, changed)| !theirs.contains_key(*file) && **changed != Changed::default()).collect();
            assert!(more.is_empty(), "{what}: more than pg_walsummary lists: {more:?}");
        }
        assert!(blocks > 500 && summaries.len() > 2, "PostgreSQL {version}: {blocks} blocks in {} summaries", summaries.len());
        eprintln!("PostgreSQL {version}: {blocks} blocks in {} summaries as pg_walsummary's", summaries.len());
        cluster.stop(walkeep_tests::Stop::Fast);
    }
}
