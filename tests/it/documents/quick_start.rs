//! README's first steps: PostgreSQL is prepared as it says, by its own lines; a local directory; a bucket.

use walkeep_tests::{S3Server, Walkeep, user};

use super::stage::{Place, Stage, created};
use super::text::README;

pub const LOCAL: [Place; 1] = [(README, "Quick start: a local directory", 1)];
pub const S3: [Place; 1] = [(README, "Quick start: S3", 1)];

const PREPARE: &str = "Prepare PostgreSQL";

/// The labels of `check`'s lines, good ones only.
fn labels(text: &str) -> Vec<&str> {
    text.lines().filter_map(|line| line.strip_prefix("ok    ")).map(|line| line.get(..12).unwrap_or(line).trim_end()).collect()
}

#[test]
fn a_local_directory() {
    let cluster = created(&[("archive_mode", "off")]);
    let walkeep = Walkeep::local(&cluster);
    let mut stage = Stage::new(&LOCAL, cluster, walkeep);
    // Lines of pg_hba.conf, above the others; of pg_ident.conf; of postgresql.conf; the role.
    let hba = stage.cluster.data().join("pg_hba.conf");
    let lines = stage.block(README, PREPARE, "", 1);
    assert!(lines.contains("peer map=walkeep"));
    let before = std::fs::read_to_string(&hba).unwrap();
    std::fs::write(&hba, lines + &before).unwrap();
    let spans = stage.spans(README, PREPARE);
    let ident = spans.iter().find(|span| span.starts_with("walkeep  postgres")).unwrap();
    // Who runs the tests may be somebody else.
    let ident = ident.replace("postgres", &user::account().name);
    std::fs::write(stage.cluster.data().join("pg_ident.conf"), ident + "\n").unwrap();
    stage.cluster.start();
    let settings = stage.block(README, PREPARE, "", 2);
    assert!(settings.contains("archive_command = '") && settings.contains("max_slot_wal_keep_size"));
    let conf = stage.cluster.data().join("postgresql.conf");
    std::fs::write(&conf, std::fs::read_to_string(&conf).unwrap() + &settings).unwrap();
    let sql = stage.block(README, PREPARE, "sql", 1);
    stage.cluster.sql(&sql);

    // Its defaults would be /var/lib/walkeep and /run/walkeep.
    let own =
        format!("[cluster.main]\nspool = \"{}\"\nsocket = \"{}\"\n", stage.walkeep.spool().display(), stage.walkeep.socket().display());
    let toml = stage.block(README, LOCAL[0].1, "toml", 1).replacen("[cluster.main]\n", &own, 1);
    stage.walkeep.scratch().write("walkeep.toml", toml, 0o600);
    let account = &user::account().name;
    stage.means("-o postgres -g postgres", format!("-o {account} -g $(id -gn)"), "who runs the tests may be somebody else");
    stage.open(LOCAL[0]);
    stage.run("sudo install -d");
    stage.run("sudo -u postgres walkeep init").says("archive_command = ");
    stage.run("sudo systemctl restart postgresql");
    stage.run("sudo cp packaging/systemd/walkeep.service");
    assert!(stage.desk().join("systemd/walkeep.service").exists());
    stage.run("sudo systemctl enable --now walkeep");
    let shown = stage.block(README, LOCAL[0].1, "", 1);
    let checked = stage.run("sudo -u postgres walkeep check");
    assert_eq!(labels(&checked.output.stdout), labels(&shown), "{}", checked.output.stdout);
    assert_eq!(checked.output.stdout.lines().last(), shown.lines().last());
    stage.run("sudo -u postgres walkeep backup");
    stage.run("sudo -u postgres walkeep status").says("recoverable");
    // Again changes nothing.
    stage.walkeep.ok(&["init"]);
    stage.end();
}

#[test]
fn a_bucket() {
    let s3 = S3Server::get();
    let bucket = s3.bucket();
    let cluster = super::stage::server(&[]);
    let walkeep = Walkeep::local(&cluster);
    let mut stage = Stage::new(&S3, cluster, walkeep);
    stage.means("s3://walkeep/production", format!("s3://{}/production", bucket.name), "each story has a bucket of its own");
    stage.means("http://127.0.0.1:8333", s3.endpoint(), "the tests' server has another port");
    let written = std::fs::read_to_string(stage.walkeep.config_path()).unwrap();
    let (before, _) = written.split_once("[[cluster.main.repository]]").unwrap();
    let toml = before.to_owned() + &stage.block(README, S3[0].1, "toml", 2);
    stage.walkeep.scratch().write("walkeep.toml", toml, 0o600);
    let [(key, secret)] = [(walkeep_tests::s3::ACCESS_KEY, walkeep_tests::s3::SECRET_KEY)];
    let line = format!("AWS_ACCESS_KEY_ID={key} AWS_SECRET_ACCESS_KEY={secret}");
    stage.means("AWS_ACCESS_KEY_ID=any AWS_SECRET_ACCESS_KEY=any", line, "the tests' server has accounts");
    // What is in the environment of every command is not what is tried here.
    stage.walkeep.environment.clear();
    stage.open(S3[0]);
    stage.run("sudo -u postgres env");
    assert!(bucket.list("production/").iter().any(|(key, _)| key == "production/walkeep.json"));
    stage.end();
}
