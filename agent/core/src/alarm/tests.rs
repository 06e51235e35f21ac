use std::time::Duration;

use chrono::{DateTime, Utc};

use super::*;

fn at(seconds: i64) -> DateTime<Utc> {
    DateTime::from_timestamp(1_800_000_000 + seconds, 0).unwrap()
}

/// An agent that is well, and has looked at everything.
fn well() -> Signs {
    Signs {
        began: at(0),
        receives: true,
        streaming: true,
        possible_loss: Some(Duration::ZERO),
        slot: Some(SlotSigns { status: "reserved".into(), safe: None, retained: Some(0) }),
        pg_wal_free: Some(1 << 40),
        spool: Some((0, 4 << 30)),
        gaps: Some(0),
        verify: Some(VerifySigns { looked_at: Some(at(0)), ..VerifySigns::default() }),
        schedules: Some(vec![ScheduleSigns { label: "nightly".into(), success: Some(at(0)), ..ScheduleSigns::default() }]),
        bad_pages: Some(0),
        expire: Some(ExpireSigns { success: Some(at(0)), failure: None }),
        artifacts: Some(vec![ArtifactSigns { name: "etc".into(), success: Some(at(0)), ..ArtifactSigns::default() }]),
        drill: Some(DrillSigns { success: Some(at(0)), ..DrillSigns::default() }),
        repositories: Some(vec![RepositorySigns { url: "s3://a".into(), up: true, ..RepositorySigns::default() }]),
        clocks: Some(vec![ClockSigns { whose: "server".into(), ahead: -20.0 }]),
        certificates: Some(vec![EndSigns { whose: "server".into(), at: at(86_400 * 20) }]),
        credentials: Some(vec![EndSigns { whose: "s3://a".into(), at: at(86_400 * 20) }]),
        ..Signs::default()
    }
}

fn names(judged: &Judged) -> Vec<String> {
    judged.alarms.iter().map(|alarm| format!("{}{}", alarm.kind, alarm.subject)).collect()
}

fn look(signs: &Signs, seconds: i64) -> Vec<String> {
    names(&Judge::new(Duration::from_secs(60)).look(signs, at(seconds)))
}

#[test]
fn each_kind_has_its_sign() {
    assert_eq!(look(&well(), 60), [""; 0]);
    let minutes = |minutes: u64| Duration::from_secs(60 * minutes);
    let mut seen = std::collections::BTreeSet::new();
    let mut wrong = |change: &dyn Fn(&mut Signs), expected: &[&str]| {
        let mut signs = well();
        change(&mut signs);
        let told = look(&signs, 60);
        assert_eq!(told, expected);
        seen.extend(Judge::new(minutes(1)).look(&signs, at(60)).alarms.into_iter().map(|alarm| alarm.kind));
    };
    wrong(&|signs| signs.receives = false, &["NoStream"]);
    wrong(&|signs| (signs.commits_wait, signs.lag) = (true, minutes(1)), &["CommitsHang"]);
    wrong(&|signs| signs.possible_loss = Some(minutes(2)), &["PossibleLoss"]);
    wrong(&|signs| signs.possible_loss = Some(minutes(11)), &["PossibleLoss", "PossibleLossLarge"]);
    wrong(&|signs| signs.lag_bytes = 2_000_000_000, &["LagBytes"]);
    wrong(&|signs| signs.oldest_ready = minutes(6), &["ArchiveCommandFails"]);
    wrong(&|signs| signs.spool = Some((9, 10)), &["SpoolFillsUp"]);
    let slot = |status: &str, safe, retained| Some(SlotSigns { status: status.into(), safe, retained });
    wrong(&|signs| signs.slot = slot("unreserved", None, None), &["SlotAtRisk"]);
    wrong(&|signs| signs.slot = slot("extended", Some(1000), None), &["SlotAtRisk"]);
    wrong(&|signs| signs.slot = slot("missing", None, None), &["SlotLost"]);
    wrong(&|signs| (signs.slot, signs.pg_wal_free) = (slot("extended", None, Some(2 << 30)), Some(1 << 30)), &["PgWalFillsUp"]);
    wrong(&|signs| signs.slot_given_up = true, &["SlotGivenUp"]);
    wrong(&|signs| signs.gaps = Some(1), &["Gap"]);
    wrong(&|signs| signs.conflicts = 1, &["Conflict"]);
    wrong(&|signs| signs.errors = [("denied".to_owned(), 1)].into(), &["RepositoryRefusesdenied"]);
    wrong(&|signs| signs.errors = [("transient".to_owned(), 31)].into(), &["RepositoryUnsteady"]);
    let verify = |damaged, short_locks, days: i64| Some(VerifySigns { damaged, short_locks, looked_at: Some(at(-86_400 * days)) });
    wrong(&|signs| signs.verify = verify(1, 0, 0), &["Damage"]);
    wrong(&|signs| signs.verify = verify(0, 1, 0), &["ShortLocks"]);
    wrong(&|signs| signs.verify = verify(0, 0, 4), &["NotVerified"]);
    let schedule = |overdue, days: i64, failure| {
        Some(vec![ScheduleSigns { label: "n".into(), overdue, success: Some(at(-86_400 * days)), failure, next: None }])
    };
    wrong(&|signs| signs.schedules = schedule(true, 0, None), &["BackupOverduen"]);
    wrong(&|signs| signs.schedules = schedule(false, 0, Some(at(30))), &["BackupFailedn"]);
    wrong(&|signs| signs.schedules = schedule(false, 9, None), &["BackupStale"]);
    wrong(&|signs| signs.backup_due = true, &["BackupDue"]);
    wrong(&|signs| signs.bad_pages = Some(3), &["BadPages"]);
    wrong(&|signs| signs.expire = Some(ExpireSigns { success: None, failure: Some(at(30)) }), &["ExpireFails"]);
    let artifact = |failed, overdue| Some(vec![ArtifactSigns { name: "a".into(), failed, overdue, ..ArtifactSigns::default() }]);
    wrong(&|signs| signs.artifacts = artifact(true, false), &["ArtifactFaileda"]);
    wrong(&|signs| signs.artifacts = artifact(false, true), &["ArtifactFaileda"]);
    let drill = |failed, overdue, days: i64| Some(DrillSigns { failed, overdue, success: Some(at(-86_400 * days)), next: None });
    wrong(&|signs| signs.drill = drill(true, false, 0), &["DrillFailed"]);
    wrong(&|signs| signs.drill = drill(false, true, 0), &["DrillStale"]);
    wrong(&|signs| signs.drill = drill(false, false, 36), &["DrillStale"]);
    let repository = |up, behind, wrong| Some(vec![RepositorySigns { url: "u".into(), up, behind, wrong }]);
    wrong(&|signs| signs.repositories = repository(false, Duration::ZERO, 0), &["RepositoryDownu"]);
    wrong(&|signs| signs.repositories = repository(true, minutes(90), 0), &["CopyBehindu"]);
    wrong(&|signs| signs.repositories = repository(true, Duration::ZERO, 1), &["RepositoriesDifferu"]);
    let clock = |ahead| Some(vec![ClockSigns { whose: "server".into(), ahead }]);
    wrong(&|signs| signs.clocks = clock(31.0), &["ClockOffserver"]);
    wrong(&|signs| signs.clocks = clock(-31.0), &["ClockOffserver"]);
    let ends = |seconds: i64| Some(vec![EndSigns { whose: "s3://a".into(), at: at(60 + seconds) }]);
    wrong(&|signs| signs.certificates = ends(86_400 * 14 - 1), &["CertificateExpiress3://a"]);
    wrong(&|signs| signs.certificates = ends(-1), &["CertificateExpiress3://a"]);
    wrong(&|signs| signs.credentials = ends(121), &[]);
    wrong(&|signs| signs.credentials = ends(119), &["CredentialsExpires3://a"]);
    wrong(&|signs| signs.credentials = ends(-1000), &["CredentialsExpires3://a"]);
    assert_eq!(seen.into_iter().collect::<Vec<_>>(), AlarmKind::ALL, "every kind was seen");
}

#[test]
fn each_stands_since_it_was_seen_first() {
    let mut judge = Judge::new(Duration::from_secs(60));
    let standing = |judged: Judged| judged.standing.iter().map(|said| (said.alarm.kind.as_str(), said.since)).collect::<Vec<_>>();
    assert_eq!(standing(judge.look(&Signs { gaps: Some(1), ..well() }, at(5))), [("Gap", at(5))]);
    let both = Signs { gaps: Some(1), lag_bytes: 2_000_000_000, slot_given_up: true, ..well() };
    assert_eq!(standing(judge.look(&both, at(9))), [("SlotGivenUp", at(9)), ("Gap", at(5)), ("LagBytes", at(9))]);
    judge.look(&well(), at(10));
    assert_eq!(standing(judge.look(&Signs { gaps: Some(1), ..well() }, at(11))), [("Gap", at(11))], "anew");
}

#[test]
fn counters_speak_for_a_while() {
    let mut judge = Judge::new(Duration::from_secs(60));
    let mut signs = Signs { conflicts: 1, ..well() };
    assert_eq!(names(&judge.look(&signs, at(0))), ["Conflict"]);
    assert_eq!(names(&judge.look(&signs, at(3599))), ["Conflict"]);
    assert_eq!(names(&judge.look(&signs, at(3600))), [""; 0]);
    signs.conflicts = 2;
    assert_eq!(names(&judge.look(&signs, at(3700))), ["Conflict"]);
    assert_eq!(names(&judge.look(&signs, at(3000))), [""; 0], "the clock was set back");
}

#[test]
fn what_is_not_known_is_neither_wrong_nor_over() {
    let judged = Judge::new(Duration::from_secs(60)).look(&Signs { receives: true, began: at(0), ..Signs::default() }, at(60));
    assert_eq!(names(&judged), [""; 0]);
    for kind in [AlarmKind::Gap, AlarmKind::Damage, AlarmKind::SlotLost, AlarmKind::BackupFailed, AlarmKind::PossibleLoss] {
        assert!(judged.is_unknown(kind, "x"), "{kind}");
    }
    // One schedule has had a backup since, of the other nothing is known but what was before.
    let schedules = [("a", 30), ("b", -30)].map(|(label, success)| ScheduleSigns {
        label: label.into(),
        success: Some(at(success)),
        ..ScheduleSigns::default()
    });
    let judged = Judge::new(Duration::from_secs(60)).look(&Signs { schedules: Some(schedules.into()), ..well() }, at(60));
    assert_eq!([judged.is_unknown(AlarmKind::BackupFailed, "a"), judged.is_unknown(AlarmKind::BackupFailed, "b")], [false, true]);
}

/// A teller, the time, and what it has said.
struct Story {
    teller: Teller,
    rules: Rules,
    judge: Judge,
}

impl Story {
    fn new(rules: Rules) -> Self {
        Self { teller: Teller::default(), rules, judge: Judge::new(Duration::from_secs(60)) }
    }

    fn look(&mut self, signs: &Signs, seconds: i64) -> Option<Message> {
        let judged = self.judge.look(signs, at(seconds));
        self.teller.look(&judged, &self.rules, at(seconds))
    }

    /// What arrives.
    fn told(&mut self, signs: &Signs, seconds: i64) -> Option<(Event, String)> {
        let message = self.look(signs, seconds)?;
        self.teller.settle(&message, true, at(seconds));
        let kinds: Vec<_> = message.kinds().map(AlarmKind::as_str).collect();
        Some((message.event, kinds.join(" ")))
    }
}

const RULES: Rules = Rules { wait: None, remind: Some(Duration::from_secs(86_400)), most_an_hour: 10 };

fn told(event: Event, kinds: &str) -> Option<(Event, String)> {
    Some((event, kinds.to_owned()))
}

#[test]
fn a_failure_is_told_once_it_has_held_then_again_and_its_end() {
    let (mut story, silent) = (Story::new(RULES), Signs { receives: false, ..well() });
    assert_eq!(story.told(&silent, 0), None, "it has not held yet");
    assert_eq!(story.told(&silent, 119), None);
    assert_eq!(story.told(&silent, 120), told(Event::Failure, "NoStream"));
    assert_eq!(story.told(&silent, 1000), None, "it was told");
    assert_eq!(story.told(&silent, 86_520), told(Event::Reminder, "NoStream"));
    assert_eq!(story.told(&well(), 86_600), None, "it may come again");
    assert_eq!(story.told(&silent, 86_650), None);
    assert_eq!(story.told(&well(), 86_700), None);
    assert_eq!(story.told(&well(), 86_820), told(Event::Recovery, "NoStream"));
    assert_eq!(story.told(&well(), 200_000), None);
    assert!(!serde_json::to_string(&story.teller).unwrap().contains("NoStream"), "nothing is kept of it");
}

#[test]
fn what_was_never_told_is_not_taken_back() {
    let mut story = Story::new(RULES);
    assert_eq!(story.told(&Signs { receives: false, ..well() }, 0), None);
    assert_eq!(story.told(&well(), 60), None);
    // It holds anew.
    assert_eq!(story.told(&Signs { receives: false, ..well() }, 130), None);
    assert_eq!(story.told(&well(), 600), None);
}

#[test]
fn what_changes_together_is_one_message_and_too_many_wait_for_the_next() {
    let mut story = Story::new(Rules { wait: Some(Duration::from_secs(1)), most_an_hour: 2, ..RULES });
    let gap = Signs { gaps: Some(1), ..well() };
    let both = Signs { slot_given_up: true, ..gap.clone() };
    assert_eq!(story.told(&both, 0), None);
    assert_eq!(story.told(&both, 2), told(Event::Failure, "SlotGivenUp Gap"));
    assert_eq!(story.told(&gap, 3), None);
    assert_eq!(story.told(&gap, 5), told(Event::Recovery, "SlotGivenUp"));
    // No more within the hour, whatever happens; what is over again meanwhile is never told.
    let damaged = Signs { verify: Some(VerifySigns { damaged: 1, looked_at: Some(at(0)), ..VerifySigns::default() }), ..well() };
    for second in (10..3600).step_by(50) {
        assert_eq!(story.told(&both, second), None, "{second}");
        assert_eq!(story.told(&damaged, second + 25), None, "{second}");
    }
    assert_eq!(story.told(&damaged, 3603), told(Event::Failure, "Damage Gap"));
}

#[test]
fn what_did_not_arrive_is_told_later_as_it_is_then() {
    let mut story = Story::new(Rules { wait: Some(Duration::ZERO), ..RULES });
    let gap = Signs { gaps: Some(1), ..well() };
    let mut tries = Vec::new();
    for second in 0..60 {
        if let Some(message) = story.look(&gap, second) {
            story.teller.settle(&message, false, at(second));
            tries.push(second);
        }
    }
    assert_eq!(tries, [0, 5, 15, 35], "ever more seldom");
    let more = Signs { slot_given_up: true, ..gap };
    assert_eq!(story.told(&more, 80), told(Event::Failure, "Gap SlotGivenUp"));
    assert_eq!(story.told(&well(), 90), told(Event::Recovery, "Gap SlotGivenUp"));
}

#[test]
fn what_was_told_outlives_the_process() {
    let mut story = Story::new(Rules { wait: Some(Duration::ZERO), ..RULES });
    assert_eq!(story.told(&Signs { gaps: Some(1), ..well() }, 0), told(Event::Failure, "Gap"));
    let kept = serde_json::to_string(&story.teller).unwrap();
    let mut story = Story { teller: serde_json::from_str(&kept).unwrap(), ..Story::new(RULES) };
    assert_eq!(story.told(&Signs { gaps: None, ..well() }, 100), None, "the new one has not looked yet");
    assert_eq!(story.told(&Signs { gaps: Some(1), ..well() }, 110), None, "told before");
    assert_eq!(story.told(&well(), 120), told(Event::Recovery, "Gap"));
}

#[test]
fn a_clock_that_was_ahead_silences_nobody() {
    let mut story = Story::new(Rules { wait: Some(Duration::ZERO), most_an_hour: 1, ..RULES });
    assert_eq!(story.told(&Signs { gaps: Some(1), ..well() }, 100_000), told(Event::Failure, "Gap"));
    assert_eq!(story.told(&well(), 0), told(Event::Recovery, "Gap"));
    story.rules.most_an_hour = 2;
    let message = story.look(&Signs { slot_given_up: true, ..well() }, 4000).unwrap();
    story.teller.settle(&message, false, at(4000));
    assert!(story.look(&Signs { slot_given_up: true, ..well() }, 1000).is_some(), "the pause was set by another clock");
}

#[test]
fn a_message_says_it_in_few_lines() {
    let mut story = Story::new(Rules { wait: Some(Duration::ZERO), ..RULES });
    let many = (0..30).map(|number| RepositorySigns { url: format!("s3://{number}\n<!channel>\u{202e}"), ..RepositorySigns::default() });
    let message = story.look(&Signs { repositories: Some(many.collect()), gaps: Some(2), ..well() }, 0).unwrap();
    let text = message.text("main", "db1");
    assert_eq!(message.headline("main"), "CRITICAL: Gap, RepositoryDown on main");
    assert!(text.lines().count() == 1 + 12 + 2 && text.contains("and 19 more") && !text.contains('\u{202e}'), "{text}");
    assert!(text.contains("- critical: WAL is missing in the archive (2 open gaps)") && text.ends_with("From db1, 2027-01-15T08:00:00Z."));
    assert!(Message::test(at(0)).text("main", "db1").starts_with("Walkeep, TEST: messages of main arrive here"));
}

/// Who has Prometheus is told the same, and finds the same section of the runbook.
#[test]
fn they_are_the_alerts_of_prometheus() {
    let rules = include_str!("../../../../packaging/prometheus/walkeep.rules.yml");
    let mut alerts = Vec::new();
    for block in rules.split("- alert: Walkeep").skip(1) {
        let name = block.lines().next().unwrap();
        let value = |key: &str| block.lines().find_map(|line| line.trim().strip_prefix(key)).unwrap_or_default().trim().to_owned();
        let severity = value("labels: {severity: ").trim_end_matches('}').to_owned();
        let holds = match value("for:") {
            none if none.is_empty() => 0,
            text => {
                let (number, unit) = text.split_at(text.len() - 1);
                number.parse::<u64>().unwrap()
                    * [("s", 1), ("m", 60), ("h", 3600), ("d", 86_400)].iter().find(|known| known.0 == unit).unwrap().1
            }
        };
        let section = value("runbook_url:").split_once('#').unwrap().1.to_owned();
        alerts.push((name.to_owned(), severity, holds, section));
    }
    // Who is down tells nobody, and who waits for its server's promotion knows of no other: for that there is the heartbeat.
    alerts.retain(|alert| !["AgentDown", "NoMemberStreams"].contains(&alert.0.as_str()));
    alerts.sort();
    let mut kinds: Vec<_> = AlarmKind::ALL
        .iter()
        .map(|kind| (kind.to_string(), kind.severity().to_string(), kind.patience().as_secs(), kind.section().to_owned()))
        .collect();
    kinds.sort();
    assert_eq!(kinds, alerts);
}
