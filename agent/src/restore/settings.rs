//! The settings of a recovery, in `postgresql.auto.conf`, and the signal that begins it.
//!
//! A restored directory carries the settings of the server it was copied from. What would bind the copy to that server's archive, standbys or
//! primary is neutralised, so that a copy can be started beside the original without harm to it.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use walkeep_core::data_directory::CONFIG_FOLDER;
use walkeep_core::partial::Needed;
use walkeep_core::plan::RestorePlan;
use walkeep_core::target::{RecoverySettings, quote_conf};

use super::Options;
use super::target_dir::Target;
use crate::durable;
use crate::server_conf::{Conf, DATA_DIRECTORY, line, overrule_data_directory, setting};

/// Folders within folders that configuration files were taken from.
const CONFIG_DEPTH: u32 = 32;
const AUTO_CONF: &str = "postgresql.auto.conf";

/// Settings of an earlier recovery or of a standby: taken out where they stand in `postgresql.auto.conf`.
const TAKEN_OUT: [&str; 6] =
    ["restore_command", "archive_cleanup_command", "recovery_end_command", "primary_conninfo", "primary_slot_name", "promote_trigger_file"];
const TARGETS: &str = "recovery_target";
/// The settings that name a target.
const ALL_TARGETS: [&str; 5] =
    ["recovery_target", "recovery_target_lsn", "recovery_target_name", "recovery_target_time", "recovery_target_xid"];

/// The lines to be added.
#[derive(Debug, Clone)]
pub struct Lines(Vec<String>);

/// The settings that carry out `plan`.
pub fn lines(plan: &RestorePlan, options: &Options) -> Lines {
    let mut lines = vec![
        format!("# Added by walkeep restore of backup {}.", plan.backup.id),
        format!("restore_command = {}", quote_conf(&options.restore_command)),
    ];
    lines.extend(RecoverySettings::new(plan, options.action).lines());
    // They may stand in postgresql.conf too, or in a file that it includes. An old cleanup command would delete from the archive; a delay would hold the recovery up.
    for name in ["archive_cleanup_command", "recovery_end_command", "primary_conninfo", "primary_slot_name"] {
        lines.push(format!("{name} = ''"));
    }
    lines.push("recovery_min_apply_delay = 0".into());
    if !options.keep_archiving {
        lines.push("archive_mode = 'off'".into());
    }
    if !options.keep_synchronous_standbys {
        lines.push("synchronous_standby_names = ''".into());
    }
    // The scratch server has its own word on it.
    if options.needed != Needed::Everything && !options.throw_away {
        lines.push("ignore_invalid_pages = on".into());
    }
    Lines(lines)
}

/// Writes the settings and the signal. Answers warnings.
pub fn write(target: &Target, lines: &Lines) -> Result<Vec<String>> {
    let mut warnings = Vec::new();
    let (mut first, mut places) = (Vec::new(), Vec::new());
    match Conf::read(&target.data) {
        None => warnings.push(without_conf(&target.data)),
        Some(conf) => {
            places = own_files(&conf, target, &mut warnings);
            // It would replace the original's. Only then: a server complains of the empty name.
            places.extend(conf.get("external_pid_file").map(|_| "external_pid_file = ''".to_owned()));
            let left = conf.take_out(&target.data, &[&[DATA_DIRECTORY], &ALL_TARGETS[..]].concat())?;
            for setting in &left {
                if setting.name == DATA_DIRECTORY {
                    overrule_data_directory(&target.data, setting)?;
                }
                let (file, name) = (setting.file.display(), &setting.name);
                warnings.push(format!("{file} sets {name}, and postgresql.conf includes it: overruled for {}", target.data.display()));
            }
            // PostgreSQL takes the settings one after the other, and two targets are an error at any moment: the other's goes before ours comes.
            first = left.iter().filter(|setting| setting.name != DATA_DIRECTORY).map(|setting| format!("{} = ''", setting.name)).collect();
            warnings.extend(
                conf.unread
                    .iter()
                    .map(|unread| format!("postgresql.conf includes what cannot be read here, and the server may not start: {unread}")),
            );
        }
    }
    let path = target.data.join(AUTO_CONF);
    let mode = if target.dir_mode & 0o050 != 0 { 0o640 } else { durable::PRIVATE_FILE };
    // Not UTF-8 in a comment or a path is none of our business: lines are kept as bytes.
    let mut text = keep(&read_if_there(&path)?.unwrap_or_default());
    if !text.is_empty() && !text.ends_with(b"\n") {
        text.push(b'\n');
    }
    for line in first.iter().chain(&lines.0).chain(&places) {
        text.extend_from_slice(line.as_bytes());
        text.push(b'\n');
    }
    durable::write_file(&path, &text, mode)?;
    durable::write_file(&target.data.join("recovery.signal"), b"", mode)?;
    Ok(warnings)
}

/// How to start a server whose configuration lay outside its data directory. What was taken along names the original's files: each is named anew.
fn without_conf(data: &Path) -> String {
    let (to, none) = (data.display(), "the backup has no postgresql.conf: the server's configuration lay outside its data directory");
    let mut found = Vec::new();
    config_files(&data.join(CONFIG_FOLDER), &mut found, CONFIG_DEPTH);
    found.sort();
    let file = |name: &str| found.iter().find(|path| path.file_name().is_some_and(|found| found == name));
    let Some(conf) = file("postgresql.conf") else {
        return format!("{none}. Put postgresql.conf, pg_hba.conf and pg_ident.conf into {to}, or start the server with a config_file");
    };
    let other = |setting: &str, name: &str| file(name).map(|path| format!(" -c {setting}={}", path.display())).unwrap_or_default();
    format!(
        "{none}. What the backup has of it is in {to}/{CONFIG_FOLDER}. Copy from there what is right for this host, or start with it: \
         postgres -D {to} -c data_directory={to} -c config_file={}{}{}",
        conf.display(),
        other("hba_file", "pg_hba.conf"),
        other("ident_file", "pg_ident.conf")
    )
}

fn config_files(folder: &Path, found: &mut Vec<PathBuf>, depth: u32) {
    for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
        match entry.file_type() {
            Ok(kind) if kind.is_dir() && depth > 0 => config_files(&entry.path(), found, depth - 1),
            Ok(kind) if kind.is_file() => found.push(entry.path()),
            _ => {}
        }
    }
}

/// Writes the lines and the signal, and nothing of what the original had in `postgresql.auto.conf`: for a server that reads no other file of the
/// original's configuration either. Answers which libraries the original loads at its start, as far as files of the backup tell.
pub fn write_only(target: &Target, lines: &Lines) -> Result<Vec<String>> {
    let preloaded = "shared_preload_libraries";
    let own = read_if_there(&target.data.join(AUTO_CONF))?.unwrap_or_default();
    let of_auto = own.split(|byte| *byte == b'\n').filter_map(line).rfind(|(name, _)| name == preloaded).map(|(_, value)| value);
    let of_conf = || Conf::read(&target.data).and_then(|conf| conf.get(preloaded).map(|setting| setting.value.clone()));
    let libraries = of_auto.or_else(of_conf).filter(|libraries| !libraries.is_empty());
    let text = lines.0.join("\n") + "\n";
    durable::write_file(&target.data.join(AUTO_CONF), text.as_bytes(), durable::PRIVATE_FILE)?;
    durable::write_file(&target.data.join("recovery.signal"), b"", durable::PRIVATE_FILE)?;
    let warning =
        |libraries| format!("the original loads {libraries} at its start (shared_preload_libraries); the scratch server does not");
    Ok(libraries.map(warning).into_iter().collect())
}

/// Lines for `hba_file` and `ident_file` where they name the original's file of which the copy has its own. Files elsewhere are the operator's: who may
/// connect is not for us to change.
fn own_files(conf: &Conf, target: &Target, warnings: &mut Vec<String>) -> Vec<String> {
    let original = conf.get("data_directory").map(|setting| setting.value.clone());
    let mut lines = Vec::new();
    for name in ["hba_file", "ident_file"] {
        let Some(setting) = conf.get(name) else { continue };
        let below = original.as_ref().and_then(|original| Path::new(&setting.value).strip_prefix(original).ok());
        let own = below.map(|below| target.data.join(below)).filter(|own| own.is_file());
        match own.as_ref().and_then(|own| own.to_str()) {
            Some(own) => lines.push(format!("{name} = {}", quote_conf(own))),
            None => {
                warnings.push(format!("{} sets {name} to {}, which the restored server will use", setting.file.display(), setting.value))
            }
        }
    }
    lines
}

fn read_if_there(path: &Path) -> Result<Option<Vec<u8>>> {
    match fs::read(path) {
        Ok(content) => Ok(Some(content)),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error).with_context(|| format!("read {}", path.display())),
    }
}

/// `text` without the settings of an earlier recovery.
fn keep(text: &[u8]) -> Vec<u8> {
    let stays = |line: &&[u8]| setting(line).is_none_or(|name| !name.starts_with(TARGETS) && !TAKEN_OUT.contains(&name.as_str()));
    text.split_inclusive(|byte| *byte == b'\n').filter(stays).flatten().copied().collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn settings_of_another_recovery_are_taken_out() {
        let before =
            b"# Do not edit\nwork_mem = '4MB'\nRecovery_Target_Time='2020-01-01'\n  recovery_target_xid 5\nprimary_conninfo = 'host=x'\n\
                       restore_command = 'cp'\n#recovery_target = ''\nlast = 'x'";
        assert_eq!(keep(before), b"# Do not edit\nwork_mem = '4MB'\n#recovery_target = ''\nlast = 'x'");
    }
}
