//! A shell that takes one command after the other, as an operator's does: variables and the folder stay.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, Stdio};

use walkeep_tests::{Output, Scratch};

pub struct Shell {
    child: Child,
    input: ChildStdin,
    folder: PathBuf,
    next: u32,
}

/// A command that the shell is at.
pub struct Begun {
    file: PathBuf,
}

impl Shell {
    /// `command` is bash, with its environment and folder; what it is given and says lies below `folder`.
    #[track_caller]
    pub fn start(mut command: Command, folder: PathBuf) -> Self {
        let mut child = command.stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::null()).spawn().expect("start bash");
        let input = child.stdin.take().expect("its input is a pipe");
        Self { child, input, folder, next: 1 }
    }

    /// Begins a command. `answer` is typed in a terminal, where the command asks; without one there is no terminal.
    #[track_caller]
    pub fn begin(&mut self, text: &str, answer: Option<&str>, scratch: &Scratch) -> Begun {
        let file = self.folder.join(self.next.to_string());
        self.next += 1;
        scratch.write(&file, format!("{text}\n"), 0o644);
        let at = |end: &str| file.with_extension(end).display().to_string();
        let line = match answer {
            None => format!(". {} > {} 2> {} < /dev/null", file.display(), at("out"), at("err")),
            // The terminal keeps the answer until it is read; its end would be the end of the terminal, so the pipe stays open for writing.
            Some(answer) => format!(
                "mkfifo {keys}; exec 9<> {keys}; echo {answer} >&9; script -qec 'bash {}' /dev/null <&9 > {} 2> {}",
                file.display(),
                at("out"),
                at("err"),
                keys = at("keys")
            ),
        };
        let line = format!("{line}; echo $? > {code}.new; mv {code}.new {code}\n", code = at("code"));
        self.input.write_all(line.as_bytes()).expect("bash reads");
        Begun { file }
    }

    /// Whether it has ended by itself, as by `exit` or `set -e`.
    pub fn has_ended(&mut self) -> bool {
        self.child.try_wait().expect("a child can be waited for").is_some()
    }
}

impl Begun {
    /// How it ended, if it has.
    pub fn ended(&self) -> Option<Output> {
        let text = |end: &str| String::from_utf8_lossy(&std::fs::read(self.file.with_extension(end)).unwrap_or_default()).into_owned();
        let code = text("code").trim().parse().ok()?;
        Some(Output { code: Some(code), stdout: text("out"), stderr: text("err") })
    }
}

impl Drop for Shell {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Ends the servers that commands started (`pg_ctl start` leaves them behind) once it is dropped, or the test process is killed.
pub struct Keeper(Child);

impl Keeper {
    /// Of data directories in or just below these folders.
    #[track_caller]
    pub fn of(folders: &[&Path]) -> Self {
        use std::os::unix::process::CommandExt;
        // The second look is for what was about to start. A server of the harness's own is a zombie until that has seen its end.
        let script = r#"cat > /dev/null
            for look in 1 2; do
              find "$@" -maxdepth 3 -name postmaster.pid 2> /dev/null | while read -r file; do
                pid=$(head -n 1 "$file"); kill -s QUIT "$pid" 2> /dev/null || continue
                for wait in $(seq 500); do grep -qs '^State:.*[DRS] ' "/proc/$pid/status" || break; sleep 0.02; done
              done
            done"#;
        let mut keeper = Command::new("sh");
        keeper.args(["-c", script, "sh"]).args(folders).stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::null());
        Self(keeper.process_group(0).spawn().expect("start sh"))
    }
}

impl Drop for Keeper {
    fn drop(&mut self) {
        drop(self.0.stdin.take());
        let _ = self.0.wait();
    }
}
