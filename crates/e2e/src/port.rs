//! Ports that nobody else gets.

use std::net::{Ipv4Addr, TcpListener, UdpSocket};

/// A free TCP port of the loopback address, ours until it is dropped, also while nobody listens on it.
///
/// It lies below the ports that the kernel gives to outgoing connections (from 32768). Otherwise a client that tries again and
/// again to reach a stopped server would sooner or later get the server's port as its own, connect to itself, and keep the
/// server from starting again.
#[derive(Debug)]
pub struct Port {
    number: u16,
    /// A UDP socket on the same number excludes every other test process that asks for a port here, and ends with us.
    _claim: UdpSocket,
}

impl Port {
    /// Claims a port.
    #[must_use]
    pub fn claim() -> Port {
        for _ in 0..1000 {
            let number = fastrand::u16(10_000..32_000);
            let Ok(claim) = UdpSocket::bind((Ipv4Addr::LOCALHOST, number)) else { continue };
            if TcpListener::bind((Ipv4Addr::UNSPECIFIED, number)).is_ok() {
                return Port { number, _claim: claim };
            }
        }
        panic!("no free port in 1000 tries");
    }

    /// Its number.
    #[must_use]
    pub fn number(&self) -> u16 {
        self.number
    }

    /// `127.0.0.1:port`
    #[must_use]
    pub fn address(&self) -> String {
        format!("{}:{}", Ipv4Addr::LOCALHOST, self.number)
    }
}
