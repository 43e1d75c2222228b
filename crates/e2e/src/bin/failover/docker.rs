//! The table for the cluster of `docker-compose.yml`: what Docker can do to containers, and what came of it.

use std::time::Duration;

use e2e::{Containers, stays};
use znode_paths::{TaskName, paths};

use crate::{
    Came, attend,
    faults::{CALM, LATE, Mark, now_ms, recorded, taken_over},
    print, say,
    table::{LONG, Row, SHORT, WHEN_GONE, print_heads},
};

/// What is done to a container.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Hurt {
    Stop,
    Kill,
    Pause,
    Disconnect,
}

impl Hurt {
    #[track_caller]
    fn strike(self, site: &Containers, service: &str) {
        match self {
            Hurt::Stop => site.docker("stop", service),
            Hurt::Kill => site.docker("kill", service),
            Hurt::Pause => site.docker("pause", service),
            Hurt::Disconnect => site.disconnect(service),
        }
    }

    #[track_caller]
    fn heal(self, site: &Containers, service: &str) {
        match self {
            Hurt::Stop | Hurt::Kill => site.docker("start", service),
            Hurt::Pause => site.docker("unpause", service),
            Hurt::Disconnect => site.connect(service),
        }
        site.settle();
    }
}

/// Whom it is done to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Whom {
    Nobody,
    Primary,
    Worker,
    /// A server that is in this mode.
    Server(&'static str),
}

struct Entry(&'static str, Whom, Hurt);

/// What docker itself takes to do something, and each time counts it in.
const DOCKER: Duration = Duration::from_millis(100);

/// What waits for no session timeout, at a long one.
const LIVE: [Entry; 9] = [
    Entry("nothing", Whom::Nobody, Hurt::Stop),
    Entry("primary: docker stop", Whom::Primary, Hurt::Stop),
    Entry("worker: docker stop", Whom::Worker, Hurt::Stop),
    Entry("ZooKeeper follower: docker kill", Whom::Server("follower"), Hurt::Kill),
    Entry("ZooKeeper follower: paused and thawed", Whom::Server("follower"), Hurt::Pause),
    Entry("ZooKeeper follower: off the network and on", Whom::Server("follower"), Hurt::Disconnect),
    Entry("ZooKeeper leader: docker kill", Whom::Server("leader"), Hurt::Kill),
    Entry("ZooKeeper leader: paused and thawed", Whom::Server("leader"), Hurt::Pause),
    Entry("ZooKeeper leader: off the network and on", Whom::Server("leader"), Hurt::Disconnect),
];

/// What waits for one, at a short one.
const GONE: [Entry; 6] = [
    Entry("primary: docker kill", Whom::Primary, Hurt::Kill),
    Entry("primary: paused and thawed", Whom::Primary, Hurt::Pause),
    Entry("primary: off the network and on", Whom::Primary, Hurt::Disconnect),
    Entry("worker: docker kill", Whom::Worker, Hurt::Kill),
    Entry("worker: paused and thawed", Whom::Worker, Hurt::Pause),
    Entry("worker: off the network and on", Whom::Worker, Hurt::Disconnect),
];

impl Entry {
    fn row(&self, times: u32) -> Row {
        let Entry(name, whom, hurt) = *self;
        let goal = match (whom, hurt) {
            (Whom::Nobody, _) | (Whom::Worker, Hurt::Stop) => None,
            (Whom::Primary, Hurt::Stop) => Some(Duration::from_millis(300)),
            (Whom::Primary | Whom::Worker, _) => Some(WHEN_GONE + DOCKER),
            (Whom::Server(_), Hurt::Kill) => Some(Duration::from_secs(1)),
            // Who was connected to it notices by its silence.
            (Whom::Server(_), _) => None,
        };
        let interrupts = whom == Whom::Worker && hurt != Hurt::Stop;
        Row { name, times, goal, interrupts, thaws: whom == Whom::Worker && hurt == Hurt::Pause }
    }

    #[track_caller]
    fn inflict(&self, site: &Containers, tasks: &mut Vec<TaskName>) -> Mark {
        let Entry(_, whom, hurt) = *self;
        match (whom, hurt) {
            (Whom::Nobody, _) => {
                stays("calm", CALM, || Ok(()));
                Mark::None
            }
            (Whom::Primary, _) => {
                let address = site.load.tree.text(paths::MASTER).expect("it is settled");
                let victim = address.split('.').next().expect("a split has a first part");
                let mark = taken_over(&site.load, tasks, || hurt.strike(site, victim));
                hurt.heal(site, victim);
                mark
            }
            (Whom::Worker, Hurt::Stop) => {
                hurt.strike(site, "worker1");
                hurt.heal(site, "worker1");
                Mark::None
            }
            (Whom::Worker, _) => {
                let (host, at_ns) = recorded(&site.load, tasks, LATE, |host| hurt.strike(site, host));
                hurt.heal(site, &host);
                // The next one finds as many free slots.
                site.load.tree.wait_status(*tasks.last().expect("it was submitted"));
                Mark::Worker { host, at_ns }
            }
            (Whom::Server(mode), _) => {
                let victim = site.server(mode);
                let mut at_ms = now_ms();
                hurt.strike(site, victim);
                if mode == "leader" {
                    let _next = site.server("leader");
                    at_ms = now_ms();
                }
                let task = site.load.submit(Duration::ZERO);
                tasks.push(task);
                site.load.tree.wait_status(task);
                hurt.heal(site, victim);
                Mark::Servers { at_ms, until_ms: now_ms() }
            }
        }
    }
}

/// Prints it line by line; returns whether all went well.
pub(crate) fn print_all(times: Option<u32>, only: &str) -> bool {
    let mut well = true;
    print_heads();
    for (entries, session_timeout) in [(&LIVE[..], LONG), (&GONE[..], SHORT)] {
        let chosen: Vec<&Entry> = entries.iter().filter(|entry| entry.0.contains(only)).collect();
        if chosen.is_empty() {
            continue;
        }
        say(&format!("starting the containers with a session timeout of {} s", session_timeout.as_secs()));
        let mut site = match Containers::start(session_timeout) {
            Ok(site) => site,
            Err(lack) => {
                say(&lack);
                return false;
            }
        };
        let came = attend(&mut site, &format!("docker-{}s", session_timeout.as_secs()), |site| {
            let mut known = 0;
            let mut well = true;
            for entry in chosen {
                let often = if entry.1 == Whom::Nobody { 1 } else { times.unwrap_or(3) };
                well &= entry.row(often).fill(site, &mut known, |site, tasks| vec![entry.inflict(site, tasks)]);
            }
            well
        });
        well &= came == Came::Kept;
    }
    print(if well { "kept: all promises and goals" } else { "MISSED: see above" });
    well
}
