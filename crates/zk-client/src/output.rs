//! What the user sees: results on standard output, all else in sentences on standard error.

use std::io::{self, BufWriter, ErrorKind, Write as _};

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
    let mut stdout = BufWriter::new(io::stdout().lock());
    let written = lines.into_iter().try_for_each(|line| writeln!(stdout, "{line}"));
    written.and_then(|()| stdout.flush()).map_err(Error::Stdout)
}

/// Prints what a command wrote, as it wrote it.
pub(crate) fn bytes(stdout: &[u8], stderr: &[u8]) -> Result<(), Error> {
    let mut out = io::stdout().lock();
    let written = out.write_all(stdout).and_then(|()| out.flush());
    // A standard error that cannot be written to is nothing that could be told to anybody.
    io::stderr().lock().write_all(stderr).ok();
    written.map_err(Error::Stdout)
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
