use std::os::unix::fs::MetadataExt;

use walkeep_tests::walkeep::{binary, run};
use walkeep_tests::{Cluster, Walkeep, user};

#[test]
fn binaries_run_as_the_servers_account() {
    let cluster = Cluster::builder().create();
    let walkeep = Walkeep::local(&cluster);
    assert!(walkeep.run(&["--version"]).ok());
    let config = walkeep.config_path().metadata().unwrap();
    assert_eq!((config.uid(), config.mode() & 0o777), (user::account().uid, 0o600));
    assert_eq!(walkeep.local_repository().metadata().unwrap().uid(), user::account().uid);
    for shim in ["walkeep-archive-cmd", "walkeep-restore-cmd"] {
        assert!(binary(shim).exists());
    }
}

#[test]
fn commands_get_no_environment_but_their_own() {
    let mut command = user::command_with_umask("sh", "077");
    let output = run(command.args(["-c", "id -u; umask; env"])).expect_code(0);
    let lines: Vec<_> = output.stdout.lines().collect();
    assert_eq!(lines[..2], [user::account().uid.to_string().as_str(), "0077"]);
    assert!(!output.stdout.contains("CARGO"), "{}", output.stdout);
}
