//! Where the ensemble is: `host:port[,host:port...][/chroot]`.

use std::fmt;
use std::str::FromStr;

/// The servers of an ensemble and the folder of its tree that is ours.
///
/// ```
/// use zk_session::ConnectString;
/// let connect: ConnectString = "zk1:2181,zk2:2181/jobs".parse().unwrap();
/// assert_eq!(connect.hosts(), ["zk1:2181", "zk2:2181"]);
/// assert_eq!(connect.chroot(), "/jobs");
/// assert!("zk1:2181/jobs/".parse::<ConnectString>().is_err());
/// ```
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ConnectString {
    hosts: Vec<String>,
    chroot: String,
}

/// Why a text is no connect string.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{text:?} is not host:port[,host:port...][/chroot]: {why}")]
pub struct ConnectStringError {
    text: String,
    why: &'static str,
}

/// ZooKeeper's own default, used where a host is named without a port.
const DEFAULT_PORT: u16 = 2181;

impl FromStr for ConnectString {
    type Err = ConnectStringError;

    fn from_str(text: &str) -> Result<Self, ConnectStringError> {
        let wrong = |why| ConnectStringError { text: text.to_owned(), why };
        let (hosts, chroot) = text.split_at(text.find('/').unwrap_or(text.len()));
        let chroot = if chroot == "/" { "" } else { chroot };
        if let Some(names) = chroot.strip_prefix('/') {
            for name in names.split('/') {
                if matches!(name, "" | "." | "..") {
                    return Err(wrong("the chroot has an empty, '.' or '..' component"));
                }
                if !name.bytes().all(|byte| byte.is_ascii_graphic()) {
                    return Err(wrong("the chroot has a character that is not printable ASCII"));
                }
            }
            if names == "zookeeper" || names.starts_with("zookeeper/") {
                return Err(wrong("/zookeeper is ZooKeeper's own"));
            }
        }
        let hosts: Result<Vec<String>, _> =
            hosts.split(',').map(|host| with_port(host.trim()).map_err(wrong)).collect();
        Ok(ConnectString { hosts: hosts?, chroot: chroot.to_owned() })
    }
}

fn with_port(host: &str) -> Result<String, &'static str> {
    if host.is_empty() {
        return Err("a host is missing");
    }
    if !host.bytes().all(|byte| byte.is_ascii_graphic()) {
        return Err("a host has a character that is not printable ASCII");
    }
    let bracketed = host.starts_with('[');
    let (name, port) = match host.rsplit_once(':') {
        Some((name, port)) if !bracketed || name.ends_with(']') => (name, Some(port)),
        _ => (host, None),
    };
    let closed = bracketed && name.ends_with(']');
    if name.is_empty() || ((bracketed || name.contains(':')) && !closed) {
        return Err("an IPv6 address stands in brackets: [::1]:2181");
    }
    match port {
        None => Ok(format!("{name}:{DEFAULT_PORT}")),
        Some(port) if port.parse::<u16>().is_ok_and(|port| port != 0) => Ok(host.to_owned()),
        Some(_) => Err("a port is not a number from 1 to 65535"),
    }
}

impl ConnectString {
    /// `host:port`, each.
    pub fn hosts(&self) -> &[String] {
        &self.hosts
    }

    /// Empty, or a path that starts with `/` and does not end with it.
    pub fn chroot(&self) -> &str {
        &self.chroot
    }

    /// The path on the server of a path of ours.
    pub(crate) fn absolute(&self, path: &str) -> String {
        match (self.chroot.as_str(), path) {
            ("", path) => path.to_owned(),
            (chroot, "/") => chroot.to_owned(),
            (chroot, path) => format!("{chroot}{path}"),
        }
    }

    /// The path of ours of a path on the server.
    pub(crate) fn relative(&self, path: &str) -> String {
        match path.strip_prefix(&self.chroot) {
            Some("") => "/".to_owned(),
            Some(path) => path.to_owned(),
            None => path.to_owned(),
        }
    }
}

impl fmt::Display for ConnectString {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}{}", self.hosts.join(","), self.chroot)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[track_caller]
    fn check(text: &str, expected: Result<(&[&str], &str), &str>) {
        match (text.parse::<ConnectString>(), expected) {
            (Ok(connect), Ok((hosts, chroot))) => {
                assert_eq!(connect.hosts(), hosts);
                assert_eq!(connect.chroot(), chroot);
            }
            (Err(error), Err(why)) => assert!(error.to_string().contains(why), "{error}"),
            (parsed, expected) => panic!("{text:?}: {parsed:?}, expected {expected:?}"),
        }
    }

    #[test]
    fn hosts_and_chroot_are_told_apart() {
        check("a:1", Ok((&["a:1"], "")));
        check("a:1/", Ok((&["a:1"], "")));
        check("a:1, b:2/c/d", Ok((&["a:1", "b:2"], "/c/d")));
        check("a", Ok((&["a:2181"], "")));
        check("[::1]:9,[::1]", Ok((&["[::1]:9", "[::1]:2181"], "")));
    }

    #[test]
    fn what_cannot_be_connected_to_is_refused() {
        check("", Err("a host is missing"));
        check("a:1,", Err("a host is missing"));
        check("a:port", Err("a port is not a number"));
        check("a:0", Err("a port is not a number"));
        check("::1:2181", Err("in brackets"));
        check("[::1", Err("in brackets"));
        check("a:1/b/", Err("empty"));
        check("a:1//b", Err("empty"));
        check("a:1/../b", Err("'..'"));
        check("a:1/zookeeper", Err("own"));
        check("a:1/b c", Err("printable"));
        check("caf\u{e9}:1", Err("printable"));
    }

    proptest! {
        #[test]
        fn paths_come_back_from_the_chroot(chroot in "(/[a-z]{1,5}){0,3}", path in "(/[a-z]{1,5}){1,4}") {
            let connect: ConnectString = format!("a:1{chroot}").parse().unwrap();
            prop_assert_eq!(connect.relative(&connect.absolute(&path)), path);
            prop_assert_eq!(connect.relative(&connect.absolute("/")), "/");
        }

        #[test]
        fn no_text_panics(text in ".{0,60}") {
            text.parse::<ConnectString>().ok();
        }
    }
}
