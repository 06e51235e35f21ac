use std::sync::Arc;

use walkeep_core::layout::ObjectName;
use walkeep_store::{ErrorKind, Fault, FaultyStore, ListRequest, MemoryStore, Operation, Rule, Store, list_all};

use super::command::Call;
use super::get::{Which, find, write};
use super::*;
use crate::encryption::tests::writer_and_reader;
use crate::expire::{self, Scope};
use crate::repository::tests::{encrypted, memory, over};

fn job(lines: &str) -> Job {
    let text = format!(
        "[cluster.main]\n[[cluster.main.repository]]\nurl = \"file:///x\"\n[[cluster.main.artifact]]\nname = \"it\"\npath = \"/x\"\n{lines}"
    );
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("walkeep.toml");
    std::fs::write(&path, text).unwrap();
    let selection = crate::config::Selection { path: Some(path), ..Default::default() };
    let config = crate::config::Config::load(&selection).unwrap().cluster.artifacts.remove(0);
    Job { name: config.name, source: "test".into(), database: None, due: None, runs: config.runs, allow_empty: config.allow_empty }
}

async fn started(script: &str) -> Result<Started> {
    let argv = ["/bin/sh", "-c", script].map(str::to_owned).to_vec();
    let flow = Call { argv, environment: Vec::new(), open: Vec::new() }.start()?;
    Ok(Started { content: Content::Bytes, flow, program: None })
}

async fn made(repository: &ClusterRepository, job: &Job, script: &str) -> Result<Made> {
    make(repository, job, started(script), &CancellationToken::new()).await
}

async fn stored(store: &MemoryStore) -> usize {
    list_all(store, ListRequest { prefix: "main/7/artifacts/".into(), ..ListRequest::default() }).await.unwrap().objects.len()
}

async fn got(repository: &ClusterRepository) -> Result<Vec<u8>> {
    let record = find(repository, &"it".parse()?, &Which::Newest).await?.record.context("there is one")?;
    let mut bytes = Vec::new();
    write(repository, &record, &mut bytes).await?;
    Ok(bytes)
}

#[tokio::test]
async fn a_stream_of_several_pieces_comes_back() {
    let (repository, store) = memory().await;
    let made = made(&repository, &job(""), "head -c 70000000 /dev/zero | tr '\\0' x; printf end").await.unwrap();
    assert_eq!((made.record.bytes, made.record.pieces), (70_000_003, 3));
    // Pieces, note, summary, record.
    assert_eq!(stored(&store).await, 6);
    let bytes = got(&repository).await.unwrap();
    assert!(bytes.len() == 70_000_003 && bytes.ends_with(b"xxend"));
    // A piece in another's place, one of another length, one that is gone.
    let key = |number| repository.layout().key(&ObjectName::ArtifactPiece(made.record.place(), number)).parse().unwrap();
    let first = store.get(&key(1), None).await.unwrap();
    let second = store.get(&key(2), None).await.unwrap();
    store.overwrite(&key(2), first);
    assert!(format!("{:#}", got(&repository).await.unwrap_err()).contains("damaged or was exchanged"));
    store.overwrite(&key(2), second);
    got(&repository).await.unwrap();
    store.delete(&key(3)).await.unwrap();
    assert!(format!("{:#}", got(&repository).await.unwrap_err()).contains("it is gone"));
}

#[tokio::test]
async fn what_fails_leaves_nothing() {
    let (repository, store) = memory().await;
    for (lines, script, said) in [
        ("", "echo half; exit 1", "exit status: 1"),
        ("", "true", "it is empty"),
        ("max_size = \"1MiB\"", "head -c 2000000 /dev/zero", "max_size"),
        ("timeout = \"200ms\"", "echo begun; sleep 60", "longer than 200ms"),
        ("", "head -c 40000000 /dev/zero; echo sorry >&2; exit 7", "sorry"),
    ] {
        let error = format!("{:#}", made(&repository, &job(lines), script).await.unwrap_err());
        assert!(error.contains(said), "{error}");
        assert_eq!(stored(&store).await, 0, "{script}");
    }
    assert!(got(&repository).await.is_err());
    assert_eq!(made(&repository, &job("allow_empty = true"), "true").await.unwrap().record.pieces, 1);
    assert_eq!(got(&repository).await.unwrap(), b"");
}

/// The mount point of what is not mounted, a prefix that was emptied: good ones are not pushed out by it.
#[tokio::test]
async fn an_empty_folder_or_prefix_is_refused() {
    let (repository, store) = memory().await;
    let folder = tempfile::tempdir().unwrap();
    let of_folder = async |lines: &str| {
        let started = async {
            let (content, flow) = folder::start(folder.path())?;
            Ok(Started { content, flow, program: None })
        };
        make(&repository, &job(lines), started, &CancellationToken::new()).await
    };
    let of_bucket = async |there: &Arc<MemoryStore>| {
        let there: walkeep_store::SharedStore = there.clone();
        let started = async { Ok(Started { content: Content::Tar, flow: bucket::start(there), program: None }) };
        make(&repository, &job(""), started, &CancellationToken::new()).await
    };
    assert!(format!("{:#}", of_folder("").await.unwrap_err()).contains("nothing is in it"));
    let there = Arc::new(MemoryStore::new());
    assert!(format!("{:#}", of_bucket(&there).await.unwrap_err()).contains("nothing is in it"));
    assert_eq!(stored(&store).await, 0);
    of_folder("allow_empty = true").await.unwrap();
    // One empty file is something.
    std::fs::write(folder.path().join("empty"), "").unwrap();
    of_folder("").await.unwrap();
    there.put_if_absent(&"empty".parse().unwrap(), Bytes::new()).await.unwrap();
    of_bucket(&there).await.unwrap();
}

#[tokio::test]
async fn what_was_given_up_long_ago_is_removed_and_nothing_else() {
    let (repository, store) = memory().await;
    let kept = made(&repository, &job(""), "echo kept").await.unwrap().record;
    let place = |chance| ArtifactPlace { name: "it".parse().unwrap(), id: ArtifactId::new(DateTime::UNIX_EPOCH, chance) };
    for chance in [1, 2] {
        repository.begin_artifact(&place(chance), "db1").await.unwrap();
        repository.put_artifact_piece(&place(chance), 1, Bytes::from_static(b"x")).await.unwrap();
    }
    assert_eq!(repository.sweep_artifacts(&kept.name, GIVEN_UP).await.unwrap(), 0);
    // By the store's own clock all of it is of this moment.
    tokio::time::sleep(Duration::from_millis(20)).await;
    made(&repository, &job(""), "echo newer").await.unwrap();
    assert_eq!(repository.sweep_artifacts(&kept.name, Duration::from_millis(10)).await.unwrap(), 2);
    let (records, damaged) = repository.artifacts(None).await.unwrap();
    assert_eq!((records.len(), damaged.len(), stored(&store).await), (2, 0, 8));
    assert_eq!(repository.artifact_names().await.unwrap().into_iter().collect::<Vec<_>>(), ["it".parse().unwrap()]);
}

#[tokio::test]
async fn what_is_let_go_can_be_taken_back_until_its_grace_is_over() {
    let store = Arc::new(MemoryStore::new());
    let faulty = Arc::new(FaultyStore::new(store.clone()));
    let repository = Arc::new(over(faulty.clone()).await);
    let [old, new] =
        [made(&repository, &job(""), "echo old").await.unwrap().record, made(&repository, &job(""), "echo new").await.unwrap().record];
    let objects = stored(&store).await;
    let there =
        async || repository.artifacts(None).await.unwrap().0.into_iter().map(|record| record.id).collect::<std::collections::BTreeSet<_>>();
    let (both, one) = ([old.id.clone(), new.id.clone()].into(), [new.id.clone()].into());
    let carried_out = async |grace: Duration| {
        let stop = CancellationToken::new();
        expire::carry_out(&repository, Scope::Artifacts, (grace, std::path::Path::new("/nonexistent")), Utc::now(), &stop, &|_| {})
            .await
            .unwrap()
    };
    let taken_out = expire::take_out_artifacts(&repository, vec![old.place()], Utc::now()).await.unwrap();
    assert_eq!(there().await, one);
    assert_eq!((carried_out(Duration::from_secs(3600)).await.waits.len(), stored(&store).await), (1, objects));
    assert!(expire::undo(&repository, taken_out.number, Utc::now()).await.unwrap().unwrap().1);
    assert_eq!(there().await, both);
    let again = expire::take_out_artifacts(&repository, vec![old.place()], Utc::now()).await.unwrap();
    faulty.inject(Rule::new(Operation::Delete, Fault::Fail(ErrorKind::Denied)).on(old.id.as_str()));
    let done = carried_out(Duration::ZERO).await;
    assert_eq!((done.artifacts.len(), done.refused, there().await), (0, 1, one.clone()), "what is locked stays out of the catalog");
    faulty.heal();
    let done = carried_out(Duration::ZERO).await;
    assert_eq!((done.artifacts, there().await), (vec![old.place()], one));
    let (known, next) = repository.expiries().await.unwrap();
    let memory = &known.iter().find(|known| known.record.is_memory()).unwrap().record;
    assert_eq!((memory.gone_artifacts.as_slice(), next), (&[old.place()][..], again.number + 2));
}

#[tokio::test]
async fn a_record_that_cannot_be_believed_is_left_out_and_told() {
    let (repository, store) = memory().await;
    let first = made(&repository, &job(""), "echo first").await.unwrap().record;
    let second = made(&repository, &job(""), "echo second").await.unwrap().record;
    let key = |record: &ArtifactRecord| repository.layout().key(&ObjectName::ArtifactRecord(record.place())).parse().unwrap();
    let of_first = store.get(&key(&first), None).await.unwrap();
    store.overwrite(&key(&second), of_first);
    let (records, damaged) = repository.artifacts(None).await.unwrap();
    assert_eq!((records.len(), damaged.len()), (1, 1));
    assert_eq!(got(&repository).await.unwrap(), b"first\n");
    let newest = find(&repository, &first.name, &Which::Newest).await.unwrap();
    let second_key = repository.layout().key(&ObjectName::ArtifactRecord(second.place()));
    assert_eq!(newest.left_out, if second.id > first.id { vec![second_key] } else { vec![] }, "by chance within one second");
    let exact = find(&repository, &first.name, &Which::Id(second.id.clone())).await;
    assert!(format!("{:#}", exact.unwrap_err()).contains("cannot be read"));
    // A summary of another artifact proves nothing.
    let summary = |record: &ArtifactRecord| repository.layout().key(&ObjectName::ArtifactSummary(record.place())).parse().unwrap();
    let other = store.get(&summary(&second), None).await.unwrap();
    store.overwrite(&summary(&first), other);
    assert!(got(&repository).await.is_err());
}

#[tokio::test]
async fn a_host_that_only_writes_makes_them_and_another_reads() {
    let folder = tempfile::tempdir().unwrap();
    let (writer, reader) = writer_and_reader(folder.path());
    let store = Arc::new(MemoryStore::new());
    let writes = encrypted(store.clone(), writer).await;
    let made = made(&writes, &job(""), "echo sentinel").await.unwrap();
    assert!(format!("{:#}", got(&writes).await.unwrap_err()).contains("cannot decrypt"));
    assert_eq!(got(&encrypted(store.clone(), reader).await).await.unwrap(), b"sentinel\n");
    // Nothing that lies there tells what is in it.
    let prefix = writes.layout().artifact_prefix(&made.record.place());
    for listed in list_all(store.as_ref(), ListRequest { prefix, ..ListRequest::default() }).await.unwrap().objects {
        let body = store.get(&listed.key, None).await.unwrap();
        let hash = hex::encode(Sha256::digest(b"sentinel\n"));
        for secret in ["sentinel", &hash] {
            assert!(!body.windows(secret.len()).any(|window| window == secret.as_bytes()), "{}", listed.key);
        }
    }
}
