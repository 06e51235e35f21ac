//! `tablespace_map`: which tablespaces a base backup has, and where they lay on the server. Written by `pg_backup_stop`, read here only.

/// A line that is none.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("tablespace_map has a line that names no tablespace and its place: {line:?}")]
pub struct MapError {
    line: String,
}

/// The tablespaces of a map: OID and place.
pub fn parse(map: &[u8]) -> Result<Vec<(u32, String)>, MapError> {
    let mut lines: Vec<Vec<u8>> = vec![Vec::new()];
    let mut bytes = map.iter().copied();
    while let Some(byte) = bytes.next() {
        match (byte, lines.last_mut()) {
            (b'\n', _) => lines.push(Vec::new()),
            // What would end the line is escaped.
            (b'\\', Some(line)) => line.extend(bytes.next()),
            (byte, Some(line)) => line.push(byte),
            (_, None) => {}
        }
    }
    lines.iter().filter(|line| !line.is_empty()).map(|line| entry(line)).collect()
}

fn entry(line: &[u8]) -> Result<(u32, String), MapError> {
    let wrong = || MapError { line: String::from_utf8_lossy(line).chars().take(200).collect() };
    let (oid, place) = std::str::from_utf8(line).ok().and_then(|line| line.split_once(' ')).ok_or_else(wrong)?;
    match oid.parse() {
        Ok(oid) if place.starts_with('/') => Ok((oid, place.to_owned())),
        _ => Err(wrong()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_read_as_postgresql_writes_them() {
        assert_eq!(parse(b""), Ok(vec![]));
        let map = b"16400 /srv/fast\n16401 /srv/with blank\n16402 /a\\\nb\\\\c\n";
        let expected = [(16400, "/srv/fast"), (16401, "/srv/with blank"), (16402, "/a\nb\\c")].map(|(oid, place)| (oid, place.to_owned()));
        assert_eq!(parse(map), Ok(expected.to_vec()));
        for map in [&b"x /a\n"[..], b"16400\n", b"16400 relative\n", b"16400 /\xff\n"] {
            assert!(parse(map).is_err(), "{map:?}");
        }
    }
}
