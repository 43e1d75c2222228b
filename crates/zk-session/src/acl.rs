//! Who may do what with the znodes that a session makes.
//!
//! The identity is named in full, never as "whoever makes it": to ZooKeeper a client certificate is an identity as well, and
//! servers could see one in everybody.

use std::fmt;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use sha1::{Digest as _, Sha1};
use zookeeper::{Acl, Permission};

use crate::Config;

/// An identity as ACLs name it: `user:` and the hash of `user:password`. It lets nobody in.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DigestId(String);

impl DigestId {
    /// Of `user:password` (`DigestAuthenticationProvider.generateDigest`).
    fn of(digest: &str) -> DigestId {
        let user = digest.split(':').next().unwrap_or_default();
        DigestId(format!("{user}:{}", BASE64.encode(Sha1::digest(digest))))
    }
}

impl std::str::FromStr for DigestId {
    type Err = NoDigestId;

    fn from_str(text: &str) -> Result<Self, NoDigestId> {
        let hash = text.split_once(':').filter(|(user, _)| !user.is_empty()).map(|(_, hash)| BASE64.decode(hash));
        let whole = hash.is_some_and(|hash| hash.is_ok_and(|hash| hash.len() == Sha1::output_size()));
        whole.then(|| DigestId(text.to_owned())).ok_or(NoDigestId)
    }
}

/// A text is not `user:` and the Base64 of a SHA-1.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("not an identity without its password, user:HASH with the HASH that ACLs show")]
pub struct NoDigestId;

/// Who else has rights in what this identity makes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Others {
    /// These may read all of it, and make znodes below these paths.
    Submitters(DigestId, &'static [&'static str]),
    /// To these all of it belongs; we may only read it.
    Daemons(DigestId),
}

/// The rights that a session gives.
pub(crate) struct Rights {
    connect: crate::ConnectString,
    own: Option<DigestId>,
    others: Option<Others>,
}

impl Rights {
    pub(crate) fn of(config: &Config) -> Rights {
        let own = config.digest.as_deref().map(DigestId::of);
        Rights { connect: config.connect.clone(), own, others: config.others.clone() }
    }

    /// In the znode at this path on the server.
    pub(crate) fn at(&self, absolute: &str) -> Vec<Acl> {
        let Some(own) = &self.own else { return Acl::open_unsafe().clone() };
        let acl = |permissions, id: &DigestId| Acl::new(permissions, "digest", &id.0);
        match &self.others {
            None => vec![acl(Permission::ALL, own)],
            Some(Others::Daemons(daemons)) => vec![acl(Permission::ALL, daemons), acl(Permission::READ, own)],
            Some(Others::Submitters(submitters, below)) => {
                let may_create = below.contains(&&*self.connect.relative(absolute));
                let granted = if may_create { Permission::READ | Permission::CREATE } else { Permission::READ };
                vec![acl(Permission::ALL, own), acl(granted, submitters)]
            }
        }
    }
}

impl fmt::Display for DigestId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Whether two ACLs say the same.
pub(crate) fn same(one: &[Acl], other: &[Acl]) -> bool {
    let sorted = |acl: &[Acl]| {
        let mut entries: Vec<String> =
            acl.iter().map(|one| format!("{} {} {}", one.scheme, one.id, one.perms)).collect();
        entries.sort_unstable();
        entries
    };
    sorted(one) == sorted(other)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_identity_is_named_as_zookeeper_names_it() {
        // java -cp ... org.apache.zookeeper.server.auth.DigestAuthenticationProvider super:secret
        assert_eq!(DigestId::of("super:secret").to_string(), SUPER);
        assert_eq!(SUPER.parse(), Ok(DigestId::of("super:secret")));
        for wrong in ["", "ann", "ann:secret", ":XfPDbLzdrLcXHmc1s1GCiDHFa1E=", "ann:c2hvcnQ="] {
            assert_eq!(wrong.parse::<DigestId>(), Err(NoDigestId), "{wrong}");
        }
    }

    const SUPER: &str = "super:lK75jTNcA+U9vtVEw5vB51mj/w4=";
}
