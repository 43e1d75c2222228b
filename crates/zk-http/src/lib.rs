//! HTTP/1.1, as much of it as `zk-master` and `zk-worker` serve and `zk-client` asks for: GET and HEAD, one request a
//! connection, answers of a known length or in chunks.
//!
//! ```text
//!  accept loop ──a thread each, up to a limit──▶ head, within its size and time ──▶ handler ──▶ Reply or Stream
//! ```
//!
//! An answer in chunks says with its last chunk that it is complete. What ends without that was broken off, and whoever
//! asked can go on from where it stopped. Nothing here is shared with a daemon's deciding thread but what the handler
//! shares.
//!
//! Deliberately absent: bodies of requests, keep-alive, compression, TLS, percent-encoding (no name of ours needs it).

mod client;
mod head;
mod listen;
mod pulse;
mod server;

/// Decodes anything as a request, and as an answer, for fuzz targets: it must not panic, whatever that is.
#[doc(hidden)]
pub fn decode(bytes: &[u8]) {
    if let Ok(Some(request)) = Request::parse(bytes) {
        request.query("offset");
        request.segments();
    }
    client::decode(bytes);
}

pub use client::{Answer, Body, Piece, get};
pub use head::Request;
pub use listen::{Listen, ListenError, Unwell};
pub use pulse::{Pulse, Ready};
pub use server::{Limits, Reply, Server, Status, Stream, serve};
