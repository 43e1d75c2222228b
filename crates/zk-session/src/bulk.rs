//! Many reads at once, on a connection of their own.
//!
//! The `zookeeper` crate takes one request at a time from each thread that calls it, and writes each with a system call of
//! its own: some ten thousand a second. Whoever has to read tens of thousands of znodes, a master that takes over or a
//! client that lists all tasks, asks for them here: several hundred reads are on their way at any time, some in each request
//! (`multiRead`, ZooKeeper 3.6 and later), and the answers come in the order of the requests (ZooKeeper Programmer's Guide,
//! Consistency Guarantees). A server that cannot do that is asked as everywhere else.
//!
//! The connection goes to the server of the session. So what is read here is at least as new as what the session has read
//! or written before, and whatever changes later fires the watches that the session has set before.

use std::io;

use crate::Stat;
use crate::handshake;
use crate::stream::Server;

/// How many reads are put into one request: most of what a read costs the server is the way of its request. Of more, the answer
/// could be too large: a znode holds a megabyte.
const TOGETHER: usize = 16;

/// How many requests are on their way at the most: enough to keep the server busy, and few enough that they and their
/// answers fit into the buffers of a connection while we write.
const WINDOW: usize = 24;

const GET_DATA: i32 = 4;
const GET_CHILDREN: i32 = 8;
const MULTI_READ: i32 = 22; // ZooKeeper 3.6 and later
const AUTH: i32 = 100;

/// What stands for an error among the answers to several reads (`ZooDefs.OpCode.error`).
const ERROR: i32 = -1;

/// The numbers of requests that are not ours to choose: notifications, pings, authentication.
const AUTH_XID: i32 = -4;

/// ZooKeeper's word for a znode that is not there (`KeeperException.Code.NONODE`).
const NO_NODE: i32 = -101;

/// A read, by the absolute path of a znode.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum What {
    Data,
    Children,
}

/// What came of it.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Answer {
    Data(Vec<u8>, Stat),
    Children(Vec<String>),
    NoNode,
    /// The server said no, with this code.
    Refused(i32),
}

/// Reads of one what, each answered once, in their order.
///
/// # Errors
/// The connection broke, or something came that is not ZooKeeper's: those that `answered` was not called for have no answer.
pub(crate) fn read(
    server: &Server,
    digest: Option<&str>,
    what: What,
    paths: &[String],
    mut answered: impl FnMut(usize, Answer),
) -> io::Result<()> {
    let mut connection = handshake::open_for_reading(server)?;
    if let Some(digest) = digest {
        connection.send(&authentication(digest))?;
        while header(&connection.receive(LARGEST)?)?.0 != AUTH_XID {}
    }
    let groups: Vec<&[String]> = paths.chunks(TOGETHER).collect();
    let (mut sent, mut received) = (0, 0);
    while received < groups.len() {
        // Half a window is sent at once, so that there is something on its way while it is written.
        if sent < groups.len() && sent - received <= WINDOW / 2 {
            let until = groups.len().min(received + WINDOW);
            let requests: Vec<Vec<u8>> =
                (sent..until).map(|index| request(index, what, groups[index])).collect::<Result<_, _>>()?;
            connection.send_all(&requests)?;
            sent = until;
        }
        let reply = connection.receive(LARGEST)?;
        let (xid, code, body) = header(&reply)?;
        if usize::try_from(xid) != Ok(received + 1) {
            continue; // a ping's or a notification
        }
        if code != 0 {
            return Err(io::Error::other(format!("the server does not read several znodes at once: {code}")));
        }
        let mut input = Input(body);
        for index in 0..groups[received].len() {
            answered(received * TOGETHER + index, answer_among(what, &mut input)?);
        }
        received += 1;
    }
    connection.close_session();
    Ok(())
}

/// The longest answer: `jute.maxbuffer` bounds what a znode holds, but not how many names of children an answer has.
const LARGEST: usize = 64 << 20;

/// Several reads as one request (`MultiOperationRecord`): each behind a header that says which it is, and a last header.
fn request(index: usize, what: What, paths: &[String]) -> io::Result<Vec<u8>> {
    // Counted from 1, and there are no more paths than znodes, whose number is a signed 32 bit one.
    let xid = i32::try_from(index + 1).map_err(io::Error::other)?;
    let opcode = match what {
        What::Data => GET_DATA,
        What::Children => GET_CHILDREN,
    };
    let part = |opcode: i32, last: bool| [&opcode.to_be_bytes()[..], &[u8::from(last)], &ERROR.to_be_bytes()].concat();
    let mut request = [xid.to_be_bytes(), MULTI_READ.to_be_bytes()].concat();
    for path in paths {
        let length = i32::try_from(path.len()).map_err(io::Error::other)?;
        request.extend([&part(opcode, false), &length.to_be_bytes()[..], path.as_bytes(), &[0]].concat());
    }
    request.extend(part(ERROR, true));
    Ok(request)
}

fn authentication(digest: &str) -> Vec<u8> {
    let mut body = [AUTH_XID.to_be_bytes(), AUTH.to_be_bytes(), 0_i32.to_be_bytes()].concat();
    for text in ["digest", digest] {
        body.extend(i32::try_from(text.len()).unwrap_or(0).to_be_bytes());
        body.extend(text.as_bytes());
    }
    body
}

/// The number of the request, the error code, and what follows.
fn header(reply: &[u8]) -> io::Result<(i32, i32, &[u8])> {
    let mut input = Input(reply);
    let (xid, _zxid, code) = (input.int()?, input.long()?, input.int()?);
    Ok((xid, code, input.0))
}

/// Reads anything as an answer of either kind, and as the first one of a connection: what fuzz targets call.
pub(crate) fn decode(bytes: &[u8]) {
    handshake::granted(bytes).ok();
    let Ok((_, code, body)) = header(bytes) else { return };
    for (code, what) in [(code, What::Data), (0, What::Data), (0, What::Children)] {
        answer(what, code, &mut Input(body)).ok();
        answer_among(what, &mut Input(body)).ok();
    }
}

/// The next one of the answers to several reads.
fn answer_among(what: What, input: &mut Input<'_>) -> io::Result<Answer> {
    let (kind, _last, _code) = (input.int()?, input.take(1)?, input.int()?);
    let code = if kind == ERROR { input.int()? } else { 0 };
    // Nothing went wrong, and there is nothing: that is the last header.
    if (kind, code) == (ERROR, 0) { Err(io::ErrorKind::InvalidData.into()) } else { answer(what, code, input) }
}

fn answer(what: What, code: i32, input: &mut Input<'_>) -> io::Result<Answer> {
    Ok(match (code, what) {
        (0, What::Data) => Answer::Data(input.buffer()?.to_vec(), input.stat()?),
        (0, What::Children) => {
            let count = input.int()?;
            let names = (0..count).map(|_| Ok(String::from_utf8_lossy(input.buffer()?).into_owned()));
            Answer::Children(names.collect::<io::Result<_>>()?)
        }
        (NO_NODE, _) => Answer::NoNode,
        (code, _) => Answer::Refused(code),
    })
}

/// What is left of an answer, in the encoding that ZooKeeper calls jute.
struct Input<'a>(&'a [u8]);

impl<'a> Input<'a> {
    fn take(&mut self, bytes: usize) -> io::Result<&'a [u8]> {
        let (taken, rest) = self.0.split_at_checked(bytes).ok_or(io::ErrorKind::UnexpectedEof)?;
        self.0 = rest;
        Ok(taken)
    }

    fn int(&mut self) -> io::Result<i32> {
        Ok(i32::from_be_bytes(self.take(4)?.try_into().map_err(io::Error::other)?))
    }

    fn long(&mut self) -> io::Result<i64> {
        Ok(i64::from_be_bytes(self.take(8)?.try_into().map_err(io::Error::other)?))
    }

    /// A length and so many bytes; a length of -1 stands for nothing.
    fn buffer(&mut self) -> io::Result<&'a [u8]> {
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
        assert_eq!(answer(What::Data, NO_NODE, &mut Input(&[])).unwrap(), Answer::NoNode);
        assert_eq!(answer(What::Children, -102, &mut Input(&[])).unwrap(), Answer::Refused(-102));
        let names = [&2_i32.to_be_bytes()[..], &1_i32.to_be_bytes(), b"a", &2_i32.to_be_bytes(), b"bc"].concat();
        let children = vec!["a".to_owned(), "bc".to_owned()];
        assert_eq!(answer(What::Children, 0, &mut Input(&names)).unwrap(), Answer::Children(children));
        assert!(answer(What::Data, 0, &mut Input(&names[..5])).is_err());
    }

    proptest! {
        #[test]
        fn no_answer_makes_it_panic(reply in proptest::collection::vec(any::<u8>(), 0..120)) {
            decode(&reply);
        }
    }
}
