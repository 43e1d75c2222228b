//! What the user sees: results on standard output, all else in sentences on standard error.

use std::io::{self, BufWriter, ErrorKind, Write as _};
use std::os::fd::AsFd;

use rustix::event::{PollFd, PollFlags, poll};
use rustix::io::Errno;
use serde::Serialize;
use serde_json::ser::Formatter;
use zk_cli::is_harmless;

use crate::Error;
use crate::render::escape;

/// Prints results: as JSON, one object a line, or as the text that is made of them. They are written out before this
/// returns, so that whoever reads them has them at once.
pub(crate) fn results<O: Serialize>(
    json: bool,
    objects: &[O],
    text: impl FnOnce(&[O]) -> Vec<String>,
) -> Result<(), Error> {
    let in_json = |object| String::from_utf8_lossy(&in_json(object)).into_owned();
    let lines = if json { objects.iter().map(in_json).collect() } else { text(objects) };
    // Colours get through to a terminal only, and not where NO_COLOR is set.
    let mut stdout = BufWriter::new(anstream::AutoStream::auto(io::stdout().lock()));
    let written = lines.into_iter().try_for_each(|line| writeln!(stdout, "{line}"));
    written.and_then(|()| stdout.flush()).map_err(Error::Stdout)
}

/// Prints an object of JSON on a line.
pub(crate) fn object(object: &impl Serialize) -> io::Result<()> {
    let mut line = in_json(object);
    line.push(b'\n');
    stdout(&line)
}

fn in_json(object: &impl Serialize) -> Vec<u8> {
    let mut line = Vec::new();
    let mut to = serde_json::Serializer::with_formatter(&mut line, Harmless);
    object.serialize(&mut to).expect("our own types have string keys and no failing field");
    line
}

/// JSON in which nothing is left that a terminal would act upon: JSON itself lets through what is no ASCII, and DEL.
struct Harmless;

impl Formatter for Harmless {
    fn write_string_fragment<W: io::Write + ?Sized>(&mut self, to: &mut W, fragment: &str) -> io::Result<()> {
        let mut rest = fragment;
        while let Some(at) = rest.find(|c| !is_harmless(c)) {
            to.write_all(&rest.as_bytes()[..at])?;
            let mut characters = rest[at..].chars();
            if let Some(c) = characters.next() {
                c.encode_utf16(&mut [0; 2]).iter().try_for_each(|unit| write!(to, "\\u{unit:04x}"))?;
            }
            rest = characters.as_str();
        }
        to.write_all(rest.as_bytes())
    }
}

/// Writes bytes to standard output, as they are and at once.
pub(crate) fn stdout(bytes: &[u8]) -> io::Result<()> {
    let stdout = io::stdout().lock();
    write(&stdout, bytes)
}

/// Writes bytes to standard error.
pub(crate) fn stderr(bytes: &[u8]) -> io::Result<()> {
    let stderr = io::stderr().lock();
    write(&stderr, bytes)
}

/// Somebody else may have made a terminal or a pipe that we share non-blocking.
fn write(to: &impl AsFd, mut bytes: &[u8]) -> io::Result<()> {
    while !bytes.is_empty() {
        match rustix::io::write(to, bytes) {
            Ok(count) => bytes = &bytes[count..],
            Err(Errno::INTR) => {}
            Err(Errno::AGAIN) => _ = poll(&mut [PollFd::new(to, PollFlags::OUT)], None),
            Err(error) => return Err(error.into()),
        }
    }
    Ok(())
}

/// Prints text as it stands.
pub(crate) fn text(text: &str) -> Result<(), Error> {
    let mut stdout = io::stdout().lock();
    stdout.write_all(text.as_bytes()).and_then(|()| stdout.flush()).map_err(Error::Stdout)
}

/// Tells the user something, on one line.
pub(crate) fn note(text: &str) {
    // As above.
    io::stderr().lock().write_all(format!("zk-client: {}\n", escape(text)).as_bytes()).ok();
}

/// Whether nobody reads the results any more. That is no error: they had what they wanted, as `head` has.
pub(crate) fn unwanted(error: &Error) -> bool {
    matches!(error, Error::Stdout(error) | Error::Unprinted(_, error) if error.kind() == ErrorKind::BrokenPipe)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn json_holds_nothing_that_a_terminal_would_act_upon_and_says_the_same() {
        let text = "a\u{1b}[m\n\"\\\u{7f}\u{9b}\u{202e}\u{e0001} größe 漢字";
        let line = String::from_utf8(in_json(&text)).unwrap();
        let expected = r#""a\u001b[m\n\"\\\u007f\u009b\u202e\udb40\udc01 größe 漢字""#;
        assert_eq!(line, expected);
        assert_eq!(serde_json::from_str::<String>(&line).unwrap(), text);
    }
}
