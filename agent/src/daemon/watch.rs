//! What the agent looks at now and then: the slot, the server's clock and certificate, whether commits wait for us, the files that wait for archive_command, the gaps.

use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use anyhow::{Context, Result};
use tokio_util::sync::CancellationToken;
use walkeep_core::SegmentSize;
use walkeep_core::slot::{self, Health};

use crate::config::ClusterConfig;
use crate::metrics::{Disk, Metrics, Other, SlotState};
use crate::postgres::sql::Waited;
use crate::postgres::{ConnectionParams, sql};
use crate::progress::{Phase, Progress};
use crate::repository::ClusterRepository;
use crate::spool::Spool;

/// Between two looks at the server and its files.
const PERIOD: Duration = Duration::from_secs(10);
/// The time until it is noticed that the stream has begun, or that archive_command brought what may fill an open gap.
const SOON: Duration = Duration::from_secs(2);
/// One look must not take longer.
const DEADLINE: Duration = Duration::from_secs(8);
/// Gaps cost requests to the store, so they are counted once every so many looks, and only if something was stored since or one is open.
const GAPS_EVERY: u32 = 30;

/// Looks until `stop`. What fails is logged once until it works again.
pub async fn run(
    cluster: ClusterConfig,
    params: ConnectionParams,
    repository: Arc<ClusterRepository>,
    metrics: Arc<Metrics>,
    progress: Arc<Progress>,
    stop: CancellationToken,
) {
    let (mut complained, mut warned, mut counted_at, mut health) = (false, false, None, Health::Sound);
    for look in 0u32.. {
        let streamed = progress.snapshot().phase == Phase::Streaming;
        // A standby's slot is nobody's business, until it is the primary's.
        let stands_by = progress.stands_by();
        if stands_by {
            metrics.slot(&SlotState::default());
        }
        let looked = match cluster.stream && !stands_by {
            true => tokio::time::timeout(DEADLINE, look_at_server(&cluster, &params, &metrics, &mut health))
                .await
                .context("no answer in time")
                .flatten(),
            false => Ok(Waited::default()),
        };
        match looked {
            Ok(waited) => {
                complained = false;
                progress.set_commits_wait(waited.commits);
                let hangs = waited.commits && waited.remote_apply;
                if hangs && !warned {
                    tracing::error!(
                        "synchronous_commit = remote_apply is set on the server, and commits wait for this agent, which applies nothing: such a commit \
                         never returns. Set it to on, or take the agent out of synchronous_standby_names"
                    );
                }
                warned = hangs;
            }
            Err(error) if complained => tracing::debug!(error = format!("{error:#}"), "cannot look at the slot"),
            Err(error) => {
                complained = true;
                tracing::warn!(error = format!("{error:#}"), "cannot look at the slot; its metrics are old until this works again");
            }
        }
        if let Some(directory) = cluster.data_directory.clone() {
            let metrics = metrics.clone();
            let counted = tokio::task::spawn_blocking(move || count_ready(&directory).map(|(files, age)| metrics.ready(files, age))).await;
            if let Ok(Err(error)) = counted {
                tracing::debug!(error = format!("{error:#}"), "cannot count what waits for archive_command");
            }
        }
        look_at_disks(&cluster, &metrics).await;
        let now = Counted { stored: metrics.objects_stored(), archived: metrics.objects_archived() };
        if now.gaps_are_due(counted_at, look, metrics.has_open_gaps())
            && let Ok(gaps) = repository.open_gaps().await
        {
            counted_at = Some(now);
            metrics.open_gaps(gaps.len());
        }
        tokio::select! {
            () = pause(counted_at, streamed, &metrics, &progress) => {}
            () = stop.cancelled() => return,
        }
    }
}

/// The spool, and the file systems that must not become full.
async fn look_at_disks(cluster: &ClusterConfig, metrics: &Arc<Metrics>) {
    let (spool, data, limit, metrics) = (cluster.spool.clone(), cluster.data_directory.clone(), cluster.spool_limit.0, metrics.clone());
    let look = move || {
        match Spool::at(&spool, SegmentSize::DEFAULT).bytes() {
            Ok(bytes) => metrics.host.spool(bytes, limit),
            Err(error) => tracing::debug!(error = format!("{error:#}"), "cannot look at the spool"),
        }
        metrics.host.look_at(Disk::Spool, &spool);
        if let Some(data) = data {
            metrics.host.look_at(Disk::PgWal, &data.join("pg_wal"));
        }
    };
    if let Err(error) = tokio::task::spawn_blocking(look).await {
        tracing::debug!(%error, "cannot look at the disks");
    }
}

/// Until the next look: sooner if archive_command brings what may fill an open gap, and if the stream has begun since the last one. Commits may wait for it
/// from then on.
async fn pause(counted_at: Option<Counted>, streamed: bool, metrics: &Metrics, progress: &Progress) {
    let end = Instant::now() + PERIOD;
    let mut streams = streamed;
    while Instant::now() < end {
        tokio::time::sleep(SOON).await;
        // Not at the first sight of it: the server has to have heard of us before it counts us among those that commits wait for.
        if streams && !streamed {
            return;
        }
        streams = progress.snapshot().phase == Phase::Streaming;
        if metrics.has_open_gaps() && counted_at.is_some_and(|counted| counted.archived != metrics.objects_archived()) {
            return;
        }
    }
}

/// What was stored when gaps were counted.
#[derive(Clone, Copy)]
struct Counted {
    stored: u64,
    archived: u64,
}

impl Counted {
    /// Whether gaps are to be counted now. An open one is soon seen to be filled where archive_command brings what it lacks, and in time where another
    /// process does.
    fn gaps_are_due(self, before: Option<Self>, look: u32, open: bool) -> bool {
        let Some(before) = before else { return true };
        let now_and_then = look.is_multiple_of(GAPS_EVERY) && (open || before.stored != self.stored);
        now_and_then || open && before.archived != self.archived
    }
}

async fn look_at_server(cluster: &ClusterConfig, params: &ConnectionParams, metrics: &Metrics, health: &mut Health) -> Result<Waited> {
    let (client, certificate_ends) = sql::connect_sql_certified(params).await.context("connect for SQL")?;
    metrics.outside.certificate(Other::Server, certificate_ends);
    metrics.outside.clock(Other::Server, sql::clock_ahead(&client).await?);
    let found = sql::slot_state(&client, &cluster.slot).await?;
    let now = found.as_ref().map_or(Health::Missing, |slot| slot::health(*health, slot.told()));
    if now != *health {
        tell(&cluster.slot, now, found.as_ref());
        *health = now;
    }
    metrics.slot(&match found {
        Some(slot) => SlotState {
            wal_status: if now == Health::Lost { "lost".into() } else { slot.wal_status.unwrap_or_default() },
            active: slot.active,
            safe_wal_size: slot.safe_wal_size,
            retained: slot.retained,
        },
        None => SlotState { wal_status: "missing".into(), ..SlotState::default() },
    });
    Ok(sql::waited_for(&client, &cluster.application_name).await?)
}

/// The slot's health has changed: said once, and again only when it changes anew.
fn tell(slot: &str, health: Health, state: Option<&sql::SlotState>) {
    let (safe, limit) = (state.and_then(|state| state.safe_wal_size), state.and_then(|state| state.keep_limit));
    match health {
        Health::Sound => tracing::info!(slot, "the slot is out of danger"),
        Health::Near => tracing::warn!(
            slot,
            safe,
            limit,
            "the slot holds back nearly as much WAL as max_slot_wal_keep_size allows: the server will soon drop WAL that is not stored"
        ),
        Health::Unreserved => {
            tracing::error!(
                slot,
                safe,
                limit,
                "the slot holds back more WAL than max_slot_wal_keep_size allows: the next checkpoint may drop it"
            )
        }
        Health::Lost => {
            let reason = state.and_then(|state| state.invalidation_reason.as_deref()).unwrap_or("not told by this version");
            tracing::error!(slot, reason, "the server has invalidated the slot, and drops WAL that is not stored");
        }
        // The stream makes it anew, and says so.
        Health::Missing => tracing::debug!(slot, "there is no such slot"),
    }
}

/// The files that wait for archive_command, and the age of the oldest in seconds.
fn count_ready(data_directory: &Path) -> Result<(u64, f64)> {
    let folder = data_directory.join("pg_wal/archive_status");
    let now = SystemTime::now();
    let (mut files, mut oldest) = (0, 0f64);
    for entry in std::fs::read_dir(&folder).with_context(|| format!("list {}", folder.display()))? {
        let entry = entry?;
        if entry.path().extension().is_some_and(|extension| extension == "ready")
            && let Ok(modified) = entry.metadata().and_then(|metadata| metadata.modified())
        {
            files += 1;
            oldest = oldest.max(now.duration_since(modified).unwrap_or_default().as_secs_f64());
        }
    }
    Ok((files, oldest))
}
