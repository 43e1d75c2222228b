//! What the end-to-end tests stand on: real daemons, a real ZooKeeper, a real `zkCli.sh`, real partitions.
//!
//! - [`Server`] and [`Ensemble`]: private ZooKeeper servers that can be killed, frozen and started again.
//! - [`Daemon`]: one of our programs, its output, and signals to it.
//! - [`ZkCli`]: a session of the stock `zkCli.sh`: a person who plays a role by hand.
//! - [`Authority`]: makes certificates for servers and clients.
//! - [`Hosts`]: machines of their own (network namespaces) whose link can be cut silently.
//! - [`Fake`]: a server that behaves badly, or just well enough to count what a client does.
//! - [`trace`]: a thread that stands still, a process that does not die.
//! - [`txnlog`]: what a server committed, and under which session, read from its disk: evidence that no client can forge.
//! - [`Cluster`]: three servers, masters and workers with tasks that leave [`evidence`], judged by what really happened.
//! - [`Compose`] and [`Containers`]: the cluster of `docker-compose.yml`, and the same with tasks of that kind.
//! - [`Wire`]: a way to a server on which a test decides which request still arrives.
//! - [`wait_for`]: the only way to wait. Nothing here sleeps: a wait asks again until what it wants to see is there.
//!
//! Every process, directory and namespace made here is gone when the value that stands for it is dropped, and also when the
//! test process dies without dropping anything: processes get SIGKILL from the kernel (`process`), the rest is removed by a
//! small shell that outlives us (`janitor`).
//!
//! What goes wrong in the harness itself is a panic with a sentence: there is nothing a test could do about it.

pub mod certificates;
pub mod cli;
pub mod cluster;
pub mod compose;
pub mod containers;
pub mod daemon;
pub mod evidence;
pub mod fake;
mod janitor;
pub mod joined;
mod jute;
pub mod netns;
pub mod port;
mod process;
pub mod server;
pub mod trace;
pub mod tree;
pub mod txnlog;
pub mod wait;
pub mod wire;
pub mod workload;

pub use certificates::{Authority, Issued};
pub use cli::ZkCli;
pub use cluster::Cluster;
pub use compose::Compose;
pub use containers::Containers;
pub use daemon::Daemon;
pub use fake::{Act, Fake};
pub use netns::{Host, Hosts};
pub use port::Port;
pub use rustix::process::Signal;
pub use server::{Ensemble, Secure, Server, Setup};
pub use tree::{Picture, Tree};
pub use txnlog::{Txn, TxnKind};
pub use wait::{stays, wait_for, wait_within};
pub use wire::{Request, Wire};
pub use workload::Workload;

/// What a test needs but a machine may not have (such as [`Hosts`]), or `None` after one line that says why the test is
/// skipped. With `E2E=required` in the environment the lack is a failure, so that a skip cannot hide.
#[track_caller]
#[expect(clippy::print_stderr, reason = "a skipped test says so")]
pub fn available<T>(found: Result<T, String>) -> Option<T> {
    match found {
        Ok(found) => Some(found),
        Err(lack) if std::env::var_os("E2E").is_some_and(|value| value == "required") => {
            panic!("E2E=required, but {lack}")
        }
        Err(lack) => {
            eprintln!("skipped: {lack}");
            None
        }
    }
}
