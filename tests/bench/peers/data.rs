//! What every tool is given: a cluster of about `scale` * 15 MB of pgbench's rows and some megabytes like users' rows, and segments of the WAL that work on both
//! of them makes, full-page images included. Made once, kept in the tests' cache.

use std::path::{Path, PathBuf};
use std::time::Duration;

use walkeep_tests::postgres::default_version;
use walkeep_tests::{Cluster, Scratch, Stop, cache, process, wait_until};

/// The data, on disk.
#[derive(Debug)]
pub struct Data {
    folder: PathBuf,
    /// What it was made of.
    pub words: String,
}

/// pgbench's padding shrinks to a twentieth; ids, times, words and JSON of users do not.
const VISITS: &str = "CREATE TABLE visit (id bigint, at timestamptz, visitor uuid, page text, price numeric, body jsonb)";
/// A row has about 240 bytes with its indexes.
const ROWS_OF_A_MEGABYTE: u64 = 4200;

impl Data {
    /// Made, if it is not there yet.
    pub fn made(scale: u32, megabytes: u32, segments: usize) -> Self {
        let words = format!("pgbench scale {scale}, {megabytes} MB of realistic rows, {segments} segments of WAL");
        let folder = cache().join(format!("bench/{}-{scale}-{megabytes}-{segments}", default_version()));
        let data = Self { folder, words };
        if !data.folder.exists() {
            eprintln!("making the data: {}", data.words);
            data.make(scale, megabytes, segments);
        }
        data
    }

    /// The data directory of a server that was shut down.
    pub fn cluster(&self) -> PathBuf {
        self.folder.join("data")
    }

    /// The folder of the segments.
    pub fn wal(&self) -> PathBuf {
        self.folder.join("wal")
    }

    /// The segments' names, in order.
    pub fn segments(&self) -> Vec<String> {
        names(&self.wal())
    }

    fn make(&self, scale: u32, megabytes: u32, segments: usize) {
        let scratch = Scratch::new();
        let archived = scratch.dir("archived");
        let server = Cluster::builder().fresh().archiving().conf("archive_command", "/bin/true").conf("shared_buffers", "512MB");
        let server = server.conf("max_wal_size", "1GB").conf("checkpoint_timeout", "30min").start();
        server.pgbench_init(scale);
        let rows = u64::from(megabytes) * ROWS_OF_A_MEGABYTE;
        server.sql(VISITS);
        server.sql(&format!("INSERT INTO visit {}", visits(1, rows)));
        server.sql("ALTER TABLE visit ADD PRIMARY KEY (id)");
        server.sql("CREATE INDEX ON visit (visitor)");
        server.sql("CHECKPOINT");
        // Only from here on: what loading the rows has written is several gigabytes.
        server.set("archive_command", &format!("cp %p {}/%f", archived.display()));
        let first = server.switch_wal();
        let wanted = || names(&archived).into_iter().filter(|name| *name > first).take(segments);
        let mut from = 0;
        while wanted().count() < segments {
            server.pgbench_run(&["-c", "4", "-j", "1", "-T", "5"]);
            from = (from + rows / 7) % rows.max(1);
            server.sql(&format!(
                "UPDATE visit SET price = price + 1, page = '/checkout' WHERE id % 3 = 0 AND id BETWEEN {from} AND {from} + 30000"
            ));
            server.sql("CHECKPOINT");
        }
        let last = server.switch_wal();
        wait_until("the last segment is archived", Duration::from_secs(120), || archived.join(&last).exists());
        server.stop(Stop::Fast);
        let near = self.folder.with_extension("new");
        let _ = std::fs::remove_dir_all(&near);
        std::fs::create_dir_all(near.join("wal")).expect("create a folder in the cache");
        for name in wanted() {
            moved(&archived.join(&name), &near.join("wal").join(&name));
        }
        moved(server.data(), &near.join("data"));
        std::fs::rename(&near, &self.folder).expect("rename a folder in the cache");
    }
}

/// So many rows of it.
pub fn visits(from: u64, rows: u64) -> String {
    let pick = |words: &str| format!("('{{{words}}}'::text[])[1 + floor(random() * {})::int]", words.split(',').count());
    format!(
        "SELECT n, timestamptz '2026-01-01' + n * interval '0.31 s' + random() * interval '1 s', gen_random_uuid(), {}, round((random() * 900)::numeric, 2), \
         jsonb_build_object('agent', {}, 'ms', floor(random() * 3000)::int, 'from', 'https://' || substr(md5(random()::text), 1, 12) || '.example/', 'words', \
         {} || ' ' || {} || ' ' || {}) FROM generate_series({from}, {from} + {rows} - 1) n",
        pick("/,/search,/cart,/login,/account/orders,/account/address,/help,/product/list"),
        pick("Firefox/141 Linux,Firefox/141 Windows,Chrome/139 Windows,Chrome/139 Android,Safari/18 iPhone,Safari/18 Mac"),
        pick("red,green,blue,small,large,cheap,new,used,leather,cotton,wooden,plain"),
        pick("shoes,coat,table,lamp,chair,shirt,bag,watch,ring,bottle,carpet,mirror"),
        pick("for him,for her,for children,as a gift,on sale,in stock,with guarantee,by express"),
    )
}

fn moved(from: &Path, to: &Path) {
    process::run(std::process::Command::new("mv").arg(from).arg(to)).expect("move into the cache");
}

/// Copies a folder with owners and times.
pub fn copy_tree(from: &Path, to: &Path) {
    let copied = process::run(std::process::Command::new("cp").args(["-a", "--reflink=auto"]).arg(from).arg(to));
    copied.expect("copy a folder");
}

fn names(folder: &Path) -> Vec<String> {
    let entries = std::fs::read_dir(folder).into_iter().flatten().flatten();
    let mut names: Vec<_> = entries.filter_map(|entry| entry.file_name().into_string().ok()).collect();
    names.retain(|name| name.len() == 24 && name.bytes().all(|byte| byte.is_ascii_hexdigit()));
    names.sort();
    names
}
