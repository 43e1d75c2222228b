//! The table: every fault in turn, and what came of it.

use std::time::Duration;

use e2e::{
    Cluster,
    cluster::Shape,
    evidence::{self, Verdict},
    wait_for,
};
use znode_paths::TaskName;

use crate::{
    Came, Site, attend,
    faults::{
        Fault::{self, *},
        Mark,
    },
    print, say,
};

/// With this session timeout nothing that waits for it goes unseen.
pub(crate) const LONG: Duration = Duration::from_secs(30);

/// With this one, what has to wait for it does not take all day.
pub(crate) const SHORT: Duration = Duration::from_secs(2);

/// Between two tasks that are submitted.
const PACE: Duration = Duration::from_millis(100);

/// How long they last at most: six of twelve slots are in use.
const LONGEST: Duration = Duration::from_secs(1);

/// One line: a fault, how often by default, how often in a hurry.
struct Entry(Fault, u32, u32);

/// Faults on live hosts and of servers, at a long session timeout: nothing waits for it.
const LIVE: [Entry; 9] = [
    Entry(Nothing, 1, 1),
    Entry(MasterStopped, 10, 3),
    Entry(MasterKilled, 10, 3),
    Entry(WorkerDrained, 3, 0),
    Entry(WorkerStopped, 3, 0),
    Entry(WorkerKilled, 10, 3),
    Entry(FollowerKilled, 3, 1),
    Entry(LeaderKilled, 3, 1),
    Entry(RollingRestart, 1, 0),
];

/// Faults of whole hosts, at a short one.
const GONE: [Entry; 8] = [
    Entry(MasterGone, 3, 1),
    Entry(MasterFrozen, 3, 0),
    Entry(MasterHostFrozen, 3, 0),
    Entry(MasterCutOff, 3, 1),
    Entry(WorkerGone, 3, 1),
    Entry(WorkerFrozen, 3, 0),
    Entry(WorkerCutOff, 3, 1),
    Entry(AllServersAway, 1, 0),
];

/// What a take-over from whoever is gone may take at most: the short session timeout, 1.5 ticks of the ensemble, and 100 ms. The
/// leader rounds the end of a session up to a tick, and counts from when a follower told it that it had heard the session,
/// which it does twice in a tick.
pub(crate) const WHEN_GONE: Duration = Duration::from_millis(2000 + 500 * 3 / 2 + 100);

/// What a take-over may take at most; nothing where there is no figure.
fn goal(fault: Fault) -> Option<Duration> {
    match fault {
        MasterStopped | MasterKilled => Some(Duration::from_millis(300)),
        WorkerKilled => Some(Duration::from_millis(500)),
        FollowerKilled | LeaderKilled | RollingRestart => Some(Duration::from_secs(1)),
        MasterGone | MasterFrozen | MasterHostFrozen | MasterCutOff | WorkerGone | WorkerFrozen | WorkerCutOff => {
            Some(WHEN_GONE)
        }
        Nothing | WorkerDrained | WorkerStopped | AllServersAway => None,
    }
}

/// Prints it line by line; returns whether all went well.
pub(crate) fn print_all(quick: bool, times: Option<u32>, only: &str) -> bool {
    let mut well = true;
    print_heads();
    for (entries, session_timeout) in [(&LIVE[..], LONG), (&GONE[..], SHORT)] {
        let often = |entry: &Entry| if quick { entry.2 } else { times.unwrap_or(entry.1) };
        let chosen = entries.iter().filter(|entry| entry.0.name().contains(only)).map(|entry| (entry.0, often(entry)));
        let chosen: Vec<_> = chosen.filter(|(_, times)| *times > 0).collect();
        if chosen.is_empty() {
            continue;
        }
        let shape = Shape { session_timeout, ..Shape::default() };
        say(&format!("starting a cluster with a session timeout of {} s", session_timeout.as_secs()));
        let mut cluster = Cluster::start(&shape);
        let name = format!("{}s", session_timeout.as_secs());
        let came = attend(&mut cluster, &name, |cluster| {
            let mut known = 0; // breaches of the protocol that are on an earlier line
            let mut well = true;
            for (fault, times) in chosen {
                match cluster.no_links() {
                    Some(lack) if fault.needs_links() => say(&format!("NOT HERE: {}: {lack}", fault.name())),
                    _ => {
                        let (name, goal, interrupts) = (fault.name(), goal(fault), fault.interrupts());
                        let row = Row { name, times, goal, interrupts, thaws: false };
                        well &= row.fill(cluster, &mut known, |cluster, tasks| fault.inflict(cluster, tasks));
                    }
                }
            }
            well
        });
        well &= came == Came::Kept;
    }
    print(if well { "kept: all promises and goals" } else { "MISSED: see above" });
    well
}

/// One line of a table.
pub(crate) struct Row {
    pub(crate) name: &'static str,
    pub(crate) times: u32,
    pub(crate) goal: Option<Duration>,
    /// Whether tasks may have to start again.
    pub(crate) interrupts: bool,
    /// Whether what is frozen with its guard may go on for a moment when it is thawed: a stated limit.
    pub(crate) thaws: bool,
}

/// Prints the heads of the columns.
pub(crate) fn print_heads() {
    print(&format!(
        "{:<44} {:>5} {:>8} {:>8} {:>8} {:>6} {:>5} {:>6} {:>8}  verdict",
        "fault", "times", "median", "max", "goal", "tasks", "lost", "again", "overlap"
    ));
}

impl Row {
    /// Has it done, as often as it says, while tasks keep coming; prints what came of it, and returns whether all went well.
    /// `known` is how many breaches of the protocol are on an earlier line.
    pub(crate) fn fill<S: Site>(
        &self,
        site: &mut S,
        known: &mut usize,
        inflict: impl Fn(&mut S, &mut Vec<TaskName>) -> Vec<Mark>,
    ) -> bool {
        let flow = site.load().flow(PACE, LONGEST, 1);
        wait_for("tasks to flow", || {
            let accepted = flow.accepted().len();
            if accepted >= 10 { Ok(()) } else { Err(format!("{accepted} so far")) }
        });
        let mut tasks = Vec::new();
        let marks: Vec<_> = (0..self.times).flat_map(|_| inflict(site, &mut tasks)).collect();
        tasks.extend(flow.stop());
        site.load().wait_finished(&tasks);

        let (history, runs) = (site.history(), site.load().runs());
        let verdict = evidence::judge(&history, &runs, &tasks);
        let mut wrong = verdict.wrong.clone();
        wrong.extend(history.wrong.iter().skip(*known).cloned());
        *known = history.wrong.len();
        if !self.thaws {
            wrong.extend(verdict.beside.iter().cloned());
        }
        if verdict.again > 0 && !self.interrupts {
            wrong.push(format!("{} tasks started again, though none had to", verdict.again));
        }
        let mut took = Vec::new();
        for mark in marks {
            match mark.took_ms(&history, &runs) {
                Ok(ms) => took.extend(ms),
                Err(why) => wrong.push(why),
            }
        }
        took.sort_by(f64::total_cmp);
        self.print(&took, &verdict, &wrong)
    }

    fn print(&self, took: &[f64], verdict: &Verdict, wrong: &[String]) -> bool {
        let goal_ms = self.goal.map(|goal| goal.as_secs_f64() * 1000.0);
        let missed = took.last().zip(goal_ms).is_some_and(|(max, goal)| *max >= goal);
        let ms = |ms: Option<f64>| ms.map_or("-".to_owned(), |ms| format!("{ms:.0} ms"));
        let judged = match (wrong.is_empty(), missed, verdict.beside.is_empty()) {
            (false, ..) => "BROKEN",
            (true, true, _) => "MISSED",
            (true, false, true) => "kept",
            (true, false, false) => "kept but for a stated limit",
        };
        print(&format!(
            "{:<44} {:>5} {:>8} {:>8} {:>8} {:>6} {:>5} {:>6} {:>8}  {judged}",
            self.name,
            self.times,
            ms(took.get(took.len() / 2).copied()),
            ms(took.last().copied()),
            goal_ms.map_or("-".to_owned(), |goal| format!("<{goal:.0} ms")),
            verdict.tasks,
            verdict.lost,
            verdict.again,
            verdict.overlapped,
        ));
        for wrong in wrong.iter().take(20) {
            say(&format!("BROKEN: {wrong}"));
        }
        wrong.is_empty() && !missed
    }
}
