//! README's blocks about what is kept and let go, artifacts, the trail, keys, and who is told.

use walkeep_tests::{Receiver, Walkeep, user};

use super::stage::{Place, Stage, make_shop, server};
use super::text::README;
use crate::story;

pub const LET_GO: [Place; 2] = [(README, "Retention", 1), (README, "The index", 1)];
pub const ARTIFACTS: [Place; 1] = [(README, "Dumps and artifacts", 1)];
pub const AUDIT: [Place; 1] = [(README, "Audit trail", 1)];
pub const ENCRYPTED: [Place; 1] = [(README, "Encryption", 1)];
pub const TOLD: [Place; 2] = [(README, "Messages", 1), (README, "Several clusters", 1)];

#[test]
fn what_is_not_kept_goes_and_comes_back() {
    let mut stage = Stage::usual(&LET_GO);
    story::backup(&stage.walkeep);
    let newest = story::backup(&stage.walkeep);
    stage.settle();
    stage.walkeep.more = "\n[cluster.main.retention]\nwindow = \"0s\"\nminimum_backups = 1\n".to_owned();
    stage.walkeep.write_config();
    stage.open(LET_GO[0]);
    stage.run("walkeep expire --dry-run").says("GOES");
    stage.answered("y", "walkeep expire  ").says("This leaves the catalog. Go on? [y/N]");
    assert_eq!(story::backups(&stage.walkeep), [newest.as_str()]);
    stage.means("--undo 3", "--undo 1", "the number that `walkeep expire` told");
    stage.run("walkeep expire --undo");
    assert_eq!(story::backups(&stage.walkeep).len(), 3);
    stage.means("ID", &newest, "the newest backup");
    stage.run("walkeep keep ID");
    let listed = stage.walkeep.ok(&["backups", "--json"]).json();
    assert!(listed.as_array().unwrap().iter().any(|backup| backup["id"] == newest.as_str() && !backup["keep"].is_null()), "{listed}");
    stage.open(LET_GO[1]);
    stage.run("walkeep index  ").says("timeline 1");
    stage.run("walkeep index --rebuild");
    stage.end();
}

#[test]
fn dumps_and_artifacts() {
    let mut stage = Stage::usual(&ARTIFACTS);
    stage.stop_agent();
    stage.desk().dir("etc");
    stage.desk().write("etc/postgresql.conf", "port = 1\n", 0o644);
    let etc = stage.desk().join("etc").display().to_string();
    stage.means("/etc/postgresql", etc, "a folder of the story's");
    stage.walkeep.more = format!("\n{}", stage.block(README, "Dumps and artifacts", "toml", 1));
    stage.walkeep.write_config();
    stage.open(ARTIFACTS[0]);
    stage.run("walkeep dump").says("dump.shop");
    stage.run("walkeep artifact run etc");
    stage.run("walkeep artifacts").says("etc").says("dump.shop");
    stage.run("walkeep artifact get etc");
    let listed = walkeep_tests::process::run(user::command("tar").arg("-tf").arg(stage.work().join("etc.tar"))).unwrap();
    assert!(listed.contains("postgresql.conf"), "{listed}");
    // The database was lost, and is made anew, empty.
    stage.cluster.sql("DROP DATABASE shop");
    stage.cluster.sql("CREATE DATABASE shop TEMPLATE postgres");
    stage.run("walkeep artifact get dump.shop");
    assert_eq!(stage.in_shop("SELECT count(*) FROM orders"), "1000");
    stage.end();
}

#[test]
fn the_audit_trail() {
    let mut stage = Stage::usual(&AUDIT);
    stage.means("2026-11-20 00:00:00+01", "2020-01-01 00:00:00+01", "the story has no past of its own");
    stage.walkeep.ok(&["restore", "--to", &stage.srv("restored").display().to_string()]);
    stage.open(AUDIT[0]);
    let all = stage.run("walkeep audit  ");
    all.says("init").says("backup").says("restore");
    let last = all.output.stdout.lines().last().unwrap().to_owned();
    let hash = last.split(|character: char| !character.is_ascii_hexdigit()).find(|word| word.len() == 64);
    let of_restores = stage.run("walkeep audit --from").output.stdout;
    assert_eq!(of_restores.lines().filter(|line| line.contains(" restore ")).count(), 2, "begun and done: {of_restores}");
    assert!(!of_restores.contains(" init "), "{of_restores}");
    stage.means("5f2b...", hash.unwrap_or_else(|| panic!("{last}")), "the hash that the last line of `walkeep audit` has");
    stage.run("walkeep audit --check --expect");
    stage.end();
}

#[test]
fn keys() {
    // What was written before archive_mode was on is not to be archived.
    let cluster = server(&[("archive_mode", "off")]);
    make_shop(&cluster);
    let mut walkeep = Walkeep::local(&cluster);
    walkeep.keys = None;
    walkeep.write_config();
    // By hand in the block: what is encrypted is decided by the first `init`.
    let mut stage = Stage::new(&ENCRYPTED, cluster, walkeep);
    stage.cluster.write_conf("archive_mode", "on");
    stage.archive();
    stage.cluster.restart();
    stage.open(ENCRYPTED[0]);
    let generated = stage.run("walkeep key generate --output identity.txt");
    let recipient = generated.output.stdout.split_whitespace().find(|word| word.starts_with("age1")).unwrap().to_owned();
    stage.means("age1...", recipient, "what the line before it prints");
    stage.run("echo age1...");
    stage.run("printf");
    stage.run("walkeep init && systemctl restart walkeep && walkeep check").never_says("FAIL");
    stage.walkeep.ok(&["backup"]);
    stage.settle();
    stage.cluster.kill9();
    stage.kill_agent();
    stage.means("DIR", stage.srv("restored").display().to_string(), "a folder of the story's");
    stage.run("WALKEEP_ENCRYPTION_IDENTITY_FILE=$PWD/identity.txt walkeep restore");
    let identity = stage.work().join("identity.txt").display().to_string();
    stage.walkeep.environment.push(("WALKEEP_ENCRYPTION_IDENTITY_FILE".to_owned(), identity));
    stage.start(&stage.srv("restored"));
    assert_eq!(stage.in_shop("SELECT count(*) FROM orders"), "1000");
    stage.end();
}

#[test]
fn who_is_told() {
    let mut stage = Stage::usual(&TOLD);
    let receiver = Receiver::start();
    stage.means("https://hooks.example.org/services/...", receiver.url("/hook"), "a web server of the story's");
    stage.means("-o postgres", format!("-o {}", user::account().name), "who runs the tests may be somebody else");
    stage.walkeep.more = format!("[notify]\nwebhook_file = \"{}/webhook\"\n", stage.here("/etc/walkeep"));
    stage.walkeep.write_config();
    stage.open(TOLD[0]);
    stage.run("install -m 600");
    stage.run("walkeep notify --test");
    assert_eq!(receiver.received("POST").len(), 1);
    stage.kill_agent();
    stage.open(TOLD[1]);
    stage.run("walkeep status --all  ").says("main");
    stage.run("walkeep status --all --json | jq").says("main\n");
    stage.end();
}
