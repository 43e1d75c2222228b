//! The soak: faults drawn at random from a seed, several at a time, while tasks keep coming.

use std::{
    collections::BTreeSet,
    fmt,
    time::{Duration, Instant},
};

use e2e::{
    Cluster, Host,
    cluster::{Member, Shape},
    evidence, stays,
};
use znode_paths::Outcome;

use crate::{Came, attend, print, say};

/// How long a task lasts at most: many faults happen to each of the longer ones.
const LONGEST: Duration = Duration::from_secs(6);

/// What something is done to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Victim {
    Master(usize),
    Worker(usize),
    Server(usize),
}

/// What is done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Hurt {
    /// SIGTERM, and started again later.
    Stop,
    /// SIGKILL to what a guard will start again.
    KillDaemon,
    /// SIGKILL, and started again later.
    Kill,
    /// SIGSTOP, and SIGCONT later.
    Freeze,
    /// SIGSTOP to guard and daemon, and SIGCONT later.
    FreezeAll,
    /// The link is cut, and mended later.
    CutOff,
}

/// A fault to come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Blow {
    /// From the start of the round.
    at: Duration,
    /// How long until it is healed.
    lasts: Duration,
    victim: Victim,
    hurt: Hurt,
}

impl fmt::Display for Blow {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Blow { at, lasts, victim, hurt } = self;
        write!(f, "after {} ms: {victim:?} {hurt:?} for {} ms", at.as_millis(), lasts.as_millis())
    }
}

/// How long a server may take to catch up with the others.
const CATCH_UP: Duration = Duration::from_secs(10);

/// All faults of a round. Several may go on at a time, but only one at each victim, and no server is hurt before all of them
/// have caught up: release 3.8.0 of ZooKeeper does not survive that (`e2e::joined`), so such a round would say nothing.
fn draw(random: &mut fastrand::Rng, shape: &Shape, links: bool, until: Duration) -> Vec<Blow> {
    let mut blows: Vec<Blow> = Vec::new();
    let mut at = Duration::ZERO;
    loop {
        at += Duration::from_millis(random.u64(100..1500));
        if at >= until {
            return blows;
        }
        let (masters, workers) = (usize::from(shape.masters), usize::from(shape.workers));
        let victim = match random.u8(..10) {
            0..4 => Victim::Master(random.usize(..masters)),
            4..8 => Victim::Worker(random.usize(..workers)),
            _ => Victim::Server(random.usize(..3)),
        };
        let hurts: &[Hurt] = match victim {
            Victim::Master(_) => {
                &[Hurt::Stop, Hurt::KillDaemon, Hurt::Kill, Hurt::Freeze, Hurt::FreezeAll, Hurt::CutOff]
            }
            // Frozen with its guard nobody kills what it runs.
            Victim::Worker(_) => &[Hurt::Stop, Hurt::KillDaemon, Hurt::Kill, Hurt::Freeze, Hurt::CutOff],
            Victim::Server(_) => &[Hurt::Stop, Hurt::Kill, Hurt::Freeze, Hurt::CutOff],
        };
        let hurt = hurts[random.usize(..hurts.len())];
        let timeout = u64::try_from(shape.session_timeout.as_millis()).unwrap_or(u64::MAX);
        let lasts = match (victim, hurt) {
            // What its tasks started lives on without guard and daemon: its service manager starts it again before anybody
            // else can get the tasks.
            (Victim::Worker(_), Hurt::Kill) => random.u64(..timeout / 2),
            _ => random.u64(..timeout * 5 / 2),
        };
        let lasts = Duration::from_millis(lasts);
        let hurts_already = |blow: &Blow| match (blow.victim, victim) {
            (Victim::Server(_), Victim::Server(_)) => blow.at + blow.lasts + CATCH_UP >= at,
            (other, victim) => other == victim && blow.at + blow.lasts >= at,
        };
        if (links || hurt != Hurt::CutOff) && !blows.iter().any(hurts_already) {
            blows.push(Blow { at, lasts, victim, hurt });
        }
    }
}

/// So many rounds that say something, also after one that failed; returns whether all promises were kept in all.
pub(crate) fn rounds(first: u64, wanted: usize, lasts: Duration, tasks: u32) -> bool {
    // When each second one says nothing, no more are tried.
    let tried = (first..).take(wanted.saturating_mul(2)).map(|seed| round(seed, lasts, tasks));
    tried.filter(|came| *came != Came::Unsound).take(wanted).filter(|came| *came == Came::Kept).count() == wanted
}

/// One round.
fn round(seed: u64, lasts: Duration, tasks: u32) -> Came {
    let mut random = fastrand::Rng::with_seed(seed);
    let session_timeout = Duration::from_millis(random.u64(1500..4000));
    let shape = Shape { session_timeout, ..Shape::default() };
    let mut cluster = Cluster::start(&shape);
    if let Some(lack) = cluster.no_links() {
        say(&format!("NOT HERE: links are not cut: {lack}"));
    }
    let blows = draw(&mut random, &shape, cluster.no_links().is_none(), lasts);
    say(&format!("seed {seed}: {} faults, session timeout {} ms", blows.len(), session_timeout.as_millis()));
    let came = attend(&mut cluster, &format!("seed-{seed}"), |cluster| soak(cluster, seed, &blows, lasts / tasks));
    if came == Came::Broken {
        print(&format!("seed {seed}: BROKEN; the same faults again: scripts/failover.sh --rounds 1 --seed {seed} ..."));
        for blow in &blows {
            say(&blow.to_string());
        }
    }
    came
}

fn soak(cluster: &mut Cluster, seed: u64, blows: &[Blow], pace: Duration) -> bool {
    let flow = cluster.load.flow(pace, LONGEST, seed);
    let began = Instant::now();
    let mut wounds: Vec<Blow> = Vec::new();
    let mut blows_left = blows.iter().peekable();
    while blows_left.peek().is_some() || !wounds.is_empty() {
        let heal_at = |blow: &Blow| blow.at + blow.lasts;
        let next_heal = wounds.iter().enumerate().min_by_key(|(_, blow)| heal_at(blow)).map(|(at, _)| at);
        let heal_first = match (next_heal, blows_left.peek()) {
            (Some(at), Some(blow)) => heal_at(&wounds[at]) <= blow.at,
            (wound, _) => wound.is_some(),
        };
        match next_heal.filter(|_| heal_first) {
            Some(at) => {
                let wound = wounds.remove(at);
                wait_until(began + heal_at(&wound));
                heal(cluster, wound);
            }
            None => {
                let blow = *blows_left.next().expect("otherwise there is something to heal");
                wait_until(began + blow.at);
                strike(cluster, blow);
                wounds.push(blow);
            }
        }
    }
    let accepted = flow.stop();
    for server in &cluster.ensemble.servers {
        server.wait_ready();
    }
    cluster.settle();
    // Also those whose acknowledgement was lost on the way.
    let all: BTreeSet<_> = cluster.history().tasks.into_keys().chain(accepted.iter().copied()).collect();
    let all: Vec<_> = all.into_iter().collect();
    cluster.load.wait_finished(&all);

    let (history, runs) = (cluster.history(), cluster.load.runs());
    let verdict = evidence::judge(&history, &runs, &all);
    let wrong: Vec<&String> = verdict.beside.iter().chain(&verdict.wrong).chain(&history.wrong).collect();
    let kept = wrong.is_empty();
    let judged = match (kept, history.unsound.is_empty()) {
        (true, _) => "kept",
        (false, true) => "BROKEN",
        (false, false) => "UNSOUND",
    };
    let given_up = history
        .tasks
        .values()
        .filter(|record| record.status.as_ref().is_some_and(|status| status.outcome == Outcome::Lost));
    print(&format!(
        "seed {seed}: {} faults, {} reigns, {} tasks accepted, {} made: {} without a status, {} overlapping; {} started again, \
         {} ended as lost for they may start once only: {judged}",
        blows.len(),
        history.reigns.len(),
        accepted.len(),
        all.len(),
        verdict.lost,
        verdict.overlapped,
        verdict.again,
        given_up.count(),
    ));
    for wrong in wrong.iter().take(20) {
        say(&format!("BROKEN: seed {seed}: {wrong}"));
    }
    kept
}

fn wait_until(time: Instant) {
    stays("the pause", time.saturating_duration_since(Instant::now()), || Ok(()));
}

fn strike(cluster: &mut Cluster, blow: Blow) {
    let Blow { victim, hurt, .. } = blow;
    match victim {
        Victim::Server(at) => {
            let server = &mut cluster.ensemble.servers[at];
            match hurt {
                Hurt::Stop => server.terminate(),
                Hurt::KillDaemon | Hurt::Kill => server.kill(),
                Hurt::Freeze | Hurt::FreezeAll => server.pause(),
                Hurt::CutOff => server.host().into_iter().for_each(Host::link_down),
            }
        }
        Victim::Master(_) | Victim::Worker(_) => {
            let member = member(cluster, victim);
            match hurt {
                Hurt::Stop => member.stop(),
                Hurt::KillDaemon => member.kill_daemon(),
                Hurt::Kill => member.kill_all(),
                Hurt::Freeze => member.freeze_daemon(),
                Hurt::FreezeAll => member.freeze_all(),
                Hurt::CutOff => member.host().into_iter().for_each(Host::link_down),
            }
        }
    }
}

fn heal(cluster: &mut Cluster, blow: Blow) {
    let Blow { victim, hurt, .. } = blow;
    match victim {
        Victim::Server(at) => {
            let server = &mut cluster.ensemble.servers[at];
            match hurt {
                Hurt::Stop | Hurt::KillDaemon | Hurt::Kill => server.relaunch(),
                Hurt::Freeze | Hurt::FreezeAll => server.resume(),
                Hurt::CutOff => server.host().into_iter().for_each(Host::link_up),
            }
        }
        Victim::Master(_) | Victim::Worker(_) => {
            let member = member(cluster, victim);
            match hurt {
                // One that was asked to stop and could not yet is killed.
                Hurt::Stop | Hurt::Kill => member.restart(),
                Hurt::KillDaemon => {}
                Hurt::Freeze | Hurt::FreezeAll => member.thaw(),
                Hurt::CutOff => member.host().into_iter().for_each(Host::link_up),
            }
        }
    }
}

fn member(cluster: &mut Cluster, victim: Victim) -> &mut Member {
    match victim {
        Victim::Master(at) => &mut cluster.masters[at],
        Victim::Worker(at) => &mut cluster.workers[at],
        Victim::Server(_) => unreachable!("servers are no members"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_same_seed_draws_the_same_faults_and_no_victim_is_hurt_twice_at_a_time() {
        let shape = Shape { session_timeout: Duration::from_secs(2), ..Shape::default() };
        let draw = |seed| draw(&mut fastrand::Rng::with_seed(seed), &shape, true, Duration::from_secs(600));
        let blows = draw(7);
        assert_eq!(blows, draw(7));
        assert_ne!(blows, draw(8));
        assert!(blows.len() > 100, "{}", blows.len());
        for (at, blow) in blows.iter().enumerate() {
            let is_server = |blow: &Blow| matches!(blow.victim, Victim::Server(_));
            let both_servers = |other: &Blow| is_server(other) && is_server(blow);
            let earlier = blows[..at].iter().filter(|other| other.victim == blow.victim || both_servers(other));
            let rest = if is_server(blow) { CATCH_UP } else { Duration::ZERO };
            assert!(earlier.map(|other| other.at + other.lasts + rest).max() < Some(blow.at), "{blow}");
        }
    }
}
