//! Many requests at once, on a connection of their own.
//!
//! The `zookeeper` crate takes one request at a time from each thread that calls it, hands it to another thread, and writes each
//! with a system call of its own: most of what a short request costs is its way. Whoever has much to ask or to write does it
//! here: several reads are one request (`multiRead`, ZooKeeper 3.6 and later), several writes are one transaction
//! (`multi`), and some of these are on their way at any time. The answers come in the order of the requests (ZooKeeper
//! Programmer's Guide, Consistency Guarantees).
//!
//! The connection goes to the server of the session, also where an address stands for several (a balancer): a session that knows its
//! own id has no other. So what is read here is at least as new as what the session has read or written before, and whatever
//! changes later fires the watches that the session has set before. And what was written here is seen by what the session does
//! afterwards.
//!
//! It is opened when enough is asked for to be worth the handshake, and closed when nothing more is: somebody who has little to do
//! asks on the session alone.

use std::io;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use socket2::Socket;

use crate::SessionId;
use crate::handshake::{self, Connection};
use crate::jute::{self, Answer, Input, Operations};
use crate::socket;
use crate::stream::Server;

/// How many reads are put into one request: most of what a read costs the server is the way of its request. Of more, the answer
/// could be too large: a znode holds a megabyte.
const READS: usize = 16;

/// How large a transaction may become by putting several into one: the servers write and send it as a whole.
const OPERATIONS: usize = 64;
const BYTES: usize = 64 * 1024;

/// How many requests are on their way at the most: enough to keep the server busy, and few enough that they and their
/// answers fit into the buffers of a connection while we write.
const WINDOW: usize = 24;

/// From so much between two heartbeats on, a connection is worth its handshake.
const WORTH: usize = 32;

/// ZooKeeper's word for a request that it does not know (`KeeperException.Code.UNIMPLEMENTED`).
const UNIMPLEMENTED: i32 = -6;

/// So long after no connection could be opened, or one broke, none is tried.
const REFUSED: Duration = Duration::from_secs(60);

/// The longest answer: `jute.maxbuffer` bounds what a znode holds, but not how many names of children an answer has.
const LARGEST: usize = 64 << 20;

/// The numbers of requests have 31 bits.
const LAST_REQUEST: i32 = i32::MAX - 1_000_000;

/// The connection of a session for many requests, if there is one.
#[derive(Default)]
pub(crate) struct Bulk {
    usage: Mutex<Usage>,
    /// Its socket, to cut it under whoever waits there.
    socket: Mutex<Option<Socket>>,
    /// The session is over.
    over: AtomicBool,
    /// The server does not know requests for several reads.
    no_reads: AtomicBool,
}

#[derive(Default)]
struct Usage {
    line: Option<Line>,
    /// How much was asked for since the last heartbeat.
    wanted: usize,
    /// Until then no connection is tried.
    refused: Option<Instant>,
}

/// How to get a connection.
pub(crate) struct Way<'a> {
    pub(crate) server: &'a Server,
    pub(crate) digest: Option<&'a str>,
    /// The session, as far as it is known.
    pub(crate) beside: Option<SessionId>,
    /// Its timeout.
    pub(crate) timeout: Duration,
    /// How long to wait for each answer. Then the session itself counts as lost.
    pub(crate) patience: Duration,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // Who panics while it holds one of these leaves no connection behind.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Bulk {
    /// Does something on the connection; nothing where there is none and none is worth it or can be had, or somebody uses it.
    ///
    /// # Errors
    /// That of the work, with which the connection ends.
    pub(crate) fn with<T>(
        &self,
        way: &Way<'_>,
        items: usize,
        work: impl FnOnce(&mut Line) -> io::Result<T>,
    ) -> Option<io::Result<T>> {
        let Ok(mut usage) = self.usage.try_lock() else { return None };
        usage.wanted = usage.wanted.saturating_add(items);
        let mut line = match usage.line.take().filter(Line::is_good) {
            Some(line) => line,
            None => self.open(way, &mut usage)?,
        };
        let done = work(&mut line);
        line.used = Instant::now();
        match &done {
            Ok(_) => usage.line = Some(line),
            Err(error) => {
                lock(&self.socket).take();
                // What ended this one could end the next as well, and keep everybody waiting each time.
                if error.kind() != io::ErrorKind::Unsupported {
                    usage.refused = Some(Instant::now() + REFUSED);
                }
            }
        }
        Some(done)
    }

    fn open(&self, way: &Way<'_>, usage: &mut Usage) -> Option<Line> {
        lock(&self.socket).take();
        let now = Instant::now();
        if usage.wanted < WORTH || usage.refused.is_some_and(|until| until > now) {
            return None;
        }
        match Line::open(way) {
            Ok((line, socket)) => {
                socket::limit_delivery(&socket, way.patience);
                *lock(&self.socket) = Some(socket);
                // Lost while it was opened: nobody else cuts it any more.
                (!self.over.load(Ordering::SeqCst)).then_some(line)
            }
            Err(error) => {
                log::debug!("no connection for many requests: {error}");
                usage.refused = Some(now + REFUSED);
                None
            }
        }
    }

    /// Reads, on the connection if there is one, and in this order; those that `answered` was not called for have no answer.
    pub(crate) fn read(&self, way: &Way<'_>, paths: &[String], answered: impl FnMut(usize, Answer)) {
        // ZooKeeper before 3.6 answers with an error and ends the connection.
        if paths.is_empty() || self.no_reads.load(Ordering::Relaxed) {
            return;
        }
        if let Some(Err(error)) = self.with(way, paths.len(), |line| line.read(paths, answered)) {
            log::debug!("reading one by one, several at once failed: {error}");
            self.no_reads.fetch_or(error.kind() == io::ErrorKind::Unsupported, Ordering::Relaxed);
        }
    }

    /// Whether there is a connection, for reads too, that nobody uses at this moment.
    pub(crate) fn is_open(&self) -> bool {
        let reads = !self.no_reads.load(Ordering::Relaxed);
        reads && self.usage.try_lock().is_ok_and(|usage| usage.line.as_ref().is_some_and(Line::is_good))
    }

    /// A heartbeat: closes the connection when nobody has used it since the last one.
    pub(crate) fn beat(&self) {
        let unused = |usage: &mut Usage| std::mem::take(&mut usage.wanted) == 0;
        if self.usage.try_lock().is_ok_and(|mut usage| unused(&mut usage)) {
            self.close();
        }
    }

    /// Closes the connection, if nobody uses it.
    pub(crate) fn close(&self) {
        if let Ok(mut usage) = self.usage.try_lock() {
            lock(&self.socket).take();
            usage.line.take().into_iter().for_each(Line::close);
        }
    }

    /// Cuts the connection at once, and lets nobody have another: the session is over.
    pub(crate) fn cut(&self) {
        self.over.store(true, Ordering::SeqCst);
        if let Some(socket) = lock(&self.socket).take() {
            socket::cut(&socket);
        }
    }
}

/// A connection with a session of its own, of which nothing is known but that it is up.
pub(crate) struct Line {
    connection: Connection,
    /// The number of the last request.
    xid: i32,
    used: Instant,
    timeout: Duration,
}

impl Line {
    fn open(way: &Way<'_>) -> io::Result<(Line, Socket)> {
        let (mut connection, id) = handshake::open(way.server, way.timeout)?;
        if way.beside.is_some_and(|session| session.server() != id.server()) {
            connection.close_session();
            return Err(io::Error::other("the address led to another server than that of the session"));
        }
        if let Some(digest) = way.digest {
            connection.send(&jute::authentication(digest))?;
            match jute::header(&connection.receive(LARGEST)?)? {
                (jute::AUTH_XID, 0, _) => {}
                (_, code, _) => return Err(io::Error::other(format!("the server refuses the identity: {code}"))),
            }
        }
        connection.set_patience(way.patience)?;
        let socket = connection.socket()?;
        Ok((Line { connection, xid: 0, used: Instant::now(), timeout: way.timeout }, socket))
    }

    /// Whether its session cannot have been expired by the servers, and its numbers have not run out.
    fn is_good(&self) -> bool {
        self.used.elapsed() < self.timeout / 2 && self.xid < LAST_REQUEST
    }

    fn close(mut self) {
        self.connection.close_session();
    }

    /// Reads, each answered once, in their order.
    ///
    /// # Errors
    /// The connection broke, or something came that is not ZooKeeper's: those that `answered` was not called for have no answer.
    /// [`io::ErrorKind::Unsupported`] where the server does not know such requests.
    fn read(&mut self, paths: &[String], mut answered: impl FnMut(usize, Answer)) -> io::Result<()> {
        let groups: Vec<&[String]> = paths.chunks(READS).collect();
        let body = |at: usize| jute::reads(groups[at]);
        self.exchange(jute::MULTI_READ, groups.len(), body, &mut || {}, |at, code, body| {
            match code {
                0 => {}
                UNIMPLEMENTED => return Err(io::ErrorKind::Unsupported.into()),
                _ => return Err(io::Error::other(format!("the server refuses it: {code}"))),
            }
            let mut input = Input(body);
            for index in 0..groups[at].len() {
                answered(at * READS + index, jute::answer_among(&mut input)?);
            }
            Ok(())
        })
    }

    /// Carries out transactions, several in one: for each the paths of what it made, or nothing where it was not carried out. None
    /// is where there is no znode at the path `lease`. Calls `meanwhile` when they are on their way.
    ///
    /// # Errors
    /// The connection broke, or something came that is not ZooKeeper's: what was carried out is not known.
    pub(crate) fn commit(
        &mut self,
        lease: Option<&str>,
        transactions: &[Operations],
        meanwhile: &mut dyn FnMut(),
    ) -> io::Result<Vec<Option<Vec<String>>>> {
        let mut made = vec![None; transactions.len()];
        let groups = group(transactions);
        self.commit_groups(lease, transactions, &groups, meanwhile, &mut made)?;
        // One that is not to be had stands in the way of all that were put together with it.
        let together = groups.into_iter().filter(|group| group.len() > 1).flatten();
        let alone: Vec<Vec<usize>> = together.filter(|at| made[*at].is_none()).map(|at| vec![at]).collect();
        self.commit_groups(lease, transactions, &alone, meanwhile, &mut made)?;
        Ok(made)
    }

    fn commit_groups(
        &mut self,
        lease: Option<&str>,
        transactions: &[Operations],
        groups: &[Vec<usize>],
        meanwhile: &mut dyn FnMut(),
        made: &mut [Option<Vec<String>>],
    ) -> io::Result<()> {
        let body = |at: usize| {
            let mut all = Operations::default();
            lease.into_iter().for_each(|path| all.check(path));
            groups[at].iter().for_each(|index| all.append(&transactions[*index]));
            all.body()
        };
        self.exchange(jute::MULTI, groups.len(), body, meanwhile, |at, code, body| {
            let results = if code == 0 { jute::carried_out(body)? } else { None };
            let Some(results) = results else { return Ok(()) };
            let mut results = results.into_iter().skip(usize::from(lease.is_some()));
            for index in &groups[at] {
                let of_one = results.by_ref().take(transactions[*index].count);
                made[*index] = Some(of_one.flatten().collect());
            }
            Ok(())
        })
    }

    /// Sends requests of one kind, so many at a time, and takes the answers: an error code, and what follows if that is 0. Calls
    /// `meanwhile` each time some are on their way.
    fn exchange(
        &mut self,
        opcode: i32,
        count: usize,
        body: impl Fn(usize) -> Vec<u8>,
        meanwhile: &mut dyn FnMut(),
        mut answered: impl FnMut(usize, i32, &[u8]) -> io::Result<()>,
    ) -> io::Result<()> {
        let first = self.xid + 1;
        let number = |at: usize| i32::try_from(at).map(|at| first.saturating_add(at)).map_err(io::Error::other);
        let (mut sent, mut received) = (0, 0);
        while received < count {
            // Half a window is sent at once, so that there is something on its way while it is written.
            if sent < count && sent - received <= WINDOW / 2 {
                let until = count.min(received + WINDOW);
                let request = |at| {
                    let header = [number(at)?.to_be_bytes(), opcode.to_be_bytes()].concat();
                    Ok([header, body(at)].concat())
                };
                let requests: Vec<Vec<u8>> = (sent..until).map(request).collect::<io::Result<_>>()?;
                self.connection.send_all(&requests)?;
                (sent, self.xid) = (until, number(until - 1)?);
                meanwhile();
                // However long that took: the answer has its time from now on.
                self.connection.wait_anew();
            }
            let reply = self.connection.receive(LARGEST)?;
            let (xid, code, body) = jute::header(&reply)?;
            // There are neither pings nor watches here.
            if xid != number(received)? {
                return Err(io::ErrorKind::InvalidData.into());
            }
            answered(received, code, body)?;
            received += 1;
        }
        Ok(())
    }
}

/// Which transactions are put into one. Those that are too large even alone are in none.
fn group(transactions: &[Operations]) -> Vec<Vec<usize>> {
    let mut groups: Vec<Vec<usize>> = Vec::new();
    let (mut bytes, mut count) = (BYTES, OPERATIONS);
    for (index, one) in transactions.iter().enumerate().filter(|(_, one)| one.records.len() <= BYTES) {
        match groups.last_mut() {
            Some(last) if bytes + one.records.len() <= BYTES && count + one.count <= OPERATIONS => last.push(index),
            _ => {
                groups.push(vec![index]);
                (bytes, count) = (0, 0);
            }
        }
        bytes += one.records.len();
        count += one.count;
    }
    groups
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn transactions_are_put_together_as_long_as_they_are_small() {
        let of = |bytes, count| Operations { records: vec![0; bytes], count };
        assert_eq!(group(&[of(10, 1), of(10, 2), of(10, 1)]), [vec![0, 1, 2]]);
        assert_eq!(group(&[of(BYTES, 1), of(BYTES + 1, 1), of(1, 1)]), [vec![0], vec![2]]);
        assert_eq!(group(&[of(1, OPERATIONS), of(1, 1), of(1, 1)]), [vec![0], vec![1, 2]]);
        assert!(group(&[]).is_empty());
    }
}
