//! TARGET on the command line: what `plan` and `restore` share.

use anyhow::{Result, anyhow, ensure};
use clap::Args;
use walkeep_core::layout::BackupId;
use walkeep_core::names::{Accident, Sought};
use walkeep_core::target::{RecoveryTarget, RestorePointName, TargetKind, parse_time};
use walkeep_core::{Lsn, TimelineId};

/// Where the recovery is to stop.
#[derive(Debug, Clone, Args)]
pub struct TargetArgs {
    #[command(flatten)]
    kind: KindArgs,
    /// Along this timeline's history [default: the newest]
    #[arg(long, value_name = "N")]
    timeline: Option<TimelineId>,
    /// Stop just before the target instead of just after
    #[arg(long)]
    exclusive: bool,
    /// From this backup; a unique beginning of its ID will do [default: the newest that leads to the target]
    #[arg(long, value_name = "ID")]
    backup: Option<String>,
}

#[derive(Debug, Clone, Args)]
#[group(multiple = false)]
struct KindArgs {
    /// The end of what is stored (the default)
    #[arg(long)]
    latest: bool,
    /// A moment of the server's clock, with its zone: '2026-11-20 14:30:00+01' or 2026-11-20T13:30:00Z
    #[arg(long, value_name = "TIME")]
    at: Option<String>,
    /// A position, as in 16/B374D848
    #[arg(long, value_name = "LSN")]
    lsn: Option<Lsn>,
    /// A transaction's number, as pg_current_xact_id() told it (its lower 32 bits)
    #[arg(long, value_name = "XID")]
    xid: Option<u32>,
    /// A name given by pg_create_restore_point
    #[arg(long, value_name = "NAME")]
    restore_point: Option<String>,
    /// As soon as the backup is consistent
    #[arg(long)]
    immediate: bool,
    /// Just before this table was dropped: NAME, SCHEMA.NAME, DATABASE.SCHEMA.NAME, or SCHEMA.* for a schema's tables
    #[arg(long, value_name = "TABLE")]
    before_drop: Option<String>,
    /// Just before this table was truncated
    #[arg(long, value_name = "TABLE")]
    before_truncate: Option<String>,
    /// Just before this database was dropped
    #[arg(long, value_name = "NAME")]
    before_drop_database: Option<String>,
}

impl TargetArgs {
    /// The end of what is stored.
    pub fn latest() -> Self {
        let kind = KindArgs {
            latest: true,
            at: None,
            lsn: None,
            xid: None,
            restore_point: None,
            immediate: false,
            before_drop: None,
            before_truncate: None,
            before_drop_database: None,
        };
        Self { kind, timeline: None, exclusive: false, backup: None }
    }

    /// A position.
    pub fn at_lsn(lsn: Lsn) -> Self {
        let latest = Self::latest();
        Self { kind: KindArgs { latest: false, lsn: Some(lsn), ..latest.kind }, ..latest }
    }

    /// Whether nothing at all was said.
    pub fn says_nothing(&self) -> bool {
        !self.kind.latest && self.words() == "--latest"
    }

    /// Refuses what cannot be meant, before anything is read.
    pub fn check(&self) -> Result<()> {
        if self.sought()?.is_some() {
            ensure!(!self.exclusive, "--exclusive is not needed: it is just before the drop anyway");
            return Ok(());
        }
        let kind = self.kind()?;
        let has_two_sides = matches!(kind, TargetKind::Time(_) | TargetKind::Lsn(_) | TargetKind::Xid(_));
        ensure!(
            has_two_sides || !self.exclusive,
            "--exclusive goes with --at, --lsn or --xid: PostgreSQL knows no \"just before\" for {kind}"
        );
        Ok(())
    }

    /// What was asked for, as the audit trail has it.
    pub fn words(&self) -> String {
        let KindArgs { at, restore_point, before_drop, before_truncate, before_drop_database, lsn, xid, immediate, .. } = &self.kind;
        let texts = [
            ("at", at.clone()),
            ("lsn", lsn.map(|lsn| lsn.to_string())),
            ("xid", xid.map(|xid| xid.to_string())),
            ("restore-point", restore_point.clone()),
            ("before-drop", before_drop.clone()),
            ("before-truncate", before_truncate.clone()),
            ("before-drop-database", before_drop_database.clone()),
            ("timeline", self.timeline.map(|timeline| timeline.to_string())),
            ("backup", self.backup.clone()),
        ];
        let flags = [("immediate", *immediate), ("exclusive", self.exclusive)];
        let texts = texts.into_iter().filter_map(|(name, value)| Some(format!("--{name} {}", value?)));
        let flags = flags.into_iter().filter(|(_, given)| *given).map(|(name, _)| format!("--{name}"));
        let words: Vec<String> = texts.chain(flags).collect();
        if words.is_empty() { "--latest".to_owned() } else { words.join(" ") }
    }

    /// Whether recovery runs to the end of what is stored.
    pub fn is_latest(&self) -> bool {
        matches!((self.sought(), self.kind()), (Ok(None), Ok(TargetKind::Latest)))
    }

    /// The accident to be just before, if it is asked for by name. Where that was, has to be looked for: see [`super::before`].
    pub fn sought(&self) -> Result<Option<Sought>> {
        let KindArgs { before_drop, before_truncate, before_drop_database, .. } = &self.kind;
        Ok(match (before_drop, before_truncate, before_drop_database) {
            (Some(table), ..) => Some(Sought::Drop(table.parse()?)),
            (_, Some(table), _) => Some(Sought::Truncate(table.parse()?)),
            (.., Some(name)) => Some(Sought::DropDatabase(name.clone())),
            _ => None,
        })
    }

    /// The timeline asked for.
    pub fn timeline(&self) -> Option<TimelineId> {
        self.timeline
    }

    /// The target just before `accident`.
    pub fn just_before(&self, accident: Accident, backups: &[BackupId]) -> Result<RecoveryTarget> {
        let target = RecoveryTarget { kind: TargetKind::Lsn(accident.lsn), inclusive: false, ..self.target(backups)? };
        Ok(RecoveryTarget { before: Some(accident), ..target })
    }

    fn kind(&self) -> Result<TargetKind> {
        let KindArgs { at, lsn, xid, restore_point, immediate, .. } = &self.kind;
        Ok(match (at, lsn, xid, restore_point, immediate) {
            (Some(time), ..) => TargetKind::Time(parse_time(time)?),
            (_, Some(lsn), ..) => TargetKind::Lsn(*lsn),
            (_, _, Some(xid), ..) => TargetKind::Xid(*xid),
            (_, _, _, Some(name), _) => TargetKind::RestorePoint(RestorePointName::parse(name)?),
            (_, _, _, _, true) => TargetKind::Immediate,
            _ => TargetKind::Latest,
        })
    }

    /// The target; `backups` are the IDs that a beginning may stand for.
    pub fn target(&self, backups: &[BackupId]) -> Result<RecoveryTarget> {
        let kind = self.kind()?;
        let backup = self.backup.as_deref().map(|begin| choose(begin, backups)).transpose()?;
        Ok(RecoveryTarget { kind, timeline: self.timeline, inclusive: !self.exclusive, backup, before: None })
    }
}

fn choose(begin: &str, backups: &[BackupId]) -> Result<BackupId> {
    let fitting: Vec<&BackupId> = backups.iter().filter(|id| id.as_str().starts_with(begin)).collect();
    match fitting.as_slice() {
        [only] => Ok((*only).clone()),
        [] => Err(anyhow!("no backup's ID begins with {begin:?}; `walkeep backups` lists them")),
        several => {
            let listed = several.iter().map(|id| id.as_str()).collect::<Vec<_>>().join(", ");
            Err(anyhow!("several backups' IDs begin with {begin:?}: {listed}"))
        }
    }
}
