//! The first bytes of a ZooKeeper connection, spoken by ourselves.
//!
//! The `zookeeper` crate says neither what session timeout was granted nor what the session's password is, and it waits
//! for ever for a server that accepts a connection and then is silent. So before it may connect, [`probe`] opens and
//! closes a throw-away session with a deadline, [`close_session`] ends an earlier session of ours, and [`open`] makes a connection for
//! those who speak the protocol themselves.

use std::io::{self, BufReader, Read as _, Write as _};
use std::time::Duration;

use socket2::Socket;

use crate::SessionId;
use crate::jute::Input;
use crate::stream::{PATIENCE, Server, Stream};

/// Longer answers are not from a ZooKeeper server: a `ConnectResponse` has 37 bytes, any other answer here has 16.
const LONGEST_ANSWER: usize = 64;

const CLOSE_SESSION: i32 = -11;

/// Asks a server for a session and closes it: whether it serves, and which session timeout it grants.
///
/// # Errors
/// Not reached, not a ZooKeeper server, or one that serves no sessions now.
pub(crate) fn probe(server: &Server, timeout: Duration) -> io::Result<Duration> {
    let (mut connection, (granted, _)) = new_session(server, timeout)?;
    connection.close_session();
    Ok(granted)
}

/// Opens an earlier session again, under its id and password, and closes it: its ephemerals go in one transaction, and
/// the ensemble refuses whatever of it is still on its way (PROTOCOL section 3, Sessions). Returns false where there was
/// no such session any more, or the server did not accept the password; then it is gone when it expires.
///
/// # Errors
/// The server was not reached, or the answer did not come: the session may or may not be closed.
pub(crate) fn close_session(server: &Server, id: SessionId) -> io::Result<bool> {
    // The timeout is renegotiated on reopening; any will do for the moment it takes.
    let (mut connection, session) = connect(server, PATIENCE, id.0, &password(id))?;
    if session.is_none() {
        return Ok(false);
    }
    connection.send(&request(CLOSE_SESSION))?;
    connection.receive(LONGEST_ANSWER)?;
    Ok(true)
}

/// The password of a session of Apache ZooKeeper: `java.util.Random(id ^ 0xB3415C00).nextBytes(16)`
/// (`SessionTrackerImpl` and `ZooKeeperServer.generatePasswd`).
fn password(id: SessionId) -> [u8; 16] {
    const MULTIPLIER: u64 = 0x5_DEEC_E66D;
    const MASK: u64 = (1 << 48) - 1;
    let mut state = (id.0.cast_unsigned() ^ 0xB341_5C00 ^ MULTIPLIER) & MASK;
    let mut bytes = [0; 16];
    for chunk in bytes.chunks_exact_mut(4) {
        state = state.wrapping_mul(MULTIPLIER).wrapping_add(0xB) & MASK;
        let [.., a, b, c, d] = (state >> 16).to_be_bytes();
        chunk.copy_from_slice(&[d, c, b, a]);
    }
    bytes
}

/// A connection with a session of its own, and the id of that.
///
/// # Errors
/// As [`probe`].
pub(crate) fn open(server: &Server, timeout: Duration) -> io::Result<(Connection, SessionId)> {
    new_session(server, timeout).map(|(connection, (_, id))| (connection, id))
}

fn new_session(server: &Server, timeout: Duration) -> io::Result<(Connection, (Duration, SessionId))> {
    let (connection, session) = connect(server, timeout, 0, &[0; 16])?;
    Ok((connection, session.ok_or_else(|| io::Error::other("it refused a new session"))?))
}

fn connect(
    server: &Server,
    timeout: Duration,
    session: i64,
    password: &[u8; 16],
) -> io::Result<(Connection, Option<(Duration, SessionId)>)> {
    let mut connection = Connection::open(server)?;
    let mut body = Vec::with_capacity(45);
    body.extend(0_i32.to_be_bytes()); // protocol version
    body.extend(0_i64.to_be_bytes()); // the last zxid seen: none
    body.extend(i32::try_from(timeout.as_millis()).unwrap_or(i32::MAX).to_be_bytes());
    body.extend(session.to_be_bytes());
    body.extend(16_i32.to_be_bytes());
    body.extend(password);
    body.push(0); // not read-only
    connection.send(&body)?;
    let answer = connection.receive(LONGEST_ANSWER)?;
    Ok((connection, granted(&answer)?))
}

/// The session timeout and the id in a `ConnectResponse`; nothing where the session is refused.
pub(crate) fn granted(answer: &[u8]) -> io::Result<Option<(Duration, SessionId)>> {
    let mut input = Input(answer);
    let mut read = || Ok((input.int()?, input.int()?, input.long()?, input.buffer()?));
    let (_version, granted, id, _password) = read().map_err(|_: io::Error| not_zookeeper())?;
    let granted = u64::try_from(granted).ok().filter(|&ms| ms > 0);
    Ok(granted.map(|ms| (Duration::from_millis(ms), SessionId(id))))
}

fn request(opcode: i32) -> Vec<u8> {
    [1_i32.to_be_bytes(), opcode.to_be_bytes()].concat()
}

fn not_zookeeper() -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, "its answer is not ZooKeeper's")
}

/// A connection on which every answer has a deadline.
pub(crate) struct Connection {
    stream: BufReader<Stream>,
    patience: Duration,
}

/// How much is read at once where much is coming.
const BUFFER: usize = 64 * 1024;

impl Connection {
    fn open(server: &Server) -> io::Result<Self> {
        Ok(Connection { stream: BufReader::with_capacity(BUFFER, server.connect()?), patience: PATIENCE })
    }

    /// How long each answer may take from now on, and how long the server may leave our requests where they are.
    pub(crate) fn set_patience(&mut self, patience: Duration) -> io::Result<()> {
        self.patience = patience;
        self.stream.get_ref().socket().set_write_timeout(Some(patience))
    }

    /// A duplicate of its socket.
    pub(crate) fn socket(&self) -> io::Result<Socket> {
        self.stream.get_ref().socket().try_clone().map(Socket::from)
    }

    pub(crate) fn send(&mut self, body: &[u8]) -> io::Result<()> {
        self.send_all(&[body.to_vec()])
    }

    /// Sends several requests by one system call, as far as the kernel takes them.
    pub(crate) fn send_all(&mut self, bodies: &[Vec<u8>]) -> io::Result<()> {
        let mut frames = Vec::with_capacity(bodies.iter().map(|body| body.len() + 4).sum());
        for body in bodies {
            frames.extend(i32::try_from(body.len()).expect("requests made here are short").to_be_bytes());
            frames.extend(body);
        }
        let stream = self.stream.get_mut();
        stream.write_all(&frames)?;
        stream.flush()?;
        stream.allow(self.patience);
        Ok(())
    }

    /// The next answer has all its time from now on.
    pub(crate) fn wait_anew(&mut self) {
        self.stream.get_mut().allow(self.patience);
    }

    /// Says goodbye. Nobody waits for the answer: if the request is lost, the session expires by itself.
    pub(crate) fn close_session(&mut self) {
        self.send(&request(CLOSE_SESSION)).ok();
    }

    /// The next answer, of at most so many bytes.
    pub(crate) fn receive(&mut self, limit: usize) -> io::Result<Vec<u8>> {
        let mut length = [0; 4];
        self.read_exact(&mut length)?;
        if length.starts_with(&TLS_ALERT) {
            return Err(io::Error::new(io::ErrorKind::InvalidData, "it wants TLS (--tls-ca)"));
        }
        let length = usize::try_from(i32::from_be_bytes(length)).ok().filter(|&length| length <= limit);
        let mut answer = vec![0; length.ok_or_else(not_zookeeper)?];
        self.read_exact(&mut answer)?;
        self.stream.get_mut().allow(self.patience);
        Ok(answer)
    }

    fn read_exact(&mut self, buffer: &mut [u8]) -> io::Result<()> {
        self.stream.read_exact(buffer).map_err(|error| match error.kind() {
            io::ErrorKind::UnexpectedEof => {
                let what =
                    "it closed the connection: it is not serving, wants TLS (--tls-ca), or is not a ZooKeeper server";
                io::Error::new(error.kind(), what)
            }
            _ => error,
        })
    }
}

/// How a server that speaks TLS may answer what is not: an alert of any version of TLS (RFC 8446, section 5.1).
const TLS_ALERT: [u8; 2] = [21, 3];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_password_is_what_java_draws() {
        // jshell> var b = new byte[16]; new Random(id ^ 0XB3415C00L).nextBytes(b)
        let hex = |id| password(SessionId(id)).map(|byte| format!("{byte:02x}")).concat();
        assert_eq!(hex(0x1000_0000_0000_0000), JAVA_1);
        assert_eq!(hex(-2), JAVA_2);
    }

    const JAVA_1: &str = "f22acd4a97e69d6d20a49bb638eadb38";
    const JAVA_2: &str = "0dd532b5c441e3927c04b55e50fd9421";
}
