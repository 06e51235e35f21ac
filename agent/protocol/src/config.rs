//! Where the agent's socket is, read out of its configuration without a TOML parser.
//!
//! Only `socket = "..."` within a `[cluster.NAME]` table is looked for, and only as a string on one line in double quotes (with `\"` and
//! `\\`) or single quotes. Dotted keys (`cluster.main.socket = ...`) and inline tables are not understood; a line of a multi-line
//! string that looks like a table or a key is taken for one. Who needs those gives the shims `--socket`.

use std::fmt;
use std::path::PathBuf;

/// The cluster that is meant when none is named.
pub const DEFAULT_CLUSTER: &str = "main";

/// The socket of a cluster whose configuration names none.
pub fn default_socket(cluster: &str) -> PathBuf {
    format!("/run/walkeep/{cluster}.sock").into()
}

/// The configuration does not tell the socket.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ConfigError {
    /// There is no table for this cluster.
    NoSuchCluster {
        /// The cluster.
        name: String,
    },
    /// Several clusters, none of them `main`, and none was asked for.
    WhichCluster,
    /// The value of `socket` is not a plain string.
    NotAPlainString {
        /// The line, counted from 1.
        line: usize,
    },
}

impl fmt::Display for ConfigError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NoSuchCluster { name } => write!(f, "there is no [cluster.{name}]"),
            Self::WhichCluster => f.write_str("it does not say which cluster is meant; name one with --cluster"),
            Self::NotAPlainString { line } => write!(f, "line {line}: expected socket = \"/a/path\""),
        }
    }
}

impl std::error::Error for ConfigError {}

/// The socket of `cluster` according to the configuration `text`. Without a name it is `main`, or the only cluster there is.
pub fn socket_from_config(text: &str, cluster: Option<&str>) -> Result<PathBuf, ConfigError> {
    let clusters = clusters(text)?;
    let named = |name: &str| clusters.iter().find(|(found, _)| found == name);
    let found = match (cluster, clusters.as_slice()) {
        (Some(name), _) => named(name).ok_or_else(|| ConfigError::NoSuchCluster { name: name.to_owned() })?,
        (None, [only]) => only,
        (None, _) => named(DEFAULT_CLUSTER).ok_or(ConfigError::WhichCluster)?,
    };
    let (name, socket) = found;
    Ok(socket.clone().unwrap_or_else(|| default_socket(name)))
}

/// Every `[cluster.NAME]` and its socket.
fn clusters(text: &str) -> Result<Vec<(String, Option<PathBuf>)>, ConfigError> {
    let mut clusters: Vec<(String, Option<PathBuf>)> = Vec::new();
    let mut within = false;
    for (index, line) in text.lines().enumerate() {
        let line = line.trim();
        if line.starts_with('[') {
            let name = cluster_name(line);
            within = name.is_some();
            clusters.extend(name.map(|name| (name, None)));
        } else if let Some((key, value)) = line.split_once('=').filter(|_| within)
            && key.trim() == "socket"
            && let Some((_, socket)) = clusters.last_mut()
        {
            *socket = Some(plain_string(value).ok_or(ConfigError::NotAPlainString { line: index + 1 })?.into());
        }
    }
    Ok(clusters)
}

/// The NAME of a line `[cluster.NAME]`; tables within the cluster, such as `[[cluster.main.repository]]`, are none.
fn cluster_name(line: &str) -> Option<String> {
    let (inside, rest) = line.strip_prefix('[')?.split_once(']')?;
    let name = inside.trim().strip_prefix("cluster")?.trim_start().strip_prefix('.')?.trim();
    if name.starts_with(['"', '\'']) {
        return plain_string(name).filter(|_| is_end(rest));
    }
    let bare = !name.is_empty() && name.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_' || b == b'-');
    (bare && is_end(rest)).then(|| name.to_owned())
}

/// The string in quotes that is all of `text`, but for a comment.
fn plain_string(text: &str) -> Option<String> {
    let text = text.trim_start();
    if let Some(literal) = text.strip_prefix('\'') {
        let (value, rest) = literal.split_once('\'')?;
        return is_end(rest).then(|| value.to_owned());
    }
    let mut value = String::new();
    let mut characters = text.strip_prefix('"')?.chars();
    loop {
        match characters.next()? {
            '"' => return is_end(characters.as_str()).then_some(value),
            '\\' => value.push(characters.next().filter(|c| matches!(c, '"' | '\\'))?),
            other => value.push(other),
        }
    }
}

/// Nothing more on this line, but for a comment.
fn is_end(rest: &str) -> bool {
    let rest = rest.trim_start();
    rest.is_empty() || rest.starts_with('#')
}

#[cfg(test)]
mod tests {
    use super::*;

    const TWO: &str = r#"
        socket = "/not/this"
        [cluster.main]            # the first
        spool = "/spool" # socket = "/not/this"
        socket = "/run/a.sock"    # comment
        [[cluster.main.repository]]
        socket = "/not/this/either"
        [ cluster . "the other" ]
        socket='/run/b "b".sock'
        [cluster.plain]
        [listen]
        socket = "/nor/this"
    "#;

    #[test]
    fn finds_the_clusters_socket() {
        assert_eq!(socket_from_config(TWO, None), Ok("/run/a.sock".into()));
        assert_eq!(socket_from_config(TWO, Some("the other")), Ok(r#"/run/b "b".sock"#.into()));
        assert_eq!(socket_from_config(TWO, Some("plain")), Ok("/run/walkeep/plain.sock".into()));
        assert_eq!(socket_from_config("[cluster.x]\nsocket = \"/a\\\\\\\"b\"", None), Ok("/a\\\"b".into()));
    }

    #[test]
    fn says_what_it_cannot_tell() {
        assert_eq!(socket_from_config(TWO, Some("mian")), Err(ConfigError::NoSuchCluster { name: "mian".into() }));
        assert_eq!(socket_from_config("[cluster.a]\n[cluster.b]", None), Err(ConfigError::WhichCluster));
        assert_eq!(socket_from_config("", None), Err(ConfigError::WhichCluster));
        for value in ["/a", "\"/a", "\"/a\" x", "\"\"\"/a\"\"\"", "\"\\u0041\"", "[\"/a\"]", "7", ""] {
            let text = format!("[cluster.main]\nsocket = {value}");
            assert_eq!(socket_from_config(&text, None), Err(ConfigError::NotAPlainString { line: 2 }), "{value}");
        }
    }
}
