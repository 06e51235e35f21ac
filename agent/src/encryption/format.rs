//! age files in memory: made, opened whole, and opened in stretches.
//!
//! What follows the header is a nonce and then chunks of 64 KiB, each sealed by itself with its number (<https://age-encryption.org/v1>): so a stretch of a
//! large file is decrypted from its header and the chunks it lies in.

use std::io::{self, Read, Seek, SeekFrom, Write};
use std::ops::Range;

use age::{DecryptError, Decryptor, Encryptor};
use bytes::Bytes;

use super::fingerprint::Fingerprint;
use super::keys::{Identities, Recipients};

/// Bytes to read from the front of an age file to be sure to have its header, with as many recipients as there may be.
pub const HEADER: u64 = 16 << 10;
/// Plain bytes of a chunk.
const CHUNK: u64 = 64 << 10;
/// What sealing adds to a chunk.
const TAG: u64 = 16;
/// Behind the header, before the first chunk.
const NONCE: u64 = 16;
/// No header is shorter: its first line, one recipient's stanza, and the line with the code that seals it.
const SHORTEST_HEADER: u64 = 22 + 97 + 48;

/// An age file cannot be opened.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// None of the identities opens it, or there is none.
    #[error("{0}")]
    Locked(&'static str),
    /// It is not what age wrote.
    #[error("it is not a whole age file: {0}")]
    Damaged(String),
}

impl From<DecryptError> for OpenError {
    fn from(error: DecryptError) -> Self {
        match error {
            DecryptError::NoMatchingKeys | DecryptError::KeyDecryptionFailed => {
                Self::Locked("none of the identities given here is one of those it was encrypted for")
            }
            DecryptError::ExcessiveWork { .. } => Self::Locked("it is encrypted with a passphrase"),
            // In our words: age's are looked up in files, in a build for tests those of whoever built it.
            DecryptError::InvalidHeader => Self::Damaged("its header cannot be understood".into()),
            DecryptError::InvalidMac => Self::Damaged("its header was changed".into()),
            DecryptError::DecryptionFailed => Self::Damaged("its content was changed".into()),
            DecryptError::UnknownFormat => Self::Damaged("it is of a format that this Walkeep does not know".into()),
            DecryptError::Io(error) => error.into(),
            _ => Self::Damaged("age cannot open it".into()),
        }
    }
}

impl From<io::Error> for OpenError {
    fn from(error: io::Error) -> Self {
        Self::Damaged(error.to_string())
    }
}

/// Makes an age file of `plain`. The fingerprint comes first, so that it is found however many recipients there are. CPU work.
pub fn encrypt(recipients: &Recipients, fingerprint: Option<&Fingerprint>, plain: &[u8]) -> io::Result<Bytes> {
    let fingerprint = fingerprint.map(|fingerprint| fingerprint as &dyn age::Recipient);
    let all = fingerprint.into_iter().chain(recipients.iter().map(|recipient| recipient as &dyn age::Recipient));
    let encryptor = Encryptor::with_recipients(all).map_err(|_| io::Error::other("age cannot encrypt for these recipients"))?;
    let chunks = plain.len() as u64 / CHUNK + 1;
    let mut sealed = Vec::with_capacity(plain.len() + (HEADER / 4 + chunks * TAG) as usize);
    let mut writer = encryptor.wrap_output(&mut sealed)?;
    writer.write_all(plain)?;
    writer.finish()?;
    sealed.shrink_to_fit();
    Ok(Bytes::from(sealed))
}

/// Whether this identity is one of those that an age file was made for, by its header.
pub fn is_for(identity: &dyn age::Identity, sealed: &[u8]) -> bool {
    Decryptor::new_buffered(sealed).and_then(|file| file.decrypt(std::iter::once(identity))).is_ok()
}

/// Opens an age file. CPU work.
pub fn decrypt(identities: &Identities, sealed: &[u8]) -> Result<Vec<u8>, OpenError> {
    let mut plain = Vec::with_capacity(sealed.len());
    Decryptor::new_buffered(sealed)?.decrypt(unlocked(identities)?)?.read_to_end(&mut plain)?;
    Ok(plain)
}

fn unlocked(identities: &Identities) -> Result<impl Iterator<Item = &dyn age::Identity>, OpenError> {
    match identities.is_empty() {
        true => Err(OpenError::Locked("this host has no identity")),
        false => Ok(identities.iter()),
    }
}

/// The front of an age file up to its first chunk; an error if `front` does not reach as far.
pub fn header(front: &Bytes) -> Result<Bytes, OpenError> {
    let cut_off = || OpenError::Damaged("its header is cut off, or too long".into());
    let mac = front.windows(5).position(|bytes| bytes == b"\n--- ").ok_or_else(cut_off)?;
    let line = front[mac + 1..].iter().position(|byte| *byte == b'\n').ok_or_else(cut_off)?;
    let end = mac + 1 + line + 1 + NONCE as usize;
    (end <= front.len()).then(|| front.slice(..end)).ok_or_else(cut_off)
}

/// The bytes of an age file with this header in which the plain bytes `wanted` lie; the last chunk may end before.
pub fn sealed_range(header: &Bytes, wanted: &Range<u64>) -> Range<u64> {
    let first = header.len() as u64;
    let chunk = |plain: u64| first + plain * (CHUNK + TAG);
    chunk(wanted.start / CHUNK)..chunk(wanted.end.saturating_sub(1) / CHUNK + 1)
}

/// Opens the plain bytes `wanted`, given the header and what lies in [`sealed_range`]. What is behind the file's end is left out. CPU work.
pub fn decrypt_range(identities: &Identities, header: &Bytes, chunks: Bytes, wanted: Range<u64>) -> Result<Vec<u8>, OpenError> {
    let from = sealed_range(header, &wanted).start;
    let window = Window { header: header.clone(), from, chunks, at: 0 };
    let mut plain = Decryptor::new(window)?.decrypt(unlocked(identities)?)?;
    if wanted.start >= CHUNK {
        // To the beginning of a chunk it would go by way of the file's end, which is not there; within a chunk it goes back freely.
        plain.seek(SeekFrom::Start(wanted.start | 1))?;
        plain.seek(SeekFrom::Start(wanted.start))?;
    } else {
        io::copy(&mut (&mut plain).take(wanted.start), &mut io::sink())?;
    }
    let mut bytes = Vec::with_capacity((wanted.end - wanted.start) as usize);
    plain.take(wanted.end - wanted.start).read_to_end(&mut bytes)?;
    Ok(bytes)
}

/// The most plain bytes that an age file of so many bytes can have.
pub fn can_hold(sealed: u64) -> u64 {
    let payload = sealed.saturating_sub(SHORTEST_HEADER + NONCE);
    payload.saturating_sub(payload.div_ceil(CHUNK + TAG) * TAG)
}

/// An age file of which only the front and some chunks are there.
struct Window {
    header: Bytes,
    from: u64,
    chunks: Bytes,
    at: u64,
}

impl Read for Window {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let (bytes, start) = match self.at < self.header.len() as u64 {
            true => (&self.header, 0),
            false => (&self.chunks, self.from),
        };
        let rest = self.at.checked_sub(start).and_then(|at| bytes.get(at as usize..)).unwrap_or_default();
        let take = rest.len().min(buffer.len());
        buffer[..take].copy_from_slice(&rest[..take]);
        self.at += take as u64;
        Ok(take)
    }
}

impl Seek for Window {
    fn seek(&mut self, to: SeekFrom) -> io::Result<u64> {
        self.at = match to {
            SeekFrom::Start(at) => at,
            SeekFrom::Current(by) => self.at.saturating_add_signed(by),
            SeekFrom::End(_) => return Err(io::ErrorKind::Unsupported.into()),
        };
        Ok(self.at)
    }
}

#[cfg(test)]
mod tests {
    use super::super::keys::generate;
    use super::*;

    fn keys(count: usize) -> (Recipients, Vec<Identities>) {
        let (mut recipients, mut identities) = (Recipients::default(), Vec::new());
        for _ in 0..count {
            let (identity, recipient) = generate();
            recipients.add(Recipients::parse(&recipient).unwrap()).unwrap();
            identities.push(Identities::parse_list(identity.reveal(), "test").unwrap());
        }
        (recipients, identities)
    }

    fn content(length: usize) -> Vec<u8> {
        (0..length).map(|at| (at / 3) as u8 ^ (at >> 13) as u8).collect()
    }

    #[test]
    fn every_recipient_opens_it_and_nobody_else() {
        let ((recipients, identities), (_, others)) = (keys(3), keys(1));
        let sealed = encrypt(&recipients, None, b"some WAL").unwrap();
        for identity in &identities {
            assert_eq!(decrypt(identity, &sealed).unwrap(), b"some WAL");
        }
        assert_eq!(decrypt(&others[0].and(&identities[2]), &sealed).unwrap(), b"some WAL");
        for locked in [&others[0], &Identities::default()] {
            assert!(matches!(decrypt(locked, &sealed), Err(OpenError::Locked(_))));
        }
        assert!(encrypt(&Recipients::default(), None, b"x").is_err(), "for nobody");
    }

    #[test]
    fn a_fingerprint_is_found_and_in_nobodys_way() {
        let (recipients, identities) = keys(super::super::keys::MOST_RECIPIENTS);
        let description = crate::codec::Description::of("x".into(), walkeep_core::SystemIdentifier::new(7), None, b"plain");
        let mark = super::super::fingerprint::fingerprint(&[7; 32], &description);
        let sealed = encrypt(&recipients, Some(&mark), b"plain").unwrap();
        assert!(header(&sealed).unwrap().len() as u64 <= HEADER.min(crate::codec::FRONT));
        assert_eq!(Fingerprint::find(&sealed[..crate::codec::FRONT.min(sealed.len() as u64) as usize]), Some(mark));
        assert_eq!(decrypt(&identities[19], &sealed).unwrap(), b"plain");
    }

    #[test]
    fn any_change_is_found() {
        let (recipients, identities) = keys(1);
        let sealed = encrypt(&recipients, None, &content(CHUNK as usize + 100)).unwrap();
        for at in [0, 30, 60, 120, sealed.len() - 200, sealed.len() - 1] {
            let mut changed = sealed.to_vec();
            changed[at] ^= 1;
            assert!(decrypt(&identities[0], &changed).is_err(), "{at}");
        }
        for length in [0, 50, header(&sealed).unwrap().len(), sealed.len() - 116, sealed.len() - 1] {
            let cut = decrypt(&identities[0], &sealed[..length]);
            assert!(matches!(cut, Err(OpenError::Damaged(_))), "{length}");
        }
    }

    #[test]
    fn stretches_are_opened_by_themselves() {
        let (recipients, identities) = keys(2);
        let chunk = CHUNK as usize;
        for length in [0, 1, chunk - 1, chunk, chunk + 1, 3 * chunk, 3 * chunk + 77] {
            let plain = content(length);
            let sealed = encrypt(&recipients, None, &plain).unwrap();
            let header = header(&sealed).unwrap();
            assert!(
                can_hold(sealed.len() as u64) >= length as u64
                    && can_hold((sealed.len() as u64).saturating_sub(1000)) < length.max(1) as u64,
                "{length}"
            );
            let edges = [0, 1, chunk - 1, chunk, chunk + 1, 2 * chunk, 2 * chunk + 5, 3 * chunk, 3 * chunk + 77, 4 * chunk];
            for (from, to) in edges.iter().flat_map(|from| edges.iter().map(move |to| (*from, *to))).filter(|(from, to)| from < to) {
                if from >= length {
                    continue;
                }
                let wanted = from as u64..to as u64;
                let range = sealed_range(&header, &wanted);
                let chunks = sealed.slice(range.start as usize..(range.end as usize).min(sealed.len()));
                let opened = decrypt_range(&identities[1], &header, chunks.clone(), wanted.clone()).unwrap();
                assert_eq!(opened, plain[from..to.min(length)], "{from}..{to} of {length}");
                let mut changed = chunks.to_vec();
                changed[0] ^= 1;
                assert!(decrypt_range(&identities[1], &header, changed.into(), wanted).is_err());
            }
        }
    }
}
