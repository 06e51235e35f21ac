use super::*;
use walkeep_core::backup::KeepFor;

fn load(text: &str, env: &[(&str, &str)]) -> Result<Config> {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("walkeep.toml");
    std::fs::write(&path, text).unwrap();
    let env = |name: &str| env.iter().find(|(key, _)| *key == name).map(|(_, value)| (*value).to_owned());
    Config::load_with(&Selection { path: Some(path), cluster: None, as_of: None }, &env)
}

const SMALL: &str =
    "[cluster.main]\nconnection = \"host=/run/postgresql password=hunter2\"\n[[cluster.main.repository]]\nurl = \"file:///srv/w\"\n";

fn refusal(text: &str, env: &[(&str, &str)]) -> String {
    format!("{:#}", load(text, env).expect_err("must be refused"))
}

#[test]
fn defaults_are_filled_in() {
    let config = load(SMALL, &[]).unwrap();
    let cluster = &config.cluster;
    assert_eq!(cluster.name.as_str(), "main");
    assert_eq!(cluster.socket, Path::new("/run/walkeep/main.sock"));
    assert_eq!(cluster.spool, Path::new("/var/lib/walkeep/main"));
    assert_eq!((cluster.slot.as_str(), cluster.acknowledge), ("walkeep", Acknowledge::Repository));
    assert_eq!(config.listen.http, None);
}

#[test]
fn the_slot_is_given_up_only_where_that_is_asked_for() {
    let protect = |lines: &str| load(&SMALL.replace("[cluster.main]", &format!("[cluster.main]\n{lines}")), &[]).unwrap().cluster.protect;
    let primary = |bytes| Protect::Primary { slot_limit: ByteSize(bytes) };
    assert_eq!(protect(""), Protect::Archive);
    assert_eq!(protect("protect = \"archive\""), Protect::Archive);
    assert_eq!(protect("protect = \"primary\""), primary(10_000_000_000));
    assert_eq!(protect("protect = \"primary\"\nspool_limit = \"20GB\""), primary(40_000_000_000), "the spool is full first");
    assert_eq!(protect("protect = \"primary\"\nslot_limit = \"5GiB\""), primary(5 << 30));
}

#[test]
fn the_environment_lies_over_the_file() {
    let env = [
        ("WALKEEP_SLOT", "other"),
        ("WALKEEP_REPOSITORY_URL", "s3://b/p/q/"),
        ("WALKEEP_STREAM", "off"),
        ("WALKEEP_LISTEN_HTTP", "127.0.0.1:1"),
    ];
    let config = load(SMALL, &env).unwrap();
    assert_eq!(config.cluster.slot, "other");
    assert!(!config.cluster.stream);
    assert_eq!(config.listen.http, Some(([127, 0, 0, 1], 1).into()));
    let RepositoryConfig::S3(s3) = config.cluster.repository else { panic!("S3") };
    assert_eq!((s3.bucket.as_str(), s3.prefix.as_str()), ("b", "p/q"));
}

#[test]
fn an_unknown_key_is_told_with_file_line_and_key() {
    let message = refusal(&format!("{SMALL}regoin = \"x\"\n"), &[]);
    assert!(message.contains("walkeep.toml, line 5") && message.contains("regoin"), "{message}");
    let message = refusal("[cluster.main]\nslto = 1\n", &[]);
    assert!(message.contains("line 2") && message.contains("slto"), "{message}");
}

#[test]
fn bad_values_name_their_key() {
    for (line, key) in [
        ("slot = \"A B\"", "slot"),
        ("application_name = \"\"", "application_name"),
        ("application_name = \"größer\"", "application_name"),
        ("upload_interval = \"1 fortnight\"", "upload_interval"),
        ("upload_interval = \"10ms\"", "upload_interval"),
        ("acknowledge = \"maybe\"", "acknowledge"),
        ("spool = \"relative\"", "spool"),
        ("spool_limit = \"1\"", "spool_limit"),
        ("protect = \"nothing\"", "protect"),
        ("slot_limit = \"20GB\"", "protect = \"primary\""),
        ("protect = \"primary\"\nslot_limit = \"1GiB\"", "spool_limit"),
        ("protect = \"primary\"\nslot_limit = \"much\"", "slot_limit"),
        ("protect = \"primary\"\nstream = false", "protect"),
        ("spool_limit = \"99999999999TiB\"", "spool_limit"),
        ("compression_level = 99", "compression_level"),
        ("wal_compression_level = 0", "wal_compression_level"),
        ("compression_level = \"x\"", "line 2"),
    ] {
        let message = refusal(&SMALL.replace("[cluster.main]", &format!("[cluster.main]\n{line}")), &[]);
        assert!(message.contains(key), "{line}: {message}");
    }
}

#[test]
fn malformed_files_are_refused_with_a_line() {
    for (text, part) in
        [("", "repository"), ("[cluster.main", "line 1"), ("a = [[[[", "line 1"), ("[cluster.UP]\n", "cannot name a cluster")]
    {
        let message = refusal(text, &[]);
        assert!(message.contains(part), "{text:?}: {message}");
    }
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("w.toml");
    std::fs::write(&path, b"[log]\nlevel = \"\xff\"").unwrap();
    let error = Config::load_with(&Selection { path: Some(path), cluster: None, as_of: None }, &|_| None).expect_err("not text");
    assert!(error.to_string().contains("line 2"), "{error}");
}

#[test]
fn secrets_are_not_shown() {
    assert!(!format!("{:?}", load(SMALL, &[]).unwrap()).contains("hunter2"));
}

#[test]
fn keys_of_encryption_come_from_file_and_environment() {
    let (one, other) = (crate::encryption::keys::generate(), crate::encryption::keys::generate());
    let with = |lines: &str| SMALL.replace("[[cluster", &format!("[cluster.main.encryption]\n{lines}\n[[cluster"));
    assert!(load(SMALL, &[]).unwrap().cluster.encryption.is_none());
    let both = format!("recipients = [\"{}\"]\nrecipients_file = \"/etc/recipients\"", one.1);
    let keys = load(&with(&both), &[]).unwrap().cluster.encryption.unwrap();
    assert_eq!((keys.recipients.texts(), keys.recipients_file.as_deref()), (vec![one.1.clone()], Some(Path::new("/etc/recipients"))));
    assert!(keys.has_recipients() && keys.identity.is_none() && keys.identity_file.is_none());
    let list = format!("{}, {}", one.1, other.1);
    let env = [("WALKEEP_ENCRYPTION_RECIPIENTS", &*list), ("WALKEEP_ENCRYPTION_IDENTITY", one.0.reveal())];
    let keys = load(SMALL, &env).unwrap().cluster.encryption.unwrap();
    assert_eq!(keys.recipients.texts(), [one.1.clone(), other.1.clone()]);
    assert!(keys.identity.is_some() && !format!("{keys:?}").contains(&one.0.reveal()[20..40]));
    for lines in ["recipients = [\"age1x\"]", "recipients_file = \"recipients\"", "identity_file = \"x\"", "recipient = \"x\""] {
        let message = refusal(&with(lines), &[]);
        assert!(message.contains("encryption") || message.contains("recipient"), "{lines}: {message}");
    }
    let message = refusal(SMALL, &[("WALKEEP_ENCRYPTION_IDENTITY_FILE", one.0.reveal())]);
    assert!(message.contains("WALKEEP_ENCRYPTION_IDENTITY_FILE") && !message.contains(&one.0.reveal()[20..40]), "{message}");
    // Wherever a secret comes to stand by mistake, it is not shown.
    for key in ["recipients", "recipients_file", "identity_file"] {
        for lines in [format!("{key} = \"{}\"", one.0.reveal()), format!("{key} = [\"{}\"]", one.0.reveal())] {
            let message = refusal(&with(&lines), &[]);
            assert!(!message.contains(&one.0.reveal()[20..40]), "{key}: {message}");
        }
    }
}

#[test]
fn what_is_said_of_a_bucket_must_make_sense() {
    let with = |lines: &str| SMALL.replace("url = \"file:///srv/w\"", &format!("{lines}\nurl = \"s3://b\""));
    let good =
        "object_lock = \"governance\"\nobject_lock_days = 3\nas_of = \"2026-11-20 03:00:00+01\"\nwal_storage_class = \"STANDARD_IA\"";
    let RepositoryConfig::S3(s3) = load(&with(good), &[]).unwrap().cluster.repository else { panic!("S3") };
    assert_eq!((s3.object_lock.unwrap().days, s3.as_of.unwrap().to_rfc3339().as_str()), (3, "2026-11-20T02:00:00+00:00"));
    for (lines, told) in [
        ("object_lock = \"governance\"", "object_lock_days"),
        ("object_lock_days = 3", "object_lock"),
        ("object_lock = \"legal\"\nobject_lock_days = 3", "neither"),
        ("object_lock = \"governance\"\nobject_lock_days = 0", "from 1"),
        ("as_of = \"2026-11-20 03:00:00\"", "zone"),
        ("wal_storage_class = \"DEEP_ARCHIVE\"", "hours later"),
        ("storage_class = \"GLACIER\"", "hours later"),
        ("prices = \"0.023\"", "prices"),
    ] {
        assert!(refusal(&with(lines), &[]).contains(told), "{lines}: {}", refusal(&with(lines), &[]));
    }
}

/// What Amazon lists is known, what another server's owner asks for only if he is asked, and a directory costs what nobody knows.
#[test]
fn storing_has_a_price_where_one_is_known() {
    let prices = |lines: &str| {
        let text = SMALL.replace("url = \"file:///srv/w\"", &format!("{lines}\nurl = \"s3://b\""));
        load(&text, &[]).unwrap().cluster.prices_of("s3://b")
    };
    assert_eq!(prices(""), Some(Prices::of_aws()));
    let own: Prices = "STANDARD=0.02".parse().unwrap();
    assert_eq!(prices("prices = \"STANDARD=0.02\""), Some(Prices::of_aws().but(own.clone())));
    assert_eq!(prices("endpoint = \"https://s3.example\""), None);
    assert_eq!(prices("endpoint = \"https://s3.example\"\nprices = \"STANDARD=0.02\""), Some(own));
    let directory = load(SMALL, &[]).unwrap().cluster;
    assert_eq!(directory.prices_of("file:///srv/w"), None);
}

/// The mode is the file's own: a private one may have it.
#[test]
fn an_identity_that_everybody_reads_is_refused() {
    use std::os::unix::fs::PermissionsExt;
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("walkeep.toml");
    let identity = crate::encryption::keys::generate().0;
    let line = format!("[cluster.main.encryption]\nidentity = \"{}\"\n[[cluster", identity.reveal());
    std::fs::write(&path, SMALL.replace("[[cluster", &line)).unwrap();
    let load = |mode| {
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(mode)).unwrap();
        Config::load_with(&Selection { path: Some(path.clone()), cluster: None, as_of: None }, &|_| None)
    };
    let refused = format!("{:#}", load(0o644).unwrap_err());
    assert!(refused.contains("identity_file") && refused.contains("0644") && !refused.contains(&identity.reveal()[20..40]), "{refused}");
    assert!(load(0o600).unwrap().cluster.encryption.unwrap().identity.is_some());
}

#[test]
fn a_secret_in_the_url_is_refused_without_being_shown() {
    let message = refusal(&SMALL.replace("file:///srv/w", "s3://AK:HUSH77@bucket/p"), &[]);
    assert!(message.contains("url") && !message.contains("HUSH77"), "{message}");
}

#[test]
fn repositories_that_cannot_be_are_refused() {
    let s3 = SMALL.replace("file:///srv/w", "s3://b/p");
    for (url, key) in [("s3://b ucket/p", "bucket"), ("s3://b/p q", "prefix"), ("s3://b/a//b", "prefix"), ("s3:///p", "bucket")] {
        let message = refusal(&SMALL.replace("file:///srv/w", url), &[]);
        assert!(message.contains("url") && message.contains(key), "{url}: {message}");
    }
    for endpoint in
        ["localhost:9000", "http://", "http://h:port", "http://h:99999", "http://h h", "ftp://h", "https://:9000", "http://h/?a"]
    {
        let message = refusal(&format!("{s3}endpoint = \"{endpoint}\"\n"), &[]);
        assert!(message.contains("endpoint"), "{endpoint}: {message}");
    }
    for endpoint in ["http://localhost:9000", "https://s3.example.com", "http://[::1]:8333", "https://h/base/"] {
        load(&format!("{s3}endpoint = \"{endpoint}\"\n"), &[]).unwrap();
    }
}

#[test]
fn several_repositories_have_a_primary_and_a_rule() {
    let second = "[[cluster.main.repository]]\nurl = \"s3://b/p\"\n";
    let config = load(&format!("{SMALL}{second}"), &[]).unwrap().cluster;
    assert_eq!((config.repository_url().as_str(), config.stored_when), ("file:///srv/w and s3://b/p", StoredWhen::Primary));
    let config = load(&format!("{SMALL}{second}"), &[("WALKEEP_ACKNOWLEDGE_RULE", "all"), ("WALKEEP_REPOSITORY_2_REGION", "r")]).unwrap();
    assert_eq!(config.cluster.stored_when, StoredWhen::All);
    let RepositoryConfig::S3(s3) = &config.cluster.further[0] else { panic!("S3") };
    assert_eq!(s3.region.as_deref(), Some("r"));
    let config = load(SMALL, &[("WALKEEP_REPOSITORY_2_URL", "file:///srv/x")]).unwrap();
    assert_eq!(config.cluster.further.len(), 1);
    let refused = [
        (format!("{SMALL}{second}"), "WALKEEP_ACKNOWLEDGE_RULE", "most", "none of"),
        (SMALL.to_owned(), "WALKEEP_ACKNOWLEDGE_RULE", "all", "more than one"),
        (SMALL.to_owned(), "WALKEEP_REPOSITORY_3_URL", "file:///srv/x", "there are 1"),
        (SMALL.to_owned(), "WALKEEP_REPOSITORY_2_URL", "file:///srv/w", "the same as number 1"),
        (SMALL.to_owned(), "WALKEEP_REPOSITORY_2_URL", "file:///srv/./x/../w/", "the same as number 1"),
        (SMALL.to_owned(), "WALKEEP_REPOSITORY_2_URL", "file:///srv/w/main", "it lies within number 1"),
        (SMALL.to_owned(), "WALKEEP_REPOSITORY_2_URL", "file:///srv", "number 1, file:///srv/w, lies within it"),
        (format!("{SMALL}{second}"), "WALKEEP_COMPARE_INTERVAL", "0s", "compare_interval"),
    ];
    for (text, variable, value, reason) in refused {
        let message = refusal(&text, &[(variable, value)]);
        assert!(message.contains(reason), "{message}");
    }
    let message = refusal(&format!("{SMALL}[[cluster.main.repository]]\nurl = \"file:///x\"\nregion = \"r\"\n"), &[]);
    assert!(message.contains("walkeep.toml, line 7: region"), "{message}");
}

#[test]
fn keys_of_s3_beside_a_directory_are_told_with_their_line() {
    let message = refusal(&format!("{SMALL}# a remark\nendpoint = \"http://h\"\n"), &[]);
    assert!(message.contains("walkeep.toml, line 6: endpoint"), "{message}");
    let message = refusal(&SMALL.replace("url =", "path_style = true\nurl ="), &[]);
    assert!(message.contains("walkeep.toml, line 4: path_style"), "{message}");
    let message = refusal("[cluster.main]\nrepository = [{ url = \"file:///r\",\n region = \"r\" }]\n", &[]);
    assert!(message.contains("walkeep.toml, line 3: region"), "{message}");
    let message = refusal(SMALL, &[("WALKEEP_REPOSITORY_PROFILE", "p")]);
    assert!(message.contains("WALKEEP_REPOSITORY_PROFILE"), "{message}");
}

#[test]
fn variables_that_mean_nothing_are_told() {
    let names = ["WALKEEP_SPOOL", "WALKEEP_SPOL", "WALKEEP_REPOSITORY_URL", "WALKEEP_URL", "WALKEEP_CONFIG", "PATH", "WALKEEP_LOG_LEVEL"];
    let told = environment::unknown(names.iter().map(|name| (*name).to_owned()));
    assert_eq!(told.len(), 2, "{told:?}");
    assert!(told[0].starts_with("WALKEEP_SPOL is set") && told[1].starts_with("WALKEEP_URL is set"), "{told:?}");
}

/// A variable of whose effect somebody was told must not be called meaningless.
#[test]
fn variables_that_are_documented_mean_something() {
    for text in [include_str!("../../../README.md"), include_str!("../../../packaging/walkeep.example.toml")] {
        let of_name = |character: char| character.is_ascii_uppercase() || character.is_ascii_digit() || character == '_';
        let names = text.match_indices("WALKEEP_").map(|(at, _)| &text[at..]);
        let names = names.map(|rest| rest.split(|character| !of_name(character)).next().unwrap().to_owned());
        // Of a whole section, and those that only the tests of the project read. A name that misses is one of an example of what is told.
        let names: Vec<String> =
            names.filter(|name| !name.ends_with('_') && !name.starts_with("WALKEEP_TEST_") && name != "WALKEEP_PORT").collect();
        assert!(names.len() > 5, "{names:?}");
        assert_eq!(environment::unknown(names.into_iter()), Vec::<String>::new());
    }
}

#[test]
fn a_drill_and_metrics_are_configured_by_environment() {
    let environment = [
        ("WALKEEP_DRILL_SCHEDULE", "0 5 * * 0"),
        ("WALKEEP_DRILL_TARGET", "random"),
        ("WALKEEP_METRICS_TEXTFILE", "/var/lib/prometheus"),
        ("WALKEEP_METRICS_BACKUP_NAMES", "on"),
    ];
    let config = load(SMALL, &environment).unwrap();
    assert!(config.cluster.drill.schedule.is_some());
    assert_eq!(config.cluster.drill.point, DrillPoint::Random);
    assert_eq!(config.metrics.textfile.as_deref(), Some(Path::new("/var/lib/prometheus")));
    assert!(config.metrics.backup_names);
    assert_eq!(environment::unknown(environment.iter().map(|(name, _)| (*name).to_owned())), Vec::<String>::new());
}

#[test]
fn several_clusters_need_a_choice() {
    let message = refusal(&format!("{SMALL}[cluster.other]\n"), &[]);
    assert!(message.contains("--cluster") && message.contains("other"), "{message}");
}

/// A file with such a schedule.
fn with_schedule(lines: &str) -> String {
    format!("{SMALL}\n[[cluster.main.backup]]\n{lines}\n")
}

#[test]
fn schedules_have_defaults() {
    assert!(load(SMALL, &[]).unwrap().cluster.backups.is_empty());
    let config = load(&with_schedule("schedule = \"0 3 * * *\""), &[]).unwrap();
    let [backup] = config.cluster.backups.as_slice() else { panic!("{:?}", config.cluster.backups) };
    let schedule = &backup.schedule;
    assert_eq!((schedule.cluster.as_str(), schedule.label.as_str(), schedule.zone.name()), ("main", "scheduled", "UTC"));
    assert!(schedule.catch_up && schedule.jitter.is_zero() && !backup.full && backup.keep.is_none() && backup.max_rate_kb.is_none());

    let all = with_schedule(
        "schedule = \"@weekly\"\ntimezone = \"Europe/Berlin\"\njitter = \"10min\"\ncatch_up = false\nlabel = \"weekly\"\nkeep = \"90d\"\n\
         full = true\nmax_rate = \"50MiB\"\nspread_checkpoint = true",
    );
    let two = format!("{all}[[cluster.main.backup]]\nschedule = \"*/30 * * * *\"\nkeep = \"forever\"\n");
    let config = load(&two, &[("WALKEEP_BACKUP_TIMEZONE", "Asia/Tokyo"), ("WALKEEP_BACKUP_CATCH_UP", "yes")]).unwrap();
    let [weekly, often] = config.cluster.backups.as_slice() else { panic!("{:?}", config.cluster.backups) };
    assert_eq!((weekly.schedule.zone.name(), weekly.schedule.catch_up, weekly.max_rate_kb), ("Asia/Tokyo", true, Some(51_200)));
    assert_eq!(weekly.keep, Some(KeepFor::Time(Duration::from_secs(90 * 86_400))));
    assert_eq!((often.schedule.zone.name(), often.keep), ("UTC", Some(KeepFor::Forever)));
}

#[test]
fn schedules_that_cannot_be_are_told_with_their_line() {
    for (lines, part) in [
        ("schedule = \"0 0 31 2 *\"", "line 7: schedule: \"0 0 31 2 *\": it can never fire"),
        ("label = \"a\"\nschedule = \"0 24 * * *\"", "line 8: schedule"),
        ("schedule = \"@daily\"\ntimezone = \"Europe/Berln\"", "line 8: timezone: \"Europe/Berln\" is no time zone"),
        ("schedule = \"@daily\"\njitter = \"2d\"", "line 8: jitter"),
        ("schedule = \"@daily\"\nkeep = \"30\"", "line 8: keep"),
        ("schedule = \"@daily\"\nmax_rate = \"1kB\"", "line 8: max_rate"),
        ("schedule = \"@daily\"\nlabel = \"a\\nb\"", "line 8: label"),
        ("label = \"a\"", "[[cluster.main.backup]] number 1: schedule: is missing"),
        ("schedule = \"@daily\"\nevery = 1", "line 8"),
        (
            "schedule = \"@daily\"\n[[cluster.main.backup]]\nschedule = \"@weekly\"",
            "number 2: label: \"scheduled\" is the label of another",
        ),
    ] {
        let message = refusal(&with_schedule(lines), &[]);
        assert!(message.contains(part), "{lines:?}: {message}");
    }
    let message = refusal(SMALL, &[("WALKEEP_BACKUP_SCHEDULE", "at night")]);
    assert!(message.contains("WALKEEP_BACKUP_SCHEDULE: \"at night\": 2 fields"), "{message}");
}
