//! `doctor`: looks at the whole tree, several times if need be, and carries out the repairs.
//!
//! The tasks are read in portions, and of each only what a primary keeps stays in memory.

use std::time::{Duration, Instant};

use zk_session::{Error as Refusal, Kind, Session, in_parallel};
use znode_paths::paths;

use crate::connection::{Connection, Patience};
use crate::doctor::{Finding, Repair, Survey, TOP, Znode, examine, examine_task, slim};
use crate::report::FindingLine;
use crate::{Error, exit, output, render};

/// After these pauses the same is looked at again: what daemons are about to mend is gone by then. The last ones only count
/// where a primary reigns, for it does most of that.
const PAUSES: [Duration; 4] =
    [Duration::from_millis(500), Duration::from_millis(500), Duration::from_secs(1), Duration::from_secs(2)];

/// How many tasks are held in memory with all their data.
const PORTION: usize = 256;

/// Checks the tree, says what is wrong, and repairs it when asked to.
pub(crate) fn doctor(connection: &mut Connection, fix: bool, json: bool) -> Result<u8, Error> {
    let (mut findings, primary) = look(connection)?;
    for pause in &PAUSES[..if primary { PAUSES.len() } else { 1 }] {
        if findings.is_empty() {
            break;
        }
        settle(connection, *pause);
        let (again, _) = look(connection)?;
        findings.retain(|finding| again.iter().any(|other| other.same(finding)));
    }
    let mut refused = Vec::new();
    if fix {
        for finding in &findings {
            // What is read is what is there: a write or delete of something else meanwhile is refused, and not done.
            let repaired = connection.ask(Patience::Bounded, |session| match repair(session, finding) {
                Err(error @ Refusal::Lost(_)) => Err(error),
                result => Ok(result),
            })?;
            refused.push(repaired.err());
        }
    }
    let left = if fix && !findings.is_empty() { left(connection, &findings)? } else { findings.clone() };
    let lines: Vec<FindingLine> = findings
        .iter()
        .enumerate()
        .map(|(index, finding)| FindingLine {
            class: finding.class.word(),
            path: finding.path.clone(),
            violation: finding.class.violates(),
            meaning: finding.class.meaning(),
            repair: match refused.get(index) {
                Some(Some(error)) => error.to_string(),
                _ => finding.repair.text(),
            },
            repaired: !left.iter().any(|other| other.is(finding)),
        })
        .collect();
    output::results(json, &lines, |lines| render::findings(lines, fix))?;
    let healthy = lines.iter().all(|line| line.repaired || !line.violation);
    Ok(if healthy { exit::DONE } else { exit::NOT_DONE })
}

/// What is still wrong after the repairs. A daemon may have to do the rest: it gets the time for that.
fn left(connection: &mut Connection, findings: &[Finding]) -> Result<Vec<Finding>, Error> {
    let mut pauses = PAUSES.iter();
    loop {
        let (again, _) = look(connection)?;
        let hopeless = |finding: &Finding| matches!(finding.repair, Repair::Nothing(_));
        let left: Vec<Finding> = findings.iter().filter(|f| again.iter().any(|other| other.is(f))).cloned().collect();
        match pauses.next() {
            Some(pause) if !left.iter().all(hopeless) => settle(connection, *pause),
            _ => return Ok(left),
        }
    }
}

fn settle(connection: &mut Connection, pause: Duration) {
    let until = Instant::now() + pause;
    while connection.receive(Some(until)).is_some() {}
}

/// Reads the whole tree and says what is wrong, and whether a zk-master reigns.
fn look(connection: &mut Connection) -> Result<(Vec<Finding>, bool), Error> {
    loop {
        let session = connection.ask(Patience::Bounded, |session| Ok(session.clone()))?;
        // A server that is behind could show the same old tree again and again. Where there is no /live, nobody is.
        let read = session.stat(paths::LIVE, false).and_then(|live| {
            if live.is_some_and(|live| live.owner.is_none()) {
                connection.sync(&session)?;
            }
            survey(&session, connection.has_rights())
        });
        match read {
            Ok((survey, mut findings)) => {
                let primary = survey.primary().is_some();
                findings.extend(examine(survey));
                findings.sort_by(|a, b| (&a.path, a.class).cmp(&(&b.path, b.class)));
                return Ok((findings, primary));
            }
            Err(Refusal::Lost(_)) => {}
            Err(error) => return Err(Error::Request(error)),
        }
    }
}

/// Assignments are read before the tasks, and these before those who have them: what is named is not missed.
fn survey(session: &Session, identity: bool) -> Result<(Survey, Vec<Finding>), Refusal> {
    let mut survey = Survey { root: session.children("/", false)?.unwrap_or_default(), ..Survey::default() };
    let mut findings = Vec::new();
    for node in below(session, paths::ASSIGN)? {
        let assignments = below(session, &node.path)?;
        survey.note_acls(session, identity, [&node].into_iter().chain(&assignments))?;
        survey.desks.push((node, assignments));
    }
    survey.keys = below(session, paths::KEYS)?;
    survey.note_acls(session, identity, &survey.keys.clone())?;
    for portion in names(session, paths::TASKS)?.chunks(PORTION) {
        let read = in_parallel(portion, |path| task(session, path));
        for (path, read) in portion.iter().zip(read) {
            let Some((node, below)) = read? else { continue };
            findings.extend(examine_task(&node, &below));
            survey.note_acls(session, identity, [&node].into_iter().chain(&below))?;
            let Ok(name) = path.trim_start_matches("/tasks/").parse() else { continue };
            match zk_master::read_task(session, name, None, false) {
                Ok(known) => _ = known.map(|known| survey.tasks.insert(name, slim(known))),
                Err(error @ Refusal::Lost(_)) => return Err(error),
                // It is no task, or not for us, and was said above.
                Err(_) => {}
            }
        }
    }
    survey.workers = below(session, paths::WORKERS)?;
    survey.live = below(session, paths::LIVE)?;
    survey.note_acls(session, identity, &[survey.workers.clone(), survey.live.clone()].concat())?;
    if let Some((data, stat)) = session.read("/", false)? {
        survey.note_acls(session, identity, [&Znode { path: "/".to_owned(), data, stat }])?;
    }
    for path in TOP {
        if let Some((data, stat)) = session.read(path, false)? {
            let node = Znode { path: path.to_owned(), data, stat };
            survey.note_acls(session, identity, [&node])?;
            survey.top.insert(path, node);
        }
    }
    let nodes = survey.live.iter().chain(survey.top.values());
    survey.newest = nodes.map(|node| node.stat.czxid.max(node.stat.mzxid)).max().unwrap_or_default();
    Ok((survey, findings))
}

impl Survey {
    fn note_acls<'a>(
        &mut self,
        session: &Session,
        identity: bool,
        nodes: impl IntoIterator<Item = &'a Znode>,
    ) -> Result<(), Refusal> {
        for node in nodes.into_iter().filter(|_| identity) {
            if session.is_protected(&node.path)? == Some(false) {
                self.open.push((node.path.clone(), node.stat));
            }
        }
        Ok(())
    }
}

/// A child of `/tasks` with what is below it.
fn task(session: &Session, path: &str) -> Result<Option<(Znode, Vec<Znode>)>, Refusal> {
    let Some((data, stat)) = session.read(path, false)? else { return Ok(None) };
    let below = if stat.children > 0 { below(session, path)? } else { Vec::new() };
    Ok(Some((Znode { path: path.to_owned(), data, stat }, below)))
}

/// The paths of a znode's children, sorted.
fn names(session: &Session, parent: &str) -> Result<Vec<String>, Refusal> {
    let mut names = session.children(parent, false)?.unwrap_or_default();
    names.sort_unstable();
    Ok(names.into_iter().map(|name| format!("{parent}/{name}")).collect())
}

/// A znode's children.
fn below(session: &Session, parent: &str) -> Result<Vec<Znode>, Refusal> {
    let names = names(session, parent)?;
    let read = in_parallel(&names, |path| session.read(path, false));
    let there = names
        .into_iter()
        .zip(read)
        .filter_map(|(path, read)| read.map(|read| read.map(|(data, stat)| Znode { path, data, stat })).transpose());
    there.collect()
}

fn repair(session: &Session, finding: &Finding) -> Result<(), Refusal> {
    let path = &finding.path;
    let done = match &finding.repair {
        Repair::Nothing(_) => Ok(()),
        Repair::Make(data) => session.create(path, data, Kind::Persistent).map(drop),
        Repair::Write(data, version) => session.write(path, data, Some(*version)).map(drop),
        Repair::Delete(version) => session.delete(path, Some(*version)),
        Repair::DeleteAll => session.delete_all(path),
        Repair::DeleteBelow => names(session, path)?.iter().try_for_each(|path| session.delete_all(path)),
        Repair::Remake(data) => {
            match session.delete(path, None) {
                Ok(()) | Err(Refusal::NoNode(_)) => {}
                refused => return refused,
            }
            session.create(path, data, Kind::Persistent).map(drop)
        }
        Repair::Steps(steps) => steps.iter().try_for_each(|step| zk_master::carry_out_step(session, step)),
        Repair::Protect => session.protect(path),
    };
    match done {
        // Somebody else did it.
        Err(Refusal::NoNode(_) | Refusal::NodeExists(_)) => Ok(()),
        done => done,
    }
}
