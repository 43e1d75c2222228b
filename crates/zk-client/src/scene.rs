//! Where the output of a task is to be had: which attempts there were and are, and on which workers.
//!
//! What may have changed is read again; the watches that say so are set before. An assignment is looked for at the desk of
//! every worker, with a watch at each where it is not there: so the first byte can be shown at once, and nobody asks twice.

use std::collections::{BTreeMap, BTreeSet};

use zk_session::{Error, Session, in_parallel};
use znode_paths::paths::{self, Place, TaskChild, task_child};
use znode_paths::{Assignment, Attempt, StatusMeta, TaskName, Worker, WorkerName};

use crate::look::{self, TaskSeen};

/// An attempt.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Act {
    /// Its number; nothing for an assignment made by hand.
    pub(crate) attempt: Option<u32>,
    /// Who runs it or ran it; nothing where a status made by hand does not say.
    pub(crate) worker: Option<WorkerName>,
    /// It has ended, or is to.
    pub(crate) over: bool,
}

/// All that is known of a task's attempts.
#[derive(Debug)]
pub(crate) struct Scene {
    task: TaskName,
    czxid: i64,
    records: BTreeMap<u32, Attempt>,
    /// The assignments of this task, with their czxid. A worker without one has its place here, too.
    desks: BTreeMap<WorkerName, Option<(i64, Assignment)>>,
    ended: Option<Box<TaskSeen>>,
    /// Whose address is wanted, and that address while it is registered.
    host: Option<(WorkerName, Option<String>)>,
    stale: Stale,
}

#[derive(Debug, Default)]
struct Stale {
    task: bool,
    all_desks: bool,
    desks: BTreeSet<WorkerName>,
    host: bool,
}

impl Scene {
    pub(crate) fn new(task: TaskName) -> Self {
        let mut scene = Scene {
            task,
            czxid: 0,
            records: BTreeMap::new(),
            desks: BTreeMap::new(),
            ended: None,
            host: None,
            stale: Stale::default(),
        };
        scene.reopened();
        scene
    }

    /// No watch is left: everything may have changed.
    pub(crate) fn reopened(&mut self) {
        let desks = self.desks.keys().cloned().collect();
        self.stale = Stale { task: true, all_desks: true, desks, host: true };
    }

    /// Something changed at a path.
    pub(crate) fn hint(&mut self, path: &str) {
        match Place::of(path) {
            Some(Place::Task(task) | Place::TaskChild(task, _)) if task == self.task => self.stale.task = true,
            Some(Place::Assign) => self.stale.all_desks = true,
            Some(Place::Assignment(worker, task)) if task == self.task => _ = self.stale.desks.insert(worker),
            Some(Place::Worker(worker)) if self.host.as_ref().is_some_and(|(host, _)| *host == worker) => {
                self.stale.host = true;
            }
            _ => {}
        }
    }

    /// Reads what may have changed. Returns whether there is such a task.
    pub(crate) fn refresh(&mut self, session: &Session) -> Result<bool, Error> {
        if self.stale.task {
            if !self.read_task(session)? {
                return Ok(false);
            }
            self.stale.task = false;
        }
        if self.ended.is_none() {
            self.read_desks(session)?;
        }
        if let (true, Some((worker, address))) = (self.stale.host, &mut self.host) {
            let path = paths::worker(worker);
            session.stat(&path, true)?; // the watch, also where nobody is registered
            let registered = session.read(&path, false)?.and_then(|(data, _)| Worker::decode(&data).ok());
            *address = registered.map(|worker| worker.address);
            self.stale.host = false;
        }
        Ok(true)
    }

    fn read_task(&mut self, session: &Session) -> Result<bool, Error> {
        let Some(children) = session.children(&paths::task(&self.task), true)? else { return Ok(false) };
        let Some(seen) = look::task(session, self.task)? else { return Ok(false) };
        for child in children.iter().filter_map(|child| task_child(child)) {
            if let TaskChild::Attempt(number) = child
                && !self.records.contains_key(&number)
                && let Some((data, _)) = session.read(&paths::attempt(&self.task, number), false)?
            {
                self.records.insert(number, Attempt::decode(&data));
            }
        }
        self.czxid = seen.czxid;
        if seen.status.is_some() {
            self.ended = Some(Box::new(seen));
        }
        Ok(true)
    }

    fn read_desks(&mut self, session: &Session) -> Result<(), Error> {
        if self.stale.all_desks {
            let names = match session.children(paths::ASSIGN, true)? {
                None if session.stat(paths::ASSIGN, true)?.is_some() => return self.read_desks(session), // just made
                names => names.unwrap_or_default(),
            };
            let workers: BTreeSet<WorkerName> = names.iter().filter_map(|name| name.parse().ok()).collect();
            self.desks.retain(|worker, _| workers.contains(worker));
            self.stale.desks.extend(workers.into_iter().filter(|worker| !self.desks.contains_key(worker)));
            self.stale.all_desks = false;
        }
        let stale: Vec<WorkerName> = self.stale.desks.iter().cloned().collect();
        let read = in_parallel(&stale, |worker| {
            let path = paths::assignment(worker, &self.task);
            if session.stat(&path, true)?.is_none() {
                return Ok(None);
            }
            Ok(session.read(&path, false)?.map(|(data, stat)| (stat.czxid, Assignment::decode(&data))))
        });
        for (worker, read) in stale.into_iter().zip(read) {
            let assignment = match read {
                // Somebody else's, who does not want it known.
                Err(Error::NotAllowed(_)) => None,
                read => read?,
            };
            self.desks.insert(worker, assignment);
        }
        self.stale.desks.clear();
        Ok(())
    }

    /// Says whose address is wanted.
    pub(crate) fn set_host(&mut self, worker: Option<&WorkerName>) {
        self.host = worker.map(|worker| (worker.clone(), None));
        self.stale.host = true;
    }

    /// That address, while it is registered.
    pub(crate) fn address(&self) -> Option<&str> {
        self.host.as_ref().and_then(|(_, address)| address.as_deref())
    }

    /// How the task ended, if it has.
    pub(crate) fn ended(&self) -> Option<&TaskSeen> {
        self.ended.as_deref()
    }

    /// That, taken out.
    pub(crate) fn take_ended(&mut self) -> Option<TaskSeen> {
        self.ended.take().map(|seen| *seen)
    }

    /// The attempts, by the czxid of their assignments, which is the order in which they were made. A record whose author
    /// did not know that is not there; nor is one that was handed back.
    pub(crate) fn acts(&self) -> BTreeMap<i64, Act> {
        let mut acts = BTreeMap::new();
        for (worker, desk) in &self.desks {
            let Some((fence, Assignment { meta })) = desk else { continue };
            if meta.as_ref().is_none_or(|meta| meta.task == self.czxid && !meta.returned) {
                let attempt = meta.as_ref().map(|meta| meta.attempt);
                acts.insert(*fence, Act { attempt, worker: Some(worker.clone()), over: self.ended.is_some() });
            }
        }
        for (number, Attempt { meta, .. }) in &self.records {
            if let Some((fence, worker)) = meta.as_ref().and_then(|meta| meta.fence.zip(meta.worker.clone())) {
                acts.insert(fence, Act { attempt: Some(*number), worker: Some(worker), over: true });
            }
        }
        if let Some(meta @ StatusMeta { attempt, worker, .. }) = self.last_words()
            && (meta.stdout.is_some() || meta.stderr.is_some())
        {
            let act = Act { attempt: *attempt, worker: worker.clone(), over: true };
            acts.insert(meta.fence.unwrap_or(BY_HAND), act);
        }
        acts
    }

    fn last_words(&self) -> Option<&StatusMeta> {
        self.ended.as_ref()?.status.as_ref()?.meta.as_ref()
    }

    /// What the status says about the attempt with this czxid, if it is about that.
    pub(crate) fn tails(&self, fence: i64) -> Option<&StatusMeta> {
        self.last_words().filter(|meta| meta.fence.unwrap_or(BY_HAND) == fence)
    }
}

/// Stands for the czxid of an assignment in a status that does not say it.
const BY_HAND: i64 = i64::MAX;

#[cfg(test)]
mod tests {
    use super::*;
    use znode_paths::{AssignmentMeta, AttemptMeta, Status, Task};

    const CZXID: i64 = 5;

    fn name(name: &str) -> WorkerName {
        name.parse().unwrap()
    }

    fn scene() -> Scene {
        Scene { czxid: CZXID, stale: Stale::default(), ..Scene::new(TaskName::from_number(1)) }
    }

    fn assigned(scene: &mut Scene, worker: &str, fence: i64, change: impl FnOnce(&mut AssignmentMeta)) {
        let mut meta = AssignmentMeta::new(None, 1, 2, CZXID);
        change(&mut meta);
        scene.desks.insert(name(worker), Some((fence, Assignment { meta: Some(meta) })));
    }

    fn recorded(scene: &mut Scene, number: u32, worker: &str, fence: Option<i64>) {
        let meta = AttemptMeta { worker: Some(name(worker)), fence, ..AttemptMeta::default() };
        scene.records.insert(number, Attempt::failed(meta));
    }

    fn ended(scene: &mut Scene, status: &str) {
        let status = Some(Status::decode(status.as_bytes()));
        let (name, task) = (scene.task, Task::plain("x"));
        scene.ended = Some(Box::new(TaskSeen { name, czxid: CZXID, submitted_ms: 0, task, status }));
    }

    /// `czxid attempt worker`, with `!` for one that is over.
    #[track_caller]
    fn check(scene: &Scene, expected: &[&str]) {
        let text = |(fence, act): (&i64, &Act)| {
            let attempt = act.attempt.map_or("-".to_owned(), |attempt| attempt.to_string());
            let worker = act.worker.as_ref().map_or("-", WorkerName::as_str);
            format!("{fence} {attempt} {worker}{}", if act.over { "!" } else { "" })
        };
        assert_eq!(scene.acts().iter().map(text).collect::<Vec<_>>(), expected);
    }

    #[test]
    fn attempts_are_in_the_order_of_their_assignments() {
        let mut scene = scene();
        check(&scene, &[]);
        recorded(&mut scene, 1, "z", Some(20));
        assigned(&mut scene, "a", 30, |_| ());
        check(&scene, &["20 1 z!", "30 2 a"]);
        recorded(&mut scene, 2, "a", Some(30));
        check(&scene, &["20 1 z!", "30 2 a!"]);
        ended(
            &mut scene,
            "done\n{\"zk\":1,\"worker\":\"b\",\"attempt\":3,\"fence\":40,\"stdout\":{\"length\":0,\"text\":\"\"}}",
        );
        check(&scene, &["20 1 z!", "30 2 a!", "40 3 b!"]);
        assert!(scene.tails(40).is_some() && scene.tails(30).is_none());
    }

    #[test]
    fn what_nobody_runs_has_no_output() {
        let mut scene = scene();
        assigned(&mut scene, "a", 10, |meta| meta.returned = true);
        assigned(&mut scene, "b", 11, |meta| meta.task = CZXID + 1);
        recorded(&mut scene, 1, "c", None);
        scene.desks.insert(name("d"), None);
        check(&scene, &[]);
        scene.desks.insert(name("d"), Some((12, Assignment::default())));
        check(&scene, &["12 - d"]);
        ended(&mut scene, "lost\n{\"zk\":1,\"reason\":\"x\"}");
        check(&scene, &["12 - d!"]);
    }

    #[test]
    fn a_status_by_hand_may_hold_output_of_nobody() {
        let mut scene = scene();
        ended(&mut scene, "done\n{\"zk\":1,\"stdout\":{\"length\":1,\"text\":\"x\"}}");
        check(&scene, &[&format!("{} - -!", i64::MAX)]);
        assert!(scene.tails(i64::MAX).is_some());
    }

    #[test]
    fn a_hint_makes_stale_what_it_is_about() {
        let mut scene = scene();
        scene.set_host(Some(&name("w")));
        scene.stale = Stale::default();
        let stale = |scene: &mut Scene, path: &str| {
            scene.hint(path);
            let Stale { task, all_desks, desks, host } = std::mem::take(&mut scene.stale);
            (task, all_desks, desks.len(), host)
        };
        assert_eq!(stale(&mut scene, "/tasks/task-0000000001"), (true, false, 0, false));
        assert_eq!(stale(&mut scene, "/tasks/task-0000000001/status"), (true, false, 0, false));
        assert_eq!(stale(&mut scene, "/assign"), (false, true, 0, false));
        assert_eq!(stale(&mut scene, "/assign/w/task-0000000001"), (false, false, 1, false));
        assert_eq!(stale(&mut scene, "/workers/w"), (false, false, 0, true));
        for path in ["/tasks/task-0000000002", "/assign/w/task-0000000002", "/assign/w", "/workers/v", "/workers", "x"]
        {
            assert_eq!(stale(&mut scene, path), (false, false, 0, false), "{path}");
        }
    }
}
