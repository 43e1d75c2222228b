//! Where a daemon listens.

use std::fmt;
use std::io;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener};
use std::str::FromStr;

/// The value of `--listen`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Listen {
    /// Nowhere.
    Off,
    /// On this port of all interfaces.
    Everywhere(u16),
    /// At this address.
    At(SocketAddr),
}

/// Nobody can listen there.
#[derive(Debug, thiserror::Error)]
#[error("cannot listen at {listen}, choose another address with --listen, or off: {why}")]
pub struct ListenError {
    listen: Listen,
    why: io::Error,
}

impl FromStr for Listen {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "off" => Ok(Listen::Off),
            _ => text.parse().map(Listen::At).map_err(|_| "it is ADDR:PORT, such as 0.0.0.0:2224, or off".to_owned()),
        }
    }
}

impl fmt::Display for Listen {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Listen::Off => f.write_str("off"),
            Listen::Everywhere(port) => write!(f, "*:{port}"),
            Listen::At(address) => write!(f, "{address}"),
        }
    }
}

impl Listen {
    /// Starts to listen; nothing with `off`.
    ///
    /// # Errors
    /// The port is taken, the address is not of this host, or the system does not allow it.
    pub fn bind(self) -> Result<Option<TcpListener>, ListenError> {
        let bound = match self {
            Listen::Off => return Ok(None),
            Listen::At(address) => TcpListener::bind(address),
            // Where there is IPv6, this takes connections of both kinds (ipv6(7), bindv6only).
            Listen::Everywhere(port) => match TcpListener::bind((Ipv6Addr::UNSPECIFIED, port)) {
                Err(error) if error.kind() != io::ErrorKind::AddrInUse => {
                    TcpListener::bind((Ipv4Addr::UNSPECIFIED, port))
                }
                bound => bound,
            },
        };
        bound.map(Some).map_err(|why| ListenError { listen: self, why })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_an_address_with_a_port_or_off() {
        assert_eq!("off".parse(), Ok(Listen::Off));
        assert_eq!("127.0.0.1:80".parse(), Ok(Listen::At(([127, 0, 0, 1], 80).into())));
        assert!(matches!("[::]:2224".parse(), Ok(Listen::At(SocketAddr::V6(_)))));
        for bad in ["", "on", "2224", "127.0.0.1", ":2224", "localhost:2224", "127.0.0.1:65536"] {
            assert!(bad.parse::<Listen>().is_err(), "{bad:?}");
        }
    }

    #[test]
    fn a_taken_port_is_an_error_that_names_it() {
        let first = Listen::At(([127, 0, 0, 1], 0).into()).bind().unwrap().unwrap();
        let port = first.local_addr().unwrap().port();
        for second in [Listen::At(([127, 0, 0, 1], port).into()), Listen::Everywhere(port)] {
            let text = second.bind().unwrap_err().to_string();
            assert!(text.contains(&port.to_string()) && text.contains("--listen"), "{text}");
        }
        assert!(Listen::Off.bind().unwrap().is_none());
    }
}
