//! A psql that stays open.

use std::io::{BufRead, BufReader, Write};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};

use anyhow::{Context, Result};

use crate::process;

/// One database session, closed when dropped (which rolls an open transaction back).
#[derive(Debug)]
pub struct Session {
    child: Child,
    input: ChildStdin,
    output: BufReader<ChildStdout>,
}

impl Session {
    pub(super) fn open(mut psql: Command) -> Result<Self> {
        psql.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::inherit());
        let mut child = process::spawn(psql)?;
        let input = child.stdin.take().context("psql's input is a pipe")?;
        let output = BufReader::new(child.stdout.take().context("psql's output is a pipe")?);
        Ok(Self { child, input, output })
    }

    /// Runs SQL and returns what it printed. An error of SQL's goes to standard error and leaves the session open.
    #[track_caller]
    pub fn sql(&mut self, query: &str) -> String {
        self.send(query);
        self.finish()
    }

    /// Sends SQL and does not wait: for a statement that blocks. [`Session::finish`] waits.
    #[track_caller]
    pub fn send(&mut self, query: &str) {
        writeln!(self.input, "{query};\n\\echo {END}").and_then(|()| self.input.flush()).expect("psql reads");
    }

    /// Waits for what was sent and returns what it printed.
    #[track_caller]
    pub fn finish(&mut self) -> String {
        let mut text = String::new();
        loop {
            let mut line = String::new();
            let read = self.output.read_line(&mut line).expect("psql writes text");
            assert!(read > 0, "the session ended; so far: {text}");
            if line.trim_end() == END {
                text.truncate(text.trim_end_matches('\n').len());
                return text;
            }
            text.push_str(&line);
        }
    }
}

const END: &str = "--end-of-answer--";

impl Drop for Session {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
