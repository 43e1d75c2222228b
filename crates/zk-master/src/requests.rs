//! What submitters ask for, where they have an identity of their own and may not write below tasks (SECURITY.md).

use zk_session::{Error, Kind, Session};
use znode_paths::{TaskName, paths};

/// Makes what they write to, and gives it the rights of this identity: it may be older than their identity.
pub(crate) fn prepare(session: &Session) -> Result<(), Error> {
    for parent in paths::OF_SUBMITTERS {
        session.ensure(parent)?;
    }
    for path in paths::OF_SUBMITTERS.iter().chain(&[paths::WORKERS, paths::ASSIGN, paths::LIVE, paths::EPOCH]) {
        match session.protect(path) {
            Ok(()) | Err(Error::NoNode(_)) => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

/// Does what they ask for, and returns for which tasks. Whatever may have been done by the primary before us is done again.
pub(crate) fn pass_on(session: &Session) -> Result<Vec<TaskName>, Error> {
    let names = session.children(paths::REQUESTS, true)?.unwrap_or_default();
    let tasks: Vec<TaskName> = names.iter().filter_map(|name| name.parse().ok()).collect();
    for task in &tasks {
        match session.create(&paths::cancel(task), b"", Kind::Persistent) {
            Ok(_) => log::info!("cancelling for a submitter task={task}"),
            Err(Error::NodeExists(_) | Error::NoNode(_)) => {}
            Err(error @ Error::NotAllowed(_)) => log::warn!("cannot cancel for a submitter: {error}"),
            Err(error) => return Err(error),
        }
        match session.delete(&paths::request(task), None) {
            Ok(()) | Err(Error::NoNode(_) | Error::NotEmpty(_)) => {}
            Err(error) => return Err(error),
        }
    }
    Ok(tasks)
}
