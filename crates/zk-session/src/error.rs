//! Errors by what they mean for the caller.

use std::time::Duration;

use zookeeper::ZkError;

/// Why a request was not answered with what was asked for.
///
/// [`Error::Lost`] is the only one after which a write may or may not have happened: read it back on another session.
/// All others say that nothing was changed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// The znode, or the parent of the one to be made, is not there.
    #[error("{0} does not exist")]
    NoNode(String),
    /// There is one already.
    #[error("{0} exists already")]
    NodeExists(String),
    /// It has children, so it cannot be deleted.
    #[error("{0} has children")]
    NotEmpty(String),
    /// Somebody changed it in between.
    #[error("{0} was changed in between")]
    BadVersion(String),
    /// Our identity may not do that there.
    #[error("not allowed at {0}: its ACL is for another identity (--auth-file)")]
    NotAllowed(String),
    /// The request was not sent: a server that gets one over 1 MB cuts the connection.
    #[error("{path}: {bytes} bytes are too many, the limit is {limit}", limit = crate::MAX_REQUEST)]
    TooLarge {
        /// Where it was to go.
        path: String,
        /// The size of the request.
        bytes: usize,
    },
    /// The ensemble said no for another reason.
    #[error("{path}: {why}")]
    Refused {
        /// Where.
        path: String,
        /// ZooKeeper's word for it.
        why: String,
    },
    /// The session is over. What was under way may or may not have happened.
    #[error("the session is lost: {0}")]
    Lost(Reason),
}

/// Why a session is over.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Reason {
    /// The connection broke, or the server ended the session.
    #[error("the connection broke")]
    Disconnected,
    /// No heartbeat that was sent within the last 2/3 of the session timeout was answered.
    #[error("no answer for {} ms", .0.as_millis())]
    Silent(Duration),
    /// The server had expired the session, or it had moved.
    #[error("the server ended the session")]
    Expired,
    /// A request got no answer while the connection was up: the `zookeeper` crate had dropped it.
    #[error("a request was dropped")]
    RequestDropped,
    /// The request numbers are used up (2^31 on one connection).
    #[error("the request numbers are used up")]
    Worn,
    /// We closed it.
    #[error("it was closed")]
    Closed,
}

impl Error {
    /// What an answer of the ensemble means; `ConnectionLoss` and the end of the session are not answers.
    pub(crate) fn answered(path: &str, error: ZkError) -> Self {
        let path = path.to_owned();
        match error {
            ZkError::NoNode => Error::NoNode(path),
            ZkError::NodeExists => Error::NodeExists(path),
            ZkError::NotEmpty => Error::NotEmpty(path),
            ZkError::BadVersion => Error::BadVersion(path),
            ZkError::NoAuth | ZkError::AuthFailed | ZkError::InvalidACL => Error::NotAllowed(path),
            other => Error::Refused { path, why: format!("{other:?}") },
        }
    }
}

/// Why no session could be opened: what became of each server.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{}", .0.join("; "))]
pub struct OpenError(pub(crate) Vec<String>);
