//! The client: one request, and an answer that is known to be complete or not.

use std::io::{self, Write as _};
use std::net::{SocketAddr, TcpStream, ToSocketAddrs as _};
use std::time::Duration;

use httparse::{EMPTY_HEADER, Status as Parsed};
use socket2::{SockRef, TcpKeepalive};

use crate::server::is_timeout;

/// How long to wait for a connection, and for an answer to begin.
const CONNECT: Duration = Duration::from_secs(3);
const ANSWER: Duration = Duration::from_secs(15);

/// The most bytes of an answer's head, and of one piece of its body.
const BUFFER: usize = 64 * 1024;

/// So much of a refusal is shown.
const REASON: usize = 200;

/// A peer that is gone without a word is found out after this silence and some questions more.
const SILENCE: Duration = Duration::from_secs(10);

/// Has the kernel ask whether the peer is still there when nothing was heard of it.
pub(crate) fn watch_the_peer(socket: &TcpStream) -> io::Result<()> {
    let questions = TcpKeepalive::new().with_time(SILENCE).with_interval(SILENCE / 2).with_retries(3);
    SockRef::from(socket).set_tcp_keepalive(&questions)
}

/// What came back.
#[derive(Debug)]
pub enum Answer {
    /// 200, in chunks.
    Stream(Body),
    /// Anything else.
    Refused {
        /// The number.
        status: u16,
        /// What it says, on one line.
        reason: String,
    },
}

/// Asks the server at `host:port`, with this header `Authorization` if it is given.
///
/// # Errors
/// It was not reached, or its answer is no HTTP.
pub fn get(address: &str, target: &str, authorization: Option<&str>) -> io::Result<Answer> {
    match ask(address, target, authorization)? {
        (200, true, body) => Ok(Answer::Stream(body)),
        (200, false, _) => Err(io::Error::other("something else than a zk-worker answers there")),
        (status, _, body) => Ok(Answer::Refused { status, reason: body.reason() }),
    }
}

/// Asks the daemon at this address whether it is well.
///
/// # Errors
/// It was not reached, or it says that it is not.
pub(crate) fn health(address: SocketAddr) -> io::Result<()> {
    match ask(&address.to_string(), "/healthz", None)? {
        (200, ..) => Ok(()),
        (status, _, body) => Err(io::Error::other(format!("{status} {}", body.reason()))),
    }
}

/// The status, whether a body in chunks follows, and the body.
fn ask(address: &str, target: &str, authorization: Option<&str>) -> io::Result<(u16, bool, Body)> {
    let mut socket = connect(address)?;
    socket.set_nodelay(true)?;
    watch_the_peer(&socket)?;
    socket.set_read_timeout(Some(ANSWER))?;
    socket.set_write_timeout(Some(ANSWER))?;
    let also = authorization.map(|value| format!("Authorization: {value}\r\n")).unwrap_or_default();
    let head = format!("GET {target} HTTP/1.1\r\nHost: {address}\r\n{also}Connection: close\r\n\r\n");
    socket.write_all(head.as_bytes())?;
    let mut body = Body::new(socket);
    let (status, chunks) = body.read_head()?;
    Ok((status, chunks, body))
}

/// The first of its addresses that can be reached.
fn connect(address: &str) -> io::Result<TcpStream> {
    let mut why = io::Error::other("it has no address");
    for address in address.to_socket_addrs()? {
        match TcpStream::connect_timeout(&address, CONNECT) {
            Ok(socket) => return Ok(socket),
            Err(error) => why = error,
        }
    }
    Err(why)
}

/// An answer that comes in chunks.
#[derive(Debug)]
pub struct Body<S = TcpStream> {
    socket: S,
    buffer: Box<[u8]>,
    start: usize,
    end: usize,
    place: Place,
}

/// Where in the framing the next byte is (RFC 9112, 7.1).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Place {
    Size,
    Chunk(u64),
    AfterChunk,
    End,
}

/// What [`Body::read`] has.
#[derive(Debug, PartialEq, Eq)]
pub enum Piece<'a> {
    /// The next bytes, as soon as they are there.
    Bytes(&'a [u8]),
    /// Nothing came for some time.
    Quiet,
    /// That was all.
    End,
}

impl Body {
    /// How long [`Body::read`] waits for the next bytes before it says that it is quiet.
    ///
    /// # Errors
    /// The time is zero.
    pub fn set_patience(&self, time: Duration) -> io::Result<()> {
        self.socket.set_read_timeout(Some(time))
    }
}

impl<S: io::Read> Body<S> {
    fn new(socket: S) -> Self {
        Body { socket, buffer: vec![0; BUFFER].into(), start: 0, end: 0, place: Place::Size }
    }

    /// The next bytes.
    ///
    /// # Errors
    /// The connection was broken off before the end, or what came is no chunk.
    pub fn read(&mut self) -> io::Result<Piece<'_>> {
        loop {
            let here = &self.buffer[self.start..self.end];
            match self.place {
                Place::End => return Ok(Piece::End),
                Place::Chunk(left) if !here.is_empty() => {
                    let count = here.len().min(usize::try_from(left).unwrap_or(usize::MAX));
                    let from = self.start;
                    self.start += count;
                    self.place = match left - count as u64 {
                        0 => Place::AfterChunk,
                        left => Place::Chunk(left),
                    };
                    return Ok(Piece::Bytes(&self.buffer[from..from + count]));
                }
                Place::AfterChunk if here.starts_with(b"\r\n") => {
                    self.start += 2;
                    self.place = Place::Size;
                    continue;
                }
                Place::AfterChunk if !b"\r\n".starts_with(here) => return Err(malformed()),
                Place::Size => match httparse::parse_chunk_size(here).map_err(|_| malformed())? {
                    Parsed::Complete((_, 0)) => {
                        self.place = Place::End;
                        continue;
                    }
                    Parsed::Complete((used, size)) => {
                        self.start += used;
                        self.place = Place::Chunk(size);
                        continue;
                    }
                    Parsed::Partial => {}
                },
                _ => {}
            }
            match self.fill() {
                Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
                Ok(_) => {}
                Err(error) if is_timeout(&error) => return Ok(Piece::Quiet),
                Err(error) => return Err(error),
            }
        }
    }

    /// The first line of a refusal.
    fn reason(mut self) -> String {
        while self.end - self.start < REASON && self.fill().is_ok_and(|count| count > 0) {}
        let reason = String::from_utf8_lossy(&self.buffer[self.start..self.end]);
        reason.lines().next().unwrap_or_default().chars().take(REASON).collect()
    }

    /// Reads more; returns how much. Nothing also when there is no room for more.
    fn fill(&mut self) -> io::Result<usize> {
        if self.start == self.end {
            (self.start, self.end) = (0, 0);
        } else if self.end == self.buffer.len() {
            self.buffer.copy_within(self.start..self.end, 0);
            (self.start, self.end) = (0, self.end - self.start);
        }
        let count = self.socket.read(&mut self.buffer[self.end..])?;
        self.end += count;
        Ok(count)
    }

    /// The status, and whether a body in chunks follows.
    fn read_head(&mut self) -> io::Result<(u16, bool)> {
        loop {
            let mut headers = [EMPTY_HEADER; 64];
            let mut head = httparse::Response::new(&mut headers);
            let parsed = head.parse(&self.buffer[self.start..self.end]).map_err(|_| malformed())?;
            if let Parsed::Complete(length) = parsed {
                let chunks = head.headers.iter().any(|header| {
                    header.name.eq_ignore_ascii_case("transfer-encoding")
                        && header.value.eq_ignore_ascii_case(b"chunked")
                });
                let status = head.code.unwrap_or_default();
                self.start += length;
                return Ok((status, chunks));
            }
            if self.fill()? == 0 {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
        }
    }
}

/// Reads anything as an answer, to its end.
pub(crate) fn decode(bytes: &[u8]) {
    let mut body = Body::new(bytes);
    match body.read_head() {
        Ok((200, true)) => while let Ok(Piece::Bytes(_)) = body.read() {},
        Ok(_) => _ = body.reason(),
        Err(_) => {}
    }
}

fn malformed() -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, "what answers there does not speak HTTP")
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::TcpListener;
    use std::thread;

    const HEAD: &str = "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n";

    /// What a client gets from somebody who says this, in pieces of this many bytes.
    fn heard(says: &[u8], piece: usize) -> io::Result<Result<Vec<u8>, io::ErrorKind>> {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let says = says.to_vec();
        let speaker = thread::spawn(move || {
            let (mut socket, _) = listener.accept().unwrap();
            socket.set_nodelay(true).unwrap();
            for piece in says.chunks(piece) {
                socket.write_all(piece).ok(); // it has heard enough
            }
            socket.shutdown(std::net::Shutdown::Write).ok();
            io::copy(&mut socket, &mut io::sink()).ok();
        });
        let answer = get(&address, "/", None);
        let heard = answer.map(|answer| match answer {
            Answer::Refused { status, reason } => Ok(format!("{status} {reason}").into_bytes()),
            Answer::Stream(mut body) => {
                let mut bytes = Vec::new();
                loop {
                    match body.read() {
                        Ok(Piece::Bytes(more)) => bytes.extend_from_slice(more),
                        Ok(Piece::Quiet) => {}
                        Ok(Piece::End) => break Ok(bytes),
                        Err(error) => break Err(error.kind()),
                    }
                }
            }
        });
        speaker.join().unwrap();
        heard
    }

    #[test]
    fn chunks_are_put_together_however_they_are_cut() {
        let says = format!("{HEAD}3\r\nabc\r\n0000A;x=y\r\n0123\r\n6789\r\n0\r\n\r\n");
        for piece in [1, 2, 3, 7, 1000] {
            assert_eq!(heard(says.as_bytes(), piece).unwrap(), Ok(b"abc0123\r\n6789".to_vec()), "{piece}");
        }
        let large = format!("{HEAD}{:x}\r\n{}\r\n0\r\n\r\n", 200_000, "x".repeat(200_000));
        assert_eq!(heard(large.as_bytes(), 70_001).unwrap(), Ok(vec![b'x'; 200_000]));
    }

    #[test]
    fn an_answer_without_its_last_chunk_was_broken_off() {
        let whole = format!("{HEAD}3\r\nabc\r\n0\r\n\r\n");
        for end in HEAD.len()..whole.len() - 4 {
            assert_eq!(heard(&whole.as_bytes()[..end], 100).unwrap(), Err(io::ErrorKind::UnexpectedEof), "{end}");
        }
    }

    #[test]
    fn what_is_no_chunk_is_an_error() {
        for body in ["x\r\n", "3\r\nabcd\r\n0\r\n\r\n", "-1\r\n", "11111111111111111\r\n"] {
            assert_eq!(
                heard(format!("{HEAD}{body}").as_bytes(), 100).unwrap(),
                Err(io::ErrorKind::InvalidData),
                "{body}"
            );
        }
        assert!(heard(b"SSH-2.0-OpenSSH_9.6\r\n", 100).is_err());
        assert!(heard(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nhi", 100).is_err());
        assert!(heard(format!("HTTP/1.1 200 OK\r\nA: {}", "x".repeat(70_000)).as_bytes(), 1000).is_err());
        assert!(heard(b"", 100).is_err());
    }

    #[test]
    fn a_refusal_says_why() {
        let says = b"HTTP/1.1 404 Not Found\r\nContent-Length: 8\r\n\r\nno such\nx";
        assert_eq!(heard(says, 5).unwrap(), Ok(b"404 no such".to_vec()));
    }
}
