//! Who is called what. A name that parses can be put into a path as it stands.

use std::fmt;
use std::str::FromStr;

/// A name that cannot be one; the text says why.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum NameError {
    /// The worker's name would not be one component of a path that every tool can print.
    #[error(
        "{0:?} is not a worker's name: 1 to 255 printable ASCII characters without '/' and blanks, not '.' or '..'"
    )]
    Worker(String),
    /// Not what ZooKeeper makes of a sequential `task-`.
    #[error("{0:?} is not a task's name: it looks like task-0000000000")]
    Task(String),
    /// Not something that can be dialled.
    #[error("{0:?} is not an address: it looks like host:port")]
    Address(String),
    /// Not 16 hexadecimal digits.
    #[error("{0:?} is not an instance: it has 16 hexadecimal digits")]
    Instance(String),
}

/// The name of a worker: a component of a path, by default the name of its host.
///
/// ```
/// use znode_paths::WorkerName;
/// assert!("worker1.example.com".parse::<WorkerName>().is_ok());
/// for bad in ["", "..", "a/b", "a b", "caf\u{e9}", "a\u{7}"] {
///     assert!(bad.parse::<WorkerName>().is_err(), "{bad:?}");
/// }
/// ```
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct WorkerName(String);

impl FromStr for WorkerName {
    type Err = NameError;

    fn from_str(text: &str) -> Result<Self, NameError> {
        let printable = text.bytes().all(|byte| byte.is_ascii_graphic() && byte != b'/');
        if printable && !matches!(text, "" | "." | "..") && text.len() <= 255 {
            Ok(WorkerName(text.to_owned()))
        } else {
            Err(NameError::Worker(text.to_owned()))
        }
    }
}

impl WorkerName {
    /// The name as it stands in a path.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for WorkerName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// The name of a task: `task-` and the ten digits that ZooKeeper appends.
///
/// ```
/// use znode_paths::TaskName;
/// let task: TaskName = "task-0000000012".parse().unwrap();
/// assert_eq!(task, TaskName::from_number(12));
/// assert_eq!(task.to_string(), "task-0000000012");
/// assert!("task-12".parse::<TaskName>().is_err());
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct TaskName(u32);

impl TaskName {
    /// The task with this sequence number.
    pub const fn from_number(number: u32) -> Self {
        TaskName(number)
    }
}

impl FromStr for TaskName {
    type Err = NameError;

    fn from_str(text: &str) -> Result<Self, NameError> {
        let digits = text.strip_prefix("task-").filter(|digits| digits.len() == 10);
        let digits = digits.filter(|digits| digits.bytes().all(|byte| byte.is_ascii_digit()));
        // The sequence is a signed 32 bit number: ten digits that do not fit are somebody's own invention.
        digits.and_then(|digits| digits.parse().ok()).map(TaskName).ok_or_else(|| NameError::Task(text.to_owned()))
    }
}

impl fmt::Display for TaskName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "task-{:010}", self.0)
    }
}

/// `host:port`, as `/master` and `/workers/<worker>` hold it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Address(String);

impl FromStr for Address {
    type Err = NameError;

    fn from_str(text: &str) -> Result<Self, NameError> {
        let good = text.rsplit_once(':').is_some_and(|(host, port)| {
            !host.is_empty()
                && host.len() <= 255
                && host.bytes().all(|byte| byte.is_ascii_graphic() && byte != b'/')
                && (!host.contains(':') || (host.starts_with('[') && host.ends_with(']')))
                && port.parse::<u16>().is_ok_and(|port| port != 0)
        });
        if good { Ok(Address(text.to_owned())) } else { Err(NameError::Address(text.to_owned())) }
    }
}

impl Address {
    /// `host:port`.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The port.
    pub fn port(&self) -> u16 {
        let port = self.0.rsplit_once(':').and_then(|(_, port)| port.parse().ok());
        port.expect("it was parsed before")
    }
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// What tells one life of a process from the next: random, drawn at its start, and drawn anew by a worker that could
/// not prove for too long that it is registered (PROTOCOL section 3, Workers).
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Instance(u64);

impl Instance {
    /// The instance with this random number.
    pub fn from_random(number: u64) -> Self {
        Instance(number)
    }
}

impl FromStr for Instance {
    type Err = NameError;

    fn from_str(text: &str) -> Result<Self, NameError> {
        let hexadecimal = text.len() == 16 && text.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'));
        let number = hexadecimal.then(|| u64::from_str_radix(text, 16).ok()).flatten();
        number.map(Instance).ok_or_else(|| NameError::Instance(text.to_owned()))
    }
}

impl fmt::Display for Instance {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:016x}", self.0)
    }
}

/// In JSON, a name is the string that it is in a path.
macro_rules! string_in_json {
    ($($name:ty),*) => {$(
        impl serde::Serialize for $name {
            fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                serializer.collect_str(self)
            }
        }

        impl<'de> serde::Deserialize<'de> for $name {
            fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                String::deserialize(deserializer)?.parse().map_err(serde::de::Error::custom)
            }
        }
    )*};
}

string_in_json!(WorkerName, TaskName, Instance);

/// The name of a node below `/live`: the instance and the number of its session.
///
/// ```
/// use znode_paths::LiveName;
/// let name: LiveName = "00000000000000ff-3".parse().unwrap();
/// assert_eq!(name.instance.to_string(), "00000000000000ff");
/// assert_eq!(name.session, 3);
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct LiveName {
    /// The life of the process.
    pub instance: Instance,
    /// Counts the sessions of that life, from 1.
    pub session: u32,
}

impl FromStr for LiveName {
    type Err = NameError;

    fn from_str(text: &str) -> Result<Self, NameError> {
        let wrong = || NameError::Instance(text.to_owned());
        let (instance, session) = text.split_once('-').ok_or_else(wrong)?;
        let name = LiveName { instance: instance.parse()?, session: session.parse().map_err(|_| wrong())? };
        if name.to_string() == text { Ok(name) } else { Err(wrong()) }
    }
}

impl fmt::Display for LiveName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}-{}", self.instance, self.session)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[track_caller]
    fn check_address(text: &str, good: bool) {
        assert_eq!(text.parse::<Address>().is_ok(), good, "{text:?}");
    }

    #[test]
    fn an_address_is_a_host_and_a_port() {
        check_address("master1.example.com:2223", true);
        check_address("127.0.0.1:1", true);
        check_address("[::1]:2223", true);
        assert_eq!("[::1]:2223".parse::<Address>().map(|address| address.port()), Ok(2223));
        for bad in ["", ":", "host", "host:", ":2223", "host:0", "host:65536", "a b:1", "::1:22", "h/o:1", "h\n:1"] {
            check_address(bad, false);
        }
    }

    #[test]
    fn tasks_sort_by_their_number() {
        assert!(TaskName::from_number(9) < TaskName::from_number(10));
        assert_eq!(TaskName::from_number(u32::MAX).to_string().parse(), Ok(TaskName::from_number(u32::MAX)));
        assert!("task-9999999999".parse::<TaskName>().is_err());
        assert!("task--000000001".parse::<TaskName>().is_err());
        assert!("task-+000000001".parse::<TaskName>().is_err());
    }

    proptest! {
        #[test]
        fn every_name_is_what_it_was_parsed_from(text in ".{0,40}") {
            if let Ok(name) = text.parse::<WorkerName>() { prop_assert_eq!(name.as_str(), &text); }
            if let Ok(name) = text.parse::<TaskName>() { prop_assert_eq!(name.to_string(), text.clone()); }
            if let Ok(name) = text.parse::<Address>() { prop_assert_eq!(name.as_str(), &text); }
        }

        #[test]
        fn live_names_survive_the_round_trip(number: u64, session: u32) {
            let name = LiveName { instance: Instance::from_random(number), session };
            prop_assert_eq!(name.to_string().parse(), Ok(name));
        }
    }
}
