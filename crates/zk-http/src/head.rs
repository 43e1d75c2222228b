//! What stands before the body: parsed, never interpreted further than it must be. No I/O.

use httparse::{EMPTY_HEADER, Error as ParseError};

use crate::Status;

/// So many lines a head may have.
const HEADERS: usize = 64;

/// What somebody asks for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Request {
    /// Only the head of the answer is wanted.
    pub(crate) head_only: bool,
    /// HTTP/1.1, and not 1.0.
    pub(crate) chunks: bool,
    target: String,
    headers: Vec<(String, Vec<u8>)>,
}

impl Request {
    /// Reads a head; `None` when it is not all there yet.
    pub(crate) fn parse(bytes: &[u8]) -> Result<Option<Request>, Status> {
        let mut headers = [EMPTY_HEADER; HEADERS];
        let mut parsed = httparse::Request::new(&mut headers);
        match parsed.parse(bytes) {
            Ok(httparse::Status::Complete(_)) => {}
            Ok(httparse::Status::Partial) => return Ok(None),
            Err(ParseError::TooManyHeaders) => return Err(Status::HeadTooLarge),
            Err(ParseError::Version) => return Err(Status::VersionNotSupported),
            Err(_) => return Err(Status::BadRequest),
        }
        let target = parsed.path.filter(|target| target.starts_with('/')).ok_or(Status::BadRequest)?;
        let head_only = match parsed.method {
            Some("GET") => false,
            Some("HEAD") => true,
            _ => return Err(Status::MethodNotAllowed),
        };
        let request = Request {
            head_only,
            chunks: parsed.version == Some(1),
            target: target.to_owned(),
            headers: parsed.headers.iter().map(|header| (header.name.to_owned(), header.value.to_vec())).collect(),
        };
        // RFC 9112, 3.2: a request of HTTP/1.1 has it.
        if request.chunks && request.header("host").is_none() { Err(Status::BadRequest) } else { Ok(Some(request)) }
    }

    /// The path with the query, as they came.
    pub fn target(&self) -> &str {
        &self.target
    }

    /// The path, without the query.
    pub fn path(&self) -> &str {
        self.target.split_once('?').map_or(&self.target, |(path, _)| path)
    }

    /// What is between the slashes of the path. Nothing of it was checked or decoded.
    pub fn segments(&self) -> Vec<&str> {
        self.path().split('/').skip(1).collect()
    }

    /// The value of a parameter of the query; empty for one without a value.
    pub fn query(&self, name: &str) -> Option<&str> {
        let query = self.target.split_once('?').map_or("", |(_, query)| query);
        let mut pairs = query.split('&').map(|pair| pair.split_once('=').unwrap_or((pair, "")));
        pairs.find(|(key, _)| *key == name).map(|(_, value)| value)
    }

    /// The value of a header; upper and lower case are the same in its name.
    pub fn header(&self, name: &str) -> Option<&[u8]> {
        let mut headers = self.headers.iter();
        headers.find(|(key, _)| key.eq_ignore_ascii_case(name)).map(|(_, value)| &value[..])
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Result<Option<Request>, Status> {
        Request::parse(text.as_bytes())
    }

    #[test]
    fn a_request_is_a_path_a_query_and_headers() {
        let request =
            parse("GET /tasks/a/1?offset=7&follow&x=1=2 HTTP/1.1\r\nHost: w\r\nX-Mac: q\r\n\r\n").unwrap().unwrap();
        assert_eq!((request.path(), request.segments()), ("/tasks/a/1", vec!["tasks", "a", "1"]));
        assert_eq!(
            (request.query("offset"), request.query("follow"), request.query("x")),
            (Some("7"), Some(""), Some("1=2"))
        );
        assert_eq!((request.query("off"), request.query("")), (None, None));
        assert_eq!((request.header("x-mac"), request.header("y")), (Some(&b"q"[..]), None));
        assert!(!request.head_only && request.chunks);
    }

    #[test]
    fn what_is_not_all_there_is_waited_for() {
        let whole = "HEAD / HTTP/1.0\r\nA: b\r\n\r\n";
        for end in 0..whole.len() {
            assert_eq!(parse(&whole[..end]), Ok(None), "{end}");
        }
        assert!(parse(whole).unwrap().unwrap().head_only);
    }

    #[test]
    fn what_is_no_request_is_refused_with_the_reason() {
        let many: String = (0..65).map(|n| format!("h{n}: x\r\n")).collect();
        for (text, status) in [
            ("\0", Status::BadRequest),
            ("GET / HTTP/1.1\r\n\r\n", Status::BadRequest),
            ("GET /\0 HTTP/1.1\r\nHost: x\r\n\r\n", Status::BadRequest),
            ("GET http://h/ HTTP/1.1\r\nHost: x\r\n\r\n", Status::BadRequest),
            ("GET / HTTP/1.1\r\nHost : x\r\n\r\n", Status::BadRequest),
            ("POST / HTTP/1.1\r\nHost: x\r\n\r\n", Status::MethodNotAllowed),
            ("GET / HTTP/2.0\r\n\r\n", Status::VersionNotSupported),
            ("\x16\x03\x01\x02\0\x01\0", Status::BadRequest),
            (&format!("GET / HTTP/1.1\r\n{many}\r\n"), Status::HeadTooLarge),
        ] {
            assert_eq!(parse(text), Err(status), "{text:?}");
        }
    }

    /// Whatever comes, it is an answer.
    #[test]
    fn any_bytes_are_a_request_or_refused() {
        let mut seed = 1_u64;
        let mut draw = || {
            seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            (seed >> 33) as usize
        };
        let valid = b"GET /tasks/task-0000000001/5/stdout?offset=3 HTTP/1.1\r\nHost: x\r\n\r\n";
        for _ in 0..20_000 {
            let mut bytes = valid.to_vec();
            for _ in 0..=draw() % 3 {
                let at = draw() % bytes.len();
                bytes[at] = u8::try_from(draw() % 256).unwrap();
            }
            bytes.truncate(draw() % (bytes.len() + 1));
            _ = Request::parse(&bytes);
        }
    }
}
