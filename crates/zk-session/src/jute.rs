//! Requests and answers as they are on the wire, in the encoding that ZooKeeper calls jute (`zookeeper.jute` in its sources).

use std::io;

use zookeeper::{Acl, Permission};

use crate::Stat;
use crate::handshake;

const CREATE: i32 = 1;
const DELETE: i32 = 2;
const GET_DATA: i32 = 4;
const SET_DATA: i32 = 5;
const CHECK: i32 = 13;
pub(crate) const MULTI: i32 = 14;
pub(crate) const MULTI_READ: i32 = 22; // ZooKeeper 3.6 and later
const AUTH: i32 = 100;

/// What stands for an error among the answers to several operations (`ZooDefs.OpCode.error`).
const ERROR: i32 = -1;

/// A number of requests that is not ours to choose, as those of notifications and pings.
pub(crate) const AUTH_XID: i32 = -4;

/// Any version will do.
const ANY: i32 = -1;

/// ZooKeeper's word for a znode that is not there (`KeeperException.Code.NONODE`).
const NO_NODE: i32 = -101;

/// What came of it.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Answer {
    Data(Vec<u8>, Stat),
    NoNode,
    /// The server said no, with this code.
    Refused(i32),
}

/// Several reads as the body of one request (`MultiOperationRecord`): each behind a header that says which it is, and a last
/// header.
pub(crate) fn reads(paths: &[String]) -> Vec<u8> {
    let mut body = Vec::new();
    for path in paths {
        part(&mut body, GET_DATA);
        buffer(&mut body, path.as_bytes());
        body.push(0); // no watch
    }
    last(&mut body);
    body
}

/// Operations that are carried out all or not at all, as records for the body of a request.
#[derive(Debug, Clone, Default)]
pub(crate) struct Operations {
    pub(crate) records: Vec<u8>,
    pub(crate) count: usize,
}

impl Operations {
    pub(crate) fn create(&mut self, path: &str, data: &[u8], acl: &[Acl], sequential: bool) {
        self.begin(CREATE, path);
        buffer(&mut self.records, data);
        self.int(i32::try_from(acl.len()).expect("there are few identities"));
        for entry in acl {
            self.int(permissions(entry.perms));
            buffer(&mut self.records, entry.scheme.as_bytes());
            buffer(&mut self.records, entry.id.as_bytes());
        }
        self.int(if sequential { 2 } else { 0 }); // CreateMode
    }

    pub(crate) fn delete(&mut self, path: &str, version: Option<i32>) {
        self.begin(DELETE, path);
        self.int(version.unwrap_or(ANY));
    }

    pub(crate) fn set_data(&mut self, path: &str, data: &[u8], version: Option<i32>) {
        self.begin(SET_DATA, path);
        buffer(&mut self.records, data);
        self.int(version.unwrap_or(ANY));
    }

    /// There is a znode at the path.
    pub(crate) fn check(&mut self, path: &str) {
        self.begin(CHECK, path);
        self.int(ANY);
    }

    /// These and then those.
    pub(crate) fn append(&mut self, other: &Operations) {
        self.records.extend(&other.records);
        self.count += other.count;
    }

    /// As the body of one request, a transaction.
    pub(crate) fn body(mut self) -> Vec<u8> {
        last(&mut self.records);
        self.records
    }

    fn begin(&mut self, opcode: i32, path: &str) {
        self.count += 1;
        part(&mut self.records, opcode);
        buffer(&mut self.records, path.as_bytes());
    }

    fn int(&mut self, value: i32) {
        self.records.extend(value.to_be_bytes());
    }
}

/// What an answer to a transaction says; nothing if that was not carried out. For each operation the path of what it made, if
/// it made something.
pub(crate) fn carried_out(body: &[u8]) -> io::Result<Option<Vec<Option<String>>>> {
    let mut input = Input(body);
    let mut made = Vec::new();
    loop {
        let (kind, is_last) = (input.int()?, input.take(1)? != [0]);
        input.int()?;
        match kind {
            ERROR if is_last => return Ok(Some(made)),
            ERROR => return Ok(None),
            CREATE => made.push(Some(String::from_utf8_lossy(input.buffer()?).into_owned())),
            SET_DATA => {
                input.stat()?;
                made.push(None);
            }
            DELETE | CHECK => made.push(None),
            _ => return Err(io::ErrorKind::InvalidData.into()),
        }
    }
}

/// A header among operations (`MultiHeader`).
fn part(body: &mut Vec<u8>, opcode: i32) {
    body.extend([&opcode.to_be_bytes()[..], &[u8::from(opcode == ERROR)], &ERROR.to_be_bytes()].concat());
}

fn last(body: &mut Vec<u8>) {
    part(body, ERROR);
}

fn buffer(body: &mut Vec<u8>, bytes: &[u8]) {
    body.extend(i32::try_from(bytes.len()).expect("data and paths are shorter than 2 GB").to_be_bytes());
    body.extend(bytes);
}

/// The crate keeps the number to itself (`ZooDefs.Perms`).
fn permissions(granted: Permission) -> i32 {
    let bits = [Permission::READ, Permission::WRITE, Permission::CREATE, Permission::DELETE, Permission::ADMIN];
    (0..).zip(bits).filter(|(_, permission)| granted.can(*permission)).map(|(bit, _)| 1 << bit).sum()
}

pub(crate) fn authentication(digest: &str) -> Vec<u8> {
    let mut body = [AUTH_XID.to_be_bytes(), AUTH.to_be_bytes(), 0_i32.to_be_bytes()].concat();
    buffer(&mut body, b"digest");
    buffer(&mut body, digest.as_bytes());
    body
}

/// The number of the request, the error code, and what follows.
pub(crate) fn header(reply: &[u8]) -> io::Result<(i32, i32, &[u8])> {
    let mut input = Input(reply);
    let (xid, _zxid, code) = (input.int()?, input.long()?, input.int()?);
    Ok((xid, code, input.0))
}

/// Reads anything as an answer of either kind, and as the first one of a connection: what fuzz targets call.
pub(crate) fn decode(bytes: &[u8]) {
    handshake::granted(bytes).ok();
    let Ok((_, code, body)) = header(bytes) else { return };
    carried_out(body).ok();
    for code in [code, 0] {
        answer(code, &mut Input(body)).ok();
        answer_among(&mut Input(body)).ok();
    }
}

/// The next one of the answers to several reads.
pub(crate) fn answer_among(input: &mut Input<'_>) -> io::Result<Answer> {
    let (kind, _last, _code) = (input.int()?, input.take(1)?, input.int()?);
    let code = if kind == ERROR { input.int()? } else { 0 };
    // Nothing went wrong, and there is nothing: that is the last header.
    if (kind, code) == (ERROR, 0) { Err(io::ErrorKind::InvalidData.into()) } else { answer(code, input) }
}

fn answer(code: i32, input: &mut Input<'_>) -> io::Result<Answer> {
    Ok(match code {
        0 => Answer::Data(input.buffer()?.to_vec(), input.stat()?),
        NO_NODE => Answer::NoNode,
        code => Answer::Refused(code),
    })
}

/// What is left of an answer.
pub(crate) struct Input<'a>(pub(crate) &'a [u8]);

impl<'a> Input<'a> {
    fn take(&mut self, bytes: usize) -> io::Result<&'a [u8]> {
        let (taken, rest) = self.0.split_at_checked(bytes).ok_or(io::ErrorKind::UnexpectedEof)?;
        self.0 = rest;
        Ok(taken)
    }

    pub(crate) fn int(&mut self) -> io::Result<i32> {
        Ok(i32::from_be_bytes(self.take(4)?.try_into().map_err(io::Error::other)?))
    }

    pub(crate) fn long(&mut self) -> io::Result<i64> {
        Ok(i64::from_be_bytes(self.take(8)?.try_into().map_err(io::Error::other)?))
    }

    /// A length and so many bytes; a length of -1 stands for nothing.
    pub(crate) fn buffer(&mut self) -> io::Result<&'a [u8]> {
        let length = self.int()?;
        self.take(usize::try_from(length.max(0)).map_err(io::Error::other)?)
    }

    /// `org.apache.zookeeper.data.Stat`.
    fn stat(&mut self) -> io::Result<Stat> {
        let stat = zookeeper::Stat {
            czxid: self.long()?,
            mzxid: self.long()?,
            ctime: self.long()?,
            mtime: self.long()?,
            version: self.int()?,
            cversion: self.int()?,
            aversion: self.int()?,
            ephemeral_owner: self.long()?,
            data_length: self.int()?,
            num_children: self.int()?,
            pzxid: self.long()?,
        };
        Ok(stat.into())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn answers_are_told_apart() {
        assert_eq!(answer(NO_NODE, &mut Input(&[])).unwrap(), Answer::NoNode);
        assert_eq!(answer(-102, &mut Input(&[])).unwrap(), Answer::Refused(-102));
        assert!(answer(0, &mut Input(&[0, 0, 0, 1, b'a'])).is_err(), "there is no stat");
    }

    #[test]
    fn what_a_transaction_made_is_told_by_its_answer() {
        let header = |kind: i32, last: u8| [&kind.to_be_bytes()[..], &[last], &0_i32.to_be_bytes()].concat();
        let end = header(ERROR, 1);
        let path = [&2_i32.to_be_bytes()[..], b"/a"].concat();
        let done = [header(CHECK, 0), header(CREATE, 0), path, header(DELETE, 0), end.clone()].concat();
        assert_eq!(carried_out(&done).unwrap(), Some(vec![None, Some("/a".to_owned()), None]));
        let failed = [header(ERROR, 0), (-101_i32).to_be_bytes().to_vec(), end].concat();
        assert_eq!(carried_out(&failed).unwrap(), None);
        assert!(carried_out(&done[..done.len() - 1]).is_err());
    }

    #[test]
    fn permissions_are_those_of_the_crate() {
        assert_eq!(permissions(Permission::ALL), 31);
        assert_eq!(permissions(Permission::READ | Permission::CREATE), 5);
    }

    proptest! {
        #[test]
        fn no_answer_makes_it_panic(reply in proptest::collection::vec(any::<u8>(), 0..120)) {
            decode(&reply);
        }
    }
}
