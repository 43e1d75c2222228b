//! A wire between programs and a server, which a test can hold at a very request: the moment between two writes of a daemon,
//! which no kill by the clock ever hits. For there to be such moments, it refuses requests for several things at once: then they are
//! done one by one. Or it refuses what servers before 3.6 do not know, as these do (seen with 3.4.6).

use std::{
    io::{self, Read, Write},
    net::{Shutdown, TcpListener, TcpStream},
    sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError},
    thread,
};

use crate::{
    Port,
    jute::{Input, Output},
    process::lock,
    wait,
};

/// What a client asks for, as far as it is about a znode.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Request {
    /// Makes one, as of this path.
    Create(String),
    /// Deletes one.
    Delete(String),
    /// Writes one.
    SetData(String),
    /// Anything else.
    Other,
}

impl Request {
    /// Reads a frame without its length.
    fn of(frame: &[u8]) -> Request {
        let mut input = Input(frame);
        let _xid = input.int();
        let make = match input.int() {
            Some(1) => Request::Create,
            Some(2) => Request::Delete,
            Some(5) => Request::SetData,
            _ => return Request::Other,
        };
        input.string().map_or(Request::Other, make)
    }
}

const MULTI: i32 = 14;
const MULTI_READ: i32 = 22;
const ADD_WATCH: i32 = 106;

/// What becomes of a connection on which something was refused.
#[derive(Clone, Copy)]
enum Then {
    GoOn,
    End,
}

/// What becomes of a request, and of all that follows it on its connection.
#[derive(Clone, Copy, Default, PartialEq, Eq)]
enum Fate {
    #[default]
    Passed,
    Lost,
    /// The connection ends.
    Cut,
}

/// The wire. Any number of programs may use it; it lies until the end of the test process.
pub struct Wire {
    port: Port,
    shared: Arc<Shared>,
}

#[derive(Default)]
struct Shared {
    state: Mutex<State>,
    changed: Condvar,
}

type Rule = Box<dyn FnMut(&Request) -> bool + Send>;

#[derive(Default)]
struct State {
    rule: Option<Rule>,
    /// The connection that is held, by number, and at which request.
    held: Option<(u64, Request)>,
    /// What becomes of what was held last.
    fate: Fate,
    connections: u64,
}

impl Wire {
    /// A wire to a server, `address:port`, on a port of its own.
    #[must_use]
    pub fn to(server: &str) -> Wire {
        Wire::refusing(server, &[(MULTI, Then::GoOn), (MULTI_READ, Then::End)])
    }

    /// A wire that makes a server one from before 3.6.
    #[must_use]
    pub fn as_before_3_6(server: &str) -> Wire {
        Wire::refusing(server, &[(ADD_WATCH, Then::End), (MULTI_READ, Then::End)])
    }

    fn refusing(server: &str, refused: &'static [(i32, Then)]) -> Wire {
        let port = Port::claim();
        let listener = TcpListener::bind(port.address()).expect("a claimed port is free");
        let shared = Arc::<Shared>::default();
        let (server, sharing) = (server.to_owned(), Arc::clone(&shared));
        thread::spawn(move || {
            for client in listener.incoming().flatten() {
                let (server, shared) = (server.clone(), Arc::clone(&sharing));
                thread::spawn(move || pass_on(&client, &server, &shared, refused).ok()); // a connection that ends is nothing to tell
            }
        });
        Wire { port, shared }
    }

    /// `127.0.0.1:port`, as for `--zk`.
    #[must_use]
    pub fn connect_string(&self) -> String {
        self.port.address()
    }

    /// Holds the first request of which `rule` is true, and all that follow it on its connection. Other connections are not
    /// touched. Replaces an earlier rule.
    pub fn hold_at(&self, rule: impl FnMut(&Request) -> bool + Send + 'static) {
        lock(&self.shared.state).rule = Some(Box::new(rule));
    }

    /// Waits until a connection is held, and returns at which request.
    #[track_caller]
    pub fn wait_held(&self) -> Request {
        wait::wait_for("a request to be held", || {
            let held = lock(&self.shared.state).held.clone();
            held.map(|(_, request)| request).ok_or_else(|| "all pass".to_owned())
        })
    }

    /// Lets pass what is held, in its order.
    pub fn release(&self) {
        self.end_hold(Fate::Passed);
    }

    /// What is held, and all that follows it on its connection, never arrives.
    pub fn lose(&self) {
        self.end_hold(Fate::Lost);
    }

    /// What is held never arrives, and its connection ends.
    pub fn cut(&self) {
        self.end_hold(Fate::Cut);
    }

    fn end_hold(&self, fate: Fate) {
        let mut state = lock(&self.shared.state);
        (state.held, state.fate) = (None, fate);
        self.shared.changed.notify_all();
    }
}

impl Shared {
    /// Holds the connection at this request if it is to be held; returns what is to become of the request then.
    fn pass(&self, connection: u64, request: Request) -> Fate {
        let mut state = lock(&self.state);
        if !state.rule.as_mut().is_some_and(|rule| rule(&request)) {
            return Fate::Passed;
        }
        (state.rule, state.held) = (None, Some((connection, request)));
        let is_held = |state: &mut State| state.held.as_ref().is_some_and(|(held, _)| *held == connection);
        let state: MutexGuard<'_, State> =
            self.changed.wait_while(state, is_held).unwrap_or_else(PoisonError::into_inner);
        state.fate
    }
}

/// One connection.
fn pass_on(mut client: &TcpStream, server: &str, shared: &Shared, refused: &[(i32, Then)]) -> io::Result<()> {
    let connection = {
        let mut state = lock(&shared.state);
        state.connections += 1;
        state.connections
    };
    let mut server = TcpStream::connect(server)?;
    let (mut answers, mut back) = (server.try_clone()?, client.try_clone()?);
    thread::spawn(move || {
        io::copy(&mut answers, &mut back).ok();
        back.shutdown(Shutdown::Both)
    });
    let (mut greeted, mut fate) = (false, Fate::Passed);
    while let Ok(frame) = frame(&mut client) {
        // What a client says first is no request.
        if greeted && fate == Fate::Passed {
            fate = shared.pass(connection, Request::of(&frame[4..]));
        }
        if fate == Fate::Cut {
            break;
        }
        if greeted && let Some((refusal, then)) = refusal(&frame[4..], refused) {
            client.write_all(&refusal)?;
            match then {
                Then::GoOn => continue,
                Then::End => break,
            }
        }
        greeted = true;
        if fate == Fate::Passed {
            server.write_all(&frame)?;
        }
    }
    server.shutdown(Shutdown::Both)
}

/// The answer to a request that is refused, with its length, and what becomes of the connection. No other answer is on its way there:
/// whoever asks that waits for it.
fn refusal(request: &[u8], refused: &[(i32, Then)]) -> Option<(Vec<u8>, Then)> {
    const UNIMPLEMENTED: i32 = -6;
    let mut input = Input(request);
    let (xid, opcode) = (input.int()?, input.int()?);
    let (_, then) = *refused.iter().find(|(refused, _)| *refused == opcode)?;
    Some((Output::default().int(16).int(xid).long(0).int(UNIMPLEMENTED).0, then))
}

/// The next frame, with its length.
fn frame(stream: &mut impl Read) -> io::Result<Vec<u8>> {
    let mut length = [0; 4];
    stream.read_exact(&mut length)?;
    let mut frame = length.to_vec();
    let size = usize::try_from(u32::from_be_bytes(length)).unwrap_or(usize::MAX);
    frame.resize(size.saturating_add(4), 0);
    stream.read_exact(&mut frame[4..])?;
    Ok(frame)
}
