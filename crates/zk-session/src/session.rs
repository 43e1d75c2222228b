//! The session: one handle of the `zookeeper` crate, one connection, no way back.

use std::fmt;
use std::io;
use std::net::SocketAddr;
use std::panic::{self, AssertUnwindSafe};
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError, Weak, mpsc};
use std::thread;
use std::time::{Duration, Instant};

use socket2::Socket;
use zookeeper::{Acl, AddWatchMode, CreateMode, WatchedEvent, WatchedEventType, ZkError, ZkResult, ZkState, ZooKeeper};

use crate::acl::{self, Rights};
use crate::bulk::{Bulk, Way};
use crate::flow::Flow;
use crate::jute::{Answer, Operations};
use crate::relay::Relay;
use crate::socket::{self, Sockets};
use crate::stream::Server;
use crate::{Config, ConnectString, Error, OpenError, Reason, SessionId, Witness, handshake, in_parallel, opening};

/// The largest request, in bytes: `jute.maxbuffer` is 1,048,575 by default, and a server cuts the connection over it.
pub const MAX_REQUEST: usize = 1_040_000;

/// What a request costs beside its path and its data: header, lengths, ACL.
const OVERHEAD: usize = 256;

/// How long the first request on a connection may take. The server answered a handshake a moment ago.
const FIRST_ANSWER: Duration = Duration::from_secs(2);

/// The crate numbers its requests with 31 bits and does not mind when they run out.
const LAST_REQUEST: u32 = (1 << 31) - 1_000_000;

/// How long a session that is dropped without [`Session::close`] tries to tell the server.
const CLOSE_ON_DROP: Duration = Duration::from_millis(300);

/// What goes into a mailbox.
#[derive(Debug, Clone)]
pub enum Event {
    /// A session is up ([`crate::open_in_background`]).
    Opened(Session),
    /// Something changed at a path on which a watch was set: read again.
    Watch {
        /// Relative to the chroot.
        path: String,
        /// A hint at what.
        change: Change,
    },
    /// A session is over.
    Lost {
        /// Its number: the news may be about an earlier session than the present one.
        session: u32,
        /// Why.
        reason: Reason,
    },
}

/// What kind of change a watch saw.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Change {
    /// The znode was made.
    Created,
    /// The znode was deleted.
    Deleted,
    /// Its data was written.
    Data,
    /// A child was made or deleted.
    Children,
}

/// Puts an event into a mailbox. It runs on threads that must not wait, so it does nothing else.
pub type Notify = Arc<dyn Fn(Event) + Send + Sync>;

/// What kind of znode to make.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// Stays until it is deleted.
    Persistent,
    /// Goes with the session.
    Ephemeral,
    /// Stays; ZooKeeper appends ten digits to the name.
    Sequential,
}

/// What came of reading a znode: nothing where there is none.
pub type Read = Result<Option<(Vec<u8>, Stat)>, Error>;

/// What came of transactions ([`Session::commit_each`]): for each that was carried out the paths of what it made.
pub type Committed = Result<Vec<Option<Vec<String>>>, Error>;

/// A write, as part of a transaction ([`Session::commit_each`]).
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Write {
    /// As [`Session::create`] with [`Kind::Persistent`] or [`Kind::Sequential`].
    Create {
        /// Where.
        path: String,
        /// What it holds.
        data: Vec<u8>,
        /// Whether ZooKeeper appends ten digits to the name.
        sequential: bool,
    },
    /// As [`Session::write`].
    Data {
        /// Where.
        path: String,
        /// What it holds from then on.
        data: Vec<u8>,
        /// The version it has to have.
        version: Option<i32>,
    },
    /// As [`Session::delete`].
    Delete {
        /// Where.
        path: String,
        /// The version it has to have.
        version: Option<i32>,
    },
}

/// What ZooKeeper knows of a znode beside its data.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Stat {
    /// The transaction that made it: tells it from a later one at the same path.
    pub czxid: i64,
    /// The transaction that last wrote its data, or made it.
    pub mzxid: i64,
    /// When it was made, in milliseconds since 1970 by the servers' clocks.
    pub ctime_ms: i64,
    /// When its data was last written, likewise.
    pub mtime_ms: i64,
    /// How often its data was written.
    pub version: i32,
    /// The session that an ephemeral belongs to.
    pub owner: Option<SessionId>,
    /// How many children it has.
    pub children: i32,
    /// How many were ever made: the number that ZooKeeper appends to the name of the next sequential one, unless that is
    /// taken.
    pub children_ever: u32,
}

impl From<zookeeper::Stat> for Stat {
    fn from(stat: zookeeper::Stat) -> Self {
        Stat {
            czxid: stat.czxid,
            mzxid: stat.mzxid,
            ctime_ms: stat.ctime,
            mtime_ms: stat.mtime,
            version: stat.version,
            owner: (stat.ephemeral_owner != 0).then_some(SessionId(stat.ephemeral_owner)),
            children: stat.num_children,
            // ZooKeeper counts the children made, and tells its clients how many were made and deleted (DataNode.copyStat).
            children_ever: u32::try_from((i64::from(stat.cversion) + i64::from(stat.num_children)) / 2).unwrap_or(0),
        }
    }
}

/// A session with the ensemble. Clones are the same session; it is closed with the last of them, or by [`Session::close`].
#[derive(Clone)]
pub struct Session(Arc<Inner>);

struct Inner {
    handle: Arc<Handle>,
    control: Arc<Control>,
    connect: ConnectString,
    server: Server,
    rights: Rights,
    digest: Option<String>,
    flow: Flow,
    requests: AtomicU32,
}

/// The crate's handle. Dropping that sends a request and waits for the answer, so a thread of its own drops it.
struct Handle(Option<ZooKeeper>);

impl Handle {
    fn zookeeper(&self) -> &ZooKeeper {
        self.0.as_ref().expect("taken only when dropped")
    }
}

impl Drop for Handle {
    fn drop(&mut self) {
        let zookeeper = self.0.take();
        // Where no thread can be made, the handle is dropped here.
        thread::Builder::new().name("zk-drop".into()).spawn(move || drop(zookeeper)).ok();
    }
}

/// What the threads of a session share.
struct Control {
    number: u32,
    granted: Duration,
    /// A loss is declared this long after the last answered heartbeat was sent: 2/3 of the granted timeout.
    limit: Duration,
    /// The first request was answered: from here on every change of the connection's state is a loss.
    armed: AtomicBool,
    connected: AtomicBool,
    closing: AtomicBool,
    life: Mutex<Life>,
    changed: Condvar,
    /// The connection: a relay's sockets, too, where there is one.
    sockets: Mutex<Vec<Socket>>,
    bulk: Bulk,
    notify: Notify,
    witness: Option<Arc<dyn Witness>>,
}

struct Life {
    over: Option<Reason>,
    /// The caller has the session, and so is told when it is over; nobody waits for news of one that could not be opened.
    opened: bool,
    /// When the last heartbeat that was answered was sent.
    last_answered: Instant,
    heartbeat: Heartbeat,
}

/// What a heartbeat asks for. A follower that is cut off from the quorum goes on answering reads for seconds after the
/// majority has expired the session; a write it cannot answer. So whoever holds a role writes (PROTOCOL, Sessions).
enum Heartbeat {
    Read,
    Write(Own),
}

/// The node of its own that a session writes to.
#[derive(Clone)]
struct Own {
    path: String,
    data: Vec<u8>,
    acl: Vec<Acl>,
    id: SessionId,
    /// When the last acknowledged write was sent.
    proved: Instant,
    /// The servers' clock at the last acknowledged write, and ours when the answer came.
    server_time: (i64, Instant),
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // No code panics while it holds one of these locks; what they guard is whole at any time.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Control {
    /// Declares the session over; the first reason counts. A server that we ask to end the session ends the connection, too.
    fn lose(&self, reason: Reason) {
        let reason = if self.closing.load(Ordering::SeqCst) { Reason::Closed } else { reason };
        let opened = {
            let mut life = lock(&self.life);
            if life.over.is_some() {
                return;
            }
            life.over = Some(reason);
            life.opened
        };
        // From here on no caller gets through, and the listener below ends the crate's thread whatever it says.
        if opened {
            (self.notify)(Event::Lost { session: self.number, reason });
        }
        // The way to the server first: what a relay holds does not get there any more.
        std::mem::take(&mut *lock(&self.sockets)).iter().for_each(socket::cut);
        self.bulk.cut();
        self.changed.notify_all();
    }

    /// Runs on the crate's io thread, before the crate may connect again: the fence.
    ///
    /// A new session could only be opened by this very thread, after it told us here that the connection is gone. So it
    /// ends here. Unwinding closes its socket and answers all waiting callers with `ConnectionLoss`.
    fn on_state(&self, state: ZkState) {
        if self.closing.load(Ordering::SeqCst) && state == ZkState::Closed {
            return;
        }
        let over = lock(&self.life).over.is_some();
        let first = state == ZkState::Connected && !self.connected.swap(true, Ordering::SeqCst);
        if first && !over && !self.armed.load(Ordering::SeqCst) {
            return;
        }
        self.lose(Reason::Disconnected);
        panic::resume_unwind(Box::new("the session is over"));
    }

    fn over(&self) -> Option<Reason> {
        let life = lock(&self.life);
        match life.over {
            // The lease is computed here as well, so that it does not depend on when the monitor thread is scheduled.
            None if life.last_answered.elapsed() >= self.limit => Some(Reason::Silent(self.limit)),
            over => over,
        }
    }

    /// Sends a heartbeat every sixth of the timeout, until the session is over.
    fn beat(&self, handle: &Weak<Handle>) {
        loop {
            let Some(handle) = handle.upgrade() else { return };
            let own = match &lock(&self.life).heartbeat {
                Heartbeat::Read => None,
                Heartbeat::Write(own) => Some(own.clone()),
            };
            let sent = Instant::now();
            let answer = match &own {
                None => handle.zookeeper().exists("/", false).map(|_| None),
                Some(own) => write_own(handle.zookeeper(), own),
            };
            drop(handle);
            self.bulk.beat();
            let mut life = lock(&self.life);
            match answer {
                Ok(mtime) => {
                    life.last_answered = sent;
                    if let (Heartbeat::Write(own), Some(mtime)) = (&mut life.heartbeat, mtime) {
                        own.proved = own.proved.max(sent);
                        own.server_time = (mtime, Instant::now());
                        if let Some(witness) = &self.witness {
                            witness.proved(sent);
                        }
                    }
                }
                Err(error) => {
                    drop(life);
                    return self.lose(reason_of(error).unwrap_or(Reason::Expired));
                }
            }
            if life.over.is_some() {
                return;
            }
            drop(self.changed.wait_timeout(life, self.granted / 6));
        }
    }

    /// Declares the session lost when no heartbeat was answered for too long.
    fn monitor(&self) {
        loop {
            let life = lock(&self.life);
            if life.over.is_some() {
                return;
            }
            let left = (life.last_answered + self.limit).saturating_duration_since(Instant::now());
            if left.is_zero() {
                drop(life);
                return self.lose(Reason::Silent(self.limit));
            }
            drop(self.changed.wait_timeout(life, left));
        }
    }
}

/// Writes to the session's own node; makes it again where somebody deleted it. Returns the servers' clock.
fn write_own(zookeeper: &ZooKeeper, own: &Own) -> ZkResult<Option<i64>> {
    match zookeeper.set_data(&own.path, own.data.clone(), None) {
        Ok(stat) => Ok(Some(stat.mtime)),
        Err(ZkError::NoNode) => {
            match zookeeper.create(&own.path, own.data.clone(), own.acl.clone(), CreateMode::Ephemeral) {
                // No answer but these ends the session: its parent was deleted as well, and the write was a write.
                Ok(_) | Err(ZkError::NoNode | ZkError::NodeExists) => Ok(None),
                Err(error) => Err(error),
            }
        }
        Err(error) => Err(error),
    }
}

/// Why the session is over after such an answer; `None` if it is not.
fn reason_of(error: ZkError) -> Option<Reason> {
    match error {
        ZkError::ConnectionLoss => Some(Reason::Disconnected),
        ZkError::SessionExpired | ZkError::SessionMoved => Some(Reason::Expired),
        _ => None,
    }
}

impl Session {
    /// Opens a session on one of the servers. `number` is the caller's count of its sessions, `notify` its mailbox.
    ///
    /// Returns within some seconds, whatever the servers do.
    ///
    /// # Errors
    /// What became of each server.
    pub fn open(config: &Config, number: u32, notify: &Notify) -> Result<Session, OpenError> {
        // Perhaps it is not tried again.
        Session::open_after(Duration::MAX, config, number, notify)
    }

    /// As [`Session::open`], when that has been tried for so long: at first a server that is silent is not waited for.
    pub(crate) fn open_after(
        away: Duration,
        config: &Config,
        number: u32,
        notify: &Notify,
    ) -> Result<Session, OpenError> {
        let (server, granted) = opening::reach(config, away)?;
        let address = server.address;
        Session::open_at(config, server, granted, number, notify)
            .map_err(|why| OpenError(vec![format!("{address}: {why}")]))
    }

    fn open_at(
        config: &Config,
        server: Server,
        granted: Duration,
        number: u32,
        notify: &Notify,
    ) -> Result<Session, String> {
        // One at a time, so that the sockets opened meanwhile are this connection's.
        static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());

        let limit = granted * 2 / 3;
        let life = Life { over: None, opened: false, last_answered: Instant::now(), heartbeat: Heartbeat::Read };
        let control = Arc::new(Control {
            number,
            granted,
            limit,
            armed: AtomicBool::new(false),
            connected: AtomicBool::new(false),
            closing: AtomicBool::new(false),
            life: Mutex::new(life),
            changed: Condvar::new(),
            sockets: Mutex::default(),
            bulk: Bulk::default(),
            notify: notify.clone(),
            witness: config.witness.clone(),
        });
        let relay = server.tls.as_ref().map(|peer| Relay::to(&server, peer)).transpose();
        let relay = relay.map_err(|error| error.to_string())?;
        let address = relay.as_ref().map_or(server.address, Relay::address);
        let watcher = watcher(config.connect.clone(), notify.clone());
        let one_at_a_time = lock(&ONE_AT_A_TIME);
        let before = Sockets::now();
        // The crate unwraps the result of connect(2), which fails at once where there is no route or no descriptor.
        let zookeeper =
            panic::catch_unwind(AssertUnwindSafe(|| ZooKeeper::connect(&address.to_string(), config.timeout, watcher)))
                .map_err(|_| "no connection could be made")?
                .map_err(|error| format!("no connection could be made: {error:?}"))?;
        let listener = control.clone();
        zookeeper.add_listener(move |state| listener.on_state(state));
        let sockets = before.opened_since();
        drop(one_at_a_time);
        let handle = Arc::new(Handle(Some(zookeeper)));
        let session = Session(Arc::new(Inner {
            handle,
            control: control.clone(),
            connect: config.connect.clone(),
            server,
            rights: Rights::of(config),
            digest: config.digest.clone(),
            flow: Flow::default(),
            requests: AtomicU32::new(0),
        }));
        if let Some(relay) = relay {
            let relayed = relay.start(&sockets).map_err(|error| error.to_string())?;
            relayed.iter().for_each(|socket| socket::limit_delivery(socket, limit));
            lock(&control.sockets).extend(relayed);
        }
        // Until the first answer nothing is known: connect() returns Ok where no server is. Dropping the session ends it.
        let sent = Instant::now();
        let answered = session.first_request(config.digest.clone());
        let socket = socket::connected_to(address, sockets);
        match &socket {
            Some(socket) => socket::limit_delivery(socket, limit),
            None => log::debug!("socket not identified server={address}: a silent link blocks requests for long"),
        }
        lock(&control.sockets).extend(socket);
        answered?;
        control.armed.store(true, Ordering::SeqCst);
        lock(&control.life).last_answered = sent;
        let (beating, handle) = (control.clone(), Arc::downgrade(&session.0.handle));
        spawn("zk-heartbeat", move || beating.beat(&handle))?;
        let monitoring = control.clone();
        spawn("zk-monitor", move || monitoring.monitor())?;
        let mut life = lock(&control.life);
        life.opened = true;
        match life.over {
            None => {
                drop(life);
                Ok(session)
            }
            Some(reason) => Err(reason.to_string()),
        }
    }

    fn first_request(&self, digest: Option<String>) -> Result<(), String> {
        let (tx, rx) = mpsc::channel();
        let handle = self.0.handle.clone();
        spawn("zk-first", move || {
            // The crate sends it before the session is there. An identity sent then may be answered by Netty's port before
            // the session is, of which the crate makes neither head nor tail.
            let answer = handle.zookeeper().exists("/", false).and_then(|_| match digest {
                Some(digest) => handle.zookeeper().add_auth("digest", digest.into_bytes()),
                None => Ok(()),
            });
            tx.send(answer).ok(); // nobody waits any more when the deadline has passed
        })?;
        match rx.recv_timeout(FIRST_ANSWER) {
            Ok(Ok(())) => Ok(()),
            Ok(Err(ZkError::AuthFailed)) => Err("the server does not accept the identity of --auth-file".into()),
            Ok(Err(error)) => Err(format!("the first request failed: {error:?}")),
            Err(_) => Err(format!("the first request was not answered within {} ms", FIRST_ANSWER.as_millis())),
        }
    }

    /// The caller's count of its sessions.
    pub fn number(&self) -> u32 {
        self.0.control.number
    }

    /// The server it is connected to.
    pub fn server(&self) -> SocketAddr {
        self.0.server.address
    }

    /// The session timeout that the server granted.
    pub fn timeout(&self) -> Duration {
        self.0.control.granted
    }

    /// Why it is over; `None` while it is up: a heartbeat sent within the last 2/3 of the timeout was answered.
    pub fn over(&self) -> Option<Reason> {
        self.0.control.over()
    }

    /// Makes an ephemeral of its own by which this session is known: its id is read from it, and from now on the
    /// heartbeats are writes to it.
    ///
    /// # Errors
    /// As [`Session::create`] and [`Session::stat`].
    pub fn own(&self, path: &str, data: &[u8]) -> Result<SessionId, Error> {
        let proved = Instant::now();
        self.create(path, data, Kind::Ephemeral)?;
        let stat = self.stat(path, false)?.ok_or_else(|| Error::NoNode(path.to_owned()))?;
        let id = stat.owner.ok_or_else(|| Error::NoNode(path.to_owned()))?;
        let path = self.0.connect.absolute(path);
        if let Some(witness) = &self.0.control.witness {
            witness.owns(id, self.timeout());
            witness.proved(proved);
        }
        let acl = self.0.rights.at(&path);
        let own = Own { path, data: data.to_vec(), acl, id, proved, server_time: (stat.mtime_ms, Instant::now()) };
        lock(&self.0.control.life).heartbeat = Heartbeat::Write(own);
        // One that was opened before may lead to another server than that of the session.
        self.0.control.bulk.close();
        Ok(id)
    }

    fn with_own<T>(&self, ask: impl FnOnce(&Own) -> T) -> Option<T> {
        match &lock(&self.0.control.life).heartbeat {
            Heartbeat::Read => None,
            Heartbeat::Write(own) => Some(ask(own)),
        }
    }

    /// Its id, once it has a node of its own.
    pub fn id(&self) -> Option<SessionId> {
        self.with_own(|own| own.id)
    }

    /// When the last acknowledged write to its own node was sent: until then it was surely alive. `None` without one.
    pub fn proved(&self) -> Option<Instant> {
        self.with_own(|own| own.proved)
    }

    /// The servers' clock in milliseconds since 1970, as of the last heartbeat plus what passed here since.
    pub fn server_time_ms(&self) -> Option<i64> {
        self.with_own(|own| {
            let (then, at) = own.server_time;
            then.saturating_add(i64::try_from(at.elapsed().as_millis()).unwrap_or(i64::MAX))
        })
    }

    /// Writes to its own node now. Reads that follow on this session see all that was written before, by anybody.
    ///
    /// # Errors
    /// As [`Session::create`]; [`Error::NoNode`] without a node of its own.
    pub fn sync(&self) -> Result<(), Error> {
        let own = self.with_own(Own::clone).ok_or_else(|| Error::NoNode("a node of the session's own".into()))?;
        let sent = Instant::now();
        self.call(&own.path, own.data.len(), |zookeeper| write_own(zookeeper, &own))?;
        if let Heartbeat::Write(own) = &mut lock(&self.0.control.life).heartbeat {
            own.proved = own.proved.max(sent);
        }
        Ok(())
    }

    /// Ends an earlier session of ours through the server this one is connected to. Returns false where there was none
    /// any more, or the server does not accept the password: then it is gone when it expires.
    ///
    /// # Errors
    /// The answer did not come: the session may or may not be ended.
    pub fn end_earlier(&self, earlier: SessionId) -> io::Result<bool> {
        handshake::close_session(&self.0.server, earlier)
    }

    /// Makes a znode and returns its path.
    ///
    /// # Errors
    /// [`Error::NodeExists`], [`Error::NoNode`] (its parent), [`Error::TooLarge`], [`Error::NotAllowed`],
    /// [`Error::Lost`].
    pub fn create(&self, path: &str, data: &[u8], kind: Kind) -> Result<String, Error> {
        let mode = match kind {
            Kind::Persistent => CreateMode::Persistent,
            Kind::Ephemeral => CreateMode::Ephemeral,
            Kind::Sequential => CreateMode::PersistentSequential,
        };
        let absolute = self.0.connect.absolute(path);
        let acl = self.0.rights.at(&absolute);
        let created = self.call(path, data.len(), |zookeeper| zookeeper.create(&absolute, data.to_vec(), acl, mode))?;
        Ok(self.0.connect.relative(&created))
    }

    /// Makes a persistent znode without data, and its parents up to the chroot, where they are not there yet. With
    /// `/`, makes the chroot itself.
    ///
    /// # Errors
    /// As [`Session::create`].
    pub fn ensure(&self, path: &str) -> Result<(), Error> {
        let absolute = self.0.connect.absolute(path);
        let ends = absolute.char_indices().skip(1).filter(|(_, c)| *c == '/').map(|(at, _)| at);
        for end in ends.chain([absolute.len()]) {
            let part = &absolute[..end];
            if part == "/" || self.call(part, 0, |zookeeper| zookeeper.exists(part, false))?.is_some() {
                continue;
            }
            let created = self.call(part, 0, |zookeeper| {
                zookeeper.create(part, Vec::new(), self.0.rights.at(part), CreateMode::Persistent)
            });
            match created {
                Ok(_) | Err(Error::NodeExists(_)) => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    /// Reads a znode; `None` where there is none. A watch is set only on one that is there.
    ///
    /// # Errors
    /// [`Error::NotAllowed`], [`Error::Lost`].
    pub fn read(&self, path: &str, watch: bool) -> Read {
        let absolute = self.0.connect.absolute(path);
        let read = self.call(path, 0, |zookeeper| zookeeper.get_data(&absolute, watch));
        absent_is_none(read.map(|(data, stat)| (data, stat.into())))
    }

    /// Looks whether there is a znode. A watch is set in either case.
    ///
    /// # Errors
    /// [`Error::Lost`].
    pub fn stat(&self, path: &str, watch: bool) -> Result<Option<Stat>, Error> {
        let absolute = self.0.connect.absolute(path);
        self.call(path, 0, |zookeeper| zookeeper.exists(&absolute, watch)).map(|stat| stat.map(Stat::from))
    }

    /// The names of a znode's children, in no order; `None` where there is no such znode. A watch is set only on one that
    /// is there.
    ///
    /// # Errors
    /// [`Error::NotAllowed`], [`Error::Lost`].
    pub fn children(&self, path: &str, watch: bool) -> Result<Option<Vec<String>>, Error> {
        let absolute = self.0.connect.absolute(path);
        absent_is_none(self.call(path, 0, |zookeeper| zookeeper.get_children(&absolute, watch)))
    }

    /// Reads many znodes, in any order, and makes something of each: `None` where there is none. No watches are set. It takes as few
    /// requests as there can be, and one for each where so few are read that they are not worth a connection.
    ///
    /// What is read is at least as new as what this session has read, written, or set watches on before, if it has a node of its own
    /// ([`Session::own`]). Without one that holds only for what is said not to be there.
    ///
    /// # Errors
    /// Each as [`Session::read`].
    pub fn read_each<T: Send>(
        &self,
        paths: &[String],
        make: impl Fn(Option<(Vec<u8>, Stat)>) -> T + Sync,
    ) -> Vec<Result<T, Error>> {
        self.read_as_new(self.id().is_some(), paths, make)
    }

    /// As [`Session::read_each`], but a session without a node of its own may miss what was made a moment ago: for whoever asks
    /// again.
    ///
    /// # Errors
    /// Each as [`Session::read`].
    pub fn glance_at_each<T: Send>(
        &self,
        paths: &[String],
        make: impl Fn(Option<(Vec<u8>, Stat)>) -> T + Sync,
    ) -> Vec<Result<T, Error>> {
        self.read_as_new(true, paths, make)
    }

    fn read_as_new<T: Send>(
        &self,
        absence_counts: bool,
        paths: &[String],
        make: impl Fn(Option<(Vec<u8>, Stat)>) -> T + Sync,
    ) -> Vec<Result<T, Error>> {
        let mut found = self.read_in_bulk(absence_counts, paths, &make);
        let missing: Vec<usize> = (0..paths.len()).filter(|at| found[*at].is_none()).collect();
        let asked = in_parallel(&missing, |at| self.read(&paths[*at], false).map(&make));
        for (at, answer) in missing.into_iter().zip(asked) {
            found[at] = Some(answer);
        }
        found.into_iter().flatten().collect()
    }

    /// Reads znodes, those of each group not before those of the one before it; otherwise as [`Session::read_each`].
    ///
    /// # Errors
    /// Each as [`Session::read`].
    pub fn read_in_order<const N: usize>(&self, groups: &[Vec<String>; N]) -> [Vec<Read>; N] {
        let counts = self.id().is_some();
        let found: Option<Vec<Read>> = self.read_in_bulk(counts, &groups.concat(), |read| read).into_iter().collect();
        let one_by_one = |group: &Vec<String>| in_parallel(group, |path| self.read(path, false));
        let Some(found) = found else { return groups.each_ref().map(one_by_one) };
        let mut found = found.into_iter();
        groups.each_ref().map(|group| found.by_ref().take(group.len()).collect())
    }

    /// What is answered on the connection for many requests, in this order. It may lead to another server than that of the session
    /// where a session does not know its own id; then it does not count there that something is absent.
    fn read_in_bulk<T>(
        &self,
        absence_counts: bool,
        paths: &[String],
        make: impl Fn(Option<(Vec<u8>, Stat)>) -> T,
    ) -> Vec<Option<Result<T, Error>>> {
        let mut found: Vec<Option<Result<T, Error>>> = paths.iter().map(|_| None).collect();
        if let Some(way) = self.way() {
            let absolute: Vec<String> = paths.iter().map(|path| self.0.connect.absolute(path)).collect();
            self.0.control.bulk.read(&way, &absolute, |at, answer| {
                found[at] = match answer {
                    Answer::Data(data, stat) => Some(Ok(make(Some((data, stat))))),
                    Answer::NoNode if absence_counts => Some(Ok(make(None))),
                    Answer::NoNode | Answer::Refused(_) => None,
                }
            });
        }
        found
    }

    /// Commits transactions, each of which is carried out as a whole or not at all, with as few requests as there can be. Returns for
    /// each the paths of what it made; nothing for one that was not carried out, for whatever reason: because the znodes are not
    /// as it needs them, or because so few are asked for that they are not worth a connection. Its writes one by one say
    /// why, or do it.
    ///
    /// They go through another session of ZooKeeper's, so each of them demands that there is the node of this session's own
    /// ([`Session::own`]), which goes with it: ZooKeeper orders them before the end of this session as well. Without such a node
    /// there is no such fence, and something lost on its way may be executed later.
    ///
    /// # Errors
    /// [`Error::Lost`]: any of them may or may not have been carried out.
    pub fn commit_each(&self, transactions: &[Vec<Write>]) -> Committed {
        self.commit_each_while(transactions, || {}).0
    }

    /// As [`Session::commit_each`], and does something else meanwhile: once, in any case, also where they cannot be committed.
    ///
    /// # Errors
    /// As [`Session::commit_each`].
    pub fn commit_each_while<T>(&self, transactions: &[Vec<Write>], meanwhile: impl FnOnce() -> T) -> (Committed, T) {
        let (mut meanwhile, mut done) = (Some(meanwhile), None);
        let mut once = || done = meanwhile.take().map(|work| work()).or_else(|| done.take());
        let committed = self.commit_and(transactions, &mut once);
        once();
        (committed, done.expect("it was called at least once"))
    }

    fn commit_and(&self, transactions: &[Vec<Write>], meanwhile: &mut dyn FnMut()) -> Committed {
        let control = &self.0.control;
        let count = transactions.iter().map(Vec::len).sum();
        let committed = self.way().filter(|_| count > 0).and_then(|way| {
            control.bulk.with(&way, count, |line| {
                let operations: Vec<Operations> = transactions.iter().map(|writes| self.operations(writes)).collect();
                line.commit(self.with_own(|own| own.path.clone()).as_deref(), &operations, meanwhile)
            })
        });
        match committed {
            None => {
                control.over().map_or_else(|| Ok(vec![None; transactions.len()]), |reason| Err(Error::Lost(reason)))
            }
            Some(Ok(made)) => {
                let relative = |paths: Vec<String>| paths.iter().map(|path| self.0.connect.relative(path)).collect();
                Ok(made.into_iter().map(|paths| paths.map(relative)).collect())
            }
            // Whether it was executed is not known, nor whether it will be. That ends with the session.
            Some(Err(_)) => {
                control.lose(Reason::Disconnected);
                Err(Error::Lost(control.over().unwrap_or(Reason::Disconnected)))
            }
        }
    }

    fn operations(&self, writes: &[Write]) -> Operations {
        let mut operations = Operations::default();
        for write in writes {
            match write {
                Write::Create { path, data, sequential } => {
                    let path = self.0.connect.absolute(path);
                    operations.create(&path, data, &self.0.rights.at(&path), *sequential);
                }
                Write::Data { path, data, version } => {
                    operations.set_data(&self.0.connect.absolute(path), data, *version);
                }
                Write::Delete { path, version } => operations.delete(&self.0.connect.absolute(path), *version),
            }
        }
        operations
    }

    /// Whether there is a connection for many requests now: then several more cost little.
    pub fn has_bulk(&self) -> bool {
        self.0.control.bulk.is_open()
    }

    /// The way to a connection for many requests, as long as the session is not over.
    fn way(&self) -> Option<Way<'_>> {
        let Inner { control, server, digest, .. } = &*self.0;
        let Control { granted: timeout, limit: patience, .. } = **control;
        let way = Way { server, digest: digest.as_deref(), beside: self.id(), timeout, patience };
        control.over().is_none().then_some(way)
    }

    /// Sets a watch on a znode and on all that is or will be below it, which stays as long as the session: every create,
    /// delete and write there is an [`Event::Watch`] (`Change::Children` never comes). Other watches must not be set there.
    ///
    /// # Errors
    /// [`Error::Refused`] where the server does not know of such watches, which came with ZooKeeper 3.6; an old one may also
    /// end the session over that ([`Error::Lost`]).
    pub fn watch_below(&self, path: &str) -> Result<(), Error> {
        let absolute = self.0.connect.absolute(path);
        let watcher = watcher(self.0.connect.clone(), self.0.control.notify.clone());
        self.call(path, 0, |zookeeper| zookeeper.add_watch(&absolute, AddWatchMode::PersistentRecursive, watcher))
    }

    /// Writes a znode's data, if its version is still the one given.
    ///
    /// # Errors
    /// [`Error::NoNode`], [`Error::BadVersion`], [`Error::TooLarge`], [`Error::NotAllowed`], [`Error::Lost`].
    pub fn write(&self, path: &str, data: &[u8], version: Option<i32>) -> Result<Stat, Error> {
        let absolute = self.0.connect.absolute(path);
        self.call(path, data.len(), |zookeeper| zookeeper.set_data(&absolute, data.to_vec(), version)).map(Stat::from)
    }

    /// Deletes a znode, if its version is still the one given.
    ///
    /// # Errors
    /// [`Error::NoNode`], [`Error::NotEmpty`], [`Error::BadVersion`], [`Error::NotAllowed`], [`Error::Lost`].
    pub fn delete(&self, path: &str, version: Option<i32>) -> Result<(), Error> {
        let absolute = self.0.connect.absolute(path);
        self.call(path, 0, |zookeeper| zookeeper.delete(&absolute, version))
    }

    /// Whether a znode has the ACL that this session gives to what it makes; `None` where there is none. The root of all is not
    /// ours, and as it should be in any case.
    ///
    /// # Errors
    /// [`Error::NotAllowed`], [`Error::Lost`].
    pub fn is_protected(&self, path: &str) -> Result<Option<bool>, Error> {
        let absolute = self.0.connect.absolute(path);
        if absolute == "/" {
            return Ok(Some(true));
        }
        let found = absent_is_none(self.call(path, 0, |zookeeper| zookeeper.get_acl(&absolute)))?;
        Ok(found.map(|(found, _)| acl::same(&found, &self.0.rights.at(&absolute))))
    }

    /// Gives a znode the ACL that this session gives to what it makes.
    ///
    /// # Errors
    /// [`Error::NoNode`], [`Error::NotAllowed`], [`Error::Lost`].
    pub fn protect(&self, path: &str) -> Result<(), Error> {
        let absolute = self.0.connect.absolute(path);
        self.call(path, 0, |zookeeper| zookeeper.set_acl(&absolute, self.0.rights.at(&absolute), None)).map(drop)
    }

    /// Deletes a znode and all that is below it, also what others create there meanwhile.
    ///
    /// # Errors
    /// [`Error::NotAllowed`], [`Error::Lost`].
    pub fn delete_all(&self, path: &str) -> Result<(), Error> {
        loop {
            for child in self.children(path, false)?.unwrap_or_default() {
                let child = format!("{path}/{child}");
                // Most have nothing below them.
                match self.delete(&child, None) {
                    Err(Error::NotEmpty(_)) => self.delete_all(&child)?,
                    Err(Error::NoNode(_)) => {}
                    deleted => deleted?,
                }
            }
            match self.delete(path, None) {
                Err(Error::NotEmpty(_)) => {}
                Ok(()) | Err(Error::NoNode(_)) => return Ok(()),
                Err(error) => return Err(error),
            }
        }
    }

    fn call<T>(&self, path: &str, data: usize, request: impl FnOnce(&ZooKeeper) -> ZkResult<T>) -> Result<T, Error> {
        let bytes = path.len() + data + OVERHEAD;
        if bytes > MAX_REQUEST {
            return Err(Error::TooLarge { path: path.to_owned(), bytes });
        }
        let inner = &*self.0;
        let _room = inner.flow.enter(bytes);
        if inner.requests.fetch_add(1, Ordering::Relaxed) >= LAST_REQUEST {
            inner.control.lose(Reason::Worn);
        }
        if let Some(reason) = inner.control.over() {
            return Err(Error::Lost(reason));
        }
        match request(inner.handle.zookeeper()) {
            Ok(value) => Ok(value),
            Err(error) => match reason_of(error) {
                None => Err(Error::answered(path, error)),
                Some(mut reason) => {
                    // While the connection is up this says that the crate dropped the request. Its outcome is as
                    // unknown as after a loss, and a loss everybody knows how to handle.
                    if reason == Reason::Disconnected {
                        reason = Reason::RequestDropped;
                    }
                    inner.control.lose(reason);
                    Err(Error::Lost(inner.control.over().unwrap_or(reason)))
                }
            },
        }
    }

    /// Ends the session on the server, and with it its ephemerals, if that can be had within `patience`; returns whether
    /// the server confirmed it. In any case the session is over then.
    pub fn close(&self, patience: Duration) -> bool {
        close(&self.0.control, &self.0.handle, patience)
    }
}

fn close(control: &Arc<Control>, handle: &Arc<Handle>, patience: Duration) -> bool {
    if control.over().is_some() || control.closing.swap(true, Ordering::SeqCst) {
        control.lose(Reason::Closed);
        return false;
    }
    control.bulk.close();
    let (tx, rx) = mpsc::channel();
    let handle = handle.clone();
    let closing = spawn("zk-close", move || {
        tx.send(handle.zookeeper().close().is_ok()).ok(); // nobody waits any more when the deadline has passed
    });
    let confirmed = closing.is_ok() && rx.recv_timeout(patience).unwrap_or(false);
    control.lose(Reason::Closed);
    confirmed
}

impl Drop for Inner {
    fn drop(&mut self) {
        if self.control.over().is_none() {
            let (control, handle) = (self.control.clone(), self.handle.clone());
            if spawn("zk-close", move || _ = close(&control, &handle, CLOSE_ON_DROP)).is_err() {
                self.control.lose(Reason::Closed);
            }
        }
    }
}

impl fmt::Debug for Session {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Session").field("number", &self.number()).field("server", &self.server()).finish()
    }
}

fn absent_is_none<T>(read: Result<T, Error>) -> Result<Option<T>, Error> {
    match read {
        Ok(value) => Ok(Some(value)),
        Err(Error::NoNode(_)) => Ok(None),
        Err(error) => Err(error),
    }
}

/// The one watcher of a session. It runs on the crate's event thread and only sends: a panic would end that thread.
fn watcher(connect: ConnectString, notify: Notify) -> impl Fn(WatchedEvent) + Send + 'static {
    move |event| {
        let change = match event.event_type {
            WatchedEventType::NodeCreated => Change::Created,
            WatchedEventType::NodeDeleted => Change::Deleted,
            WatchedEventType::NodeDataChanged => Change::Data,
            WatchedEventType::NodeChildrenChanged => Change::Children,
            _ => return,
        };
        if let Some(path) = event.path {
            notify(Event::Watch { path: connect.relative(&path), change });
        }
    }
}

fn spawn(name: &str, work: impl FnOnce() + Send + 'static) -> Result<(), String> {
    let spawned = thread::Builder::new().name(name.into()).spawn(work);
    spawned.map(drop).map_err(|error| format!("no thread could be started: {error}"))
}
