//! The settings of a recovery, in `postgresql.auto.conf`, and the signal that begins it.
//!
//! A restored directory carries the settings of the server it was copied from. What would bind the copy to that server's archive, standbys or
//! primary is neutralised, so that a copy can be started beside the original without harm to it.

use std::fs;
use std::path::Path;

use anyhow::{Context, Result};
use walkeep_core::plan::RestorePlan;
use walkeep_core::target::{RecoverySettings, quote_conf};

use super::Options;
use super::target_dir::Target;
use crate::durable;

const AUTO_CONF: &str = "postgresql.auto.conf";

/// Settings of an earlier recovery or of a standby: taken out where they stand in `postgresql.auto.conf`.
const TAKEN_OUT: [&str; 6] =
    ["restore_command", "archive_cleanup_command", "recovery_end_command", "primary_conninfo", "primary_slot_name", "promote_trigger_file"];
const TARGETS: &str = "recovery_target";

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
    // They may stand in postgresql.conf too. An old cleanup command would delete from the archive.
    for name in ["archive_cleanup_command", "recovery_end_command", "primary_conninfo", "primary_slot_name"] {
        lines.push(format!("{name} = ''"));
    }
    if !options.keep_archiving {
        lines.push("archive_mode = 'off'".into());
    }
    if !options.keep_synchronous_standbys {
        lines.push("synchronous_standby_names = ''".into());
    }
    Lines(lines)
}

/// Writes the settings and the signal. Answers warnings.
pub fn write(target: &Target, lines: &Lines) -> Result<Vec<String>> {
    let path = target.data.join(AUTO_CONF);
    let mode = if target.dir_mode & 0o050 != 0 { 0o640 } else { durable::PRIVATE_FILE };
    // Not UTF-8 in a comment or a path is none of our business: lines are kept as bytes.
    let mut text = keep(&read_if_there(&path)?.unwrap_or_default());
    if !text.is_empty() && !text.ends_with(b"\n") {
        text.push(b'\n');
    }
    for line in &lines.0 {
        text.extend_from_slice(line.as_bytes());
        text.push(b'\n');
    }
    durable::write_file(&path, &text, mode)?;
    durable::write_file(&target.data.join("recovery.signal"), b"", mode)?;

    let conf = target.data.join("postgresql.conf");
    let mut warnings = Vec::new();
    match read_if_there(&conf)? {
        None => warnings.push(format!(
            "the backup has no postgresql.conf: the server's configuration lay outside its data directory. Put postgresql.conf, pg_hba.conf and \
             pg_ident.conf into {}, or start the server with a config_file",
            target.data.display()
        )),
        Some(text) => {
            let targets = text.split(|byte| *byte == b'\n').filter_map(setting).filter(|name| name.starts_with(TARGETS));
            for name in targets {
                warnings.push(format!("postgresql.conf sets {name}; take it out, or the recovery may have two targets and not begin"));
            }
        }
    }
    Ok(warnings)
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

/// The name a line sets, in lower case, as PostgreSQL compares names.
fn setting(line: &[u8]) -> Option<String> {
    let line = line.trim_ascii_start();
    let end = line.iter().position(|byte| !byte.is_ascii_alphanumeric() && !matches!(byte, b'_' | b'.')).unwrap_or(line.len());
    (end > 0).then(|| String::from_utf8_lossy(&line[..end]).to_ascii_lowercase())
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

    #[test]
    fn a_name_ends_where_postgresql_ends_it() {
        assert_eq!(setting(b"  A_b.c = 1"), Some("a_b.c".to_owned()));
        assert_eq!(setting(b"x'y'"), Some("x".to_owned()));
        assert_eq!(setting(b"# x"), None);
        assert_eq!(setting(b""), None);
    }
}
