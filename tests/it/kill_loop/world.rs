//! The actors of the loop, and what happens to them. A thing that is down stays down until another round mends it, so that faults overlap.

use std::collections::BTreeMap;
use std::os::unix::process::ExitStatusExt;
use std::time::{Duration, Instant};

use walkeep_tests::process::Process;
use walkeep_tests::{Agent, Bucket, Cluster, Fault, FaultProxy, Repository, S3Server, Stop, Walkeep, When, wait_until};

use super::assert_sane;
use crate::support::{end_of, lsn, wait_durable};

pub const SOON: Duration = Duration::from_secs(60);
pub const SEGMENT_MIB: u64 = 1;

const SIGTERM: i32 = 15;

/// How an agent ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Death {
    Killed,
    Asked,
}

/// A server and the timeline it writes.
pub struct Server {
    pub cluster: Cluster,
    pub timeline: u32,
    /// The position at which its timeline begins.
    pub begins: u64,
}

pub struct World {
    since: Instant,
    // The agent ends before the servers, these before their folders.
    agent: Option<Agent>,
    frozen: bool,
    store_away: bool,
    slow: Option<walkeep_tests::proxy::Armed>,
    losing: Option<walkeep_tests::proxy::Armed>,
    load: Option<Process>,
    /// The last one is the primary.
    pub servers: Vec<Server>,
    standby: Option<Cluster>,
    walkeep: Walkeep,
    /// The same repository past the proxy.
    pub reader: Walkeep,
    pub bucket: Bucket,
    proxy: FaultProxy,
    /// The furthest position that was confirmed to a server, by timeline.
    pub confirmed: BTreeMap<u32, u64>,
}

impl World {
    pub fn new() -> Self {
        let cluster = Cluster::builder()
            .segment_mib(SEGMENT_MIB as u32)
            .archiving()
            // The server removes what it may: only what the slot holds is still there.
            .conf("max_wal_size", "8MB")
            .conf("min_wal_size", "2MB")
            .conf("wal_sender_timeout", "2s")
            .conf("wal_retrieve_retry_interval", "100ms")
            .conf("autovacuum", "off")
            .start();
        cluster.archive_by(None);
        cluster.pgbench_init(1);
        let (server, bucket) = (S3Server::get(), S3Server::get().bucket());
        let proxy = server.proxy();
        let mut walkeep = Walkeep::new(&cluster, Repository::s3(proxy.endpoint(), &bucket));
        walkeep.data_directory = None;
        walkeep.write_config();
        walkeep.ok(&["init"]);
        let reader = Walkeep::new(&cluster, Repository::s3(server.endpoint(), &bucket));
        let agent = walkeep.agent();
        let mut world = Self {
            since: Instant::now(),
            agent: Some(agent),
            frozen: false,
            store_away: false,
            slow: None,
            losing: None,
            load: None,
            servers: vec![Server { cluster, timeline: 1, begins: 0 }],
            standby: None,
            walkeep,
            reader,
            bucket,
            proxy,
            confirmed: BTreeMap::new(),
        };
        // The stream begins at the slot: before it nothing is promised.
        let slot = world.slot().expect("the slot is there");
        world.servers[0].begins = slot;
        world.grow_standby();
        world
    }

    pub fn primary(&self) -> &Server {
        self.servers.last().expect("there is always one")
    }

    fn tell(&self, what: impl std::fmt::Display) {
        eprintln!("{:>8.3} {what}", self.since.elapsed().as_secs_f64());
    }

    // ---- the agent

    pub fn agent_runs(&self) -> bool {
        self.agent.is_some()
    }

    pub fn start_agent(&mut self) {
        if self.agent.is_none() {
            self.tell("agent starts");
            self.agent = Some(self.walkeep.launch_agent().unwrap());
            self.frozen = false;
        }
    }

    /// Ends it and looks, from the store alone, for all that it has confirmed.
    pub fn end_agent(&mut self, how: Death) {
        let Some(mut agent) = self.agent.take() else { return };
        self.tell(format_args!("agent {how:?}"));
        match how {
            Death::Killed => agent.kill9(),
            Death::Asked => {
                agent.signal("CONT");
                agent.signal("TERM");
                wait_until("the agent ends", SOON, || agent.ended().is_some());
                let status = agent.ended().unwrap();
                // One that is asked in its first moments, before it can hear that, ends as any program does; it has done nothing yet.
                let is_newborn = status.signal() == Some(SIGTERM) && agent.log().is_empty();
                assert!(status.success() || is_newborn, "{status}\n{}", agent.log());
            }
        }
        assert_sane(&agent.log());
        self.frozen = false;
        self.sample();
        self.look_for_confirmed();
    }

    pub fn freeze_or_thaw(&mut self) {
        let Some(agent) = &self.agent else { return };
        self.frozen = !self.frozen;
        agent.signal(if self.frozen { "STOP" } else { "CONT" });
        self.tell(if self.frozen { "agent frozen" } else { "agent thawed" });
    }

    // ---- the store

    pub fn cut_or_mend_store(&mut self) {
        self.store_away = !self.store_away;
        self.tell(if self.store_away { "store away" } else { "store back" });
        if self.store_away { self.proxy.close() } else { self.proxy.open() }
    }

    pub fn slow_or_quick_store(&mut self) {
        match self.slow.take() {
            Some(slow) => self.proxy.disarm(slow),
            // Neighbours overtake each other.
            None => self.slow = Some(self.proxy.arm(When::put().every(3), Fault::Delay(Duration::from_millis(700)))),
        }
        self.tell(if self.slow.is_some() { "store slow" } else { "store quick" });
    }

    pub fn lose_answers_or_not(&mut self) {
        match self.losing.take() {
            Some(losing) => self.proxy.disarm(losing),
            None => self.losing = Some(self.proxy.arm(When::put().every(4), Fault::DropAnswer)),
        }
        self.tell(if self.losing.is_some() { "answers get lost" } else { "answers arrive" });
    }

    // ---- the server

    pub fn server_runs(&self) -> bool {
        self.primary().cluster.running()
    }

    pub fn stop_server(&mut self, killed: bool) {
        self.tell(if killed { "server killed" } else { "server stopped at once" });
        self.load = None;
        if killed { self.primary().cluster.kill9() } else { self.primary().cluster.stop(Stop::Immediate) }
    }

    pub fn start_server(&mut self) {
        if !self.server_runs() {
            self.tell("server starts");
            self.primary().cluster.start();
        }
        if self.load.is_none() {
            self.load = Some(self.primary().cluster.pgbench_spawn(&["-c", "2", "-R", "150", "-T", "3600"]));
        }
    }

    pub fn write(&mut self, times: u32) {
        if self.server_runs() {
            self.tell(format_args!("about {times} MiB"));
            self.primary().cluster.sql(&format!("CREATE TABLE burst AS SELECT generate_series(1, {}); DROP TABLE burst", times * 15_000));
        }
    }

    pub fn end_segment(&mut self) {
        if self.server_runs() {
            self.tell("segment ends");
            self.primary().cluster.switch_wal();
        }
    }

    pub fn checkpoint(&mut self) {
        if self.server_runs() {
            self.tell("checkpoint");
            self.primary().cluster.sql("CHECKPOINT");
        }
    }

    // ---- timelines

    pub fn has_standby(&self) -> bool {
        self.standby.is_some()
    }

    /// A standby with a slot of its own for the agent, which is told of it. All before is stored: the slot keeps nothing older.
    pub fn grow_standby(&mut self) {
        self.mend();
        self.wait_stored();
        self.tell("a standby grows");
        let standby = self.primary().cluster.standby();
        standby.sql("SELECT pg_create_physical_replication_slot('walkeep', true)");
        let primary = &self.primary().cluster;
        self.walkeep.connection = format!(
            "host={},{} port={},{} user=postgres dbname=postgres target_session_attrs=read-write",
            primary.socket_dir().display(),
            standby.socket_dir().display(),
            primary.port(),
            standby.port()
        );
        self.walkeep.write_config();
        self.standby = Some(standby);
        self.end_agent(Death::Killed);
        self.start_agent();
    }

    /// The primary is gone for good and the standby takes over, with or without the last WAL.
    pub fn fail_over(&mut self, cleanly: bool) {
        let Some(standby) = self.standby.take() else { return };
        self.tell(format_args!("failover, {}", if cleanly { "cleanly" } else { "by a crash" }));
        self.sample();
        self.load = None;
        match cleanly && self.server_runs() {
            true => self.primary().cluster.stop(Stop::Fast),
            false => self.primary().cluster.kill9(),
        }
        standby.promote();
        let timeline = self.primary().timeline + 1;
        let history = std::fs::read_to_string(standby.pg_wal().join(format!("{timeline:08X}.history"))).unwrap();
        let begins = lsn(history.lines().last().unwrap().split('\t').nth(1).unwrap());
        self.tell(format_args!("timeline {timeline} begins at {begins:X}"));
        self.servers.push(Server { cluster: standby, timeline, begins });
        self.start_server();
    }

    // ---- positions

    fn slot(&self) -> Option<u64> {
        let query = "SELECT restart_lsn FROM pg_replication_slots WHERE slot_name = 'walkeep'";
        let text = self.primary().cluster.sql(query);
        (!text.is_empty()).then(|| lsn(&text))
    }

    /// Notes what is confirmed: a slot stands exactly at the flush position that was last reported to it.
    pub fn sample(&mut self) {
        if self.server_runs()
            && let Some(at) = self.slot()
        {
            let confirmed = self.confirmed.entry(self.primary().timeline).or_default();
            *confirmed = at.max(*confirmed);
        }
    }

    // ---- the end

    /// Nothing is broken any more.
    fn mend(&mut self) {
        if self.frozen {
            self.freeze_or_thaw();
        }
        if self.store_away {
            self.cut_or_mend_store();
        }
        if self.slow.is_some() {
            self.slow_or_quick_store();
        }
        if self.losing.is_some() {
            self.lose_answers_or_not();
        }
        self.start_server();
        // Not one that waits long for its next try.
        self.end_agent(Death::Killed);
        self.start_agent();
    }

    /// Waits until everything that is written is stored.
    fn wait_stored(&mut self) {
        let end = lsn(&self.primary().cluster.sql("SELECT pg_current_wal_flush_lsn()"));
        let agent = self.agent.as_ref().expect("it runs");
        wait_until("the agent is ready", SOON, || agent.get("/readyz").is_ok_and(|(status, _)| status == 200));
        wait_durable(agent, end, SOON);
    }

    /// Mends everything and waits until all is stored, and archived as a plain copy, up to the end of a segment.
    pub fn settle(&mut self) {
        self.mend();
        self.load = None;
        self.wait_stored();
        let last = self.primary().cluster.switch_wal();
        self.tell(format_args!("the last segment is {last}"));
        wait_durable(self.agent.as_ref().expect("it runs"), end_of(&last, SEGMENT_MIB), SOON);
        self.primary().cluster.wait_archived(&last, SOON);
        self.sample();
        // What those that were killed have left, the next agent looks for when it begins. A put of theirs may have been under way until now.
        self.end_agent(Death::Killed);
        self.start_agent();
    }

    pub fn end(self) {
        let agent = self.agent.expect("it runs");
        assert_sane(&agent.log());
        assert_eq!(agent.metric("walkeep_conflicts_total"), Some(0.0));
        assert_eq!(agent.metric("walkeep_gaps"), Some(0.0));
        agent.stop();
    }
}
