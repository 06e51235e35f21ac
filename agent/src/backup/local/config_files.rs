//! The configuration files that lie outside the data directory, as Debian has them in `/etc/postgresql`: taken along, since without them a restored
//! server is another server.
//!
//! They are found by what the server says (`config_file`, `hba_file`, `ident_file`) and by what these include. What cannot be read is told and left:
//! the data is worth a backup without it. Keys and certificates are not taken.

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use chrono::DateTime;
use walkeep_core::data_directory::CONFIG_FOLDER;
use walkeep_core::relative_path::RelativePath;

use crate::backup::pack::FileFacts;
use crate::server_conf::{Conf, FILES, LIMIT};

/// A file, read.
#[derive(Debug)]
pub struct ConfigFile {
    /// Its place in the backup.
    pub facts: FileFacts,
    pub bytes: Vec<u8>,
}

/// The files outside `data` of a server that reads `named` (first the settings, then who may connect), and what could not be read. Blocking.
pub fn collect(named: &[String], data: &Path) -> (Vec<ConfigFile>, Vec<String>) {
    let (mut found, mut unread) = (BTreeSet::new(), Vec::new());
    for (index, path) in named.iter().map(Path::new).enumerate() {
        if index == 0 {
            let conf = Conf::read_file(path);
            found.extend(conf.files);
            unread.extend(conf.unread);
        } else {
            access_files(path, &mut found);
        }
    }
    let own = fs::canonicalize(data).unwrap_or_else(|_| data.to_owned());
    let mut files = Vec::new();
    for path in found {
        match outside(&path, &own) {
            Ok(Some(file)) => files.push(file),
            Ok(None) => {}
            Err(error) => unread.push(format!("{}: {error:#}", path.display())),
        }
    }
    (files, unread)
}

/// Reads a file, unless it is below the data directory and so in the backup anyway. A link there that leads out is not.
fn outside(path: &Path, data: &Path) -> anyhow::Result<Option<ConfigFile>> {
    let real = fs::canonicalize(path)?;
    if real.starts_with(data) {
        return Ok(None);
    }
    let found = fs::metadata(&real)?;
    anyhow::ensure!(found.is_file() && found.len() <= LIMIT, "it is no configuration file");
    let name = path.to_str().and_then(|text| text.strip_prefix('/')).filter(|text| !text.split('/').any(|part| part == ".."));
    // A path with `..` in it is stored by its real one.
    let name = name.or_else(|| real.to_str().and_then(|text| text.strip_prefix('/')));
    let name = name.ok_or_else(|| anyhow::anyhow!("its path is not UTF-8"))?;
    let parts: Vec<&str> = name.split('/').filter(|part| !matches!(*part, "" | ".")).collect();
    let facts = FileFacts {
        path: RelativePath::parse(&format!("{CONFIG_FOLDER}/{}", parts.join("/")))?,
        // Who owns them is not kept: a restore makes them the server's own.
        mode: found.mode() & 0o640 | 0o600,
        mtime: DateTime::from_timestamp(found.mtime(), 0),
    };
    Ok(Some(ConfigFile { facts, bytes: fs::read(&real)? }))
}

/// A file that says who may connect, and those that it includes (from 16 on) or takes names from (`@file`).
fn access_files(path: &Path, found: &mut BTreeSet<PathBuf>) {
    if found.len() >= FILES || !found.insert(path.to_owned()) {
        return;
    }
    let small = fs::metadata(path).is_ok_and(|found| found.is_file() && found.len() <= LIMIT);
    let text = if small { fs::read(path).unwrap_or_default() } else { Vec::new() };
    let folder = path.parent().unwrap_or(Path::new("/"));
    for line in String::from_utf8_lossy(&text).lines() {
        let mut words =
            line.split(|c: char| c.is_whitespace() || c == ',').map(|word| word.trim_matches('"')).filter(|word| !word.is_empty());
        let Some(first) = words.next().filter(|first| !first.starts_with('#')) else { continue };
        match (first, words.next()) {
            ("include", Some(name)) => access_files(&folder.join(name), found),
            ("include_if_exists", Some(name)) if folder.join(name).exists() => access_files(&folder.join(name), found),
            ("include_if_exists", _) => {}
            ("include_dir", Some(name)) => {
                let entries = fs::read_dir(folder.join(name)).into_iter().flatten().flatten().map(|entry| entry.path());
                let files = entries.filter(|path| path.extension().is_some_and(|extension| extension == "conf"));
                files.for_each(|path| access_files(&path, found));
            }
            (_, second) => {
                let lists = second.into_iter().chain(words).take_while(|word| !word.starts_with('#'));
                lists.filter_map(|word| word.strip_prefix('@')).for_each(|name| access_files(&folder.join(name), found));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::symlink;

    #[test]
    fn files_outside_come_with_what_they_include() {
        let folder = tempfile::tempdir().unwrap();
        let root = fs::canonicalize(folder.path()).unwrap();
        let write = |name: &str, text: &str| {
            fs::create_dir_all(root.join(name).parent().unwrap()).unwrap();
            fs::write(root.join(name), text).unwrap();
            root.join(name).to_str().unwrap().to_owned()
        };
        let conf = write("etc/postgresql.conf", "include_dir = 'conf.d'\ninclude 'gone.conf'\ninclude_if_exists 'none'\n");
        write("etc/conf.d/a.conf", "work_mem = 1\n");
        write("etc/conf.d/a.off", "");
        let hba = write(
            "etc/pg_hba.conf",
            "# @none\nlocal @databases \"@users\" trust # @none\ninclude \"more/hba\"\ninclude_if_exists x\ninclude_dir hba.d\n",
        );
        for name in ["databases", "users", "more/hba", "hba.d/1.conf", "hba.d/2.off", "server.key"] {
            write(&format!("etc/{name}"), name);
        }
        let ident = write("data/pg_ident.conf", "");
        let (files, unread) = collect(&[conf, hba, ident], &root.join("data"));
        let begin = format!("{CONFIG_FOLDER}{}/etc/", root.display());
        let names: Vec<_> = files.iter().map(|file| file.facts.path.as_str().strip_prefix(&begin).unwrap()).collect();
        assert_eq!(names, ["conf.d/a.conf", "databases", "hba.d/1.conf", "more/hba", "pg_hba.conf", "postgresql.conf", "users"]);
        assert_eq!((files[0].bytes.as_slice(), unread.len()), (&b"work_mem = 1\n"[..], 1), "{unread:?}");
        assert!(unread[0].contains("gone.conf"), "{unread:?}");
    }

    #[test]
    fn a_link_that_leads_out_is_outside() {
        let folder = tempfile::tempdir().unwrap();
        let data = folder.path().join("data");
        fs::create_dir(&data).unwrap();
        fs::write(folder.path().join("real.conf"), "a = 1\n").unwrap();
        symlink("../real.conf", data.join("postgresql.conf")).unwrap();
        let named = data.join("postgresql.conf").to_str().unwrap().to_owned();
        let (files, unread) = collect(std::slice::from_ref(&named), &data);
        assert_eq!((files.len(), unread.len()), (1, 0));
        assert_eq!(files[0].facts.path.as_str(), format!("{CONFIG_FOLDER}{named}"));
        assert_eq!(files[0].bytes, b"a = 1\n");
    }
}
