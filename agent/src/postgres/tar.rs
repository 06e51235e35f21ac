//! The tar archives of `BASE_BACKUP`, read in one pass from pieces of any size.
//!
//! PostgreSQL writes plain ustar: files, directories and symbolic links, sizes above 8 GiB in base 256, no extension headers. All
//! else is refused, and so are paths that lead out of the directory. No I/O here: bytes in, [`Entry`]s out.

use bytes::{Buf, Bytes};

const BLOCK: usize = 512;

/// What an archive says next.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Entry {
    /// A file begins.
    File {
        /// Relative, with `/` between the parts.
        path: String,
        /// Permission bits.
        mode: u32,
        /// How many bytes of data follow.
        size: u64,
        /// Seconds since 1970.
        mtime: u64,
    },
    /// Bytes of the file that began last.
    Data(Bytes),
    /// All of its bytes were given.
    FileEnd,
    /// A directory.
    Directory {
        /// Relative.
        path: String,
        /// Permission bits.
        mode: u32,
    },
    /// A symbolic link.
    Symlink {
        /// Relative.
        path: String,
        /// What it points to, verbatim.
        target: String,
    },
}

/// The bytes are not such an archive.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum TarError {
    /// A header's checksum is wrong: not tar, or damaged.
    #[error("a tar header has a wrong checksum")]
    Checksum,
    /// A number is not written as tar does.
    #[error("a tar header has an unreadable {0}")]
    Number(&'static str),
    /// A kind of entry PostgreSQL does not send.
    #[error("tar entry {path:?} is of type {kind:?}, which base backups do not have")]
    Kind {
        /// The entry.
        path: String,
        /// The type flag.
        kind: char,
    },
    /// A path that is absolute, has `..`, or is not text.
    #[error("tar entry {0:?} would lead out of the data directory")]
    Path(String),
    /// The bytes ended in the middle of an entry.
    #[error("the tar archive ended in the middle of an entry")]
    CutShort,
    /// Something other than zeros follows the end of the archive.
    #[error("data follows the end of the tar archive")]
    AfterEnd,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    Header,
    Body {
        left: u64,
        padding: usize,
    },
    Padding(usize),
    /// A block of zeros was seen: the end.
    Ended,
}

/// Reads one archive. Give it bytes, then take entries until there are none; at the end call [`Reader::finish`].
#[derive(Debug)]
pub struct Reader {
    state: State,
    input: Bytes,
    header: Vec<u8>,
}

impl Default for Reader {
    fn default() -> Self {
        Self { state: State::Header, input: Bytes::new(), header: Vec::with_capacity(BLOCK) }
    }
}

impl Reader {
    /// Gives more bytes; those given before must have been used up, which they are once [`Reader::next_entry`] has said `None`.
    pub fn push(&mut self, bytes: Bytes) {
        debug_assert!(self.input.is_empty(), "entries were left untaken");
        self.input = bytes;
    }

    /// The next entry; `None` if more bytes are needed.
    pub fn next_entry(&mut self) -> Result<Option<Entry>, TarError> {
        loop {
            match self.state {
                State::Body { left: 0, padding } => {
                    self.state = State::Padding(padding);
                    return Ok(Some(Entry::FileEnd));
                }
                State::Padding(0) => self.state = State::Header,
                _ if self.input.is_empty() => return Ok(None),
                State::Body { left, padding } => {
                    let take = usize::try_from(left).map_or(self.input.len(), |left| left.min(self.input.len()));
                    self.state = State::Body { left: left - take as u64, padding };
                    return Ok(Some(Entry::Data(self.input.split_to(take))));
                }
                State::Padding(left) => {
                    let take = left.min(self.input.len());
                    self.input.advance(take);
                    self.state = State::Padding(left - take);
                }
                State::Header => {
                    let take = (BLOCK - self.header.len()).min(self.input.len());
                    self.header.extend_from_slice(&self.input.split_to(take));
                    if self.header.len() == BLOCK {
                        let header = std::mem::take(&mut self.header);
                        if let Some(entry) = self.read_header(&header)? {
                            return Ok(Some(entry));
                        }
                    }
                }
                State::Ended => {
                    if self.input.iter().any(|byte| *byte != 0) {
                        return Err(TarError::AfterEnd);
                    }
                    self.input.clear();
                }
            }
        }
    }

    /// Checks that the archive did not end inside an entry. Up to PostgreSQL 14 the two blocks of zeros at the end are missing.
    pub fn finish(self) -> Result<(), TarError> {
        match self.state {
            State::Header if self.header.is_empty() => Ok(()),
            State::Padding(0) | State::Ended => Ok(()),
            _ => Err(TarError::CutShort),
        }
    }

    fn read_header(&mut self, header: &[u8]) -> Result<Option<Entry>, TarError> {
        if header.iter().all(|byte| *byte == 0) {
            self.state = State::Ended;
            return Ok(None);
        }
        let sum = |blank: bool| -> u64 {
            let byte = |(index, byte): (usize, &u8)| u64::from(if blank && (148..156).contains(&index) { b' ' } else { *byte });
            header.iter().enumerate().map(byte).sum()
        };
        if number(&header[148..156], "checksum")? != sum(true) {
            return Err(TarError::Checksum);
        }
        let path = path(header)?;
        let mode = (number(&header[100..108], "mode")? & 0o7777) as u32;
        let size = number(&header[124..136], "size")?;
        let kind = header[156];
        match kind {
            b'0' | 0 => {
                let mtime = number(&header[136..148], "modification time")?;
                let padding = ((BLOCK as u64 - size % BLOCK as u64) % BLOCK as u64) as usize;
                self.state = State::Body { left: size, padding };
                Ok(Some(Entry::File { path, mode, size, mtime }))
            }
            b'5' if size == 0 => Ok(Some(Entry::Directory { path, mode })),
            b'2' if size == 0 => {
                let target = string(&header[157..257]).ok_or_else(|| TarError::Path(path.clone()))?;
                Ok(Some(Entry::Symlink { path, target }))
            }
            other => Err(TarError::Kind { path, kind: char::from(other) }),
        }
    }
}

fn string(field: &[u8]) -> Option<String> {
    let end = field.iter().position(|byte| *byte == 0).unwrap_or(field.len());
    std::str::from_utf8(&field[..end]).ok().map(str::to_owned)
}

fn path(header: &[u8]) -> Result<String, TarError> {
    let shown = || TarError::Path(String::from_utf8_lossy(&header[..100]).trim_end_matches('\0').to_owned());
    let name = string(&header[..100]).ok_or_else(shown)?;
    let ustar = &header[257..263] == b"ustar\0";
    let prefix = if ustar { string(&header[345..500]).ok_or_else(shown)? } else { String::new() };
    let joined = if prefix.is_empty() { name } else { format!("{prefix}/{name}") };
    let path = joined.strip_prefix("./").unwrap_or(&joined).trim_end_matches('/').to_owned();
    let safe = !joined.starts_with('/') && !path.is_empty() && path.split('/').all(|part| !matches!(part, "" | "." | ".."));
    if safe { Ok(path) } else { Err(TarError::Path(joined)) }
}

/// A number in octal digits, or in base 256 if the first bit is set.
fn number(field: &[u8], what: &'static str) -> Result<u64, TarError> {
    let unreadable = || TarError::Number(what);
    if field.first().is_some_and(|first| first & 0x80 != 0) {
        let mut value: u64 = u64::from(field[0] & 0x7f);
        for byte in &field[1..] {
            value = value.checked_mul(256).and_then(|value| value.checked_add(u64::from(*byte))).ok_or_else(unreadable)?;
        }
        return Ok(value);
    }
    let text = std::str::from_utf8(field).map_err(|_| unreadable())?;
    let text = text.trim_matches([' ', '\0']);
    if text.is_empty() {
        return Ok(0);
    }
    if !text.bytes().all(|byte| (b'0'..=b'7').contains(&byte)) {
        return Err(unreadable());
    }
    u64::from_str_radix(text, 8).map_err(|_| unreadable())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn header(name: &str, kind: u8, size: &[u8; 12], link: &str) -> Vec<u8> {
        let mut block = vec![0u8; BLOCK];
        block[..name.len()].copy_from_slice(name.as_bytes());
        block[100..107].copy_from_slice(b"0000600");
        block[124..136].copy_from_slice(size);
        block[136..147].copy_from_slice(b"14700000000");
        block[156] = kind;
        block[157..157 + link.len()].copy_from_slice(link.as_bytes());
        block[257..263].copy_from_slice(b"ustar\0");
        block[148..156].copy_from_slice(b"        ");
        let sum: u32 = block.iter().map(|byte| u32::from(*byte)).sum();
        block[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
        block
    }

    fn octal(size: u64) -> [u8; 12] {
        format!("{size:011o}\0").into_bytes().try_into().expect("twelve bytes")
    }

    fn archive() -> Vec<u8> {
        let mut bytes = header("base/", b'5', &octal(0), "");
        bytes.extend(header("base/1", b'0', &octal(600), ""));
        bytes.extend([7u8; 600]);
        bytes.extend([0u8; 424]);
        bytes.extend(header("empty", b'0', &octal(0), ""));
        bytes.extend(header("pg_tblspc/5", b'2', &octal(0), "/mnt/x"));
        bytes
    }

    fn read(bytes: &[u8], piece: usize) -> Result<Vec<Entry>, TarError> {
        let mut reader = Reader::default();
        let mut entries: Vec<Entry> = Vec::new();
        for part in bytes.chunks(piece) {
            reader.push(Bytes::copy_from_slice(part));
            while let Some(entry) = reader.next_entry()? {
                match (entries.last_mut(), entry) {
                    (Some(Entry::Data(all)), Entry::Data(more)) => *all = [all.as_ref(), more.as_ref()].concat().into(),
                    (_, entry) => entries.push(entry),
                }
            }
        }
        reader.finish().map(|()| entries)
    }

    proptest! {
        #[test]
        fn pieces_of_any_size_give_the_same(piece in 1usize..2000, zeros in 0usize..3) {
            let mut bytes = archive();
            bytes.extend(vec![0u8; zeros * BLOCK]);
            prop_assert_eq!(read(&bytes, piece), read(&archive(), usize::MAX));
        }

        #[test]
        fn damage_never_panics(at in 0usize..2000, value: u8, piece in 1usize..700) {
            let mut bytes = archive();
            if let Some(byte) = bytes.get_mut(at) {
                *byte = value;
            }
            let _ = read(&bytes, piece);
        }
    }

    #[test]
    fn reads_what_postgresql_sends() {
        let entries = read(&archive(), 100).expect("reads");
        assert_eq!(entries[0], Entry::Directory { path: "base".into(), mode: 0o600 });
        assert_eq!(entries[1], Entry::File { path: "base/1".into(), mode: 0o600, size: 600, mtime: 0o147_0000_0000 });
        assert_eq!(entries[2], Entry::Data(vec![7u8; 600].into()));
        assert_eq!(entries[3], Entry::FileEnd);
        assert!(matches!(&entries[4], Entry::File { size: 0, .. }));
        assert_eq!(entries[6], Entry::Symlink { path: "pg_tblspc/5".into(), target: "/mnt/x".into() });
    }

    #[test]
    fn sizes_above_8_gib_are_in_base_256() {
        let mut size = [0u8; 12];
        size[0] = 0x80;
        size[4..].copy_from_slice(&(20u64 << 30).to_be_bytes());
        let mut reader = Reader::default();
        reader.push(header("big", b'0', &size, "").into());
        assert!(matches!(reader.next_entry(), Ok(Some(Entry::File { size, .. })) if size == 20 << 30));
    }

    #[test]
    fn refuses_what_postgresql_does_not_send() {
        for name in ["/etc/passwd", "../x", "a/../b", "a//b", "./"] {
            assert!(matches!(read(&header(name, b'0', &octal(0), ""), 512), Err(TarError::Path(_))), "{name}");
        }
        for kind in [b'1', b'x', b'L', b'g', b'3'] {
            assert!(matches!(read(&header("a", kind, &octal(0), ""), 512), Err(TarError::Kind { .. })));
        }
        assert_eq!(read(&[1u8; 512], 512), Err(TarError::Number("checksum")));
        let mut damaged = header("a", b'0', &octal(0), "");
        damaged[0] = b'b';
        assert_eq!(read(&damaged, 512), Err(TarError::Checksum));
        assert_eq!(read(&header("a", b'0', &octal(9), ""), 512), Err(TarError::CutShort));
        assert_eq!(read(&archive()[..300], 512), Err(TarError::CutShort));
        let mut after = vec![0u8; 512];
        after.push(1);
        assert_eq!(read(&after, 600), Err(TarError::AfterEnd));
    }

    #[test]
    fn reads_what_the_tar_program_writes() {
        let dir = tempfile::tempdir().expect("a directory");
        std::fs::create_dir(dir.path().join("d")).expect("made");
        std::fs::write(dir.path().join("d/file"), vec![b'x'; 1000]).expect("written");
        let tar = std::process::Command::new("tar")
            .args(["--format=ustar", "-c", "-C"])
            .arg(dir.path())
            .args(["--sort=name", "d"])
            .output()
            .expect("tar is installed");
        assert!(tar.status.success());
        let entries = read(&tar.stdout, 333).expect("reads");
        assert!(matches!(&entries[0], Entry::Directory { path, .. } if path == "d"));
        assert!(matches!(&entries[1], Entry::File { path, size: 1000, .. } if path == "d/file"));
        assert_eq!(entries[2], Entry::Data(vec![b'x'; 1000].into()));
    }
}
