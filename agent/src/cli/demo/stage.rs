//! Where the demo plays: a temporary folder, the programs, the agent.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use tokio::process::{Child, Command};

use super::server::Server;
use super::within;
use crate::cli::output;
use crate::config::{Config, Selection};
use crate::durable;
use crate::scratch_server::newest_installed;

/// The temporary folder and what is in it.
pub struct Stage {
    folder: PathBuf,
    program: PathBuf,
    pg_bin: PathBuf,
    keep: bool,
}

impl Stage {
    /// Finds the programs and makes the folder.
    pub fn set(pg_bin: Option<PathBuf>, keep: bool) -> Result<Self> {
        let program = std::env::current_exe().context("find this program")?;
        for shim in ["walkeep-archive-cmd", "walkeep-restore-cmd"] {
            ensure!(program.with_file_name(shim).is_file(), "{shim} is not beside {}", program.display());
        }
        let pg_bin = match pg_bin {
            Some(folder) => folder,
            None => newest_installed()
                .context("no PostgreSQL in /usr/lib/postgresql: install one, or name its programs' folder with --pg-bin")?,
        };
        // Short, since a socket's path has at most 107 bytes.
        let folder = std::env::temp_dir().join(format!("walkeep-demo-{}", std::process::id()));
        ensure!(!folder.exists(), "{} exists already", folder.display());
        durable::create_dir(&folder, durable::PRIVATE_DIR)?;
        output::say!("PostgreSQL from {}, everything in {}", pg_bin.display(), folder.display());
        Ok(Self { folder, program, pg_bin, keep })
    }

    /// PostgreSQL's programs.
    pub fn pg_bin(&self) -> &Path {
        &self.pg_bin
    }

    /// A path in the folder.
    pub fn path(&self, name: &str) -> PathBuf {
        self.folder.join(name)
    }

    /// The archive command.
    pub fn archive_command(&self) -> String {
        let shim = self.program.with_file_name("walkeep-archive-cmd");
        format!("{} --socket {} %p", shim.display(), self.path("agent.sock").display())
    }

    /// Writes Walkeep's configuration for `server`.
    pub fn write_config(&self, server: &Server) -> Result<()> {
        let folder = self.folder.display();
        let text = format!(
            "[cluster.main]\nconnection = \"{}\"\ndata_directory = \"{}\"\nspool = \"{folder}/spool\"\nsocket = \"{folder}/agent.sock\"\n\n\
             [[cluster.main.repository]]\nurl = \"file://{folder}/repository\"\n",
            server.connection(),
            server.data().display()
        );
        durable::write_file(&self.path("walkeep.toml"), text.as_bytes(), durable::PRIVATE_FILE)
    }

    fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(&self.program);
        command.args(arguments).env("WALKEEP_CONFIG", self.path("walkeep.toml")).kill_on_drop(true);
        command
    }

    /// Shows a command and runs it, its output indented.
    pub async fn walkeep(&self, arguments: &[&str]) -> Result<()> {
        let shown: Vec<String> =
            arguments.iter().map(|argument| if argument.contains(' ') { format!("'{argument}'") } else { (*argument).into() }).collect();
        output::say!("   $ walkeep {}", shown.join(" "));
        let output = self.command(arguments).stderr(Stdio::inherit()).output().await.context("run walkeep")?;
        for line in String::from_utf8_lossy(&output.stdout).lines() {
            output::say!("   | {line}");
        }
        ensure!(output.status.success(), "walkeep {} failed", shown.join(" "));
        Ok(())
    }

    /// Starts the agent and waits until it answers.
    pub async fn start_agent(&self) -> Result<Agent> {
        output::say!("   $ walkeep agent &");
        let log = File::options().create(true).append(true).open(self.path("agent.log"))?;
        let child = self.command(&["agent"]).stdin(Stdio::null()).stdout(Stdio::null()).stderr(log).spawn().context("start the agent")?;
        let cluster = self.config()?.cluster;
        within("the agent", Duration::from_secs(30), async || Ok(crate::cli::setup::agent_answers(&cluster).await)).await?;
        Ok(Agent { child })
    }

    fn config(&self) -> Result<Config> {
        Config::load(&Selection { path: Some(self.path("walkeep.toml")), cluster: None, as_of: None })
    }

    /// Waits until the agent receives WAL.
    pub async fn wait_for_stream(&self) -> Result<()> {
        let log = self.path("agent.log");
        within("the stream", Duration::from_secs(30), async || Ok(std::fs::read_to_string(&log)?.contains(" streaming "))).await
    }

    /// Shows the ends of the logs, when something went wrong.
    pub fn show_logs(&self) {
        for name in ["agent.log", "data.log", "newest.log", "restored.log"] {
            if let Ok(text) = std::fs::read_to_string(self.path(name)) {
                let lines: Vec<&str> = text.lines().collect();
                output::tell!("--- the end of {name}");
                lines.iter().skip(lines.len().saturating_sub(15)).for_each(|line| output::tell!("{line}"));
            }
        }
    }
}

impl Drop for Stage {
    fn drop(&mut self) {
        if self.keep {
            output::say!("everything is left in {}", self.folder.display());
        } else if let Err(error) = std::fs::remove_dir_all(&self.folder) {
            output::tell!("could not remove {}: {error}", self.folder.display());
        }
    }
}

/// The agent's process; killed when dropped.
pub struct Agent {
    child: Child,
}

impl Agent {
    /// SIGKILL; [`Agent::wait`] sees its end.
    pub fn kill(&mut self) -> Result<()> {
        self.child.start_kill().context("kill the agent")
    }

    /// Waits until it is gone.
    pub async fn wait(&mut self) -> Result<()> {
        self.child.wait().await.map(drop).context("wait for the agent")
    }

    /// Stops it in good order.
    pub async fn stop(&mut self) -> Result<()> {
        if let Some(pid) = self.child.id().and_then(|id| rustix::process::Pid::from_raw(id.cast_signed())) {
            rustix::process::kill_process(pid, rustix::process::Signal::TERM).context("stop the agent")?;
        }
        let status = self.child.wait().await?;
        ensure!(status.success(), "the agent ended with {status}");
        Ok(())
    }
}
