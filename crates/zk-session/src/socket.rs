//! The TCP socket that the `zookeeper` crate keeps to itself.
//!
//! The crate has no way to give up on a connection: a request on a silent link is blocked until the kernel gives up,
//! after 940 s. With a duplicate of its descriptor we can cut the connection under it. Nothing of the fence depends on
//! that: where the socket cannot be told from others, a blocked request waits for the kernel.

use std::collections::HashSet;
use std::net::SocketAddr;
use std::os::fd::{BorrowedFd, RawFd};
use std::path::{Path, PathBuf};
use std::time::Duration;

use socket2::Socket;

/// The sockets of this process, each by its inode.
pub(crate) struct Sockets(HashSet<PathBuf>);

impl Sockets {
    /// Those open now.
    pub(crate) fn now() -> Self {
        Sockets(open_sockets().into_iter().map(|(_, inode)| inode).collect())
    }

    /// Duplicates of those opened since.
    pub(crate) fn opened_since(&self) -> Vec<Socket> {
        let new = open_sockets().into_iter().filter(|(_, inode)| !self.0.contains(inode));
        new.filter_map(|(fd, inode)| duplicate(fd, &inode)).collect()
    }
}

/// The one connected to this server; `None` where it is not clear which that is.
pub(crate) fn connected_to(server: SocketAddr, sockets: Vec<Socket>) -> Option<Socket> {
    let is_it = |socket: &Socket| socket.peer_addr().ok().and_then(|peer| peer.as_socket()) == Some(server);
    let mut matching = sockets.into_iter().filter(is_it);
    let found = matching.next()?;
    matching.next().is_none().then_some(found)
}

/// What is not acknowledged within this time is given up by the kernel, so that no request of a session that counts as
/// lost is delivered later, when the link is mended.
pub(crate) fn limit_delivery(socket: &Socket, time: Duration) {
    socket.set_tcp_user_timeout(Some(time)).ok(); // an old kernel: the abortive close does most of it
}

/// Cuts the connection at once and throws away what was not sent.
pub(crate) fn cut(socket: &Socket) {
    socket.set_linger(Some(Duration::ZERO)).ok(); // on a socket that is disconnected already there is nothing to cut
    socket.shutdown(std::net::Shutdown::Both).ok();
}

fn open_sockets() -> Vec<(RawFd, PathBuf)> {
    let entries = std::fs::read_dir("/proc/self/fd").into_iter().flatten().flatten();
    let sockets = entries.filter_map(|entry| {
        let inode = std::fs::read_link(entry.path()).ok()?;
        let fd = entry.file_name().to_str()?.parse().ok()?;
        is_socket(&inode).then_some((fd, inode))
    });
    sockets.collect()
}

fn is_socket(inode: &Path) -> bool {
    inode.to_str().is_some_and(|inode| inode.starts_with("socket:"))
}

fn duplicate(fd: RawFd, inode: &Path) -> Option<Socket> {
    #[expect(unsafe_code, reason = "a descriptor of this process that is known by its number only")]
    // SAFETY: the descriptor is used for one fcntl(F_DUPFD_CLOEXEC). Should its owner close it in between, the call
    // fails or duplicates whatever has the number then, which the comparison below finds out.
    let owned = unsafe { BorrowedFd::borrow_raw(fd) }.try_clone_to_owned().ok()?;
    let socket = Socket::from(owned);
    let now = std::fs::read_link(format!("/proc/self/fd/{}", std::os::fd::AsRawFd::as_raw_fd(&socket))).ok()?;
    (now == inode).then_some(socket)
}
