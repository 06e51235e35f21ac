//! Bodies of answers: read to their end, checked against what the head said.

use std::ops::Range;
use std::time::Duration;

use aws_sdk_s3::operation::get_object::GetObjectOutput;
use bytes::{Bytes, BytesMut};

use super::errors::{Failure, chain};
use crate::ErrorKind;
use crate::memory::cut;

/// The whole body, checked against the lengths that the answer's head tells.
pub(super) async fn collect(
    mut output: GetObjectOutput,
    range: Option<&Range<u64>>,
    idle: Duration,
) -> std::result::Result<Bytes, Failure> {
    let expected = output.content_length.and_then(|length| u64::try_from(length).ok());
    let mut body = BytesMut::with_capacity(expected.map_or(0, |length| usize::try_from(length).unwrap_or(0).min(1 << 26)));
    loop {
        match tokio::time::timeout(idle, output.body.next()).await {
            Err(_) => return Err(Failure::new(ErrorKind::Transient, format!("the body stood still for {idle:?}"))),
            Ok(None) => break,
            Ok(Some(Ok(piece))) => body.extend_from_slice(&piece),
            Ok(Some(Err(error))) => {
                let cause = chain(&error);
                // Complete but wrong, or cut short.
                let kind = if cause.contains("checksum mismatch") { ErrorKind::Corrupt } else { ErrorKind::Transient };
                return Err(Failure::new(kind, cause));
            }
        }
    }
    let body = body.freeze();
    if let Some(expected) = expected.filter(|expected| *expected != body.len() as u64) {
        return Err(Failure::new(ErrorKind::Transient, format!("{} bytes came of {expected}", body.len())));
    }
    let Some(range) = range else { return Ok(body) };
    let Some(told) = output.content_range.as_deref() else {
        // What these bytes are is anybody's guess.
        return Err(Failure::new(ErrorKind::Unusable, "the server ignores ranges"));
    };
    match content_range(told) {
        Some((start, total)) if start == range.start && body.len() as u64 == range.end.max(start + 1).min(total) - start => {
            Ok(cut(&body, &(0..range.end.saturating_sub(start))))
        }
        _ => Err(Failure::new(ErrorKind::Transient, format!("asked for bytes {range:?}, got {} as {told:?}", body.len()))),
    }
}

/// First byte and total of `bytes 0-9/100`.
fn content_range(text: &str) -> Option<(u64, u64)> {
    let (range, total) = text.strip_prefix("bytes ")?.split_once('/')?;
    let (start, end) = range.split_once('-')?;
    let (start, end, total) = (start.parse::<u64>().ok()?, end.parse::<u64>().ok()?, total.parse().ok()?);
    (start <= end && end < total).then_some((start, total))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answers_heads_are_read() {
        assert_eq!(content_range("bytes 5-9/100"), Some((5, 100)));
        for text in ["", "bytes 5-9/*", "bytes 9-5/100", "bytes 5-100/100", "5-9/100"] {
            assert_eq!(content_range(text), None, "{text}");
        }
    }
}
