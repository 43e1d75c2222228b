//! A way for the `zookeeper` crate, which speaks plain TCP only, to a server that wants TLS.
//!
//! ```text
//!  the crate ──plain, on the loopback interface──▶ relay ──TLS──▶ server
//! ```
//!
//! A session has a relay of its own. It takes one connection, and only from a socket of this process; then nobody listens
//! any more. What breaks on one side is cut on the other at once: to the session it is one connection.

use std::io::{self, Read as _, Write as _};
use std::net::{Ipv4Addr, Shutdown, SocketAddr};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::Instant;

use rustls::ClientConnection;
use socket2::{Domain, Socket, Type};

use crate::socket;
use crate::stream::{PATIENCE, Server};
use crate::tls::Peer;

/// How much is taken at once from either side: what a record of TLS holds at the most.
const BUFFER: usize = 16 * 1024;

/// A relay that is connected to its server and waits for the crate.
pub(crate) struct Relay {
    door: Door,
    server: Socket,
    tls: ClientConnection,
}

impl Relay {
    /// Makes sure that the server is who it should be, then listens.
    pub(crate) fn to(server: &Server, peer: &Peer) -> io::Result<Relay> {
        let (tls, connected) = server.connect_securely(peer)?;
        // From here on the session sees to the deadlines: it cuts the connection.
        connected.socket.set_read_timeout(None)?;
        connected.socket.set_write_timeout(None)?;
        Ok(Relay { door: Door::new()?, server: connected.socket.into(), tls })
    }

    /// Where the crate is to connect.
    pub(crate) fn address(&self) -> SocketAddr {
        self.door.address
    }

    /// Takes the connection that was made from one of these sockets, and carries what comes until one side ends. Returns
    /// the sockets of both sides: they are to be cut with the session.
    pub(crate) fn start(self, own: &[Socket]) -> io::Result<[Socket; 2]> {
        let crate_side = self.door.accept(own)?;
        crate_side.set_tcp_nodelay(true)?;
        let sockets = [self.server.try_clone()?, crate_side.try_clone()?];
        let link = Arc::new(Link { plain: crate_side, server: self.server, tls: Mutex::new(self.tls) });
        for direction in [Link::seal, Link::open] {
            let link = link.clone();
            let carry = move || {
                let ended = direction(&link);
                link.cut();
                log::debug!("relay ended: {ended:?}");
            };
            if let Err(error) = thread::Builder::new().name("zk-relay".into()).spawn(carry) {
                sockets.iter().for_each(socket::cut);
                return Err(error);
            }
        }
        Ok(sockets)
    }
}

/// Where one connection is taken.
struct Door {
    listener: Socket,
    address: SocketAddr,
}

impl Door {
    fn new() -> io::Result<Door> {
        let listener = Socket::new(Domain::IPV4, Type::STREAM, None)?;
        listener.bind(&SocketAddr::from((Ipv4Addr::LOCALHOST, 0)).into())?;
        listener.listen(1)?;
        let address = listener.local_addr()?.as_socket().ok_or(io::ErrorKind::AddrNotAvailable)?;
        Ok(Door { listener, address })
    }

    /// The connection of one of these sockets; then nobody listens any more.
    fn accept(self, own: &[Socket]) -> io::Result<Socket> {
        let until = Instant::now() + PATIENCE;
        loop {
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Err(io::Error::new(io::ErrorKind::TimedOut, "the relay was not connected to"));
            }
            self.listener.set_read_timeout(Some(left))?; // accept(2) keeps to it as well (socket(7), SO_RCVTIMEO)
            match self.listener.accept() {
                // No other process can have a socket with these two ends.
                Ok((accepted, peer)) if own.iter().any(|own| own.local_addr().is_ok_and(|local| local == peer)) => {
                    accepted.set_read_timeout(None)?; // which it has from the listener
                    return Ok(accepted);
                }
                Ok((_, peer)) => log::warn!("refused a foreign connection to a relay peer={:?}", peer.as_socket()),
                Err(error) if matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted) => {}
                Err(error) => return Err(error),
            }
        }
    }
}

/// The two sides of a relay.
struct Link {
    plain: Socket,
    server: Socket,
    /// Never held while waiting for a socket: both directions need it.
    tls: Mutex<ClientConnection>,
}

impl Link {
    /// From the crate to the server, until the crate's side ends. This direction alone writes to the server, so records go
    /// out in their order; what TLS itself has to say, an answer to a change of keys, goes before the next data.
    fn seal(&self) -> io::Result<()> {
        let (mut data, mut records) = (vec![0; BUFFER], Vec::new());
        loop {
            let length = (&self.plain).read(&mut data)?;
            if length == 0 {
                return Ok(());
            }
            {
                let mut tls = self.tls.lock().unwrap_or_else(PoisonError::into_inner);
                tls.writer().write_all(&data[..length])?;
                while tls.wants_write() {
                    tls.write_tls(&mut records)?;
                }
            }
            (&self.server).write_all(&records)?;
            records.clear();
        }
    }

    /// From the server to the crate, until the server's side ends.
    fn open(&self) -> io::Result<()> {
        let (mut records, mut data) = (vec![0; BUFFER], Vec::new());
        loop {
            let length = (&self.server).read(&mut records)?;
            let mut rest = &records[..length];
            let mut ended = length == 0;
            {
                let mut tls = self.tls.lock().unwrap_or_else(PoisonError::into_inner);
                while !rest.is_empty() && !ended {
                    tls.read_tls(&mut rest)?;
                    let state = tls.process_new_packets().map_err(io::Error::other)?;
                    ended = state.peer_has_closed();
                    let from = data.len();
                    data.resize(from + state.plaintext_bytes_to_read(), 0);
                    tls.reader().read_exact(&mut data[from..])?;
                }
            }
            (&self.plain).write_all(&data)?;
            data.clear();
            if ended {
                return Ok(());
            }
        }
    }

    /// What the server has sent still reaches the crate; what the crate has sent goes nowhere any more.
    fn cut(&self) {
        socket::cut(&self.server);
        self.plain.shutdown(Shutdown::Both).ok(); // it may be at its end already
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::TcpStream;

    #[test]
    fn a_relay_takes_its_own_connection_and_no_other() {
        let door = Door::new().unwrap();
        let address = door.address;
        let mut stranger = TcpStream::connect(address).unwrap();
        let own = TcpStream::connect(address).unwrap();
        let accepted = door.accept(&[own.try_clone().unwrap().into()]).unwrap();
        assert_eq!(accepted.peer_addr().unwrap().as_socket(), Some(own.local_addr().unwrap()));
        assert!(matches!(stranger.read(&mut [0]), Ok(0) | Err(_)), "it was hung up on");
        assert!(TcpStream::connect(address).is_err(), "nobody listens any more");
    }
}
