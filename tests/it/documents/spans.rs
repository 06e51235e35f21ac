//! Commands between backticks: Walkeep knows each of them, and each of their options.

use std::collections::{BTreeMap, BTreeSet};

use walkeep_tests::user;
use walkeep_tests::walkeep::{binary, run};

use super::text::{Document, README};

/// Every document with commands for a reader.
const ALL: [&str; 10] = [
    README,
    "ARCHITECTURE.md",
    "packaging/README.md",
    super::text::RUNBOOK,
    super::text::BY_HAND,
    super::text::MIGRATION,
    "packaging/comparison.md",
    "packaging/kubernetes.md",
    "packaging/patroni.md",
    "packaging/sizing.md",
];

/// No person types these: one process of Walkeep's starts another so.
const HIDDEN: [&str; 2] = ["fetch-service", "scratch-watch"];

/// What `--help` tells: the options of each command, by its words (`wal push`); the empty one's are those of all.
struct Help(BTreeMap<String, BTreeSet<String>>);

impl Help {
    fn read() -> Self {
        let mut help = Self(BTreeMap::new());
        help.add("walkeep", &[]);
        for hidden in HIDDEN {
            help.add("walkeep", &[hidden]);
        }
        for shim in ["walkeep-archive-cmd", "walkeep-restore-cmd"] {
            let shown = run(user::command(binary(shim)).arg("--help")).expect_code(0).stdout;
            help.0.insert(shim.to_owned(), options(&shown));
        }
        help
    }

    fn add(&mut self, program: &str, words: &[&str]) {
        let shown = run(user::command(binary(program)).args(words).arg("--help")).expect_code(0).stdout;
        self.0.insert(words.join(" "), options(&shown));
        let (_, listed) = shown.split_once("\nCommands:\n").unwrap_or_default();
        let listed = listed.lines().take_while(|line| !line.is_empty());
        // What goes on from the line before stands further to the right.
        let below =
            listed.filter(|line| line.starts_with("  ") && !line.starts_with("   ")).filter_map(|line| line.split_whitespace().next());
        for name in below.filter(|name| *name != "help").map(str::to_owned).collect::<Vec<_>>() {
            self.add(program, &[words, &[&name]].concat());
        }
    }

    /// What is wrong with a command line of Walkeep's: a word that is no command, an option that it does not have.
    fn objection(&self, line: &str) -> Option<String> {
        let mut words = line.split_whitespace().map(|word| word.trim_matches(['[', ']', '(', ')', '.', ',', '\'', '"']));
        let mut command = match words.next()? {
            "walkeep" => String::new(),
            shim => shim.to_owned(),
        };
        let mut is_value = false;
        for word in words {
            let (option, has_value) = word.split_once('=').map_or((word, false), |(option, _)| (option, true));
            if let Some(long) = option.strip_prefix("--") {
                if !self.0[&command].contains(long) {
                    return Some(format!("`{command}` has no --{long}"));
                }
                is_value = command.is_empty() && !has_value;
            } else if std::mem::take(&mut is_value) || word.is_empty() {
            } else if let Some(longer) = [format!("{command} {word}"), word.to_owned()]
                .into_iter()
                .find(|longer| self.0.contains_key(longer) && (command.is_empty() || longer.starts_with(&command)))
            {
                command = longer;
            } else if command.is_empty() && !is_placeholder(word) {
                return Some(format!("there is no command {word}"));
            } else if command.is_empty() {
                return None;
            }
        }
        None
    }
}

fn is_placeholder(word: &str) -> bool {
    word.chars().all(|character| !character.is_lowercase())
}

fn options(help: &str) -> BTreeSet<String> {
    let lines = help.lines().map(str::trim_start).filter(|line| line.starts_with('-'));
    let words = lines.flat_map(|line| line.split([' ', ',', '=', '[']));
    words.filter_map(|word| word.strip_prefix("--")).filter(|word| !word.is_empty()).map(str::to_owned).collect()
}

/// The command lines of Walkeep's in a span: behind what changes the user or sets variables, one for each of several.
fn lines(span: &str) -> Vec<String> {
    let mut found = Vec::new();
    // A line of pg_ident.conf.
    if span.contains("  ") {
        return found;
    }
    for part in span.split(" | ").flat_map(|part| part.split("&&")).flat_map(|part| part.split(';')) {
        let words: Vec<&str> = part.split_whitespace().collect();
        let is_before = |word: &&&str| word.contains('=') || ["sudo", "-u", "postgres", "env", "$"].contains(*word);
        let from = words.iter().take_while(is_before).count();
        if words.get(from).is_some_and(|word| ["walkeep", "walkeep-archive-cmd", "walkeep-restore-cmd"].contains(word))
            && words.len() > from + 1
        {
            found.push(words[from..].join(" "));
        }
    }
    found
}

#[test]
fn what_is_between_backticks_is_accepted_by_the_command_line() {
    let help = Help::read();
    assert!(help.0.len() > 35 && help.0["wal push"].contains("config") && help.0["restore"].contains("thaw-days"), "{:?}", help.0.keys());
    let (mut looked_at, mut wrong) = (0, Vec::new());
    for document in ALL.map(Document::read) {
        for span in document.spans() {
            // `restore --thaw` is said of a command too; `--thaw` alone only of what stands before it.
            let is_ours = ![super::text::MIGRATION, "packaging/comparison.md"].contains(&document.file);
            let of_a_command =
                is_ours && help.0.contains_key(span.text.split_whitespace().next().unwrap_or_default()) && span.text.contains(" --");
            let spoken = if of_a_command { vec![format!("walkeep {}", span.text)] } else { lines(&span.text) };
            for line in spoken {
                looked_at += 1;
                wrong.extend(help.objection(&line).map(|why| format!("{}:{}: `{}`: {why}", document.file, span.line, span.text)));
            }
        }
    }
    assert!(looked_at > 150, "only {looked_at} were found");
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

/// README's table of commands has each that there is, and README each of its options.
#[test]
fn the_table_of_commands_has_all_of_them() {
    let help = Help::read();
    let readme = Document::read(README);
    let rows = readme.prose.iter().filter(|prose| prose.section == "Commands" && prose.text.starts_with("| `"));
    let named: Vec<String> = rows.map(|prose| prose.text.replace("\\|", "|")).collect();
    let everywhere = std::fs::read_to_string(super::text::path(README)).unwrap();
    for (command, options) in &help.0 {
        let Some(first) =
            command.split(' ').next().filter(|first| !first.is_empty() && !first.starts_with("walkeep-") && !HIDDEN.contains(first))
        else {
            continue;
        };
        assert!(named.iter().any(|row| row.contains(&format!("`{first}")) || row.contains(&format!("{first} "))), "no row has `{command}`");
        for option in options.iter().filter(|option| !["help", "version"].contains(&option.as_str())) {
            assert!(everywhere.contains(&format!("--{option}")), "README does not have --{option} of `{command}`");
        }
    }
}

/// What would be wrong is seen to be.
#[test]
fn a_wrong_word_is_found() {
    let help = Help::read();
    let wrong = |line: &str| lines(line).iter().find_map(|line| help.objection(line));
    assert_eq!(wrong("sudo -u postgres walkeep restore --to DIR --delta && psql -c x"), None);
    assert_eq!(wrong("walkeep --cluster main wal push PATH"), None);
    assert_eq!(wrong("walkeep COMMAND --help"), None);
    assert_eq!(wrong("walkeep restore --too DIR").as_deref(), Some("`restore` has no --too"));
    assert_eq!(wrong("X=1 walkeep lease take --forced").as_deref(), Some("`lease take` has no --forced"));
    assert_eq!(wrong("walkeep restor --to DIR").as_deref(), Some("there is no command restor"));
}
