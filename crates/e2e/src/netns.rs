//! Machines of a test's own: network namespaces, each joined by a veth pair to a bridge in one more namespace.
//!
//! Nothing of it touches the network of the machine, so that any number of test processes may do this at once.

use std::{
    ffi::OsStr,
    fs::File,
    io::{ErrorKind, Write},
    net::{Ipv4Addr, SocketAddr, TcpStream},
    ops::Index,
    os::fd::AsFd,
    process::{Command, Stdio},
    sync::atomic::{AtomicU8, Ordering},
    time::Duration,
};

use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

use crate::{janitor, wait_for};

/// Several hosts on one network. The namespaces are removed when this is dropped.
#[derive(Debug)]
pub struct Hosts {
    hosts: Vec<Host>,
    bridge: String,
}

/// One host. A clone means the same host.
#[derive(Clone, Debug)]
pub struct Host {
    /// The network namespace.
    name: String,
    address: Ipv4Addr,
    /// The namespace with the bridge.
    bridge: String,
    /// This host's end of the veth pair at the bridge.
    bridge_end: String,
}

impl Hosts {
    /// Makes `count` hosts, or says why this machine doesn't let us.
    pub fn new(count: u8) -> Result<Hosts, String> {
        if !rustix::process::geteuid().is_root() {
            return Err("network namespaces need root".to_owned());
        }
        static NETWORKS: AtomicU8 = AtomicU8::new(0);
        let network = NETWORKS.fetch_add(1, Ordering::Relaxed); // may come round: networks don't see each other
        let name = |part: &str| format!("{}-{network}-{part}", janitor::name());
        let bridge = name("bridge");
        let host = |number: u8| Host {
            name: name(&number.to_string()),
            address: Ipv4Addr::new(10, 77, network, number),
            bridge: bridge.clone(),
            bridge_end: format!("host{number}"),
        };
        let hosts = Hosts { hosts: (1..=count).map(host).collect(), bridge };
        hosts.build()?; // a half-made network is removed by the drop
        Ok(hosts)
    }

    fn build(&self) -> Result<(), String> {
        let mut namespaces = format!("netns add {}\n", self.bridge);
        for host in &self.hosts {
            namespaces += &format!("netns add {}\n", host.name);
        }
        ip(None, &namespaces)?;

        let mut bridge = "link add name bridge type bridge\nlink set bridge up\n".to_owned();
        for Host { name, bridge_end, address, .. } in &self.hosts {
            let mac = mac(*address);
            bridge += &format!("link add name {bridge_end} type veth peer name eth0 address {mac} netns {name}\n");
            bridge += &format!("link set {bridge_end} master bridge up\n");
        }
        ip(Some(&self.bridge), &bridge)?;

        for host in &self.hosts {
            let mut own = format!("addr add {}/24 dev eth0\nlink set lo up\nlink set eth0 up\n", host.address);
            // With a known address of the peer a packet into a cut link is lost; without one the sender would soon be told
            // that the host is unreachable.
            for peer in self.hosts.iter().filter(|peer| peer.name != host.name) {
                own += &format!("neigh replace {} lladdr {} nud permanent dev eth0\n", peer.address, mac(peer.address));
            }
            ip(Some(&host.name), &own)?;
        }
        for host in self.hosts.iter().skip(1) {
            self.wait_link(host);
        }
        Ok(())
    }

    /// The kernel takes links into service in the background, on a busy machine up to a second later.
    fn wait_link(&self, host: &Host) {
        let first = SocketAddr::from((self.hosts[0].address, 1));
        wait_for("the link of a host", || match host.connect(first, Duration::from_millis(100)) {
            Err(error) if error.kind() == ErrorKind::ConnectionRefused => Ok(()), // nobody listens, but that was an answer
            other => Err(format!("{other:?}")),
        });
    }

    /// All of them.
    #[must_use]
    pub fn all(&self) -> &[Host] {
        &self.hosts
    }
}

impl Index<usize> for Hosts {
    type Output = Host;

    fn index(&self, index: usize) -> &Host {
        &self.hosts[index]
    }
}

impl Drop for Hosts {
    fn drop(&mut self) {
        // One by one: those of a half-made network don't all exist.
        for name in self.hosts.iter().map(|host| &host.name).chain([&self.bridge]) {
            ip(None, &format!("netns delete {name}\n")).ok();
        }
    }
}

impl Host {
    /// Its address, which only the other hosts of its network can reach.
    #[must_use]
    pub fn address(&self) -> Ipv4Addr {
        self.address
    }

    /// A command that runs `program` in this host.
    pub fn command(&self, program: impl AsRef<OsStr>) -> Command {
        let mut command = Command::new("ip");
        command.args(["netns", "exec", &self.name]).arg(program);
        command
    }

    /// Runs `work` on a thread that is in this host: sockets made there belong to the host, wherever they are used afterwards.
    #[track_caller]
    pub fn run<T: Send>(&self, work: impl FnOnce() -> T + Send) -> T {
        let enter_and_work = || {
            let netns = File::open(format!("/run/netns/{}", self.name)).expect("the namespace of a host exists");
            move_into_link_name_space(netns.as_fd(), Some(LinkNameSpaceType::Network))
                .expect("root may enter a namespace");
            work()
        };
        std::thread::scope(|scope| match scope.spawn(enter_and_work).join() {
            Ok(done) => done,
            Err(panic) => std::panic::resume_unwind(panic),
        })
    }

    /// Connects from this host.
    pub fn connect(&self, address: SocketAddr, limit: Duration) -> std::io::Result<TcpStream> {
        self.run(|| TcpStream::connect_timeout(&address, limit))
    }

    /// Cuts the host off: packets in both directions are lost without a trace, those within the host still arrive.
    #[track_caller]
    pub fn link_down(&self) {
        self.set_link("nomaster");
    }

    /// Mends the link.
    #[track_caller]
    pub fn link_up(&self) {
        self.set_link("master bridge");
    }

    /// Cuts the way between this host and another one, and no other: packets in both directions are lost without a trace.
    #[track_caller]
    pub fn cut_from(&self, peer: &Host) {
        // Nobody has this address.
        self.set_way(peer, "02:00:00:00:00:00");
        peer.set_way(self, "02:00:00:00:00:00");
    }

    /// Mends the way to another host.
    #[track_caller]
    pub fn join_to(&self, peer: &Host) {
        self.set_way(peer, &mac(peer.address));
        peer.set_way(self, &mac(self.address));
    }

    #[track_caller]
    fn set_way(&self, peer: &Host, mac: &str) {
        let neighbour = format!("neigh replace {} lladdr {mac} nud permanent dev eth0\n", peer.address);
        if let Err(error) = ip(Some(&self.name), &neighbour) {
            panic!("cannot set the way from {} to {}: {error}", self.address, peer.address);
        }
    }

    /// Takes the other end of the cable out of the bridge or puts it in. The host can't notice, and it works at once: setting
    /// that end down and up would make the kernel take the link into service anew, in the background.
    #[track_caller]
    fn set_link(&self, state: &str) {
        if let Err(error) = ip(Some(&self.bridge), &format!("link set {} {state}\n", self.bridge_end)) {
            panic!("cannot set the link of {} to `{state}`: {error}", self.address);
        }
    }
}

/// A hardware address that is made of the host's address.
fn mac(address: Ipv4Addr) -> String {
    let [a, b, c, d] = address.octets();
    format!("02:00:{a:02x}:{b:02x}:{c:02x}:{d:02x}")
}

/// Runs lines of `ip`, in a namespace or outside, up to the first that fails.
fn ip(netns: Option<&str>, lines: &str) -> Result<(), String> {
    let mut command = Command::new("ip");
    if let Some(netns) = netns {
        command.args(["-netns", netns]);
    }
    command.args(["-batch", "-"]).stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::piped());
    let mut child = command.spawn().map_err(|error| format!("cannot run `ip` (package iproute2): {error}"))?;
    let mut stdin = child.stdin.take().expect("stdin is a pipe");
    stdin.write_all(lines.as_bytes()).ok(); // fails when `ip` gave up early: its exit status tells
    drop(stdin);
    let output = child.wait_with_output().map_err(|error| format!("cannot run `ip`: {error}"))?;
    if output.status.success() {
        return Ok(());
    }
    Err(format!("`ip` refuses: {}", String::from_utf8_lossy(&output.stderr).trim()))
}
