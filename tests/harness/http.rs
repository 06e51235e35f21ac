//! The least of an HTTP client: one GET, for metrics and readiness.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::time::Duration;

use anyhow::{Context, Result};

/// GETs `path` from `address` (`host:port`): the status and the body.
pub fn get(address: &str, path: &str) -> Result<(u16, String)> {
    let (status, _, body) = request(address, "GET", path, &[], b"")?;
    Ok((status, String::from_utf8_lossy(&body).into_owned()))
}

/// Sends one request on a connection of its own: the status, the head's text and the body as far as it came.
pub fn request(address: &str, method: &str, path: &str, headers: &[(&str, &str)], body: &[u8]) -> Result<(u16, String, Vec<u8>)> {
    let mut stream = TcpStream::connect(address).with_context(|| format!("connect to {address}"))?;
    stream.set_read_timeout(Some(Duration::from_secs(30)))?;
    let mut head = format!("{method} {path} HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n");
    for (name, value) in headers {
        head.push_str(&format!("{name}: {value}\r\n"));
    }
    if !body.is_empty() {
        head.push_str(&format!("Content-Length: {}\r\n", body.len()));
    }
    stream.write_all(format!("{head}\r\n").as_bytes())?;
    stream.write_all(body)?;
    let mut answer = Vec::new();
    // A connection that is cut still gives what came before.
    let ended = stream.read_to_end(&mut answer);
    if answer.starts_with(b"HTTP/1.1 100") {
        let end = answer.windows(4).position(|four| four == b"\r\n\r\n").map_or(0, |end| end + 4);
        answer.drain(..end);
    }
    let end = answer.windows(4).position(|four| four == b"\r\n\r\n");
    let Some(end) = end else {
        ended.with_context(|| format!("read the answer of {address}"))?;
        anyhow::bail!("{address} closed the connection without an answer");
    };
    let head = String::from_utf8_lossy(&answer[..end]).into_owned();
    let status = head.split(' ').nth(1).and_then(|code| code.parse().ok()).with_context(|| format!("no status in {head:?}"))?;
    let body = answer.split_off(end + 4);
    let chunked = head.to_ascii_lowercase().contains("transfer-encoding: chunked");
    Ok((status, head, if chunked { dechunk(&body) } else { body }))
}

/// The content of a chunked body, as far as it is whole.
fn dechunk(mut body: &[u8]) -> Vec<u8> {
    let mut content = Vec::new();
    while let Some(end) = body.windows(2).position(|two| two == b"\r\n") {
        let size = std::str::from_utf8(&body[..end]).ok().and_then(|text| usize::from_str_radix(text.trim(), 16).ok()).unwrap_or(0);
        let from = end + 2;
        if size == 0 || from + size > body.len() {
            break;
        }
        content.extend_from_slice(&body[from..from + size]);
        body = body.get(from + size + 2..).unwrap_or_default();
    }
    content
}
