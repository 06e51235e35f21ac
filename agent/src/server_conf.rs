//! A server's configuration: `postgresql.conf` and the files that it includes. A restore looks at what the restored server will read; a backup takes along
//! what lies outside the data directory.
//!
//! Most settings are overridden in `postgresql.auto.conf`, which PostgreSQL reads last. Some cannot be: with the original's `data_directory`, a server that
//! is started on the copy opens the original's files; and two recovery targets are an error wherever they stand. Those become comments where they
//! stand below the copy.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use walkeep_core::target::quote_conf;

use crate::durable;

/// Which files a server opens.
pub const DATA_DIRECTORY: &str = "data_directory";
/// PostgreSQL's own bound.
const DEPTH: u32 = 10;
/// No configuration has more files; files that include each other several times would be read millions of times within [`DEPTH`].
pub const FILES: usize = 1000;
/// No configuration file is longer.
pub const LIMIT: u64 = 16 << 20;

/// One line that sets something.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Setting {
    /// Where it stands.
    pub file: PathBuf,
    /// In lower case.
    pub name: String,
    /// Without quotes.
    pub value: String,
}

/// All settings in the order in which they count: a later one overrules an earlier one.
#[derive(Debug, Default)]
pub struct Conf {
    /// The settings.
    pub settings: Vec<Setting>,
    /// The files read.
    pub files: Vec<PathBuf>,
    /// What cannot be read, and why: the server will not start without it.
    pub unread: Vec<String>,
    /// Includes were left unread, as there is no end of them.
    endless: bool,
}

impl Conf {
    /// Reads `postgresql.conf` below `data` and what it includes; `None` without one.
    pub fn read(data: &Path) -> Option<Self> {
        let path = data.join("postgresql.conf");
        path.exists().then(|| Self::read_file(&path))
    }

    /// Reads a configuration file and what it includes.
    pub fn read_file(path: &Path) -> Self {
        let mut conf = Self::default();
        conf.file(path, 0);
        conf
    }

    /// What counts of a setting.
    pub fn get(&self, name: &str) -> Option<&Setting> {
        self.settings.iter().rev().find(|setting| setting.name == name)
    }

    fn file(&mut self, path: &Path, depth: u32) {
        if depth > DEPTH || self.files.len() == FILES {
            // Told once: files that include each other come here again and again.
            if !std::mem::replace(&mut self.endless, true) {
                self.cannot_read(path, format!("included too deep, or more than {FILES} files"));
            }
            return;
        }
        let read = fs::metadata(path).and_then(|metadata| match metadata.is_file() && metadata.len() <= LIMIT {
            true => fs::read(path),
            false => Err(std::io::Error::other("not a configuration file")),
        });
        let text = match read {
            Ok(text) => text,
            Err(error) => return self.cannot_read(path, error),
        };
        self.files.push(path.to_owned());
        for (name, value) in text.split(|byte| *byte == b'\n').filter_map(line) {
            // Relative to the file that includes.
            let included = path.parent().map_or_else(|| PathBuf::from(&value), |folder| folder.join(&value));
            match name.as_str() {
                "include" => self.file(&included, depth + 1),
                "include_if_exists" if included.exists() => self.file(&included, depth + 1),
                "include_if_exists" => {}
                "include_dir" => self.folder(&included, depth + 1),
                _ => self.settings.push(Setting { file: path.to_owned(), name, value }),
            }
        }
    }

    fn cannot_read(&mut self, path: &Path, reason: impl std::fmt::Display) {
        self.unread.push(format!("{}: {reason}", path.display()));
    }

    fn folder(&mut self, path: &Path, depth: u32) {
        let entries = match fs::read_dir(path) {
            Ok(entries) => entries,
            Err(error) => return self.cannot_read(path, error),
        };
        let names = entries.filter_map(|entry| Some(entry.ok()?.file_name()));
        let mut names: Vec<_> =
            names.filter(|name| name.to_str().is_some_and(|name| name.ends_with(".conf") && !name.starts_with('.'))).collect();
        names.sort();
        for name in names {
            self.file(&path.join(name), depth);
        }
    }

    /// Makes comments of the lines below `data` that set one of `names`. Answers those in files elsewhere, which are not ours to change.
    pub fn take_out(&self, data: &Path, names: &[&str]) -> Result<Vec<&Setting>> {
        let own = fs::canonicalize(data).with_context(|| format!("look at {}", data.display()))?;
        let mut left: Vec<_> = self.settings.iter().filter(|setting| names.contains(&setting.name.as_str())).collect();
        for file in &self.files {
            let inside = fs::canonicalize(file).is_ok_and(|file| file.starts_with(&own));
            if inside && left.iter().any(|setting| setting.file == *file) {
                left.retain(|setting| setting.file != *file);
                let text = fs::read(file).with_context(|| format!("read {}", file.display()))?;
                rewrite(file, &commented_out(&text, names))?;
            }
        }
        Ok(left)
    }
}

/// Says the last word on `data_directory` in postgresql.conf.
pub fn overrule_data_directory(data: &Path, other: &Setting) -> Result<()> {
    let path = data.join("postgresql.conf");
    let mut text = fs::read(&path).with_context(|| format!("read {}", path.display()))?;
    let value = quote_conf(data.to_str().with_context(|| format!("{} is not UTF-8", data.display()))?);
    text.extend_from_slice(
        format!("\n# Added by walkeep restore: {} names another.\n{DATA_DIRECTORY} = {value}\n", other.file.display()).as_bytes(),
    );
    rewrite(&path, &text)
}

fn rewrite(path: &Path, text: &[u8]) -> Result<()> {
    use std::os::unix::fs::PermissionsExt;
    let mode = fs::metadata(path).with_context(|| format!("look at {}", path.display()))?.permissions().mode() & 0o777;
    durable::write_file(path, text, mode)
}

fn commented_out(text: &[u8], names: &[&str]) -> Vec<u8> {
    let mut kept = Vec::with_capacity(text.len() + 64);
    for part in text.split_inclusive(|byte| *byte == b'\n') {
        if setting(part).is_some_and(|name| names.contains(&name.as_str())) {
            kept.extend_from_slice(b"# taken out by walkeep restore: ");
        }
        kept.extend_from_slice(part);
    }
    kept
}

/// The name a line sets, in lower case, as PostgreSQL compares names.
pub fn setting(line: &[u8]) -> Option<String> {
    let line = line.trim_ascii_start();
    let end = line.iter().position(|byte| !byte.is_ascii_alphanumeric() && !matches!(byte, b'_' | b'.')).unwrap_or(line.len());
    (end > 0).then(|| String::from_utf8_lossy(&line[..end]).to_ascii_lowercase())
}

/// A line's name and value: `name = 'it''s'`, `name value # comment`.
pub(crate) fn line(line: &[u8]) -> Option<(String, String)> {
    let name = setting(line)?;
    let rest = line.trim_ascii_start()[name.len()..].trim_ascii_start();
    let rest = rest.strip_prefix(b"=").unwrap_or(rest).trim_ascii_start();
    let mut value = Vec::new();
    match rest.strip_prefix(b"'") {
        None => value.extend(rest.iter().take_while(|byte| !byte.is_ascii_whitespace() && **byte != b'#')),
        Some(quoted) => {
            let mut bytes = quoted.iter().copied().peekable();
            while let Some(byte) = bytes.next() {
                match byte {
                    b'\'' if bytes.next_if_eq(&b'\'').is_none() => break,
                    // Octal and control characters make no path that anybody uses.
                    b'\\' => value.extend(bytes.next()),
                    byte => value.push(byte),
                }
            }
        }
    }
    Some((name, String::from_utf8_lossy(&value).into_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_ends_where_postgresql_ends_it() {
        assert_eq!(setting(b"  A_b.c = 1"), Some("a_b.c".to_owned()));
        assert_eq!(setting(b"x'y'"), Some("x".to_owned()));
        assert_eq!(setting(b"# x"), None);
        assert_eq!(setting(b""), None);
    }

    #[test]
    fn values_are_read_as_postgresql_reads_them() {
        let value = |text: &str| line(text.as_bytes()).map(|(_, value)| value);
        for (text, expected) in [
            ("a = 'it''s' # c", "it's"),
            ("a='x\\'y'", "x'y"),
            ("A  b#c", "b"),
            ("\ta\t=\tb  # c", "b"),
            ("a 'b c'", "b c"),
            ("a = ''", ""),
            ("a", ""),
        ] {
            assert_eq!(value(text).as_deref(), Some(expected), "{text:?}");
        }
        assert_eq!(value("# a = b"), None);
    }

    #[test]
    fn included_files_count_where_they_are_included() {
        let dir = tempfile::tempdir().unwrap();
        let data = dir.path().join("data");
        fs::create_dir_all(data.join("conf.d/.hidden.conf")).unwrap();
        let write = |name: &str, text: &str| fs::write(data.join(name), text).unwrap();
        write("postgresql.conf", "a = 1\ninclude_dir 'conf.d'\ninclude_if_exists = 'none'\ninclude 'missing'\ndata_directory = '/x'\n");
        write("conf.d/2.conf", "a = 3\ninclude '../loop'\n");
        write("conf.d/1.conf", "a = 2\r\nData_Directory = '/y'");
        write("conf.d/3.off", "a = 9");
        write("loop", "include 'loop'\n");
        let conf = Conf::read(&data).unwrap();
        assert_eq!(conf.get("a").map(|setting| setting.value.as_str()), Some("3"));
        assert_eq!(conf.get("data_directory").map(|setting| setting.value.as_str()), Some("/x"));
        assert_eq!(conf.unread.len(), 2, "{:?}", conf.unread);
        assert!(conf.take_out(&data, &[DATA_DIRECTORY]).unwrap().is_empty());
        let conf = Conf::read(&data).unwrap();
        assert_eq!((conf.get("data_directory"), conf.get("a").is_some()), (None, true));
        assert!(Conf::read(dir.path()).is_none());
    }

    #[test]
    fn files_that_include_each_other_end() {
        let dir = tempfile::tempdir().unwrap();
        let write = |name: &str, text: &str| fs::write(dir.path().join(name), text).unwrap();
        write("postgresql.conf", &format!("a = 1\n{}data_directory = '/x'\n", "include 'postgresql.conf'\ninclude_dir '.'\n".repeat(5)));
        write("other.conf", &"include 'postgresql.conf'\n".repeat(5));
        let conf = Conf::read(dir.path()).unwrap();
        assert_eq!(conf.files.len(), FILES);
        assert_eq!(conf.unread.len(), 1, "{:?}", conf.unread);
        assert!(conf.take_out(dir.path(), &[DATA_DIRECTORY]).unwrap().is_empty());
        assert_eq!(Conf::read(dir.path()).unwrap().get(DATA_DIRECTORY), None);
    }

    #[test]
    fn a_file_elsewhere_is_overruled_and_left_alone() {
        let dir = tempfile::tempdir().unwrap();
        let (data, outside) = (dir.path().join("data"), dir.path().join("outside.conf"));
        fs::create_dir(&data).unwrap();
        fs::write(&outside, "data_directory = '/x'\n").unwrap();
        fs::write(data.join("postgresql.conf"), format!("include '{}'", outside.display())).unwrap();
        let conf = Conf::read(&data).unwrap();
        let left = conf.take_out(&data, &[DATA_DIRECTORY]).unwrap();
        overrule_data_directory(&data, left[0]).unwrap();
        assert_eq!(Conf::read(&data).unwrap().get("data_directory").unwrap().value, data.display().to_string());
        assert_eq!(fs::read_to_string(outside).unwrap(), "data_directory = '/x'\n");
    }
}
