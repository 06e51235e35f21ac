//! Each of several repositories verified by itself, and what that means of all of them together.

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::sync::Arc;
use std::time::Instant;

use chrono::Utc;
use walkeep_core::catalog::{Catalog, WalRange};
use walkeep_core::layout::ObjectName;
use walkeep_core::verify::{Finding, Kind, Listing, Lost, Severity, Stretch};

use super::contents::Contents;
use super::elsewhere::{Budget, Copies, Having};
use super::memory::Memory;
use super::quick::Quick;
use super::run::{Wish, verify_one};
use super::unlike::Sizes;
use super::{Found, Listed, OfOne, Overall, Report};
use crate::config::ClusterConfig;
use crate::repository::look::Seen;
use crate::repository::packs::Packs;
use crate::repository::{ClusterRepository, Error, Result};

/// A repository of a cluster, and what is remembered of it.
pub struct Place {
    /// Its number in the configuration, counted from 1.
    pub number: usize,
    /// The repository, by itself.
    pub repository: Arc<ClusterRepository>,
    /// All of them as one: what is damaged in one is read from another.
    pub all: Arc<ClusterRepository>,
    /// What is remembered.
    pub memory: Memory,
}

impl Place {
    /// All repositories of a cluster: of one that one.
    pub fn all(cluster: &ClusterConfig, repository: &Arc<ClusterRepository>) -> Vec<Self> {
        let place = |(number, one): (usize, Arc<ClusterRepository>)| {
            let memory = Memory::of(cluster, &one);
            Self { number, repository: one, all: repository.clone(), memory }
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
    /// All as one, with those that could not.
    pub(super) all: Option<Arc<ClusterRepository>>,
}

/// One that could.
pub(super) struct SeenPlace {
    pub number: usize,
    pub repository: Arc<ClusterRepository>,
    pub catalog: Catalog,
    pub listing: Listing,
    pub packs: Packs,
    /// Whether it cannot be read here which packs a backup needs.
    pub unread: bool,
    /// The keys of what is damaged or missing there.
    pub bad: HashSet<String>,
    /// Where WAL is missing there, as it tells by itself.
    pub holes: Vec<Stretch>,
    /// The keys of what a repair took away there: of that nothing is on its way but by the next one.
    pub mending: BTreeSet<String>,
}

/// What comparing them found.
struct Compared<'a> {
    /// What each lacks, with its number.
    lacking: &'a [(usize, Finding)],
    /// What does not have the same size in all of them, and cannot be opened here.
    unproven: Vec<Found>,
}

/// Verifies each. Fails if none could be looked at.
pub async fn everywhere(wish: &Wish<'_>, places: &mut [Place]) -> Result<(Overall, Everywhere)> {
    let (began, clock) = (Utc::now(), Instant::now());
    let (mut seen, mut reports, mut of_each, mut failed) = (Vec::new(), Vec::new(), Vec::new(), None);
    let (several, contents) = (places.len() > 1, Contents::default());
    for place in places.iter_mut() {
        let (clock, url) = (Instant::now(), place.url());
        match verify_one(&place.repository, place.number, wish, &mut place.memory, several.then_some(&contents)).await {
            Ok((report, Quick { seen: Seen { catalog, listing, packs, .. }, unread, .. })) => {
                let wrong = || report.findings.iter().filter(|finding| finding.severity > Severity::Note && finding.kind != Kind::Lock);
                seen.push(SeenPlace {
                    number: place.number,
                    repository: place.repository.clone(),
                    catalog,
                    listing,
                    packs,
                    unread,
                    bad: wrong().map(|finding| finding.key.clone()).collect(),
                    holes: wrong().filter_map(|finding| finding.stretch).collect(),
                    mending: place.memory.mending().clone(),
                });
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
    let mut everywhere = Everywhere { seen, all: places.first().map(|place| place.all.clone()) };
    let Sizes { wrong, unproven } = everywhere.sizes(wish).await?;
    for seen in &mut everywhere.seen {
        seen.bad.extend(wrong.iter().filter(|(of, _)| *of == seen.number).map(|(_, finding)| finding.key.clone()));
    }
    let lacking = everywhere.lacking(wish).await?;
    let mut differing = everywhere.trails(wish, places).await?;
    differing.extend(wrong);
    for (number, report) in &mut reports {
        report.findings.extend(differing.iter().filter(|(of, _)| of == number).map(|(_, finding)| finding.clone()));
    }
    let compared = Compared { lacking: &lacking, unproven };
    let overall = everywhere.judge(wish, reports, &compared, of_each, began, clock).await?;
    for place in places.iter_mut().filter(|place| everywhere.at(place.number).is_some()) {
        let keys = |of: &dyn Fn(&Found) -> bool| {
            let elsewhere = overall.findings.iter().filter(|found| found.repository == place.number && of(found));
            elsewhere.map(|found| found.finding.key.clone()).collect()
        };
        let (whole, listed) = (keys(&|found| !found.whole_in.is_empty()), keys(&|found| !found.listed_in.is_empty()));
        // What is on its way is not damaged.
        let on_its_way: HashSet<&str> =
            overall.findings.iter().filter(|found| found.repository == place.number).filter(is_note).map(key).collect();
        place.memory.outcome.damage.retain(|finding| !on_its_way.contains(finding.key.as_str()));
        (place.memory.outcome.whole_elsewhere, place.memory.outcome.listed_elsewhere) = (whole, listed);
        if wish.backup.is_none() {
            let lacks = lacking.iter().filter(|(number, finding)| *number == place.number && !on_its_way.contains(finding.key.as_str()));
            let differs = differing.iter().filter(|(number, _)| *number == place.number);
            let unproven = compared.unproven.iter().filter(|found| found.repository == place.number).map(|found| &found.finding);
            let found = lacks.chain(differs).map(|(_, finding)| finding).chain(unproven);
            place.memory.compared(found.filter(|finding| finding.severity > Severity::Note));
            if overall.is_unharmed(place.number) {
                place.memory.outcome.whole_at = Some(began);
            }
        }
        place.memory.keep().await;
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
        refused: report.refused,
        seconds: report.seconds,
        problem: report.problem.clone(),
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
        refused: 0,
        seconds: began.elapsed().as_secs_f64(),
        problem: Some(format!("{error:#}")),
    }
}

impl Everywhere {
    /// The repository of this number, if it could be looked at.
    pub(super) fn at(&self, number: usize) -> Option<&SeenPlace> {
        self.seen.iter().find(|seen| seen.number == number)
    }

    /// Whether it is missing only because the repository is behind since then. Of what a repair took away nothing is on its way.
    fn is_on_its_way(&self, found: &Found, copies: &Copies, since: Option<std::time::SystemTime>) -> bool {
        let is_taken = || self.at(found.repository).is_some_and(|seen| seen.mending.contains(&found.finding.key));
        since.is_some_and(|since| found.finding.kind == Kind::Missing && copies.were_put_behind(since)) && !is_taken()
    }

    fn is_pack(&self, finding: &Finding) -> bool {
        let name = self.seen.first().and_then(|seen| seen.repository.layout().parse(&finding.key));
        matches!(name, Some(ObjectName::Pack(_)))
    }

    /// Whether it is WAL that one of them knows to have been let go.
    fn was_let_go(&self, finding: &Finding) -> bool {
        let is_gone = |stretch: Stretch| {
            let mut rest = vec![WalRange { from: stretch.from, to: stretch.to }];
            for seen in &self.seen {
                rest = rest.into_iter().flat_map(|range| seen.catalog.expired().without(stretch.timeline, range)).collect();
            }
            rest.is_empty()
        };
        self.seen.len() > 1 && finding.stretch.is_some_and(is_gone)
    }

    /// What is wrong in each, together: lost is only what no other has whole.
    async fn judge(
        &self,
        wish: &Wish<'_>,
        reports: Vec<(usize, Report)>,
        compared: &Compared<'_>,
        mut repositories: Vec<OfOne>,
        began: chrono::DateTime<Utc>,
        clock: Instant,
    ) -> Result<Overall> {
        let (mut findings, mut budget) = (Vec::new(), Budget::default());
        let (mut listed, mut read, mut more, mut not_checked) = (Listed::default(), None, 0, 0);
        let mut more_in: BTreeMap<usize, u64> = BTreeMap::new();
        let (first, urls) = (&reports[0].1, repositories.iter().map(|one| one.url.as_str()).collect::<Vec<_>>().join(" and "));
        let (cluster, system_identifier) = (first.cluster.clone(), first.system_identifier);
        let backup_is_known = reports.iter().any(|(_, report)| report.backup_is_known);
        for (number, report) in reports {
            listed = listed.and(report.listed);
            read = read.into_iter().chain(report.read).reduce(super::Done::and);
            (more, not_checked) = (more + report.more_findings, not_checked + report.not_checked);
            more_in.insert(number, report.more_findings);
            let since = (wish.behind)(&report.repository);
            for finding in report.findings {
                let finding = if self.was_let_go(&finding) { let_go(finding) } else { finding };
                let url = report.repository.clone();
                let mut found = Found { repository: number, url, finding, whole_in: Vec::new(), listed_in: Vec::new() };
                if found.finding.severity > Severity::Note && found.finding.kind.is_mendable() && self.seen.len() > 1 {
                    let copies = self.copies(number, &found.finding).await?;
                    match self.is_on_its_way(&found, &copies, since) {
                        true => found.finding = on_its_way(found.finding),
                        false => found = had_elsewhere(found, self.whole_in(number, &copies, &mut budget).await),
                    }
                }
                findings.push(found);
            }
        }
        for (number, finding) in compared.lacking {
            let Some(own) = self.at(*number) else { continue };
            let url = own.repository.repository().url();
            let since = (wish.behind)(&url);
            let copies = self.copies(*number, finding).await?;
            let finding = finding.clone();
            let mut found = Found { repository: *number, url, finding, whole_in: Vec::new(), listed_in: Vec::new() };
            match self.is_on_its_way(&found, &copies, since) {
                true => found.finding = on_its_way(found.finding),
                false if found.finding.severity == Severity::Note => {}
                false if self.is_pack(&found.finding) => found = had_elsewhere(found, self.whole_in(*number, &copies, &mut budget).await),
                // Nobody said anything against it there. A repair reads it.
                false => found = had_elsewhere(found, self.listed_by(&copies)),
            }
            findings.push(found);
        }
        findings.extend(compared.unproven.iter().cloned());
        let looked_at = |one: &&mut OfOne| self.at(one.number).is_some();
        for one in repositories.iter_mut().filter(looked_at) {
            let wrong = findings.iter().filter(|found| found.repository == one.number && found.finding.severity > Severity::Note).count();
            one.damaged = wrong as u64 + more_in.get(&one.number).copied().unwrap_or_default();
            one.whole = one.damaged == 0 && one.problem.is_none() && one.not_checked == 0 && one.read.is_none_or(|read| read.archived == 0);
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

/// What is missing for a good reason.
fn let_go(finding: Finding) -> Finding {
    let reason = format!("let go, as another repository says; the record of that is missing here: {}", finding.reason);
    Finding { severity: Severity::Note, reason, lost: Lost::default(), advice: String::new(), ..finding }
}

/// What is only late.
fn on_its_way(finding: Finding) -> Finding {
    let reason = format!("not here yet, as this repository is behind: {}", finding.reason);
    Finding { severity: Severity::Note, reason, lost: Lost::default(), advice: String::new(), ..finding }
}

/// With who else has it.
fn had_elsewhere(mut found: Found, having: Having) -> Found {
    let proven = having.proven;
    let (numbers, besides) = having.of(&found.finding.key);
    if numbers.is_empty() {
        return found;
    }
    let (had, behind, advice) = match proven {
        true => ("whole", "", "nothing is lost: `walkeep verify --repair` puts the good copy in its place"),
        false => (
            "listed",
            ", not proven from here",
            "nothing is known to be lost: `walkeep verify --repair` on a host with an identity reads it there, and puts it in its place",
        ),
    };
    found.finding = had_by(found.finding, found.repository, (had, behind, advice), &numbers, &besides);
    *(if proven { &mut found.whole_in } else { &mut found.listed_in }) = numbers;
    found
}

/// Something that another repository has: nothing is known to be lost with it, and it is to be mended all the same.
/// `besides`: where the rest of what it names has to come from.
fn had_by(finding: Finding, number: usize, (had, behind, advice): (&str, &str, &str), by: &[usize], besides: &[usize]) -> Finding {
    let named = |numbers: &[usize]| numbers.iter().map(ToString::to_string).collect::<Vec<_>>().join(" and ");
    let state = if finding.kind == Kind::Missing { "missing" } else { "damaged" };
    let rest = if besides.is_empty() { String::new() } else { format!(", and what else is missing of it in {}", named(besides)) };
    Finding {
        severity: Severity::Minor,
        reason: format!("{state} in repository {number}, {had} in {}{rest}{behind}: {}", named(by), finding.reason),
        lost: Lost::default(),
        advice: advice.to_owned(),
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
