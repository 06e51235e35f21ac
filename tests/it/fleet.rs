//! One agent for several clusters, and every cluster of a repository in a line: on the command line and in a browser.

use std::path::Path;

use serde_json::Value;
use walkeep_tests::{Agent, Browser, Cluster, Walkeep, wait_for, wait_until};

use crate::story::{self, PATIENCE};
use crate::support::assert_calm;

const VERSION: u32 = 15;

/// Two servers, one configuration, one repository: `main` and `shop`.
struct Two {
    main: Cluster,
    shop: Cluster,
    walkeep: Walkeep,
}

impl Two {
    fn begin() -> Self {
        let (main, shop) = (story::builder(VERSION).start(), story::builder(VERSION).start());
        let mut walkeep = Walkeep::local(&main);
        let scratch = walkeep.scratch();
        let spool = scratch.dir("spool-shop");
        let encryption = match &walkeep.keys {
            None => String::new(),
            Some(_) => format!(
                "[cluster.shop.encryption]\nrecipients_file = \"{}\"\nidentity_file = \"{}\"\n",
                scratch.join("recipients").display(),
                scratch.join("identities").display()
            ),
        };
        walkeep.more = format!(
            "[cluster.shop]\nconnection = \"{}\"\ndata_directory = \"{}\"\nspool = \"{}\"\nsocket = \"{}\"\nupload_interval = \"200ms\"\n{encryption}\
             [[cluster.shop.repository]]\nurl = \"file://{}\"\n",
            shop.connection(),
            shop.data().display(),
            spool.display(),
            scratch.join("run/shop.sock").display(),
            walkeep.local_repository().display()
        );
        walkeep.write_config();
        for name in ["main", "shop"] {
            walkeep.ok(&["init", "--cluster", name]);
        }
        Self { main, shop, walkeep }
    }

    fn backup(&self, name: &str) {
        self.walkeep.ok(&["backup", "--cluster", name]);
    }

    fn all(&self) -> Value {
        self.walkeep.ok(&["status", "--all", "--json"]).json()
    }
}

fn level<'a>(rows: &'a Value, name: &str) -> &'a str {
    let rows = rows.as_array().unwrap();
    let row = rows.iter().find(|row| row["cluster"] == name).unwrap_or_else(|| panic!("{name} in {rows:?}"));
    row["safety"]["level"].as_str().unwrap()
}

/// The value of a sample of one cluster.
fn of(agent: &Agent, metric: &str, cluster: &str) -> Option<f64> {
    let begin = format!("{metric}{{cluster=\"{cluster}\"");
    agent.metrics().lines().find(|line| line.starts_with(&begin))?.rsplit(' ').next()?.parse().ok()
}

#[test]
fn one_agent_serves_every_cluster_of_its_file() {
    let two = Two::begin();
    let agent = two.walkeep.agent();
    for cluster in [&two.main, &two.shop] {
        cluster.sql("CREATE TABLE t (i int PRIMARY KEY, filler text)");
        story::insert(cluster, 20);
    }
    let shim = two.walkeep.archive_command();
    two.main.archive_by(Some(&shim));
    two.shop.archive_by(Some(&shim.replace("main.sock", "shop.sock")));
    two.main.archive_now();
    two.shop.archive_now();
    for name in ["main", "shop"] {
        wait_until("nothing waits to be stored", PATIENCE, || of(&agent, "walkeep_wal_lag_bytes", name) == Some(0.0));
    }
    let bare = two.walkeep.ok(&["status", "--cluster", "main", "--json"]).json();
    assert_eq!((&bare["cluster"], &bare["safety"]["level"]), (&"main".into(), &"unsafe".into()), "{bare}");
    assert!(bare["safety"]["text"].as_str().unwrap().contains("no base backup"), "{bare}");
    two.backup("main");
    wait_until("one of the two is safe", PATIENCE, || {
        let all = two.all();
        level(&all, "main") == "safe" && level(&all, "shop") == "unsafe"
    });
    two.backup("shop");
    wait_until("both are safe", PATIENCE, || ["main", "shop"].iter().all(|name| level(&two.all(), name) == "safe"));
    let said = two.walkeep.ok(&["status", "--all"]).stdout;
    assert!(said.starts_with("2 clusters: 2 SAFE\n"), "{said}");
    let said = two.walkeep.ok(&["status", "--cluster", "shop"]).stdout;
    assert!(said.starts_with("SAFE: every commit until "), "{said}");
    // What the one logs is told apart from what the other does.
    for name in ["main", "shop"] {
        assert!(
            agent.log().lines().any(|line| line.contains(&format!("cluster{{name={name}}}")) && line.contains("streaming")),
            "{}",
            agent.log()
        );
    }
    assert_calm(&agent, &[]);
    agent.stop();
    // Nobody says what the servers have written since.
    assert_eq!(level(&two.all(), "shop"), "unknown");
}

/// One server goes, then its repository is not what it was: the other one's archive goes on.
#[test]
fn a_cluster_in_trouble_is_told_and_holds_up_no_other() {
    let two = Two::begin();
    let mut agent = two.walkeep.agent();
    for name in ["main", "shop"] {
        two.backup(name);
    }
    two.shop.sql("CREATE TABLE t (i int PRIMARY KEY, filler text)");
    two.main.kill9();
    wait_until("it is told", PATIENCE, || agent.get("/readyz").is_ok_and(|(status, text)| status == 503 && text.contains("main: ")));
    let (_, text) = agent.get("/readyz").unwrap();
    assert!(!text.contains("shop"), "{text}");
    for _ in 0..3 {
        story::insert(&two.shop, 10);
        two.shop.switch_wal();
    }
    wait_until("the other one's WAL is stored", PATIENCE, || of(&agent, "walkeep_wal_lag_bytes", "shop") == Some(0.0));
    assert!(agent.ended().is_none());
    two.main.start();
    wait_until("both are ready", PATIENCE, || agent.get("/readyz").is_ok_and(|(status, _)| status == 200));
    agent.stop();
    // Somebody else's socket: this one cannot be served, the other one is.
    let taken = two.walkeep.scratch().join("run/main.sock");
    let mut holder = two.walkeep.command(&["agent", "--cluster", "main"]);
    holder.env("WALKEEP_LISTEN_HTTP", format!("127.0.0.1:{}", walkeep_tests::ports::Port::free().number()));
    let log = two.walkeep.scratch().join("holder.log");
    let mut held = walkeep_tests::process::Process::start(holder, &log).unwrap();
    wait_until("it is taken", PATIENCE, || Path::new(&taken).exists() && walkeep_tests::process::read_log(&log).contains("streaming"));
    let agent = two.walkeep.launch_agent().unwrap();
    wait_until("the other one is served", PATIENCE, || {
        agent.get("/readyz").is_ok_and(|(_, text)| text.contains("main: ") && !text.contains("shop: "))
    });
    assert!(agent.log().contains("begins again, and those of the others go on"), "{}", agent.log());
    held.signal("TERM");
    held.wait(PATIENCE);
    wait_until("then both are", PATIENCE, || agent.get("/readyz").is_ok_and(|(status, _)| status == 200));
    agent.stop();
}

#[test]
fn the_page_shows_all_clusters_the_worst_first() {
    let two = Two::begin();
    // One more in the repository, that this agent knows nothing of.
    let third = story::builder(VERSION).start();
    let mut elsewhere = Walkeep::local(&third);
    elsewhere.repositories = vec![walkeep_tests::Repository::Local(two.walkeep.local_repository())];
    elsewhere.more = String::new();
    elsewhere.write_config();
    let renamed = std::fs::read_to_string(elsewhere.config_path()).unwrap().replace("cluster.main", "cluster.third");
    elsewhere.scratch().write("walkeep.toml", renamed, 0o600);
    elsewhere.ok(&["init"]);
    let other = elsewhere.agent();
    elsewhere.ok(&["backup"]);
    other.stop();

    let agent = two.walkeep.agent();
    two.backup("main");
    let mut browser = Browser::start();
    browser.size(1280, 900);
    browser.open(&format!("http://{}/", two.walkeep.http_address()));
    let levels = "[...document.querySelectorAll('article')].map((card) => `${card.dataset.cluster} ${card.dataset.level}`).join()";
    wait_for("all three are shown", PATIENCE, || (browser.eval(levels) == "shop unsafe,third unknown,main safe").then_some(()));
    browser.screenshot("fleet");
    assert_eq!(browser.text("#counts"), "1 NOT SAFE, 1 NOT KNOWN, 1 SAFE");
    let links = browser.eval("[...document.querySelectorAll('article a')].map((link) => new URL(link.href).pathname).join()");
    assert_eq!(links, "/cluster/shop/,/cluster/main/");
    browser.eval("document.querySelector('article a[href*=main]').click()");
    browser.wait("its own page", "document.querySelector('#cluster')?.textContent === 'main' && !document.querySelector('#main').hidden");
    assert_eq!(browser.eval("new URL(document.querySelector('#all-clusters').href).pathname"), "/clusters/");
    browser.size(360, 740);
    browser.open(&format!("http://{}/clusters/", two.walkeep.http_address()));
    wait_for("on a telephone", PATIENCE, || (browser.eval("document.querySelectorAll('article').length") == 3).then_some(()));
    assert_eq!(browser.eval("document.documentElement.scrollWidth <= innerWidth"), true);
    browser.screenshot("fleet-telephone");
    assert_eq!(browser.complaints(), Vec::<String>::new());
    agent.stop();
}

#[test]
fn what_cannot_be_served_together_is_refused() {
    let mut two = Two::begin();
    two.walkeep.environment.push(("WALKEEP_SPOOL".into(), "/tmp/nowhere".into()));
    let refused = two.walkeep.run(&["agent"]).expect_code(2).stderr;
    assert!(refused.contains("WALKEEP_SPOOL") && refused.contains("main, shop"), "{refused}");
    two.walkeep.environment.pop();
    two.walkeep.more = two.walkeep.more.replace("spool-shop", "spool");
    two.walkeep.write_config();
    let refused = two.walkeep.run(&["agent"]).expect_code(2).stderr;
    assert!(refused.contains("same spool"), "{refused}");
}
