//! Private ZooKeeper servers.

use std::{
    fmt::Write as _,
    fs::{self, File},
    io::{self, Read, Write},
    net::{IpAddr, Ipv4Addr, Shutdown, SocketAddr, TcpStream},
    path::PathBuf,
    process::Stdio,
    sync::{
        OnceLock,
        atomic::{AtomicU32, Ordering},
    },
    time::Duration,
};

use rustix::process::Signal;
use tempfile::TempDir;
use zk_session::{Config, Tls};

use crate::{
    Host, Issued, Port, Txn, janitor,
    joined::Part,
    process::{self, Process},
    tree, txnlog, wait, wait_for, wait_within,
};

/// Debian's packages `zookeeper` and `libslf4j-java`. The manifest of `zookeeper.jar` names what it needs itself, but not what
/// Netty needs, on which a port with TLS stands; slf4j-simple sends the log to stderr without any configuration.
const CLASS_PATH: &str = "/usr/share/java/zookeeper.jar:/usr/share/java/slf4j-simple.jar:/usr/share/java/netty-codec.jar:\
    /usr/share/java/netty-resolver.jar:/usr/share/java/netty-transport-native-unix-common.jar";

/// Starting fast counts more than running fast.
const JAVA_OPTIONS: [&str; 11] = [
    "-Xmx256m",
    "-XX:+UseSerialGC",
    "-XX:TieredStopAtLevel=1",
    "-XX:-UsePerfData", // no files below /tmp/hsperfdata_root
    "-Xshare:auto",
    "-Djava.net.preferIPv4Stack=true",
    "-Dorg.slf4j.simpleLogger.showDateTime=true",
    "-Dorg.slf4j.simpleLogger.dateTimeFormat=HH:mm:ss.SSS",
    "-Dzookeeper.preAllocSize=1024", // KB: what every reader of the log has to skip at its end
    // An ensemble notices a dead peer and elects again within a second, also after a long partition.
    "-Dzookeeper.cnxTimeout=1000",
    "-Dzookeeper.fastleader.maxNotificationInterval=1000",
];

/// How long a four-letter word may take: a frozen server never answers.
const FOUR_LETTER_LIMIT: Duration = Duration::from_secs(1);

/// How long a server may take to start: a second of processor time, for which it may have to wait where many start at once.
const START_LIMIT: Duration = Duration::from_secs(120);

/// What may differ from one server to another.
#[derive(Clone, Debug)]
pub struct Setup {
    /// `tickTime`: session timeouts from twice this to 60 s are granted.
    pub tick: Duration,
    /// Whether each transaction goes to the disk before it is acknowledged. Tests want speed, and no test cuts the power.
    pub force_sync: bool,
    /// Further lines of `zoo.cfg`.
    pub lines: Vec<String>,
    /// A port that speaks TLS, beside the other one.
    pub secure: Option<Secure>,
}

/// What a port that speaks TLS shows and asks for.
#[derive(Clone, Debug)]
pub struct Secure {
    /// The server's own certificate.
    pub own: Issued,
    /// The authority of the clients' certificates.
    pub authority: PathBuf,
    /// `ssl.clientAuth`: `need`, `want` or `none`.
    pub client_auth: &'static str,
}

impl Secure {
    /// The lines of `zoo.cfg`.
    fn lines(&self, address: SocketAddr) -> [String; 7] {
        [
            "serverCnxnFactory=org.apache.zookeeper.server.NettyServerCnxnFactory".to_owned(),
            format!("secureClientPort={}", address.port()),
            format!("secureClientPortAddress={}", address.ip()),
            format!("ssl.keyStore.location={}", self.own.both.display()),
            format!("ssl.trustStore.location={}", self.authority.display()),
            format!("ssl.clientAuth={}", self.client_auth),
            "ssl.enabledProtocols=TLSv1.2,TLSv1.3".to_owned(),
        ]
    }
}

impl Default for Setup {
    fn default() -> Setup {
        Setup { tick: Duration::from_millis(200), force_sync: false, lines: Vec::new(), secure: None }
    }
}

/// One ZooKeeper server. Dropping it kills it and removes its data.
pub struct Server {
    process: Process,
    force_sync: bool,
    address: SocketAddr,
    secure: Option<SocketAddr>,
    host: Option<Host>,
    dir: TempDir,
    /// Ports on the loopback address, for as long as the server may be started again on them.
    _ports: Vec<Port>,
}

impl Server {
    /// Starts a server of its own, and returns when it serves (in about a second).
    #[must_use]
    #[track_caller]
    pub fn start() -> Server {
        Server::start_with(&Setup::default(), None)
    }

    /// Starts a server in a host, on port 2181.
    #[must_use]
    #[track_caller]
    pub fn start_in(host: &Host) -> Server {
        Server::start_with(&Setup::default(), Some(host))
    }

    /// Starts a server with a setup of its own.
    #[must_use]
    #[track_caller]
    pub fn start_with(setup: &Setup, host: Option<&Host>) -> Server {
        let mut ports = Vec::new();
        let address = address(host, 2181, &mut ports);
        let (mut setup, mut secure) = (setup.clone(), None);
        if let Some(security) = &setup.secure {
            let port = self::address(host, 2281, &mut ports);
            setup.lines.extend(security.lines(port));
            secure = Some(port);
        }
        let mut server = Server::launch(&setup, host, address, None, ports);
        server.secure = secure;
        server.wait_ready();
        if let Some(secure) = &setup.secure {
            server.wait_secure(secure);
        }
        server
    }

    /// The one server that the tests of a process share: for tests that don't stop it, each in a [`chroot`](Server::chroot) of
    /// its own.
    #[must_use]
    #[track_caller]
    pub fn shared() -> &'static Server {
        static SHARED: OnceLock<Server> = OnceLock::new();
        SHARED.get_or_init(Server::start)
    }

    /// Writes the configuration and starts the process.
    #[track_caller]
    fn launch(setup: &Setup, host: Option<&Host>, address: SocketAddr, id: Option<u8>, ports: Vec<Port>) -> Server {
        let dir = TempDir::new_in(janitor::workshop()).expect("a temporary directory can be made");
        let data_dir = dir.path().join("data");
        fs::create_dir(&data_dir).expect("a directory can be made");
        if let Some(id) = id {
            fs::write(data_dir.join("myid"), id.to_string()).expect("a file can be written");
        }
        let tick = setup.tick.as_millis();
        let mut config = format!(
            "tickTime={tick}\nminSessionTimeout={}\nmaxSessionTimeout=60000\ndataDir={}\nclientPort={}\nclientPortAddress={}\n\
             maxClientCnxns=0\nadmin.enableServer=false\n4lw.commands.whitelist=*\n",
            2 * tick,
            data_dir.display(),
            address.port(),
            address.ip(),
        );
        for line in &setup.lines {
            writeln!(config, "{line}").expect("a String takes everything");
        }
        fs::write(dir.path().join("zoo.cfg"), config).expect("a file can be written");
        let process = start_java(&dir, setup.force_sync, host, address);
        Server { process, force_sync: setup.force_sync, address, secure: None, host: host.cloned(), dir, _ports: ports }
    }

    /// Waits until it serves: alone, or as a member of a quorum.
    #[track_caller]
    pub fn wait_ready(&self) {
        wait_within(START_LIMIT, &format!("ZooKeeper on {} to serve", self.address), || {
            if let Some(status) = self.process.exited() {
                panic!("ZooKeeper on {} ended ({status}):\n{}", self.address, self.log());
            }
            self.mode().map(|_| ())
        });
    }

    /// Waits until its port with TLS answers a handshake, with whatever: the first one takes Java seconds on a busy machine.
    #[track_caller]
    fn wait_secure(&self, secure: &Secure) {
        let authority = fs::read(&secure.authority).expect("the authority was written");
        let tls = Tls::new(&authority, None, None).expect("it is an authority");
        let connect = self.secure_connect_string().parse().expect("the harness makes good connect strings");
        let config = Config { tls: Some(tls), ..Config::new(connect, Duration::from_secs(10)) };
        wait_within(START_LIMIT, &format!("TLS of {}", config.connect), || match tree::open(&config, self.host()) {
            Err(error) if ["answer", "refused"].iter().any(|lack| error.to_string().contains(lack)) => {
                Err(error.to_string())
            }
            _ => Ok(()),
        });
    }

    fn mode(&self) -> Result<String, String> {
        mode(self.address, self.host.as_ref())
    }

    /// `address:port`, as for `--zk`.
    #[must_use]
    pub fn connect_string(&self) -> String {
        self.address.to_string()
    }

    /// `address:port` of the port that speaks TLS.
    #[must_use]
    #[track_caller]
    pub fn secure_connect_string(&self) -> String {
        self.secure.expect("it was set up with one").to_string()
    }

    /// A connect string with a chroot that no other call gives. The chroot znode is not made.
    #[must_use]
    pub fn chroot(&self, name: &str) -> String {
        chroot(&self.connect_string(), name)
    }

    /// The client port.
    #[must_use]
    pub fn port(&self) -> u16 {
        self.address.port()
    }

    /// The process id of the Java process.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.process.pid()
    }

    /// Its host, where it has one.
    #[must_use]
    pub fn host(&self) -> Option<&Host> {
        self.host.as_ref()
    }

    /// The data directory, for [`txnlog::read`].
    #[must_use]
    pub fn data_dir(&self) -> PathBuf {
        self.dir.path().join("data")
    }

    /// All that it committed, oldest first.
    #[must_use]
    #[track_caller]
    pub fn transactions(&self) -> Vec<Txn> {
        txnlog::spread(self.logged())
    }

    #[track_caller]
    fn logged(&self) -> Vec<Txn> {
        txnlog::read(&self.data_dir()).expect("the transaction log is readable")
    }

    /// What it knows of what the ensemble committed.
    #[must_use]
    #[track_caller]
    pub fn part(&self) -> Part {
        Part { txns: self.logged(), ..Part::default() }.with_log(&self.log())
    }

    /// The server's own log.
    #[must_use]
    pub fn log(&self) -> String {
        fs::read_to_string(self.dir.path().join("zookeeper.log")).unwrap_or_default()
    }

    /// Asks a four-letter word, such as `mntr`. An error after a second if nothing comes back.
    pub fn four_letter(&self, word: &str) -> io::Result<String> {
        four_letter(self.address, self.host.as_ref(), word)
    }

    /// SIGKILL; returns when it is gone. Also ends a paused server.
    pub fn kill(&mut self) {
        self.process.kill();
    }

    /// SIGTERM; returns when it is gone.
    #[track_caller]
    pub fn terminate(&mut self) {
        self.process.signal(Signal::TERM);
        self.process.wait_exit(wait::LIMIT);
    }

    /// Freezes it; returns when all its threads stand still.
    #[track_caller]
    pub fn pause(&mut self) {
        self.process.pause();
    }

    /// Lets a frozen server go on.
    #[track_caller]
    pub fn resume(&mut self) {
        self.process.resume();
    }

    /// Starts it again on the same port with the same data, after a SIGKILL if it still runs; returns when it serves.
    #[track_caller]
    pub fn restart(&mut self) {
        self.relaunch();
        self.wait_ready();
    }

    /// [`restart`](Server::restart) without waiting: for members of an ensemble that has no quorum yet.
    #[track_caller]
    pub fn relaunch(&mut self) {
        self.process.kill();
        self.process = start_java(&self.dir, self.force_sync, self.host.as_ref(), self.address);
    }
}

fn four_letter(server: SocketAddr, host: Option<&Host>, word: &str) -> io::Result<String> {
    let mut stream = match host {
        Some(host) => host.connect(server, FOUR_LETTER_LIMIT)?,
        None => TcpStream::connect_timeout(&server, FOUR_LETTER_LIMIT)?,
    };
    stream.set_read_timeout(Some(FOUR_LETTER_LIMIT))?;
    stream.write_all(word.as_bytes())?;
    stream.shutdown(Shutdown::Write)?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    Ok(answer)
}

/// `standalone`, `leader` or `follower`, if it serves.
pub(crate) fn mode(server: SocketAddr, host: Option<&Host>) -> Result<String, String> {
    let answer = four_letter(server, host, "srvr").map_err(|error| error.to_string())?;
    let mode = answer.lines().find_map(|line| line.strip_prefix("Mode: "));
    mode.map(str::to_owned).ok_or(answer)
}

#[track_caller]
fn start_java(dir: &TempDir, force_sync: bool, host: Option<&Host>, address: SocketAddr) -> Process {
    for jar in CLASS_PATH.split(':') {
        assert!(
            fs::exists(jar).is_ok_and(|exists| exists),
            "{jar} is missing: apt-get install zookeeper libslf4j-java"
        );
    }
    let log = File::options().create(true).append(true).open(dir.path().join("zookeeper.log"));
    let log = log.expect("a log file can be opened");
    let mut command = process::command("java", host);
    command
        .args(JAVA_OPTIONS)
        .arg(format!("-Dzookeeper.forceSync={}", if force_sync { "yes" } else { "no" }))
        .args(["-cp", CLASS_PATH, "org.apache.zookeeper.server.quorum.QuorumPeerMain", "zoo.cfg"])
        .current_dir(dir.path())
        .stdin(Stdio::null())
        .stdout(log.try_clone().expect("a file can be opened twice"))
        .stderr(log);
    Process::start(&format!("ZooKeeper on {address}"), command, |_| ()).0
}

/// A host has its well-known ports for itself, on the loopback address they must be claimed.
fn address(host: Option<&Host>, well_known: u16, ports: &mut Vec<Port>) -> SocketAddr {
    match host {
        Some(host) => (IpAddr::V4(host.address()), well_known).into(),
        None => {
            let port = Port::claim();
            let address = (IpAddr::V4(Ipv4Addr::LOCALHOST), port.number()).into();
            ports.push(port);
            address
        }
    }
}

fn chroot(connect_string: &str, name: &str) -> String {
    static CALLS: AtomicU32 = AtomicU32::new(0);
    format!("{connect_string}/{name}-{}", CALLS.fetch_add(1, Ordering::Relaxed))
}

/// Three servers that replicate, tick 500 ms. A member is reached as `ensemble.servers[0]`.
pub struct Ensemble {
    /// The members.
    pub servers: Vec<Server>,
}

impl Ensemble {
    /// Starts an ensemble on loopback ports, and returns when all three serve.
    #[must_use]
    #[track_caller]
    pub fn start() -> Ensemble {
        Ensemble::start_on(&[None, None, None], false)
    }

    /// [`start`](Ensemble::start) with servers that force each transaction to the disk before they acknowledge it.
    #[must_use]
    #[track_caller]
    pub fn start_durable() -> Ensemble {
        Ensemble::start_on(&[None, None, None], true)
    }

    /// Starts one member in each of the first three hosts.
    #[must_use]
    #[track_caller]
    pub fn start_in(hosts: &[Host]) -> Ensemble {
        Ensemble::start_on(&[Some(&hosts[0]), Some(&hosts[1]), Some(&hosts[2])], false)
    }

    #[track_caller]
    fn start_on(hosts: &[Option<&Host>; 3], force_sync: bool) -> Ensemble {
        // Five seconds to join, two until a silent peer counts as gone.
        let mut setup = Setup {
            tick: Duration::from_millis(500),
            lines: vec!["initLimit=10".to_owned(), "syncLimit=4".to_owned()],
            force_sync,
            secure: None,
        };
        let mut members = Vec::new();
        for (id, host) in (1..).zip(hosts) {
            let mut ports = Vec::new();
            let [client, quorum, election] = [2181, 2888, 3888].map(|port| address(*host, port, &mut ports));
            setup.lines.push(format!("server.{id}={quorum}:{}", election.port()));
            members.push((id, *host, client, ports));
        }
        let launch = |(id, host, client, ports)| Server::launch(&setup, host, client, Some(id), ports);
        let ensemble = Ensemble { servers: members.into_iter().map(launch).collect() };
        for server in &ensemble.servers {
            server.wait_ready();
        }
        ensemble
    }

    /// All three addresses, as for `--zk`.
    #[must_use]
    pub fn connect_string(&self) -> String {
        let addresses: Vec<String> = self.servers.iter().map(Server::connect_string).collect();
        addresses.join(",")
    }

    /// A connect string with a chroot that no other call gives. The chroot znode is not made.
    #[must_use]
    pub fn chroot(&self, name: &str) -> String {
        chroot(&self.connect_string(), name)
    }

    /// The index of the leader, once there is one. A leader that was cut off or frozen calls itself so for a while longer.
    #[must_use]
    #[track_caller]
    pub fn leader(&self) -> usize {
        self.find("leader")
    }

    /// The index of a follower, once there is one.
    #[must_use]
    #[track_caller]
    pub fn follower(&self) -> usize {
        self.find("follower")
    }

    #[track_caller]
    fn find(&self, mode: &str) -> usize {
        wait_for(&format!("a {mode}"), || {
            let modes: Vec<_> = self.servers.iter().map(Server::mode).collect();
            let found = modes.iter().position(|found| found.as_deref() == Ok(mode));
            found.ok_or_else(|| format!("{modes:?}"))
        })
    }
}
