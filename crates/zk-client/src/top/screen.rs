//! The screen. Pure: from what there is to cells.

use std::time::SystemTime;

use ratatui::Frame;
use ratatui::layout::{Constraint, Layout, Rect};
use ratatui::style::{Color, Style, Stylize as _};
use ratatui::text::{Line, Span};
use ratatui::widgets::{Block, Borders, Row, Table};

use super::watcher::Cluster;
use crate::render::{age, escape, exit, pairs, since, worker_state};
use crate::report::{TaskLine, WorkerLine};

/// What is known.
pub(super) struct View {
    /// Where ZooKeeper is.
    pub(super) zk: String,
    pub(super) cluster: Option<Cluster>,
    /// Why nothing newer is known.
    pub(super) trouble: Option<String>,
}

/// The colours of the tables, as ratatui has them.
fn style(state: &str) -> Style {
    match state {
        "done" | "ok" => Style::new().fg(Color::Green),
        "running" => Style::new().fg(Color::Cyan),
        "failed" | "timeout" | "lost" => Style::new().fg(Color::Red),
        "cancelled" | "drained" | "draining" | "stopping" => Style::new().fg(Color::Yellow),
        _ => Style::new(),
    }
}

pub(super) fn draw(frame: &mut Frame<'_>, view: &View, now: SystemTime) {
    let plain = std::env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty());
    let style = |state: &str| if plain { Style::new() } else { style(state) };
    let [head, body, foot] =
        Layout::vertical([Constraint::Length(4), Constraint::Min(0), Constraint::Length(1)]).areas(frame.area());
    let foot_text = match &view.trouble {
        Some(trouble) => Line::from(escape(trouble)).bold(),
        None => Line::from("q quits").dim(),
    };
    frame.render_widget(foot_text, foot);
    let title = Line::from(vec!["zk-client top".bold(), format!("  {}", escape(&view.zk)).into()]);
    let Some(Cluster { status, workers, failures }) = &view.cluster else {
        frame.render_widget(title, head);
        return;
    };
    let standby = if status.standby.is_empty() { "none".to_owned() } else { escape(&status.standby.join(", ")) };
    let master = status.master.as_deref().map_or_else(|| "none: nothing is assigned".to_owned(), escape);
    let mut line = vec![Span::raw("tasks   ")];
    for (word, count) in status.tasks.each() {
        let look = if count > 0 { style(word) } else { Style::new().dim() };
        line.push(Span::styled(format!("{word} {count}  "), look));
    }
    let lines =
        [title, Line::from(format!("primary {master}")), Line::from(format!("standby {standby}")), Line::from(line)];
    for (line, row) in lines.into_iter().zip(head.rows()) {
        frame.render_widget(line, row);
    }
    // The failures get what the workers leave, and at least a third.
    let wanted = u16::try_from(workers.len()).unwrap_or(u16::MAX).saturating_add(2);
    let [upper, lower] =
        Layout::vertical([Constraint::Length(wanted.min(body.height * 2 / 3)), Constraint::Min(0)]).areas(body);
    worker_table(frame, upper, workers, &style);
    failure_table(frame, lower, failures, now, &style);
}

fn section(title: String) -> Block<'static> {
    Block::new().borders(Borders::TOP).title(title)
}

fn worker_table(frame: &mut Frame<'_>, area: Rect, workers: &[WorkerLine], style: &dyn Fn(&str) -> Style) {
    let slots: u64 = workers.iter().map(|worker| u64::from(worker.slots)).sum();
    let running: usize = workers.iter().map(|worker| worker.running).sum();
    let rows = workers.iter().map(|line| {
        let state = worker_state(line);
        Row::new([
            Span::raw(line.worker.to_string()),
            Span::raw(load(line.running, line.slots)),
            Span::raw(format!("{}/{}", line.running, line.slots)),
            Span::styled(state, style(state)),
            Span::raw(pairs(&line.labels)),
        ])
    });
    let widths = [
        Constraint::Fill(2),
        Constraint::Length(10),
        Constraint::Length(9),
        Constraint::Length(9),
        Constraint::Fill(3),
    ];
    let head = Row::new(["WORKER", "LOAD", "RUNNING", "STATE", "LABELS"]).bold();
    let title = format!("workers {}, running {running} of {slots} ", workers.len());
    frame.render_widget(Table::new(rows, widths).header(head).block(section(title)), area);
}

/// Ten cells: how many of the slots are taken.
fn load(running: usize, slots: u32) -> String {
    let slots = usize::try_from(slots).unwrap_or(usize::MAX).max(1);
    let full = running.min(slots).saturating_mul(10).div_ceil(slots).min(10);
    "█".repeat(full) + &"·".repeat(10 - full)
}

fn failure_table(
    frame: &mut Frame<'_>,
    area: Rect,
    failures: &[TaskLine],
    now: SystemTime,
    style: &dyn Fn(&str) -> Style,
) {
    let rows = failures.iter().take(area.height.into()).map(|line| {
        let ended = line.end_ms.and_then(|ms| i64::try_from(ms).ok()).unwrap_or(line.submitted_ms);
        Row::new([
            Span::raw(line.task.to_string()),
            Span::styled(escape(&line.state), style(&line.state)),
            Span::raw(line.worker.as_ref().map_or_else(|| "-".to_owned(), ToString::to_string)),
            Span::raw(exit(line.exit_code, line.signal)),
            Span::raw(format!("{} ago", age(since(now, ended)))),
            Span::raw(escape(line.reason.as_deref().unwrap_or(&line.command))),
        ])
    });
    let widths = [
        Constraint::Length(15),
        Constraint::Length(7),
        Constraint::Fill(1),
        Constraint::Length(4),
        Constraint::Length(11),
        Constraint::Fill(3),
    ];
    let head = Row::new(["TASK", "STATE", "WORKER", "EXIT", "ENDED", "WHY"]).bold();
    frame.render_widget(Table::new(rows, widths).header(head).block(section("newest failures ".to_owned())), area);
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::report::{ClusterStatus, TaskCounts};
    use ratatui::Terminal;
    use ratatui::backend::TestBackend;
    use std::collections::BTreeMap;
    use std::time::{Duration, UNIX_EPOCH};
    use znode_paths::TaskName;

    fn view() -> View {
        let tasks = TaskCounts { running: 3, done: 40, failed: 1, ..TaskCounts::default() };
        let worker = |name: &str, running, drain| WorkerLine {
            worker: name.parse().unwrap(),
            address: "x:1".into(),
            slots: 4,
            running,
            labels: BTreeMap::from([("disk".into(), "s\u{1b}d".into())]),
            instance: Some(znode_paths::Instance::from_random(1)),
            drain,
            stopping: false,
        };
        let failure = TaskLine {
            task: TaskName::from_number(3),
            state: "failed".into(),
            command: "false\n".into(),
            name: None,
            worker: "w1".parse().ok(),
            attempt: None,
            exit_code: Some(1),
            signal: None,
            reason: None,
            submitted_ms: 1000,
            start_ms: None,
            end_ms: Some(31_000),
        };
        let status =
            ClusterStatus { master: Some("m1:2223".into()), standby: vec!["m2:2223".into()], workers: 2, tasks };
        let cluster =
            Cluster { status, workers: vec![worker("w1", 3, false), worker("w2", 0, true)], failures: vec![failure] };
        View { zk: "z:2181/jobs".into(), cluster: Some(cluster), trouble: None }
    }

    fn drawn(view: &View, width: u16, height: u16) -> Vec<String> {
        let mut terminal = Terminal::new(TestBackend::new(width, height)).unwrap();
        terminal.draw(|frame| draw(frame, view, UNIX_EPOCH + Duration::from_secs(91))).unwrap();
        let buffer = terminal.backend().buffer().clone();
        let rows = buffer.content.chunks(width.into());
        rows.map(|row| row.iter().map(|cell| cell.symbol()).collect::<String>().trim_end().to_owned()).collect()
    }

    #[test]
    fn the_cluster_is_on_one_screen() {
        let expected = [
            "zk-client top  z:2181/jobs",
            "primary m1:2223",
            "standby m2:2223",
            "tasks   pending 0  assigned 0  running 3  done 40  failed 1  timeout 0  cancelled 0  lost 0",
        ];
        let lines = drawn(&view(), 100, 14);
        assert_eq!(lines[..4], expected);
        assert!(lines[4].starts_with("workers 2, running 3 of 8"), "{lines:#?}");
        assert!(lines[6].starts_with("w1") && lines[6].contains("████████··") && lines[6].contains("disk=s\\u{1b}d"));
        assert!(lines[7].starts_with("w2") && lines[7].contains("drained"));
        assert!(lines[10].starts_with("task-0000000003 failed") && lines[10].contains("1m0s ago"), "{lines:#?}");
        assert!(lines[10].ends_with("false\\n"), "{lines:#?}");
        assert_eq!(lines[13], "q quits");
    }

    #[test]
    fn what_cannot_be_seen_says_why_and_what_was_seen_stays() {
        let lines = drawn(&View { trouble: Some("ZooKeeper is away".into()), ..view() }, 100, 14);
        assert!(lines[1].contains("m1:2223") && lines[13] == "ZooKeeper is away", "{lines:#?}");
        let lines = drawn(&View { cluster: None, ..view() }, 40, 3);
        assert_eq!(lines, ["zk-client top  z:2181/jobs", "", "q quits"]);
    }

    #[test]
    fn no_size_of_the_terminal_is_too_small() {
        for (width, height) in [(1, 1), (5, 3), (20, 5), (80, 7), (300, 2)] {
            drawn(&view(), width, height);
        }
    }

    #[test]
    fn the_load_is_full_only_when_all_slots_are_taken() {
        assert_eq!([load(0, 4), load(4, 4), load(9, 4)], ["··········", "██████████", "██████████"]);
        assert_eq!([load(1, 100), load(0, 0)], ["█·········", "··········"]);
    }
}
