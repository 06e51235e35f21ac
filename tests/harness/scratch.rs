//! Scratch folders: short paths (a Unix socket's has 107 bytes at most), owned by the account the servers run as.

use std::fs::File;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Once;

use crate::user;

/// A folder directly below `/tmp`, removed when dropped, unless the thread panics or `WALKEEP_TEST_KEEP=1`.
#[derive(Debug)]
pub struct Scratch {
    path: PathBuf,
    _lock: File,
}

const PREFIX: &str = "wkt-";
const LOCK: &str = ".test-process";
const KEPT: &str = ".kept";

impl Scratch {
    /// A new folder.
    #[track_caller]
    pub fn new() -> Self {
        static SWEEP: Once = Once::new();
        SWEEP.call_once(sweep);
        let path = tempfile::Builder::new().prefix(PREFIX).rand_bytes(6).tempdir_in("/tmp").expect("create a folder in /tmp").keep();
        std::fs::set_permissions(&path, PermissionsExt::from_mode(0o755)).expect("set the mode of an own folder");
        let lock = File::create(path.join(LOCK)).expect("create a file in an own folder");
        lock.lock().expect("lock an own file");
        user::give(&path);
        Self { path, _lock: lock }
    }

    /// Leaves the folder for as long as the test process lives, for what statics refer to: they are never dropped.
    pub fn until_process_ends(self) -> PathBuf {
        let mut keeper = Command::new("sh");
        keeper.args(["-c", r#"cat > /dev/null; rm -rf "$0""#]).arg(&self.path).process_group(0);
        keeper.stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::null());
        // Its input ends with this process.
        std::mem::forget(keeper.spawn().expect("start sh"));
        let path = self.path.clone();
        std::mem::forget(self);
        path
    }

    /// The folder.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// A path in it.
    pub fn join(&self, name: impl AsRef<Path>) -> PathBuf {
        self.path.join(name)
    }

    /// Creates a folder in it (and those above), owned by the servers' account.
    #[track_caller]
    pub fn dir(&self, name: impl AsRef<Path>) -> PathBuf {
        let mut path = self.path.clone();
        for part in name.as_ref() {
            path.push(part);
            if std::fs::create_dir(&path).is_ok() {
                user::give(&path);
            }
        }
        assert!(path.is_dir(), "could not create {}", path.display());
        path
    }

    /// Writes a file into it with this mode, owned by the servers' account.
    #[track_caller]
    pub fn write(&self, name: impl AsRef<Path>, content: impl AsRef<[u8]>, mode: u32) -> PathBuf {
        let path = self.path.join(name);
        let fresh = path.with_extension("new");
        std::fs::write(&fresh, content).expect("write a file in an own folder");
        std::fs::set_permissions(&fresh, PermissionsExt::from_mode(mode)).expect("set the mode of an own file");
        user::give(&fresh);
        std::fs::rename(&fresh, &path).expect("rename an own file");
        path
    }
}

impl Default for Scratch {
    fn default() -> Self {
        Self::new()
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        if std::thread::panicking() || std::env::var_os("WALKEEP_TEST_KEEP").is_some_and(|value| value == "1") {
            let _ = File::create(self.path.join(KEPT));
            eprintln!("kept {}", self.path.display());
        } else if let Err(error) = std::fs::remove_dir_all(&self.path) {
            // A process that is just ending may still have written something.
            std::thread::sleep(std::time::Duration::from_millis(200));
            if std::fs::remove_dir_all(&self.path).is_err() {
                eprintln!("could not remove {}: {error}", self.path.display());
            }
        }
    }
}

/// Removes what killed test processes left: folders of ours whose lock nobody holds and that were not kept on purpose.
/// Not those of the last minute, which may be between their lock's creation and its taking.
fn sweep() {
    for entry in std::fs::read_dir("/tmp").into_iter().flatten().flatten() {
        let path = entry.path();
        let ours = entry.file_name().to_str().is_some_and(|name| name.starts_with(PREFIX));
        if ours && !path.join(KEPT).exists() && File::open(path.join(LOCK)).is_ok_and(|lock| old(&lock) && lock.try_lock().is_ok()) {
            let _ = std::fs::remove_dir_all(&path);
        }
    }
}

fn old(file: &File) -> bool {
    let age = file.metadata().ok().and_then(|data| data.modified().ok()?.elapsed().ok());
    age.is_some_and(|age| age.as_secs() > 60)
}
