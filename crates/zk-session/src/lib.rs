//! One ZooKeeper session that ends when its connection does, and never lies about it.
//!
//! The only crate of the workspace that names `zookeeper::`. Release 0.8.0 of that crate, left alone, opens a *new*
//! session on the same handle when the old one has expired, without a word: a deposed master goes on writing. It waits
//! 940 s for a link that is silently down, connects 30,000 times a second to a server that refuses, panics where no
//! network is. So here one [`Session`] is one handle, one session, one TCP connection, and there is no way back:
//!
//! ```text
//!             first request answered                 close()
//!  open() ────────────────────────▶ UP ─────────────────────────────▶ closed by the server
//!    │                               │ any change of the connection, a heartbeat that fails,
//!    │ not reached, not serving      │ no heartbeat answered that was sent within 2/3 of the timeout
//!    ▼                               ▼
//!  OpenError                     LOST, Event::Lost in the mailbox: whoever needs a session opens another one
//! ```
//!
//! What holds, each with a test in `tests/`:
//!
//! * **Fence.** No request is ever executed for a session but the one it was made on. ZooKeeper orders every write of a
//!   session before that session's end, so all writes of a primary on the session that owns `/master` come before the
//!   removal of `/master`.
//! * **Detection.** A loss is known at the latest 2/3 of the granted session timeout after the last heartbeat that was
//!   answered was *sent*, whatever became of the server or the link, and no caller is blocked for longer.
//! * **Nothing is left** after a loss: no thread, no descriptor, no attempt to reconnect, no late request.
//!
//! To a server that wants TLS the connection goes through a relay in this process (`relay`), which ends with it.
//!
//! A notification is a hint to read again, never the news itself; after a loss there is nothing to restore: open, read
//! all, set the watches. Deliberately absent: reconnecting, caching, retries, chroots of the `zookeeper` crate,
//! its recipes and its per-call watchers (`_w`), which leak.
//!
//! Who reads or writes much has a second connection for that (`bulk`), with transactions, which the crate does not know. It
//! ends with the first, and what is written there is under the same fence ([`Session::commit_each`]).

mod acl;
mod bulk;
mod connect;
mod error;
mod flow;
mod following;
mod handshake;
mod jute;
mod opening;
mod parallel;
mod relay;
mod session;
mod socket;
mod stream;
mod tls;

use std::fmt;
use std::sync::Arc;
use std::time::{Duration, Instant};

pub use acl::{DigestId, NoDigestId, Others};
pub use connect::{ConnectString, ConnectStringError};
pub use error::{Error, OpenError, Reason};
pub use following::Following;
pub use opening::{Opening, end_session, open_in_background};
pub use parallel::in_parallel;
pub use session::{Change, Committed, Event, Kind, MAX_REQUEST, Notify, Read, Session, Stat, Write};
pub use tls::{Tls, TlsError};

#[cfg(panic = "abort")]
compile_error!("the fence ends a thread of the zookeeper crate by unwinding: build with panic = \"unwind\"");

/// Decodes anything as what a server says, for fuzz targets: it must not panic, whatever that is.
#[doc(hidden)]
pub fn decode(bytes: &[u8]) {
    jute::decode(bytes);
}

/// How to reach an ensemble.
#[derive(Clone)]
pub struct Config {
    /// Its servers, and our folder in its tree.
    pub connect: ConnectString,
    /// The session timeout to ask for; what the server grants is what counts.
    pub timeout: Duration,
    /// `user:password` of ZooKeeper's digest scheme; with it every znode made is for that identity only.
    pub digest: Option<String>,
    /// Who else has rights in what is made; nothing for nobody. Of no effect without an identity.
    pub others: Option<Others>,
    /// How to speak TLS; nothing for plain TCP.
    pub tls: Option<Tls>,
    /// Who is told of the sessions that have a node of their own.
    pub witness: Option<Arc<dyn Witness>>,
}

impl Config {
    /// For plain connections without an identity, of which nobody is told.
    pub fn new(connect: ConnectString, timeout: Duration) -> Config {
        Config { connect, timeout, digest: None, others: None, tls: None, witness: None }
    }
}

impl fmt::Debug for Config {
    /// Without the password.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Config").field("connect", &self.connect).field("timeout", &self.timeout).finish_non_exhaustive()
    }
}

/// Somebody outside this process who must know its sessions: to end them when the process dies, and to kill what it runs
/// when it cannot prove for too long that it is registered.
pub trait Witness: fmt::Debug + Send + Sync {
    /// A session has a node of its own. Called before the caller of [`Session::own`] can use that.
    fn owns(&self, session: SessionId, timeout: Duration);

    /// A write to the own node was acknowledged that was sent at this time.
    fn proved(&self, sent: Instant);
}

/// The id by which the ensemble knows a session.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct SessionId(pub i64);

impl SessionId {
    /// Which server of the ensemble has made it (`SessionTrackerImpl.initializeNextSessionId`).
    pub(crate) fn server(self) -> u8 {
        self.0.to_be_bytes()[0]
    }
}

impl fmt::Display for SessionId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:#x}", self.0)
    }
}

impl fmt::Debug for SessionId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}
