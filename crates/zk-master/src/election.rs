//! Who is the primary: whoever's session owns `/master`.

use zk_session::{Error, Kind, Session};
use znode_paths::{Address, decode_epoch, paths};

use crate::view::fence;

/// What came of standing for election.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Standing {
    /// This session owns `/master`; its assignments carry this fence.
    Primary {
        /// The czxid of `/master`, or more.
        fence: i64,
    },
    /// Somebody else does; a watch is set that fires when it goes.
    Standby {
        /// What `/master` holds.
        primary: String,
    },
}

/// Stands for election: tries to create `/master`, and if it is there, watches it.
///
/// Whether it is ours is decided by the session that owns it, never by what it holds: two masters may have been started
/// with the same address. All writes of the reign go through this session, so ZooKeeper orders them before the end of
/// the session, hence before the removal of `/master` (PROTOCOL section 3, Masters).
pub(crate) fn stand(session: &Session, address: &Address) -> Result<Standing, Error> {
    loop {
        match session.create(paths::MASTER, address.as_str().as_bytes(), Kind::Ephemeral) {
            Ok(_) | Err(Error::NodeExists(_)) => {}
            Err(error) => return Err(error),
        }
        let Some(stat) = session.stat(paths::MASTER, true)? else { continue };
        if stat.owner.is_some() && stat.owner == session.id() {
            match raise_epoch(session, stat.czxid)? {
                Some(fence) => return Ok(Standing::Primary { fence }),
                None => continue,
            }
        }
        if let Some((data, _)) = session.read(paths::MASTER, false)? {
            return Ok(Standing::Standby { primary: String::from_utf8_lossy(&data).into_owned() });
        }
    }
}

/// Whether this session still owns `/master` and `/epoch` still holds its fence; watches both.
pub(crate) fn reigns(session: &Session, fence: i64) -> Result<bool, Error> {
    let Some(stat) = session.stat(paths::MASTER, true)? else { return Ok(false) };
    let epoch = session.read(paths::EPOCH, true)?.and_then(|(data, _)| decode_epoch(&data));
    Ok(stat.owner == session.id() && epoch == Some(fence))
}

/// Raises `/epoch` to the czxid of our `/master`, only upwards and checked by version, so that of two masters that both
/// believe to own `/master` the later one wins. Returns the fence, or `None` when `/master` is not ours any more.
fn raise_epoch(session: &Session, czxid: i64) -> Result<Option<i64>, Error> {
    loop {
        let before = session.read(paths::EPOCH, false)?;
        let stat = session.stat(paths::MASTER, false)?;
        if stat.is_none_or(|stat| stat.owner != session.id() || stat.czxid != czxid) {
            return Ok(None);
        }
        let fence = fence(before.as_ref().and_then(|(data, _)| decode_epoch(data)), czxid);
        let data = fence.to_string();
        let written = match before {
            Some((_, stat)) => session.write(paths::EPOCH, data.as_bytes(), Some(stat.version)).map(drop),
            None => session.create(paths::EPOCH, data.as_bytes(), Kind::Persistent).map(drop),
        };
        match written {
            Ok(()) => return Ok(Some(fence)),
            Err(Error::BadVersion(_) | Error::NodeExists(_) | Error::NoNode(_)) => {}
            Err(error) => return Err(error),
        }
    }
}
