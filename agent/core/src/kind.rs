//! What kind of object a key is of, whichever cluster's: for how it is put, which is decided by kind.
//!
//! Coarser than [`crate::layout`], which says what an object is and where it lies.

/// Kinds of objects that are kept differently.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum ObjectKind {
    /// Whole segments, `.partial`s and notes.
    Wal,
    /// Parts of an unfinished segment: replaced within hours.
    Part,
    /// Data of backups.
    Pack,
    /// Data of dumps and artifacts.
    Artifact,
    /// What can be made again, and may be removed for that: the index.
    Index,
    /// What is merged and removed as time goes on: the records of expiries.
    Expiry,
    /// Objects by which a store is tried.
    Scratch,
    /// All else: identities, histories, manifests, records, gaps, leases. Small, read by every command.
    Record,
}

impl ObjectKind {
    /// Of the object at `key`.
    pub fn of_key(key: &str) -> Self {
        let mut steps = key.split('/');
        let (_, second, folder) = (steps.next(), steps.next(), steps.next());
        let is_data = key.ends_with(".zst") || key.ends_with(".zst.age");
        match folder {
            None if second.is_some_and(|name| name.starts_with("probe-")) => Self::Scratch,
            Some("wal") if key.contains(".parts/") => Self::Part,
            Some("wal") if key.ends_with(".history.zst") => Self::Record,
            Some("wal") => Self::Wal,
            Some("packs") => Self::Pack,
            Some("artifacts") if is_data => Self::Artifact,
            Some("index") => Self::Index,
            Some("expired") => Self::Expiry,
            _ => Self::Record,
        }
    }

    /// Whether the object at `key` makes others count that were stored before it: the record of a backup, an artifact or a drill.
    pub fn commits(key: &str) -> bool {
        let mut steps = key.split('/').skip(2);
        matches!(
            (steps.next(), key.rsplit('/').next()),
            (Some("backups"), Some("backup.json")) | (Some("artifacts"), Some("artifact.json")) | (Some("drills"), Some("drill.json"))
        )
    }

    /// Whether nobody removes it before retention lets it go: what may be locked from the start.
    pub const fn stays(self) -> bool {
        matches!(self, Self::Wal | Self::Pack | Self::Artifact | Self::Record)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kinds_are_told_by_keys() {
        let root = "main/7000000000000000001";
        let wal = format!("{root}/wal/00000002/00000001/00000002000000010000000A");
        for (key, kind) in [
            ("walkeep.json".to_owned(), ObjectKind::Record),
            ("main/cluster.2.json".to_owned(), ObjectKind::Record),
            ("main/probe-7-8".to_owned(), ObjectKind::Scratch),
            (format!("{wal}.zst"), ObjectKind::Wal),
            (format!("{wal}.partial.000000ab.zst.age"), ObjectKind::Wal),
            (format!("{wal}.parts/00000000-00002000.00000001.zst.age"), ObjectKind::Part),
            (format!("{root}/wal/00000002.history.zst"), ObjectKind::Record),
            (format!("{root}/packs/ab/abab"), ObjectKind::Pack),
            (format!("{root}/backups/20261121T034712Z-0000000002000028/manifest.zst"), ObjectKind::Record),
            (format!("{root}/backups/20261121T034712Z-0000000002000028/backup.json"), ObjectKind::Record),
            (format!("{root}/index/00000001/blocks/0-1.zst"), ObjectKind::Index),
            (format!("{root}/names/00000001/1.zst"), ObjectKind::Record),
            (format!("{root}/expired/0000000A.json"), ObjectKind::Expiry),
            (format!("{root}/artifacts/etc/1/1.zst.age"), ObjectKind::Artifact),
            (format!("{root}/artifacts/etc/1/artifact.json"), ObjectKind::Record),
            (format!("{root}/drills/1/drill.json"), ObjectKind::Record),
            (format!("{root}/drills/1/report.html.zst"), ObjectKind::Record),
        ] {
            assert_eq!(ObjectKind::of_key(&key), kind, "{key}");
            let commits = ["/artifact.json", "/backup.json", "/drill.json"].iter().any(|name| key.ends_with(name));
            assert_eq!(ObjectKind::commits(&key), commits, "{key}");
        }
    }
}
