//! What clients and workers prove to each other with a task key: that a task was submitted by somebody who has it. Pure: the
//! time comes in as data.
//!
//! The signature of a task is an HMAC-SHA-256 over the very bytes of its znode up to the signature itself, which is the last
//! field of the metadata. So a task that bears a good one is byte for byte what was signed, whatever a later version adds to
//! the metadata, and nothing has to be put together again in order to check it.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use hmac::{Hmac, KeyInit as _, Mac as _};
use sha2::Sha256;

use crate::{Task, TaskMeta};

/// The fewest bytes of a key. What `head -c 32 /dev/urandom | base64` prints has 44.
const SHORTEST: usize = 16;

/// Tells what is signed from anything else that may ever be signed with the same keys.
const TASK: &[u8] = b"zk task 1\n";

/// The keys of a file: the first signs, each is good for a check. So a new key is put first everywhere, and the old one goes
/// when everybody has the new one.
#[derive(Clone)]
pub struct TaskKeys(Vec<Vec<u8>>);

/// Why a file holds no task keys.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum KeyError {
    /// Nothing but blanks.
    #[error("it is empty: make one with `head -c 32 /dev/urandom | base64`")]
    Empty,
    /// Somebody could try all of them.
    #[error("line {0} is shorter than {SHORTEST} bytes: make a key with `head -c 32 /dev/urandom | base64`")]
    Short(usize),
}

/// Why a task does not count as signed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Unsigned {
    /// It bears no signature.
    #[error("it is not signed with a task key")]
    Absent,
    /// It was made with another key, or for other data.
    #[error("its signature is wrong: it was made with another task key, or the task was changed")]
    Wrong,
}

// Never the keys themselves: what can be printed gets into a log one day.
impl std::fmt::Debug for TaskKeys {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "TaskKeys({})", self.0.len())
    }
}

impl TaskKeys {
    /// Reads them: one a line, any text.
    ///
    /// # Errors
    /// There is none, or one that is too short.
    pub fn parse(text: &str) -> Result<Self, KeyError> {
        let lines = text.lines().map(str::trim).enumerate().filter(|(_, line)| !line.is_empty());
        let keys = lines.map(|(before, line)| match line.len() {
            0..SHORTEST => Err(KeyError::Short(before + 1)),
            _ => Ok(line.as_bytes().to_vec()),
        });
        let keys: Vec<Vec<u8>> = keys.collect::<Result<_, _>>()?;
        if keys.is_empty() { Err(KeyError::Empty) } else { Ok(TaskKeys(keys)) }
    }

    /// The task, signed at this time, which is in milliseconds since 1970. One without metadata cannot bear a signature.
    pub fn sign(&self, task: &Task, now_ms: u64) -> Task {
        let meta = task.meta.as_ref().map(|meta| {
            let unsigned = TaskMeta { signed_ms: Some(now_ms), mac: None, ..meta.clone() };
            let data = Task { command: task.command.clone(), meta: Some(unsigned.clone()) }.encode();
            // What follows the metadata's last field is the brace, with or without a signature.
            let mac = mac(&self.0[0], &data[..data.len() - 1]).finalize().into_bytes();
            TaskMeta { mac: Some(BASE64.encode(mac)), ..unsigned }
        });
        Task { command: task.command.clone(), meta }
    }

    /// When a task was signed, in milliseconds since 1970: `task` is what `data` says.
    ///
    /// # Errors
    /// It was not, or not with one of these keys, or is not what was signed.
    pub fn check(&self, task: &Task, data: &[u8]) -> Result<u64, Unsigned> {
        let meta = task.meta.as_ref().ok_or(Unsigned::Absent)?;
        let signature = meta.mac.as_ref().ok_or(Unsigned::Absent)?;
        let signed = data.strip_suffix(format!(",\"mac\":\"{signature}\"}}").as_bytes()).ok_or(Unsigned::Wrong)?;
        let signature = BASE64.decode(signature).map_err(|_| Unsigned::Wrong)?;
        let good = self.0.iter().any(|key| mac(key, signed).verify_slice(&signature).is_ok());
        meta.signed_ms.filter(|_| good).ok_or(Unsigned::Wrong)
    }
}

fn mac(key: &[u8], signed: &[u8]) -> Hmac<Sha256> {
    let mac = Hmac::<Sha256>::new_from_slice(key).expect("an HMAC takes keys of any length");
    mac.chain_update(TASK).chain_update(signed)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Bytes;
    use proptest::collection::btree_map;
    use proptest::prelude::*;

    const OLD: &str = "an old key, an old key";
    const NEW: &str = "a new key, 0123456789";

    fn keys(text: &str) -> TaskKeys {
        TaskKeys::parse(text).unwrap()
    }

    fn check(keys: &TaskKeys, data: &[u8]) -> Result<u64, Unsigned> {
        keys.check(&Task::decode(data).unwrap(), data)
    }

    fn task() -> Task {
        Task { command: "echo a\necho b".into(), meta: Some(TaskMeta::new("s".into())) }
    }

    #[test]
    fn a_file_without_a_good_key_is_refused() {
        assert_eq!(TaskKeys::parse(" \n\n").unwrap_err(), KeyError::Empty);
        assert_eq!(TaskKeys::parse(&format!("{NEW}\n\nshort\n")).unwrap_err(), KeyError::Short(3));
        assert!(KeyError::Short(3).to_string().contains("line 3"));
    }

    #[test]
    fn keys_are_not_printed() {
        assert_eq!(format!("{:?}", keys(&format!("{NEW}\n{OLD}"))), "TaskKeys(2)");
    }

    #[test]
    fn the_first_key_signs_and_each_is_good_for_a_check() {
        let (old, both, new) = (keys(OLD), keys(&format!("{NEW}\n{OLD}\n")), keys(NEW));
        let (by_old, by_both) = (old.sign(&task(), 7).encode(), both.sign(&task(), 8).encode());
        assert_eq!((check(&old, &by_old), check(&both, &by_old)), (Ok(7), Ok(7)));
        assert_eq!((check(&new, &by_both), check(&both, &by_both)), (Ok(8), Ok(8)));
        assert_eq!((check(&new, &by_old), check(&old, &by_both)), (Err(Unsigned::Wrong), Err(Unsigned::Wrong)));
    }

    #[test]
    fn what_bears_no_signature_is_not_signed() {
        assert_eq!(check(&keys(NEW), b"echo"), Err(Unsigned::Absent));
        assert_eq!(check(&keys(NEW), &task().encode()), Err(Unsigned::Absent));
        assert_eq!(keys(NEW).sign(&Task::plain("echo"), 7), Task::plain("echo"));
    }

    /// The format, as another HMAC computes it: whoever changes this locks out everybody who has not.
    #[test]
    fn a_signature_is_what_others_compute() {
        let data = keys(NEW).sign(&task(), 7).encode();
        let text = "echo a\necho b\n{\"zk\":1,\"submit\":\"s\",\"max_attempts\":3,\"signed_ms\":7,\
                    \"mac\":\"9F1F1WtdUcfnxwWEvB7drm8WKxZ46Jpa6VmnTU8PPYI=\"}";
        assert_eq!(String::from_utf8(data).unwrap(), text);
    }

    #[test]
    fn a_later_version_may_add_fields() {
        let signed = "x\n{\"zk\":1,\"later\":[{}],\"signed_ms\":9";
        let mac = BASE64.encode(mac(NEW.as_bytes(), signed.as_bytes()).finalize().into_bytes());
        let data = format!("{signed},\"mac\":\"{mac}\"}}");
        assert_eq!(check(&keys(NEW), data.as_bytes()), Ok(9));
        // But not behind the signature, nor twice.
        let more = format!("{signed},\"mac\":\"{mac}\",\"cwd\":\"/\"}}");
        assert_eq!(check(&keys(NEW), more.as_bytes()), Err(Unsigned::Wrong));
        let twice = format!("{signed},\"mac\":\"{mac}\",\"mac\":\"{mac}\"}}");
        assert!(Task::decode(twice.as_bytes()).is_err());
    }

    proptest! {
        #[test]
        fn whatever_is_changed_the_signature_is_wrong(
            command in "[^\0]{1,40}", env in btree_map("[A-Z]{1,8}", ".{0,10}", 0..3), retries: u32, now_ms: u64,
            stdin in proptest::option::of(".{0,20}"), at: prop::sample::Index, byte: u8,
        ) {
            prop_assume!(!command.trim().is_empty());
            let stdin = stdin.map(|text| Bytes(text.into_bytes()));
            let meta = TaskMeta { env, retries, stdin, ..TaskMeta::new("s".into()) };
            let signed = keys(NEW).sign(&Task { command, meta: Some(meta) }, now_ms);
            let mut data = signed.encode();
            prop_assert_eq!(check(&keys(NEW), &data), Ok(now_ms));
            // Signed again, it is as if it had not been signed before.
            prop_assert_eq!(&keys(NEW).sign(&signed, now_ms), &signed);
            let at = at.index(data.len());
            prop_assume!(data[at] != byte);
            data[at] = byte;
            if let Ok(task) = Task::decode(&data) {
                prop_assert!(keys(NEW).check(&task, &data).is_err());
            }
        }
    }
}
