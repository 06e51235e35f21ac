//! What comes back: a restored data directory, started to the end of what is stored.

use std::time::{Duration, Instant};

use walkeep_tests::{Cluster, Repository, Scratch, Walkeep, wait_until};

use crate::host::kill_started_for;
use crate::load;
use crate::load::Commit;
use std::collections::BTreeSet;

const PATIENCE: Duration = Duration::from_secs(300);

/// Restores from the repository alone, on a host that never saw the server: the commits that are there, and how long it took to have them.
pub fn by_walkeep(repository: Repository) -> (BTreeSet<Commit>, f64) {
    let began = Instant::now();
    let walkeep = Walkeep::offline(repository);
    let folder = Scratch::new();
    let data = folder.join("data");
    walkeep.ok(&["restore", "--latest", "--to", &data.to_string_lossy()]);
    let server = Cluster::adopt(walkeep_tests::postgres::default_version(), data);
    let environment: Vec<_> = walkeep.environment.iter().map(|(name, value)| (name.as_str(), value.as_str())).collect();
    let found = after_recovery(&server, &environment, began);
    server.kill9();
    // The fetch service that the restore shim started.
    kill_started_for(walkeep.scratch().path());
    found
}

/// Starts a restored server and waits until it writes.
pub fn after_recovery(server: &Cluster, environment: &[(&str, &str)], began: Instant) -> (BTreeSet<Commit>, f64) {
    server.start_with(environment).expect("start the restored server");
    wait_until("the restored server writes", PATIENCE, || {
        assert!(server.running(), "the restored server ended");
        server.sql("SELECT pg_is_in_recovery()") == "f"
    });
    let seconds = began.elapsed().as_secs_f64();
    (load::commits(server), seconds)
}
