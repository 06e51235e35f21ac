//! What stories about restores share: a server with Walkeep at its side, rows that commit one by one, restored servers.

use std::path::Path;
use std::time::Duration;

use walkeep_tests::postgres::{Builder, bin, client};
use walkeep_tests::walkeep::run;
use walkeep_tests::{Agent, Cluster, Repository, Scratch, Walkeep, user, wait_for, wait_until};

use crate::support::lsn;

pub const PATIENCE: Duration = Duration::from_secs(60);

/// Rows, and the last of them: number and commit time.
pub const STATE: &str = "SELECT count(*), max(i), (SELECT pg_xact_commit_timestamp(xmin) FROM t ORDER BY i DESC LIMIT 1) FROM t";

/// A server that archives and streams.
pub struct Story {
    // The agent ends first, the server before its folders.
    agent: Option<Agent>,
    pub cluster: Cluster,
    pub walkeep: Walkeep,
}

/// The builder of stories: small segments, commit times kept.
pub fn builder(version: u32) -> Builder {
    Cluster::builder().version(version).segment_mib(1).archiving().conf("track_commit_timestamp", "on").conf("autovacuum", "off")
}

impl Story {
    /// A server of this version with a local repository, its agent running.
    #[track_caller]
    pub fn local(version: u32) -> Self {
        Self::begin(builder(version), None)
    }

    /// The same, its agent storing no part before the segment ends or the agent does.
    #[track_caller]
    pub fn without_parts(version: u32) -> Self {
        let cluster = builder(version).start();
        let mut walkeep = Walkeep::local(&cluster);
        walkeep.upload_interval = "1h".to_owned();
        walkeep.write_config();
        Self::with(cluster, walkeep)
    }

    /// The same, without a stream: archive_command brings everything.
    #[track_caller]
    pub fn pushed(version: u32) -> Self {
        let cluster = builder(version).start();
        let mut walkeep = Walkeep::local(&cluster);
        walkeep.cluster_lines.push_str("stream = false\n");
        walkeep.write_config();
        Self::with(cluster, walkeep)
    }

    /// A server, archiving and streaming into the repository (`None`: a local one), with an empty table `t`.
    #[track_caller]
    pub fn begin(builder: Builder, repository: Option<Repository>) -> Self {
        let cluster = builder.start();
        let walkeep = match repository {
            Some(repository) => Walkeep::new(&cluster, repository),
            None => Walkeep::local(&cluster),
        };
        Self::with(cluster, walkeep)
    }

    /// With this server, which runs, and a local repository.
    #[track_caller]
    pub fn on(cluster: Cluster) -> Self {
        let walkeep = Walkeep::local(&cluster);
        Self::with(cluster, walkeep)
    }

    /// With this server, which runs, and this Walkeep, which has no repository yet.
    #[track_caller]
    pub fn with(cluster: Cluster, walkeep: Walkeep) -> Self {
        walkeep.ok(&["init"]);
        let agent = walkeep.agent();
        cluster.archive_by(Some(&walkeep.archive_command()));
        cluster.sql("CREATE TABLE t (i int PRIMARY KEY, filler text)");
        Self { agent: Some(agent), cluster, walkeep }
    }

    /// Inserts the next `rows`, one commit each.
    #[track_caller]
    pub fn insert(&self, rows: u32) {
        insert(&self.cluster, rows);
    }

    /// Makes the tablespace `apart` at `place`, with a table `far` of a thousand rows in it.
    #[track_caller]
    pub fn far_table(&self, place: &Path) {
        self.cluster.sql(&format!("CREATE TABLESPACE apart LOCATION '{}'", place.display()));
        self.cluster.sql("CREATE TABLE far TABLESPACE apart AS SELECT generate_series(1, 1000) AS i");
    }

    /// Waits until everything written is stored.
    #[track_caller]
    pub fn settle(&self) {
        settle(&self.cluster, &self.walkeep);
    }

    /// Takes a backup and returns its ID.
    #[track_caller]
    pub fn backup(&self) -> String {
        backup(&self.walkeep)
    }

    /// Restores to the target that `args` say.
    #[track_caller]
    pub fn restore(&self, args: &[&str]) -> Restored {
        Restored::by(&self.walkeep, self.cluster.version(), args)
    }

    /// The commit time of row `i`, as psql shows it, with its zone.
    #[track_caller]
    pub fn commit_time(&self, i: u32) -> String {
        self.cluster.sql(&format!("SELECT pg_xact_commit_timestamp(xmin) FROM t WHERE i = {i}"))
    }

    /// The transaction of row `i`.
    #[track_caller]
    pub fn xid(&self, i: u32) -> String {
        self.cluster.sql(&format!("SELECT xmin FROM t WHERE i = {i}"))
    }

    /// Ends the agent (again: nothing) and looks what it had to say.
    #[track_caller]
    pub fn stop_agent(&mut self, expected: &[&str]) {
        if let Some(agent) = self.agent.take() {
            let complaints = agent.complaints(expected);
            assert!(complaints.is_empty(), "the agent complained:\n{}", complaints.join("\n"));
            agent.stop();
        }
    }

    /// The agent, which runs.
    #[track_caller]
    pub fn agent(&self) -> &Agent {
        self.agent.as_ref().expect("an agent that runs")
    }

    /// The agent dies at once.
    #[track_caller]
    pub fn kill_agent(&mut self) {
        drop(self.agent.take());
    }

    /// A new agent, in place of one that ended.
    #[track_caller]
    pub fn start_agent(&mut self) {
        self.agent = Some(self.walkeep.agent());
    }

    /// The story went well: the agent has nothing to complain about but this.
    #[track_caller]
    pub fn end(mut self, expected: &[&str]) {
        self.stop_agent(expected);
    }
}

/// Inserts the next `rows` into `t`, one commit each.
#[track_caller]
pub fn insert(cluster: &Cluster, rows: u32) {
    cluster.sql(&insert_statement(rows));
}

/// The statement of [`insert`].
pub fn insert_statement(rows: u32) -> String {
    let insert = "INSERT INTO t SELECT coalesce(max(i), 0) + 1, repeat(md5(random()::text), 8) FROM t; COMMIT;";
    format!("DO $$ BEGIN FOR n IN 1..{rows} LOOP {insert} END LOOP; END $$")
}

/// Ends the segment and waits until everything that `cluster` has written is stored.
#[track_caller]
pub fn settle(cluster: &Cluster, walkeep: &Walkeep) {
    cluster.switch_wal();
    let segment = cluster.sql("SELECT pg_walfile_name(pg_current_wal_insert_lsn())");
    let timeline = u64::from_str_radix(&segment[..8], 16).unwrap();
    let written = lsn(&cluster.sql("SELECT pg_current_wal_flush_lsn()"));
    wait_until("everything is stored", PATIENCE, || stored(walkeep, timeline) >= Some(written));
}

/// The end of what is stored of a timeline.
#[track_caller]
pub fn stored(walkeep: &Walkeep, timeline: u64) -> Option<u64> {
    let status = walkeep.ok(&["status", "--json"]).json();
    let report = status["timelines"].as_array()?.iter().find(|report| report["timeline"] == timeline)?.clone();
    report["frontier"].as_str().map(lsn)
}

/// Takes a backup and returns its ID.
#[track_caller]
pub fn backup(walkeep: &Walkeep) -> String {
    walkeep.ok(&["backup", "--json"]).json()["id"].as_str().unwrap().to_owned()
}

/// The IDs of the backups there are.
#[track_caller]
pub fn backups(walkeep: &Walkeep) -> Vec<String> {
    let listed = walkeep.ok(&["backups", "--json"]).json();
    listed.as_array().unwrap().iter().map(|record| record["id"].as_str().unwrap().to_owned()).collect()
}

/// `plan --json` of a target that can be reached.
#[track_caller]
pub fn plan(walkeep: &Walkeep, args: &[&str]) -> serde_json::Value {
    walkeep.ok(&[&["plan", "--json"], args].concat()).json()
}

/// `plan` and `restore` of a target that must be refused with exit code 3, nothing touched; what `plan` said.
#[track_caller]
pub fn refused(walkeep: &Walkeep, args: &[&str]) -> String {
    let planned = walkeep.run(&[&["plan"], args].concat()).expect_code(3);
    let json = walkeep.run(&[&["plan", "--json"], args].concat()).expect_code(3).json();
    assert_eq!(planned.stderr.trim_end(), format!("refused: {}", json["refused"].as_str().unwrap()));
    assert!(json["reason"].is_object(), "{json}");
    let to = walkeep.scratch().join("refused");
    let restored = walkeep.run(&[&["restore", "--to", &to.to_string_lossy()], args].concat()).expect_code(3);
    assert!(!to.exists(), "a refused restore made {}", to.display());
    assert!(planned.stderr.starts_with("refused: "), "{}", planned.stderr);
    assert_eq!(planned.stderr, restored.stderr, "plan and restore refuse alike");
    planned.stderr
}

/// A restored data directory and its server.
pub struct Restored {
    pub cluster: Cluster,
    _folder: Scratch,
    environment: Vec<(String, String)>,
}

impl Restored {
    /// Restores into a new folder; not started.
    #[track_caller]
    pub fn by(walkeep: &Walkeep, version: u32, args: &[&str]) -> Self {
        let folder = Scratch::new();
        let data = folder.join("data");
        walkeep.ok(&[&["restore", "--to", &data.to_string_lossy()], args].concat());
        Self { cluster: Cluster::adopt(version, data), _folder: folder, environment: walkeep.environment.clone() }
    }

    /// What somebody else has laid down in `data`, a place in `folder`.
    pub fn laid_down(version: u32, folder: Scratch, data: &Path) -> Self {
        Self { cluster: Cluster::adopt(version, data), _folder: folder, environment: Vec::new() }
    }

    /// Starts the server and waits until it writes.
    #[track_caller]
    pub fn start(&self) -> &Self {
        self.launch();
        wait_until("the restored server writes", PATIENCE, || {
            assert!(self.cluster.running(), "the restored server ended");
            self.cluster.sql("SELECT pg_is_in_recovery()") == "f"
        });
        self
    }

    /// Starts the server and waits until it answers.
    #[track_caller]
    pub fn launch(&self) {
        let environment: Vec<_> = self.environment.iter().map(|(name, value)| (name.as_str(), value.as_str())).collect();
        self.cluster.start_with(&environment).expect("start the restored server");
    }

    /// Starts the server, which must end by itself: restore_command has given up after `patience`. What its log says.
    #[track_caller]
    pub fn gives_up(mut self, patience: &str) -> String {
        self.environment.push(("WALKEEP_RESTORE_TIMEOUT".to_owned(), patience.to_owned()));
        let environment: Vec<_> = self.environment.iter().map(|(name, value)| (name.as_str(), value.as_str())).collect();
        self.cluster.start_with(&environment).expect_err("the server must not open");
        self.cluster.log()
    }

    /// Starts the server and waits until its recovery pauses at the target.
    #[track_caller]
    pub fn start_paused(&self) -> &Self {
        self.launch();
        wait_until("the recovery pauses", PATIENCE, || self.cluster.sql("SELECT pg_is_wal_replay_paused()") == "t");
        self
    }

    /// Rows and last commit.
    #[track_caller]
    pub fn state(&self) -> String {
        self.cluster.sql(STATE)
    }

    /// The number of rows.
    #[track_caller]
    pub fn rows(&self) -> u32 {
        self.cluster.value("SELECT count(*) FROM t")
    }

    /// PostgreSQL's own tool finds every file as it was, before the first start.
    #[track_caller]
    pub fn verify(&self) {
        let version = self.cluster.version();
        let tool = client(version, "pg_verifybackup");
        let mut command = user::command(&tool);
        let output = run(command.arg("--no-parse-wal").arg(self.cluster.data()));
        // From 17 on the manifest names the system, and the tool reads pg_control, but only that of its own version.
        let foreign = bin(version).is_none_or(|bin| !tool.starts_with(bin));
        if version >= 17 && foreign && output.stderr.contains("pg_control: CRC") {
            eprintln!("SKIPPED pg_verifybackup for {version}: {}", output.stderr.trim());
            return;
        }
        output.expect_code(0);
    }
}

/// Every file below a folder, with its content's length and time of change: what differs was touched.
pub fn listing(folder: &Path) -> Vec<String> {
    let mut command = user::command("find");
    command.arg(folder).args(["-printf", "%P %y %m %s %T@ %l\\n"]);
    let mut lines: Vec<_> = run(&mut command).expect_code(0).stdout.lines().map(str::to_owned).collect();
    lines.sort();
    lines
}

/// The same of a local repository, but for the audit trail, to which restores and refusals add.
pub fn archive(walkeep: &Walkeep) -> Vec<String> {
    // What is put goes through the folder of temporary files.
    listing(&walkeep.local_repository()).into_iter().filter(|line| !line.contains("/audit") && !line.starts_with(".tmp~ d")).collect()
}

/// How the object of a file of the archive ends in this run.
pub fn object(name: &str) -> String {
    format!("{name}{}", walkeep_tests::keys::suffix())
}

/// Waits until a file is there whose name ends so, and returns its path.
#[track_caller]
pub fn wait_for_file(folder: &Path, ends: &str) -> std::path::PathBuf {
    wait_for(&format!("{ends} in {}", folder.display()), PATIENCE, || {
        let found = listing(folder).into_iter().filter_map(|line| line.split(' ').next().map(|path| folder.join(path)));
        found.into_iter().find(|path| path.to_string_lossy().ends_with(ends))
    })
}
