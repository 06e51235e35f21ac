//! A file as it is, or a folder as a tar file: no link is followed below it, what is no file, folder or link is passed over and noted, and so is what
//! changes while it is read. What cannot be read fails it: a copy with holes is none.

use std::fs::File;
use std::io::Read;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use anyhow::{Context, Result, bail};
use bytes::Bytes;
use rustix::fs::{AtFlags, Dir, FileType, Mode, OFlags, Stat, fstat, openat, readlinkat, statat};
use rustix::io::Errno;
use walkeep_core::artifact::Content;
use walkeep_core::tar_header::{self, Entry, Kind, header, padding};

use super::flow::{Ended, Flow, Notes, Source, shown, shown_in};

/// Bytes read at a time.
const CHUNK: usize = 256 << 10;
/// Deeper folders are a mistake, and each is an open file.
const DEEPEST: usize = 200;

/// Begins with the file or folder at `path`; it may be a link itself.
pub fn start(path: &Path) -> Result<(Content, Flow)> {
    let found = std::fs::metadata(path).with_context(|| format!("look at {}", shown(path)))?;
    let path = path.to_owned();
    if found.is_dir() {
        let flow = Flow::blocking(move |source| {
            let opened = rustix::fs::open(&path, OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty());
            let folder = opened.with_context(|| format!("open {}", shown(&path)))?;
            let mut walk = Walk { source, buffer: Vec::with_capacity(CHUNK), notes: Notes::default(), files: 0 };
            let stat = fstat(&folder)?;
            walk.header(b"./", Kind::Folder, &stat)?;
            walk.folder(folder, b"", 0)?;
            walk.put(&tar_header::END)?;
            walk.flush()?;
            Ok(Ended { files: Some(walk.files), notes: walk.notes, stderr: None })
        });
        return Ok((Content::Tar, flow));
    }
    if !found.is_file() {
        bail!("{} is neither a file nor a folder", shown(&path));
    }
    let flow = Flow::blocking(move |source| {
        let mut file = File::open(&path).with_context(|| format!("open {}", shown(&path)))?;
        let before = file.metadata()?;
        let mut notes = Notes::default();
        loop {
            let mut chunk = Vec::with_capacity(CHUNK);
            if (&mut file).take(CHUNK as u64).read_to_end(&mut chunk).with_context(|| format!("read {}", shown(&path)))? == 0 {
                break;
            }
            source.put_blocking(Bytes::from(chunk))?;
        }
        let after = file.metadata()?;
        if (before.size(), before.mtime(), before.mtime_nsec()) != (after.size(), after.mtime(), after.mtime_nsec()) {
            notes.add(&format!("{} changed while it was read", shown(&path)));
        }
        Ok(Ended { files: Some(1), notes, stderr: None })
    });
    Ok((Content::Bytes, flow))
}

struct Walk {
    source: Source,
    buffer: Vec<u8>,
    notes: Notes,
    files: u64,
}

impl Walk {
    fn put(&mut self, mut bytes: &[u8]) -> Result<()> {
        while !bytes.is_empty() {
            let (now, later) = bytes.split_at(bytes.len().min(CHUNK - self.buffer.len()));
            self.buffer.extend_from_slice(now);
            bytes = later;
            if self.buffer.len() == CHUNK {
                self.flush()?;
            }
        }
        Ok(())
    }

    fn flush(&mut self) -> Result<()> {
        let full = std::mem::replace(&mut self.buffer, Vec::with_capacity(CHUNK));
        if full.is_empty() { Ok(()) } else { self.source.put_blocking(Bytes::from(full)) }
    }

    fn header(&mut self, name: &[u8], kind: Kind<'_>, stat: &Stat) -> Result<()> {
        self.put(&header(&Entry { name, kind, mode: stat.st_mode, uid: stat.st_uid, gid: stat.st_gid, mtime: stat.st_mtime }))
    }

    /// Everything in a folder that is open; `prefix` is its name with a slash behind it.
    fn folder(&mut self, folder: OwnedFd, prefix: &[u8], depth: usize) -> Result<()> {
        if depth > DEEPEST {
            bail!("{} is too deep", shown_in(prefix, b""));
        }
        let mut names: Vec<Vec<u8>> = Vec::new();
        for entry in Dir::read_from(&folder).with_context(|| format!("list {}", shown_in(prefix, b".")))? {
            let name = entry.with_context(|| format!("list {}", shown_in(prefix, b".")))?.file_name().to_bytes().to_owned();
            if name != b"." && name != b".." {
                names.push(name);
            }
        }
        names.sort_unstable();
        for name in names {
            self.entry(&folder, prefix, &name, depth)?;
        }
        Ok(())
    }

    fn entry(&mut self, folder: &OwnedFd, prefix: &[u8], name: &[u8], depth: usize) -> Result<()> {
        let what = || shown_in(prefix, name);
        let path = [prefix, name].concat();
        let stat = match statat(folder, name, AtFlags::SYMLINK_NOFOLLOW) {
            Err(Errno::NOENT) => return self.gone(&what()),
            stat => stat.with_context(|| format!("look at {}", what()))?,
        };
        let open = |flags| openat(folder, name, flags | OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC, Mode::empty());
        match FileType::from_raw_mode(stat.st_mode) {
            FileType::Directory => match open(OFlags::DIRECTORY) {
                Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP) => self.gone(&what()),
                opened => {
                    let opened = opened.with_context(|| format!("open {}", what()))?;
                    let prefix = [path.as_slice(), b"/"].concat();
                    self.header(&prefix, Kind::Folder, &stat)?;
                    self.folder(opened, &prefix, depth + 1)
                }
            },
            FileType::Symlink => match readlinkat(folder, name, Vec::new()) {
                Err(Errno::NOENT | Errno::INVAL) => self.gone(&what()),
                to => {
                    let to = to.with_context(|| format!("read the link {}", what()))?;
                    self.header(&path, Kind::Link { to: to.to_bytes() }, &stat)
                }
            },
            // Without waiting, should it have become a pipe since.
            FileType::RegularFile => match open(OFlags::NONBLOCK) {
                Err(Errno::NOENT | Errno::LOOP | Errno::NXIO) => self.gone(&what()),
                opened => self.file(File::from(opened.with_context(|| format!("open {}", what()))?), &path, &what()),
            },
            other => self.noted(&format!("{} is left out: it is a {other:?}", what())),
        }
    }

    fn noted(&mut self, note: &str) -> Result<()> {
        self.notes.add(note);
        Ok(())
    }

    fn gone(&mut self, what: &str) -> Result<()> {
        self.noted(&format!("{what} went while it was looked at"))
    }

    /// As many bytes as it has now: less is filled with zeros, more is cut off, and either is noted.
    fn file(&mut self, mut file: File, path: &[u8], what: &str) -> Result<()> {
        let before = fstat(&file)?;
        if FileType::from_raw_mode(before.st_mode) != FileType::RegularFile {
            return self.gone(what);
        }
        let size = u64::try_from(before.st_size).unwrap_or(0);
        self.header(path, Kind::File { size }, &before)?;
        let (mut left, mut chunk) = (size, vec![0; CHUNK]);
        while left > 0 {
            let wanted = usize::try_from(left).unwrap_or(CHUNK).min(CHUNK);
            match file.read(&mut chunk[..wanted]).with_context(|| format!("read {what}"))? {
                0 => break,
                read => {
                    self.put(&chunk[..read])?;
                    left -= read as u64;
                }
            }
        }
        chunk.fill(0);
        while left > 0 {
            let zeros = usize::try_from(left).unwrap_or(CHUNK).min(CHUNK);
            self.put(&chunk[..zeros])?;
            left -= zeros as u64;
        }
        self.put(&chunk[..padding(size)])?;
        let after = fstat(&file)?;
        if (before.st_size, before.st_mtime, before.st_mtime_nsec) != (after.st_size, after.st_mtime, after.st_mtime_nsec) {
            self.notes.add(&format!("{what} changed while it was read"));
        }
        self.files += 1;
        Ok(())
    }
}

/// The name of the last part of a path, for people who look for it.
pub fn last_name(path: &Path) -> String {
    path.file_name().map_or_else(|| "/".to_owned(), |name| String::from_utf8_lossy(name.as_bytes()).into_owned())
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;
    use std::process::Command;

    use super::*;

    async fn bytes(mut flow: Flow) -> (Vec<u8>, Result<Ended>) {
        let mut all = Vec::new();
        loop {
            let piece = flow.piece().await.unwrap();
            all.extend_from_slice(&piece);
            if (piece.len() as u64) < walkeep_core::artifact::PIECE {
                return (all, flow.ended().await);
            }
        }
    }

    #[tokio::test]
    async fn tar_reads_what_is_written_and_links_stay_links() {
        let (from, to) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let long = "n".repeat(200);
        let deep = from.path().join("a/b c").join(&long);
        std::fs::create_dir_all(&deep).unwrap();
        std::fs::write(deep.join("file"), vec![7; 1_000_000]).unwrap();
        std::fs::write(from.path().join("-rf\n"), "hostile").unwrap();
        std::fs::write(from.path().join(std::ffi::OsStr::from_bytes(b"\xff\xfe")), "no UTF-8").unwrap();
        std::fs::write(from.path().join("empty"), "").unwrap();
        symlink("/etc/shadow", from.path().join("out")).unwrap();
        symlink(format!("/{long}"), from.path().join("far")).unwrap();
        rustix::fs::mknodat(rustix::fs::CWD, from.path().join("pipe"), FileType::Fifo, Mode::RWXU, 0).unwrap();
        let (content, flow) = start(from.path()).unwrap();
        let (tar, ended) = bytes(flow).await;
        let ended = ended.unwrap();
        assert_eq!((content, ended.files, ended.notes.count), (Content::Tar, Some(4), 1));
        assert!(ended.notes.named[0].contains("pipe is left out"), "{:?}", ended.notes);
        let file = to.path().join("x.tar");
        std::fs::write(&file, &tar).unwrap();
        std::fs::remove_file(from.path().join("pipe")).unwrap();
        let unpacked = to.path().join("unpacked");
        std::fs::create_dir(&unpacked).unwrap();
        assert!(Command::new("tar").arg("-xf").arg(&file).arg("-C").arg(&unpacked).status().unwrap().success());
        assert!(Command::new("diff").args(["-r", "--no-dereference"]).arg(from.path()).arg(&unpacked).status().unwrap().success());
        assert_eq!(std::fs::read_link(unpacked.join("out")).unwrap(), Path::new("/etc/shadow"));
    }

    #[tokio::test]
    async fn a_file_is_its_bytes_and_what_cannot_be_read_fails() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("app.db");
        std::fs::write(&path, vec![1; 700_000]).unwrap();
        let (content, flow) = start(&path).unwrap();
        let (read, ended) = bytes(flow).await;
        assert_eq!((content, read.len(), ended.unwrap().files), (Content::Bytes, 700_000, Some(1)));
        assert!(start(&folder.path().join("nowhere")).is_err());
        assert!(start(Path::new("/dev/null")).unwrap_err().to_string().contains("neither"));
    }
}
