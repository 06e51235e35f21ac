//! Each of several repositories verified by itself, and what that means of all of them together.

use std::collections::{BTreeSet, HashSet};
use std::sync::Arc;
use std::time::Instant;

use chrono::Utc;
use walkeep_core::catalog::Catalog;
use walkeep_core::verify::{Finding, Kind, Lost, Severity};

use super::elsewhere::Budget;
use super::memory::Memory;
use super::run::{Wish, verify_one};
use super::{Found, Listed, OfOne, Overall, Report};
use crate::config::ClusterConfig;
use crate::repository::{ClusterRepository, Error, Result};

/// A repository of a cluster, and what is remembered of it.
pub struct Place {
    /// Its number in the configuration, counted from 1.
    pub number: usize,
    /// The repository, by itself.
    pub repository: Arc<ClusterRepository>,
    /// What is remembered.
    pub memory: Memory,
}

impl Place {
    /// All repositories of a cluster: of one that one.
    pub fn all(cluster: &ClusterConfig, repository: &Arc<ClusterRepository>) -> Vec<Self> {
        let place = |(number, repository): (usize, Arc<ClusterRepository>)| {
            let memory = Memory::of(cluster, &repository, number);
            Self { number, repository, memory }
        };
        numbered(repository).map(place).collect()
    }

    /// Where it lies.
    pub fn url(&self) -> String {
        self.repository.repository().url()
    }
}

/// Each by itself, with its number.
pub fn numbered(repository: &Arc<ClusterRepository>) -> impl Iterator<Item = (usize, Arc<ClusterRepository>)> {
    let each: Vec<_> = repository.each().into_iter().map(Arc::new).collect();
    (1..).zip(if each.is_empty() { vec![repository.clone()] } else { each })
}

/// What verifications of all repositories saw, for who asks where something is whole.
pub struct Everywhere {
    /// Those that could be looked at.
    pub(super) seen: Vec<SeenPlace>,
}

/// One that could.
pub(super) struct SeenPlace {
    pub number: usize,
    pub repository: Arc<ClusterRepository>,
    pub catalog: Catalog,
    /// The keys of what is damaged or missing there.
    pub bad: HashSet<String>,
    /// The keys of what a repair took away there: of that nothing is on its way but by the next one.
    pub mending: BTreeSet<String>,
}

/// Verifies each. Fails if none could be looked at.
pub async fn everywhere(wish: &Wish<'_>, places: &mut [Place]) -> Result<(Overall, Everywhere)> {
    let (began, clock) = (Utc::now(), Instant::now());
    let (mut seen, mut reports, mut of_each, mut failed) = (Vec::new(), Vec::new(), Vec::new(), None);
    for place in places.iter_mut() {
        let (clock, url) = (Instant::now(), place.url());
        match verify_one(&place.repository, place.number, wish, &mut place.memory).await {
            Ok((report, catalog)) => {
                let bad = report.findings.iter().filter(|finding| finding.severity > Severity::Note && finding.kind != Kind::Lock);
                let bad = bad.map(|finding| finding.key.clone()).collect();
                let mending = place.memory.mending().clone();
                seen.push(SeenPlace { number: place.number, repository: place.repository.clone(), catalog, bad, mending });
                of_each.push(of_one(place.number, &report));
                reports.push((place.number, report));
            }
            Err(error) if wish.cancel.is_cancelled() => return Err(error),
            Err(error) => {
                of_each.push(not_looked_at(place.number, url, clock, &error));
                failed.get_or_insert(error);
            }
        }
    }
    if let Some(error) = failed.filter(|_| seen.is_empty()) {
        return Err(error);
    }
    let everywhere = Everywhere { seen };
    let overall = everywhere.judge(wish, reports, of_each, began, clock).await?;
    for place in places.iter_mut() {
        let elsewhere = overall.findings.iter().filter(|found| found.repository == place.number && !found.whole_in.is_empty());
        let keys = elsewhere.map(|found| found.finding.key.clone()).collect();
        // What is on its way is not damaged.
        let on_its_way: HashSet<&str> =
            overall.findings.iter().filter(|found| found.repository == place.number).filter(is_note).map(key).collect();
        let outcome = &mut place.memory.outcome;
        let before = outcome.damage.len();
        outcome.damage.retain(|finding| !on_its_way.contains(finding.key.as_str()));
        if outcome.whole_elsewhere != keys || outcome.damage.len() != before {
            outcome.whole_elsewhere = keys;
            place.memory.keep().await;
        }
    }
    Ok((overall, everywhere))
}

fn is_note(found: &&Found) -> bool {
    found.finding.severity == Severity::Note
}

fn key(found: &Found) -> &str {
    &found.finding.key
}

fn of_one(number: usize, report: &Report) -> OfOne {
    OfOne {
        number,
        url: report.repository.clone(),
        whole: report.whole,
        damaged: report.damaged(Severity::Minor),
        listed: report.listed,
        read: report.read,
        not_checked: report.not_checked,
        seconds: report.seconds,
        problem: None,
    }
}

fn not_looked_at(number: usize, url: String, began: Instant, error: &Error) -> OfOne {
    OfOne {
        number,
        url,
        whole: false,
        damaged: 0,
        listed: Listed::default(),
        read: None,
        not_checked: 0,
        seconds: began.elapsed().as_secs_f64(),
        problem: Some(format!("{error:#}")),
    }
}

impl Everywhere {
    /// What is wrong in each, together: lost is only what no other has whole.
    async fn judge(
        &self,
        wish: &Wish<'_>,
        reports: Vec<(usize, Report)>,
        repositories: Vec<OfOne>,
        began: chrono::DateTime<Utc>,
        clock: Instant,
    ) -> Result<Overall> {
        let (mut findings, mut budget) = (Vec::new(), Budget::default());
        let (mut listed, mut read, mut more, mut not_checked) = (Listed::default(), None, 0, 0);
        let (first, urls) = (&reports[0].1, repositories.iter().map(|one| one.url.as_str()).collect::<Vec<_>>().join(" and "));
        let (cluster, system_identifier) = (first.cluster.clone(), first.system_identifier);
        let backup_is_known = reports.iter().any(|(_, report)| report.backup_is_known);
        for (number, report) in reports {
            listed = listed.and(report.listed);
            read = read.into_iter().chain(report.read).reduce(super::Done::and);
            (more, not_checked) = (more + report.more_findings, not_checked + report.not_checked);
            let since = (wish.behind)(&report.repository);
            let is_taken = |key: &String| self.seen.iter().any(|seen| seen.number == number && seen.mending.contains(key));
            for finding in report.findings {
                let mut found = Found { repository: number, url: report.repository.clone(), finding, whole_in: Vec::new() };
                if found.finding.severity > Severity::Note && found.finding.kind != Kind::Lock && self.seen.len() > 1 {
                    let copies = self.copies(number, &found.finding).await?;
                    let since = since.filter(|_| !is_taken(&found.finding.key));
                    if since.is_some_and(|since| found.finding.kind == Kind::Missing && copies.were_put_behind(since)) {
                        let reason = format!("not here yet, as this repository is behind: {}", found.finding.reason);
                        found.finding =
                            Finding { severity: Severity::Note, reason, lost: Lost::default(), advice: String::new(), ..found.finding };
                    } else {
                        found.whole_in = self.whole_in(&copies, &mut budget).await;
                    }
                }
                if !found.whole_in.is_empty() {
                    found.finding = mendable(found.finding, number, &found.whole_in);
                }
                findings.push(found);
            }
        }
        findings.sort_by(|a, b| {
            let by_severity = b.finding.severity.cmp(&a.finding.severity);
            by_severity.then_with(|| a.finding.key.cmp(&b.finding.key)).then_with(|| a.repository.cmp(&b.repository))
        });
        let unharmed = findings.iter().all(|found| found.finding.severity == Severity::Note) && more == 0;
        Ok(Overall {
            cluster,
            repository: urls,
            system_identifier,
            began,
            seconds: clock.elapsed().as_secs_f64(),
            backup: wish.backup.cloned(),
            backup_is_known,
            whole: unharmed && not_checked == 0 && repositories.iter().all(|one| one.problem.is_none()),
            listed,
            read,
            not_checked,
            repositories,
            findings,
            more_findings: more,
        })
    }
}

/// Something that another repository has whole: nothing is lost with it, and it is to be mended all the same.
fn mendable(finding: Finding, number: usize, whole_in: &[usize]) -> Finding {
    let others = whole_in.iter().map(ToString::to_string).collect::<Vec<_>>().join(" and ");
    let state = if finding.kind == Kind::Missing { "missing" } else { "damaged" };
    Finding {
        severity: Severity::Minor,
        reason: format!("{state} in repository {number}, whole in {others}: {}", finding.reason),
        lost: Lost::default(),
        advice: "nothing is lost: `walkeep verify --repair` puts the good copy in its place".to_owned(),
        ..finding
    }
}

impl Listed {
    /// Together with another repository: how much lies in both, and what of backups and WAL the fuller one has.
    fn and(self, other: Self) -> Self {
        Self {
            objects: self.objects + other.objects,
            bytes: self.bytes + other.bytes,
            backups: self.backups.max(other.backups),
            segments: self.segments.max(other.segments),
            foreign: self.foreign + other.foreign,
        }
    }
}
