//! Every key of the configuration by environment variable, laid over the file.
//!
//! A key of the chosen cluster is `WALKEEP_<KEY>` (`WALKEEP_SPOOL`, `WALKEEP_UPLOAD_INTERVAL`), one of its repository
//! `WALKEEP_REPOSITORY_<KEY>` (`WALKEEP_REPOSITORY_URL`, of the second one `WALKEEP_REPOSITORY_2_URL`), one of its first schedule `WALKEEP_BACKUP_<KEY>` (`WALKEEP_BACKUP_SCHEDULE`), of its retention
//! `WALKEEP_RETENTION_<KEY>` (`WALKEEP_RETENTION_WINDOW`), of its encryption `WALKEEP_ENCRYPTION_<KEY>` (`WALKEEP_ENCRYPTION_IDENTITY`), of what it verifies `WALKEEP_VERIFY_<KEY>`, the others `WALKEEP_LISTEN_<KEY>`,
//! `WALKEEP_LOG_FORMAT`, `WALKEEP_LOG_LEVEL`, and of messages `WALKEEP_NOTIFY_<KEY>` and `WALKEEP_NOTIFY_EMAIL_<KEY>`.

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

const REPOSITORY: [(&str, Kind); 18] = [
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

/// What else Walkeep's programs read.
const OTHERS: [&str; 13] = [
    "WALKEEP_CONFIG",
    "WALKEEP_CLUSTER",
    "WALKEEP_SOCKET",
    "WALKEEP_BIN",
    "WALKEEP_PG_BIN",
    "WALKEEP_ARCHIVE_TIMEOUT",
    "WALKEEP_RESTORE_TIMEOUT",
    "WALKEEP_LISTEN_HTTP",
    "WALKEEP_LISTEN_PAGE",
    "WALKEEP_LISTEN_TOKEN",
    "WALKEEP_LISTEN_TOKEN_FILE",
    "WALKEEP_LOG_FORMAT",
    "WALKEEP_LOG_LEVEL",
];

/// So many repositories can be given by environment.
const REPOSITORIES: usize = 9;

/// The variable of a key of repository number `index`, the first being 0.
pub fn variable_of_repository(index: usize, key: &str) -> String {
    format!("WALKEEP_{}{}", of_repository(index), key.to_uppercase())
}

fn of_repository(index: usize) -> String {
    match index {
        0 => "REPOSITORY_".to_owned(),
        index => format!("REPOSITORY_{}_", index + 1),
    }
}

/// The variable of a schedule's key.
pub fn variable_of_backup(key: &str) -> String {
    format!("WALKEEP_BACKUP_{}", key.to_uppercase())
}

fn variable_of_retention(key: &str) -> String {
    format!("WALKEEP_RETENTION_{}", key.to_uppercase())
}

/// A warning for each variable that looks like one of ours and is none. Not an error: Kubernetes sets `WALKEEP_PORT` and others of the
/// kind in every container beside a service that is called so.
pub fn unknown(names: impl Iterator<Item = String>) -> Vec<String> {
    let known = |name: &str| {
        OTHERS.contains(&name)
            || CLUSTER.iter().any(|(key, _)| name == format!("WALKEEP_{}", key.to_uppercase()))
            || REPOSITORY.iter().any(|(key, _)| (0..REPOSITORIES).any(|index| name == variable_of_repository(index, key)))
            || BACKUP.iter().any(|(key, _)| name == variable_of_backup(key))
            || VERIFY.iter().any(|(key, _)| name == format!("WALKEEP_VERIFY_{}", key.to_uppercase()))
            || NOTIFY.iter().any(|(key, _)| name == format!("WALKEEP_NOTIFY_{}", key.to_uppercase()))
            || EMAIL.iter().any(|(key, _)| name == format!("WALKEEP_NOTIFY_EMAIL_{}", key.to_uppercase()))
            || RETENTION.iter().any(|(key, _)| name == variable_of_retention(key))
            || ENCRYPTION.iter().any(|(key, _)| name == format!("WALKEEP_ENCRYPTION_{}", key.to_uppercase()))
    };
    let mut unknown: Vec<_> = names.filter(|name| name.starts_with("WALKEEP_") && !known(name)).collect();
    unknown.sort_unstable();
    unknown.iter().map(|name| format!("{name} is set in the environment and means nothing to Walkeep: is it misspelt?")).collect()
}

/// Lays the environment over `table`.
pub fn overlay(table: &mut toml::Table, cluster: &ClusterName, env: &dyn Fn(&str) -> Option<String>) -> Result<()> {
    let given = |prefix: &str, (key, kind): (&str, Kind)| -> Result<Option<Value>> {
        let variable = format!("WALKEEP_{prefix}{}", key.to_uppercase());
        env(&variable).map(|text| value(&text, kind).with_context(|| format!("read {variable}"))).transpose()
    };
    let of_all = [
        ("listen", "http", Text),
        ("listen", "page", Boolean),
        ("listen", "token", Text),
        ("listen", "token_file", Text),
        ("log", "format", Text),
        ("log", "level", Text),
        ("metrics", "textfile", Text),
        ("metrics", "pushgateway", Text),
    ];
    for (section, key, kind) in of_all {
        if let Some(value) = given(&format!("{}_", section.to_uppercase()), (key, kind))? {
            child(table, section)?.insert(key.into(), value);
        }
    }
    for (key, kind) in NOTIFY {
        if let Some(value) = given("NOTIFY_", (key, kind))? {
            child(table, "notify")?.insert(key.into(), value);
        }
    }
    for (key, kind) in EMAIL {
        if let Some(value) = given("NOTIFY_EMAIL_", (key, kind))? {
            child(child(table, "notify")?, "email")?.insert(key.into(), value);
        }
    }
    for (key, kind) in CLUSTER {
        if let Some(value) = given("", (key, kind))? {
            child(child(table, "cluster")?, cluster.as_str())?.insert(key.into(), value);
        }
    }
    for (index, (key, kind)) in (0..REPOSITORIES).flat_map(|index| REPOSITORY.map(|key| (index, key))) {
        if let Some(value) = given(&of_repository(index), (key, kind))? {
            number_of(child(child(table, "cluster")?, cluster.as_str())?, "repository", index)?.insert(key.into(), value);
        }
    }
    for (key, kind) in ENCRYPTION {
        if let Some(value) = given("ENCRYPTION_", (key, kind))? {
            child(child(child(table, "cluster")?, cluster.as_str())?, "encryption")?.insert(key.into(), value);
        }
    }
    for (key, kind) in BACKUP {
        if let Some(value) = given("BACKUP_", (key, kind))? {
            first_of(child(child(table, "cluster")?, cluster.as_str())?, "backup")?.insert(key.into(), value);
        }
    }
    for (key, kind) in VERIFY {
        if let Some(value) = given("VERIFY_", (key, kind))? {
            child(child(child(table, "cluster")?, cluster.as_str())?, "verify")?.insert(key.into(), value);
        }
    }
    for (key, kind) in RETENTION {
        if let Some(value) = given("RETENTION_", (key, kind))? {
            child(child(child(table, "cluster")?, cluster.as_str())?, "retention")?.insert(key.into(), value);
        }
    }
    Ok(())
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

fn first_of<'a>(cluster: &'a mut toml::Table, name: &str) -> Result<&'a mut toml::Table> {
    number_of(cluster, name, 0)
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
