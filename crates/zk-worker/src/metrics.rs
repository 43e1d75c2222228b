//! What a worker counts for Prometheus. The names are explained in `docs/operations.md`.

use std::time::Duration;

use prometheus_client::encoding::prometheus_text::encode;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::metrics::info::Info;
use prometheus_client::registry::{Registry, Unit};
use znode_paths::{Outcome, Stream};

use crate::judge::Report;

type Label = [(&'static str, &'static str); 1];

/// From a command that does nothing, in seconds, to one that runs for a day.
const DURATIONS: [f64; 12] = [0.01, 0.05, 0.1, 0.5, 1.0, 5.0, 15.0, 60.0, 300.0, 1800.0, 7200.0, 86_400.0];

/// The word for a command that ended though nobody wants to know how any more.
const DROPPED: &str = "dropped";

/// All of it. Whoever counts never waits for whoever reads: that makes a text in memory, and then sends it.
#[derive(Debug)]
pub(crate) struct Metrics {
    registry: Registry,
    pub(crate) session_up: Gauge,
    pub(crate) registered: Gauge,
    pub(crate) session_losses: Counter,
    pub(crate) running: Gauge,
    pub(crate) start_failures: Counter,
    durations: Histogram,
    ended: Family<Label, Counter>,
    output: Family<Label, Counter>,
}

impl Metrics {
    pub(crate) fn new(slots: u32) -> Self {
        let mut registry = Registry::with_prefix("zk_worker");
        let version = Info::new([("version", env!("CARGO_PKG_VERSION"))]);
        registry.register("build", "The version of this program", version);
        let all_slots = Gauge::<i64>::default();
        all_slots.set(slots.into());
        registry.register("slots", "How many tasks it runs at once", all_slots);
        let mut metrics = Metrics {
            registry: Registry::default(),
            session_up: Gauge::default(),
            registered: Gauge::default(),
            session_losses: Counter::default(),
            running: Gauge::default(),
            start_failures: Counter::default(),
            durations: Histogram::new(DURATIONS),
            ended: Family::default(),
            output: Family::default(),
        };
        // What has not happened yet is 0, so that the first time is an increase.
        let outcomes = [Outcome::Done, Outcome::Failed, Outcome::Timeout, Outcome::Cancelled].map(Report::Status);
        for report in outcomes.iter().chain([&Report::Lost, &Report::Nothing]) {
            metrics.of_outcome(report);
        }
        for stream in [Stream::Stdout, Stream::Stderr] {
            metrics.wrote(stream, 0);
        }
        registry.register("session_up", "Whether it has a session with ZooKeeper", metrics.session_up.clone());
        registry.register("registered", "Whether tasks can be assigned to it", metrics.registered.clone());
        registry.register("session_losses", "Sessions that were lost", metrics.session_losses.clone());
        registry.register("running", "Commands that run now", metrics.running.clone());
        registry.register("start_failures", "Commands that could not be started", metrics.start_failures.clone());
        registry.register_with_unit(
            "exec_duration",
            "From the start of a command to its end",
            Unit::Seconds,
            metrics.durations.clone(),
        );
        registry.register("attempts_ended", "Commands that were started and have ended", metrics.ended.clone());
        let written = "What commands that have ended had written";
        registry.register_with_unit("output", written, Unit::Bytes, metrics.output.clone());
        metrics.registry = registry;
        metrics
    }

    /// A command ended, and this is to be written of it.
    pub(crate) fn ended(&self, report: &Report, took: Duration) {
        self.of_outcome(report).inc();
        self.durations.observe(took.as_secs_f64());
    }

    /// It had written so many bytes.
    pub(crate) fn wrote(&self, stream: Stream, bytes: u64) {
        self.output.get_or_create(&[("stream", stream.as_str())]).inc_by(bytes);
    }

    fn of_outcome(&self, report: &Report) -> Counter {
        let word = match report {
            Report::Status(Outcome::Done) => "done",
            Report::Status(Outcome::Timeout) => "timeout",
            Report::Status(Outcome::Cancelled) => "cancelled",
            Report::Status(_) | Report::Failed => "failed",
            Report::Lost => "lost",
            Report::Nothing => DROPPED,
        };
        self.ended.get_or_create_owned(&[("outcome", word)])
    }

    /// All of it, as text.
    pub(crate) fn text(&self) -> String {
        let mut text = String::new();
        encode(&mut text, &self.registry).expect("a string takes everything");
        text
    }
}
