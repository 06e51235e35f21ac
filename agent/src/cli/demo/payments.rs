//! A client that pays and pays, one commit each, and remembers which it was told are done: what a dead host lost is measured by that.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use tokio::task::JoinHandle;

use super::server::Server;
use crate::cli::output;

/// Where they go.
pub const TABLE: &str = "create table payments (number bigint generated always as identity primary key, amount int)";

/// A client at work.
pub struct Client {
    task: JoinHandle<Vec<Payment>>,
    confirmed: Arc<AtomicUsize>,
}

/// Number and moment of a payment that was confirmed.
struct Payment {
    number: i64,
    at: Instant,
}

/// What was confirmed before the server died.
pub struct Confirmed {
    payments: Vec<Payment>,
    killed: Instant,
}

impl Client {
    /// Begins to pay, about a hundred times a second, until the server is gone.
    pub async fn start(server: &Server) -> Result<Self> {
        let client = server.connect().await?;
        let confirmed = Arc::new(AtomicUsize::new(0));
        let counter = Arc::clone(&confirmed);
        let task = tokio::spawn(async move {
            let mut payments = Vec::new();
            // The answer comes after the commit.
            while let Ok(row) = client.query_one("insert into payments (amount) values (100) returning number", &[]).await
                && let Ok(number) = row.try_get(0)
            {
                payments.push(Payment { number, at: Instant::now() });
                counter.store(payments.len(), Ordering::Relaxed);
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
            payments
        });
        Ok(Self { task, confirmed })
    }

    /// How many are confirmed so far.
    pub fn confirmed(&self) -> usize {
        self.confirmed.load(Ordering::Relaxed)
    }

    /// After the server was killed at that moment: what was confirmed.
    pub async fn end(self, killed: Instant) -> Result<Confirmed> {
        let payments = self.task.await.context("the client ended badly")?;
        Ok(Confirmed { payments, killed })
    }
}

impl Confirmed {
    /// How many there were.
    pub fn len(&self) -> usize {
        self.payments.len()
    }

    /// Says how much of it a restored server has not.
    pub async fn tell_lost(&self, restored: &Server) -> Result<()> {
        let row = restored.connect().await?.query_one("select count(*), coalesce(max(number), 0) from payments", &[]).await?;
        let (count, last): (i64, i64) = (row.try_get(0)?, row.try_get(1)?);
        ensure!(count == last, "{count} payments are there, the last one number {last}: one is missing in the middle");
        let lost: Vec<_> = self.payments.iter().filter(|payment| payment.number > last).collect();
        match lost.first() {
            None => output::say!("   All {} confirmed payments are back.", self.len()),
            Some(first) => output::say!(
                "   {} of the {} confirmed payments are back. Lost are {}, all of the last {:.2} s before the kill.",
                self.len() - lost.len(),
                self.len(),
                lost.len(),
                self.killed.saturating_duration_since(first.at).as_secs_f64()
            ),
        }
        output::say!(
            "   An unfinished segment is stored each second (upload_interval). With synchronous_standby_names = 'walkeep' a commit"
        );
        output::say!("   returns when it is in the repository, and nothing is lost.");
        Ok(())
    }
}
