//! What was measured, as a table or as JSON.

use std::fs;
use std::thread;

/// How it is printed.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Format {
    Table,
    Json,
}

/// One figure.
struct Row {
    figure: String,
    value: f64,
    unit: &'static str,
    goal: Option<Goal>,
}

/// What it is to be.
#[derive(Clone, Copy)]
pub(crate) enum Goal {
    AtLeast(f64),
    AtMost(f64),
}

pub(crate) struct Report {
    format: Format,
    ensemble: bool,
    rows: Vec<Row>,
}

impl Report {
    pub(crate) fn new(format: Format, ensemble: bool) -> Self {
        Report { format, ensemble, rows: Vec::new() }
    }

    /// A figure without a goal: what others are compared with, or what is only of interest.
    pub(crate) fn add(&mut self, figure: impl Into<String>, value: f64, unit: &'static str) {
        self.push(figure.into(), value, unit, None);
    }

    pub(crate) fn add_with_goal(&mut self, figure: impl Into<String>, value: f64, unit: &'static str, goal: Goal) {
        self.push(figure.into(), value, unit, Some(goal));
    }

    fn push(&mut self, figure: String, value: f64, unit: &'static str, goal: Option<Goal>) {
        let row = Row { figure, value, unit, goal };
        say(&line(&row));
        self.rows.push(row);
    }

    #[expect(clippy::print_stdout, reason = "the results")]
    pub(crate) fn print(&self) {
        let servers = if self.ensemble { 3 } else { 1 };
        let processors = thread::available_parallelism().map_or(0, std::num::NonZero::get);
        let kernel = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
        let load = fs::read_to_string("/proc/loadavg").unwrap_or_default();
        let load = load.split(' ').next().unwrap_or_default();
        if self.format == Format::Json {
            let rows = self.rows.iter().map(|row| {
                let (least, most) = match row.goal {
                    Some(Goal::AtLeast(goal)) => (Some(goal), None),
                    Some(Goal::AtMost(goal)) => (None, Some(goal)),
                    None => (None, None),
                };
                serde_json::json!({
                    "figure": row.figure, "value": row.value, "unit": row.unit, "at_least": least, "at_most": most,
                    "met": row.goal.map(|goal| met(row.value, goal)),
                })
            });
            let machine = serde_json::json!({
                "processors": processors, "kernel": kernel.trim(), "load": load, "zookeeper_servers": servers,
            });
            println!("{}", serde_json::json!({ "machine": machine, "figures": rows.collect::<Vec<_>>() }));
            return;
        }
        println!(
            "\non {processors} processors (load {load} at the end), Linux {}, {servers} ZooKeeper server(s) with forced \
             fsync, all on one machine\n",
            kernel.trim()
        );
        for row in &self.rows {
            println!("{}", line(row));
        }
    }
}

fn met(value: f64, goal: Goal) -> bool {
    match goal {
        Goal::AtLeast(goal) => value >= goal,
        Goal::AtMost(goal) => value <= goal,
    }
}

fn line(row: &Row) -> String {
    let goal = row.goal.map(|goal| {
        let verdict = if met(row.value, goal) { "met" } else { "MISSED" };
        match goal {
            Goal::AtLeast(goal) => format!("  goal >= {} {verdict}", number(goal)),
            Goal::AtMost(goal) => format!("  goal <= {} {verdict}", number(goal)),
        }
    });
    format!("{:<66} {:>10} {:<7}{}", row.figure, number(row.value), row.unit, goal.unwrap_or_default())
}

/// With as many digits as mean something.
fn number(value: f64) -> String {
    match value.abs() {
        100.0.. => format!("{value:.0}"),
        10.0.. => format!("{value:.1}"),
        _ => format!("{value:.2}"),
    }
}

/// Says how far it is.
#[expect(clippy::print_stderr, reason = "a word to whoever waits")]
pub(crate) fn say(text: &str) {
    eprintln!("{text}");
}
