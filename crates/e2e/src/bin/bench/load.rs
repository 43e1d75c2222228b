//! What is put on the cluster: tasks by the thousand, and workers that are played.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, mpsc};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use zk_session::{Config, Event, Kind, Session, in_parallel};
use znode_paths::paths::{self, Place};
use znode_paths::{
    Instance, Live, LiveName, Outcome, Role, Status, Task, TaskMeta, TaskName, Worker, WorkerMeta, WorkerName,
};

/// How many sessions share the work of filling the tree.
const FILLERS: u32 = 4;

/// Workers that are played on one session.
const PLAYERS: usize = 50;

/// A session, and what comes from it.
pub(crate) fn session(zk: &str, number: u32) -> (Session, mpsc::Receiver<Event>) {
    let (tx, rx) = mpsc::channel();
    let connect = zk.parse().expect("the harness makes good connect strings");
    let config = Config::new(connect, Duration::from_secs(30));
    // A mailbox that nobody reads any more belongs to a measurement that is over.
    let notify: zk_session::Notify = Arc::new(move |event| _ = tx.send(event));
    let session = Session::open(&config, number, &notify).expect("the private server serves");
    (session, rx)
}

/// A task as a client makes it, of a submit of its own: of several of one submit the primary removes all but the first.
pub(crate) fn task() -> Vec<u8> {
    static SUBMITS: AtomicUsize = AtomicUsize::new(0);
    let number = SUBMITS.fetch_add(1, Ordering::Relaxed);
    Task { command: "true".to_owned(), meta: Some(TaskMeta::new(format!("{number:032x}"))) }.encode()
}

/// Does something for each number below `count`, several at a time on several sessions; returns how many a second.
pub(crate) fn rate(zk: &str, sessions: u32, count: usize, work: impl Fn(&Session, usize) + Sync) -> f64 {
    let sessions: Vec<Session> = (0..sessions).map(|number| session(zk, number).0).collect();
    sessions[0].ensure("/").expect("the server serves");
    let share = count / sessions.len();
    let began = Instant::now();
    thread::scope(|scope| {
        for (index, session) in sessions.iter().enumerate() {
            let numbers: Vec<usize> = (index * share..(index + 1) * share).collect();
            let work = &work;
            scope.spawn(move || in_parallel(&numbers, |number| work(session, *number)));
        }
    });
    per_second(share * sessions.len(), began)
}

#[expect(clippy::cast_precision_loss, reason = "counts of a measurement")]
pub(crate) fn per_second(count: usize, since: Instant) -> f64 {
    count as f64 / since.elapsed().as_secs_f64()
}

/// Submits tasks.
pub(crate) fn submit(zk: &str, count: usize) -> f64 {
    rate(zk, FILLERS, count, |session, _| {
        session.create(paths::NEW_TASK, &task(), Kind::Sequential).expect("the server serves");
    })
}

/// Makes tasks that have ended.
pub(crate) fn finish(zk: &str, count: usize) {
    rate(zk, FILLERS, count, |session, _| {
        let path = session.create(paths::NEW_TASK, &task(), Kind::Sequential).expect("the server serves");
        let Some(Place::Task(name)) = Place::of(&path) else { panic!("{path} is no task") };
        let status = Status::because(Outcome::Done, "played").encode();
        session.create(&paths::status(&name), &status, Kind::Persistent).expect("the server serves");
    });
}

/// Workers that write `done` for whatever is assigned to them.
pub(crate) struct Players {
    done: Arc<AtomicUsize>,
    sessions: Vec<Session>,
    threads: Vec<JoinHandle<()>>,
}

impl Players {
    /// So many workers whose names begin so, each with so many slots. They write statuses only if they `work`.
    pub(crate) fn start(zk: &str, prefix: &str, count: usize, slots: u32, work: bool) -> Self {
        let done = Arc::new(AtomicUsize::new(0));
        let names: Vec<WorkerName> =
            (0..count).map(|number| format!("{prefix}{number:04}").parse().expect("a name")).collect();
        let (mut sessions, mut threads) = (Vec::new(), Vec::new());
        for (number, names) in names.chunks(PLAYERS).enumerate() {
            let number = u32::try_from(number).expect("few sessions");
            let (session, events) = session(zk, number + 1);
            let names = names.to_vec();
            register(&session, &names, slots);
            sessions.push(session.clone());
            if work {
                let done = done.clone();
                threads.push(thread::spawn(move || play(&session, &events, &names, &done)));
            }
        }
        Players { done, sessions, threads }
    }

    /// How many tasks they have ended.
    pub(crate) fn done(&self) -> usize {
        self.done.load(Ordering::Relaxed)
    }

    pub(crate) fn stop(self) {
        for session in &self.sessions {
            session.close(Duration::from_secs(2));
        }
        for thread in self.threads {
            thread.join().expect("players do not panic");
        }
    }
}

fn register(session: &Session, names: &[WorkerName], slots: u32) {
    session.ensure(paths::LIVE).expect("the server serves");
    for name in names {
        let instance = Instance::from_random(fastrand::u64(..));
        let live = paths::live(&LiveName { instance, session: session.number() });
        let node = Live::new("played:1", Role::Worker, Some(name.clone())).encode();
        session.create(&live, &node, Kind::Ephemeral).expect("the server serves");
        let worker = Worker { address: "played:1".to_owned(), meta: Some(WorkerMeta::new(instance, slots)) };
        session.create(&paths::worker(name), &worker.encode(), Kind::Ephemeral).expect("a master has set up the tree");
        session.create(&paths::assignments(name), b"", Kind::Persistent).expect("a master has set up the tree");
    }
}

fn play(session: &Session, events: &mpsc::Receiver<Event>, names: &[WorkerName], done: &AtomicUsize) {
    let mut finished: BTreeMap<&WorkerName, Vec<TaskName>> = BTreeMap::new();
    let mut stale: Vec<WorkerName> = names.to_vec();
    loop {
        for name in names.iter().filter(|name| stale.contains(name)) {
            let Ok(Some(children)) = session.children(&paths::assignments(name), true) else { return };
            let assigned: Vec<TaskName> = children.iter().filter_map(|child| child.parse().ok()).collect();
            let before = finished.entry(name).or_default();
            before.retain(|task| assigned.contains(task));
            let new: Vec<TaskName> = assigned.into_iter().filter(|task| !before.contains(task)).collect();
            let status = Status::plain(Outcome::Done).encode();
            let ended = in_parallel(&new, |task| session.create(&paths::status(task), &status, Kind::Persistent));
            if ended.iter().any(Result::is_err) {
                return;
            }
            done.fetch_add(new.len(), Ordering::Relaxed);
            before.extend(new);
        }
        stale.clear();
        let Ok(event) = events.recv() else { return };
        for event in [event].into_iter().chain(events.try_iter()) {
            match event {
                Event::Watch { path, .. } => {
                    if let Some(Place::Assignments(name)) = Place::of(&path) {
                        stale.push(name);
                    }
                }
                Event::Lost { .. } => return,
                Event::Opened(_) => {}
            }
        }
    }
}
