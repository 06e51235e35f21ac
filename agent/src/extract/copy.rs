//! Out of the scratch server: by pg_dump into a file, by pg_dump and psql into another server, by COPY for a query.
//!
//! What goes into another server is one transaction that this program ends itself, as the last thing it sends: whatever dies on the way, and
//! however, the other server has all of it or nothing.

use std::collections::HashSet;
use std::ffi::OsString;
use std::io::Write;
use std::path::Path;
use std::process::Stdio;

use anyhow::{Context, Result, anyhow, bail};
use futures::StreamExt;
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::process::{Child, ChildStdin, ChildStdout, Command};
use tokio_postgres::Client;

use super::look::Table;
use crate::scratch_server::Clients;
use walkeep_core::identifier::{always_quoted, printable};

/// How many seconds a lock is waited for, here and there: behind one that waits, others wait too.
const LOCK_TIMEOUT: u32 = 60;

/// How a dump is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Format {
    /// SQL.
    Plain,
    /// For pg_restore.
    Custom,
}

/// What to dump, and from where.
#[derive(Debug)]
pub struct Dump<'d> {
    /// The programs.
    pub clients: &'d Clients,
    /// What libpq finds the scratch server by.
    pub environment: &'d [(&'static str, OsString)],
    /// The tables, partitions too.
    pub tables: &'d [Table],
    /// With owners and rights.
    pub owners: bool,
    /// Without publications: for copies that stand beside the original.
    pub beside: bool,
}

impl Dump<'_> {
    fn command(&self, format: Format) -> Command {
        let mut command = Command::new(&self.clients.pg_dump);
        clean(&mut command);
        command.envs(self.environment.iter().map(|(name, value)| (name, value)));
        command.args(["--no-password", "--strict-names", &format!("--lock-wait-timeout={LOCK_TIMEOUT}s")]);
        command.arg(if format == Format::Custom { "--format=custom" } else { "--format=plain" });
        if !self.owners {
            command.args(["--no-owner", "--no-privileges"]);
        }
        if self.beside {
            command.arg("--no-publications");
        }
        for table in self.tables {
            command.arg("--table").arg(table.quoted());
        }
        command.stdin(Stdio::null()).stderr(Stdio::piped()).kill_on_drop(true);
        command
    }

    /// Into a file, which is there and empty; `None`: to standard output.
    pub async fn to_file(&self, format: Format, path: Option<&Path>) -> Result<()> {
        let mut command = self.command(format);
        match path {
            Some(path) => command.arg("--file").arg(path).stdout(Stdio::null()),
            None => command.stdout(Stdio::inherit()),
        };
        let dumped = command.spawn().context("start pg_dump")?.wait_with_output().await?;
        if !dumped.status.success() {
            bail!("pg_dump: {}", lines(&dumped.stderr).trim());
        }
        Ok(())
    }

    /// Into the server of `load`, in one transaction.
    pub async fn load(&self, load: &Load<'_>) -> Result<()> {
        let mut dump = self.command(Format::Plain).stdout(Stdio::piped()).spawn().context("start pg_dump")?;
        let mut command = Command::new(&self.clients.psql);
        // `-f -`: errors are told with their line. What psql reads at its start is another's.
        command.args(["--no-psqlrc", "--quiet", "--no-password", "--set", "ON_ERROR_STOP=1", "--dbname", load.conninfo, "--file", "-"]);
        command.env("PGAPPNAME", "walkeep-extract").env_remove("PGOPTIONS");
        if let Some(password) = load.password {
            command.env("PGPASSWORD", password);
        }
        command.stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::piped()).kill_on_drop(true);
        let mut psql = command.spawn().context("start psql")?;
        let (said_by_dump, said_by_psql) = (errors(&mut dump), errors(&mut psql));
        let (from, mut to) = (dump.stdout.take().context("pg_dump's output")?, psql.stdin.take().context("psql's input")?);
        // A psql that has stopped takes no more, and says why itself.
        let sent = send(from, &mut to, load).await;
        // A pg_dump whose reader has gone ends too.
        let dumped = dump.wait().await?;
        if sent.is_ok() && !dumped.success() {
            psql.start_kill()?;
            bail!("pg_dump: {}; the transaction was rolled back", said_by_dump.await?.trim());
        }
        if sent.is_ok() {
            to.write_all(load.ending(self.tables).as_bytes()).await.or_else(gone).context("end the transaction")?;
            to.flush().await.or_else(gone)?;
        }
        drop(to);
        let loaded = psql.wait().await?;
        let said = said_by_psql.await?;
        match (loaded.code(), sent) {
            (Some(0), Ok(())) => Ok(()),
            (Some(3), _) => bail!("the tables could not be loaded, and the transaction was rolled back: {}", said.trim()),
            (_, Err(error)) if said.trim().is_empty() => Err(error).context("send the tables; the transaction was rolled back"),
            (_, _) => bail!("psql ended with {loaded}: {}; look whether the tables are there", said.trim()),
        }
    }
}

/// Where tables go.
#[derive(Debug)]
pub struct Load<'l> {
    /// A connection string without a password: arguments can be read by everybody on the host.
    pub conninfo: &'l str,
    /// The password, if it was in the string.
    pub password: Option<&'l str>,
    /// Schemas to be made first.
    pub schemas: &'l [String],
    /// Tables to be dropped first, for SQL.
    pub drop: &'l [String],
    /// The names of the settings that the server knows.
    pub settings: &'l HashSet<String>,
    /// The rows each table must have in the end.
    pub rows: &'l [u64],
}

impl Load<'_> {
    fn beginning(&self) -> String {
        let mut text = format!("BEGIN;\nSET lock_timeout = '{}s';\n", LOCK_TIMEOUT);
        for schema in self.schemas {
            text.push_str(&format!("CREATE SCHEMA {};\n", always_quoted(schema)));
        }
        if !self.drop.is_empty() {
            text.push_str(&format!("DROP TABLE {};\n", self.drop.join(", ")));
        }
        text
    }

    fn ending(&self, tables: &[Table]) -> String {
        let mut text = String::from("\nDO $walkeep$ DECLARE n bigint; BEGIN\n");
        for (table, rows) in tables.iter().zip(self.rows) {
            let only = if table.partitioned { "" } else { "ONLY " };
            text.push_str(&format!("SELECT pg_catalog.count(*) INTO n FROM {only}{};\n", table.quoted()));
            let told = table.shown().replace('\'', "''").replace('%', "%%");
            text.push_str(&format!(
                "IF n <> {rows} THEN RAISE EXCEPTION 'walkeep: {told} has % rows, and {rows} were read in the scratch server', n; END IF;\n"
            ));
        }
        text.push_str("END $walkeep$;\nCOMMIT;\n");
        text
    }

    /// Whether a line of the dump's head is for the server: settings that only later versions know are not, and how long locks are waited for is ours.
    fn takes(&self, line: &str) -> bool {
        let name = line.strip_prefix("SET ").and_then(|rest| rest.split(' ').next());
        name.is_none_or(|name| name != "lock_timeout" && self.settings.contains(name))
    }
}

async fn send(from: ChildStdout, to: &mut ChildStdin, load: &Load<'_>) -> Result<()> {
    let mut from = BufReader::with_capacity(256 << 10, from);
    to.write_all(load.beginning().as_bytes()).await?;
    let mut line = Vec::new();
    loop {
        line.clear();
        if from.read_until(b'\n', &mut line).await? == 0 {
            return Ok(());
        }
        let text = String::from_utf8_lossy(&line);
        if load.takes(&text) {
            to.write_all(&line).await?;
        }
        let head =
            text.trim().is_empty() || ["--", "SET ", "SELECT pg_catalog.set_config", "\\"].iter().any(|begin| text.starts_with(begin));
        if !head {
            break;
        }
    }
    tokio::io::copy_buf(&mut from, to).await?;
    Ok(())
}

/// psql ended: its exit code and its words say more.
fn gone(error: std::io::Error) -> std::io::Result<()> {
    if error.kind() == std::io::ErrorKind::BrokenPipe { Ok(()) } else { Err(error) }
}

fn errors(child: &mut Child) -> tokio::task::JoinHandle<String> {
    let stderr = child.stderr.take();
    tokio::spawn(async move {
        let mut said = Vec::new();
        if let Some(mut stderr) = stderr {
            // More than that nobody reads, but it must not be in the way.
            let _ = (&mut stderr).take(64 << 10).read_to_end(&mut said).await;
            let _ = tokio::io::copy(&mut stderr, &mut tokio::io::sink()).await;
        }
        lines(&said)
    })
}

/// What a program said, which has names in it.
fn lines(said: &[u8]) -> String {
    String::from_utf8_lossy(said).lines().map(printable).collect::<Vec<_>>().join("\n")
}

/// The scratch server is found by our words only.
fn clean(command: &mut Command) {
    for name in ["PGHOSTADDR", "PGPASSWORD", "PGPASSFILE", "PGSERVICE", "PGOPTIONS", "PGSSLMODE", "PGTARGETSESSIONATTRS"] {
        command.env_remove(name);
    }
}

/// Writes the rows of a query as CSV with a header; answers how many they are.
pub async fn query(client: &Client, query: &str, to: &mut (dyn Write + Send)) -> Result<u64> {
    let query = query.trim().trim_end_matches(';');
    client.batch_execute("BEGIN READ ONLY").await?;
    let copy = client.copy_out(&format!("COPY ({query}\n) TO STDOUT (FORMAT csv, HEADER)")).await;
    let mut copy = std::pin::pin!(copy.map_err(|error| anyhow!(told(&error))).context("the query")?);
    let mut rows = Records::default();
    while let Some(chunk) = copy.next().await {
        let chunk = chunk.map_err(|error| anyhow!(told(&error))).context("the query")?;
        rows.add(&chunk);
        to.write_all(&chunk).context("write the rows")?;
    }
    to.flush().context("write the rows")?;
    client.batch_execute("COMMIT").await?;
    // The header is one.
    Ok(rows.ended.saturating_sub(1))
}

fn told(error: &tokio_postgres::Error) -> String {
    error.as_db_error().map_or_else(|| error.to_string(), |error| error.message().to_owned())
}

/// Records of CSV: line ends outside of quotes.
#[derive(Default)]
struct Records {
    quoted: bool,
    ended: u64,
}

impl Records {
    fn add(&mut self, chunk: &[u8]) {
        for byte in chunk {
            match byte {
                b'"' => self.quoted = !self.quoted,
                b'\n' if !self.quoted => self.ended += 1,
                _ => {}
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn records_are_counted_across_chunks() {
        let text = b"a,b\n1,\"x\ny \"\"z\"\"\n\"\n2,\n";
        for size in 1..=text.len() {
            let mut records = Records::default();
            text.chunks(size).for_each(|chunk| records.add(chunk));
            assert_eq!(records.ended, 3, "{size}");
        }
    }

    #[test]
    fn one_transaction_around_everything() {
        let table = Table { oid: 1, schema: "s".into(), name: "it's 5%".into(), partitioned: false, owner: "o".into() };
        let settings = HashSet::from(["lock_timeout", "row_security"].map(str::to_owned));
        let load = Load { conninfo: "", password: None, schemas: &["s".into()], drop: &["s.t".into()], settings: &settings, rows: &[7] };
        assert_eq!(load.beginning(), "BEGIN;\nSET lock_timeout = '60s';\nCREATE SCHEMA \"s\";\nDROP TABLE s.t;\n");
        let ending = load.ending(&[table]);
        assert!(
            ending.contains("FROM ONLY \"s\".\"it's 5%\";") && ending.contains("IF n <> 7") && ending.contains("it''s 5%%"),
            "{ending}"
        );
        assert!(ending.ends_with("\nCOMMIT;\n"));
        assert!(load.takes("SET row_security = off;\n") && load.takes("-- SET x"));
        assert!(!load.takes("SET transaction_timeout = 0;\n") && !load.takes("SET lock_timeout = 0;\n"));
    }
}
