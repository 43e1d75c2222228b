//! The faults of the table: each is done, healed, and leaves a mark by which its consequences are found in the evidence.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use e2e::{
    Cluster, Workload,
    cluster::Member,
    evidence::{self, History, Run},
    stays, wait_for,
    workload::monotonic_ns,
};
use znode_paths::{TaskName, paths};

/// What goes wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Fault {
    Nothing,
    MasterStopped,
    MasterKilled,
    WorkerDrained,
    WorkerStopped,
    WorkerKilled,
    FollowerKilled,
    LeaderKilled,
    RollingRestart,
    MasterGone,
    MasterFrozen,
    MasterHostFrozen,
    MasterCutOff,
    WorkerGone,
    WorkerFrozen,
    WorkerCutOff,
    AllServersAway,
}

/// When and where something was done.
#[derive(Debug)]
pub(crate) enum Mark {
    None,
    Master { at_ms: i64 },
    Worker { host: String, at_ns: u64 },
    Servers { at_ms: i64, until_ms: i64 },
}

/// How long all servers are away.
const AWAY: Duration = Duration::from_secs(30);

/// How long a fault without consequences is watched.
pub(crate) const CALM: Duration = Duration::from_secs(3);

/// How long a task must run to be there until its worker's fault has consequences: at once, or when a short session timeout
/// has passed.
pub(crate) const SOON: Duration = Duration::from_secs(1);
pub(crate) const LATE: Duration = Duration::from_secs(4);

impl Fault {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Fault::Nothing => "nothing",
            Fault::MasterStopped => "primary: SIGTERM",
            Fault::MasterKilled => "primary: kill -9 of the daemon",
            Fault::WorkerDrained => "worker: SIGTERM",
            Fault::WorkerStopped => "worker: SIGTERM twice",
            Fault::WorkerKilled => "worker: kill -9 of the daemon",
            Fault::FollowerKilled => "ZooKeeper follower: kill -9",
            Fault::LeaderKilled => "ZooKeeper leader: kill -9",
            Fault::RollingRestart => "ZooKeeper: all three restarted in turn",
            Fault::MasterGone => "primary: kill -9 of guard and daemon",
            Fault::MasterFrozen => "primary: daemon frozen and continued",
            Fault::MasterHostFrozen => "primary: guard and daemon frozen, continued",
            Fault::MasterCutOff => "primary: link down and up",
            Fault::WorkerGone => "worker: kill -9 of guard and daemon",
            Fault::WorkerFrozen => "worker: daemon frozen and continued",
            Fault::WorkerCutOff => "worker: link down and up",
            Fault::AllServersAway => "ZooKeeper: all three away for 30 s",
        }
    }

    /// Whether tasks may have to start again.
    pub(crate) fn interrupts(self) -> bool {
        use Fault::*;
        matches!(self, WorkerStopped | WorkerKilled | WorkerGone | WorkerFrozen | WorkerCutOff | AllServersAway)
    }

    pub(crate) fn needs_links(self) -> bool {
        matches!(self, Fault::MasterCutOff | Fault::WorkerCutOff)
    }

    /// Does it, waits for what follows from it, and heals it. Adds the tasks that it submits itself.
    #[track_caller]
    pub(crate) fn inflict(self, cluster: &mut Cluster, tasks: &mut Vec<TaskName>) -> Vec<Mark> {
        let mark = match self {
            Fault::Nothing => {
                stays("calm", CALM, || Ok(()));
                Mark::None
            }
            Fault::MasterStopped => master(cluster, tasks, Member::stop, Member::restart),
            Fault::MasterKilled => master(cluster, tasks, Member::kill_daemon, renew),
            Fault::MasterGone => master(cluster, tasks, Member::kill_all, Member::restart),
            Fault::MasterFrozen => master(cluster, tasks, Member::freeze_daemon, |member| member.thaw()),
            Fault::MasterHostFrozen => master(cluster, tasks, Member::freeze_all, |member| member.thaw()),
            Fault::MasterCutOff => master(cluster, tasks, link_down, |member| link_up(member)),
            Fault::WorkerDrained => drain(cluster),
            Fault::WorkerStopped => worker(cluster, tasks, SOON, stop_twice, Member::restart),
            Fault::WorkerKilled => worker(cluster, tasks, SOON, Member::kill_daemon, renew),
            Fault::WorkerGone => worker(cluster, tasks, LATE, Member::kill_all, Member::restart),
            Fault::WorkerFrozen => worker(cluster, tasks, LATE, Member::freeze_daemon, |member| member.thaw()),
            Fault::WorkerCutOff => worker(cluster, tasks, LATE, link_down, |member| link_up(member)),
            Fault::FollowerKilled => server(cluster, tasks, cluster.ensemble.follower()),
            Fault::LeaderKilled => server(cluster, tasks, cluster.ensemble.leader()),
            Fault::RollingRestart => return (0..3).map(|index| server_restarted(cluster, index)).collect(),
            Fault::AllServersAway => all_servers(cluster),
        };
        vec![mark]
    }
}

#[track_caller]
fn master(
    cluster: &mut Cluster,
    tasks: &mut Vec<TaskName>,
    strike: impl FnOnce(&Member),
    heal: impl FnOnce(&mut Member),
) -> Mark {
    let victim = cluster.primary();
    let mark = taken_over(&cluster.load, tasks, || strike(&cluster.masters[victim]));
    heal(&mut cluster.masters[victim]);
    cluster.settle();
    mark
}

/// Does something to the primary; returns when another one has assigned something.
#[track_caller]
pub(crate) fn taken_over(load: &Workload, tasks: &mut Vec<TaskName>, strike: impl FnOnce()) -> Mark {
    let before = load.tree.text(paths::MASTER);
    let at_ms = now_ms();
    strike();
    // Something to assign for whoever takes over, from now on: one that is asked to stop may still assign the first.
    let mut submit = || tasks.push(load.submit(Duration::ZERO));
    submit();
    wait_for("another primary", || {
        let now = load.tree.text(paths::MASTER);
        if now.is_some() && now != before { Ok(()) } else { Err(format!("{now:?}")) }
    });
    submit();
    let last = *tasks.last().expect("it was submitted");
    load.tree.wait_status(last);
    Mark::Master { at_ms }
}

#[track_caller]
fn worker(
    cluster: &mut Cluster,
    tasks: &mut Vec<TaskName>,
    lasts: Duration,
    strike: impl FnOnce(&Member),
    heal: impl FnOnce(&mut Member),
) -> Mark {
    let at = |host: &str| cluster.workers.iter().position(|worker| worker.name == host).expect("a worker ran it");
    let (host, at_ns) = recorded(&cluster.load, tasks, lasts, |host| strike(&cluster.workers[at(host)]));
    let victim = at(&host);
    heal(&mut cluster.workers[victim]);
    cluster.settle();
    // The next one finds as many free slots.
    cluster.load.tree.wait_status(*tasks.last().expect("it was submitted"));
    Mark::Worker { host, at_ns }
}

/// Submits a task that lasts so long, and does something to whoever runs it; returns, when its attempt is recorded, who that was
/// and when it was done.
#[track_caller]
pub(crate) fn recorded(
    load: &Workload,
    tasks: &mut Vec<TaskName>,
    lasts: Duration,
    strike: impl FnOnce(&str),
) -> (String, u64) {
    let task = load.submit(lasts);
    tasks.push(task);
    let run = wait_for("a task to run", || {
        load.runs().into_iter().find(|run| run.task == task).ok_or_else(|| load.tree.picture())
    });
    let at_ns = monotonic_ns();
    strike(&run.host);
    wait_for("the attempt to be recorded", || {
        let recorded = load.tree.stat(&paths::attempt(&task, run.attempt));
        recorded.ok_or_else(|| load.tree.picture())
    });
    (run.host, at_ns)
}

#[track_caller]
fn stop_twice(member: &Member) {
    member.stop();
    member.daemon.wait_stderr("finishing what runs");
    member.stop();
}

#[track_caller]
fn drain(cluster: &mut Cluster) -> Mark {
    renew(&mut cluster.workers[fastrand::usize(..3)]);
    cluster.settle();
    Mark::None
}

/// Kills a server, and starts it again when the others have done some work.
#[track_caller]
fn server(cluster: &mut Cluster, tasks: &mut Vec<TaskName>, index: usize) -> Mark {
    cluster.ensemble.servers[index].kill();
    let at_ms = serving_since_ms(cluster);
    let task = cluster.load.submit(Duration::ZERO);
    tasks.push(task);
    cluster.load.tree.wait_status(task);
    cluster.ensemble.servers[index].restart();
    cluster.settle();
    Mark::Servers { at_ms, until_ms: now_ms() }
}

#[track_caller]
fn server_restarted(cluster: &mut Cluster, index: usize) -> Mark {
    cluster.ensemble.servers[index].terminate();
    let at_ms = serving_since_ms(cluster);
    cluster.ensemble.servers[index].restart();
    cluster.settle();
    Mark::Servers { at_ms, until_ms: now_ms() }
}

#[track_caller]
fn all_servers(cluster: &mut Cluster) -> Mark {
    let before = cluster.load.tree.children(paths::LIVE);
    for server in &mut cluster.ensemble.servers {
        server.kill();
    }
    stays("away", AWAY, || Ok(()));
    for server in &mut cluster.ensemble.servers {
        server.relaunch();
    }
    let at_ms = serving_since_ms(cluster);
    // The servers remember all sessions, and give each its whole timeout again.
    wait_for("the sessions of before to end", || {
        let left = cluster.load.tree.children(paths::LIVE).into_iter().filter(|name| before.contains(name)).count();
        if left == 0 { Ok(()) } else { Err(format!("{left} are left")) }
    });
    for server in &cluster.ensemble.servers {
        server.wait_ready();
    }
    cluster.settle();
    Mark::Servers { at_ms, until_ms: now_ms() }
}

/// Waits until there is a leader, which is one only with a quorum behind it; returns when that was.
#[track_caller]
fn serving_since_ms(cluster: &Cluster) -> i64 {
    let _leader = cluster.ensemble.leader();
    now_ms()
}

/// Starts it under a new guard, in good order: the old one lets pass more and more time before it starts a daemon again that
/// dies again and again.
#[track_caller]
fn renew(member: &mut Member) {
    member.stop();
    member.daemon.wait_exit(Duration::from_secs(20));
    member.restart();
}

fn link_down(member: &Member) {
    member.host().expect("it is left out where there are no links").link_down();
}

fn link_up(member: &Member) {
    member.host().expect("it is left out where there are no links").link_up();
}

impl Mark {
    /// How long it took until all was as before, in milliseconds: nothing where nobody was touched.
    pub(crate) fn took_ms(&self, history: &History, runs: &[Run]) -> Result<Vec<f64>, String> {
        match self {
            Mark::None => Ok(Vec::new()),
            Mark::Master { at_ms } => match history.takeover_ms(*at_ms) {
                Some(ms) => Ok(vec![ms as f64]),
                None => Err("no other primary assigned anything".to_owned()),
            },
            Mark::Worker { host, at_ns } => {
                let took = evidence::restarts_ns(runs, host, *at_ns);
                if took.is_empty() {
                    return Err(format!("nothing that ran on {host} started again"));
                }
                Ok(took.iter().map(|ns| *ns as f64 / 1e6).collect())
            }
            Mark::Servers { at_ms, until_ms } => {
                Ok(history.reconnected_ms(*at_ms, *until_ms).into_iter().map(|ms| ms as f64).collect())
            }
        }
    }
}

/// The clock of the servers.
#[expect(clippy::cast_possible_truncation, reason = "milliseconds since 1970 fit for ages")]
pub(crate) fn now_ms() -> i64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_millis() as i64)
}
