//! The page for people who have only a browser: what `zk-client status` and `zk-client workers` show. Pure.
//!
//! It needs no scripts and allows none. Whatever stands in the tree is escaped twice: what no font shows is made visible
//! here, what means something in HTML by the macro.

use std::time::Duration;

use maud::{DOCTYPE, Markup, PreEscaped, html};
use znode_paths::Address;

use crate::overview::{Cluster, OTHER, Overview, Registered, UNREAD};

/// How often a browser asks again, in seconds.
const REFRESH: u32 = 10;

/// Nothing is fetched, nothing is run, and no other page may frame this one; should an escape ever be missing.
const POLICY: &str = "default-src 'none'; style-src 'unsafe-inline'";

const STYLE: &str = "
:root { color-scheme: light dark; }
body { font: 1rem/1.5 system-ui, sans-serif; max-width: 60rem; margin: 0 auto; padding: 0 1rem 2rem; }
h1 { font-size: 1.5rem; overflow-wrap: anywhere; }
h2 { font-size: 1.1rem; margin: 1.5rem 0 .25rem; }
table { border-collapse: collapse; display: block; overflow-x: auto; }
th, td { text-align: left; vertical-align: top; padding: .2rem 1.2rem .2rem 0; border-bottom: 1px solid #8886; }
td { max-width: 24rem; overflow-wrap: break-word; }
.number { text-align: right; }
";

/// The most characters of a text that are shown. Anybody may have written it.
const LONGEST: usize = 200;

/// Makes the page of the master at this address; without an overview it says that there is none.
pub(crate) fn page(address: &Address, overview: Option<&Overview>) -> String {
    let role = match overview {
        None => "does not answer",
        Some(Overview::Nothing) => "no session",
        Some(Overview::Standby { .. }) => "standby",
        Some(Overview::Primary(_)) => "primary",
    };
    let body = match overview {
        None => html! { p { "Its deciding thread is busy, or waits for ZooKeeper. Try again in a moment." } },
        Some(Overview::Nothing) => html! { p { "It has no session with ZooKeeper, and seeks one." } },
        Some(Overview::Standby { primary }) => html! {
            p { "It stands by, and knows nothing but who is the primary: " (link(primary)) "." }
        },
        Some(Overview::Primary(cluster)) => whole(address, cluster),
    };
    let page = html! {
        (DOCTYPE)
        html lang="en" {
            head {
                meta charset="utf-8";
                meta name="viewport" content="width=device-width, initial-scale=1";
                meta http-equiv="refresh" content=(REFRESH);
                meta http-equiv="Content-Security-Policy" content=(POLICY);
                title { "zk-master " (address) ": " (role) }
                style { (PreEscaped(STYLE)) }
            }
            body {
                h1 { "zk-master " (address) ": " (role) }
                (body)
            }
        }
    };
    page.into_string()
}

fn whole(address: &Address, cluster: &Cluster) -> Markup {
    html! {
        h2 { "Masters" }
        table {
            (head(&["Master", "Role"]))
            tr { td { (address) } td { "primary" } }
            @for standby in &cluster.standby { tr { td { (link(standby.as_str())) } td { "standby" } } }
        }
        @if cluster.standby.is_empty() { p { "No other master would take over." } }
        h2 { "Workers" }
        @if cluster.workers.is_empty() {
            p { "None is registered: tasks wait." }
        } @else {
            table {
                (head(&["Worker", "Address", "Slots", "Running", "State", "Labels"]))
                @for worker in &cluster.workers { (row(worker)) }
            }
        }
        h2 { "Tasks" }
        table {
            (head(&["State", "Tasks"]))
            @for (word, count) in &cluster.tasks {
                @if *count > 0 || ![OTHER, UNREAD].contains(word) {
                    tr { td { (word) } td.number { (count) } }
                }
            }
        }
        @if cluster.queue_age_ms > 0 {
            p { "The oldest that waits for a worker was submitted " (span(cluster.queue_age_ms)) " ago." }
        }
        @if !cluster.failures.is_empty() {
            h2 { "Latest failures" }
            table {
                (head(&["Task", "State", "Ended"]))
                @for failure in &cluster.failures {
                    tr {
                        td { (failure.task) }
                        td { (failure.word) }
                        td { (span(cluster.now_ms - failure.at_ms)) " ago" }
                    }
                }
            }
            p { code { "zk-client show TASK" } " says why." }
        }
    }
}

fn head(titles: &[&str]) -> Markup {
    html! { tr { @for title in titles { th scope="col" { (title) } } } }
}

fn row(Registered { name, worker, drained, running }: &Registered) -> Markup {
    let meta = worker.meta.as_ref();
    let state = match meta {
        Some(meta) if meta.stopping => "stopping",
        _ if *drained && *running > 0 => "draining",
        _ if *drained => "drained",
        None => "by hand",
        Some(_) => "ok",
    };
    html! {
        tr {
            td { (name.as_str()) }
            td { (visible(&worker.address)) }
            td.number { (worker.slots()) }
            td.number { (running) }
            td { (state) }
            td {
                @for (key, value) in meta.iter().flat_map(|meta| &meta.labels) {
                    (visible(key)) "=" (visible(value)) br;
                }
            }
        }
    }
}

/// Another master's page, if that is an address.
fn link(address: &str) -> Markup {
    match address.parse::<Address>() {
        Ok(address) => html! { a href={ "http://" (address) "/" } { (address) } },
        Err(_) => html! { (visible(address)) },
    }
}

/// As on a terminal, and not more than one can read.
fn visible(text: &str) -> String {
    zk_cli::escape(&text.chars().take(LONGEST).collect::<String>())
}

fn span(ms: i64) -> humantime::FormattedDuration {
    humantime::format_duration(Duration::from_secs(u64::try_from(ms / 1000).unwrap_or(0)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::overview::Failure;
    use std::collections::BTreeMap;
    use znode_paths::{Instance, TaskName, Worker, WorkerMeta};

    const HOSTILE: &str = "<script>alert(1)</script>\"'&\u{1b}[31m\u{202e}";

    fn address() -> Address {
        "m:2223".parse().unwrap()
    }

    fn cluster() -> Cluster {
        let labels = BTreeMap::from([(HOSTILE.to_owned(), HOSTILE.repeat(100))]);
        let meta = WorkerMeta { labels, ..WorkerMeta::new(Instance::from_random(1), 4) };
        let worker = Worker { address: HOSTILE.to_owned(), meta: Some(meta) };
        Cluster {
            now_ms: 100_000,
            standby: vec!["\"><script>:1".parse().unwrap()],
            workers: vec![Registered { name: "w".parse().unwrap(), worker, drained: true, running: 2 }],
            tasks: vec![("pending", 3), ("done", 0), (OTHER, 0), (UNREAD, 7)],
            queue_age_ms: 61_000,
            failures: vec![Failure { task: TaskName::from_number(5), word: "lost", at_ms: 40_000 }],
        }
    }

    #[test]
    fn whatever_stands_in_the_tree_is_text_that_one_can_see() {
        let overviews = [Overview::Primary(cluster()), Overview::Standby { primary: HOSTILE.to_owned() }];
        for overview in overviews {
            let page = page(&address(), Some(&overview));
            assert!(!page.contains("<script") && page.contains("&lt;script&gt;"), "{page}");
            assert!(page.chars().all(|c| c == '\n' || !c.is_control()) && !page.contains('\u{202e}'), "{page}");
            assert!(page.len() < 10_000, "{page}");
        }
    }

    #[test]
    fn only_an_address_is_a_link() {
        let of = |primary: &str| page(&address(), Some(&Overview::Standby { primary: primary.to_owned() }));
        assert!(of("m2.example.com:2223").contains("<a href=\"http://m2.example.com:2223/\">m2.example.com:2223</a>"));
        for text in ["", "by hand", "javascript:alert(1)", "m2/x:1"] {
            assert!(!of(text).contains("<a "), "{text}");
        }
    }

    #[test]
    fn a_primary_shows_the_cluster() {
        let page = page(&address(), Some(&Overview::Primary(cluster())));
        let number = |count: u32| format!("<td class=\"number\">{count}</td>");
        for text in [
            "<h1>zk-master m:2223: primary</h1>",
            "<td>draining</td>",
            &format!("<td>pending</td>{}", number(3)),
            &format!("<td>done</td>{}", number(0)),
            &format!("<td>unread</td>{}", number(7)),
            "1m 1s ago",
            "<td>task-0000000005</td><td>lost</td><td>1m ago</td>",
        ] {
            assert!(page.contains(text), "{text}: {page}");
        }
        assert!(!page.contains("other"), "{page}");
    }
}
