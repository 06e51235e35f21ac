//! The documents, taken apart: sections, fenced blocks, and the commands in them.

use std::path::PathBuf;
use std::process::Command as Program;

pub const README: &str = "README.md";
pub const RUNBOOK: &str = "packaging/runbook.md";
pub const BY_HAND: &str = "packaging/by-hand.md";
pub const MIGRATION: &str = "packaging/migration.md";

/// Those whose commands are run.
pub const DOCUMENTS: [&str; 4] = [README, RUNBOOK, BY_HAND, MIGRATION];

/// A fenced block.
#[derive(Debug, Clone)]
pub struct Block {
    pub file: &'static str,
    pub section: String,
    /// Among the blocks of its language in its section, from 1 on.
    pub number: usize,
    /// Of its first line.
    pub line: usize,
    /// `sh`, `toml`, ...; nothing where the fence has none.
    pub language: String,
    pub text: String,
}

/// A command of a block: as many lines as the shell wants.
#[derive(Debug, Clone)]
pub struct Command {
    pub line: usize,
    pub text: String,
}

/// A line of prose, and the section that it is in.
pub struct Prose {
    pub line: usize,
    pub section: String,
    pub text: String,
}

/// A document without its headings.
pub struct Document {
    pub file: &'static str,
    pub blocks: Vec<Block>,
    pub prose: Vec<Prose>,
}

/// A file of the source tree.
pub fn path(file: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("..").join(file)
}

impl Document {
    #[track_caller]
    pub fn read(file: &'static str) -> Self {
        Self::parse(file, &std::fs::read_to_string(path(file)).unwrap())
    }

    fn parse(file: &'static str, text: &str) -> Self {
        let mut document = Self { file, blocks: Vec::new(), prose: Vec::new() };
        let (mut section, mut open) = (String::new(), None::<(Block, usize)>);
        for (line, text) in (1..).zip(text.lines()) {
            let trimmed = text.trim_start();
            match (&mut open, trimmed.strip_prefix("```")) {
                (None, Some(language)) => {
                    let same = document.blocks.iter().filter(|block| block.section == section && block.language == language);
                    let number = same.count() + 1;
                    let block = Block {
                        file,
                        section: section.clone(),
                        number,
                        line: line + 1,
                        language: language.to_owned(),
                        text: String::new(),
                    };
                    open = Some((block, text.len() - trimmed.len()));
                }
                (Some(_), Some(_)) => document.blocks.extend(open.take().map(|(block, _)| block)),
                (Some((block, indent)), None) => {
                    block.text.push_str(text.get(*indent..).unwrap_or_default());
                    block.text.push('\n');
                }
                (None, None) if text.starts_with('#') => section = text.trim_start_matches('#').trim().to_owned(),
                (None, None) => document.prose.push(Prose { line, section: section.clone(), text: text.to_owned() }),
            }
        }
        assert!(open.is_none(), "{file}: a block has no end");
        document
    }

    /// The prose of a section in one line.
    pub fn prose_of(&self, section: &str) -> String {
        let lines = self.prose.iter().filter(|prose| prose.section == section).map(|prose| prose.text.trim());
        lines.collect::<Vec<_>>().join(" ")
    }

    /// A block, by its section, its language and its number there.
    #[track_caller]
    pub fn block(&self, section: &str, language: &str, number: usize) -> &Block {
        let is_it = |block: &&Block| block.section == section && block.language == language && block.number == number;
        self.blocks.iter().find(is_it).unwrap_or_else(|| panic!("{}, {section:?} has no block {number} of {language:?}", self.file))
    }

    /// Commands between backticks, each with its line.
    pub fn spans(&self) -> Vec<Command> {
        let (mut spans, mut open, mut before) = (Vec::new(), None::<Command>, 0);
        for Prose { line, text, .. } in &self.prose {
            // None goes on over a block or an empty line.
            if text.is_empty() || *line != before + 1 {
                open = None;
            }
            before = *line;
            // In tables a bar that is none of the table's has a backslash.
            for (index, piece) in text.replace("\\|", "|").split('`').enumerate() {
                if index > 0 {
                    match open.take() {
                        Some(span) => spans.push(span),
                        None => open = Some(Command { line: *line, text: String::new() }),
                    }
                }
                if let Some(span) = &mut open {
                    span.text.push_str(piece);
                }
            }
            open.iter_mut().for_each(|span| span.text.push(' '));
        }
        spans
    }
}

impl Block {
    /// Whether it is for a shell.
    pub fn is_shell(&self) -> bool {
        self.language == "sh"
    }

    /// Its commands, without lines that are comments alone. A script, which begins with `#!`, is one.
    #[track_caller]
    pub fn commands(&self) -> Vec<Command> {
        if self.text.starts_with("#!") {
            return vec![Command { line: self.line, text: self.text.clone() }];
        }
        let mut commands = Vec::new();
        let mut pending: Option<Command> = None;
        for (line, text) in (self.line..).zip(self.text.lines()) {
            let command = pending.get_or_insert_with(|| Command { line, text: String::new() });
            command.text.push_str(text);
            if is_complete(&command.text) {
                commands.extend(pending.take());
            } else {
                command.text.push('\n');
            }
        }
        assert!(pending.is_none(), "{}:{}: no shell takes {:?}", self.file, self.line, pending);
        commands.retain(|command| !command.text.trim().is_empty() && !command.text.starts_with('#'));
        commands
    }
}

/// Whether a shell would begin to carry it out.
fn is_complete(text: &str) -> bool {
    !text.ends_with('\\') && Program::new("bash").args(["-nc", text]).output().expect("bash is here").status.success()
}

/// A document is taken apart as a reader would: fences in lists too, headings of shells are none, a loop is one command.
#[test]
fn a_document_is_taken_apart() {
    let text = "# One\nwith `a b`\n\n```sh\nx 1   # why\nfor i in 1; do\n  y\ndone\n```\n## Two\n1. Do:\n\n   ```sh\n   # not this\n   z 'a\n   b'\n   ```\n";
    let document = Document::parse(README, text);
    let commands = |block: &Block| block.commands().into_iter().map(|command| (command.line, command.text)).collect::<Vec<_>>();
    let [first, second] = &document.blocks[..] else { panic!("{:?}", document.blocks) };
    assert_eq!(commands(first), [(5, "x 1   # why".to_owned()), (6, "for i in 1; do\n  y\ndone".to_owned())]);
    assert_eq!((second.section.as_str(), commands(second)), ("Two", vec![(15, "z 'a\nb'".to_owned())]));
    assert_eq!(document.spans().iter().map(|span| (span.line, span.text.as_str())).collect::<Vec<_>>(), [(2, "a b")]);
    assert_eq!(document.prose_of("One"), "with `a b` ");
}
