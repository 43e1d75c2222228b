//! What a master serves over HTTP: whether it is well, its metrics, and a page for people.
//!
//! The deciding thread is asked what it knows by a message. It answers between two passes, at most once in a second and for
//! at most a fiftieth of its time, however many ask; whoever asks waits for it, never the other way round.

use std::io;
use std::net::TcpListener;
use std::sync::mpsc::{self, Sender};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use prometheus_client::encoding::prometheus_text::CONTENT_TYPE;
use zk_http::{Limits, Pulse, Reply, Request, Server, Status};
use znode_paths::Address;

use crate::Message;
use crate::metrics::Metrics;
use crate::overview::Overview;
use crate::page::page;

/// What is so old is still shown, and what is so many times as old as it took to make.
const FRESH: Duration = Duration::from_secs(1);
const FRESH_TIMES: u32 = 50;

/// How long somebody who asks waits for the deciding thread, which may be in the middle of a pass.
const PATIENCE: Duration = Duration::from_secs(2);

/// What there is to be seen of a master.
pub(crate) struct Lookout {
    address: Address,
    pulse: Pulse,
    metrics: Arc<Metrics>,
    mailbox: Sender<Message>,
    latest: Mutex<Option<Seen>>,
}

struct Seen {
    /// So long it is shown.
    until: Instant,
    /// Nothing when the deciding thread did not answer in time.
    overview: Option<Arc<Overview>>,
}

impl Lookout {
    pub(crate) fn new(address: Address, pulse: Pulse, metrics: Arc<Metrics>, mailbox: Sender<Message>) -> Self {
        Lookout { address, pulse, metrics, mailbox, latest: Mutex::default() }
    }

    /// What the deciding thread knows, or knew a moment ago. Of many who ask at the same time one does; the others get the
    /// same answer.
    fn overview(&self) -> Option<Arc<Overview>> {
        let mut latest = self.latest.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(seen) = latest.as_ref().filter(|seen| Instant::now() < seen.until) {
            return seen.overview.clone();
        }
        let (ask, answer) = mpsc::channel();
        self.mailbox.send(Message::Look(ask)).ok(); // else it has ended, and nobody answers
        let (overview, took) = answer.recv_timeout(PATIENCE).ok().unzip();
        let overview = overview.map(Arc::new);
        let until = Instant::now() + FRESH.max(took.unwrap_or_default() * FRESH_TIMES);
        *latest = Some(Seen { until, overview: overview.clone() });
        overview
    }

    fn answer(&self, request: &Request, reply: Reply<'_>) -> io::Result<()> {
        match request.path() {
            "/healthz" => self.pulse.health(reply),
            "/readyz" => self.pulse.readiness(reply),
            "/metrics" => {
                let overview = self.overview();
                let cluster = match overview.as_deref() {
                    Some(Overview::Primary(cluster)) => Some(cluster),
                    _ => None,
                };
                reply.send_as(Status::Ok, CONTENT_TYPE, &self.metrics.text(self.pulse.ready(), cluster))
            }
            "/" => {
                let overview = self.overview();
                let status = if overview.is_some() { Status::Ok } else { Status::Unavailable };
                reply.send_as(status, "text/html; charset=utf-8", &page(&self.address, overview.as_deref()))
            }
            _ => reply.send(Status::NotFound, "there is no such thing here\n"),
        }
    }
}

/// Serves it, as long as the process lives.
///
/// # Errors
/// No thread could be started.
pub(crate) fn serve(listener: TcpListener, lookout: Lookout) -> io::Result<Server> {
    zk_http::serve(listener, Limits::default(), move |request, reply| lookout.answer(request, reply))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::thread;

    /// What a hundred get who ask at the same time, and how often the deciding thread was asked.
    fn ask(answers: bool) -> (Vec<Option<Arc<Overview>>>, u64) {
        let (mailbox, asked) = mpsc::channel();
        let lookout = Lookout::new("m:1".parse().unwrap(), Pulse::default(), Arc::default(), mailbox);
        let deciding = thread::spawn(move || {
            let (mut count, mut unanswered) = (0, Vec::new());
            for message in asked {
                count += 1;
                match message {
                    Message::Look(asked) if answers => {
                        asked.send((Overview::Nothing, Duration::ZERO)).unwrap_or_default()
                    }
                    message => unanswered.push(message),
                }
            }
            count
        });
        let seen = thread::scope(|scope| {
            let asking: Vec<_> = (0..100).map(|_| scope.spawn(|| lookout.overview())).collect();
            asking.into_iter().map(|asking| asking.join().unwrap()).collect()
        });
        drop(lookout);
        (seen, deciding.join().unwrap())
    }

    #[test]
    fn however_many_look_the_deciding_thread_is_asked_once_in_a_second() {
        let begun = Instant::now();
        let (seen, asked) = ask(true);
        assert!(seen.iter().all(Option::is_some));
        assert!(asked <= 1 + begun.elapsed().as_secs(), "{asked}");
    }

    #[test]
    fn nobody_waits_for_ever_for_a_deciding_thread_that_does_not_answer() {
        let begun = Instant::now();
        let (seen, asked) = ask(false);
        assert!(seen.iter().all(Option::is_none));
        assert!(asked <= 1 + begun.elapsed().as_secs(), "{asked}");
    }
}
