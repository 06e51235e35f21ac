//! One client's connection: request after request, each forwarded on a connection of its own, with its fault.

use std::io::{BufReader, Error, ErrorKind, Result, Write};
use std::net::TcpStream;
use std::time::Duration;

use super::archive::State;
use super::stale::stale;
use super::wire::{Head, Length, pump};
use super::{Fault, Request, Shared};
use crate::s3;

/// How long the server is waited for after `Expect: 100-continue` before the body is sent all the same.
const CONTINUE_WAIT: Duration = Duration::from_secs(1);

/// Serves a client until it closes or a fault ends the connection.
pub fn connection(client: &TcpStream, shared: &Shared) -> Result<()> {
    client.set_nodelay(true)?;
    let mut from_client = BufReader::new(client);
    while let Some(head) = Head::read(&mut from_client)? {
        let request = describe(&head, shared);
        let (method, path, query) = (request.method.clone(), request.path.clone(), request.query.clone());
        let (entry, acting) = shared.admit(request);
        let rule = acting.as_ref().map(|(rule, _)| *rule);
        let fault = acting.map(|(_, fault)| fault);
        let mut exchange = Exchange { client, shared, entry, rule, method, path, query, fault };
        if !exchange.run(head, &mut from_client)? {
            return Ok(());
        }
    }
    Ok(())
}

fn describe(head: &Head, shared: &Shared) -> Request {
    let mut words = head.first.split(' ');
    let method = words.next().unwrap_or_default().to_owned();
    let target = words.next().unwrap_or_default();
    let (path, query) = target.split_once('?').unwrap_or((target, ""));
    let headers = head.headers.iter().map(|(name, value)| (name.to_ascii_lowercase(), value.clone()));
    Request {
        at: shared.started.elapsed(),
        method,
        path: decode(path),
        query: query.to_owned(),
        headers: headers.filter(|(name, _)| name != "authorization").collect(),
        sent: 0,
        received: 0,
        status: None,
        fault: None,
    }
}

/// Percent-decodes.
pub(super) fn decode(text: &str) -> String {
    let bytes = text.as_bytes();
    let mut decoded = Vec::with_capacity(bytes.len());
    let mut at = 0;
    while at < bytes.len() {
        let digits = text.get(at + 1..at + 3).filter(|_| bytes[at] == b'%');
        match digits.and_then(|digits| u8::from_str_radix(digits, 16).ok()) {
            Some(byte) => {
                decoded.push(byte);
                at += 3;
            }
            None => {
                decoded.push(bytes[at]);
                at += 1;
            }
        }
    }
    String::from_utf8_lossy(&decoded).into_owned()
}

/// How much of a request's body the server took.
#[derive(PartialEq)]
enum Sent {
    Whole,
    InPart,
}

/// One request and its answer.
struct Exchange<'a> {
    client: &'a TcpStream,
    shared: &'a Shared,
    entry: usize,
    rule: Option<u64>,
    method: String,
    path: String,
    query: String,
    fault: Option<Fault>,
}

impl Exchange<'_> {
    /// Whether the client's connection can be used again.
    fn run(&mut self, head: Head, from_client: &mut BufReader<&TcpStream>) -> Result<bool> {
        match self.fault.clone() {
            Some(Fault::Status(status, code)) => return self.answer(&head, from_client, status, code),
            Some(Fault::ErrorInOk(code)) => return self.answer(&head, from_client, 200, code),
            Some(Fault::DropRequest) => return Ok(false),
            Some(Fault::Hang) if !self.held() => return Ok(false),
            Some(Fault::Delay(delay)) => std::thread::sleep(delay),
            Some(Fault::IgnoreIfNoneMatch) if head.get("if-none-match").is_some() => {
                let target = head.first.split(' ').nth(1).and_then(|target| target.split('?').next()).unwrap_or_default();
                s3::delete_at(&format!("http://{}", self.shared.upstream), target).map_err(Error::other)?;
            }
            _ => {}
        }
        let is_object = self.path.trim_start_matches('/').contains('/');
        if self.method == "POST" && is_object && self.query.split('&').any(|word| word == "restore" || word == "restore=") {
            return self.thaw(&head, from_client);
        }
        let upstream = TcpStream::connect(self.shared.upstream)?;
        upstream.set_nodelay(true)?;
        let mut from_server = BufReader::new(&upstream);
        (&upstream).write_all(&head.to_bytes())?;

        let mut early = None;
        if head.get("expect").is_some() {
            early = self.await_continue(&upstream, &mut from_server)?;
        }
        let unread = early.is_some();
        let answer = match early {
            Some(answer) => answer,
            None => {
                // A server may answer and close before it has read everything: its answer counts, not the broken pipe.
                let sent = self.forward_request(head.request_length(), from_client, &upstream)?;
                let answer = read_answer(&mut from_server)?;
                if sent == Sent::InPart {
                    self.forward_answer(answer, &mut from_server)?;
                    return Ok(false);
                }
                answer
            }
        };
        let reusable = !unread && !head.closes() && !answer.closes();
        Ok(self.forward_answer(answer, &mut from_server)? && reusable)
    }

    /// Takes a request to make an archived object readable.
    fn thaw(&self, head: &Head, from_client: &mut BufReader<&TcpStream>) -> Result<bool> {
        let mut body = Vec::new();
        pump(from_client, head.request_length(), |content, _| {
            body.extend_from_slice(content);
            Ok(())
        })?;
        let (status, code) = self.shared.state().archive.thaw(&self.path, &String::from_utf8_lossy(&body));
        let Some(code) = code else {
            let mut client = self.client;
            self.shared.note(self.entry, |request| request.status = Some(status));
            client.write_all(
                format!("HTTP/1.1 {status} Accepted\r\nx-amz-request-id: WALKEEPTEST\r\nContent-Length: 0\r\n\r\n").as_bytes(),
            )?;
            return Ok(!head.closes());
        };
        // The body was read already.
        let read = Head { headers: Vec::new(), ..head.clone() };
        self.answer(&read, from_client, status, code)
    }

    /// Whether the request is for an object of which there is no copy to be read.
    fn is_archived(&self) -> bool {
        let is_object = self.path.trim_start_matches('/').contains('/');
        is_object && self.shared.state().archive.state(&self.path).is_some_and(|(_, state)| state != State::Thawed)
    }

    /// Whether the request is a listing that may show archived objects.
    fn lists_archived(&self) -> bool {
        let lists = self.query.contains("list-type=2") || self.query.split('&').any(|word| word.split('=').next() == Some("versions"));
        self.method == "GET" && lists && !self.shared.state().archive.is_empty()
    }

    /// Hands a listing on, edited.
    fn forward_listing(&self, mut head: Head, from_server: &mut BufReader<&TcpStream>, edit: impl Fn(&str) -> String) -> Result<bool> {
        let (mut client, mut document) = (self.client, Vec::new());
        pump(from_server, head.answer_length(&self.method), |content, _| {
            document.extend_from_slice(content);
            Ok(())
        })?;
        let told = edit(&String::from_utf8_lossy(&document));
        head.remove("transfer-encoding");
        head.set("Content-Length", &told.len().to_string());
        self.shared.note(self.entry, |request| {
            (request.status, request.received) = (Some(head.status()), told.len() as u64);
        });
        client.write_all(&head.to_bytes())?;
        client.write_all(told.as_bytes())?;
        Ok(true)
    }

    /// Waits until the fault is disarmed; false when the proxy is closed.
    fn held(&self) -> bool {
        self.rule.is_none_or(|rule| self.shared.wait_disarmed(rule))
    }

    /// Sleeps as long as so many bytes take at the fault's rate.
    fn throttle(&self, bytes: usize) {
        if let Some(Fault::Rate(rate)) = self.fault {
            std::thread::sleep(Duration::from_secs_f64(bytes as f64 / rate.max(1) as f64));
        }
    }

    /// Hands the server's `100 Continue` on; its final answer when it wants no body.
    fn await_continue(&self, upstream: &TcpStream, from_server: &mut BufReader<&TcpStream>) -> Result<Option<Head>> {
        upstream.set_read_timeout(Some(CONTINUE_WAIT))?;
        let answer = match Head::read(from_server) {
            Ok(answer) => answer,
            Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => None,
            Err(error) => return Err(error),
        };
        upstream.set_read_timeout(None)?;
        match answer {
            Some(head) if head.status() != 100 => Ok(Some(head)),
            _ => {
                let mut client = self.client;
                client.write_all(b"HTTP/1.1 100 Continue\r\n\r\n")?;
                Ok(None)
            }
        }
    }

    fn forward_request(&self, length: Length, from_client: &mut BufReader<&TcpStream>, mut upstream: &TcpStream) -> Result<Sent> {
        let mut refused = false;
        let sent = pump(from_client, length, |content, wire| {
            self.throttle(content.len());
            self.shared.note(self.entry, |request| request.sent += content.len() as u64);
            upstream.write_all(wire).inspect_err(|_| refused = true)
        });
        match sent {
            Ok(()) => Ok(Sent::Whole),
            Err(_) if refused => Ok(Sent::InPart),
            Err(error) => Err(error),
        }
    }

    /// Hands the answer on, spoilt as the fault says; whether the connection can go on.
    fn forward_answer(&mut self, mut head: Head, from_server: &mut BufReader<&TcpStream>) -> Result<bool> {
        if let Some(Fault::StaleListing(without)) = self.fault {
            return self.forward_listing(head, from_server, |document| stale(document, without));
        }
        if self.fault.is_none() && self.lists_archived() {
            let bucket = self.path.trim_matches('/').split('/').next().unwrap_or_default().to_owned();
            return self.forward_listing(head, from_server, |document| self.shared.state().archive.classes_in(&bucket, document));
        }
        // What is not there is not archived either.
        if self.method == "GET" && matches!(head.status(), 200 | 206) && self.is_archived() {
            pump(from_server, head.answer_length(&self.method), |_, _| Ok(()))?;
            return self.tell(403, "InvalidObjectState", false);
        }
        if self.method == "HEAD" && head.status() == 200 {
            let more = self.shared.state().archive.headers(&self.path);
            more.iter().for_each(|(name, value)| head.set(name, value));
        }
        let mut client = self.client;
        let length = head.answer_length(&self.method);
        let mut flip = None;
        let mut last = u64::MAX;
        match (&self.fault, length) {
            (Some(Fault::DropAnswer), _) => {
                pump(from_server, length, |_, _| Ok(()))?;
                return Ok(false);
            }
            (Some(Fault::StrangeEtag), _) if head.get("etag").is_some() => {
                head.set("ETag", &format!("\"{:032x}-7\"", self.shared.started.elapsed().as_nanos()));
            }
            (Some(Fault::FlipBit(at)), Length::Bytes(bytes)) => {
                flip = if *at < 0 { bytes.checked_add_signed(*at) } else { u64::try_from(*at).ok() }
            }
            (Some(Fault::FlipBit(at)), _) => flip = u64::try_from(*at).ok(),
            (Some(Fault::ShortBody(count)), Length::Bytes(bytes)) => {
                last = bytes.min(*count);
                head.set("Content-Length", &last.to_string());
            }
            (Some(Fault::CutBody(count) | Fault::StallBody(count)), _) => last = *count,
            _ => {}
        }
        self.shared.note(self.entry, |request| request.status = Some(head.status()));
        if self.fault == Some(Fault::HoldAnswer) && !self.held() {
            return Ok(false);
        }
        client.write_all(&head.to_bytes())?;

        let mut at = 0;
        pump(from_server, length, |content, wire| {
            self.throttle(content.len());
            let from = at;
            at += content.len() as u64;
            if content.is_empty() {
                return client.write_all(wire);
            }
            let mut piece = content.to_vec();
            if let Some(index) = flip.and_then(|flip| flip.checked_sub(from)).and_then(|index| usize::try_from(index).ok())
                && let Some(byte) = piece.get_mut(index)
            {
                *byte ^= 1;
            }
            let keep = usize::try_from(last.saturating_sub(from)).unwrap_or(usize::MAX).min(piece.len());
            client.write_all(&piece[..keep])?;
            self.shared.note(self.entry, |request| request.received += keep as u64);
            match self.fault {
                Some(Fault::CutBody(_)) if keep < piece.len() => Err(Error::other("cut")),
                Some(Fault::StallBody(_)) if keep < piece.len() => {
                    last = u64::MAX;
                    if !self.held() {
                        return Err(Error::other("closed"));
                    }
                    client.write_all(&piece[keep..])?;
                    self.shared.note(self.entry, |request| request.received += (piece.len() - keep) as u64);
                    Ok(())
                }
                _ => Ok(()),
            }
        })?;
        Ok(length != Length::UntilClose)
    }

    /// Answers with S3's error document instead of the server, after the request's body was read.
    fn answer(&self, head: &Head, from_client: &mut BufReader<&TcpStream>, status: u16, code: &str) -> Result<bool> {
        let expects = head.get("expect").is_some();
        if !expects {
            pump(from_client, head.request_length(), |content, _| {
                self.shared.note(self.entry, |request| request.sent += content.len() as u64);
                Ok(())
            })?;
        }
        Ok(self.tell(status, code, expects)? && !expects && !head.closes())
    }

    /// S3's error document for this code.
    fn tell(&self, status: u16, code: &str, closes: bool) -> Result<bool> {
        let mut client = self.client;
        let document = format!(
            "<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n<Error><Code>{code}</Code><Message>A fault of the tests: {code}.</Message>\
             <Resource>/</Resource><RequestId>WALKEEPTEST{:08}</RequestId></Error>",
            self.entry
        );
        let body = if self.method == "HEAD" { "" } else { &document };
        let close = if closes { "Connection: close\r\n" } else { "" };
        self.shared.note(self.entry, |request| request.status = Some(status));
        let length = document.len();
        let text = format!(
            "HTTP/1.1 {status} {code}\r\nContent-Type: application/xml\r\nx-amz-request-id: WALKEEPTEST\r\nContent-Length: {length}\r\n{close}\r\n{body}"
        );
        client.write_all(text.as_bytes())?;
        Ok(true)
    }
}

/// The server's answer, past any `100 Continue`.
fn read_answer(from_server: &mut BufReader<&TcpStream>) -> Result<Head> {
    loop {
        let head = Head::read(from_server)?.ok_or_else(|| Error::from(ErrorKind::UnexpectedEof))?;
        if head.status() != 100 {
            return Ok(head);
        }
    }
}
