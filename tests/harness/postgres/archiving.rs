//! archive_command with an oracle: what was acknowledged is also kept as a plain copy.

use std::path::PathBuf;
use std::time::Duration;

use super::Cluster;
use crate::wait_for;

impl Cluster {
    /// The folder where [`Cluster::archive_by`] keeps a plain copy of every file that was acknowledged.
    pub fn oracle(&self) -> PathBuf {
        self.scratch().join("oracle")
    }

    /// Archives by `command`, to which the file's path is added (`None`: by the plain copy alone), and after its exit 0 keeps a copy in
    /// [`Cluster::oracle`]. Its exit code is handed on. The copy refuses other bytes under a name it has (exit 99).
    ///
    /// The cluster was built with [`super::Builder::archiving`]. Works on a stopped server too, from its next start.
    #[track_caller]
    pub fn archive_by(&self, command: Option<&str>) {
        let oracle = self.scratch().dir("oracle");
        let oracle = oracle.display();
        let command = command.map(|command| format!("{command} \"$1\" || exit $?\n")).unwrap_or_default();
        let script = format!(
            "#!/bin/sh\n{command}\
             if [ -e \"{oracle}/$2\" ]; then cmp \"$1\" \"{oracle}/$2\" >&2 || exit 99; exit 0; fi\n\
             cp \"$1\" \"{oracle}/.$2.$$\" && mv \"{oracle}/.$2.$$\" \"{oracle}/$2\"\n"
        );
        let script = self.scratch().write("archive.sh", script, 0o755);
        let line = format!("{} %p %f", script.display());
        if self.running() { self.set("archive_command", &line) } else { self.write_conf("archive_command", &line) }
    }

    /// Archiving stands still: archive_command is empty, WAL piles up.
    #[track_caller]
    pub fn archive_pause(&self) {
        self.set("archive_command", "");
    }

    /// Waits until `name` was archived.
    #[track_caller]
    pub fn wait_archived(&self, name: &str, within: Duration) {
        let done = self.pg_wal().join(format!("archive_status/{name}.done"));
        // A recycled segment's .done is gone, and so is its .ready.
        let ready = self.pg_wal().join(format!("archive_status/{name}.ready"));
        let copied = self.oracle().join(name);
        wait_for(&format!("{name} is archived"), within, || (done.exists() || copied.exists() && !ready.exists()).then_some(()));
    }

    /// Ends the current segment and waits until it is archived; its name.
    #[track_caller]
    pub fn archive_now(&self) -> String {
        let name = self.switch_wal();
        self.wait_archived(&name, Duration::from_secs(60));
        name
    }
}
