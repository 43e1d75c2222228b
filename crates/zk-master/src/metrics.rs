//! What a master counts, and what Prometheus gets to read of it. The names are explained in `docs/operations.md`.

use prometheus_client::encoding::prometheus_text::encode;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::metrics::info::Info;
use prometheus_client::registry::{Registry, Unit};
use zk_http::Ready;
use znode_paths::{AssignmentMeta, TaskName};

use crate::overview::Cluster;
use crate::view::{Known, View};
use crate::{PRIMARY, STANDBY};

/// The role of a master that has no session.
const SEEKING: &str = "seeking";

/// From what nobody notices, in seconds, to what somebody should look at.
const LATENCIES: [f64; 15] = [0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0, 1800.0];

/// What is counted as it happens. Everything else is looked up when somebody asks.
#[derive(Debug)]
pub(crate) struct Metrics {
    pub(crate) session_losses: Counter,
    latency: Histogram,
}

impl Default for Metrics {
    fn default() -> Self {
        Metrics { session_losses: Counter::default(), latency: Histogram::new(LATENCIES) }
    }
}

impl Metrics {
    /// A task was assigned, now by the servers' clock. What it has waited since an earlier attempt is no latency of ours.
    pub(crate) fn assigned(&self, task: TaskName, meta: &AssignmentMeta, view: &View, now_ms: Option<i64>) {
        let open = view.tasks.get(&task).and_then(Known::open).filter(|_| meta.attempt == 1);
        if let (Some(open), Some(now_ms)) = (open, now_ms) {
            self.latency.observe(seconds(now_ms - open.submitted_ms));
        }
    }

    /// All of it, as text. Of the cluster only a primary knows.
    pub(crate) fn text(&self, ready: Ready, cluster: Option<&Cluster>) -> String {
        let mut registry = Registry::with_prefix("zk_master");
        let version = Info::new([("version", env!("CARGO_PKG_VERSION"))]);
        registry.register("build", "The version of this program", version);
        let role = ready.unwrap_or(SEEKING);
        let roles = [SEEKING, STANDBY, PRIMARY].map(|each| (each, usize::from(each == role)));
        registry.register("role", "1 for the role that it has now, 0 for the others", gauges("role", roles));
        registry.register("session_up", "Whether it has a session with ZooKeeper", gauge(i64::from(ready.is_ok())));
        registry.register("session_losses", "Sessions that were lost", self.session_losses.clone());
        registry.register_with_unit(
            "assignment_latency",
            "From the submission of a task to its first assignment by this master",
            Unit::Seconds,
            self.latency.clone(),
        );
        if let Some(cluster) = cluster {
            let drained = cluster.workers.iter().filter(|worker| worker.drained).count();
            let workers = [("in_service", cluster.workers.len() - drained), ("drained", drained)];
            registry.register("workers", "Workers that are registered", gauges("state", workers));
            registry.register("tasks", "Tasks in each state", gauges("state", cluster.tasks.iter().copied()));
            let age = Gauge::<f64, std::sync::atomic::AtomicU64>::default();
            age.set(seconds(cluster.queue_age_ms));
            registry.register_with_unit(
                "queue_age",
                "Since when the oldest task waits that waits for nothing but a worker; 0 without one",
                Unit::Seconds,
                age,
            );
        }
        let mut text = String::new();
        encode(&mut text, &registry).expect("a string takes everything");
        text
    }
}

fn gauge(value: i64) -> Gauge {
    let gauge = Gauge::default();
    gauge.set(value);
    gauge
}

fn gauges(
    label: &'static str,
    values: impl IntoIterator<Item = (&'static str, usize)>,
) -> Family<[(&'static str, &'static str); 1], Gauge> {
    let family = Family::<_, Gauge>::default();
    for (each, value) in values {
        family.get_or_create(&[(label, each)]).set(i64::try_from(value).unwrap_or(i64::MAX));
    }
    family
}

#[expect(clippy::cast_precision_loss, reason = "nobody waits for 200,000 years")]
fn seconds(ms: i64) -> f64 {
    ms.max(0) as f64 / 1000.0
}
