//! What the user sees: results on standard output, all else in sentences on standard error.

use std::io::{self, BufWriter, ErrorKind, Write as _};
use std::os::fd::AsFd;

use rustix::event::{PollFd, PollFlags, poll};
use rustix::io::Errno;
use serde::Serialize;

use crate::Error;
use crate::render::escape;

/// Prints results: as JSON, one object a line, or as the text that is made of them. They are written out before this
/// returns, so that whoever reads them has them at once.
pub(crate) fn results<O: Serialize>(
    json: bool,
    objects: &[O],
    text: impl FnOnce(&[O]) -> Vec<String>,
) -> Result<(), Error> {
    let in_json = |object| serde_json::to_string(object).expect("our own types have string keys and no failing field");
    let lines = if json { objects.iter().map(in_json).collect() } else { text(objects) };
    // Colours get through to a terminal only, and not where NO_COLOR is set.
    let mut stdout = BufWriter::new(anstream::AutoStream::auto(io::stdout().lock()));
    let written = lines.into_iter().try_for_each(|line| writeln!(stdout, "{line}"));
    written.and_then(|()| stdout.flush()).map_err(Error::Stdout)
}

/// Prints an object of JSON on a line.
pub(crate) fn object(object: &impl Serialize) -> io::Result<()> {
    let mut line = serde_json::to_vec(object).expect("our own types have string keys and no failing field");
    line.push(b'\n');
    stdout(&line)
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
