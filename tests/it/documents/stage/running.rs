//! Commands of a block, one after the other, as they stand there.

use std::collections::VecDeque;

use walkeep_tests::{user, wait_for};

use super::super::not_run;
use super::super::said::{Said, matches};
use super::super::shell::{Begun, Shell};
use super::super::text::{Block, Command};
use super::{Open, PATIENCE, Place, Stage};

impl Stage {
    /// Goes to a block; the one before must have been run to its end.
    #[track_caller]
    pub fn open(&mut self, (file, section, number): Place) {
        self.close();
        let at = self.expected.iter().position(|place| *place == (file, section, number));
        self.expected.remove(at.unwrap_or_else(|| panic!("the story says that it runs {:?}", (file, section, number))));
        let block = self.documents[file].block(section, "sh", number).clone();
        let rest = block.commands().into_iter().filter(|command| not_run::reason(file, &command.text).is_none()).collect();
        self.open = Some(Open { block, rest, shell: self.shell(), last: String::new() });
    }

    /// The next command, which begins so, must end with 0.
    #[track_caller]
    pub fn run(&mut self, begins: &str) -> Said {
        self.ends(0, begins, "it works")
    }

    /// The next command, which begins so, must end with this code, because ...
    #[track_caller]
    pub fn ends(&mut self, code: i32, begins: &str, because: &str) -> Said {
        let command = self.next(begins);
        let text = self.translated(&command.text);
        self.carry_out(&command, &text, None, code, because)
    }

    /// The next command asks in a terminal, and is answered.
    #[track_caller]
    pub fn answered(&mut self, answer: &str, begins: &str) -> Said {
        let command = self.next(begins);
        let text = self.translated(&command.text);
        self.carry_out(&command, &text, Some(answer), 0, "it works")
    }

    /// The next command again and again, as the text beside it says, until this is so.
    #[track_caller]
    pub fn until(&mut self, begins: &str, is_so: impl Fn(&Said) -> bool) -> Said {
        let command = self.next(begins);
        let text = self.translated(&command.text);
        wait_for(begins, PATIENCE, || Some(self.carry_out(&command, &text, None, 0, "it works")).filter(&is_so))
    }

    /// The next command, whichever it is; false where none is left.
    #[track_caller]
    pub fn run_next(&mut self) -> bool {
        let is_left = self.open.as_ref().is_some_and(|open| !open.rest.is_empty());
        if is_left {
            self.run("");
        }
        is_left
    }

    /// The next command cannot be run on this machine; a line says so.
    #[track_caller]
    pub fn skip(&mut self, begins: &str, why: &str) {
        let command = self.next(begins);
        eprintln!("SKIPPED {}: {why}", command.text);
    }

    /// A block that the story has run by other means: a script that a server runs.
    #[track_caller]
    pub fn ran(&mut self, place: Place) {
        self.open(place);
        self.open.as_mut().expect("a block is open").rest.clear();
    }

    /// What a section has between backticks.
    pub fn spans(&self, file: &str, section: &str) -> Vec<String> {
        self.documents[file].prose_of(section).split('`').skip(1).step_by(2).map(str::to_owned).collect()
    }

    /// The last command without a part of it, which the section speaks of; it may fail.
    #[track_caller]
    pub fn without(&mut self, part: &str, code: i32) -> Said {
        let open = self.open.as_ref().expect("a block is open");
        let begin = open.last.find(part).unwrap_or_else(|| panic!("{:?} has no {part:?}", open.last));
        let behind = &open.last[begin + part.len()..];
        // The option's value too, which is in quotes.
        let text = format!("{}{}", &open.last[..begin], behind.splitn(3, '\'').last().unwrap_or_default());
        let command = Command { line: open.block.line, text: text.clone() };
        self.carry_out(&command, &text, None, code, "the section says so")
    }

    /// What a section quotes is said in `text`, a log for example, whatever the numbers.
    #[track_caller]
    pub fn promised(&self, file: &str, section: &str, quote: &str, text: &str) {
        assert!(self.documents[file].prose_of(section).contains(quote), "{file}, {section:?} does not have {quote:?} any more");
        assert!(matches(text, quote), "{file}, {section:?} promises {quote:?}:\n{text}");
    }

    /// The last command once more, with these variables: on another host, say.
    #[track_caller]
    pub fn again(&mut self, code: i32, variables: &[(String, String)], because: &str) -> Said {
        let open = self.open.as_ref().expect("a block is open");
        let command = Command { line: open.block.line, text: open.last.clone() };
        let set: String = variables.iter().map(|(name, value)| format!("export {name}='{value}'; ")).collect();
        let text = format!("({set}{}\n)", open.last);
        self.carry_out(&command, &text, None, code, because)
    }

    /// A command that the prose of a section has between backticks; it must end with 0.
    #[track_caller]
    pub fn inline(&mut self, file: &'static str, section: &str, span: &str) -> Said {
        self.inline_ends(0, file, section, span)
    }

    /// The same with another code, which the prose names.
    #[track_caller]
    pub fn inline_ends(&mut self, code: i32, file: &'static str, section: &str, span: &str) -> Said {
        self.close();
        assert!(self.documents[file].prose_of(section).contains(&format!("`{span}`")), "{file}, {section:?} does not have {span:?}");
        let text = format!("{span}\n");
        let block = Block { file, section: section.to_owned(), number: 0, line: 0, language: "sh".to_owned(), text };
        self.open = Some(Open { block, rest: VecDeque::new(), shell: self.shell(), last: String::new() });
        let line = self.documents[file].spans().iter().find(|found| found.text == span).map_or(0, |found| found.line);
        let command = Command { line, text: span.to_owned() };
        let text = self.translated(span);
        self.carry_out(&command, &text, None, code, "the prose says so")
    }

    fn shell(&mut self) -> Shell {
        self.shells += 1;
        let mut bash = user::command("bash");
        bash.args(["--noprofile", "--norc"]).envs(self.environment()).current_dir(self.work());
        Shell::start(bash, self.desk.dir(format!("said/{}", self.shells)))
    }

    #[track_caller]
    fn next(&mut self, begins: &str) -> Command {
        let open = self.open.as_mut().expect("a block is open");
        let file = open.block.file;
        let command =
            open.rest.pop_front().unwrap_or_else(|| panic!("{file}, {:?}: no command is left, but {begins:?}", open.block.section));
        assert!(command.text.starts_with(begins), "{file}:{}: {:?} where the story has {begins:?}", command.line, command.text);
        command
    }

    #[track_caller]
    fn carry_out(&mut self, command: &Command, text: &str, answer: Option<&str>, code: i32, because: &str) -> Said {
        let open = self.open.as_mut().expect("a block is open");
        let place = format!("{}:{}: {}", open.block.file, command.line, command.text);
        let begun: Begun = open.shell.begin(text, answer, &self.desk);
        open.last = text.to_owned();
        let output = wait_for(&place, PATIENCE, || {
            self.serve();
            begun.ended().or_else(|| {
                let has_ended = self.open.as_mut().is_some_and(|open| open.shell.has_ended());
                assert!(!has_ended, "{place}: the shell ended");
                None
            })
        });
        let ended = format!("{place}\nwas run as {text}\nand ended with {:?} where {code} was expected ({because}):", output.code);
        assert!(output.code == Some(code), "{ended}\n{}{}", output.stdout, output.stderr);
        let block = &self.open.as_ref().expect("a block is open").block;
        Said { place, prose: self.documents[block.file].prose_of(&block.section), output }
    }

    #[track_caller]
    fn close(&mut self) {
        if let Some(Open { block, rest, .. }) = self.open.take() {
            assert!(rest.is_empty(), "{}, {:?}: not run: {rest:?}", block.file, block.section);
        }
    }

    /// The story is over: every block of its was run, and every meaning of its was needed.
    #[track_caller]
    pub fn end(mut self) {
        self.close();
        assert!(self.expected.is_empty(), "not run: {:?}", self.expected);
        assert!(self.unused.is_empty(), "no command had {:?}", self.unused);
    }
}
