//! Walkeep as a tool under comparison: its agent runs all the time, as it does beside a server, and is counted.

use std::path::Path;
use std::time::Duration;

use walkeep_tests::{Agent, Cluster, Repository, Walkeep, wait_until};

use crate::tool::{Place, Tool};

/// Walkeep with its agent.
#[derive(Debug)]
pub struct Ours {
    // Ends before its folders go.
    agent: Option<Agent>,
    walkeep: Walkeep,
    place: Place,
    streams: bool,
}

impl Ours {
    /// For this data directory; without a server there is nothing to stream.
    pub fn new(place: Place, data: &Path, server: Option<&Cluster>) -> Self {
        let repository = match &place {
            Place::Bucket(bucket) => Repository::s3_tls(bucket),
            Place::Folder(scratch) => Repository::Local(scratch.join("repo")),
        };
        let mut walkeep = Walkeep::offline(repository);
        walkeep.data_directory = Some(data.to_owned());
        walkeep.upload_interval = "1s".to_owned();
        match server {
            Some(server) => {
                walkeep.connection = server.connection();
                // Two of them, one for each kind of store.
                walkeep.slot = slot_name(&walkeep);
            }
            None => walkeep.cluster_lines = "stream = false\n".to_owned(),
        }
        walkeep.write_config();
        walkeep.ok(if server.is_some() { &["init"] } else { &["init", "--offline"] });
        let mut ours = Self { agent: None, walkeep, place, streams: server.is_some() };
        ours.fetch_anew();
        ours
    }

    fn line(&self, args: &str) -> String {
        format!("{} {args}", walkeep_tests::walkeep::binary("walkeep").display())
    }
}

/// Its scratch folder's name is nobody else's.
fn slot_name(walkeep: &Walkeep) -> String {
    let folder = walkeep.scratch().path().file_name().unwrap_or_default().to_string_lossy().to_lowercase();
    folder.chars().map(|letter| if letter.is_ascii_alphanumeric() { letter } else { '_' }).collect()
}

impl Tool for Ours {
    fn place(&self) -> &Place {
        &self.place
    }

    fn archive(&self) -> Option<String> {
        Some(format!("{} %p", self.walkeep.archive_command()))
    }

    fn fetch(&self) -> Option<String> {
        Some(self.walkeep.restore_command())
    }

    fn full(&self) -> Option<String> {
        Some(self.line("backup --full"))
    }

    fn incremental(&self) -> Option<String> {
        Some(self.line("backup"))
    }

    fn restore(&self, to: &Path) -> Option<String> {
        Some(self.line(&format!("restore --latest --to {}", to.display())))
    }

    fn delta(&self, to: &Path) -> Option<String> {
        Some(self.line(&format!("restore --latest --to {} --delta --yes", to.display())))
    }

    fn environment(&self) -> Vec<(String, String)> {
        let mut environment = self.walkeep.environment.clone();
        environment.push(("WALKEEP_CONFIG".to_owned(), self.walkeep.config_path().display().to_string()));
        environment
    }

    fn beside(&self) -> Option<u32> {
        self.agent.as_ref().map(Agent::pid)
    }

    fn fetch_anew(&mut self) {
        if let Some(agent) = self.agent.take() {
            agent.stop();
        }
        let agent = self.walkeep.agent();
        wait_until("the agent has opened its repository", Duration::from_secs(30), || agent.log().contains("repository opened"));
        self.agent = Some(agent);
    }

    fn slot(&self) -> Option<&str> {
        Some(self.walkeep.slot.as_str()).filter(|_| self.streams)
    }

    fn hold(&self, still: bool) {
        self.agent.iter().for_each(|agent| agent.signal(if still { "STOP" } else { "CONT" }));
    }
}
