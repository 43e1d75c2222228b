//! Where a daemon listens.

use std::fmt;
use std::io;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener};
use std::str::FromStr;

use crate::client;

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

/// Whoever listens there is not well, or nobody does.
#[derive(Debug, thiserror::Error)]
#[error("not well at {listen}: {why}")]
pub struct Unwell {
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

    /// Whether others than the processes of this host may be able to connect.
    pub fn is_public(self) -> bool {
        match self {
            Listen::Off => false,
            Listen::Everywhere(_) => true,
            Listen::At(address) => !address.ip().to_canonical().is_loopback(),
        }
    }

    /// Asks the daemon that listens like this on the same host whether it is well.
    ///
    /// # Errors
    /// It says that it is not, or it does not answer.
    pub fn health(self) -> Result<(), Unwell> {
        let asked = match self.local_address() {
            Some(address) => client::health(address),
            None => Err(io::Error::other("it listens nowhere")),
        };
        asked.map_err(|why| Unwell { listen: self, why })
    }

    fn local_address(self) -> Option<SocketAddr> {
        match self {
            Listen::Off => None,
            Listen::Everywhere(port) => Some((Ipv4Addr::LOCALHOST, port).into()),
            Listen::At(SocketAddr::V4(at)) if at.ip().is_unspecified() => Some((Ipv4Addr::LOCALHOST, at.port()).into()),
            Listen::At(SocketAddr::V6(at)) if at.ip().is_unspecified() => Some((Ipv6Addr::LOCALHOST, at.port()).into()),
            Listen::At(address) => Some(address),
        }
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
    fn only_this_host_can_reach_a_loopback_address() {
        for (listen, public) in [
            ("off", false),
            ("127.8.0.1:1", false),
            ("[::1]:1", false),
            ("[::ffff:127.0.0.1]:1", false),
            ("0.0.0.0:1", true),
            ("[::]:1", true),
            ("10.0.0.1:1", true),
        ] {
            assert_eq!(listen.parse::<Listen>().unwrap().is_public(), public, "{listen}");
        }
        assert!(Listen::Everywhere(1).is_public());
    }

    #[test]
    fn whoever_listens_is_asked_from_the_same_host() {
        for (listen, address) in [
            ("127.0.0.2:1", "127.0.0.2:1"),
            ("0.0.0.0:1", "127.0.0.1:1"),
            ("[::1]:1", "[::1]:1"),
            ("[::]:1", "[::1]:1"),
        ] {
            assert_eq!(listen.parse::<Listen>().unwrap().local_address(), Some(address.parse().unwrap()));
        }
        assert_eq!(Listen::Everywhere(1).local_address(), Some(([127, 0, 0, 1], 1).into()));
        let nowhere = Listen::Off.health().unwrap_err().to_string();
        assert_eq!(nowhere, "not well at off: it listens nowhere");
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
