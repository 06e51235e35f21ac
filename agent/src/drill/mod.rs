//! Drills: a restore that is carried out, looked at, and thrown away.
//!
//! A plan is restored into a scratch folder, a throw-away server recovers it, and what is looked at becomes a [`Checked`] each; the verdict follows from
//! those (`walkeep_core::drill`). Of the repository nothing is asked but to be read, and of the running server nothing at all. The report is stored by
//! the caller, whatever came of it: of a drill that could not be carried out too.

mod queries;
mod rows;
mod tools;

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Instant;

use anyhow::{Context, Result};
use chrono::{DateTime, Utc};
use tokio_util::sync::CancellationToken;
use walkeep_core::drill::rows::RowSample;
use walkeep_core::drill::{Checked, Counts, DrillId, DrillRecord, DrillReport, Facts, Kind, Outcome, Restored, Step, Verdict, verdict};
use walkeep_core::identifier::quote;
use walkeep_core::layout::ObjectName;
use walkeep_core::partial::Needed;
use walkeep_core::plan::estimate::Measured;
use walkeep_core::plan::{ResolvedTarget, RestorePlan};
use walkeep_core::{Lsn, WalFileName};

use crate::audit::{in_public, this_process};
use crate::config::{Amcheck, DrillCheck, Wish};
use crate::extract::look;
use crate::repository::{self, ClusterRepository};
use crate::restore::{self, InUse};
use crate::scratch_server::{Ended, Filling, Place, Server, Settings, fill};
use crate::transfer::Transfer;
use crate::writer;

/// How it is carried out.
#[derive(Debug, Clone)]
pub struct Options {
    /// How the scratch server gets WAL.
    pub restore_command: String,
    /// Ranged reads at a time.
    pub parallelism: usize,
    /// Where nothing may be written.
    pub in_use: Vec<InUse>,
    /// The server's program.
    pub postgres: PathBuf,
    /// pg_amcheck, if there is one.
    pub pg_amcheck: Option<PathBuf>,
    /// pg_checksums, if there is one.
    pub pg_checksums: Option<PathBuf>,
    /// How tables and indexes are looked at.
    pub amcheck: Amcheck,
    /// Whether pages' checksums are.
    pub checksums: Wish,
    /// Queries.
    pub checks: Vec<DrillCheck>,
    /// The database of those that name none.
    pub usual_database: String,
    /// How many rows there were, if that is known; or why it is not.
    pub sample: Result<RowSample, String>,
}

/// What is told meanwhile.
#[derive(Debug)]
pub enum Told<'t> {
    /// Files are restored.
    Restoring(&'t Transfer),
    /// WAL is replayed: files fetched of how many.
    Recovering(u64, u64),
    /// Something is looked at.
    Checking(&'t str),
    /// What came of it.
    Checked(&'t Checked),
}

/// Who is told.
pub type Watch<'w> = dyn Fn(Told<'_>) + Send + Sync + 'w;

/// A drill under way.
#[derive(Debug)]
pub struct Drill {
    id: DrillId,
    asked: String,
    due: Option<DateTime<Utc>>,
    started_at: DateTime<Utc>,
    began: Instant,
    restored: Option<Restored>,
    rto_seconds: Option<f64>,
    newest_at: Option<DateTime<Utc>>,
    results: Vec<Checked>,
    steps: Vec<Step>,
    notes: Vec<String>,
    /// How fast files came.
    pub measured: Option<Measured>,
}

/// How a drill ended.
#[derive(Debug)]
pub enum End<'e> {
    /// All was looked at.
    ByItself,
    /// Somebody wanted that.
    Cancelled,
    /// It could not be carried out.
    Failed(&'e anyhow::Error),
}

impl Drill {
    /// It begins now: what `asked` for.
    pub fn begin(asked: String, due: Option<DateTime<Utc>>) -> Result<Self> {
        let started_at = Utc::now();
        Ok(Self {
            id: DrillId::new(started_at, writer::random_number()?),
            asked,
            due,
            started_at,
            began: Instant::now(),
            restored: None,
            rto_seconds: None,
            newest_at: None,
            results: Vec::new(),
            steps: Vec::new(),
            notes: Vec::new(),
            measured: None,
        })
    }

    /// Its ID.
    pub fn id(&self) -> &DrillId {
        &self.id
    }

    /// Something to know.
    pub fn note(&mut self, note: String) {
        if !self.notes.contains(&note) {
            self.notes.push(note);
        }
    }

    /// What will be restored, and the newest transaction that could be.
    pub fn planned(&mut self, plan: &RestorePlan, newest: Option<DateTime<Utc>>) {
        self.newest_at = newest;
        self.restored = Some(Restored {
            backup: plan.backup.id.clone(),
            timeline: plan.timeline,
            stop_lsn: plan.stop_lsn,
            last_transaction_at: plan.last_replayed.and_then(|last| last.time.to_utc()),
            bytes: plan.restore_bytes,
            wal_files: plan.wal.len() as u64,
        });
        plan.warnings.iter().for_each(|warning| self.note(warning.clone()));
        self.step("plan", self.began);
    }

    /// Whether it was found what to restore.
    pub fn was_planned(&self) -> bool {
        self.restored.is_some()
    }

    /// A step that began then has ended.
    pub fn step(&mut self, step: &str, since: Instant) {
        self.steps.push(Step { step: step.to_owned(), seconds: since.elapsed().as_secs_f64() });
    }

    /// Whether something was found that is not as it should be.
    pub fn found_damage(&self) -> bool {
        self.results.iter().any(|checked| checked.outcome == Outcome::Failed)
    }

    /// Restores, recovers and looks, in `place`, which is empty; the place is left to the caller to remove. An error says that it could not be done;
    /// what is found to be wrong is a result.
    pub async fn carry_out(
        &mut self,
        repository: &Arc<ClusterRepository>,
        plan: &RestorePlan,
        options: &Options,
        place: &Place,
        watch: &Watch<'_>,
        cancel: &CancellationToken,
    ) -> Result<()> {
        let mut looking = Looking { drill: self, repository, plan, options, place, watch, cancel };
        looking.everything().await
    }

    /// What there is to say, now that all is removed again.
    pub fn report(self, repository: &ClusterRepository, end: &End<'_>) -> Result<DrillReport> {
        let (verdict, reason) = match end {
            End::ByItself => verdict(&self.results),
            End::Cancelled => (Verdict::Cancelled, Some("it was ended before there was a verdict".to_owned())),
            End::Failed(error) => (Verdict::Failed, Some(in_public(error))),
        };
        let rpo = self.newest_at.map(|newest| (self.started_at - newest).as_seconds_f64().max(0.0));
        let facts = Facts {
            format: DrillRecord::FORMAT,
            id: self.id,
            cluster: repository.cluster().to_string(),
            system_identifier: repository.identity().system_identifier,
            verdict,
            reason,
            asked: self.asked,
            due: self.due,
            started_at: self.started_at,
            ended_at: Utc::now(),
            restored: self.restored,
            rto_seconds: self.rto_seconds,
            rpo_seconds: rpo,
            newest_transaction_at: self.newest_at,
            checks: Counts::of(&self.results),
            signed_off_by: this_process(),
            program: format!("walkeep {}", env!("CARGO_PKG_VERSION")),
        };
        Ok(DrillReport { facts, results: self.results, steps: self.steps, notes: self.notes, salt: writer::random_id()? })
    }
}

struct Looking<'l> {
    drill: &'l mut Drill,
    repository: &'l Arc<ClusterRepository>,
    plan: &'l RestorePlan,
    options: &'l Options,
    place: &'l Place,
    watch: &'l Watch<'l>,
    cancel: &'l CancellationToken,
}

impl Looking<'_> {
    fn add(&mut self, checked: Checked, since: Instant) {
        let checked = Checked { seconds: since.elapsed().as_secs_f64(), ..checked };
        (self.watch)(Told::Checked(&checked));
        self.drill.results.push(checked);
    }

    async fn everything(&mut self) -> Result<()> {
        let Some(superusers) = self.restore().await? else { return Ok(()) };
        let Some((mut server, user, databases)) = self.recover(&superusers).await? else { return Ok(()) };
        let began = Instant::now();
        let content = content(&server, &user, &databases).await;
        self.looked(Kind::Content, "tables", content, began);
        queries::ask(self, &server, &user).await;
        rows::compare(self, &server, &user, &databases).await;
        tools::amcheck(self, &server, &user, any_database(&databases)).await?;
        self.drill.step("check", began);
        let began = Instant::now();
        if let Err(error) = server.shut_down().await {
            // Where the last checkpoint cannot write what it read, for one.
            self.add(Checked::failed(Kind::Recovery, "shutdown", format!("{error:#}")), began);
            return Ok(());
        }
        self.drill.step("shut down", began);
        tools::checksums(self).await
    }

    /// Adds what was looked at; that it could not be looked at, in a server that has opened, is a failure of what was restored.
    fn looked(&mut self, kind: Kind, name: &str, looked: Result<Checked>, since: Instant) {
        self.add(looked.unwrap_or_else(|error| Checked::failed(kind, name, format!("{error:#}"))), since);
    }

    /// Answers the names of superusers, if the files are whole.
    async fn restore(&mut self) -> Result<Option<Vec<String>>> {
        let began = Instant::now();
        let filled = async {
            let shared = restore::shared(self.repository, self.plan, self.cancel).await.context("read the backup's catalogs")?;
            let filling = Filling {
                restore_command: self.options.restore_command.clone(),
                needed: Needed::Everything,
                parallelism: self.options.parallelism,
                in_use: self.options.in_use.clone(),
            };
            let watch = self.watch;
            let told = |state: &Transfer| watch(Told::Restoring(state));
            let filled = fill(self.repository.clone(), self.plan, &shared, self.place, filling, &told, self.cancel).await?;
            anyhow::Ok((shared.superusers, filled))
        };
        let name = "the backup's files";
        match filled.await {
            Ok((superusers, filled)) => {
                self.drill.step("restore", began);
                self.drill.measured = Some(filled.measured);
                let says = format!("{} files, {} bytes: every extent has the hash that the manifest names", filled.files, filled.bytes);
                self.add(Checked::passed(Kind::Files, name, says), began);
                filled.warnings.into_iter().for_each(|warning| self.drill.note(warning));
                Ok(Some(superusers))
            }
            Err(error) if is_damage(&error) => {
                self.drill.step("restore", began);
                self.add(Checked::failed(Kind::Files, name, format!("{error:#}")), began);
                Ok(None)
            }
            Err(error) => Err(error),
        }
    }

    /// What is wrong with a file of the archive, where something is: read whole, or the parts that stand for it.
    async fn damage_of(&self, file: &str) -> Option<String> {
        let file: WalFileName = file.parse().ok()?;
        let parts = self.plan.wal.iter().filter(|needed| WalFileName::Segment(needed.segment) == file).flat_map(|needed| &needed.parts);
        let names = std::iter::once(ObjectName::Wal(file)).chain(parts.map(|part| ObjectName::Part(*part)));
        for name in names {
            match self.repository.prove(&name).await {
                Err(error) if error.is_damage() => return Some(error.to_string()),
                _ => {}
            }
        }
        None
    }

    /// Answers the server with a superuser's name and the databases, if it could be asked.
    async fn recover(&mut self, superusers: &[String]) -> Result<Option<(Server, String, Vec<String>)>> {
        let began = Instant::now();
        let name = "recovery";
        let settings = Settings {
            major: self.plan.backup.major_version,
            segment_size: self.repository.identity().segment_size,
            ignore_invalid_pages: false,
        };
        let mut server = Server::start(self.place, &self.options.postgres, &settings)?;
        let (total, watch) = (self.plan.wal.len() as u64, self.watch);
        match server.recovered(&|state| watch(Told::Recovering(state.files.min(total), total))).await {
            Ok(_) => {}
            Err(error) => {
                // It started, and did not come to where it should; unless WAL is out of reach, which says nothing of it.
                let Some(ended) = error.downcast_ref::<Ended>() else { return Err(error) };
                let wanted = ended.wanted().map(str::to_owned);
                let mut says = format!("{error:#}");
                if let Some(file) = wanted {
                    let Some(damage) = self.damage_of(&file).await else {
                        return Err(error.context(format!("{file} could not be had from the repository")));
                    };
                    says = format!("{file} is damaged: {damage}; {says}");
                }
                self.drill.step("recover", began);
                self.add(Checked::failed(Kind::Recovery, name, says), began);
                return Ok(None);
            }
        }
        let answered = ask_first(&server, superusers).await;
        self.drill.step("recover", began);
        let (user, databases, in_recovery, replayed) = match answered {
            Ok(answered) => answered,
            Err(error) => {
                self.add(Checked::failed(Kind::Recovery, name, format!("the server opened and cannot be asked: {error:#}")), began);
                return Ok(None);
            }
        };
        self.drill.rto_seconds = Some(self.drill.began.elapsed().as_secs_f64());
        self.add(stopped(self.plan, in_recovery, replayed), began);
        Ok(Some((server, user, databases)))
    }
}

/// A superuser's name, the databases, whether recovery goes on, and up to where it replayed.
async fn ask_first(server: &Server, superusers: &[String]) -> Result<(String, Vec<String>, bool, Option<Lsn>)> {
    let (user, client) = server.superuser(superusers, &["template1", "postgres"]).await?;
    let place = client.query_one("SELECT pg_is_in_recovery(), pg_last_wal_replay_lsn()::text", &[]).await?;
    let (in_recovery, replayed): (bool, Option<String>) = (place.try_get(0)?, place.try_get(1)?);
    let databases = look::databases(&client).await.context("list the databases")?;
    let databases = databases.into_iter().map(|(_, name)| name).collect();
    Ok((user, databases, in_recovery, replayed.and_then(|text| text.parse().ok())))
}

/// A database that is there, for what is asked in none or in all of them: `template1` may have been dropped.
fn any_database(databases: &[String]) -> &str {
    let usual = databases.iter().find(|name| *name == "postgres");
    usual.or(databases.first()).map_or("template1", String::as_str)
}

/// Whether anything of any user is there.
async fn content(server: &Server, user: &str, databases: &[String]) -> Result<Checked> {
    let (mut tables, mut having) = (0, Vec::new());
    for database in databases {
        let client = server.connect(user, database).await.with_context(|| format!("connect to database {}", quote(database)))?;
        // Their locks would be waited for; what was prepared and not committed is not there anyway.
        look::roll_back_prepared(&client).await?;
        let count = look::tables(&client).await?.len();
        tables += count;
        if count > 0 {
            having.push(quote(database));
        }
    }
    Ok(match tables {
        0 => Checked::failed(Kind::Content, "tables", "no database has a table of any user: there is nothing to lose, or it is lost"),
        tables => Checked::passed(Kind::Content, "tables", format!("{tables} in {}", having.join(", "))),
    })
}

/// Whether the recovery stopped where the plan says: behind the last transaction that is to be there, and before the first that is not.
fn stopped(plan: &RestorePlan, in_recovery: bool, replayed: Option<Lsn>) -> Checked {
    let name = "recovery";
    let failed = |says: String| Checked::failed(Kind::Recovery, name, says);
    let Some(replayed) = replayed else { return failed("the server did not replay anything".to_owned()) };
    if in_recovery {
        return failed(format!("the server is still in recovery, at {replayed}"));
    }
    match (plan.last_replayed, plan.first_not_replayed) {
        (Some(last), _) if plan.searched && replayed < last.end => {
            failed(format!("it stopped at {replayed}, before transaction {} ended at {}", last.xid, last.end))
        }
        (_, Some(first)) if plan.searched && replayed > first.start => failed(format!(
            "it stopped at {replayed}, behind the end of transaction {} at {}, which must not be there",
            first.xid, first.start
        )),
        // The agent stores more while the drill goes on: a plan for all there is says where that ended when it was made.
        _ if replayed > plan.stop_lsn && matches!(plan.resolved, ResolvedTarget::EndOfWal) => {
            let planned = plan.stop_lsn;
            Checked::passed(
                Kind::Recovery,
                name,
                format!("the server opened, having replayed up to {replayed}: more was stored since it was planned up to {planned}"),
            )
        }
        _ => Checked::passed(
            Kind::Recovery,
            name,
            format!("the server opened, having replayed up to {replayed}; planned was up to {}", plan.stop_lsn),
        ),
    }
}

/// Whether something stored is not what was stored, rather than out of reach.
fn is_damage(error: &anyhow::Error) -> bool {
    let of_repository = error.chain().filter_map(|cause| cause.downcast_ref::<repository::Error>()).any(repository::Error::is_damage);
    let of_backup = error.chain().any(|cause| matches!(cause.downcast_ref(), Some(restore::Refusal::Backup { .. })));
    of_repository || of_backup
}
