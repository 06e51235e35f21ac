//! What the documents say to type works: README, the runbook, the restore by hand and the migration from other tools. Each command of a block is run as it
//! stands there, by a shell, against the state that its section speaks of; what the document promises beside it is asserted. What is not run is named, with
//! the reason. Words between backticks are held against the command line.

mod accidents;
mod by_hand;
mod corrupted;
mod damage;
mod drill;
mod full;
mod here;
mod host;
mod keeping;
mod migration;
mod not_run;
mod primaries;
mod quick_start;
mod ransomware;
mod said;
mod services;
mod shell;
mod slot;
mod spans;
mod stage;
mod text;

use std::collections::BTreeSet;

use not_run::NOT_RUN;
use stage::Place;
use text::{DOCUMENTS, Document};

/// What each story runs. [`stage::Stage::end`] sees to it that it does.
const STORIES: &[&[Place]] = &[
    &accidents::DROPPED,
    &accidents::DEPLOYED,
    &accidents::MIGRATED,
    &by_hand::PAGE,
    &by_hand::README_SAYS,
    &corrupted::PLACES,
    &damage::PLACES,
    &drill::PLACES,
    &host::HOST,
    &host::REGION,
    &keeping::LET_GO,
    &keeping::ARTIFACTS,
    &keeping::AUDIT,
    &keeping::ENCRYPTED,
    &keeping::TOLD,
    &migration::SWITCH,
    &migration::GAP,
    &primaries::PLACES,
    &quick_start::LOCAL,
    &quick_start::S3,
    &ransomware::DELETED,
    &ransomware::FROZEN,
    &services::PLACES,
    &slot::PLACES,
];

fn shell_blocks() -> Vec<text::Block> {
    DOCUMENTS.map(Document::read).into_iter().flat_map(|document| document.blocks).filter(text::Block::is_shell).collect()
}

/// Each command is run by a story, or the reason why it is not is said; and nothing is said of what is not there.
#[test]
fn every_command_is_run_or_argued_about() {
    let run: BTreeSet<Place> = STORIES.concat().into_iter().collect();
    assert_eq!(run.len(), STORIES.concat().len(), "a block is run by two stories");
    let (mut wrong, mut there, mut argued) = (Vec::new(), BTreeSet::new(), BTreeSet::new());
    for block in shell_blocks() {
        let place = run.iter().find(|(file, section, number)| (*file, *section, *number) == (block.file, &block.section, block.number));
        there.extend(place);
        for command in block.commands() {
            let reason = NOT_RUN.iter().position(|(file, begins, _)| *file == block.file && command.text.starts_with(begins));
            argued.extend(reason);
            if place.is_none() && reason.is_none() {
                wrong.push(format!(
                    "{}:{}, {:?}: no story runs {:?}, and nobody says why",
                    block.file, command.line, block.section, command.text
                ));
            }
        }
    }
    wrong.extend(run.difference(&there).map(|place| format!("a story runs {place:?}, which is not there")));
    let unknown = (0..NOT_RUN.len()).filter(|index| !argued.contains(index)).map(|index| NOT_RUN[index]);
    wrong.extend(unknown.map(|(file, begins, _)| format!("{file} has no command {begins:?}, of which is said why it is not run")));
    wrong.extend(NOT_RUN.iter().filter(|(.., reason)| reason.split(' ').count() < 4).map(|entry| format!("{entry:?} has no reason")));
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

/// Links and pictures lead to files of the source tree.
#[test]
fn what_they_link_to_is_there() {
    let mut links = 0;
    for document in DOCUMENTS.map(Document::read) {
        let folder = text::path(document.file).parent().unwrap().to_owned();
        for prose in &document.prose {
            let targets = prose.text.split("](").skip(1).filter_map(|rest| rest.split_once(')')).map(|(target, _)| target);
            for file in targets
                .filter(|target| !target.starts_with("http") && !target.starts_with('#'))
                .map(|target| target.split('#').next().unwrap())
            {
                links += 1;
                assert!(folder.join(file).exists(), "{}:{}: {file} is not there", document.file, prose.line);
            }
        }
    }
    assert!(links > 10, "{links}");
}

/// What is typed stands in blocks of the language `sh`, where it is looked for.
#[test]
fn no_other_block_has_commands() {
    const TYPED: [&str; 12] =
        ["walkeep", "sudo", "psql", "pg_ctl", "systemctl", "journalctl", "aws", "curl", "make", "cargo", "pgbackrest", "./by-hand.py"];
    let blocks = DOCUMENTS.map(Document::read).into_iter().flat_map(|document| document.blocks).filter(|block| !block.is_shell());
    for block in blocks {
        for line in block.text.lines() {
            let first = line.trim_start_matches("$ ").split_whitespace().next().unwrap_or_default();
            assert!(
                !TYPED.contains(&first),
                "{}:{}: a block of {:?} has the command {line:?}: make it sh",
                block.file,
                block.line,
                block.language
            );
        }
    }
}
