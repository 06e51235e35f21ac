//! pgBackRest as a tool under comparison.

use std::path::Path;

use walkeep_tests::Cluster;

use crate::pgbackrest::{Lies, PgBackRest};
use crate::tool::{Place, Tool};

/// pgBackRest with its repository.
#[derive(Debug)]
pub struct Peer {
    program: PgBackRest,
    place: Place,
}

impl Peer {
    /// For this data directory.
    pub fn new(place: Place, data: &Path, server: Option<&Cluster>, compression: &str) -> Self {
        let program = match &place {
            Place::Bucket(bucket) => PgBackRest::with(Lies::In(bucket), Some(data), server, compression),
            Place::Folder(scratch) => PgBackRest::with(Lies::Below(&scratch.join("repo")), Some(data), server, compression),
        };
        program.ok(&["--no-online", "stanza-create"]);
        Self { program, place }
    }
}

impl Tool for Peer {
    fn place(&self) -> &Place {
        &self.place
    }

    fn archive(&self) -> Option<String> {
        Some(self.program.archive_command())
    }

    fn fetch(&self) -> Option<String> {
        Some(self.program.line("archive-get %f %p"))
    }

    fn full(&self) -> Option<String> {
        Some(self.program.line("--type=full backup"))
    }

    fn incremental(&self) -> Option<String> {
        Some(self.program.line("--type=incr backup"))
    }

    fn restore(&self, to: &Path) -> Option<String> {
        Some(self.program.line(&format!("--pg1-path={} restore", to.display())))
    }

    fn delta(&self, to: &Path) -> Option<String> {
        Some(self.program.line(&format!("--pg1-path={} --delta restore", to.display())))
    }

    fn fetch_anew(&mut self) {
        self.program.empty_spool();
    }
}
