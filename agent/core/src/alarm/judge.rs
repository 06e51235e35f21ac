//! What of the numbers is wrong. The numbers at which something is are those of `packaging/prometheus`, but for two that Prometheus predicts out of
//! its own history: here a disk or spool that is nearly full speaks for itself.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::time::Duration;

use chrono::{DateTime, Utc};

use super::{Alarm, AlarmKind, ClockSigns, EndSigns, ExpireSigns, RepositorySigns, Said, Signs, so_long, so_much};

const MINUTE: Duration = Duration::from_secs(60);
const HOUR: Duration = Duration::from_secs(3600);
const DAY: Duration = Duration::from_secs(24 * 3600);
/// A restore that was tried so long ago says little of one today.
const OLD_DRILL: Duration = Duration::from_secs(35 * 24 * 3600);
/// A certificate that ends so soon should have been renewed.
const SOON: Duration = Duration::from_secs(14 * 24 * 3600);
/// Credentials are renewed five minutes before their end: such as end so soon could not be.
const NOT_RENEWED: Duration = Duration::from_secs(120);
/// Seconds by which clocks may differ: S3 refuses requests at 900.
const OFF: f64 = 30.0;
/// WAL of which it is worth speaking.
const MUCH: u64 = 1_000_000_000;
/// Failures within a quarter of an hour that are more than a hiccup.
const UNSTEADY: u64 = 30;
/// Kinds of failed calls that only a person can mend.
const REFUSED: [&str; 10] =
    ["denied", "unusable", "no_credentials", "misconfigured", "full", "corrupt", "open", "spool", "cannot_decrypt", "let_go"];

/// What is wrong, and of what it is not known.
#[derive(Clone, PartialEq, Debug, Default)]
pub struct Judged {
    /// What is wrong.
    pub alarms: Vec<Alarm>,
    /// The same with since when, the most urgent first.
    pub standing: Vec<Said>,
    unknown: BTreeSet<AlarmKind>,
    unknown_of: BTreeSet<(AlarmKind, String)>,
}

impl Judged {
    /// Whether nothing can be said of it yet, so that what was said before stays.
    pub fn is_unknown(&self, kind: AlarmKind, subject: &str) -> bool {
        self.unknown.contains(&kind) || self.unknown_of.contains(&(kind, subject.to_owned()))
    }

    fn add(&mut self, is_wrong: bool, kind: AlarmKind, subject: &str, text: impl FnOnce() -> String) {
        if is_wrong {
            self.alarms.push(Alarm { kind, subject: subject.to_owned(), text: text() });
        }
    }
}

/// Judges look after look: counters say something only by how they grow.
#[derive(Debug)]
pub struct Judge {
    loss: Duration,
    counts: BTreeMap<String, Count>,
    since: BTreeMap<(AlarmKind, String), DateTime<Utc>>,
}

impl Judge {
    /// `loss`: from how many seconds of commits on somebody is warned; it is critical at ten times as many.
    pub fn new(loss: Duration) -> Self {
        Self { loss, counts: BTreeMap::new(), since: BTreeMap::new() }
    }

    /// What is wrong at `now`.
    pub fn look(&mut self, signs: &Signs, now: DateTime<Utc>) -> Judged {
        let mut judged = Judged::default();
        self.stream(signs, &mut judged);
        slot(signs, &mut judged);
        self.archive(signs, now, &mut judged);
        verified(signs, now, &mut judged);
        backups(signs, now, &mut judged);
        artifacts(signs, &mut judged);
        drill(signs, now, &mut judged);
        outside(signs, now, &mut judged);
        self.repositories(signs.repositories.as_deref(), now, &mut judged);
        self.stand(&mut judged, now);
        judged
    }

    /// Since when each stands, as far as this process has seen it.
    fn stand(&mut self, judged: &mut Judged, now: DateTime<Utc>) {
        let before = std::mem::take(&mut self.since);
        for alarm in &judged.alarms {
            let key = (alarm.kind, alarm.subject.clone());
            let since = before.get(&key).map_or(now, |since| now.min(*since));
            judged.standing.push(Said::new(alarm, since));
            self.since.insert(key, since);
        }
        judged.standing.sort_by_key(|said| std::cmp::Reverse(said.severity));
    }

    fn stream(&self, signs: &Signs, judged: &mut Judged) {
        use AlarmKind::*;
        let why = signs.problem.as_ref().map(|problem| format!(": {problem}")).unwrap_or_default();
        judged.add(!signs.receives, NoStream, "", || format!("No WAL is received{why}"));
        let hang = signs.commits_wait && (signs.lag > Duration::from_secs(10) || !signs.streaming);
        judged.add(hang, CommitsHang, "", || "Commits on the server wait for Walkeep, and it does not confirm them".to_owned());
        match signs.possible_loss {
            Some(loss) => {
                let text = || format!("{} of commits would be lost with the server: they are not stored yet{why}", so_long(loss));
                judged.add(loss > self.loss, PossibleLoss, "", text);
                judged.add(loss > self.loss * 10, PossibleLossLarge, "", text);
            }
            None => judged.unknown.extend([PossibleLoss, PossibleLossLarge]),
        }
        judged.add(signs.lag_bytes > MUCH, LagBytes, "", || format!("{} of WAL are not in the repository", so_much(signs.lag_bytes)));
        judged.add(signs.oldest_ready > MINUTE * 5, ArchiveCommandFails, "", || {
            format!("A finished segment has been waiting for archive_command for {}", so_long(signs.oldest_ready))
        });
        match signs.spool {
            Some((bytes, limit)) => judged.add(bytes > limit / 5 * 4, SpoolFillsUp, "", || {
                format!("{} of WAL lie in the spool, which may hold {}", so_much(bytes), so_much(limit))
            }),
            None => drop(judged.unknown.insert(SpoolFillsUp)),
        }
    }

    fn archive(&mut self, signs: &Signs, now: DateTime<Utc>, judged: &mut Judged) {
        use AlarmKind::*;
        match signs.gaps {
            Some(gaps) => judged.add(gaps > 0, Gap, "", || {
                format!("WAL is missing in the archive ({gaps} open gaps): moments behind it need a newer backup")
            }),
            None => drop(judged.unknown.insert(Gap)),
        }
        let conflicts = self.grown("conflicts", signs.conflicts, HOUR, now);
        judged.add(conflicts > 0, Conflict, "", || {
            "Other content was offered under a stored name: two servers write one archive, or a file is damaged".to_owned()
        });
        for kind in REFUSED {
            let failed = self.grown(&format!("errors {kind}"), signs.errors.get(kind).copied().unwrap_or_default(), MINUTE * 15, now);
            let why = signs.problem.as_ref().map(|problem| format!(" ({problem})")).unwrap_or_default();
            judged.add(failed > 0, RepositoryRefuses, kind, || {
                format!("Calls to the repository fail: {kind}{why}. Only a person can mend that")
            });
        }
        let transient = signs.errors.get("transient").copied().unwrap_or_default();
        let transient = self.grown("errors transient", transient, MINUTE * 15, now);
        judged.add(transient > UNSTEADY, RepositoryUnsteady, "", || {
            format!("{transient} calls to the repository failed within a quarter of an hour and were tried again")
        });
    }

    fn repositories(&mut self, repositories: Option<&[RepositorySigns]>, now: DateTime<Utc>, judged: &mut Judged) {
        use AlarmKind::*;
        let Some(repositories) = repositories else {
            judged.unknown.extend([RepositoryDown, CopyBehind, RepositoriesDiffer]);
            return;
        };
        for RepositorySigns { url, up, behind, wrong } in repositories {
            judged.add(!up, RepositoryDown, url, || format!("{url} does not answer"));
            judged.add(*behind > HOUR, CopyBehind, url, || format!("{url} lacks what was stored {} ago", so_long(*behind)));
            let wrong = self.grown(&format!("wrong {url}"), *wrong, DAY, now);
            judged.add(wrong > 0, RepositoriesDiffer, url, || {
                format!("{url} has an object that is damaged, or other than in another repository")
            });
        }
    }

    /// By how much a counter of this process grew within the last `window`.
    fn grown(&mut self, name: &str, value: u64, window: Duration, now: DateTime<Utc>) -> u64 {
        self.counts.entry(name.to_owned()).or_default().grown(value, window, now)
    }
}

fn slot(signs: &Signs, judged: &mut Judged) {
    use AlarmKind::*;
    judged.add(signs.slot_given_up, SlotGivenUp, "", || {
        "The slot was given up to protect the server: commits from now on are not archived".to_owned()
    });
    let Some(slot) = &signs.slot else {
        judged.unknown.extend([SlotAtRisk, SlotLost, PgWalFillsUp]);
        return;
    };
    let at_risk = slot.status == "unreserved" || slot.safe.is_some_and(|safe| safe < MUCH);
    judged.add(at_risk, SlotAtRisk, "", || "The server is about to drop WAL that is not stored".to_owned());
    let is_lost = matches!(slot.status.as_str(), "lost" | "missing");
    judged.add(is_lost, SlotLost, "", || format!("The replication slot is {}", slot.status));
    if let (Some(free), Some(retained)) = (signs.pg_wal_free, slot.retained) {
        judged.add(retained > MUCH && free < retained, PgWalFillsUp, "", || {
            format!("The slot holds back {} of WAL, and {} are free on the disk of pg_wal", so_much(retained), so_much(free))
        });
    }
}

fn verified(signs: &Signs, now: DateTime<Utc>, judged: &mut Judged) {
    use AlarmKind::*;
    let Some(verify) = &signs.verify else {
        judged.unknown.extend([Damage, ShortLocks, NotVerified]);
        return;
    };
    judged.add(verify.damaged > 0, Damage, "", || format!("{} stored objects are damaged or missing", verify.damaged));
    judged.add(verify.short_locks > 0, ShortLocks, "", || {
        format!("{} objects are locked for less long than the configuration promises", verify.short_locks)
    });
    // Whoever has just begun has not had the time to look.
    let since = verify.looked_at.unwrap_or(signs.began);
    judged.add(since_then(since, now) > DAY * 3, NotVerified, "", || {
        "Nobody has looked for three days whether everything is there".to_owned()
    });
}

fn backups(signs: &Signs, now: DateTime<Utc>, judged: &mut Judged) {
    use AlarmKind::*;
    match &signs.schedules {
        Some(schedules) => {
            for schedule in schedules {
                let label = schedule.label.as_str();
                judged.add(schedule.overdue, BackupOverdue, label, || format!("A backup of schedule {label} is missing"));
                judged.add(schedule.failure > schedule.success, BackupFailed, label, || {
                    format!("The last backup of schedule {label} failed; the agent's log has the reason")
                });
                if schedule.failure.is_none() && schedule.success.is_none_or(|success| success < signs.began) {
                    judged.unknown_of.insert((BackupFailed, label.to_owned()));
                }
            }
            let newest = schedules.iter().filter_map(|schedule| schedule.success).max();
            if let Some(newest) = newest {
                let age = since_then(newest, now);
                judged.add(age > DAY * 8, BackupStale, "", || {
                    format!("The newest scheduled backup is {} old: a restore replays long", so_long(age))
                });
            }
        }
        None => judged.unknown.extend([BackupOverdue, BackupFailed, BackupStale]),
    }
    judged.add(signs.backup_due, BackupDue, "", || {
        "There is no backup behind a gap yet: what was written since cannot be restored".to_owned()
    });
    match signs.bad_pages {
        Some(pages) => judged.add(pages > 0, BadPages, "", || format!("{pages} pages of the server have wrong checksums")),
        None => drop(judged.unknown.insert(BadPages)),
    }
    match &signs.expire {
        Some(ExpireSigns { success, failure }) => {
            judged.add(failure > success, ExpireFails, "", || "What the retention policy lets go stays: the repository grows".to_owned())
        }
        None => drop(judged.unknown.insert(ExpireFails)),
    }
}

fn artifacts(signs: &Signs, judged: &mut Judged) {
    let Some(artifacts) = &signs.artifacts else {
        judged.unknown.insert(AlarmKind::ArtifactFailed);
        return;
    };
    for artifact in artifacts {
        let name = artifact.name.as_str();
        judged.add(artifact.failed || artifact.overdue, AlarmKind::ArtifactFailed, name, || {
            format!("The dump or artifact {name} {}", if artifact.failed { "failed" } else { "is missing" })
        });
        if artifact.success.is_none_or(|success| success < signs.began) {
            judged.unknown_of.insert((AlarmKind::ArtifactFailed, name.to_owned()));
        }
    }
}

fn drill(signs: &Signs, now: DateTime<Utc>, judged: &mut Judged) {
    let Some(drill) = &signs.drill else {
        judged.unknown.extend([AlarmKind::DrillFailed, AlarmKind::DrillStale]);
        return;
    };
    judged.add(drill.failed, AlarmKind::DrillFailed, "", || "The last drill failed: a restore may not give what it should".to_owned());
    let is_old = drill.success.is_some_and(|success| since_then(success, now) > OLD_DRILL);
    judged.add(drill.overdue || is_old, AlarmKind::DrillStale, "", || {
        "No drill has passed for long: whether a restore works is not known".to_owned()
    });
}

fn outside(signs: &Signs, now: DateTime<Utc>, judged: &mut Judged) {
    use AlarmKind::*;
    match &signs.certificates {
        Some(certificates) => {
            for EndSigns { whose, at } in certificates {
                let (left, other) = (since_then(now, *at), called(whose));
                judged.add(left < SOON, CertificateExpires, whose, || match left.is_zero() {
                    true => format!("The TLS certificate of {other} has expired"),
                    false => format!("The TLS certificate of {other} expires in {}", so_long(left)),
                });
            }
        }
        None => drop(judged.unknown.insert(CertificateExpires)),
    }
    match &signs.credentials {
        Some(credentials) => {
            for EndSigns { whose, at } in credentials {
                judged.add(since_then(now, *at) < NOT_RENEWED, CredentialsExpire, whose, || {
                    format!("The credentials for {} expire, or have expired, and could not be renewed", called(whose))
                });
            }
        }
        None => drop(judged.unknown.insert(CredentialsExpire)),
    }
    match &signs.clocks {
        Some(clocks) => {
            for ClockSigns { whose, ahead } in clocks {
                let by = so_long(Duration::try_from_secs_f64(ahead.abs()).unwrap_or_default());
                let word = if *ahead > 0.0 { "ahead of" } else { "behind" };
                judged.add(ahead.abs() > OFF, ClockOff, whose, || {
                    format!("The clock of Walkeep's host is {by} {word} that of {}", called(whose))
                });
            }
        }
        None => drop(judged.unknown.insert(ClockOff)),
    }
}

/// Whom a sign is about, in a sentence.
fn called(whose: &str) -> &str {
    if whose == "server" { "the server" } else { whose }
}

fn since_then(then: DateTime<Utc>, now: DateTime<Utc>) -> Duration {
    (now - then).to_std().unwrap_or_default()
}

/// A counter's past: its value whenever it had grown.
#[derive(Debug, Default)]
struct Count {
    last: u64,
    grew: VecDeque<(DateTime<Utc>, u64)>,
}

/// So many steps are remembered; beyond, the newest two are one.
const STEPS: usize = 1000;

impl Count {
    fn grown(&mut self, value: u64, window: Duration, now: DateTime<Utc>) -> u64 {
        let by = value.saturating_sub(self.last);
        self.last = value;
        if by > 0 {
            let is_crowded = self.grew.len() >= STEPS;
            let before = if is_crowded { self.grew.pop_back().map_or(0, |(_, by)| by) } else { 0 };
            self.grew.push_back((now, before + by));
        }
        // A clock that was set back makes no alarm that lasts until it is there again.
        self.grew.retain(|(at, _)| *at <= now && since_then(*at, now) < window);
        self.grew.iter().map(|(_, by)| by).sum()
    }
}
