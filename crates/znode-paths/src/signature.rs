//! What clients prove to workers with a task key: that a task, or a request for output, is of somebody who has it. Pure: time
//! and randomness come in as data.
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

/// Tell what is signed from anything else that may ever be signed with the same keys.
const TASK: &[u8] = b"zk task 1\n";
const REQUEST: &[u8] = b"zk request 1\n";

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

/// Why a task or a request does not count as signed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Unsigned {
    /// It bears no signature.
    #[error("it is not signed with a task key")]
    Absent,
    /// It was made with another key, or for other data.
    #[error("its signature is wrong: it was made with another task key, or what was signed was changed")]
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
            TaskMeta { mac: Some(self.mac(TASK, &data[..data.len() - 1])), ..unsigned }
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
        self.verify(TASK, signed, signature)?;
        meta.signed_ms.ok_or(Unsigned::Wrong)
    }

    /// The header `Authorization` of a request with this target, which is the path with the query.
    pub fn sign_request(&self, target: &str, id: RequestId) -> String {
        let mac = self.mac(REQUEST, &request(target, id));
        format!("{SCHEME} {} {:016x} {mac}", id.time_ms, id.nonce)
    }

    /// Which request it is that bears this header.
    ///
    /// # Errors
    /// It is not signed, or not with one of these keys, or is for another target.
    pub fn check_request(&self, target: &str, authorization: Option<&[u8]>) -> Result<RequestId, Unsigned> {
        let text = authorization.ok_or(Unsigned::Absent)?;
        let text = std::str::from_utf8(text).map_err(|_| Unsigned::Wrong)?;
        let [SCHEME, time, nonce, mac] = text.split(' ').collect::<Vec<_>>()[..] else { return Err(Unsigned::Absent) };
        let nonce = u64::from_str_radix(nonce, 16).map_err(|_| Unsigned::Wrong)?;
        let id = RequestId { time_ms: time.parse().map_err(|_| Unsigned::Wrong)?, nonce };
        self.verify(REQUEST, &request(target, id), mac).map(|()| id)
    }

    fn mac(&self, what: &[u8], signed: &[u8]) -> String {
        BASE64.encode(hmac(&self.0[0], what, signed).finalize().into_bytes())
    }

    fn verify(&self, what: &[u8], signed: &[u8], mac: &str) -> Result<(), Unsigned> {
        let mac = BASE64.decode(mac).map_err(|_| Unsigned::Wrong)?;
        // In constant time.
        let good = self.0.iter().any(|key| hmac(key, what, signed).verify_slice(&mac).is_ok());
        if good { Ok(()) } else { Err(Unsigned::Wrong) }
    }
}

fn hmac(key: &[u8], what: &[u8], signed: &[u8]) -> Hmac<Sha256> {
    let hmac = Hmac::<Sha256>::new_from_slice(key).expect("an HMAC takes keys of any length");
    hmac.chain_update(what).chain_update(signed)
}

/// What a worker tells a signed request from every other by.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct RequestId {
    /// When it was made, in milliseconds since 1970 by the client's clock.
    pub time_ms: u64,
    /// Drawn at random.
    pub nonce: u64,
}

/// The scheme of the header (RFC 9110, 11.4).
const SCHEME: &str = "ZK-HMAC-SHA256";

/// Every request is a GET, and no target has a line break.
fn request(target: &str, RequestId { time_ms, nonce }: RequestId) -> Vec<u8> {
    format!("GET\n{target}\n{time_ms}\n{nonce:016x}").into_bytes()
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

    #[test]
    fn a_request_is_signed_for_its_target_and_its_time() {
        let (id, target) = (RequestId { time_ms: 7, nonce: 0xab }, "/tasks/task-0000000001/5/stdout?offset=0&follow");
        let header = keys(NEW).sign_request(target, id);
        let both = keys(&format!("{OLD}\n{NEW}"));
        assert_eq!(both.check_request(target, Some(header.as_bytes())), Ok(id));
        let later = header.replace(" 7 ", " 8 ");
        let other = header.replace("ab ", "ac ");
        for (target, header) in
            [(target, &later), (target, &other), (&target[1..], &header), (&target[..target.len() - 7], &header)]
        {
            assert_eq!(both.check_request(target, Some(header.as_bytes())), Err(Unsigned::Wrong), "{target} {header}");
        }
        assert_eq!(keys(OLD).check_request(target, Some(header.as_bytes())), Err(Unsigned::Wrong));
        for none in [&b"Basic YTpi"[..], b"", b"ZK-HMAC-SHA256 1 2"] {
            assert_eq!(both.check_request(target, Some(none)), Err(Unsigned::Absent));
        }
        for wrong in [&b"ZK-HMAC-SHA256 x 2 AA=="[..], b"ZK-HMAC-SHA256 1 x AA==", b"ZK-HMAC-SHA256 1 2 \xff"] {
            assert_eq!(both.check_request(target, Some(wrong)), Err(Unsigned::Wrong));
        }
        assert_eq!(both.check_request(target, None), Err(Unsigned::Absent));
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
        let mac = keys(NEW).mac(TASK, signed.as_bytes());
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
