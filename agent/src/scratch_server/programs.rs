//! PostgreSQL's programs of a version: where they are looked for, and that they are what they seem.

use std::path::{Path, PathBuf};
use std::process::Command;

use walkeep_core::MajorVersion;

/// Programs were not found.
#[derive(Debug, thiserror::Error)]
#[error("no {program} of PostgreSQL {wanted} was found; looked in {}", .looked.join(", "))]
pub struct NotFound {
    program: String,
    wanted: String,
    looked: Vec<String>,
    major: MajorVersion,
    server: bool,
}

impl NotFound {
    /// What to do.
    pub fn hint(&self) -> String {
        let (major, package) = (self.major, if self.server { "postgresql" } else { "postgresql-client" });
        let rpm = if self.server { format!("postgresql{major}-server") } else { format!("postgresql{major}") };
        format!("install {package}-{major} (Debian, Ubuntu) or {rpm} (RPM), or name the folder with --bin-dir or WALKEEP_PG_BIN")
    }
}

/// Where programs may be.
#[derive(Debug, Clone)]
pub struct Programs {
    major: MajorVersion,
    folders: Vec<PathBuf>,
}

/// psql and pg_dump, of one version.
#[derive(Debug, Clone)]
pub struct Clients {
    /// pg_dump.
    pub pg_dump: PathBuf,
    /// psql.
    pub psql: PathBuf,
}

impl Programs {
    /// For a server of this major version: in the folders named, where the server on `data_directory` runs from, where distributions put them, on
    /// the PATH.
    pub fn new(major: MajorVersion, named: &[PathBuf], data_directory: Option<&Path>) -> Self {
        let mut folders = named.to_vec();
        folders.extend(data_directory.and_then(running_server));
        folders.push(format!("/usr/lib/postgresql/{major}/bin").into());
        folders.push(format!("/usr/pgsql-{major}/bin").into());
        // Clients of later versions will do.
        let later: Vec<u32> = (major.get() + 1..).take_while(|later| MajorVersion::new(*later).is_supported()).collect();
        folders.extend(later.iter().rev().map(|later| format!("/usr/lib/postgresql/{later}/bin").into()));
        folders.extend(std::env::var_os("PATH").iter().flat_map(std::env::split_paths));
        Self { major, folders }
    }

    /// The server's program, of exactly this version.
    pub fn postgres(&self) -> Result<PathBuf, NotFound> {
        let found = self.folders.iter().map(|folder| folder.join("postgres")).find(|path| version(path) == Some(self.major.get()));
        found.ok_or_else(|| self.not_found("postgres", self.major.to_string(), true))
    }

    /// The programs that copy tables, of this version or a later one.
    pub fn clients(&self) -> Result<Clients, NotFound> {
        let both = self.folders.iter().map(|folder| Clients { pg_dump: folder.join("pg_dump"), psql: folder.join("psql") });
        let new_enough = |path: &Path| version(path).is_some_and(|found| found >= self.major.get());
        let found = both.into_iter().find(|both| new_enough(&both.pg_dump) && new_enough(&both.psql));
        found.ok_or_else(|| self.not_found("pg_dump and psql", format!("{} or later", self.major), false))
    }

    /// pg_amcheck, of this version or a later one; there is none before 14.
    pub fn pg_amcheck(&self) -> Option<PathBuf> {
        let new_enough = |path: &PathBuf| version(path).is_some_and(|found| found >= self.major.get().max(14));
        self.folders.iter().map(|folder| folder.join("pg_amcheck")).find(new_enough)
    }

    /// pg_checksums, of exactly this version.
    pub fn pg_checksums(&self) -> Option<PathBuf> {
        self.folders.iter().map(|folder| folder.join("pg_checksums")).find(|path| version(path) == Some(self.major.get()))
    }

    fn not_found(&self, program: &str, wanted: String, server: bool) -> NotFound {
        let mut looked: Vec<String> = self.folders.iter().map(|folder| folder.display().to_string()).collect();
        looked.dedup();
        NotFound { program: program.to_owned(), wanted, looked, major: self.major, server }
    }
}

/// The folder that the server on this data directory runs from, if it is ours to see.
fn running_server(data: &Path) -> Option<PathBuf> {
    let file = std::fs::read_to_string(data.join("postmaster.pid")).ok()?;
    let pid: u32 = file.lines().next()?.trim().parse().ok()?;
    let program = std::fs::read_link(format!("/proc/{pid}/exe")).ok()?;
    (program.file_name()? == "postgres").then(|| program.parent().map(Path::to_owned))?
}

/// What a program says of itself: `postgres (PostgreSQL) 15.18 (Debian 15.18-1)`.
fn version(program: &Path) -> Option<u32> {
    if !program.is_file() {
        return None;
    }
    let said = Command::new(program).arg("--version").output().ok()?;
    parse_version(&String::from_utf8_lossy(&said.stdout))
}

fn parse_version(said: &str) -> Option<u32> {
    let (_, rest) = said.split_once("(PostgreSQL) ")?;
    let digits = rest.bytes().take_while(u8::is_ascii_digit).count();
    rest[..digits].parse().ok()
}

/// The folder of the newest server that Debian's packages have installed here.
pub fn newest_installed() -> Option<PathBuf> {
    let entries = std::fs::read_dir("/usr/lib/postgresql").ok()?;
    let version = |entry: std::fs::DirEntry| entry.file_name().to_str()?.parse::<u32>().ok();
    let versions = entries.flatten().filter_map(version).filter(|version| MajorVersion::new(*version).is_supported());
    versions.max().map(|version| PathBuf::from(format!("/usr/lib/postgresql/{version}/bin")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_are_read() {
        for (said, version) in [
            ("postgres (PostgreSQL) 15.18 (Debian 15.18-0+deb12u1)\n", Some(15)),
            ("pg_dump (PostgreSQL) 18beta1", Some(18)),
            ("postgres (EnterpriseDB) 15", None),
            ("", None),
        ] {
            assert_eq!(parse_version(said), version, "{said}");
        }
    }

    #[test]
    fn what_is_missing_is_told_with_what_to_install() {
        let programs = Programs { major: MajorVersion::new(13), folders: vec!["/nowhere".into()] };
        let error = programs.postgres().unwrap_err();
        assert_eq!(error.to_string(), "no postgres of PostgreSQL 13 was found; looked in /nowhere");
        assert!(error.hint().contains("install postgresql-13 ") && programs.clients().unwrap_err().hint().contains("postgresql-client-13"));
    }
}
