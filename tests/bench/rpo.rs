//! How much a dead host loses: in mid load server and agent are killed with -9 together, their disks are gone, and what S3 has is restored.

use std::time::{Duration, Instant};

use walkeep_tests::{Cluster, Repository, S3Server, Walkeep, wait_until};

use crate::commits::wait_until_told;
use crate::host::{kill_started_for, power_cut, server};
use crate::load::{Load, create_table};
use crate::loss::Loss;
use crate::numbers::{Random, any_seed, largest, median};
use crate::options::Options;
use crate::pgbackrest::{self, PgBackRest};
use crate::restored;

/// The promise of `upload_interval = "1s"`: the oldest lost commit is not older than this.
const PROMISED: f64 = 2.0;

/// A round's end.
struct Round {
    loss: Loss,
    /// Until the restored server wrote.
    back: f64,
}

/// `rpo`.
pub fn asynchronous(options: &mut Options) -> Result<bool, String> {
    let (rounds, rate) = (options.take("rounds", 30_u32)?, options.take("rate", 50.0)?);
    let (interval, seed) = (options.take("interval", "1s".to_owned())?, options.take("seed", any_seed())?);
    let peers = options.list::<String>("pgbackrest", "")?;
    let peers = peers.iter().map(|word| timeout_and_rounds(word)).collect::<Result<Vec<_>, _>>()?;
    options.end()?;
    println!("rpo: {rounds} rounds at {rate} commits/s, upload_interval {interval}, seed {seed}");
    let peers = if !peers.is_empty() && pgbackrest::installed() { peers } else { Vec::new() };
    S3Server::get();
    // Both mostly wait; side by side they have the same machine.
    let (ours, others) = std::thread::scope(|scope| {
        let others = scope.spawn(|| {
            let mut random = Random::new(seed ^ 1);
            peers.iter().map(|(timeout, rounds)| (*timeout, by_pgbackrest(*timeout, *rounds, rate, &mut random))).collect::<Vec<_>>()
        });
        let mut random = Random::new(seed);
        let ours: Vec<_> = (1..=rounds)
            .map(|round| {
                let after = random.between(Duration::from_secs(4), Duration::from_secs(14));
                shown(&format!("walkeep {round}"), after, by_walkeep(Ack::None(&interval), 2, Some(rate), after))
            })
            .collect();
        (ours, others.join().expect("pgBackRest's rounds end"))
    });
    println!(
        "\n| | rounds | oldest lost commit before the kill, s: median (max) | lost span s: median (max) | lost commits: median (max) | of | back after s |"
    );
    println!("|---|---|---|---|---|---|---|");
    row(&format!("Walkeep, upload_interval {interval}"), &ours);
    for (timeout, rounds) in &others {
        row(&format!("pgBackRest, archive_timeout {timeout} s"), rounds);
    }
    let kept = ours.iter().filter(|round| round.loss.age <= PROMISED).count();
    println!("\nnothing older than {PROMISED} s lost: {kept} of {} rounds", ours.len());
    Ok(interval != "1s" || kept == ours.len())
}

/// `rpo0`.
pub fn synchronous(options: &mut Options) -> Result<bool, String> {
    let (rounds, seed) = (options.take("rounds", 30_u32)?, options.take("seed", any_seed())?);
    options.end()?;
    println!("rpo0: {rounds} rounds, the agent as the only synchronous standby, 8 clients at full speed, seed {seed}");
    let mut random = Random::new(seed);
    let ours: Vec<_> = (1..=rounds)
        .map(|round| {
            let after = random.between(Duration::from_secs(2), Duration::from_secs(10));
            shown(&format!("walkeep {round}"), after, by_walkeep(Ack::Repository, 8, None, after))
        })
        .collect();
    let confirmed: usize = ours.iter().map(|round| round.loss.confirmed).sum();
    let lost: usize = ours.iter().map(|round| round.loss.lost).sum();
    let clean = ours.iter().filter(|round| round.loss.lost == 0).count();
    println!("\nno acknowledged commit lost: {clean} of {} rounds; {confirmed} commits acknowledged in all, {lost} lost", ours.len());
    Ok(lost == 0)
}

/// What commits wait for.
#[derive(Clone, Copy)]
enum Ack<'a> {
    /// Nothing; parts go out at this interval.
    None(&'a str),
    /// The repository.
    Repository,
}

fn by_walkeep(ack: Ack, clients: u32, rate: Option<f64>, after: Duration) -> Round {
    let bucket = S3Server::get().bucket();
    let repository = Repository::s3(S3Server::get().endpoint(), &bucket);
    let cluster = server().start();
    let mut walkeep = Walkeep::new(&cluster, repository.clone());
    walkeep.upload_interval = match ack {
        Ack::None(interval) => interval.to_owned(),
        Ack::Repository => "1s".to_owned(),
    };
    walkeep.write_config();
    walkeep.ok(&["init"]);
    let agent = walkeep.agent();
    create_table(&cluster);
    walkeep.ok(&["backup"]);
    if let Ack::Repository = ack {
        be_synchronous(&cluster, "walkeep");
        wait_until_told(&agent);
    }
    let load = Load::start(&cluster, clients, rate);
    std::thread::sleep(after);
    let killed = power_cut(&cluster, &[agent.pid()], None);
    let confirmed = load.after_the_crash();
    // The disks: data directory and spool.
    drop((agent, walkeep, cluster));
    let (restored, back) = restored::by_walkeep(repository);
    Round { loss: Loss::of(&confirmed, &restored, killed), back }
}

/// From now on a commit waits for the standby of this name, which streams already.
pub fn be_synchronous(cluster: &Cluster, name: &str) {
    cluster.set("synchronous_standby_names", name);
    let sync = format!(
        "SELECT count(*) FROM pg_stat_replication WHERE application_name = '{name}' AND sync_state = 'sync' AND flush_lsn IS NOT NULL"
    );
    wait_until("the standby is the synchronous one", Duration::from_secs(60), || cluster.sql(&sync) == "1");
}

fn by_pgbackrest(timeout: u64, rounds: u32, rate: f64, random: &mut Random) -> Vec<Round> {
    let round = |round| {
        let bucket = S3Server::get().bucket();
        let cluster = server().archiving().conf("archive_timeout", timeout).start();
        let peer = PgBackRest::new(&bucket, Some(&cluster));
        peer.ok(&["stanza-create"]);
        cluster.set("archive_command", &peer.archive_command());
        create_table(&cluster);
        peer.ok(&["--type=full", "backup"]);
        let load = Load::start(&cluster, 2, Some(rate));
        // A whole period, then any moment of the next.
        let after = random.between(Duration::from_secs(timeout + 2), Duration::from_secs(timeout * 2 + 2));
        std::thread::sleep(after);
        let killed = power_cut(&cluster, &[], Some(peer.folder()));
        let confirmed = load.after_the_crash();
        drop((cluster, peer));
        let began = Instant::now();
        let elsewhere = PgBackRest::new(&bucket, None);
        let server = Cluster::adopt(walkeep_tests::postgres::default_version(), elsewhere.restore());
        let (restored, back) = restored::after_recovery(&server, &[], began);
        server.kill9();
        kill_started_for(elsewhere.folder());
        shown(
            &format!("pgBackRest, archive_timeout {timeout}, {round}"),
            after,
            Round { loss: Loss::of(&confirmed, &restored, killed), back },
        )
    };
    (1..=rounds).map(round).collect()
}

fn timeout_and_rounds(word: &str) -> Result<(u64, u32), String> {
    let parts = word.split_once(':').and_then(|(timeout, rounds)| Some((timeout.parse().ok()?, rounds.parse().ok()?)));
    parts.ok_or_else(|| format!("--pgbackrest has TIMEOUT:ROUNDS, not {word}"))
}

fn shown(who: &str, after: Duration, round: Round) -> Round {
    let Loss { confirmed, lost, age, span, unconfirmed } = round.loss;
    println!(
        "{who}: killed after {:.2} s; {confirmed} acknowledged, {lost} lost, the oldest {age:.2} s before the kill, span {span:.2} s; {unconfirmed} more under way are there; back after {:.1} s",
        after.as_secs_f64(),
        round.back
    );
    round
}

fn row(name: &str, rounds: &[Round]) {
    let of = |value: fn(&Round) -> f64| rounds.iter().map(value).collect::<Vec<_>>();
    let (age, span, lost) = (of(|round| round.loss.age), of(|round| round.loss.span), of(|round| round.loss.lost as f64));
    println!(
        "| {name} | {} | {:.2} ({:.2}) | {:.2} ({:.2}) | {:.0} ({:.0}) | {:.0} | {:.1} |",
        rounds.len(),
        median(&age),
        largest(&age),
        median(&span),
        largest(&span),
        median(&lost),
        largest(&lost),
        median(&of(|round| round.loss.confirmed as f64)),
        median(&of(|round| round.back)),
    );
}
