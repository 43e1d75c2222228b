//! A master: `zk-master`'s loop around the real [`plan`], [`View`] and [`fence`].

use std::collections::{BTreeMap, BTreeSet};

use zk_master::plan::{Chain, Plan, Retention, Step, plan};
use zk_master::view::{Desk, Known, Open, Recorded, Stage, View, fence};
use zk_worker::judge::is_earlier;
use znode_paths::{Assignment, AssignmentMeta, Instance, LiveName, Outcome, TaskName, Worker, WorkerMeta};

use crate::mutation::Mutation;
use crate::process::{Ask, Io, Request};
use crate::tree::{Data, Parent, Path, Refusal, Tree, worker_name, worker_of};

/// Nothing is removed because of its age: time in a schedule is far too short for that.
const RETENTION: Retention = Retention { age_ms: i64::MAX, count: usize::MAX };

/// What is read, and read again when it may have changed: in this order.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
enum Part {
    Reign,
    Epoch,
    Assign,
    Desk(u8),
    Tasks,
    /// What is below it.
    Task(TaskName),
    /// Its data.
    Data(TaskName),
    Registration(u8),
    Workers,
    Live,
}

impl Part {
    /// Whether a watch on it has fired by now that was set when it was read.
    fn changed(self, tree: &Tree, at: i64, seen: i64) -> bool {
        let changed = |path| tree.changed(path, at, seen);
        let children = |parent| tree.children_changed(parent, at, seen);
        match self {
            Part::Reign => changed(Path::Master),
            Part::Epoch => changed(Path::Epoch),
            Part::Assign => children(Parent::Assign),
            Part::Desk(worker) => children(Parent::Desk(worker)),
            Part::Tasks => children(Parent::Tasks),
            Part::Task(name) => children(Parent::Task(name)),
            Part::Data(name) => changed(Path::Task(name)),
            Part::Registration(worker) => changed(Path::Worker(worker)),
            Part::Workers => children(Parent::Workers),
            Part::Live => children(Parent::Live),
        }
    }
}

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) struct Master {
    pub(crate) name: u8,
    /// How many processes there have been under this name.
    pub(crate) lives: u16,
    instance: Instance,
    pub(crate) state: State,
    /// What is being carried out, and how far each chain is.
    pub(crate) chains: Vec<(Chain, usize)>,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) enum State {
    /// The session is new.
    Unknown,
    /// Somebody else is the primary, as was seen at this zxid; nothing was looked at yet.
    StandingBy(Option<i64>),
    Reigning(Box<Reign>),
}

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) struct Reign {
    pub(crate) view: View,
    stale: BTreeSet<Part>,
    /// When each part was read, for the watches on it.
    read_at: BTreeMap<Part, i64>,
    /// A pass is on its way, and how far.
    pass: Option<Pass>,
    wake_ms: Option<i64>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
enum Pass {
    Begun,
    DesksRead,
    TasksRead,
}

impl Master {
    pub(crate) fn new(name: u8, lives: u16) -> Self {
        let instance = Instance::from_random(u64::from(name) * 0x1000 + u64::from(lives));
        Master { name, lives: lives + 1, instance, state: State::Unknown, chains: Vec::new() }
    }

    pub(crate) fn lose(&mut self) {
        self.state = State::Unknown;
        self.chains.clear();
    }

    /// Whether there is anything in the mailbox, when all that happened until this zxid was told, or a time has come.
    pub(crate) fn has_news(&self, tree: &Tree, seen: i64, now_ms: i64) -> bool {
        match &self.state {
            State::Unknown | State::StandingBy(None) => true,
            State::StandingBy(Some(at)) => tree.changed(Path::Master, *at, seen),
            State::Reigning(reign) => {
                reign.wake_ms.is_some_and(|at_ms| at_ms <= now_ms)
                    || !reign.stale.is_empty()
                    || reign.read_at.iter().any(|(part, at)| part.changed(tree, *at, seen))
            }
        }
    }

    /// Looks into the mailbox.
    pub(crate) fn look(&mut self, tree: &Tree, seen: i64) {
        match &mut self.state {
            State::Unknown => {}
            State::StandingBy(at) => *at = at.filter(|at| !tree.changed(Path::Master, *at, seen)),
            State::Reigning(reign) => {
                let changed = reign.read_at.iter().filter(|(part, at)| part.changed(tree, **at, seen));
                let changed: Vec<Part> = changed.map(|(part, _)| *part).collect();
                // A watch fires once.
                reign.read_at.retain(|part, _| !changed.contains(part));
                if changed.iter().any(|part| matches!(part, Part::Registration(_))) {
                    reign.stale.insert(Part::Workers);
                }
                reign.stale.extend(changed);
                reign.pass = Some(Pass::Begun);
            }
        }
    }

    /// One unit of whatever is next.
    pub(crate) fn unit(&mut self, io: &mut Io<'_>) -> Result<(), Ask> {
        match &mut self.state {
            State::Unknown => {
                introduce(io, self.instance, &[self.instance])?;
                self.state = State::StandingBy(None);
                Ok(())
            }
            State::StandingBy(Some(_)) => Err(Ask(Request::Look)),
            State::StandingBy(None) => {
                self.state = stand(io)?;
                Ok(())
            }
            State::Reigning(reign) => {
                if reign.pass.is_none() {
                    return Err(Ask(Request::Look));
                }
                match reign.read(io)? {
                    Progress::Reading => {}
                    Progress::Deposed => self.state = State::StandingBy(None),
                    Progress::Planned(plan) => {
                        reign.pass = None;
                        reign.wake_ms = plan.look_again_ms;
                        let chains = io.setting.mutated_chains(plan.chains, &reign.view);
                        self.chains = chains.into_iter().map(|chain| (chain, 0)).collect();
                    }
                }
                Ok(())
            }
        }
    }

    /// One request of a chain, as `zk-master`'s `execute` does it. Returns whether the chain goes on.
    pub(crate) fn carry_out(&mut self, chain: usize, io: &mut Io<'_>) -> Result<bool, Ask> {
        let (steps, at) = &mut self.chains[chain];
        let Some(step) = steps.get(*at) else { return Ok(false) };
        let done = match step {
            Step::Record(name, number, attempt) => {
                already(io.write(|| Request::Create(Path::Attempt(*name, *number), Data::Attempt(attempt.kind)))?)
            }
            Step::Finish(name, status) => {
                already(io.write(|| Request::Create(Path::Status(*name), Data::Status(status.outcome.clone())))?)
            }
            Step::Unassign(worker, name, before) => {
                unassign(io, Path::Assignment(worker_of(worker), *name), before.as_ref())?
            }
            Step::Assign(worker, name, meta) => {
                let data = || Data::Assignment(Assignment { meta: Some(meta.clone()) });
                io.write(|| Request::Create(Path::Assignment(worker_of(worker), *name), data()))?
            }
            Step::Recall(worker, name, meta) => recall(io, Path::Assignment(worker_of(worker), *name), meta)?,
            Step::Remove(name, _) => remove(io, *name)?,
            Step::RemoveDesk(worker) => gone(io.write(|| Request::Delete(Path::Desk(worker_of(worker)), None))?),
        };
        // It stays where it failed, so that what was tried is known.
        *at += usize::from(done.is_ok());
        Ok(done.is_ok() && *at < steps.len())
    }

    /// All chains have ended: what was tried is stale.
    pub(crate) fn carried_out(&mut self) {
        let chains = std::mem::take(&mut self.chains);
        let State::Reigning(reign) = &mut self.state else { return };
        let tried = chains
            .iter()
            .flat_map(|(steps, at)| steps.iter().take(at + 1).enumerate().map(move |(i, step)| (step, i < *at)));
        for (step, done) in tried {
            match step {
                Step::Record(name, ..) | Step::Finish(name, _) => _ = reign.stale.insert(Part::Task(*name)),
                Step::Unassign(worker, name, _) => {
                    if done {
                        reign.view.unassigned(worker, *name);
                    }
                    reign.stale.insert(Part::Desk(worker_of(worker)));
                }
                Step::Assign(worker, name, _) | Step::Recall(worker, name, _) => {
                    reign.stale.insert(Part::Desk(worker_of(worker)));
                    if !done {
                        reign.stale.insert(Part::Task(*name));
                    }
                }
                Step::RemoveDesk(worker) => _ = reign.stale.insert(Part::Desk(worker_of(worker))),
                Step::Remove(name, _) => {
                    reign.view.tasks.remove(*name);
                    reign.stale.insert(Part::Tasks);
                }
            }
        }
    }
}

/// Makes the own node below `/live`, then ends the earlier sessions of the same process.
pub(crate) fn introduce(io: &mut Io<'_>, instance: Instance, instances: &[Instance]) -> Result<(), Ask> {
    let own = LiveName { instance, session: io.number };
    let node = || Request::Own(Path::Live(own.instance, own.session), Data::Empty);
    let late = io.setting.mutation == Some(Mutation::LiveAfterClosing);
    if !late {
        io.write(node)?.ok(); // its name is new
    }
    for (path, _) in io.list(Parent::Live)?.0.into_iter().flatten() {
        let Path::Live(instance, session) = *path else { continue };
        if is_earlier(LiveName { instance, session }, own, instances)
            && let Some(owner) = io.get(*path)?.and_then(|node| node.owner)
        {
            io.write(|| Request::End(owner))?.ok(); // or it expires
        }
    }
    if late {
        io.write(node)?.ok();
    }
    Ok(())
}

/// As `zk-master`'s `execute::unassign`, or as it deletes what belongs to a task that has ended.
fn unassign(io: &mut Io<'_>, path: Path, before: Option<&Assignment>) -> Result<Result<(), Refusal>, Ask> {
    let Some(before) = before else { return Ok(gone(io.write(|| Request::Delete(path, None))?)) };
    match io.get(path)? {
        Some(node) if node.data == Data::Assignment(before.clone()) => {
            Ok(gone(io.write(|| Request::Delete(path, Some(node.version)))?))
        }
        Some(_) => Ok(Err(Refusal::BadVersion)),
        None => Ok(Ok(())),
    }
}

/// As `zk-master`'s `execute::recall`.
fn recall(io: &mut Io<'_>, path: Path, meta: &AssignmentMeta) -> Result<Result<(), Refusal>, Ask> {
    let before = Assignment { meta: Some(AssignmentMeta { recalled: false, ..meta.clone() }) };
    match io.get(path)? {
        Some(node) if node.data == Data::Assignment(before) => {
            let data = || Data::Assignment(Assignment { meta: Some(meta.clone()) });
            io.write(|| Request::Set(path, data(), Some(node.version)))
        }
        Some(_) => Ok(Err(Refusal::BadVersion)),
        None => Ok(Err(Refusal::NoNode)),
    }
}

/// As `zk-master`'s `execute::remove`.
fn remove(io: &mut Io<'_>, name: TaskName) -> Result<Result<(), Refusal>, Ask> {
    let path = Path::Task(name);
    let Some(node) = io.get(path)? else { return Ok(Ok(())) };
    if let Data::Task(submit) = node.data {
        let marked = io.write(|| Request::Set(path, Data::Removed(submit), Some(node.version)))?;
        if marked.is_err() {
            return Ok(marked);
        }
    }
    for (child, _) in io.list(Parent::Task(name))?.0.into_iter().flatten() {
        gone(io.write(|| Request::Delete(*child, None))?).ok();
    }
    Ok(gone(io.write(|| Request::Delete(path, None))?))
}

/// As `zk-master`'s `election::stand`.
fn stand(io: &mut Io<'_>) -> Result<State, Ask> {
    loop {
        io.write(|| Request::Own(Path::Master, Data::Empty))?.ok(); // or somebody is there
        let (Some(node), seen) = io.get_seen(Path::Master)? else { continue };
        if node.owner != io.session {
            return Ok(State::StandingBy(Some(seen)));
        }
        if let Some(fence) = raise_epoch(io, node.czxid)? {
            let view = View { fence, ..View::default() };
            let stale = BTreeSet::from([Part::Reign, Part::Assign, Part::Tasks, Part::Workers]);
            let read_at = BTreeMap::new();
            let reign = Reign { view, stale, read_at, pass: Some(Pass::Begun), wake_ms: None };
            return Ok(State::Reigning(Box::new(reign)));
        }
    }
}

fn raise_epoch(io: &mut Io<'_>, czxid: i64) -> Result<Option<i64>, Ask> {
    loop {
        let before = io.get(Path::Epoch)?;
        if io.get(Path::Master)?.is_none_or(|node| node.owner != io.session || node.czxid != czxid) {
            return Ok(None);
        }
        let epoch = before.and_then(|node| if let Data::Epoch(epoch) = node.data { Some(epoch) } else { None });
        let fence = fence(epoch, czxid);
        let written = match before {
            Some(node) => io.write(|| Request::Set(Path::Epoch, Data::Epoch(fence), Some(node.version)))?,
            None => io.write(|| Request::Create(Path::Epoch, Data::Epoch(fence)))?,
        };
        if written.is_ok() {
            return Ok(Some(fence));
        }
    }
}

enum Progress {
    Reading,
    Deposed,
    Planned(Plan),
}

impl Reign {
    /// Reads one stale part, as `zk-master`'s `Reading` does; plans when there is none.
    fn read(&mut self, io: &mut Io<'_>) -> Result<Progress, Ask> {
        let pass = self.pass.unwrap_or(Pass::Begun);
        let next = self.stale.first().copied();
        if pass < Pass::DesksRead && next.is_none_or(|part| part >= Part::Tasks) {
            let strange = |name: &TaskName| !self.view.tasks.contains_key(name);
            if self.view.assign.values().any(|desk| desk.tasks.keys().any(strange)) {
                self.stale.insert(Part::Tasks);
            }
            if !self.view.missing_since_ms.is_empty() {
                self.stale.insert(Part::Workers);
            }
            // Whoever deleted an assignment may have recorded its attempt before that.
            self.stale.extend(self.view.vanished.keys().map(|name| Part::Task(*name)));
            self.pass = Some(Pass::DesksRead);
            return Ok(Progress::Reading);
        }
        if pass < Pass::TasksRead && next.is_none_or(|part| part >= Part::Registration(0)) {
            self.view.forget_vanished();
            if self.view.misses_somebody() {
                self.stale.insert(Part::Workers);
            }
            self.pass = Some(Pass::TasksRead);
            return Ok(Progress::Reading);
        }
        match next {
            Some(Part::Reign | Part::Epoch) => {
                let (master, master_at) = io.get_seen(Path::Master)?;
                let (epoch, epoch_at) = io.get_seen(Path::Epoch)?;
                let epoch = epoch.map(|node| node.data.clone());
                let reigns = master.is_some_and(|node| node.owner == io.session);
                if !reigns || epoch != Some(Data::Epoch(self.view.fence)) {
                    return Ok(Progress::Deposed);
                }
                self.read_at.extend([(Part::Reign, master_at), (Part::Epoch, epoch_at)]);
                self.stale.remove(&Part::Epoch);
            }
            Some(Part::Assign) => {
                let (desks, seen) = io.list(Parent::Assign)?;
                let there: BTreeSet<u8> = desks.into_iter().flatten().filter_map(|(path, _)| desk(*path)).collect();
                let before: Vec<u8> = self.view.assign.keys().map(worker_of).collect();
                for gone in before.iter().filter(|worker| !there.contains(worker)) {
                    self.view.replace_desk(&worker_name(*gone), None);
                }
                self.stale.extend(there.into_iter().filter(|worker| !before.contains(worker)).map(Part::Desk));
                self.read_at.insert(Part::Assign, seen);
            }
            Some(Part::Desk(worker)) => {
                let (children, seen) = io.list(Parent::Desk(worker))?;
                let mut now = children.is_some().then(Desk::default);
                for (path, _) in children.into_iter().flatten() {
                    let (Path::Assignment(_, name), Some(desk)) = (*path, &mut now) else { continue };
                    let assignment = match io.get(*path)?.map(|node| node.data.clone()) {
                        Some(Data::Assignment(assignment)) => assignment,
                        _ => Assignment::default(),
                    };
                    desk.tasks.insert(name, assignment);
                }
                let there = now.is_some();
                self.view.replace_desk(&worker_name(worker), now);
                match there {
                    true => _ = self.read_at.insert(Part::Desk(worker), seen),
                    false => _ = self.read_at.remove(&Part::Desk(worker)),
                }
            }
            Some(Part::Tasks) => {
                let (tasks, seen) = io.list(Parent::Tasks)?;
                let there: BTreeSet<TaskName> =
                    tasks.into_iter().flatten().filter_map(|(path, _)| task(*path)).collect();
                self.view.tasks.keep(&there);
                let gone = |part: &Part| matches!(part, Part::Task(name) | Part::Data(name) if !there.contains(name));
                self.stale.retain(|part| !gone(part));
                self.read_at.retain(|part, _| !gone(part));
                let new = there.iter().filter(|name| !self.view.tasks.contains_key(name));
                self.stale.extend(new.map(|name| Part::Task(*name)));
                self.read_at.insert(Part::Tasks, seen);
            }
            Some(Part::Task(name) | Part::Data(name)) => {
                let ended = self.view.tasks.get(&name).is_some_and(|known| known.open().is_none());
                if !ended {
                    let (known, data_at, children_at) = read_task(io, name)?;
                    match known {
                        Some(known) => {
                            self.view.tasks.insert(name, known);
                            self.read_at.extend([(Part::Task(name), children_at), (Part::Data(name), data_at)]);
                        }
                        None => {
                            self.view.tasks.remove(name);
                            self.read_at.retain(
                                |part, _| !matches!(part, Part::Task(gone) | Part::Data(gone) if *gone == name),
                            );
                        }
                    }
                }
                self.stale.retain(|part| !matches!(part, Part::Task(read) | Part::Data(read) if *read == name));
            }
            Some(Part::Registration(_) | Part::Workers | Part::Live) => {
                self.take_census(io)?;
                self.stale.retain(|part| *part < Part::Registration(0));
            }
            None => {
                self.view.now_ms = io.now_ms;
                return Ok(Progress::Planned(plan(&self.view, RETENTION)));
            }
        }
        if let Some(part) = next {
            self.stale.remove(&part);
        }
        Ok(Progress::Reading)
    }

    /// A write on the own session, then `/workers`, then `/live`.
    fn take_census(&mut self, io: &mut Io<'_>) -> Result<(), Ask> {
        if io.setting.mutation != Some(Mutation::NoSync) {
            io.write(|| Request::Sync)?.ok();
        }
        let (names, workers_at) = io.list(Parent::Workers)?;
        let there: BTreeSet<u8> = names.into_iter().flatten().filter_map(|(path, _)| registered(*path)).collect();
        let mut read = BTreeMap::new();
        for worker in &there {
            let known = self.view.workers.get(&worker_name(*worker));
            let stale = self.stale.contains(&Part::Registration(*worker));
            match known.filter(|_| !stale) {
                Some(known) => _ = read.insert(worker_name(*worker), known.clone()),
                None => {
                    let (node, seen) = io.get_seen(Path::Worker(*worker))?;
                    self.read_at.insert(Part::Registration(*worker), seen);
                    if let Some(Data::Registration(instance)) = node.map(|node| &node.data) {
                        let meta = WorkerMeta::new(*instance, io.setting.slots);
                        let registered = Worker { address: String::new(), meta: Some(meta) };
                        read.insert(worker_name(*worker), registered);
                    }
                }
            }
        }
        let (live, live_at) = io.list(Parent::Live)?;
        let instance = |(path, _): &(Path, _)| if let Path::Live(instance, _) = *path { Some(instance) } else { None };
        self.view.live = live.into_iter().flatten().filter_map(instance).collect();
        if io.setting.mutation == Some(Mutation::NoLive) {
            self.view.live.clear();
        }
        self.view.workers = read;
        self.view.census_ms = io.now_ms;
        self.view.note_missing();
        self.read_at.extend([(Part::Workers, workers_at), (Part::Live, live_at)]);
        Ok(())
    }
}

fn read_task(io: &mut Io<'_>, name: TaskName) -> Result<(Option<Known>, i64, i64), Ask> {
    let (Some(node), data_at) = io.get_seen(Path::Task(name))? else { return Ok((None, 0, 0)) };
    let (children, children_at) = io.list(Parent::Task(name))?;
    let (Some(children), Data::Task(submit) | Data::Removed(submit)) = (children, &node.data) else {
        return Ok((None, 0, 0));
    };
    let removed = matches!(node.data, Data::Removed(_));
    let id = io.setting.mutation != Some(Mutation::KeepDuplicates);
    let meta = io.setting.meta(*submit);
    let submit = meta.submit.clone().filter(|_| id);
    let mut open = Open { meta: Ok(Some(meta)), cancel: false, attempts: BTreeMap::new(), submitted_ms: 0 };
    for (path, child) in children {
        match (path, &child.data) {
            (Path::Status(_), Data::Status(outcome)) => {
                let stage = Stage::Ended { outcome: outcome.clone(), at_ms: io.now_ms };
                return Ok((Some(Known { czxid: node.czxid, submit, stage }), data_at, children_at));
            }
            (Path::Attempt(_, number), Data::Attempt(kind)) => {
                // Without a backoff it does not matter when it was.
                open.attempts.insert(*number, Recorded { kind: *kind, at_ms: 0 });
            }
            (Path::Cancel(_), _) => open.cancel = true,
            _ => {}
        }
    }
    let stage = match removed {
        true => Stage::Ended { outcome: Outcome::Other("removed".to_owned()), at_ms: 0 },
        false => Stage::Open(Box::new(open)),
    };
    Ok((Some(Known { czxid: node.czxid, submit, stage }), data_at, children_at))
}

fn desk(path: Path) -> Option<u8> {
    if let Path::Desk(worker) = path { Some(worker) } else { None }
}

fn task(path: Path) -> Option<TaskName> {
    if let Path::Task(name) = path { Some(name) } else { None }
}

fn registered(path: Path) -> Option<u8> {
    if let Path::Worker(worker) = path { Some(worker) } else { None }
}

fn already(done: Result<(), Refusal>) -> Result<(), Refusal> {
    done.or_else(|refusal| if refusal == Refusal::NodeExists { Ok(()) } else { Err(refusal) })
}

fn gone(done: Result<(), Refusal>) -> Result<(), Refusal> {
    done.or_else(|refusal| if refusal == Refusal::NoNode { Ok(()) } else { Err(refusal) })
}

/// The assignment by which `plan` would give a task to another worker, for a mutant that does it too early.
pub(crate) fn assignment_elsewhere(
    view: &View,
    from: &znode_paths::WorkerName,
    name: TaskName,
    after: u32,
) -> Option<Step> {
    let known = view.tasks.get(&name)?;
    let other = view.assign.keys().find(|other| *other != from && view.workers.contains_key(*other))?;
    let instance = view.workers[other].instance();
    let meta = AssignmentMeta::new(instance, view.fence, after + 1, known.czxid);
    Some(Step::Assign(other.clone(), name, meta))
}
