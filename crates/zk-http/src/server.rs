//! The server: whatever comes in, it costs one small thread for a bounded time.

use std::fmt;
use std::io::{self, Read as _, Write as _};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::sync::mpsc::{self, Receiver};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};

use crate::Request;
use crate::client::watch_the_peer;

/// What a connection may take.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    /// How many there are at once. A process has 1024 descriptors by default, and needs most of them for something else.
    pub connections: usize,
    /// The bytes of a head.
    pub head: usize,
    /// The time until the head is there.
    pub head_time: Duration,
    /// How long a client may take nothing of an answer that is there for it.
    pub stall: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        let (head_time, stall) = (Duration::from_secs(10), Duration::from_secs(30));
        Limits { connections: 256, head: 8192, head_time, stall }
    }
}

/// So many more connections get short answers only; any further one is closed at once.
const SPARE: usize = 16;

/// Enough for a handler that reads a file in pieces, which it keeps on the heap.
const SMALL_STACK: usize = 128 * 1024;

/// The pause after the system could not give us a connection.
const NO_CONNECTION: Duration = Duration::from_millis(100);

/// How long a client that was answered may go on sending, and how much: what is unread when a socket is closed makes the
/// kernel reset the connection, and the client could lose the answer (RFC 9112, 9.6).
const LINGER: Duration = Duration::from_millis(500);
const LINGER_BYTES: usize = 64 * 1024;

/// How an answer begins.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Status {
    /// 200.
    Ok,
    /// 400: it cannot be understood.
    BadRequest,
    /// 401: it is not signed as it has to be.
    Unauthorized,
    /// 404.
    NotFound,
    /// 405: only GET and HEAD are.
    MethodNotAllowed,
    /// 408: the head did not come in time.
    RequestTimeout,
    /// 431: the head is too large.
    HeadTooLarge,
    /// 503: there are too many connections, or what was asked for is not well.
    Unavailable,
    /// 505: it is not HTTP/1.1, and the answer cannot be given in HTTP/1.0.
    VersionNotSupported,
}

impl fmt::Display for Status {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Status::Ok => "200 OK",
            Status::BadRequest => "400 Bad Request",
            Status::Unauthorized => "401 Unauthorized",
            Status::NotFound => "404 Not Found",
            Status::MethodNotAllowed => "405 Method Not Allowed",
            Status::RequestTimeout => "408 Request Timeout",
            Status::HeadTooLarge => "431 Request Header Fields Too Large",
            Status::Unavailable => "503 Service Unavailable",
            Status::VersionNotSupported => "505 HTTP Version Not Supported",
        })
    }
}

/// The connections that are being served.
#[derive(Debug, Clone)]
pub struct Server(Arc<Places>);

#[derive(Debug, Default)]
struct Places {
    taken: Mutex<usize>,
    left: Condvar,
}

impl Places {
    fn count(&self) -> std::sync::MutexGuard<'_, usize> {
        // A number is whole at any time.
        self.taken.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// One of them; left when this is dropped.
struct Place {
    places: Arc<Places>,
    /// How many there were before.
    number: usize,
}

impl Place {
    fn take(places: &Arc<Places>, most: usize) -> Option<Place> {
        let mut taken = places.count();
        let number = *taken;
        (number < most).then(|| {
            *taken += 1;
            Place { places: places.clone(), number }
        })
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        *self.places.count() -= 1;
        self.places.left.notify_all();
    }
}

impl Server {
    /// Waits until all that was asked has been answered, but not longer than this.
    pub fn finish(&self, patience: Duration) {
        let taken = self.0.count();
        drop(self.0.left.wait_timeout_while(taken, patience, |taken| *taken > 0));
    }
}

/// Serves what comes in at the listener, for as long as the process lives. Each request is answered by `handler` on a
/// thread of its own; an error of it means that the client is gone, and is nobody's business.
///
/// # Errors
/// No thread could be started.
pub fn serve(
    listener: TcpListener,
    limits: Limits,
    handler: impl Fn(&Request, Reply<'_>) -> io::Result<()> + Send + Sync + 'static,
) -> io::Result<Server> {
    let server = Server(Arc::default());
    let (places, handler) = (server.0.clone(), Arc::new(handler));
    let accept = move || {
        let (_never, pause) = mpsc::channel();
        loop {
            let Some(socket) = accept(&listener, &pause) else { continue };
            let Some(place) = Place::take(&places, limits.connections + SPARE) else { continue };
            let handler = handler.clone();
            let converse = move || {
                let crowded = place.number >= limits.connections;
                converse(&socket, &limits, crowded, &*handler).ok(); // the client is gone
                drop(place);
            };
            // Without a thread the connection is closed: the client may try again.
            thread::Builder::new().name("http".into()).stack_size(SMALL_STACK).spawn(converse).ok();
        }
    };
    thread::Builder::new().name("http-accept".into()).stack_size(SMALL_STACK).spawn(accept)?;
    Ok(server)
}

fn accept(listener: &TcpListener, pause: &Receiver<()>) -> Option<TcpStream> {
    match listener.accept() {
        Ok((socket, _)) => Some(socket),
        // It left before it was its turn.
        Err(error) if error.kind() == io::ErrorKind::ConnectionAborted => None,
        Err(error) => {
            log::debug!("cannot accept a connection: {error}");
            pause.recv_timeout(NO_CONNECTION).ok();
            None
        }
    }
}

fn converse(
    socket: &TcpStream,
    limits: &Limits,
    crowded: bool,
    handler: &impl Fn(&Request, Reply<'_>) -> io::Result<()>,
) -> io::Result<()> {
    socket.set_nodelay(true)?;
    socket.set_write_timeout(Some(limits.stall))?;
    watch_the_peer(socket)?;
    match receive(socket, limits)? {
        Ok(request) => {
            let Request { head_only, chunks, .. } = request;
            handler(&request, Reply { socket, head_only, chunks, crowded })?;
        }
        Err(status) => Reply { socket, head_only: false, chunks: false, crowded }.send(status, "")?,
    }
    linger(socket)
}

/// Receives a head, or says why not.
fn receive(mut socket: &TcpStream, limits: &Limits) -> io::Result<Result<Request, Status>> {
    let until = Instant::now() + limits.head_time;
    let mut bytes = vec![0; limits.head];
    let mut filled = 0;
    loop {
        let left = until.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Ok(Err(Status::RequestTimeout));
        }
        socket.set_read_timeout(Some(left))?;
        match socket.read(&mut bytes[filled..]) {
            Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
            Ok(count) => filled += count,
            Err(error) if is_timeout(&error) => continue,
            Err(error) => return Err(error),
        }
        match Request::parse(&bytes[..filled]) {
            Ok(None) if filled < bytes.len() => {}
            Ok(None) => return Ok(Err(Status::HeadTooLarge)),
            Ok(Some(request)) => return Ok(Ok(request)),
            Err(status) => return Ok(Err(status)),
        }
    }
}

pub(crate) fn is_timeout(error: &io::Error) -> bool {
    use io::ErrorKind::{Interrupted, TimedOut, WouldBlock};
    matches!(error.kind(), WouldBlock | TimedOut | Interrupted)
}

/// Says that no more will come, and lets the client say the rest.
fn linger(mut socket: &TcpStream) -> io::Result<()> {
    socket.shutdown(Shutdown::Write)?;
    let until = Instant::now() + LINGER;
    let mut rest = [0; 4096];
    let mut heard = 0;
    while heard < LINGER_BYTES {
        let left = until.saturating_duration_since(Instant::now());
        if left.is_zero() {
            break;
        }
        socket.set_read_timeout(Some(left))?;
        match socket.read(&mut rest)? {
            0 => break,
            count => heard += count,
        }
    }
    Ok(())
}

/// A request that is to be answered.
#[derive(Debug)]
#[must_use = "whoever asked waits for an answer"]
pub struct Reply<'a> {
    socket: &'a TcpStream,
    head_only: bool,
    chunks: bool,
    crowded: bool,
}

impl<'a> Reply<'a> {
    /// Whether there are too many connections for an answer that takes its time.
    pub fn crowded(&self) -> bool {
        self.crowded
    }

    /// Lets some time pass.
    ///
    /// # Errors
    /// The client is gone.
    pub fn wait(&self, time: Duration) -> io::Result<()> {
        wait(self.socket, time)
    }

    /// Answers with a text.
    ///
    /// # Errors
    /// The client is gone.
    pub fn send(self, status: Status, text: &str) -> io::Result<()> {
        self.send_as(status, "text/plain; charset=utf-8", text)
    }

    /// Answers with a text of some other type.
    ///
    /// # Errors
    /// The client is gone.
    pub fn send_as(mut self, status: Status, content_type: &str, text: &str) -> io::Result<()> {
        let also = match status {
            Status::MethodNotAllowed => "Allow: GET, HEAD\r\n",
            Status::Unauthorized => "WWW-Authenticate: ZK-HMAC-SHA256\r\n", // RFC 9110, 15.5.2: it has to be there
            Status::Unavailable => "Retry-After: 1\r\n",
            _ => "",
        };
        let length = text.len();
        let head = format!("{also}Content-Type: {content_type}\r\nContent-Length: {length}\r\n");
        self.write_head(status, &head, if self.head_only { "" } else { text })
    }

    /// Begins an answer that comes in chunks, as they are there. `None` where only its head was wanted.
    ///
    /// # Errors
    /// The client is gone, or does not know what a chunk is.
    pub fn stream(mut self) -> io::Result<Option<Stream<'a>>> {
        if !self.chunks {
            let status = Status::VersionNotSupported;
            return self.send(status, "this answer needs HTTP/1.1\n").map(|()| None);
        }
        self.write_head(Status::Ok, "Content-Type: application/octet-stream\r\nTransfer-Encoding: chunked\r\n", "")?;
        Ok((!self.head_only).then_some(Stream { socket: self.socket, framed: Vec::new() }))
    }

    fn write_head(&mut self, status: Status, headers: &str, text: &str) -> io::Result<()> {
        // Nothing here is for a browser to guess about, or for anybody to keep.
        let always = "Connection: close\r\nCache-Control: no-store\r\nX-Content-Type-Options: nosniff\r\n";
        self.socket.write_all(format!("HTTP/1.1 {status}\r\n{headers}{always}\r\n{text}").as_bytes())
    }
}

/// An answer in chunks. Dropped before [`Stream::end`] it is one that was broken off, and the client knows.
#[derive(Debug)]
pub struct Stream<'a> {
    socket: &'a TcpStream,
    framed: Vec<u8>,
}

impl Stream<'_> {
    /// Sends some bytes.
    ///
    /// # Errors
    /// The client is gone, or takes nothing.
    pub fn chunk(&mut self, bytes: &[u8]) -> io::Result<()> {
        if bytes.is_empty() {
            return Ok(()); // this would be the end
        }
        self.framed.clear();
        write!(self.framed, "{:x}\r\n", bytes.len())?;
        self.framed.extend_from_slice(bytes);
        self.framed.extend_from_slice(b"\r\n");
        self.socket.write_all(&self.framed)
    }

    /// Lets some time pass.
    ///
    /// # Errors
    /// The client is gone.
    pub fn wait(&self, time: Duration) -> io::Result<()> {
        wait(self.socket, time)
    }

    /// Says that this was all.
    ///
    /// # Errors
    /// The client is gone.
    pub fn end(self) -> io::Result<()> {
        let mut socket = self.socket;
        socket.write_all(b"0\r\n\r\n")
    }
}

fn wait(socket: &TcpStream, time: Duration) -> io::Result<()> {
    let mut sockets = [PollFd::new(socket, PollFlags::RDHUP)];
    let time = Timespec::try_from(time).map_err(io::Error::other)?;
    match poll(&mut sockets, Some(&time)) {
        Ok(0) | Err(rustix::io::Errno::INTR) => Ok(()),
        Ok(_) => Err(io::ErrorKind::ConnectionReset.into()),
        Err(error) => Err(error.into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::SocketAddr;

    /// A server for a test: it says the path it was asked for, but `/stream` in two chunks, `/broken` without an end, and
    /// `/held` for as long as the client is there.
    fn start(limits: Limits) -> (SocketAddr, Server) {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let handler = |request: &Request, reply: Reply<'_>| match request.path() {
            "/stream" | "/broken" => {
                let Some(mut stream) = reply.stream()? else { return Ok(()) };
                stream.chunk(b"abc")?;
                stream.chunk(b"")?;
                stream.chunk(&[b'x'; 300])?;
                if request.path() == "/stream" { stream.end() } else { Ok(()) }
            }
            "/held" => {
                let Some(stream) = reply.stream()? else { return Ok(()) };
                loop {
                    stream.wait(Duration::from_millis(5))?;
                }
            }
            "/" if reply.crowded() => reply.send(Status::Unavailable, ""),
            path => reply.send(Status::Ok, path),
        };
        (address, serve(listener, limits, handler).unwrap())
    }

    fn connect(address: SocketAddr, request: &str) -> TcpStream {
        let mut socket = TcpStream::connect(address).unwrap();
        socket.set_read_timeout(Some(Duration::from_secs(30))).unwrap();
        socket.write_all(request.as_bytes()).unwrap();
        socket
    }

    /// All that comes back.
    fn ask(address: SocketAddr, request: &str) -> String {
        let mut text = String::new();
        connect(address, request).read_to_string(&mut text).unwrap();
        text
    }

    const GET: &str = "GET / HTTP/1.1\r\nHost: x\r\n\r\n";
    const HELD: &str = "GET /held HTTP/1.1\r\nHost: x\r\n\r\n";

    #[test]
    fn a_request_is_answered_and_the_connection_closed() {
        let (address, server) = start(Limits::default());
        let answer = ask(address, GET);
        assert!(answer.starts_with("HTTP/1.1 200 OK\r\n") && answer.ends_with("\r\n\r\n/"), "{answer}");
        let answer = ask(address, "HEAD /abc HTTP/1.1\r\nHost: x\r\n\r\n");
        assert!(answer.contains("Content-Length: 4\r\n") && answer.ends_with("\r\n\r\n"), "{answer}");
        server.finish(Duration::from_secs(30));
        assert_eq!(*server.0.count(), 0);
    }

    #[test]
    fn a_stream_has_an_end_unless_it_was_broken_off() {
        let (address, _server) = start(Limits::default());
        let whole = ask(address, "GET /stream HTTP/1.1\r\nHost: x\r\n\r\n");
        let body = format!("\r\n\r\n3\r\nabc\r\n12c\r\n{}\r\n", "x".repeat(300));
        assert!(
            whole.contains("Transfer-Encoding: chunked") && whole.ends_with(&format!("{body}0\r\n\r\n")),
            "{whole}"
        );
        assert!(ask(address, "GET /broken HTTP/1.1\r\nHost: x\r\n\r\n").ends_with(&body));
        assert!(ask(address, "GET /stream HTTP/1.0\r\n\r\n").starts_with("HTTP/1.1 505 "));
        assert!(ask(address, "HEAD /stream HTTP/1.1\r\nHost: x\r\n\r\n").ends_with("\r\n\r\n"));
    }

    #[test]
    fn what_is_no_request_gets_an_error_that_says_why() {
        let (address, _server) = start(Limits { head_time: Duration::from_millis(200), ..Limits::default() });
        for (request, status) in [
            ("\0\0\0\0", "400 "),
            ("GET / HTTP/1.1\r\n\r\n", "400 "),
            ("DELETE / HTTP/1.1\r\nHost: x\r\n\r\n", "405 "),
            ("GET / HT", "408 "),
            ("", "408 "),
            (&format!("GET /{} HTTP/1.1\r\n", "x".repeat(9000)), "431 "),
            (&format!("POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 50000\r\n\r\n{}", "x".repeat(50_000)), "405 "),
        ] {
            let answer = ask(address, request);
            assert!(answer.starts_with(&format!("HTTP/1.1 {status}")), "{request:?}: {answer:?}");
        }
    }

    /// A drop a time does not keep a connection alive.
    #[test]
    fn the_time_of_a_head_is_counted_from_its_beginning() {
        let (address, server) = start(Limits { head_time: Duration::from_millis(300), ..Limits::default() });
        let mut socket = connect(address, "GET / HTTP/1.1\r\nX: ");
        let begun = Instant::now();
        let (_never, pause) = mpsc::channel::<()>();
        while socket.write_all(b"x").is_ok() {
            assert!(begun.elapsed() < Duration::from_secs(20), "it is still listened to");
            pause.recv_timeout(Duration::from_millis(20)).ok();
        }
        server.finish(Duration::from_secs(30));
        assert_eq!(*server.0.count(), 0);
    }

    #[test]
    fn beyond_the_limit_clients_are_told_to_come_later_and_then_they_are_served() {
        let (address, server) = start(Limits { connections: 3, ..Limits::default() });
        let mut held: Vec<TcpStream> = (0..3).map(|_| connect(address, HELD)).collect();
        for socket in &mut held {
            socket.read_exact(&mut [0; 12]).unwrap(); // it has a place
        }
        assert!(ask(address, GET).starts_with("HTTP/1.1 503 "));
        let short = "GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n";
        assert!(ask(address, short).starts_with("HTTP/1.1 200 "), "what is short is answered all the same");
        // Far more than anybody is told anything: they are closed, and nothing is left of them.
        let crowd: Vec<TcpStream> = (0..100).map(|_| connect(address, "")).collect();
        drop(crowd);
        drop(held);
        server.finish(Duration::from_secs(30));
        assert!(ask(address, GET).starts_with("HTTP/1.1 200 "));
    }

    #[test]
    fn a_client_that_takes_nothing_is_left() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let limits = Limits { stall: Duration::from_millis(200), ..Limits::default() };
        let endless = |_: &Request, reply: Reply<'_>| {
            let Some(mut stream) = reply.stream()? else { return Ok(()) };
            loop {
                stream.chunk(&[b'x'; 65_536])?;
            }
        };
        let server = serve(listener, limits, endless).unwrap();
        let mut socket = connect(address, GET);
        socket.read_exact(&mut [0; 12]).unwrap();
        server.finish(Duration::from_secs(30));
        assert_eq!(*server.0.count(), 0);
    }
}
