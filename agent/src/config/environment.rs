//! Every key of the configuration by environment variable, laid over the file.
//!
//! A key of the chosen cluster is `WALKEEP_<KEY>` (`WALKEEP_SPOOL`, `WALKEEP_UPLOAD_INTERVAL`), one of its repository
//! `WALKEEP_REPOSITORY_<KEY>` (`WALKEEP_REPOSITORY_URL`, of the second one `WALKEEP_REPOSITORY_2_URL`), one of its first schedule `WALKEEP_BACKUP_<KEY>` (`WALKEEP_BACKUP_SCHEDULE`), of its retention
//! `WALKEEP_RETENTION_<KEY>` (`WALKEEP_RETENTION_WINDOW`), of its encryption `WALKEEP_ENCRYPTION_<KEY>` (`WALKEEP_ENCRYPTION_IDENTITY`), of what it verifies `WALKEEP_VERIFY_<KEY>`, of its drills `WALKEEP_DRILL_<KEY>`, the others
//! `WALKEEP_LISTEN_<KEY>`, `WALKEEP_LOG_<KEY>`, `WALKEEP_METRICS_<KEY>`, and of messages `WALKEEP_NOTIFY_<KEY>` and `WALKEEP_NOTIFY_EMAIL_<KEY>`.

use std::collections::HashSet;

use anyhow::{Context, Result, bail};
use toml::Value;
use walkeep_core::layout::ClusterName;

/// How the text of a variable becomes a value.
#[derive(Clone, Copy)]
enum Kind {
    Text,
    Integer,
    Boolean,
}

use Kind::{Boolean, Integer, Text};

const CLUSTER: [(&str, Kind); 18] = [
    ("connection", Text),
    ("data_directory", Text),
    ("config_files", Boolean),
    ("spool", Text),
    ("spool_limit", Text),
    ("socket", Text),
    ("slot", Text),
    ("application_name", Text),
    ("upload_interval", Text),
    ("acknowledge", Text),
    ("protect", Text),
    ("slot_limit", Text),
    ("compression_level", Integer),
    ("wal_compression_level", Integer),
    ("upload_parallelism", Integer),
    ("stream", Boolean),
    ("acknowledge_rule", Text),
    ("compare_interval", Text),
];

const REPOSITORY: [(&str, Kind); 19] = [
    ("url", Text),
    ("endpoint", Text),
    ("region", Text),
    ("path_style", Boolean),
    ("storage_class", Text),
    ("wal_storage_class", Text),
    ("backup_storage_class", Text),
    ("object_lock", Text),
    ("object_lock_days", Integer),
    ("as_of", Text),
    ("encryption", Text),
    ("kms_key_id", Text),
    ("ca_file", Text),
    ("profile", Text),
    ("access_key_id", Text),
    ("secret_access_key_file", Text),
    ("session_token_file", Text),
    ("timeout", Text),
    ("prices", Text),
];

const ENCRYPTION: [(&str, Kind); 5] =
    [("recipients", Text), ("recipients_file", Text), ("identity_file", Text), ("fingerprint_key_file", Text), ("identity", Text)];

const BACKUP: [(&str, Kind); 9] = [
    ("schedule", Text),
    ("timezone", Text),
    ("jitter", Text),
    ("catch_up", Boolean),
    ("label", Text),
    ("keep", Text),
    ("full", Boolean),
    ("max_rate", Text),
    ("spread_checkpoint", Boolean),
];

const RETENTION: [(&str, Kind); 9] = [
    ("window", Text),
    ("daily", Integer),
    ("weekly", Integer),
    ("monthly", Integer),
    ("yearly", Integer),
    ("minimum_backups", Integer),
    ("timezone", Text),
    ("grace", Text),
    ("automatic", Boolean),
];

const VERIFY: [(&str, Kind); 3] = [("check", Text), ("scrub", Text), ("rate", Text)];

const NOTIFY: [(&str, Kind); 10] = [
    ("webhook", Text),
    ("webhook_file", Text),
    ("command", Text),
    ("heartbeat", Text),
    ("heartbeat_file", Text),
    ("heartbeat_interval", Text),
    ("wait", Text),
    ("remind", Text),
    ("most_an_hour", Integer),
    ("possible_loss", Text),
];

const EMAIL: [(&str, Kind); 6] =
    [("server", Text), ("user", Text), ("password", Text), ("password_file", Text), ("from", Text), ("to", Text)];

const DRILL: [(&str, Kind); 12] = [
    ("schedule", Text),
    ("timezone", Text),
    ("jitter", Text),
    ("catch_up", Boolean),
    ("target", Text),
    ("deadline", Text),
    ("scratch", Text),
    ("bin_dir", Text),
    ("amcheck", Text),
    ("checksums", Text),
    ("sample", Text),
    ("sample_limit", Text),
];

const LISTEN: [(&str, Kind); 4] = [("http", Text), ("page", Boolean), ("token", Text), ("token_file", Text)];

const LOG: [(&str, Kind); 2] = [("format", Text), ("level", Text)];

const METRICS: [(&str, Kind); 3] = [("textfile", Text), ("pushgateway", Text), ("backup_names", Boolean)];

/// Where the keys of a section are.
#[derive(Clone, Copy)]
enum Place {
    /// In this table of the file.
    File(&'static [&'static str]),
    /// In this table of the chosen cluster.
    Cluster(&'static [&'static str]),
    /// In the table of this number, counted from 0, in this list of the chosen cluster.
    Listed(&'static str, usize),
}

/// Keys that are given alike.
struct Section {
    /// Between `WALKEEP_` and the key.
    prefix: String,
    place: Place,
    keys: &'static [(&'static str, Kind)],
}

/// All of them.
fn sections() -> Vec<Section> {
    let section = |prefix: &str, place, keys| Section { prefix: prefix.to_owned(), place, keys };
    let mut sections = vec![
        section("LISTEN_", Place::File(&["listen"]), &LISTEN),
        section("LOG_", Place::File(&["log"]), &LOG),
        section("METRICS_", Place::File(&["metrics"]), &METRICS),
        section("NOTIFY_", Place::File(&["notify"]), &NOTIFY),
        section("NOTIFY_EMAIL_", Place::File(&["notify", "email"]), &EMAIL),
        section("", Place::Cluster(&[]), &CLUSTER),
        section("ENCRYPTION_", Place::Cluster(&["encryption"]), &ENCRYPTION),
        section(OF_BACKUP, Place::Listed("backup", 0), &BACKUP),
        section("RETENTION_", Place::Cluster(&["retention"]), &RETENTION),
        section("VERIFY_", Place::Cluster(&["verify"]), &VERIFY),
        section("DRILL_", Place::Cluster(&["drill"]), &DRILL),
    ];
    sections.extend((0..REPOSITORIES).map(|index| section(&of_repository(index), Place::Listed("repository", index), &REPOSITORY)));
    sections
}

/// What else Walkeep's programs read.
const OTHERS: [&str; 8] = [
    "WALKEEP_CONFIG",
    "WALKEEP_CLUSTER",
    "WALKEEP_SOCKET",
    "WALKEEP_BIN",
    "WALKEEP_PG_BIN",
    "WALKEEP_ARCHIVE_TIMEOUT",
    "WALKEEP_RESTORE_TIMEOUT",
    "WALKEEP_TRACEABLE",
];

/// What Walkeep gives to the commands that it runs: one of them may run Walkeep.
const GIVEN: [&str; 8] =
    ["WALKEEP_RUN", "WALKEEP_EVENT", "WALKEEP_SEVERITY", "WALKEEP_NAME", "WALKEEP_HOST", "WALKEEP_SUBJECT", "WALKEEP_TEXT", "WALKEEP_JSON"];

/// So many repositories can be given by environment.
const REPOSITORIES: usize = 9;

/// Before a schedule's keys.
const OF_BACKUP: &str = "BACKUP_";

/// The variable of a key of repository number `index`, the first being 0.
pub fn variable_of_repository(index: usize, key: &str) -> String {
    variable(&of_repository(index), key)
}

/// The variable of a schedule's key.
pub fn variable_of_backup(key: &str) -> String {
    variable(OF_BACKUP, key)
}

fn of_repository(index: usize) -> String {
    match index {
        0 => "REPOSITORY_".to_owned(),
        index => format!("REPOSITORY_{}_", index + 1),
    }
}

fn variable(prefix: &str, key: &str) -> String {
    format!("WALKEEP_{prefix}{}", key.to_uppercase())
}

/// A warning for each variable that looks like one of ours and is none. Not an error: Kubernetes sets `WALKEEP_PORT` and others of the
/// kind in every container beside a service that is called so.
pub fn unknown(names: impl Iterator<Item = String>) -> Vec<String> {
    let of_section = |section: &Section| section.keys.iter().map(|(key, _)| variable(&section.prefix, key)).collect::<Vec<_>>();
    let keys: HashSet<String> = sections().iter().flat_map(of_section).collect();
    let known = |name: &str| OTHERS.contains(&name) || GIVEN.contains(&name) || keys.contains(name);
    let mut unknown: Vec<_> = names.filter(|name| name.starts_with("WALKEEP_") && !known(name)).collect();
    unknown.sort_unstable();
    unknown.iter().map(|name| format!("{name} is set in the environment and means nothing to Walkeep: is it misspelt?")).collect()
}

/// A variable that is set, if one is, and is meant for one cluster.
pub fn given_to_one(env: &dyn Fn(&str) -> Option<String>) -> Option<String> {
    let of_one = |section: &Section| !matches!(section.place, Place::File(_));
    let variables = |section: Section| section.keys.iter().map(move |(key, _)| variable(&section.prefix, key));
    sections().into_iter().filter(of_one).flat_map(variables).find(|name| env(name).is_some())
}

/// Lays the environment over `table`.
pub fn overlay(table: &mut toml::Table, cluster: &ClusterName, env: &dyn Fn(&str) -> Option<String>) -> Result<()> {
    for Section { prefix, place, keys } in sections() {
        for (key, kind) in keys {
            let variable = variable(&prefix, key);
            let Some(text) = env(&variable) else { continue };
            let value = value(&text, *kind).with_context(|| format!("read {variable}"))?;
            place.of(table, cluster)?.insert((*key).into(), value);
        }
    }
    Ok(())
}

impl Place {
    /// The table, made if it is not there.
    fn of<'a>(self, table: &'a mut toml::Table, cluster: &ClusterName) -> Result<&'a mut toml::Table> {
        let (within, path) = match self {
            Self::File(path) => (table, path),
            Self::Cluster(path) => (child(child(table, "cluster")?, cluster.as_str())?, path),
            Self::Listed(name, index) => return number_of(child(child(table, "cluster")?, cluster.as_str())?, name, index),
        };
        path.iter().try_fold(within, |table, name| child(table, name))
    }
}

fn value(text: &str, kind: Kind) -> Result<Value> {
    Ok(match kind {
        Text => Value::String(text.into()),
        Integer => Value::Integer(text.parse().with_context(|| format!("{text:?} is not a whole number"))?),
        Boolean => match text {
            "true" | "on" | "yes" | "1" => Value::Boolean(true),
            "false" | "off" | "no" | "0" => Value::Boolean(false),
            _ => bail!("{text:?} is neither true nor false"),
        },
    })
}

fn child<'a>(table: &'a mut toml::Table, key: &str) -> Result<&'a mut toml::Table> {
    let entry = table.entry(key).or_insert_with(|| Value::Table(toml::Table::new()));
    entry.as_table_mut().with_context(|| format!("{key} is not a table"))
}

/// The table of this number, made if it is the next one.
fn number_of<'a>(cluster: &'a mut toml::Table, name: &str, index: usize) -> Result<&'a mut toml::Table> {
    let wrong = || format!("{name} is not a list of tables");
    let entry = cluster.entry(name).or_insert_with(|| Value::Array(Vec::new()));
    let list = entry.as_array_mut().with_context(wrong)?;
    if list.len() == index {
        list.push(Value::Table(toml::Table::new()));
    }
    let count = list.len();
    let table =
        list.get_mut(index).with_context(|| format!("number {} of {name} is given by environment, and there are {count}", index + 1))?;
    table.as_table_mut().with_context(wrong)
}
