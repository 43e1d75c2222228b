//! A model of the protocol: the real decision functions of master, worker and client, driven through faults.
//!
//! ```text
//!   plan, View            judge, oversee, report,      next
//!   of zk-master          counts, Starts of zk-worker  of zk-client
//!        │                        │                      │
//!     master ─────────────── worker ──────────────── client      the loops around them, one request a step
//!        └────────────────────────┼──────────────────────┘
//!                               world                            sessions, guards, time, faults, hands
//!                               tree                             znodes with their history
//!                               ledger                           what is promised, seen from outside
//! ```
//!
//! Between any two requests of a process everybody else may do anything. A session is a first-in-first-out line of requests:
//! when the connection breaks, what was sent may be carried out later, or never; a session ends by its expiry, by being
//! opened again and closed, or goes on unseen. Reads see the tree as it was at some time, never going back on a session,
//! and a write brings them up to date. Watches are seen when the session has seen what fires them. Daemons crash with or
//! without their guard, freeze and thaw, lose the quorum behind their server, come back under the same name.
//!
//! Schedules are drawn from a seed ([`mod@walk`]), or all of a small setting are gone through ([`mod@search`]).
//!
//! What is real: every decision, and the primary's bookkeeping of what vanished and who is missing. What is written again
//! here, and so can be right where the daemons are wrong: the order of requests in a loop (`election`, `reading`,
//! `execute`, `connection`, `jobs`, `submit`), each as close to its original as it can be; the primary
//! reads as it does on servers without watches on all below a znode. Not modelled: how the parents
//! come to be, workers registered by hand, two living processes of one name, leaving and drained workers, `--after`,
//! `--key`, time limits, backoff, retention, clocks that drift, a guard that dies alone, undecodable data.
//!
//! Known limit: a hand that deletes `/master` leaves the session of its owner alive, and what that master is just carrying
//! out goes on. It looks at a lost worker's assignment right before it deletes it; but a delete that is already on its way can
//! hit the next primary's assignment at the same path. When moreover that worker and that primary die before either has
//! recorded the start, it is not counted.

mod client;
mod ledger;
mod master;
mod mutation;
mod process;
pub mod search;
mod tree;
pub mod walk;
mod worker;
mod world;

use znode_paths::TaskMeta;

pub use ledger::{Promise, Violation};
pub use mutation::Mutation;

/// What somebody does by hand.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, clap::ValueEnum)]
pub enum Hands {
    /// Nothing.
    None,
    /// Deletes `/master` and registrations, cancels tasks.
    Nodes,
    /// Makes and deletes assignments as well: PROTOCOL section 5 says what is not promised then.
    Assignments,
}

/// A submit, of a client of its own.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Submit {
    /// It may start once only.
    pub no_requeue: bool,
    /// Its command fails.
    pub fails: bool,
    /// How often it is tried again after a failure.
    pub retries: u32,
}

/// Who takes part, and what may go wrong.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Setting {
    /// How many masters there are.
    pub masters: u8,
    /// How many workers.
    pub workers: u8,
    /// How many tasks each runs at once.
    pub slots: u32,
    /// What is submitted.
    pub submits: Vec<Submit>,
    /// How many faults there are, hand actions included.
    pub faults: u8,
    /// Which hand actions.
    pub hands: Hands,
    /// Whether reads may see the tree as it was.
    pub stale: bool,
    /// What is taken out of the protocol.
    pub mutation: Option<Mutation>,
}

impl Setting {
    /// What a client says of a task of this submit.
    fn meta(&self, submit: u8) -> TaskMeta {
        let Submit { no_requeue, retries, .. } = self.submits[usize::from(submit)];
        TaskMeta { no_requeue, retries, ..TaskMeta::new(format!("submit-{submit}")) }
    }
}

impl Default for Setting {
    fn default() -> Self {
        Setting {
            masters: 3,
            workers: 2,
            slots: 1,
            submits: vec![
                Submit { no_requeue: false, fails: false, retries: 0 },
                Submit { no_requeue: true, fails: false, retries: 0 },
                Submit { no_requeue: false, fails: true, retries: 1 },
            ],
            faults: 6,
            hands: Hands::None,
            stale: true,
            mutation: None,
        }
    }
}
