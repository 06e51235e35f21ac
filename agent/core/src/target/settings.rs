//! What PostgreSQL is told about a recovery: lines for `postgresql.auto.conf`.

use serde::Serialize;

use crate::identity::TimelineId;
use crate::lsn::Lsn;
use crate::plan::{ResolvedTarget, RestorePlan};
use crate::time::PgTimestamp;

use super::time::print_time;

/// What the server does once it has reached the target.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum TargetAction {
    /// Opens for writing on a new timeline.
    Promote,
    /// Waits, open for reading: PostgreSQL's own default.
    #[default]
    Pause,
    /// Stops; the next start goes on in recovery.
    Shutdown,
}

/// The recovery settings of a plan. Exactly one target is named, since PostgreSQL refuses two; whoever writes the lines takes out
/// `recovery_target*` lines that came with the backup (setting them empty is an error in some versions).
#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
pub struct RecoverySettings {
    settings: Vec<(&'static str, String)>,
}

impl RecoverySettings {
    /// The settings that carry out `plan`.
    pub fn new(plan: &RestorePlan, action: TargetAction) -> Self {
        let mut settings = Self::of(&plan.resolved, plan.timeline, action);
        // Reading ahead of the replay, as servers do from 15 on, would ask for WAL that is missing behind the stop, and wait for it for ever.
        if plan.hole_follows && plan.backup.major_version.get() >= 15 {
            settings.settings.push(("recovery_prefetch", "off".to_owned()));
        }
        settings
    }

    pub(crate) fn of(target: &ResolvedTarget, timeline: TimelineId, action: TargetAction) -> Self {
        let mut settings: Vec<(&'static str, String)> = Vec::new();
        let inclusive = |inclusive: bool| ("recovery_target_inclusive", inclusive.to_string());
        match target {
            ResolvedTarget::EndOfWal => {}
            ResolvedTarget::Immediate => settings.push(("recovery_target", "immediate".to_owned())),
            ResolvedTarget::Time { time, inclusive: at } => settings.extend([("recovery_target_time", time_text(*time)), inclusive(*at)]),
            ResolvedTarget::Lsn { lsn, inclusive: at } => settings.extend([("recovery_target_lsn", lsn_text(*lsn)), inclusive(*at)]),
            ResolvedTarget::Xid { xid, inclusive: at } => settings.extend([("recovery_target_xid", xid.to_string()), inclusive(*at)]),
            ResolvedTarget::RestorePoint { name } => settings.push(("recovery_target_name", name.as_str().to_owned())),
        }
        // Never `latest`: another timeline may appear between the plan and the start.
        settings.push(("recovery_target_timeline", timeline.to_string()));
        if !matches!(target, ResolvedTarget::EndOfWal) {
            let action = match action {
                TargetAction::Promote => "promote",
                TargetAction::Pause => "pause",
                TargetAction::Shutdown => "shutdown",
            };
            settings.push(("recovery_target_action", action.to_owned()));
        }
        Self { settings }
    }

    /// Names and values.
    pub fn settings(&self) -> &[(&'static str, String)] {
        &self.settings
    }

    /// The lines, without line feeds.
    pub fn lines(&self) -> Vec<String> {
        self.settings.iter().map(|(name, value)| format!("{name} = {}", quote_conf(value))).collect()
    }
}

fn lsn_text(lsn: Lsn) -> String {
    lsn.to_string()
}

fn time_text(time: PgTimestamp) -> String {
    // Only times that were written down get here, and those print.
    print_time(time).unwrap_or_else(|| time.to_string())
}

/// `value` as a quoted string of a PostgreSQL configuration file. Backslashes are escapes there, and a line ends the string.
pub fn quote_conf(value: &str) -> String {
    let mut quoted = String::with_capacity(value.len() + 2);
    quoted.push('\'');
    for c in value.chars() {
        match c {
            '\'' => quoted.push_str("''"),
            '\\' => quoted.push_str("\\\\"),
            '\n' => quoted.push_str("\\n"),
            '\r' => quoted.push_str("\\r"),
            other => quoted.push(other),
        }
    }
    quoted.push('\'');
    quoted
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::target::{RestorePointName, parse_time};

    fn lines(target: ResolvedTarget) -> Vec<String> {
        RecoverySettings::of(&target, TimelineId::new(12).expect("not zero"), TargetAction::Promote).lines()
    }

    #[test]
    fn one_target_and_an_explicit_timeline() {
        let time = parse_time("2026-11-20 14:30:00.5+01").expect("a time");
        assert_eq!(
            lines(ResolvedTarget::Time { time, inclusive: false }),
            [
                "recovery_target_time = '2026-11-20 13:30:00.500000+00'",
                "recovery_target_inclusive = 'false'",
                "recovery_target_timeline = '12'",
                "recovery_target_action = 'promote'",
            ]
        );
        assert_eq!(lines(ResolvedTarget::EndOfWal), ["recovery_target_timeline = '12'"]);
        assert_eq!(lines(ResolvedTarget::Immediate)[0], "recovery_target = 'immediate'");
        assert_eq!(lines(ResolvedTarget::Lsn { lsn: Lsn::new(0x300_0148), inclusive: true })[0], "recovery_target_lsn = '0/3000148'");
        assert_eq!(lines(ResolvedTarget::Xid { xid: 735, inclusive: true })[0], "recovery_target_xid = '735'");
    }

    #[test]
    fn names_cannot_leave_their_quotes() {
        let name = RestorePointName::parse("it's \\'\nrestore_command = 'rm'").expect("a name");
        assert_eq!(lines(ResolvedTarget::RestorePoint { name })[0], r"recovery_target_name = 'it''s \\''\nrestore_command = ''rm'''");
    }
}
