//! A client: `zk-client`'s submit around its real decision after a lost answer.

use zk_client::submit::{Next, next};
use znode_paths::{TaskName, paths};

use crate::mutation::Mutation;
use crate::process::{Ask, Io, Request};
use crate::tree::{Data, Node, Parent, Path};

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) struct Client {
    pub(crate) submit: u8,
    /// A request that creates the task was sent.
    pub(crate) sent: bool,
    /// What it has told its user.
    pub(crate) reported: Option<TaskName>,
}

impl Client {
    pub(crate) fn new(submit: u8) -> Self {
        Client { submit, sent: false, reported: None }
    }

    pub(crate) fn unit(&mut self, io: &mut Io<'_>) -> Result<(), Ask> {
        if self.reported.is_some() {
            return Err(Ask(Request::Look));
        }
        if !self.sent || io.setting.mutation == Some(Mutation::SubmitAgain) {
            self.reported = Some(io.submit(self.submit)?);
            return Ok(());
        }
        io.write(|| Request::Sync)?.ok();
        let mut created = None;
        loop {
            let (tasks, _) = io.list(Parent::Tasks)?;
            let ours = |(path, node): &(Path, Node)| match (path, &node.data) {
                (Path::Task(name), Data::Task(submit) | Data::Removed(submit)) => {
                    (*submit == self.submit).then_some(*name)
                }
                _ => None,
            };
            let lowest = tasks.into_iter().flatten().filter_map(ours).min();
            match next(lowest, created.map(|name| paths::task(&name))) {
                Next::Report(path) => {
                    self.reported = match paths::Place::of(&path) {
                        Some(paths::Place::Task(name)) => Some(name),
                        _ => None,
                    };
                    return Ok(());
                }
                Next::Create => created = Some(io.submit(self.submit)?),
            }
        }
    }
}
