//! The protocol with one of its rules taken out: what the model must notice, or it would notice nothing.

use std::borrow::Cow;

use zk_master::plan::{Chain, Step};
use zk_master::view::View;
use znode_paths::{Assignment, Instance};

use crate::Setting;
use crate::master::assignment_elsewhere;

/// A rule that is taken out.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, clap::ValueEnum)]
pub enum Mutation {
    /// A worker that cannot prove that it is registered goes on, and so does one that is frozen.
    NoDeadline,
    /// After the deadline it goes on under the same instance.
    SameInstance,
    /// What answers reads counts as proof.
    ReadsProve,
    /// A worker is judged by its registration alone.
    NoLive,
    /// A new session ends the earlier ones before it has a node below `/live`.
    LiveAfterClosing,
    /// The primary looks for the lost without a write before.
    NoSync,
    /// A worker starts what carries another instance.
    NoInstanceCheck,
    /// What a lost worker had is assigned again before it is recorded and deleted.
    CreateFirst,
    /// What a lost worker had is deleted before it is recorded.
    DeleteFirst,
    /// Of several tasks of one submit all are run.
    KeepDuplicates,
    /// A client whose answer was lost does not look whether the task is there.
    SubmitAgain,
    /// A worker does not compare the fence with `/epoch`.
    NoFence,
    /// Earlier sessions are not closed: what they own is deleted by its path.
    NoClosing,
    /// Both.
    NoFenceNoClosing,
}

impl Mutation {
    /// All of them.
    pub const ALL: [Mutation; 14] = [
        Mutation::NoDeadline,
        Mutation::SameInstance,
        Mutation::ReadsProve,
        Mutation::NoLive,
        Mutation::LiveAfterClosing,
        Mutation::NoSync,
        Mutation::NoInstanceCheck,
        Mutation::CreateFirst,
        Mutation::DeleteFirst,
        Mutation::KeepDuplicates,
        Mutation::SubmitAgain,
        Mutation::NoFence,
        Mutation::NoClosing,
        Mutation::NoFenceNoClosing,
    ];
}

impl Setting {
    pub(crate) fn closes(&self) -> bool {
        !matches!(self.mutation, Some(Mutation::NoClosing | Mutation::NoFenceNoClosing))
    }

    /// The chains of a plan, in the order in which they are carried out.
    pub(crate) fn mutated_chains(&self, mut chains: Vec<Chain>, view: &View) -> Vec<Chain> {
        for chain in &mut chains {
            match (self.mutation, chain.as_slice()) {
                (Some(Mutation::DeleteFirst), [Step::Record(..) | Step::Finish(..), Step::Unassign(..)]) => {
                    chain.swap(0, 1);
                }
                (Some(Mutation::CreateFirst), [Step::Record(name, number, _), Step::Unassign(worker, ..)]) => {
                    if let Some(assign) = assignment_elsewhere(view, worker, *name, *number) {
                        chain.insert(0, assign);
                    }
                }
                _ => {}
            }
        }
        chains
    }

    /// What a worker is made to believe when it judges an assignment.
    pub(crate) fn mutated_case<'a>(
        &self,
        assignment: &'a Assignment,
        epoch: Option<i64>,
        own: Instance,
    ) -> (Cow<'a, Assignment>, Option<i64>) {
        let mut assignment = Cow::Borrowed(assignment);
        match self.mutation {
            Some(Mutation::NoInstanceCheck) => {
                if let Some(meta) = &mut assignment.to_mut().meta {
                    meta.instance = Some(own);
                }
            }
            Some(Mutation::NoFence | Mutation::NoFenceNoClosing) => {
                let fence = assignment.meta.as_ref().map(|meta| meta.fence);
                return (assignment, fence);
            }
            _ => {}
        }
        (assignment, epoch)
    }
}
