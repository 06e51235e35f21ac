//! libpq's password file (`~/.pgpass`): `host:port:database:user:password` lines.

use std::io::Read;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

/// A password file larger than this is not read: it is something else.
const MAX_BYTES: u64 = 1 << 20;

/// The password that the file gives for a connection. A file that others can read is ignored with a warning, as libpq does.
pub(super) fn lookup(path: &Path, hosts: &[&str], port: u16, database: &str, user: &str) -> Option<String> {
    let file = std::fs::File::open(path).ok()?;
    let metadata = file.metadata().ok()?;
    if !metadata.is_file() {
        tracing::warn!(path = %path.display(), "the password file is not a plain file and is ignored");
        return None;
    }
    if metadata.mode() & 0o077 != 0 {
        tracing::warn!(path = %path.display(), "the password file can be read by group or others and is ignored; its mode should be 0600");
        return None;
    }
    let mut text = String::new();
    file.take(MAX_BYTES).read_to_string(&mut text).ok()?;
    find(&text, hosts, &port.to_string(), database, user)
}

fn find(text: &str, hosts: &[&str], port: &str, database: &str, user: &str) -> Option<String> {
    text.lines().filter(|line| !line.starts_with('#')).find_map(|line| {
        let (host, rest) = field(line)?;
        let (line_port, rest) = field(rest)?;
        let (line_database, rest) = field(rest)?;
        let (line_user, password) = field(rest)?;
        let matches = |pattern: &str, value: &str| pattern == "*" || unescape(pattern) == value;
        let all = hosts.iter().any(|name| matches(host, name))
            && matches(line_port, port)
            && matches(line_database, database)
            && matches(line_user, user);
        all.then(|| unescape(password))
    })
}

/// The text up to the first colon without a backslash before it, and what follows that colon.
fn field(line: &str) -> Option<(&str, &str)> {
    let mut escaped = false;
    for (index, byte) in line.bytes().enumerate() {
        match byte {
            _ if escaped => escaped = false,
            b'\\' => escaped = true,
            b':' => return Some((&line[..index], &line[index + 1..])),
            _ => {}
        }
    }
    None
}

fn unescape(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    let mut chars = text.chars();
    while let Some(c) = chars.next() {
        out.push(if c == '\\' { chars.next().unwrap_or(c) } else { c });
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    const FILE: &str =
        "# comment\nh:5432:db:u:first\n*:*:*:w:x\\:y:z\\\\\nlocal\\:host:1:*:u:second\r\nbroken\n*:5433:replication:u:third\n";

    #[test]
    fn finds_the_first_line_that_matches() {
        assert_eq!(find(FILE, &["h"], "5432", "db", "u").as_deref(), Some("first"));
        assert_eq!(find(FILE, &["any"], "1", "any", "w").as_deref(), Some("x:y:z\\"));
        assert_eq!(find(FILE, &["local:host"], "1", "any", "u").as_deref(), Some("second"));
        assert_eq!(find(FILE, &["a", "b"], "5433", "replication", "u").as_deref(), Some("third"));
        assert_eq!(find(FILE, &["h"], "5432", "other", "u"), None);
    }

    #[test]
    fn a_file_that_others_can_read_is_ignored() {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("pgpass");
        std::fs::write(&path, FILE).expect("written");
        for (mode, found) in [(0o640, false), (0o600, true)] {
            std::fs::set_permissions(&path, std::fs::Permissions::from_mode(mode)).expect("mode set");
            assert_eq!(lookup(&path, &["h"], 5432, "db", "u").is_some(), found, "{mode:o}");
        }
        assert_eq!(lookup(&dir.path().join("none"), &["h"], 5432, "db", "u"), None);
    }
}
