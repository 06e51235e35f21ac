//! Headers of tar files, as GNU tar writes them: what `tar x` of every system reads, with names of any bytes and length and files of any size.

/// Bytes of a block.
pub const BLOCK: usize = 512;
/// The longest name that the header itself holds.
const NAME: usize = 100;
/// The largest number of eleven octal digits.
const OCTAL_12: u64 = 0o777_7777_7777;

/// What an entry is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Kind<'a> {
    /// A file of so many bytes, which follow the header.
    File {
        /// Its bytes.
        size: u64,
    },
    /// A folder; its name ends with a slash.
    Folder,
    /// A symbolic link, as it is.
    Link {
        /// Where it leads.
        to: &'a [u8],
    },
}

/// An entry.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Entry<'a> {
    /// Its name: relative, of any bytes but zero.
    pub name: &'a [u8],
    /// What it is.
    pub kind: Kind<'a>,
    /// Permissions.
    pub mode: u32,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Seconds since 1970.
    pub mtime: i64,
}

/// The blocks of an entry's header, those of long names before it.
pub fn header(entry: &Entry<'_>) -> Vec<u8> {
    let mut blocks = Vec::new();
    let (flag, size, link): (u8, u64, &[u8]) = match entry.kind {
        Kind::File { size } => (b'0', size, b""),
        Kind::Folder => (b'5', 0, b""),
        Kind::Link { to } => (b'2', 0, to),
    };
    if link.len() > NAME {
        long(&mut blocks, b'K', link);
    }
    if entry.name.len() > NAME {
        long(&mut blocks, b'L', entry.name);
    }
    let numbers = Numbers { mode: entry.mode, uid: entry.uid, gid: entry.gid, mtime: entry.mtime };
    blocks.extend_from_slice(&block(entry.name, link, flag, size, &numbers));
    blocks
}

/// What fills the last block of a file of so many bytes.
pub fn padding(size: u64) -> usize {
    (BLOCK - (size % BLOCK as u64) as usize) % BLOCK
}

/// The end of the file.
pub const END: [u8; 2 * BLOCK] = [0; 2 * BLOCK];

struct Numbers {
    mode: u32,
    uid: u32,
    gid: u32,
    mtime: i64,
}

/// A name that does not fit, as the content of an entry before the one it is of.
fn long(blocks: &mut Vec<u8>, flag: u8, name: &[u8]) {
    let size = name.len() as u64 + 1;
    blocks.extend_from_slice(&block(b"././@LongLink", b"", flag, size, &Numbers { mode: 0o644, uid: 0, gid: 0, mtime: 0 }));
    blocks.extend_from_slice(name);
    blocks.resize(blocks.len() + 1 + padding(size), 0);
}

fn block(name: &[u8], link: &[u8], flag: u8, size: u64, numbers: &Numbers) -> [u8; BLOCK] {
    let mut block = [0; BLOCK];
    let mut put = |at: usize, bytes: &[u8]| block[at..at + bytes.len()].copy_from_slice(bytes);
    put(0, &name[..name.len().min(NAME)]);
    put(100, &octal_8(u64::from(numbers.mode & 0o7777)));
    put(108, &octal_8(u64::from(numbers.uid)));
    put(116, &octal_8(u64::from(numbers.gid)));
    put(124, &number_12(size));
    put(136, &number_12(u64::try_from(numbers.mtime).unwrap_or(0)));
    put(148, b"        ");
    put(156, &[flag]);
    put(157, &link[..link.len().min(NAME)]);
    put(257, b"ustar  \0");
    let sum: u32 = block.iter().map(|byte| u32::from(*byte)).sum();
    block[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
    block
}

/// Seven octal digits; what does not fit is written in binary.
fn octal_8(value: u64) -> [u8; 8] {
    let mut field = [0; 8];
    if value <= 0o777_7777 {
        field[..7].copy_from_slice(format!("{value:07o}").as_bytes());
    } else {
        field = value.to_be_bytes();
        field[0] = 0x80;
    }
    field
}

/// The same with eleven digits.
fn number_12(value: u64) -> [u8; 12] {
    let mut field = [0; 12];
    if value <= OCTAL_12 {
        field[..11].copy_from_slice(format!("{value:011o}").as_bytes());
    } else {
        field[0] = 0x80;
        field[4..].copy_from_slice(&value.to_be_bytes());
    }
    field
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file(name: &[u8], size: u64) -> Vec<u8> {
        header(&Entry { name, kind: Kind::File { size }, mode: 0o640, uid: 26, gid: 26, mtime: 1_795_232_832 })
    }

    #[test]
    fn a_header_is_a_block_with_its_sum() {
        let block = file(b"a/b", 1000);
        assert_eq!(block.len(), BLOCK);
        assert_eq!((&block[..4], &block[124..136]), (b"a/b\0".as_slice(), b"00000001750\0".as_slice()));
        let sum: u32 = block.iter().enumerate().map(|(at, byte)| if (148..156).contains(&at) { 32 } else { u32::from(*byte) }).sum();
        assert_eq!(&block[148..156], format!("{sum:06o}\0 ").as_bytes());
        assert_eq!((padding(0), padding(1), padding(512), padding(1000)), (0, 511, 0, 24));
    }

    #[test]
    fn long_names_and_large_files_have_their_place() {
        let name = vec![b'n'; 600];
        let blocks = file(&name, 1 << 40);
        assert_eq!(blocks.len(), 4 * BLOCK);
        assert_eq!((blocks[156], &blocks[BLOCK..BLOCK + 600]), (b'L', name.as_slice()));
        assert_eq!(blocks[3 * BLOCK + 124], 0x80);
        assert_eq!(blocks[3 * BLOCK + 128..3 * BLOCK + 136], (1u64 << 40).to_be_bytes());
        let link = header(&Entry { name: b"l", kind: Kind::Link { to: &[b't'; 101] }, mode: 0o777, uid: u32::MAX, gid: 0, mtime: -1 });
        assert_eq!((link.len(), link[156], link[2 * BLOCK + 156], link[2 * BLOCK + 108]), (3 * BLOCK, b'K', b'2', 0x80));
    }
}
