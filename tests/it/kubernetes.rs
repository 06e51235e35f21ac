//! `packaging/kubernetes`, without a Kubernetes: each overlay is built and looked at, Walkeep takes each configuration and command line in them, and what the
//! containers run is run, with other paths.

mod manifests;
mod pod;

use std::collections::BTreeSet;

use serde_json::Value;
use walkeep_tests::walkeep::{binary, run};
use walkeep_tests::{S3Server, Scratch, s3, user};

use manifests::{Kit, list, packaging, text};

/// Volumes, ConfigMaps, keys, Secrets and ports that are named are there; nothing has more rights than it needs.
#[test]
fn each_overlay_is_whole() {
    let Some(kit) = Kit::get() else { return };
    let guide = std::fs::read_to_string(packaging("kubernetes.md")).unwrap();
    let overlays = manifests::overlays();
    assert!(overlays.len() >= 4, "{overlays:?}");
    let mut used = BTreeSet::new();
    for overlay in &overlays {
        let built = kit.build(overlay);
        for version in ["1.29.0", "1.37.0"] {
            kit.validate(&built, version);
        }
        let objects = kit.parse(&built);
        let of_kind = |kind: &str| objects.iter().filter(move |object| object["kind"] == kind).collect::<Vec<_>>();
        let pods = manifests::pods(&objects);
        assert!(!pods.is_empty());
        for pod in &pods {
            pod.check(&objects, &guide);
            used.extend(pod.images());
        }
        let database = &pods[0];
        for service in of_kind("Service") {
            assert!(manifests::within(&service["spec"]["selector"], &database.labels), "{service}");
            for port in list(&service["spec"]["ports"]) {
                assert!(database.ports().contains(text(&port["targetPort"])), "{service}");
            }
        }
        for monitor in of_kind("PodMonitor") {
            assert!(manifests::within(&monitor["spec"]["selector"]["matchLabels"], &database.labels), "{monitor}");
            for endpoint in list(&monitor["spec"]["podMetricsEndpoints"]) {
                assert!(database.ports().contains(text(&endpoint["port"])), "{monitor}");
            }
        }
        // No other pod gets the database's connections.
        assert!(pods[1..].iter().all(|pod| !manifests::within(&of_kind("Service")[0]["spec"]["selector"], &pod.labels)));
    }
    // Per overlay all of Walkeep's images are one; two names in all, the base's and the company's.
    assert_eq!(used.iter().filter(|image| image.contains("walkeep")).count(), 2, "{used:?}");
}

/// What stands in another file under the same path: the agent's and PostgreSQL's containers speak of the same places.
#[test]
fn both_containers_mean_the_same_places() {
    let Some(kit) = Kit::get() else { return };
    for overlay in manifests::overlays() {
        let objects = kit.parse(&kit.build(&overlay));
        let map = |prefix: &str, key: &str| manifests::config(&objects, prefix, key);
        let (toml, conf) = (map("walkeep-", "walkeep.toml"), map("postgres-", "postgresql.conf"));
        let pod = &manifests::pods(&objects)[0];
        for (container, paths) in [
            ("walkeep", manifests::quoted_paths(&toml)),
            ("postgres", manifests::quoted_paths(&conf)),
            ("postgres", pod.value("postgres", "PGDATA")),
        ] {
            assert!(!paths.is_empty());
            let places = pod.mounts(container);
            for path in paths {
                assert!(places.iter().any(|place| path == *place || path.starts_with(&format!("{place}/"))), "{path} in {places:?}");
            }
        }
        for shared in ["/var/lib/postgresql/data", "/run/walkeep", "/var/run/postgresql"] {
            assert_eq!(pod.volume_at("walkeep", shared), pod.volume_at("postgres", shared), "{shared}");
        }
        let socket = manifests::value_of(&toml, "socket");
        assert!(conf.contains(&format!("--socket {socket} %p")), "{socket} in {conf}");
        assert!(pod.value("postgres", "PGDATA").contains(&manifests::value_of(&toml, "data_directory")));
        assert!(
            conf.contains("archive_mode = on") && !pod.text.contains("archive_mode"),
            "arguments would overrule what a restore switches off"
        );
    }
}

/// The configuration loader and the argument parser say yes to all that is shipped.
#[test]
fn walkeep_takes_each_configuration_and_command() {
    let scratch = Scratch::new();
    let bucket = S3Server::get().bucket();
    let mut commands: Vec<Vec<String>> = Vec::new();
    for guide in ["kubernetes.md", "patroni.md"] {
        commands.extend(manifests::commands_of(&std::fs::read_to_string(packaging(guide)).unwrap()));
    }
    if let Some(kit) = Kit::get() {
        for (number, overlay) in manifests::overlays().iter().enumerate() {
            let objects = kit.parse(&kit.build(overlay));
            let toml = scratch.write(format!("{number}.toml"), manifests::config(&objects, "walkeep-", "walkeep.toml"), 0o600);
            let mut status = user::command(binary("walkeep"));
            status
                .arg("--config")
                .arg(&toml)
                .arg("status")
                .env("AWS_ACCESS_KEY_ID", s3::ACCESS_KEY)
                .env("AWS_SECRET_ACCESS_KEY", s3::SECRET_KEY);
            status.env("WALKEEP_REPOSITORY_URL", format!("s3://{}", bucket.name)).env("WALKEEP_REPOSITORY_REGION", s3::REGION);
            status.env("WALKEEP_REPOSITORY_ENDPOINT", S3Server::get().endpoint());
            // The configuration is right: only the repository is not there.
            let said = run(&mut status).expect_code(1).stderr;
            assert!(said.contains("no Walkeep repository"), "{said}");
            commands.extend(manifests::pods(&objects).iter().flat_map(manifests::Pod::walkeeps));
            for target in objects.iter().filter_map(|object| object["data"]["target"].as_str()) {
                let words = manifests::words(&format!("restore {target} --to /restored"));
                commands.push(words);
            }
        }
    }
    assert!(commands.len() > 10, "{commands:?}");
    for words in commands {
        let said = run(user::command(binary("walkeep")).args(&words).arg("--help"));
        assert!(said.ok(), "walkeep {words:?}: {}", said.stderr);
    }
}

/// The whole life of the pod's processes: the first start, archiving, a backup, the volumes lost, the restore, and a copy beside it.
#[test]
fn what_the_containers_run_works_together() {
    if user::account().name != "postgres" {
        eprintln!("SKIPPED: PostgreSQL's user is another one here, which pg_hba.conf does not let in");
        return;
    }
    let bucket = S3Server::get().bucket();
    let base = "base/walkeep.toml";
    let first = pod::Pod::new(base, &bucket);
    first.initdb();
    let agent = first.agent();
    let server = first.postgres();
    first.psql_file("base/walkeep.sql");
    first.walkeep(&["init"]);
    pod::wait_ready(&agent);
    first.walkeep(&["check"]);
    first.walkeep(&["backup"]);
    first.sql("CREATE TABLE t AS SELECT generate_series(1, 1000) AS i");
    // PostgreSQL ends first, and the agent has its last WAL.
    server.stop();
    agent.stop();
    drop(first);

    // The volumes are lost. The same database again, with the target of overlays/restored-in-place.
    let again = pod::Pod::new(base, &bucket);
    let said = again.restore("--latest --keep-archiving");
    assert!(said.contains("recovers by itself"), "{said}");
    assert!(again.restore("--latest --keep-archiving").contains("nothing to restore"));
    // A restore that was ended goes on.
    std::fs::remove_file(again.data().join("global/pg_control")).unwrap();
    again.restore("--latest --keep-archiving");
    let agent = again.agent();
    let server = again.postgres();
    assert_eq!(again.sql("SELECT count(*) FROM t"), "1000");
    pod::wait_ready(&agent);
    again.walkeep(&["check"]);
    again.sql("INSERT INTO t SELECT generate_series(1001, 2000)");
    let timelines = |pod: &pod::Pod| -> Value { serde_json::from_str(&pod.walkeep(&["timelines", "--json"])).unwrap() };
    assert_eq!(list(&timelines(&again)).len(), 2);

    // A copy beside it stores nothing.
    let copy = pod::Pod::new("overlays/restored-copy/walkeep.toml", &bucket);
    copy.restore("--immediate");
    let its_agent = copy.agent();
    let its_server = copy.postgres();
    assert_eq!(copy.sql("SHOW archive_mode"), "off");
    copy.sql("CREATE TABLE of_the_copy ()");
    its_server.stop();
    its_agent.stop();
    assert_eq!(list(&timelines(&again)).len(), 2);
    server.stop();
    agent.stop();
}
