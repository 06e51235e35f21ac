//! The pictures of the README, of a real server with a real history: `packaging/pictures`, made anew.
//!
//!     cargo bench -p walkeep-tests --bench pictures
//!
//! A minute of commits with a backup, a restore point, a table that is dropped, a failover and a drill; then the page in Chromium.
#![allow(clippy::unwrap_used)]

use std::path::Path;
use std::time::Duration;

use walkeep_tests::postgres::{bin, client};
use walkeep_tests::{Browser, Cluster, Stop, Walkeep, wait_until};

const VERSION: u32 = 15;
const PATIENCE: Duration = Duration::from_secs(60);
const WIDTH: u32 = 1200;
const ZOOM: u32 = 9;

fn main() {
    let cluster = Cluster::builder().version(VERSION).segment_mib(1).archiving().conf("track_commit_timestamp", "on").start();
    cluster.pgbench_init(1);
    cluster.switch_wal();
    let mut walkeep = Walkeep::local(&cluster);
    let tools = format!("{}:{}", bin(VERSION).unwrap().display(), client(VERSION, "pg_amcheck").parent().unwrap().display());
    walkeep.more = format!(
        "[[cluster.main.backup]]\nschedule = \"0 3 * * *\"\nlabel = \"nightly\"\n[cluster.main.drill]\nschedule = \"0 5 * * 0\"\nbin_dir = \"{tools}\"\n"
    );
    walkeep.write_config();
    walkeep.ok(&["init"]);
    let agent = walkeep.agent();
    cluster.archive_by(Some(&walkeep.archive_command()));
    walkeep.ok(&["backup", "--label", "nightly"]);
    cluster.sql("CREATE TABLE orders AS SELECT i, md5(i::text) FROM generate_series(1, 1000) i");
    // The name is known from a snapshot of the catalogs, which a backup takes.
    walkeep.ok(&["backup", "--label", "before-v42"]);
    load(&cluster, 15);
    cluster.sql("SELECT pg_create_restore_point('before_v42')");
    load(&cluster, 10);
    cluster.sql("DROP TABLE orders");
    load(&cluster, 15);
    cluster.stop(Stop::Fast);
    std::fs::write(cluster.data().join("standby.signal"), "").unwrap();
    cluster.start();
    cluster.promote();
    load(&cluster, 15);
    walkeep.ok(&["backup", "--label", "nightly"]);
    walkeep.ok(&["drill"]);
    load(&cluster, 15);
    wait_until("all is stored", PATIENCE, || agent.metric("walkeep_wal_lag_bytes") == Some(0.0));

    let mut browser = Browser::start();
    browser.size(WIDTH, 800);
    browser.open(&format!("http://{}/", walkeep.http_address()));
    browser.wait("the drill is told", "document.querySelector('#main').textContent.includes('passed')");
    browser.wait("the accident is told", "Boolean(document.querySelector('#events button'))");
    browser.eval("document.querySelector('#events-box').open = true; document.querySelector('#timeline').focus()");
    // The last minutes: the server's files are older.
    browser.key("End", false);
    (0..ZOOM).for_each(|_| browser.key("+", false));
    browser.key("ArrowLeft", true);
    show(&mut browser, "[0, 1]", "page");
    browser.eval("[...document.querySelectorAll('#events button')].find((button) => button.textContent.includes('before')).click()");
    browser.wait("a plan", "Boolean(document.querySelector('#command'))");
    show(&mut browser, "[2]", "plan");
    agent.stop();
}

fn load(cluster: &Cluster, seconds: u32) {
    cluster.pgbench_run(&["-c", "2", "-R", "40", "-T", &seconds.to_string()]);
}

/// Keeps a picture of some of the page's sections.
fn show(browser: &mut Browser, sections: &str, name: &str) {
    browser.eval(&format!("document.querySelectorAll('#main > section').forEach((one, at) => {{ one.style.display = {sections}.includes(at) ? '' : 'none'; }})"));
    browser.eval("document.querySelector('footer').style.display = 'none'; document.querySelector('html').style.minHeight = '0'");
    browser.size(WIDTH, 200);
    let height = browser.eval("document.body.scrollHeight").as_u64().unwrap();
    browser.size(WIDTH, height.try_into().unwrap());
    let made = browser.screenshot(name);
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../packaging/pictures");
    std::fs::create_dir_all(&folder).unwrap();
    std::fs::copy(&made, folder.join(format!("{name}.png"))).unwrap();
    println!("packaging/pictures/{name}.png");
}
