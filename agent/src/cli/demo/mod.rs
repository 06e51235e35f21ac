//! `walkeep demo`: the whole story on a throw-away server and a local repository, in words a newcomer follows.
//!
//! Everything runs for real: the commands shown are the commands run, as processes of this very program. Nothing outside one temporary
//! folder is touched, and everything is gone at the end.

mod payments;
mod server;
mod stage;

use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use clap::Args;

use super::failure::Failure;
use super::output;
use payments::{Client, Confirmed};
use server::Server;
use stage::{Agent, Stage};

/// Arguments of `walkeep demo`.
#[derive(Debug, Args)]
#[command(after_help = "Example:\n  walkeep demo            needs PostgreSQL's server programs, and not to run as root")]
pub struct DemoArgs {
    /// Folder with initdb, pg_ctl and postgres [default: the newest of /usr/lib/postgresql]
    #[arg(long, value_name = "DIR", env = "PG_BIN")]
    pg_bin: Option<std::path::PathBuf>,
    /// Leave everything where it is at the end
    #[arg(long)]
    keep: bool,
}

/// Runs the story.
pub async fn run(args: DemoArgs) -> Result<(), Failure> {
    if rustix::process::geteuid().is_root() {
        return Err(
            Failure::refused("PostgreSQL does not run as root").hint("Run it as another user: setpriv --reuid=postgres …, or `make demo`.")
        );
    }
    let began = Instant::now();
    let stage = Stage::set(args.pg_bin, args.keep)?;
    let told = tell(&stage).await;
    if told.is_err() {
        stage.show_logs();
    }
    told?;
    output::say!("\nDone in {} s.", began.elapsed().as_secs());
    Ok(())
}

async fn tell(stage: &Stage) -> Result<()> {
    say("1. A PostgreSQL server, with archive_command handing finished WAL to Walkeep.");
    let mut server =
        Server::create(stage, "data", &["archive_mode = on".into(), format!("archive_command = '{}'", stage.archive_command())])?;
    server.start().await?;
    stage.write_config(&server)?;

    say("2. Walkeep gets to know it: the repository is a local folder here; an S3 bucket works the same way.");
    stage.walkeep(&["init"]).await?;
    let agent = stage.start_agent().await?;
    stage.wait_for_stream().await?;
    output::say!("   The agent streams WAL from the server and stores it.");

    say("3. Some work, and a base backup while it goes on.");
    server
        .sql(
            "create table orders (id bigint generated always as identity primary key, item text, at timestamptz default clock_timestamp())",
        )
        .await?;
    server.sql(payments::TABLE).await?;
    insert(&server, 2000).await?;
    let (backed_up, inserted) = tokio::join!(stage.walkeep(&["backup", "--label", "demo"]), insert(&server, 3000));
    backed_up?;
    inserted?;

    say("4. More work after the backup, and then the accident: DROP TABLE orders.");
    insert(&server, 5000).await?;
    let orders = server.one("select count(*) || ' orders, the last one number ' || max(id) from orders").await?;
    let last_commit = server.one("select to_char(max(at) at time zone 'utc', 'YYYY-MM-DD HH24:MI:SS.US') from orders").await?;
    output::say!("   There are {orders}, committed at {last_commit} UTC.");
    let before_drop = server.one("select to_char(clock_timestamp() at time zone 'utc', 'YYYY-MM-DD HH24:MI:SS.US') || '+00'").await?;
    server.sql("drop table orders").await?;
    server.sql("create table unrelated as select generate_series(1, 100) as n").await?;
    output::say!("   The table is gone. Nobody noticed for a while; other work went on.");

    say(
        "5. And it gets worse: in the middle of other work the whole host goes. Server and agent are killed with -9, their disks are lost.",
    );
    let confirmed = lose_the_host(stage, &mut server, agent).await?;
    output::say!("   {} payments had been confirmed to their client, a commit each. Only the repository is left:", confirmed.len());
    stage.walkeep(&["status"]).await?;

    say("6. How much is lost? A new host, with a new agent that serves the WAL, restores the newest state there is.");
    let mut agent = stage.start_agent().await?;
    let newest = stage.path("newest");
    stage.walkeep(&["restore", "--latest", "--to", newest.to_str().context("a path that is text")?]).await?;
    let mut newest = Server::adopt(stage, "newest")?;
    newest.start().await?;
    newest.wait_until_writable(Duration::from_secs(120)).await?;
    confirmed.tell_lost(&newest).await?;
    newest.stop().await?;

    say("7. Can the moment just before the DROP be had back? The plan reads the WAL and says exactly what will be there.");
    stage.walkeep(&["plan", "--at", &before_drop]).await?;

    say("8. Yes. The restore lays down a data directory; PostgreSQL replays WAL up to that moment.");
    let restored = stage.path("restored");
    let to = restored.to_str().context("a path that is text")?;
    let began = Instant::now();
    stage.walkeep(&["restore", "--at", &before_drop, "--to", to, "--action", "promote"]).await?;
    let mut restored = Server::adopt(stage, "restored")?;
    restored.start().await?;
    restored.wait_until_writable(Duration::from_secs(120)).await?;
    output::say!("   Restored and open for writes after {:.1} s.", began.elapsed().as_secs_f64());

    say("9. The proof.");
    let orders_again = restored.one("select count(*) || ' orders, the last one number ' || max(id) from orders").await?;
    let last_again = restored.one("select to_char(max(at) at time zone 'utc', 'YYYY-MM-DD HH24:MI:SS.US') from orders").await?;
    output::say!("   before the accident: {orders}, committed at {last_commit} UTC");
    output::say!("   after the restore:   {orders_again}, committed at {last_again} UTC");
    ensure!(orders == orders_again && last_commit == last_again, "the restored table is not the one that was lost");
    let later = restored.one("select count(*)::text from pg_class where relname = 'unrelated'").await?;
    ensure!(later == "0", "work from after the moment asked for is there");
    output::say!("   Every order is back, and nothing from after the accident.");
    restored.stop().await?;
    agent.stop().await
}

/// A power cut while a client pays: processes and disks of server and agent are gone. What the client had confirmed until then.
async fn lose_the_host(stage: &Stage, server: &mut Server, mut agent: Agent) -> Result<Confirmed> {
    let client = Client::start(server).await?;
    within("the payments", Duration::from_secs(60), async || Ok(client.confirmed() >= 200)).await?;
    let killed = Instant::now();
    agent.kill()?;
    server.kill_and_delete()?;
    agent.wait().await?;
    std::fs::remove_dir_all(stage.path("spool")).context("delete the spool")?;
    client.end(killed).await
}

/// Inserts orders, one commit each ten.
async fn insert(server: &Server, rows: u32) -> Result<()> {
    let client = server.connect().await?;
    for _ in 0..rows / 10 {
        let insert = "insert into orders (item) select 'item ' || md5(random()::text) from generate_series(1, 10)";
        client.batch_execute(insert).await.context("insert orders")?;
    }
    Ok(())
}

fn say(text: &str) {
    output::say!("\n{text}");
}

async fn within(what: &str, time: Duration, mut done: impl AsyncFnMut() -> Result<bool>) -> Result<()> {
    let began = Instant::now();
    while !done().await? {
        if began.elapsed() > time {
            bail!("{what}: not within {} s", time.as_secs());
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    Ok(())
}
