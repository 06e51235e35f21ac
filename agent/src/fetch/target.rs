//! Whether a recovery that asks has a target: then PostgreSQL does not open at the end of the WAL, but fails before its target.

use std::path::Path;

use super::recovery_folder;
use crate::server_conf::line;

/// The settings that name one. `recovery_target_timeline` and others say how, and none of them where.
const TARGETS: [&str; 5] =
    ["recovery_target", "recovery_target_lsn", "recovery_target_name", "recovery_target_time", "recovery_target_xid"];

/// Whether the `postgresql.auto.conf` of the data directory to which `destination` belongs names a target, as `walkeep restore` writes it. PostgreSQL reads it last.
/// Without an answer there is none.
pub(super) fn is_set(destination: &Path) -> bool {
    let data = recovery_folder(destination).and_then(Path::parent);
    data.and_then(|data| std::fs::read(data.join("postgresql.auto.conf")).ok()).is_some_and(|text| names_one(&text))
}

fn names_one(text: &[u8]) -> bool {
    TARGETS.iter().any(|target| {
        let last = text.split(|byte| *byte == b'\n').filter_map(line).rfind(|(name, _)| name == target);
        last.is_some_and(|(_, value)| !value.is_empty())
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_line_of_a_target_counts() {
        assert!(names_one(b"restore_command = 'x'\nrecovery_target_lsn = '0/3000148'\n"));
        assert!(names_one(b"recovery_target_xid = ''\nrecovery_target_time = ''\nrecovery_target = 'immediate'\n"));
        assert!(!names_one(b"recovery_target_xid = '7'\nrecovery_target_xid = ''\n"), "taken back");
        assert!(!names_one(b"recovery_target_timeline = '1'\nrecovery_target_action = 'pause'\nrecovery_target_inclusive = on\n"));
        assert!(!names_one(b"#recovery_target_lsn = '0/3000148'\n"));
        assert!(!names_one(b""));
    }

    #[test]
    fn only_of_a_data_directory_that_recovers() {
        let folder = tempfile::tempdir().unwrap();
        std::fs::create_dir(folder.path().join("pg_wal")).unwrap();
        let asks = |name: &str| is_set(&folder.path().join("pg_wal").join(name));
        assert!(!asks("RECOVERYXLOG"), "nothing is said");
        std::fs::write(folder.path().join("postgresql.auto.conf"), "recovery_target_lsn = '0/3000148'\n").unwrap();
        assert!(asks("RECOVERYXLOG"));
        assert!(!asks("000000010000000000000003"));
    }
}
