//! Two thousand mutations of a small repository: each is found by `verify --deep`, or does no harm: the same plan restores the same bytes and gives the same
//! WAL. Nothing is written but what a restore is told to write, nothing panics, and memory stays below 512 MiB (the whole run has no more address space).
//!
//! The repository is a real server's: two backups, WAL, index, parts, records of every kind; once plain and once encrypted. A failure names its seed:
//! `WALKEEP_SEED=17 cargo test -p walkeep --test mutations` runs that one alone.

#![allow(clippy::unwrap_used)]

#[path = "mutations/mutate.rs"]
mod mutate;
#[path = "mutations/origin.rs"]
mod origin;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

use bytes::Bytes;
use tokio_util::sync::CancellationToken;
use walkeep::repository::{ClusterRepository, Repository};
use walkeep::restore::{self, Options};
use walkeep::transfer::unwatched;
use walkeep::verify::memory::{Memory, Outcome};
use walkeep::verify::pace::Pace;
use walkeep::verify::{Read, Wish, verify};
use walkeep_core::plan;
use walkeep_core::target::{RecoveryTarget, SearchOutcome, TargetKind};
use walkeep_core::verify::Severity;
use walkeep_core::{TimelineId, WalFileName};
use walkeep_store::{Key, MemoryStore};

use mutate::Mutation;
use origin::Origin;

/// Of the plain repository, and of the encrypted one, which takes much longer each.
const MUTATIONS: (u64, u64) = (1600, 400);
/// KiB of address space for all of it.
const MEMORY: u64 = 512 << 10;
const THREADS: u64 = 2;

/// Keys and what is stored there.
type Objects = BTreeMap<Key, Bytes>;

/// The child's part: with a limit that a test process with many threads would not bear.
#[test]
#[ignore = "run by the others, in a process with a limit"]
fn within_limits() {
    let Some(folder) = std::env::var_os("WALKEEP_MUTATIONS").map(PathBuf::from) else { return };
    let origin = Origin::load(&folder);
    let baseline = block_on(async {
        let repository = open(&origin.objects, &origin).await.expect("the repository as it was");
        let mut memory = Memory::nowhere(&repository);
        let found = deep(&repository, &mut memory).await.expect("it is verified");
        assert_eq!(found, None, "the repository as it was is not whole");
        let restored = restored(&repository, &folder.join("baseline")).await.expect("it restores");
        Baseline { restored, outcome: memory.outcome }
    });
    let failures = Mutex::new(Vec::new());
    let note = |failure: &str| {
        println!("{failure}");
        failures.lock().unwrap().push(failure.to_owned());
        0
    };
    let only = std::env::var("WALKEEP_SEED").ok().and_then(|seed| seed.parse::<u64>().ok());
    let (next, found, harmless) = (AtomicU64::new(only.unwrap_or(0)), AtomicU64::new(0), AtomicU64::new(0));
    let all = if origin.keys.is_some() { MUTATIONS.1 } else { MUTATIONS.0 };
    let end = only.map_or(all, |seed| seed + 1);
    std::thread::scope(|scope| {
        for thread in 0..THREADS {
            let (origin, baseline, next, found, harmless, folder, note) = (&origin, &baseline, &next, &found, &harmless, &folder, &note);
            scope.spawn(move || {
                loop {
                    let seed = next.fetch_add(1, Ordering::Relaxed);
                    if seed >= end {
                        return;
                    }
                    let mutation = Mutation::of(seed, origin);
                    let what = format!("WALKEEP_SEED={seed} ({}): {}", origin.form(), mutation.what);
                    let place = folder.join(format!("restore-{thread}"));
                    // A panic of a task is told as well.
                    let went =
                        std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| block_on(one(origin, baseline, &mutation, &place))));
                    match went {
                        Ok(Ok(Verdict::Found)) => found.fetch_add(1, Ordering::Relaxed),
                        Ok(Ok(Verdict::Harmless)) => harmless.fetch_add(1, Ordering::Relaxed),
                        Ok(Err(wrong)) => note(&format!("{what}: {wrong}")),
                        Err(_) => note(&format!("{what}: it panicked")),
                    };
                }
            });
        }
    });
    let (found, harmless) = (found.into_inner(), harmless.into_inner());
    println!("{}: {found} found, {harmless} harmless", origin.form());
    let failures = failures.into_inner().unwrap();
    assert!(failures.is_empty(), "{} mutations were neither found nor harmless:\n{}", failures.len(), failures.join("\n"));
    assert_eq!(found + harmless, end - only.unwrap_or(0));
    assert!(only.is_some() || found > all / 2, "{found} found: most mutations do harm");
}

enum Verdict {
    Found,
    Harmless,
}

struct Baseline {
    restored: BTreeMap<String, String>,
    outcome: Outcome,
}

fn block_on<T>(work: impl Future<Output = T>) -> T {
    // Time passes where nothing else is to be done: between two looks nobody waits.
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .start_paused(true)
        .max_blocking_threads(4)
        .thread_stack_size(1 << 20)
        .build();
    runtime.unwrap().block_on(work)
}

/// The repository as a command opens it.
async fn open(objects: &Objects, origin: &Origin) -> Result<Arc<ClusterRepository>, String> {
    let store = Arc::new(MemoryStore::new());
    objects.iter().for_each(|(key, body)| store.overwrite(key, body.clone()));
    let told = |error: walkeep::repository::Error| error.to_string();
    let repository = Repository::open(store).await.map_err(told)?;
    let identities = repository.identities(&origin.cluster).await.map_err(told)?;
    let identity = identities.into_iter().next_back().ok_or("no identity")?;
    let repository = ClusterRepository::new(repository, origin.cluster.clone(), identity, 1).with_encryption(origin.encryption());
    repository.check_form().map_err(told)?;
    Ok(Arc::new(repository))
}

/// What `verify --deep` says is wrong; `None` for nothing.
async fn deep(repository: &Arc<ClusterRepository>, memory: &mut Memory) -> Result<Option<String>, String> {
    let (pace, cancel) = (Pace::of(None), CancellationToken::new());
    let wish = Wish { read: Some(Read::all(&pace, 2)), ..Wish::look(&cancel) };
    let report = verify(repository, &wish, memory).await.map_err(|error| error.to_string())?;
    let first = report.findings.iter().find(|finding| finding.severity > Severity::Note);
    Ok(first
        .map(|finding| format!("{}: {}", finding.key, finding.reason))
        .or((report.not_checked > 0).then(|| "not all was read".to_owned())))
}

async fn one(origin: &Origin, baseline: &Baseline, mutation: &Mutation, place: &Path) -> Result<Verdict, String> {
    // Exit 1 instead of 4: loud enough.
    let Ok(repository) = open(&mutation.objects, origin).await else { return Ok(Verdict::Found) };
    let mut memory = Memory::nowhere(&repository);
    memory.outcome = baseline.outcome.clone();
    let Ok(None) = deep(&repository, &mut memory).await else { return Ok(Verdict::Found) };
    let restored = restored(&repository, place).await.map_err(|error| format!("not found, and it does not restore: {error}"))?;
    if let Some((name, was)) = baseline.restored.iter().find(|(name, was)| restored.get(*name) != Some(was)) {
        return Err(format!("not found, and {name} is {:?} instead of {was}", restored.get(name)));
    }
    match restored.len() == baseline.restored.len() {
        true => Ok(Verdict::Harmless),
        false => Err("not found, and more is restored than there was".to_owned()),
    }
}

/// Plans to the end of what is stored, restores below `place`, and reads all WAL: a hash of everything, by name.
async fn restored(repository: &Arc<ClusterRepository>, place: &Path) -> Result<BTreeMap<String, String>, String> {
    let _ = std::fs::remove_dir_all(place);
    std::fs::create_dir_all(place).unwrap();
    let told = |error: walkeep::repository::Error| error.to_string();
    let loaded = repository.load_catalog().await.map_err(told)?;
    let catalog = loaded.catalog;
    let candidates = plan::candidates(&catalog, &RecoveryTarget::new(TargetKind::Latest)).map_err(|refusal| refusal.to_string())?;
    let candidate = candidates.first().ok_or("no candidate")?;
    let plan =
        plan::finish(candidate, &SearchOutcome::Skipped, &catalog, &plan::Witness::NotAsked).map_err(|refusal| refusal.to_string())?;
    let mut options = Options::new(place.join("data"), "false");
    options.throw_away = true;
    let done = restore::restore(repository.clone(), &plan, options, &unwatched, &CancellationToken::new()).await;
    done.map_err(|error| format!("{error:#}"))?;
    let beside: Vec<_> = std::fs::read_dir(place).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    if beside != ["data"] {
        return Err(format!("written outside the target: {beside:?}"));
    }
    let mut all = BTreeMap::new();
    hash_below(&place.join("data"), "", &mut all);
    for timeline in catalog.timelines() {
        let size = catalog.segment_size();
        for number in catalog.segments(timeline).collect::<Vec<_>>() {
            let name = number.name(timeline, size);
            let wal = repository.get_wal(WalFileName::Segment(name)).await.map_err(told)?.ok_or("listed and gone")?;
            all.insert(format!("wal {name}"), blake3::hash(&wal.content).to_string());
        }
        for (number, _) in catalog.unfinished(timeline).collect::<Vec<_>>() {
            let name = number.name(timeline, size);
            all.insert(format!("tail {name}"), blake3::hash(&repository.get_tail(name).await.map_err(told)?).to_string());
        }
        if timeline != TimelineId::FIRST {
            let history = repository.get_history(timeline).await.map_err(told)?;
            all.insert(format!("history {timeline}"), history.map(|history| history.to_string()).unwrap_or_default());
        }
    }
    std::fs::remove_dir_all(place).unwrap();
    Ok(all)
}

fn hash_below(folder: &Path, below: &str, all: &mut BTreeMap<String, String>) {
    for entry in std::fs::read_dir(folder).unwrap() {
        let entry = entry.unwrap();
        let name = format!("{below}{}", entry.file_name().to_string_lossy());
        match entry.file_type().unwrap().is_dir() {
            true => {
                all.insert(name.clone(), "folder".to_owned());
                hash_below(&entry.path(), &format!("{name}/"), all);
            }
            false => drop(all.insert(name, blake3::hash(&std::fs::read(entry.path()).unwrap()).to_string())),
        }
    }
}

/// Runs the mutations of a repository in a process that has no more memory than the limit.
fn run(origin: &Origin) {
    // In memory where that can be: a thousand restores of a thousand files are slow on a busy disk.
    let shared = Path::new("/dev/shm");
    let folder = if shared.is_dir() { tempfile::tempdir_in(shared) } else { tempfile::tempdir() }.unwrap();
    origin.store(folder.path());
    let program = std::env::current_exe().unwrap();
    let limited = format!("ulimit -v {MEMORY} && exec \"$0\" --exact within_limits --ignored --nocapture --test-threads 1");
    let output = Command::new("sh")
        .args(["-c", &limited])
        .arg(program)
        .env("WALKEEP_MUTATIONS", folder.path())
        .env("MALLOC_ARENA_MAX", "2")
        .env("RUST_BACKTRACE", "1")
        .output()
        .unwrap();
    let (stdout, stderr) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "{}\n{stdout}\n{stderr}", output.status);
    print!("{stdout}");
    // Beside what it was given lies nothing, and above it neither.
    let left: Vec<_> = std::fs::read_dir(folder.path()).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    assert!(left.iter().all(|name| name == "objects" || name == "origin.json" || name.starts_with("restore-")), "{left:?}");
}

#[test]
fn every_mutation_is_found_or_harmless() {
    let (plain, encrypted) = origin::make();
    std::thread::scope(|scope| {
        scope.spawn(|| run(&plain));
        scope.spawn(|| run(&encrypted));
    });
}
