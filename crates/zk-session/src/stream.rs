//! A connection to a server, in plain TCP or TLS, on which every step has a deadline.

use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::{Duration, Instant};

use rustls::{ClientConnection, StreamOwned};

use crate::tls::{self, Peer};

/// How long a server may take for each step of a handshake. A server that needs longer than this to make a session is
/// of no use: a session timeout is of the same order.
pub(crate) const PATIENCE: Duration = Duration::from_secs(2);

/// A server, and how to speak with it.
#[derive(Debug, Clone)]
pub(crate) struct Server {
    pub(crate) address: SocketAddr,
    /// Nothing for plain TCP.
    pub(crate) tls: Option<Peer>,
}

impl Server {
    pub(crate) fn connect(&self) -> io::Result<Stream> {
        match &self.tls {
            None => self.socket().map(Stream::Plain),
            Some(peer) => {
                let (tls, socket) = self.connect_securely(peer)?;
                Ok(Stream::Tls(Box::new(StreamOwned::new(tls, socket))))
            }
        }
    }

    pub(crate) fn connect_securely(&self, peer: &Peer) -> io::Result<(ClientConnection, Timed)> {
        let mut socket = self.socket()?;
        let tls = peer.shake_hands(&mut socket)?;
        Ok((tls, socket))
    }

    fn socket(&self) -> io::Result<Timed> {
        let socket = TcpStream::connect_timeout(&self.address, PATIENCE)?;
        socket.set_write_timeout(Some(PATIENCE))?;
        socket.set_nodelay(true)?;
        Ok(Timed { socket, until: Instant::now() + PATIENCE })
    }
}

/// A socket whose reads have a common deadline, also when the other side sends one byte at a time.
pub(crate) struct Timed {
    pub(crate) socket: TcpStream,
    until: Instant,
}

impl Read for Timed {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        loop {
            let left = self.until.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Err(io::Error::new(io::ErrorKind::TimedOut, "it accepts connections but does not answer"));
            }
            self.socket.set_read_timeout(Some(left))?;
            match self.socket.read(buffer) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {} // the deadline, looked at above
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                read => return read,
            }
        }
    }
}

impl Write for Timed {
    fn write(&mut self, buffer: &[u8]) -> io::Result<usize> {
        self.socket.write(buffer)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// A connection.
pub(crate) enum Stream {
    Plain(Timed),
    Tls(Box<StreamOwned<ClientConnection, Timed>>),
}

impl Stream {
    /// From now on reads have so long.
    pub(crate) fn allow(&mut self, time: Duration) {
        let socket = match self {
            Stream::Plain(socket) => socket,
            Stream::Tls(stream) => &mut stream.sock,
        };
        socket.until = Instant::now() + time;
    }

    pub(crate) fn socket(&self) -> &TcpStream {
        match self {
            Stream::Plain(socket) => &socket.socket,
            Stream::Tls(stream) => &stream.sock.socket,
        }
    }
}

impl Read for Stream {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        match self {
            Stream::Plain(socket) => socket.read(buffer),
            Stream::Tls(stream) => match stream.read(buffer) {
                // Whoever ends a connection without the goodbye of TLS has ended it; a length says what is whole here.
                Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => Ok(0),
                read => read.map_err(tls::explained),
            },
        }
    }
}

impl Write for Stream {
    fn write(&mut self, buffer: &[u8]) -> io::Result<usize> {
        match self {
            Stream::Plain(socket) => socket.write(buffer),
            Stream::Tls(stream) => stream.write(buffer).map_err(tls::explained),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        match self {
            Stream::Plain(socket) => socket.flush(),
            Stream::Tls(stream) => stream.flush(),
        }
    }
}
