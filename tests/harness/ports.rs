//! Free TCP ports on loopback, held by one test process at a time.
//!
//! They are taken from below the range that the kernel gives to outgoing connections, and a locked file stands for each, so that neither
//! a client's connection nor another test process takes a port between its choice and its use.

use std::fs::File;
use std::net::TcpListener;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::sync::atomic::{AtomicU32, Ordering};

/// A port of ours until dropped.
#[derive(Debug)]
pub struct Port {
    number: u16,
    _lock: File,
}

impl Port {
    /// A free port.
    pub fn free() -> Self {
        Self::from_range(24_000, 8_000, &[0])
    }

    /// A free port whose number plus 10000 is free too: where SeaweedFS puts the gRPC port of each of its services.
    pub fn free_with_grpc() -> Self {
        Self::from_range(20_000, 2_700, &[0, 10_000])
    }

    /// Its number.
    pub fn number(&self) -> u16 {
        self.number
    }

    fn from_range(first: u16, count: u16, offsets: &[u16]) -> Self {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let start = std::process::id().wrapping_mul(97);
        for _ in 0..count {
            let step = NEXT.fetch_add(1, Ordering::Relaxed);
            let number = first + (start.wrapping_add(step) % u32::from(count)) as u16;
            let Some(lock) = lock(number) else { continue };
            if offsets.iter().all(|offset| TcpListener::bind(("127.0.0.1", number + offset)).is_ok()) {
                return Self { number, _lock: lock };
            }
        }
        panic!("no free port from {first} on");
    }
}

fn lock(number: u16) -> Option<File> {
    let folder = Path::new("/tmp/walkeep-test-ports");
    if std::fs::create_dir(folder).is_ok() {
        let _ = std::fs::set_permissions(folder, PermissionsExt::from_mode(0o777));
    }
    let path = folder.join(number.to_string());
    // A file another user made cannot be opened for writing; any lock needs no more than reading.
    let file = File::options().write(true).create(true).truncate(false).open(&path).or_else(|_| File::open(&path)).ok()?;
    file.try_lock().ok().map(|()| file)
}
