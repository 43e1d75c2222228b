//! A tree of its own for each test, in which the test plays all other roles by hand.

#![expect(clippy::unwrap_used, reason = "the helpers are part of the tests")]
#![allow(dead_code, reason = "each file of tests uses a part of it")]

use std::sync::Arc;
use std::time::Duration;

use e2e::daemon::Launch;
use e2e::{Daemon, Server};
use zk_session::{Config, Kind, Session};

pub(crate) const CLIENT: &str = env!("CARGO_BIN_EXE_zk-client");
pub(crate) const LIMIT: Duration = Duration::from_secs(30);

/// The instance of each worker of a test, and that of its master.
pub(crate) const W: &str = "00000000000000aa";
pub(crate) const M: &str = "00000000000000bb";

/// A tree of its own, and a session to play in it.
pub(crate) struct Tree {
    pub(crate) zk: String,
    pub(crate) session: Session,
}

impl Tree {
    /// An empty tree: no master has been there.
    pub(crate) fn empty(name: &str) -> Tree {
        Tree::at(&Server::shared().chroot(name))
    }

    /// A tree that a master has set up.
    pub(crate) fn new(name: &str) -> Tree {
        let tree = Tree::empty(name);
        tree.set_up();
        tree
    }

    pub(crate) fn at(zk: &str) -> Tree {
        let config = Config::new(zk.parse().unwrap(), Duration::from_secs(10));
        let session = Session::open(&config, 1, &(Arc::new(|_| ()) as _)).unwrap();
        session.ensure("/").unwrap();
        Tree { zk: zk.to_owned(), session }
    }

    pub(crate) fn set_up(&self) {
        for parent in ["/workers", "/tasks", "/assign"] {
            self.session.ensure(parent).unwrap();
        }
    }

    /// A tree with a master, as far as its nodes show: nobody acts. The fence is 50.
    pub(crate) fn reign(name: &str) -> Tree {
        let tree = Tree::new(name);
        tree.ephemeral("/master", "m1:2223");
        tree.live(M, "master");
        tree.create("/epoch", "50");
        tree
    }

    /// A daemon's node below `/live`.
    #[track_caller]
    pub(crate) fn live(&self, instance: &str, role: &str) {
        self.session.ensure("/live").unwrap();
        self.ephemeral(&format!("/live/{instance}-1"), format!("x:1\n{{\"zk\":1,\"role\":\"{role}\"}}"));
    }

    /// A daemon's registration and desk: one slot and a label.
    #[track_caller]
    pub(crate) fn worker(&self, name: &str) {
        let meta = format!("{{\"zk\":1,\"instance\":\"{W}\",\"slots\":1,\"labels\":{{\"disk\":\"ssd\"}}}}");
        self.ephemeral(&format!("/workers/{name}"), format!("{name}:2224\n{meta}"));
        self.session.ensure(&format!("/assign/{name}")).unwrap();
    }

    #[track_caller]
    pub(crate) fn ephemeral(&self, path: &str, data: impl AsRef<[u8]>) {
        self.session.create(path, data.as_ref(), Kind::Ephemeral).unwrap();
    }

    #[track_caller]
    pub(crate) fn create(&self, path: &str, data: impl AsRef<[u8]>) -> String {
        self.session.create(path, data.as_ref(), Kind::Persistent).unwrap()
    }

    /// A task, and its name.
    #[track_caller]
    pub(crate) fn task(&self, data: impl AsRef<[u8]>) -> String {
        let path = self.session.create("/tasks/task-", data.as_ref(), Kind::Sequential).unwrap();
        path.strip_prefix("/tasks/").unwrap().to_owned()
    }

    #[track_caller]
    pub(crate) fn finish(&self, task: &str, status: impl AsRef<[u8]>) {
        self.create(&format!("/tasks/{task}/status"), status);
    }

    #[track_caller]
    pub(crate) fn data(&self, path: &str) -> Vec<u8> {
        self.session.read(path, false).unwrap().unwrap().0
    }

    pub(crate) fn tasks(&self) -> Vec<String> {
        let mut tasks = self.session.children("/tasks", false).unwrap().unwrap_or_default();
        tasks.sort();
        tasks
    }

    pub(crate) fn client(&self, args: &[&str]) -> Launch {
        Daemon::program(CLIENT).env("ZK_CONNECT", &self.zk).args(args)
    }

    /// Runs it to its end: exit code, stdout, stderr.
    #[track_caller]
    pub(crate) fn run(&self, args: &[&str]) -> (i32, String, String) {
        ended(&self.client(args).start())
    }

    /// Its stdout; it exits with this code and says nothing.
    #[track_caller]
    pub(crate) fn prints(&self, args: &[&str], code: i32) -> String {
        let (exited, stdout, stderr) = self.run(args);
        assert_eq!((exited, stderr.as_str()), (code, ""), "{args:?}: {stdout}");
        stdout
    }
}

#[track_caller]
pub(crate) fn ended(client: &Daemon) -> (i32, String, String) {
    let status = client.wait_exit(LIMIT);
    (status.code().expect("it is not killed"), client.stdout(), client.stderr())
}
