//! A fake ZooKeeper server: for what a real one does too rarely, and to count what a client does.

use std::{
    collections::BTreeMap,
    io::{self, Read, Write},
    net::{Ipv4Addr, Shutdown, TcpListener, TcpStream},
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    thread::JoinHandle,
};

use crate::{
    Port,
    jute::{Input, Output, length},
    process::lock,
};

/// The longest request that is read, as in a real server.
const MAX_REQUEST: usize = 1 << 20;

/// What the server does with a connection.
#[derive(Clone, Debug)]
pub enum Act {
    /// Closes it at once.
    Refuse,
    /// Keeps it, and never says anything.
    Silent,
    /// Sends these bytes, and nothing more.
    Garbage(Vec<u8>),
    /// Opens a session as asked, and answers: ping, create, delete, exists, get, set, children, sync, auth, close. It keeps
    /// ephemerals and versions, but no ACLs and no watches, and never expires a session.
    Handshake,
}

/// The server, on a loopback port. Dropping it ends all connections.
pub struct Fake {
    port: Port,
    shared: Arc<Shared>,
    acceptor: Option<JoinHandle<()>>,
}

struct Shared {
    act: Mutex<Act>,
    answering: AtomicBool,
    stopping: AtomicBool,
    accepted: AtomicUsize,
    /// The open connections, by number.
    open: Mutex<BTreeMap<usize, TcpStream>>,
    tree: Mutex<Tree>,
}

impl Fake {
    /// Starts to listen.
    #[must_use]
    pub fn start(act: Act) -> Fake {
        let port = Port::claim();
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, port.number())).expect("a claimed port is free");
        let shared = Arc::new(Shared {
            act: Mutex::new(act),
            answering: true.into(),
            stopping: false.into(),
            accepted: 0.into(),
            open: Mutex::default(),
            tree: Mutex::default(),
        });
        let accepting = Arc::clone(&shared);
        let acceptor = std::thread::spawn(move || accept(&listener, &accepting));
        Fake { port, shared, acceptor: Some(acceptor) }
    }

    /// `127.0.0.1:port`, as for `--zk`.
    #[must_use]
    pub fn connect_string(&self) -> String {
        self.port.address()
    }

    /// The port.
    #[must_use]
    pub fn port(&self) -> u16 {
        self.port.number()
    }

    /// How many connections it has accepted so far.
    #[must_use]
    pub fn connections(&self) -> usize {
        self.shared.accepted.load(Ordering::SeqCst)
    }

    /// How many connections are open.
    #[must_use]
    pub fn open_connections(&self) -> usize {
        lock(&self.shared.open).len()
    }

    /// Plays something else on the connections that are still to come.
    pub fn play(&self, act: Act) {
        *lock(&self.shared.act) = act;
    }

    /// Closes all connections at once.
    pub fn drop_connections(&self) {
        for stream in std::mem::take(&mut *lock(&self.shared.open)).values() {
            stream.shutdown(Shutdown::Both).ok(); // fails when the client was faster
        }
    }

    /// Reads requests from now on without carrying them out or answering, on all connections.
    pub fn stop_answering(&self) {
        self.shared.answering.store(false, Ordering::SeqCst);
    }

    /// Answers again. What was asked in the meantime stays unanswered.
    pub fn answer_again(&self) {
        self.shared.answering.store(true, Ordering::SeqCst);
    }
}

impl Drop for Fake {
    fn drop(&mut self) {
        self.shared.stopping.store(true, Ordering::SeqCst);
        // Wakes the acceptor; if that fails, its thread stays where it is.
        if TcpStream::connect((Ipv4Addr::LOCALHOST, self.port.number())).is_ok()
            && let Some(acceptor) = self.acceptor.take()
        {
            acceptor.join().ok(); // its panic has been printed
        }
        self.drop_connections();
    }
}

fn accept(listener: &TcpListener, shared: &Arc<Shared>) {
    for stream in listener.incoming() {
        if shared.stopping.load(Ordering::SeqCst) {
            return;
        }
        let Ok(mut stream) = stream else { continue };
        let number = shared.accepted.fetch_add(1, Ordering::SeqCst);
        let act = lock(&shared.act).clone();
        if matches!(act, Act::Refuse) {
            continue;
        }
        let Ok(kept) = stream.try_clone() else { continue };
        lock(&shared.open).insert(number, kept);
        let shared = Arc::clone(shared);
        std::thread::spawn(move || {
            match act {
                Act::Handshake => serve(&mut stream, &shared),
                Act::Garbage(bytes) => {
                    stream.write_all(&bytes).and_then(|()| io::copy(&mut stream, &mut io::sink()).map(drop))
                }
                Act::Refuse | Act::Silent => io::copy(&mut stream, &mut io::sink()).map(drop),
            }
            .ok(); // a connection that ends is nothing to tell
            lock(&shared.open).remove(&number);
        });
    }
}

/// One connection of [`Act::Handshake`].
fn serve(stream: &mut TcpStream, shared: &Shared) -> io::Result<()> {
    let Some(greeting) = read_frame(stream, shared)? else { return Ok(()) };
    let (session, reply) = lock(&shared.tree).open_session(&greeting).ok_or(io::ErrorKind::InvalidData)?;
    write_frame(stream, &reply)?;
    while let Some(request) = read_frame(stream, shared)? {
        let (reply, end) = lock(&shared.tree).request(session, &request).ok_or(io::ErrorKind::InvalidData)?;
        write_frame(stream, &reply)?;
        if end {
            break;
        }
    }
    stream.shutdown(Shutdown::Both)
}

/// The next request that is to be answered, or `None` at the end of the connection.
fn read_frame(stream: &mut TcpStream, shared: &Shared) -> io::Result<Option<Vec<u8>>> {
    loop {
        let mut prefix = [0; 4];
        if stream.read(&mut prefix[..1])? == 0 {
            return Ok(None);
        }
        stream.read_exact(&mut prefix[1..])?;
        let size = usize::try_from(u32::from_be_bytes(prefix)).unwrap_or(usize::MAX);
        if size > MAX_REQUEST {
            return Err(io::ErrorKind::InvalidData.into());
        }
        let mut frame = vec![0; size];
        stream.read_exact(&mut frame)?;
        if shared.answering.load(Ordering::SeqCst) {
            return Ok(Some(frame));
        }
    }
}

fn write_frame(stream: &mut TcpStream, frame: &[u8]) -> io::Result<()> {
    stream.write_all(&Output::default().buffer(frame).0)
}

/// ZooKeeper's numbers for what went wrong.
mod code {
    pub(super) const UNIMPLEMENTED: i32 = -6;
    pub(super) const NO_NODE: i32 = -101;
    pub(super) const BAD_VERSION: i32 = -103;
    pub(super) const NODE_EXISTS: i32 = -110;
}

/// The znodes. They need no parents.
#[derive(Default)]
struct Tree {
    znodes: BTreeMap<String, Znode>,
    sessions: i64,
    zxid: i64,
    /// One for the whole tree.
    sequence: u32,
}

#[derive(Clone, Default)]
struct Znode {
    data: Vec<u8>,
    /// The session that it ends with, or 0.
    owner: i64,
    czxid: i64,
    mzxid: i64,
    version: i32,
}

impl Tree {
    /// The session (a new one, or the one that the client had) and the answer to a `ConnectRequest`.
    fn open_session(&mut self, request: &[u8]) -> Option<(i64, Vec<u8>)> {
        let mut input = Input(request);
        let _protocol = input.int()?;
        let _last_zxid = input.long()?;
        let timeout = input.int()?;
        let mut session = input.long()?;
        let _password = input.buffer()?;
        if session == 0 {
            self.sessions += 1;
            session = 0x00FA_CE00_0000_0000 + self.sessions;
        }
        let reply = Output::default().int(0).int(timeout).long(session).buffer(&[7; 16]);
        Some((session, reply.bytes(input.0).0)) // the flag "read only" comes back if the client has it
    }

    /// The answer to a request, and whether it is the last one.
    fn request(&mut self, session: i64, request: &[u8]) -> Option<(Vec<u8>, bool)> {
        let mut input = Input(request);
        let (xid, operation) = (input.int()?, input.int()?);
        let (error, body) = match self.operation(session, operation, &mut input)? {
            Ok(body) => (0, body),
            Err(error) => (error, Output::default()),
        };
        let reply = Output::default().int(xid).long(self.zxid).int(error).bytes(&body.0);
        Some((reply.0, operation == -11))
    }

    fn operation(&mut self, session: i64, operation: i32, input: &mut Input<'_>) -> Option<Result<Output, i32>> {
        let done = Output::default();
        Some(match operation {
            11 | 100 => Ok(done),                  // ping, auth
            9 => Ok(done.buffer(input.buffer()?)), // sync
            -11 => {
                self.znodes.retain(|_, znode| znode.owner != session);
                Ok(done)
            }
            1 => {
                let (path, data) = (input.string()?, input.buffer()?.to_vec());
                for _ in 0..input.int()? {
                    let _acl = (input.int()?, input.buffer()?, input.buffer()?);
                }
                let flags = input.int()?;
                self.create(session, path, data, flags).map(|path| done.buffer(path.as_bytes()))
            }
            2 => {
                let (path, version) = (input.string()?, input.int()?);
                self.change(&path, version).map(drop).map(|()| {
                    self.znodes.remove(&path);
                    done
                })
            }
            3 => self.find(&input.string()?).map(|znode| done.bytes(&self.stat(&znode))),
            4 => self.find(&input.string()?).map(|znode| done.buffer(&znode.data).bytes(&self.stat(&znode))),
            5 => {
                let (path, data, version) = (input.string()?, input.buffer()?.to_vec(), input.int()?);
                let changed = self.change(&path, version).map(|znode| {
                    znode.data = data;
                    znode.version += 1;
                    znode.clone()
                });
                changed.map(|znode| done.bytes(&self.stat(&znode)))
            }
            8 => {
                let path = input.string()?;
                self.find(&path).map(|_| {
                    let names = self.children(&path);
                    names.iter().fold(done.int(length(names.len())), |output, name| output.buffer(name.as_bytes()))
                })
            }
            _ => Err(code::UNIMPLEMENTED),
        })
    }

    fn create(&mut self, session: i64, mut path: String, data: Vec<u8>, flags: i32) -> Result<String, i32> {
        let (ephemeral, sequential) = (matches!(flags, 1 | 3), matches!(flags, 2 | 3));
        if sequential {
            path += &format!("{:010}", self.sequence);
            self.sequence += 1;
        }
        if self.find(&path).is_ok() {
            return Err(code::NODE_EXISTS);
        }
        self.zxid += 1;
        let owner = if ephemeral { session } else { 0 };
        let znode = Znode { data, owner, czxid: self.zxid, mzxid: self.zxid, version: 0 };
        self.znodes.insert(path.clone(), znode);
        Ok(path)
    }

    fn find(&self, path: &str) -> Result<Znode, i32> {
        if path == "/" {
            return Ok(Znode::default());
        }
        self.znodes.get(path).cloned().ok_or(code::NO_NODE)
    }

    /// The znode to change, with the change counted already.
    fn change(&mut self, path: &str, version: i32) -> Result<&mut Znode, i32> {
        let znode = self.znodes.get_mut(path).ok_or(code::NO_NODE)?;
        if version != -1 && version != znode.version {
            return Err(code::BAD_VERSION);
        }
        self.zxid += 1;
        znode.mzxid = self.zxid;
        Ok(znode)
    }

    fn children(&self, path: &str) -> Vec<&str> {
        let prefix = format!("{}/", path.trim_end_matches('/'));
        let below = self.znodes.keys().filter_map(|path| path.strip_prefix(&prefix));
        below.filter(|name| !name.contains('/')).collect()
    }

    fn stat(&self, znode: &Znode) -> Vec<u8> {
        let output = Output::default().long(znode.czxid).long(znode.mzxid);
        let output = output.long(0).long(0); // times
        let output = output.int(znode.version).int(0).int(0).long(znode.owner);
        output.int(length(znode.data.len())).int(0).long(znode.czxid).0
    }
}
