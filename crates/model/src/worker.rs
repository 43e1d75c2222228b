//! A worker: `zk-worker`'s loop around the real [`judge`], [`oversee`], [`report`], [`counts`] and [`Starts`].

use std::collections::{BTreeMap, BTreeSet};

use zk_worker::judge::{
    Case, Own, Report, Starts, TaskFacts, Verdict, Why, counts, judge, oversee, report, retries_left, too_late,
};
use znode_paths::{Assignment, AssignmentMeta, AttemptKind, Instance, Task, TaskName};

use crate::Setting;
use crate::master::introduce;
use crate::mutation::Mutation;
use crate::process::{Ask, Io, Request};
use crate::tree::{Data, Node, Parent, Path, Refusal, SessionId, Tree};

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) struct Worker {
    /// Its name.
    pub(crate) name: u8,
    pub(crate) instance: Instance,
    /// All that this process has been, the present one included.
    pub(crate) instances: Vec<Instance>,
    /// How many instances there have been under this name.
    pub(crate) lives: u16,
    pub(crate) jobs: BTreeMap<TaskName, Job>,
    starts: Starts,
    /// The session whose proofs the leash follows.
    pub(crate) leash: Option<SessionId>,
    /// The leash has run out: everything is dead, nothing is started.
    pub(crate) expired: bool,
    /// Commands that ended, by the czxid of their assignment, and whether they succeeded.
    pub(crate) exits: Vec<(i64, bool)>,
    link: Link,
}

/// What is known on a session, and goes with it.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Default)]
struct Link {
    introduced: bool,
    registration: Registration,
    desk_stale: bool,
    /// Jobs whose task or assignment may have changed.
    stale: BTreeSet<TaskName>,
    settled: BTreeSet<TaskName>,
    waiting: BTreeSet<TaskName>,
    written: bool,
    /// Of the desk: jobs to be looked after, then assignments to be judged.
    oversee: Vec<TaskName>,
    consider: Vec<TaskName>,
    /// A pass is on its way.
    pass: bool,
    /// When each was read, for the watches.
    desk_at: i64,
    registration_at: i64,
    read_at: BTreeMap<TaskName, ReadAt>,
}

/// Up to which change the watches of a task have been set.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
struct ReadAt {
    assignment: i64,
    children: i64,
    data: i64,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
enum Registration {
    #[default]
    Stale,
    Contested,
    Registered,
}

/// A task that was started here.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) struct Job {
    /// The czxid of the task.
    task: i64,
    /// The czxid of the assignment.
    pub(crate) fence: i64,
    attempt: u32,
    instance: Instance,
    /// After a failure there is another attempt.
    again: bool,
    stage: Stage,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
enum Stage {
    Running(Option<Why>),
    /// Why it was stopped, and whether it succeeded.
    Ended(Option<Why>, bool),
}

impl Worker {
    pub(crate) fn new(name: u8, lives: u16) -> Self {
        let instance = instance(name, lives);
        Worker {
            name,
            instance,
            instances: vec![instance],
            lives: lives + 1,
            jobs: BTreeMap::new(),
            starts: Starts::default(),
            leash: None,
            expired: false,
            exits: Vec::new(),
            link: Link::default(),
        }
    }

    pub(crate) fn lose(&mut self) {
        self.link = Link::default();
    }

    /// Whether it is registered on its session, as far as it knows.
    pub(crate) fn registered(&self) -> bool {
        self.link.registration == Registration::Registered
    }

    /// The leash has run out, and there is no session: everything is dead, it goes on as another instance.
    pub(crate) fn start_over_if_expired(&mut self, setting: &Setting) {
        if !self.expired {
            return;
        }
        self.hear();
        self.jobs.retain(|_, job| matches!(job.stage, Stage::Ended(..)));
        let jobs = &self.jobs;
        self.starts.keep(|name| jobs.contains_key(name));
        if setting.mutation != Some(Mutation::SameInstance) {
            self.instance = instance(self.name, self.lives);
            self.lives += 1;
            self.instances.push(self.instance);
        }
        (self.leash, self.expired) = (None, false);
    }

    /// Takes note of the commands that ended.
    pub(crate) fn hear(&mut self) {
        for (fence, success) in std::mem::take(&mut self.exits) {
            let Some((name, job)) = self.jobs.iter_mut().find(|(_, job)| job.fence == fence) else { continue };
            let Stage::Running(why) = job.stage else { continue };
            let name = *name;
            if self.expired {
                self.jobs.remove(&name);
                continue;
            }
            job.stage = Stage::Ended(why, success);
            self.link.desk_stale = true;
            self.link.written = false;
        }
    }

    /// Whether there is anything in the mailbox, when all that happened until this zxid was told.
    pub(crate) fn has_news(&self, tree: &Tree, seen: i64) -> bool {
        let link = &self.link;
        self.expired
            || !self.exits.is_empty()
            || self.registration_changed(tree, seen)
            || self.registered()
                && (tree.children_changed(Parent::Desk(self.name), link.desk_at, seen)
                    || self.jobs.keys().chain(&link.waiting).any(|task| self.task_changed(tree, *task, seen))
                    || link.settled.iter().any(|task| self.assignment_changed(tree, *task, seen)))
    }

    /// Looks into the mailbox.
    pub(crate) fn look(&mut self, tree: &Tree, seen: i64) {
        self.hear();
        if self.registration_changed(tree, seen) {
            self.link.registration = Registration::Stale;
        }
        if self.registered() {
            let changed = |task: &TaskName| self.task_changed(tree, *task, seen);
            let stale: Vec<TaskName> = self.jobs.keys().copied().filter(|task| changed(task)).collect();
            let waiting = self.link.waiting.iter().any(changed);
            let unsettled = self.link.settled.iter().copied().filter(|task| self.assignment_changed(tree, *task, seen));
            let unsettled: Vec<TaskName> = unsettled.collect();
            let (name, link) = (self.name, &mut self.link);
            let desk = tree.children_changed(Parent::Desk(name), link.desk_at, seen);
            link.desk_stale |= desk || waiting || !stale.is_empty() || !unsettled.is_empty();
            link.settled.retain(|task| !unsettled.contains(task));
            link.stale.extend(stale);
        }
    }

    fn registration_changed(&self, tree: &Tree, seen: i64) -> bool {
        let at = self.link.registration_at;
        let desk = Path::Desk(self.name);
        self.link.registration != Registration::Stale
            && (tree.changed(Path::Worker(self.name), at, seen)
                || tree.changed(desk, at, seen) && tree.at(desk, seen).is_none())
    }

    fn task_changed(&self, tree: &Tree, task: TaskName, seen: i64) -> bool {
        let ReadAt { children, data, .. } = self.link.read_at.get(&task).copied().unwrap_or_default();
        tree.children_changed(Parent::Task(task), children, seen)
            || tree.changed(Path::Task(task), data, seen)
            || self.assignment_changed(tree, task, seen)
    }

    fn assignment_changed(&self, tree: &Tree, task: TaskName, seen: i64) -> bool {
        let ReadAt { assignment, .. } = self.link.read_at.get(&task).copied().unwrap_or_default();
        tree.changed(Path::Assignment(self.name, task), assignment, seen)
    }

    fn has_work(&self) -> bool {
        let link = &self.link;
        let results = !link.written && self.jobs.values().any(|job| matches!(job.stage, Stage::Ended(..)));
        link.registration == Registration::Stale || results || (link.desk_stale && self.registered())
    }

    /// One unit of whatever is next.
    pub(crate) fn unit(&mut self, io: &mut Io<'_>) -> Result<(), Ask> {
        if !self.link.pass {
            self.link.pass = !self.expired && self.has_work();
            return if self.link.pass { Ok(()) } else { Err(Ask(Request::Look)) };
        }
        if self.link.registration == Registration::Stale {
            return self.register(io);
        }
        if !self.link.written {
            return self.write_result(io);
        }
        if !self.registered() {
            self.link.pass = false;
            return Ok(());
        }
        if let Some(task) = self.link.oversee.first().copied() {
            self.oversee(io, task)?;
            self.link.oversee.remove(0);
            return Ok(());
        }
        if let Some(task) = self.link.consider.first().copied() {
            self.consider(io, task)?;
            self.link.consider.remove(0);
            // What could not be started has ended at once; what was started is written when it ends.
            return Ok(());
        }
        if self.link.desk_stale {
            return self.read_desk(io);
        }
        self.link.pass = false;
        Ok(())
    }

    fn register(&mut self, io: &mut Io<'_>) -> Result<(), Ask> {
        if !self.link.introduced {
            introduce(io, self.instance, &self.instances)?;
            self.link.introduced = true;
            return Ok(());
        }
        let path = Path::Worker(self.name);
        loop {
            io.write(|| Request::Own(path, Data::Registration(self.instance)))?.ok(); // or somebody is there
            let (node, seen) = io.get_seen(path)?;
            self.link.registration_at = seen;
            match node {
                Some(node) if node.owner == io.session => break,
                Some(_) => {
                    self.link.registration = Registration::Contested;
                    return Ok(());
                }
                None => {}
            }
        }
        io.write(|| Request::Create(Path::Desk(self.name), Data::Empty))?.ok(); // or it is there
        self.link.registration = Registration::Registered;
        self.link.desk_stale = true;
        self.link.stale.extend(self.jobs.keys());
        Ok(())
    }

    /// Writes what came of one command that has ended.
    fn write_result(&mut self, io: &mut Io<'_>) -> Result<(), Ask> {
        let ended = |(name, job): (&TaskName, &Job)| match job.stage {
            Stage::Ended(why, success) => Some((*name, job.clone(), why, success)),
            Stage::Running(_) => None,
        };
        let Some((name, job, mut why, success)) = self.jobs.iter().find_map(ended) else {
            self.link.written = true;
            return Ok(());
        };
        if self.link.stale.contains(&name) && read_task(io, name)?.0.is_some_and(|(facts, _)| facts.cancel) {
            why = why.max(Some(Why::Cancelled));
        }
        let assignment = Path::Assignment(self.name, name);
        let written = report(why, success, job.again);
        if counts(job.instance, self.instance, job.fence, || Ok(io.get(assignment)?.map(|node| node.czxid)))? {
            let record = |kind| Some((Path::Attempt(name, job.attempt), Data::Attempt(Some(kind))));
            let data = match &written {
                Report::Status(outcome) => Some((Path::Status(name), Data::Status(outcome.clone()))),
                Report::Failed => record(AttemptKind::Failed),
                Report::Lost => record(AttemptKind::Lost),
                Report::Nothing => None,
            };
            if let Some((path, data)) = data {
                // Whatever is there already is final.
                io.write(|| Request::Create(path, data))?.ok();
            }
            while written == Report::Failed
                && let Some(node) = io.get(assignment)?.filter(|node| node.czxid == job.fence)
                && io.write(|| Request::Delete(assignment, Some(node.version)))? == Err(Refusal::BadVersion)
            {
            }
        }
        self.jobs.remove(&name);
        self.link.desk_stale = true;
        Ok(())
    }

    fn read_desk(&mut self, io: &mut Io<'_>) -> Result<(), Ask> {
        let (children, seen) = io.list(Parent::Desk(self.name))?;
        let link = &mut self.link;
        link.desk_stale = false;
        link.desk_at = seen;
        let Some(children) = children else {
            link.registration = Registration::Stale;
            return Ok(());
        };
        let name = |(path, _): &(Path, Node)| if let Path::Assignment(_, task) = *path { Some(task) } else { None };
        let assigned: BTreeSet<TaskName> = children.iter().filter_map(name).collect();
        link.settled.retain(|task| assigned.contains(task));
        link.waiting.clear();
        let jobs = &self.jobs;
        self.starts.keep(|task| assigned.contains(task) || jobs.contains_key(task));
        let stale = std::mem::take(&mut link.stale);
        let changed = |(task, job): (&TaskName, &Job)| {
            let running = matches!(job.stage, Stage::Running(_));
            (running && (stale.contains(task) || !assigned.contains(task))).then_some(*task)
        };
        link.oversee = jobs.iter().filter_map(changed).collect();
        link.consider = assigned.into_iter().filter(|task| !link.settled.contains(task)).collect();
        Ok(())
    }

    fn oversee(&mut self, io: &mut Io<'_>, task: TaskName) -> Result<(), Ask> {
        let path = Path::Assignment(self.name, task);
        let (assignment, at) = io.get_seen(path)?;
        let own = assignment.filter(|node| self.jobs.get(&task).is_some_and(|job| job.fence == node.czxid));
        if let Some(Node { data: Data::Assignment(recalled), version, .. }) = own
            && let Some(answer) = too_late(recalled.clone())
        {
            io.write(|| Request::Set(path, Data::Assignment(answer.clone()), Some(*version)))?.ok();
        }
        let (read, read_at) = read_task(io, task)?;
        let facts = read.map(|(facts, _)| facts);
        self.link.read_at.insert(task, ReadAt { assignment: at, ..read_at });
        let Some(job) = self.jobs.get_mut(&task) else { return Ok(()) };
        let ours = assignment.is_some_and(|node| node.czxid == job.fence);
        if let Stage::Running(stop) = &mut job.stage {
            *stop = oversee(facts.as_ref(), job.task, ours).max(*stop);
        }
        Ok(())
    }

    fn consider(&mut self, io: &mut Io<'_>, task: TaskName) -> Result<(), Ask> {
        if self.jobs.contains_key(&task) {
            return Ok(());
        }
        let path = Path::Assignment(self.name, task);
        let (Some(node), at) = io.get_seen(path)? else { return Ok(()) };
        if self.starts.contain(&task, node.czxid) {
            self.link.read_at.entry(task).or_default().assignment = at;
            self.link.settled.insert(task);
            return Ok(());
        }
        let Data::Assignment(assignment) = &node.data else { return Ok(()) };
        let epoch = match io.get(Path::Epoch)?.map(|node| &node.data) {
            Some(Data::Epoch(epoch)) => Some(*epoch),
            _ => None,
        };
        let (read, read_at) = read_task(io, task)?;
        let again = read.as_ref().is_some_and(|(facts, task)| retries_left(task, facts.failures));
        let facts = read.map(|(facts, _)| facts);
        let czxid = facts.as_ref().map_or(0, |facts| facts.czxid);
        let running = self.jobs.values().filter(|job| matches!(job.stage, Stage::Running(_))).count();
        let room = running < usize::try_from(io.setting.slots).unwrap_or(usize::MAX);
        let own = Own { instance: self.instance, room, leaving: false };
        let fence = assignment.meta.as_ref().map(|meta| meta.fence);
        let (assignment, epoch) = io.setting.mutated_case(assignment, epoch, own.instance);
        self.link.read_at.insert(task, ReadAt { assignment: at, ..read_at });
        match judge(&Case { assignment: &assignment, epoch, task: facts }, own) {
            Verdict::Wait => _ = self.link.waiting.insert(task),
            Verdict::Start(attempt) => {
                if io.start(|| Request::Start { task, czxid: node.czxid, fence })? {
                    self.starts.note(task, node.czxid);
                    let stage = Stage::Running(None);
                    let job = Job { task: czxid, fence: node.czxid, attempt, instance: self.instance, again, stage };
                    self.jobs.insert(task, job);
                }
            }
            Verdict::Leave(_) => _ = self.link.settled.insert(task),
            Verdict::Delete(_) => {
                io.write(|| Request::Delete(path, Some(node.version)))?.ok(); // what is there now fires the watch
                self.link.desk_stale = true;
            }
            Verdict::Return => {
                let made_by_hand = || AssignmentMeta::new(Some(self.instance), epoch.unwrap_or_default(), 1, czxid);
                let meta = AssignmentMeta { returned: true, ..assignment.meta.clone().unwrap_or_else(made_by_hand) };
                let data = || Data::Assignment(Assignment { meta: Some(meta.clone()) });
                io.write(|| Request::Set(path, data(), Some(node.version)))?.ok();
                self.link.settled.insert(task);
            }
            Verdict::End(outcome, _) => {
                let written: Result<(), Refusal> =
                    io.write(|| Request::Create(Path::Status(task), Data::Status(outcome.clone())))?;
                written.ok(); // or there is one already
                self.link.settled.insert(task);
            }
        }
        Ok(())
    }
}

fn instance(name: u8, life: u16) -> Instance {
    Instance::from_random(0x3000 + u64::from(name) * 0x1000 + u64::from(life))
}

/// What is below the task, then the task itself.
fn read_task(io: &mut Io<'_>, name: TaskName) -> Result<(Option<(TaskFacts, Task)>, ReadAt), Ask> {
    let (children, at) = io.list(Parent::Task(name))?;
    let (node, data) = io.get_seen(Path::Task(name))?;
    let read_at = ReadAt { children: at, data, assignment: 0 };
    let (Some(children), Some(Node { czxid, data: Data::Task(submit), .. })) = (children, node) else {
        return Ok((None, read_at));
    };
    let mut facts = TaskFacts { czxid: *czxid, ..TaskFacts::default() };
    for (path, node) in children {
        match *path {
            Path::Status(_) => facts.status = true,
            Path::Cancel(_) => facts.cancel = true,
            Path::Attempt(_, number) => {
                facts.attempts.insert(number);
                facts.failures += u32::from(node.data == Data::Attempt(Some(AttemptKind::Failed)));
            }
            _ => {}
        }
    }
    let meta = Some(io.setting.meta(*submit));
    Ok((Some((facts, Task { command: "x".to_owned(), meta })), read_at))
}
