//! What the worker serves over HTTP: whether it is well, its metrics, and the output of what it runs and ran.

use std::io;
use std::net::TcpListener;
use std::sync::Arc;
use std::time::{Duration, Instant};

use prometheus_client::encoding::prometheus_text::CONTENT_TYPE;
use zk_http::{Limits, Pulse, Reply, Request, Server, Status};
use znode_paths::OutputPath;

use crate::gate::Gate;
use crate::metrics::Metrics;
use crate::output::{Log, Outputs};

/// How often somebody who follows is given what is new. A look costs 5 µs and nothing is looked at unless somebody follows;
/// inotify would be quicker by 10 ms, but gives a user 128 instances in all, and needs this as its fallback.
const TICK: Duration = Duration::from_millis(20);

/// How long somebody who follows waits for the start: whoever sees an assignment is often here before the worker has
/// started it.
const START: Duration = Duration::from_secs(5);

/// The most bytes of a chunk.
const CHUNK: usize = 32 * 1024;

/// Serves it, as long as the process lives.
///
/// # Errors
/// No thread could be started.
pub(crate) fn serve(
    listener: TcpListener,
    outputs: Arc<Outputs>,
    gate: Gate,
    pulse: Pulse,
    metrics: Arc<Metrics>,
) -> io::Result<Server> {
    zk_http::serve(listener, Limits::default(), move |request, reply| match request.path() {
        "/healthz" => pulse.health(reply),
        "/readyz" => pulse.readiness(reply),
        "/metrics" => reply.send_as(Status::Ok, CONTENT_TYPE, &metrics.text()),
        path => match path.parse() {
            Ok(path) => match gate.admit(request, zk_cli::now_ms()) {
                Ok(()) => output(&outputs, &path, request, reply),
                Err(why) => reply.send(Status::Unauthorized, &format!("{why}\n")),
            },
            Err(()) => reply.send(Status::NotFound, "there is no such thing here\n"),
        },
    })
}

fn output(outputs: &Outputs, path: &OutputPath, request: &Request, reply: Reply<'_>) -> io::Result<()> {
    let follow = request.query("follow").is_some();
    let Ok(mut offset) = request.query("offset").unwrap_or("0").parse::<u64>() else {
        return reply.send(Status::BadRequest, "the offset is no number of bytes\n");
    };
    if reply.crowded() {
        return reply.send(Status::Unavailable, "there are too many connections, try later\n");
    }
    let Some(log) = find(outputs, path, follow, &reply)? else {
        return reply.send(Status::NotFound, "this attempt wrote nothing here, or it was removed\n");
    };
    // Without `follow` what is there now is all there is.
    let now = if follow { None } else { Some(log.length()?) };
    let Some(mut stream) = reply.stream()? else { return Ok(()) };
    let mut bytes = vec![0; CHUNK];
    loop {
        // Looked at before the bytes: after the end there are none.
        let end = log.end().or(now);
        match log.read(&mut bytes, offset, end)? {
            0 if end.is_some() => return stream.end(),
            0 => stream.wait(TICK)?,
            count => {
                stream.chunk(&bytes[..count])?;
                offset += count as u64;
            }
        }
    }
}

fn find(outputs: &Outputs, path: &OutputPath, wait: bool, reply: &Reply<'_>) -> io::Result<Option<Arc<Log>>> {
    let until = Instant::now() + START;
    loop {
        let found = outputs.find(path);
        if found.is_some() || !wait || Instant::now() >= until {
            return Ok(found);
        }
        reply.wait(TICK)?;
    }
}
