//! All processes of a command end when it is given up, and when this program is killed.
//!
//! Its process group is known by its number; whoever left that, by a variable in the environment, which is inherited. The watcher, a shell that waits for
//! the end of its input, ends both: a kill -9 leaves nobody else to do it.

use std::io::{PipeWriter, Write};
use std::process::Stdio;

use anyhow::{Context, Result};
use rustix::process::{Pid, Signal, kill_process_group};
use tokio::process::{Child, Command};

use crate::writer;

/// The variable, with a word of chance.
pub const MARK: &str = "WALKEEP_RUN";

/// At the end of its input without `ended`: again and again, as one that is killed may just have begun another.
const WATCH: &str = r#"
trap '' HUP INT TERM
while read -r word value; do
    case $word in
        group) group=$value ;;
        ended) exit 0 ;;
    esac
done
tries=0
[ -z "$group" ] || kill -KILL "-$group"
while [ $tries -lt 50 ]; do
    found=$(grep -lsF -- "$1" /proc/[0-9]*/environ)
    [ -n "$found" ] || exit 0
    for path in $found; do
        pid=${path#/proc/}
        kill -KILL "${pid%/environ}"
    done
    tries=$((tries + 1))
    sleep 0.1
done
"#;

/// The processes of one command. Dropped before it has ended, all of them are killed.
pub struct Processes {
    mark: String,
    group: Option<Pid>,
    watcher: Option<(PipeWriter, Child)>,
}

impl Processes {
    /// Before the command is started.
    pub fn watched() -> Result<Self> {
        let mark = writer::random_id()?;
        let watcher =
            watch(&mark).inspect_err(|error| tracing::warn!(error = format!("{error:#}"), "nobody ends a command if walkeep is killed"));
        Ok(Self { mark, group: None, watcher: watcher.ok() })
    }

    /// The value of [`MARK`].
    pub fn mark(&self) -> &str {
        &self.mark
    }

    /// It was started, in a process group of its own.
    pub fn begun(&mut self, child: &Child) {
        self.group = child.id().and_then(|id| Pid::from_raw(i32::try_from(id).ok()?));
        if let Some(group) = self.group {
            self.tell(&format!("group {}", group.as_raw_nonzero()));
        }
    }

    /// It has ended by itself, and its group's number may be another's from now on.
    pub fn ended(&mut self) {
        self.group = None;
        self.tell("ended");
    }

    fn tell(&mut self, line: &str) {
        if let Some((to, _)) = &mut self.watcher {
            // One that somebody killed hears nothing.
            let _ = writeln!(to, "{line}");
        }
    }
}

impl Drop for Processes {
    fn drop(&mut self) {
        if let Some(group) = self.group {
            // Whoever of them has gone already needs no signal.
            let _ = kill_process_group(group, Signal::KILL);
        }
    }
}

fn watch(mark: &str) -> Result<(PipeWriter, Child)> {
    let (reader, writer) = std::io::pipe().context("make a pipe")?;
    let mut command = Command::new("/bin/sh");
    command.args(["-c", WATCH, "walkeep-watch"]).arg(format!("{MARK}={mark}"));
    command.env_clear().envs(std::env::var_os("PATH").map(|path| ("PATH", path))).current_dir("/").process_group(0);
    command.stdin(reader).stdout(Stdio::null()).stderr(Stdio::null());
    Ok((writer, command.spawn().context("start /bin/sh")?))
}
