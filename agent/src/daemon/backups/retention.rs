//! Behind each backup that the agent took: what the retention policy lets go goes, where the configuration has that done by itself.
//!
//! As `walkeep expire --yes` has it: what looks like a mistake is told and waits for somebody to look.

use std::sync::Arc;

use anyhow::Result;
use chrono::Utc;
use walkeep_core::audit::{Kind, Outcome};
use walkeep_store::several::Proof;

use super::Taker;
use crate::audit::Deed;
use crate::config::Retention;
use crate::expire::{self, CarriedOut, Scope};

/// Lets go; nothing that hinders it makes the backup less.
pub async fn let_go(taker: &Taker) {
    let Some(retention) = taker.cluster.retention.as_ref().filter(|retention| retention.automatic) else { return };
    let succeeded = match expire::in_time(run(taker, retention)).await {
        Ok(succeeded) => succeeded,
        Err(_) if taker.stop.is_cancelled() => return,
        Err(error) => {
            taker.recorder.done(Deed::new("agent", Kind::EXPIRE, Outcome::Failed).saying(format!("{error:#}")));
            tracing::error!(
                error = format!("{error:#}"),
                "retention: nothing was let go, or not all of it; it is tried again behind the next backup"
            );
            false
        }
    };
    taker.metrics.backups.let_go(succeeded, Utc::now());
}

async fn run(taker: &Taker, retention: &Retention) -> Result<bool> {
    let now = Utc::now();
    // Of several repositories each must say what is in it: nothing is let go by half of the truth.
    let repository = Arc::new(taker.repository.demanding(Proof::Every));
    let look = expire::look(&repository, &retention.policy, &taker.cluster.spool, now).await?;
    let (goes, expected) = (look.plan.expired.len(), look.plan.expected());
    if goes > expected {
        tracing::error!(
            backups = goes,
            kept = look.plan.kept.len(),
            "retention: more than half of all backups would go at once, so nothing does: look at `walkeep expire --dry-run`, and say --allow by hand"
        );
        taker.recorder.done(not_done("more than half of all backups would go at once"));
        return Ok(false);
    }
    if let Some(before) = look.jumped.filter(|_| !look.plan.is_empty()) {
        tracing::error!(
            present = %look.now.to_rfc3339(), before = %before.to_rfc3339(),
            "retention: between the last two backups lies more than the whole window, as if a clock had jumped, so nothing goes: look at `walkeep expire`"
        );
        taker.recorder.done(not_done("between the last two backups lies more than the whole window, as if a clock had jumped"));
        return Ok(false);
    }
    if !look.plan.is_empty() {
        let record = expire::take_out(&repository, &look, now).await?;
        let backups = record.backups.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ");
        let deed = Deed::new("agent", Kind::EXPIRE, Outcome::Done).of("number", record.number).of("backups", &backups);
        taker.recorder.done(deed.of("segments", look.plan.segments).saying("left the catalog"));
        tracing::info!(
            number = record.number, backups, segments = look.plan.segments, window_from = %look.plan.window_from.to_rfc3339(),
            "retention: left the catalog; `walkeep expire --undo` with its number brings it back within the grace"
        );
    }
    let done = expire::carry_out(&repository, Scope::Everything, (retention.grace, &taker.cluster.spool), Utc::now(), &taker.stop, &|_| {})
        .await?;
    done.log_doubts();
    let CarriedOut { backups, objects, packs, pack_bytes, refused, refused_named, packs_wait, .. } = done;
    if objects > 0 || packs > 0 || refused > 0 {
        let outcome = if refused == 0 { Outcome::Done } else { Outcome::Failed };
        let removed = Deed::new("agent", Kind::EXPIRE, outcome).of("objects_removed", objects + packs);
        taker.recorder.done(if refused == 0 { removed } else { removed.saying(format!("{refused} objects could not be removed")) });
    }
    if objects > 0 || packs > 0 {
        tracing::info!(backups = backups.len(), objects, packs, pack_bytes, "retention: removed");
    }
    if let Some(why) = &packs_wait {
        tracing::warn!(why, "retention: packs were not looked through");
    }
    if refused > 0 {
        tracing::error!(
            refused,
            first = refused_named.first(),
            "retention: the store does not let go of some objects; tried again behind the next backup"
        );
    }
    Ok(refused == 0 && packs_wait.is_none())
}

fn not_done(reason: &str) -> Deed {
    Deed::refused(Kind::EXPIRE).saying(reason)
}
