//! A look at the tree, and hands that change it: on a session of `zk-session`, which is not one of a daemon's.

use std::{
    fmt,
    sync::{Arc, Mutex},
    time::Duration,
};

use zk_session::{Config, Error, Kind, OpenError, Session};
use znode_paths::{Status, Task, TaskMeta, TaskName, paths};

use crate::{Host, process::lock, wait_for};

/// A look at the tree, on a session of its own that is opened again when it was lost.
pub struct Tree {
    config: Config,
    session: Mutex<Option<Session>>,
    host: Option<Host>,
}

impl Tree {
    /// At a connect string, from within a host or from here.
    #[must_use]
    #[track_caller]
    pub fn of(zk: &str, host: Option<&Host>) -> Tree {
        let connect = zk.parse().expect("the harness makes good connect strings");
        let config = Config::new(connect, Duration::from_secs(30));
        Tree { config, session: Mutex::default(), host: host.cloned() }
    }

    /// Asks for what nothing should stand in the way of.
    #[track_caller]
    fn get<T>(&self, question: impl Fn(&Session) -> Result<T, Error>) -> T {
        self.ask(question).unwrap_or_else(|error| panic!("{error}"))
    }

    /// Asks until there is an answer. Only what may be done twice is to be asked while a server goes down.
    #[track_caller]
    pub fn ask<T>(&self, question: impl Fn(&Session) -> Result<T, Error>) -> Result<T, Error> {
        wait_for("an answer of ZooKeeper", || {
            let mut session = lock(&self.session);
            if session.as_ref().is_none_or(|session| session.over().is_some()) {
                *session = Some(open(&self.config, self.host.as_ref()).map_err(|error| error.to_string())?);
            }
            match question(session.as_ref().expect("it was opened above")) {
                Err(Error::Lost(reason)) => Err(reason.to_string()),
                answer => Ok(answer),
            }
        })
    }

    /// What a znode holds, if it is there.
    #[track_caller]
    pub fn data(&self, path: &str) -> Option<Vec<u8>> {
        self.get(|session| session.read(path, false)).map(|(data, _)| data)
    }

    /// [`Tree::data`] as text.
    #[track_caller]
    pub fn text(&self, path: &str) -> Option<String> {
        self.data(path).map(|data| String::from_utf8_lossy(&data).into_owned())
    }

    /// What ZooKeeper knows of a znode, if it is there.
    #[track_caller]
    pub fn stat(&self, path: &str) -> Option<zk_session::Stat> {
        self.get(|session| session.stat(path, false))
    }

    /// Sorted; none where there is no such znode.
    #[track_caller]
    pub fn children(&self, path: &str) -> Vec<String> {
        let mut children = self.get(|session| session.children(path, false)).unwrap_or_default();
        children.sort();
        children
    }

    /// Makes the chroot and persistent znodes, with their parents.
    #[track_caller]
    pub fn make(&self, znodes: &[&str]) {
        self.get(|session| session.ensure("/"));
        for path in znodes {
            self.get(|session| session.ensure(path));
        }
    }

    /// Makes a persistent znode.
    #[track_caller]
    pub fn create(&self, path: &str, data: impl AsRef<[u8]>) {
        self.get(|session| session.create(path, data.as_ref(), Kind::Persistent));
    }

    /// Makes a znode that goes with the session of this value.
    #[track_caller]
    pub fn create_ephemeral(&self, path: &str, data: impl AsRef<[u8]>) {
        self.get(|session| session.create(path, data.as_ref(), Kind::Ephemeral));
    }

    /// Deletes a znode if it is there.
    #[track_caller]
    pub fn delete(&self, path: &str) {
        match self.ask(|session| session.delete(path, None)) {
            Ok(()) | Err(Error::NoNode(_)) => {}
            Err(error) => panic!("cannot delete {path}: {error}"),
        }
    }

    /// Deletes a znode and all below it, as `deleteall` does, while others may make new ones there.
    #[track_caller]
    pub fn delete_all(&self, path: &str) {
        loop {
            for child in self.children(path) {
                self.delete_all(&format!("{path}/{child}"));
            }
            match self.ask(|session| session.delete(path, None)) {
                Ok(()) | Err(Error::NoNode(_)) => return,
                Err(Error::NotEmpty(_)) => {}
                Err(error) => panic!("cannot delete {path}: {error}"),
            }
        }
    }

    /// Creates a task with this very data; waits for `/tasks`.
    #[track_caller]
    pub fn submit_data(&self, data: &[u8]) -> TaskName {
        let path = wait_for("/tasks", || {
            let created = self.ask(|session| session.create(paths::NEW_TASK, data, Kind::Sequential));
            created.map_err(|error| error.to_string())
        });
        path.trim_start_matches("/tasks/").parse().expect("ZooKeeper makes names of tasks")
    }

    /// A task made by hand.
    #[track_caller]
    pub fn submit(&self, command: &str) -> TaskName {
        self.submit_data(command.as_bytes())
    }

    /// A task as our client makes it.
    #[track_caller]
    pub fn submit_with(&self, command: &str, change: impl FnOnce(&mut TaskMeta)) -> TaskName {
        let mut meta = TaskMeta::new(format!("{:016x}", fastrand::u64(..)));
        change(&mut meta);
        self.submit_data(&Task { command: command.to_owned(), meta: Some(meta) }.encode())
    }

    /// The word of a status, exactly as it is there.
    #[track_caller]
    pub fn status(&self, task: TaskName) -> Option<String> {
        self.text(&paths::status(&task))
    }

    /// Waits for the status.
    #[track_caller]
    pub fn wait_status(&self, task: TaskName) -> Status {
        wait_for(&format!("the status of {task}"), || {
            self.data(&paths::status(&task)).map(|data| Status::decode(&data)).ok_or_else(|| self.picture())
        })
    }

    /// Waits for the status, which must be this word.
    #[track_caller]
    pub fn expect(&self, task: TaskName, word: &str) -> Status {
        let status = self.wait_status(task);
        assert_eq!(status.outcome.word(), word, "{task}: {:?}", self.status(task));
        status
    }

    /// Waits until all have a status, and counts those that are `done`.
    #[track_caller]
    pub fn wait_all(&self, tasks: &[TaskName]) -> usize {
        tasks.iter().filter(|task| self.wait_status(**task).outcome.word() == "done").count()
    }

    /// Waits until nothing is assigned to anybody.
    #[track_caller]
    pub fn wait_nothing_assigned(&self) {
        wait_for("all assignments to be gone", || {
            let assigned: Vec<String> = self.assigned();
            if assigned.is_empty() { Ok(()) } else { Err(format!("{assigned:?}")) }
        });
    }

    /// `worker/task`, for all that is assigned.
    #[track_caller]
    pub fn assigned(&self) -> Vec<String> {
        let mut all = Vec::new();
        for worker in self.children(paths::ASSIGN) {
            all.extend(self.children(&format!("/assign/{worker}")).iter().map(|task| format!("{worker}/{task}")));
        }
        all
    }

    /// Waits until a task is assigned to a worker.
    #[track_caller]
    pub fn wait_assigned(&self, worker: &str, task: TaskName) {
        wait_for(&format!("{task} to be assigned to {worker}"), || {
            self.stat(&format!("/assign/{worker}/{task}")).map(drop).ok_or_else(|| self.picture())
        });
    }

    /// Waits until a worker has a desk and is registered.
    #[track_caller]
    pub fn wait_worker(&self, name: &str) {
        wait_for(&format!("{name} to register"), || {
            let there = self.stat(&format!("/workers/{name}")).and(self.stat(&format!("/assign/{name}")));
            there.map(drop).ok_or_else(|| self.picture())
        });
    }

    /// The session that made an ephemeral which is there.
    #[track_caller]
    pub fn owner(&self, path: &str) -> i64 {
        let stat = self.stat(path).unwrap_or_else(|| panic!("no {path}: {}", self.picture()));
        stat.owner.expect("an ephemeral").0
    }

    /// What a panic shows of the tree.
    #[track_caller]
    pub fn picture(&self) -> Picture<'_> {
        Picture(self)
    }
}

/// What stands in a tree: read when it is displayed, request by request.
pub struct Picture<'a>(&'a Tree);

impl fmt::Display for Picture<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Picture(tree) = self;
        let unfinished = |name: &&String| tree.stat(&format!("/tasks/{name}/status")).is_none();
        let tasks = tree.children(paths::TASKS);
        let unfinished: Vec<&String> = tasks.iter().filter(unfinished).take(10).collect();
        write!(
            f,
            "master {:?}, workers {:?}, assigned {:?}, {} tasks, unfinished: {unfinished:?}",
            tree.text(paths::MASTER),
            tree.children(paths::WORKERS),
            tree.assigned(),
            tasks.len(),
        )
    }
}

/// Opens a session whose threads and socket are in a host.
pub(crate) fn open(config: &Config, host: Option<&Host>) -> Result<Session, OpenError> {
    let open = || Session::open(config, 1, &(Arc::new(|_| {}) as zk_session::Notify));
    match host {
        Some(host) => host.run(open),
        None => open(),
    }
}
