//! The user that tasks run as (`--run-as`).

use std::ffi::CString;
use std::io;
use std::path::PathBuf;
use std::process::Command;

use nix::unistd::{User, getgrouplist};
use rustix::fs::{Access, access};
use rustix::process::{Gid, Uid, geteuid};
use rustix::thread::{set_thread_groups, set_thread_res_gid, set_thread_res_uid};

/// A user of this host, as it was known when the worker started.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Identity {
    name: String,
    uid: Uid,
    gid: Gid,
    groups: Vec<Gid>,
    home: PathBuf,
    shell: PathBuf,
}

/// Why tasks cannot run as a user.
#[derive(Debug, thiserror::Error)]
pub enum IdentityError {
    /// Nobody else can become somebody.
    #[error("only root can run tasks as another user")]
    NotRoot,
    /// The host does not know it.
    #[error("there is no such user")]
    Unknown,
    /// The host does not say.
    #[error("cannot look it up: {0}")]
    LookUp(io::Error),
}

impl Identity {
    /// Looks up a user by its name or its number.
    ///
    /// # Errors
    /// It cannot be used.
    pub fn of(user: &str) -> Result<Self, IdentityError> {
        let failed = |error: nix::Error| IdentityError::LookUp(error.into());
        let found = match (User::from_name(user).map_err(failed)?, user.parse()) {
            (None, Ok(number)) => User::from_uid(nix::unistd::Uid::from_raw(number)).map_err(failed)?,
            (found, _) => found,
        };
        let found = found.ok_or(IdentityError::Unknown)?;
        if !geteuid().is_root() {
            return Err(IdentityError::NotRoot);
        }
        let name = CString::new(found.name.as_str()).map_err(|_| IdentityError::Unknown)?;
        let groups = getgrouplist(&name, found.gid).map_err(failed)?;
        Ok(Identity {
            uid: Uid::from_raw(found.uid.as_raw()),
            gid: Gid::from_raw(found.gid.as_raw()),
            groups: groups.into_iter().map(|group| Gid::from_raw(group.as_raw())).collect(),
            name: found.name,
            home: found.dir,
            shell: found.shell,
        })
    }

    pub(crate) fn uid(&self) -> u32 {
        self.uid.as_raw()
    }

    pub(crate) fn gid(&self) -> u32 {
        self.gid.as_raw()
    }

    /// Tells a command who it is, as login(1) does.
    pub(crate) fn introduce(&self, command: &mut Command) {
        command.env("HOME", &self.home).env("SHELL", &self.shell).env("USER", &self.name).env("LOGNAME", &self.name);
    }

    /// What a process does to give up what it is for this user, for good. The kernel forgets then whom it was to die with
    /// (`PR_SET_PDEATHSIG`): that comes after this.
    pub(crate) fn assume(&self) -> impl Fn() -> io::Result<()> + Send + Sync + 'static {
        let Identity { uid, gid, groups, .. } = self.clone();
        move || {
            // The child has one thread.
            set_thread_groups(&groups)?;
            set_thread_res_gid(gid, gid, gid)?;
            set_thread_res_uid(uid, uid, uid)?;
            // Its directory was entered by root.
            Ok(access(".", Access::EXEC_OK)?)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_user_is_known_by_its_name_and_its_number() {
        assert!(matches!(Identity::of("no-such-user"), Err(IdentityError::Unknown)));
        assert!(matches!(Identity::of("4294967294"), Err(IdentityError::Unknown)));
        assert!(matches!(Identity::of(""), Err(IdentityError::Unknown)));
        let (name, number) = (Identity::of("nobody"), Identity::of("65534"));
        if geteuid().is_root() {
            let nobody = name.unwrap();
            assert_eq!((nobody.uid(), nobody.gid(), nobody.groups.len()), (65534, 65534, 1));
            assert_eq!(number.unwrap(), nobody);
        } else {
            assert!(matches!((name, number), (Err(IdentityError::NotRoot), Err(IdentityError::NotRoot))));
        }
    }
}
