//! What a command prints. It has a clean environment, no input, processes that all end when it is given up, and no say in what is recorded but the end of
//! its standard error.

use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use bytes::Bytes;
use tokio::io::{AsyncRead, AsyncReadExt};
use tokio::process::{Child, Command};
use tokio::task::JoinHandle;
use walkeep_core::identifier::printable;

use super::flow::{Ended, Flow, Source};
use super::processes::{MARK, Processes};
use crate::config::Secret;

/// Bytes read at a time.
const CHUNK: usize = 256 << 10;
/// The end of standard error that is kept.
const TAIL: usize = 4 << 10;
/// A command that has ended may have left processes behind which hold its output; that ends within this time, or is not all.
const LEFT: Duration = Duration::from_secs(5);
/// What a command gets of the agent's environment, which has keys and passwords that are none of its business.
const PASSED_ON: [&str; 9] = ["PATH", "HOME", "USER", "LOGNAME", "LANG", "LC_ALL", "TZ", "TMPDIR", "SHELL"];
/// Shorter values may be parts of words.
const SECRET: usize = 4;

/// A command.
#[derive(Debug, Clone)]
pub struct Call {
    /// The program and its arguments.
    pub argv: Vec<String>,
    /// Variables beside those that every command gets. Their values are told to nobody.
    pub environment: Vec<(String, Secret)>,
    /// More of them that are no secrets.
    pub open: Vec<(String, String)>,
}

impl Call {
    /// Starts it; what it prints is the stream.
    pub fn start(self) -> Result<Flow> {
        let mut processes = Processes::watched()?;
        let mut child = self.spawn(Stdio::piped(), &mut processes)?;
        let stdout = child.stdout.take().context("the command's output")?;
        Ok(Flow::of(|source| async move {
            let said = self.stderr(&mut child);
            let copied = tokio::select! {
                copied = copy(stdout, &mut child, &source) => copied,
                () = source.cancelled.cancelled() => bail!("cancelled"),
            };
            copied?;
            let status = tokio::select! {
                status = child.wait() => status.context("wait for the command")?,
                () = source.cancelled.cancelled() => bail!("cancelled"),
            };
            processes.ended();
            let said = all_said(said).await?;
            ended(status, &said)?;
            Ok(Ended { stderr: Some(said).filter(|said| !said.is_empty()), ..Ended::default() })
        }))
    }

    /// Runs it to its end; it prints nothing of interest. Dropped, it is ended.
    pub async fn run(self) -> Result<Option<String>> {
        let mut processes = Processes::watched()?;
        let mut child = self.spawn(Stdio::null(), &mut processes)?;
        let said = self.stderr(&mut child);
        let status = child.wait().await.context("wait for the command")?;
        processes.ended();
        let said = all_said(said).await?;
        ended(status, &said)?;
        Ok(Some(said).filter(|said| !said.is_empty()))
    }

    fn spawn(&self, stdout: Stdio, processes: &mut Processes) -> Result<Child> {
        let (program, args) = self.argv.split_first().context("the command has no program")?;
        let mut command = Command::new(program);
        command.args(args).env_clear();
        command.envs(PASSED_ON.iter().filter_map(|name| Some((name, std::env::var_os(name)?))));
        command.envs(self.open.iter().map(|(name, value)| (name, value)));
        command.envs(self.environment.iter().map(|(name, value)| (name, value.reveal())));
        command.env(MARK, processes.mark());
        command.stdin(Stdio::null()).stdout(stdout).stderr(Stdio::piped()).process_group(0).kill_on_drop(true);
        let child = command.spawn().with_context(|| format!("start {}", printable(program)))?;
        processes.begun(&child);
        Ok(child)
    }

    /// The end of what it says, without what must not be told.
    fn stderr(&self, child: &mut Child) -> JoinHandle<String> {
        let stderr = child.stderr.take();
        let secrets: Vec<String> = self.environment.iter().map(|(_, value)| value.reveal().to_owned()).collect();
        tokio::spawn(async move {
            let Some(stderr) = stderr else { return String::new() };
            let said = tail(stderr).await;
            let mut text = String::from_utf8_lossy(&said).into_owned();
            for secret in secrets.iter().filter(|secret| secret.len() >= SECRET) {
                text = text.replace(secret.as_str(), "(not shown)");
            }
            // Behind that: a secret that is cut in two is not known again.
            let from = text.char_indices().map(|(at, _)| at).find(|at| text.len() - at <= TAIL).unwrap_or(text.len());
            text[from..].lines().map(printable).collect::<Vec<_>>().join("\n").trim().to_owned()
        })
    }
}

/// What it said, once nobody can say more.
async fn all_said(mut said: JoinHandle<String>) -> Result<String> {
    match tokio::time::timeout(LEFT, &mut said).await {
        Ok(said) => said.context("read what it says"),
        Err(_) => {
            said.abort();
            Ok("(not known: a process that it left behind still holds its standard error)".to_owned())
        }
    }
}

/// A command that failed, and the end of what it said: rows, queries and keys may be in that, so it is for the log, and for nothing that stays readable.
#[derive(Debug, thiserror::Error)]
#[error("the command ended with {status}{}", if said.is_empty() { " and said nothing".to_owned() } else { format!(": {said}") })]
pub struct CommandFailed {
    status: std::process::ExitStatus,
    said: String,
}

impl CommandFailed {
    /// What may be told to everybody.
    pub fn in_public(&self) -> String {
        format!("the command ended with {}", self.status)
    }
}

fn ended(status: std::process::ExitStatus, said: &str) -> Result<()> {
    match status.success() {
        true => Ok(()),
        false => Err(CommandFailed { status, said: said.to_owned() }.into()),
    }
}

async fn copy(mut stdout: impl AsyncRead + Unpin, child: &mut Child, source: &Source) -> Result<()> {
    loop {
        let mut chunk = Vec::with_capacity(CHUNK);
        let mut room = (&mut stdout).take(CHUNK as u64);
        // Only while something is to be read: that what was read is stored may take as long as it takes.
        let held = async {
            let _ = child.wait().await;
            tokio::time::sleep(LEFT).await;
        };
        let read = tokio::select! {
            biased;
            read = room.read_to_end(&mut chunk) => read.context("read what the command prints")?,
            () = held => bail!("the command has ended, and a process it left behind still holds its output: whether that is all of it nobody knows"),
        };
        if read == 0 {
            return Ok(());
        }
        source.put(Bytes::from(chunk)).await?;
    }
}

async fn tail(mut stderr: impl AsyncRead + Unpin) -> Vec<u8> {
    let (mut said, mut chunk) = (Vec::new(), [0; 1024]);
    // What cannot be read any more is not missed.
    while let Ok(read @ 1..) = stderr.read(&mut chunk).await {
        said.extend_from_slice(&chunk[..read]);
        let more = said.len().saturating_sub(2 * TAIL);
        said.drain(..more);
    }
    said
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn sh(script: &str) -> Call {
        let argv = ["/bin/sh", "-c", script].map(str::to_owned).to_vec();
        Call { argv, environment: vec![("TOKEN".into(), Secret::from("sentinel-1".to_owned()))], open: Vec::new() }
    }

    #[tokio::test]
    async fn what_it_prints_is_the_stream_and_its_secret_is_not_told() {
        let mut flow = sh("printf abc; echo \"using $TOKEN\" >&2; printf def").start().unwrap();
        assert_eq!(&flow.piece().await.unwrap()[..], b"abcdef");
        assert_eq!(flow.ended().await.unwrap().stderr.as_deref(), Some("using (not shown)"));
        let mut flow = sh("env").start().unwrap();
        let env = String::from_utf8(flow.piece().await.unwrap().to_vec()).unwrap();
        assert!(env.contains("TOKEN=sentinel-1") && !env.contains("CARGO"), "{env}");
        flow.ended().await.unwrap();
    }

    #[tokio::test]
    async fn what_fails_says_why() {
        let mut flow = sh("echo half; echo \"$TOKEN\" broke >&2; exit 3").start().unwrap();
        assert_eq!(&flow.piece().await.unwrap()[..], b"half\n");
        let error = flow.ended().await.unwrap_err().to_string();
        assert!(error.contains("exit status: 3") && error.contains("(not shown) broke"), "{error}");
        assert!(sh("yes x | head -c 100000 >&2; exit 1").run().await.unwrap_err().to_string().len() < 2 * TAIL);
        let missing = Call { argv: vec!["/nowhere/x".into()], environment: Vec::new(), open: Vec::new() };
        assert!(missing.start().unwrap_err().to_string().contains("/nowhere/x"));
    }

    #[tokio::test]
    async fn what_holds_its_output_behind_its_end_is_not_waited_for() {
        let mut flow = sh("echo half; sleep 600 &").start().unwrap();
        flow.piece().await.unwrap();
        let error = flow.ended().await.unwrap_err().to_string();
        assert!(error.contains("left behind"), "{error}");
        // Its standard error alone takes nothing from what it printed.
        let mut flow = sh("echo all; sleep 20 > /dev/null &").start().unwrap();
        assert_eq!(&flow.piece().await.unwrap()[..], b"all\n");
        assert!(flow.ended().await.unwrap().stderr.unwrap().contains("left behind"));
    }

    #[tokio::test]
    async fn what_it_printed_may_be_stored_slowly_behind_its_end() {
        // The queue, the chunk in hand and a part of the pipe: it ends while its output still waits to be stored.
        let bytes = (super::super::flow::WAITING + 1) * CHUNK + (32 << 10);
        let mut flow = sh(&format!("head -c {bytes} /dev/zero")).start().unwrap();
        tokio::time::sleep(LEFT + Duration::from_secs(1)).await;
        assert_eq!(flow.piece().await.unwrap().len(), bytes);
        flow.ended().await.unwrap();
    }

    #[tokio::test]
    async fn all_its_processes_end_when_it_is_given_up() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("pid");
        // The second has left its group, and its parent.
        let script = "sleep 600 & echo $! > {0}.new; (setsid sh -c 'echo $$ >> {0}.new; mv {0}.new {0}; sleep 600' &); wait";
        let flow = sh(&script.replace("{0}", &file.display().to_string())).start().unwrap();
        while !file.exists() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        let pids = std::fs::read_to_string(&file).unwrap();
        assert_eq!(pids.lines().count(), 2);
        drop(flow);
        let is_gone = |pid: &str| {
            let state = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
            state.is_empty() || state.contains(") Z ")
        };
        let begun = std::time::Instant::now();
        while let Some(pid) = pids.lines().find(|pid| !is_gone(pid)) {
            assert!(begun.elapsed() < Duration::from_secs(10), "process {pid} goes on");
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }
}
