//! What the stories look at besides the server.

use std::path::PathBuf;

use super::world::Story;

impl Story {
    /// The process ids of the fetch service.
    pub fn services(&self) -> Vec<u32> {
        let socket = self.service_socket().to_string_lossy().into_owned();
        let pids = std::fs::read_dir("/proc").unwrap().filter_map(|entry| entry.ok()?.file_name().to_str()?.parse::<u32>().ok());
        let serves = |pid: &u32| {
            let words = std::fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
            let words: Vec<_> = words.split(|byte| *byte == 0).collect();
            words.contains(&&b"fetch-service"[..]) && words.contains(&socket.as_bytes())
        };
        pids.filter(serves).collect()
    }

    pub fn service_socket(&self) -> PathBuf {
        self.walkeep.scratch().join("run/main.sock.fetch")
    }

    /// Names in pg_wal that are neither PostgreSQL's own nor whole files of the archive.
    pub fn strangers(&self) -> Vec<String> {
        let names = std::fs::read_dir(self.server.pg_wal()).unwrap().map(|entry| entry.unwrap().file_name().to_string_lossy().into_owned());
        let known = |name: &str| {
            let segment = name.len() == 24 && name.bytes().all(|byte| byte.is_ascii_hexdigit());
            segment || name.ends_with(".history") || name.ends_with(".partial") || ["archive_status", "summaries"].contains(&name)
        };
        names.filter(|name| !known(name)).collect()
    }
}
