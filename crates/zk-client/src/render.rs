//! Text for people. Pure: whoever calls says how wide the terminal is and what time it is.
//!
//! What came out of a znode was written by anybody: not a single control character of it gets through.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anstyle::{AnsiColor, Style};
use unicode_width::{UnicodeWidthChar as _, UnicodeWidthStr as _};
pub(crate) use zk_cli::escape;
use znode_paths::Tail;

use crate::report::{ClusterStatus, EndedLine, Explanation, FindingLine, TaskDetail, TaskLine, WorkerLine};

/// Cuts a line at the edge of a terminal.
fn cut(line: &str, width: usize) -> String {
    if line.width() <= width {
        return line.to_owned();
    }
    let mut room = width.saturating_sub(1);
    let fits = |c: &char| {
        let left = room.checked_sub(c.width().unwrap_or(0));
        room = left.unwrap_or(0);
        left.is_some()
    };
    let mut shorter: String = line.chars().take_while(fits).collect();
    shorter.push('…');
    shorter
}

/// How a state looks on a terminal.
pub(crate) fn style(state: &str) -> Style {
    let colour = match state {
        "done" | "ok" => AnsiColor::Green,
        "running" => AnsiColor::Cyan,
        "failed" | "timeout" | "lost" => AnsiColor::Red,
        "cancelled" | "drained" | "draining" | "stopping" => AnsiColor::Yellow,
        _ => return Style::new(),
    };
    colour.on_default()
}

/// A table, or fields, in which the state of each line is coloured: the first word that is just this one.
pub(crate) fn painted<'a>(lines: Vec<String>, states: impl IntoIterator<Item = &'a str>) -> Vec<String> {
    let mut lines = lines.into_iter();
    let head = lines.next().map(|head| format!("{0}{head}{0:#}", Style::new().bold()));
    let mut states = states.into_iter();
    let paint = |line: String| {
        let state = states.next().unwrap_or_default();
        let style = style(state);
        let begin = line.match_indices(state).map(|(at, _)| at).find(|at| {
            let (before, after) = (&line[..*at], &line[at + state.len()..]);
            before.ends_with([' ', '\t']) && (after.is_empty() || after.starts_with([' ', '\t']))
        });
        match begin {
            Some(at) if style != Style::new() => {
                let (before, after) = (&line[..at], &line[at + state.len()..]);
                format!("{before}{style}{state}{style:#}{after}")
            }
            _ => line,
        }
    };
    head.into_iter().chain(lines.map(paint)).collect()
}

/// The widest that a column gets, for which a worker's name has room: nobody makes the others as wide as a znode is long.
const WIDEST: usize = 255;

/// Columns side by side. The last one is as long as it is, or cut where the terminal ends.
fn table<const N: usize>(head: [&str; N], mut rows: Vec<[String; N]>, width: Option<usize>) -> Vec<String> {
    let head = head.map(str::to_owned);
    for cell in rows.iter_mut().flat_map(|row| row.iter_mut().take(N - 1)) {
        if cell.width() > WIDEST {
            *cell = cut(cell, WIDEST);
        }
    }
    let mut widths = [0; N];
    for row in rows.iter().chain([&head]) {
        for (column, cell) in widths.iter_mut().zip(row) {
            *column = (*column).max(cell.width());
        }
    }
    let line = |row: [String; N]| {
        let mut line = String::new();
        for (index, (cell, column)) in row.iter().zip(widths).enumerate() {
            line.push_str(cell);
            if index + 1 < N {
                line.extend(std::iter::repeat_n(' ', column - cell.width() + 2));
            }
        }
        let line = line.trim_end();
        width.map_or_else(|| line.to_owned(), |width| cut(line, width))
    };
    std::iter::once(head).chain(rows).map(line).collect()
}

/// `list`.
pub(crate) fn list(lines: &[TaskLine], now: SystemTime, width: Option<usize>) -> Vec<String> {
    let row = |line: &TaskLine| {
        [
            line.task.to_string(),
            escape(&line.state),
            line.worker.as_ref().map_or_else(|| "-".to_owned(), ToString::to_string),
            exit(line.exit_code, line.signal),
            age(since(now, line.submitted_ms)),
            escape(&line.command),
        ]
    };
    table(["TASK", "STATE", "WORKER", "EXIT", "AGE", "COMMAND"], lines.iter().map(row).collect(), width)
}

/// `wait`: task, state and exit code, separated by tabs.
pub(crate) fn ended(line: &TaskLine) -> String {
    format!("{}\t{}\t{}", line.task, escape(&line.state), exit(line.exit_code, line.signal))
}

/// `batch`: the same, and the command.
pub(crate) fn ended_with_command(line: &EndedLine) -> String {
    let code = exit(line.exit_code, line.signal);
    format!("{}\t{}\t{code}\t{}", line.task, escape(&line.state), escape(&line.command))
}

/// `why`: a sentence.
pub(crate) fn explanation(explanation: &Explanation) -> String {
    escape(&format!("{} is {}: {}", explanation.task, explanation.state, explanation.why))
}

/// The command's code, or 128 and the signal that ended it.
pub(crate) fn exit(exit_code: Option<i32>, signal: Option<i32>) -> String {
    match (exit_code, signal) {
        (Some(code), _) => code.to_string(),
        (None, Some(signal)) => signal.saturating_add(crate::exit::SIGNAL.into()).to_string(),
        (None, None) => "-".to_owned(),
    }
}

/// `doctor`: a line for each, and a last one with the count.
pub(crate) fn findings(lines: &[FindingLine], fix: bool) -> Vec<String> {
    let text = |line: &FindingLine| {
        let what = match line {
            FindingLine { repaired: true, .. } => "repaired",
            FindingLine { violation: true, .. } => "wrong",
            _ => "note",
        };
        let repair = match (fix, line.repaired) {
            (true, true) => String::new(),
            (true, false) => format!(" (not repaired: {})", line.repair),
            (false, _) => format!(" (--fix: {})", line.repair),
        };
        escape(&format!("{what}: {}: {}{repair}", line.path, line.meaning))
    };
    let wrong = lines.iter().filter(|line| line.violation && !line.repaired).count();
    let repaired = lines.iter().filter(|line| line.repaired).count();
    lines.iter().map(text).chain([format!("{wrong} wrong, {repaired} repaired")]).collect()
}

/// `workers`.
pub(crate) fn workers(lines: &[WorkerLine], width: Option<usize>) -> Vec<String> {
    let row = |line: &WorkerLine| {
        let address = if line.address.is_empty() { "-".to_owned() } else { escape(&line.address) };
        [
            line.worker.to_string(),
            address,
            line.slots.to_string(),
            line.running.to_string(),
            worker_state(line).to_owned(),
            pairs(&line.labels),
        ]
    };
    table(["WORKER", "ADDRESS", "SLOTS", "RUNNING", "STATE", "LABELS"], lines.iter().map(row).collect(), width)
}

pub(crate) fn worker_state(line: &WorkerLine) -> &'static str {
    match line {
        WorkerLine { stopping: true, .. } => "stopping",
        WorkerLine { drain: true, running: 0, .. } => "drained",
        WorkerLine { drain: true, .. } => "draining",
        WorkerLine { instance: None, .. } => "by hand",
        _ => "ok",
    }
}

pub(crate) fn pairs(pairs: &BTreeMap<String, String>) -> String {
    pairs.iter().map(|(key, value)| escape(&format!("{key}={value}"))).collect::<Vec<_>>().join(",")
}

/// `status`.
pub(crate) fn status(status: &ClusterStatus) -> Vec<String> {
    let master = match &status.master {
        Some(master) => escape(master),
        None => "none: nothing is assigned until a zk-master is started".to_owned(),
    };
    let standby = match &status.standby[..] {
        [] => "none".to_owned(),
        standby => escape(&standby.join(", ")),
    };
    let head = [("master", master), ("standby", standby), ("workers", status.workers.to_string())];
    let mut lines: Vec<String> = head.iter().map(|(key, value)| format!("{key}: {value}")).collect();
    lines.push(format!("tasks: {}", status.tasks.each().map(|(_, count)| count).sum::<usize>()));
    lines.extend(status.tasks.each().map(|(word, count)| format!("  {word}: {count}")));
    lines
}

/// `show`: one field a line, the output last.
pub(crate) fn show(detail: &TaskDetail, now: SystemTime) -> Vec<String> {
    let line = &detail.line;
    let text = |value: &Option<String>| value.as_deref().map(escape);
    let number = |value: Option<i64>| value.map(|value| value.to_string());
    let worker = |value: &Option<znode_paths::WorkerName>| value.as_ref().map(ToString::to_string);
    let map = |map: &BTreeMap<String, String>| (!map.is_empty()).then(|| pairs(map));
    let took = line.start_ms.zip(line.end_ms).and_then(|(start, end)| end.checked_sub(start));
    let after: Vec<String> = detail.after.iter().map(ToString::to_string).collect();
    let fields = [
        ("task", Some(line.task.to_string())),
        ("state", Some(escape(&line.state))),
        ("reason", text(&line.reason)),
        ("name", text(&line.name)),
        ("command", Some(escape(&line.command))),
        ("worker", worker(&line.worker)),
        ("attempt", number(line.attempt.map(i64::from))),
        ("exit code", number(line.exit_code.map(i64::from))),
        ("signal", number(line.signal.map(i64::from))),
        ("submitted", Some(moment(u64::try_from(line.submitted_ms).unwrap_or(0), now))),
        ("started", line.start_ms.map(|ms| moment(ms, now))),
        ("ended", line.end_ms.map(|ms| moment(ms, now))),
        ("took", took.map(duration)),
        ("cancellation", detail.cancel.then(|| "asked for".to_owned())),
        ("key", text(&detail.key)),
        ("time limit", detail.timeout_ms.map(duration)),
        ("retries", number(detail.retries.filter(|retries| *retries > 0).map(i64::from))),
        ("backoff", detail.backoff_ms.filter(|ms| *ms > 0).map(duration)),
        ("priority", number(detail.priority)),
        ("max attempts", number(detail.max_attempts.map(i64::from))),
        ("no requeue", detail.no_requeue.map(|yes| if yes { "yes" } else { "no" }.to_owned())),
        ("on", worker(&detail.on)),
        ("require", map(&detail.require)),
        ("after", (!after.is_empty()).then(|| after.join(","))),
        ("env", map(&detail.env)),
        ("cwd", text(&detail.cwd)),
    ];
    let mut lines: Vec<String> =
        fields.into_iter().filter_map(|(key, value)| Some(format!("{key}: {}", value?))).collect();
    for attempt in &detail.attempts {
        let mut text = format!("attempt {}: {}", attempt.attempt, attempt.state.unwrap_or("ended"));
        if let Some(worker) = &attempt.worker {
            write!(text, " on {worker}").expect("a string takes everything");
        }
        write!(text, " at {}", time(u64::try_from(attempt.recorded_ms).unwrap_or(0))).expect("as above");
        if !attempt.reason.is_empty() {
            write!(text, ": {}", escape(&attempt.reason)).expect("as above");
        }
        lines.push(text);
    }
    for (stream, tail) in [("stdout", &detail.stdout), ("stderr", &detail.stderr)] {
        lines.extend(tail.iter().flat_map(|tail| stream_lines(stream, tail)));
    }
    lines
}

fn duration(ms: u64) -> String {
    humantime::format_duration(Duration::from_millis(ms)).to_string()
}

fn stream_lines(stream: &str, tail: &Tail) -> Vec<String> {
    let kept = u64::try_from(tail.bytes.len()).unwrap_or(u64::MAX);
    let head = match tail.length {
        0 => format!("{stream}: nothing"),
        length if length > kept => format!("{stream}: the last {kept} of {length} bytes"),
        length => format!("{stream}: {length} bytes"),
    };
    let text = String::from_utf8_lossy(&tail.bytes);
    std::iter::once(head).chain(text.lines().map(|line| format!("  {}", escape(line)))).collect()
}

/// A moment, in UTC, and to the millisecond.
fn time(ms: u64) -> String {
    let moment = UNIX_EPOCH.checked_add(Duration::from_millis(ms));
    // After the year 9999 there is no such format.
    let moment = moment.filter(|moment| *moment < UNIX_EPOCH + Duration::from_secs(253_402_300_800));
    moment.map_or_else(|| format!("{ms} ms"), |moment| humantime::format_rfc3339_millis(moment).to_string())
}

/// The same, and how long ago that was.
fn moment(ms: u64, now: SystemTime) -> String {
    format!("{} ({} ago)", time(ms), age(since(now, i64::try_from(ms).unwrap_or(i64::MAX))))
}

/// How long ago that was; a clock that is behind makes nothing happen in the future.
pub(crate) fn since(now: SystemTime, ms: i64) -> Duration {
    let then = UNIX_EPOCH.checked_add(Duration::from_millis(u64::try_from(ms).unwrap_or(0)));
    then.and_then(|then| now.duration_since(then).ok()).unwrap_or_default()
}

/// An age in its two largest units.
pub(crate) fn age(age: Duration) -> String {
    let seconds = age.as_secs();
    let (minutes, hours, days) = (seconds / 60, seconds / 3600, seconds / 86_400);
    match () {
        () if days > 0 => format!("{days}d{}h", hours % 24),
        () if hours > 0 => format!("{hours}h{}m", minutes % 60),
        () if minutes > 0 => format!("{minutes}m{}s", seconds % 60),
        () => format!("{seconds}s"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::report::{AttemptLine, TaskCounts};
    use proptest::prelude::*;
    use znode_paths::TaskName;

    fn line(state: &str, command: &str) -> TaskLine {
        TaskLine {
            task: TaskName::from_number(3),
            state: state.into(),
            command: command.into(),
            name: None,
            worker: None,
            attempt: None,
            exit_code: None,
            signal: None,
            reason: None,
            submitted_ms: 1_000,
            start_ms: None,
            end_ms: None,
        }
    }

    fn detail(line: TaskLine) -> TaskDetail {
        TaskDetail {
            line,
            key: None,
            timeout_ms: None,
            retries: None,
            backoff_ms: None,
            priority: None,
            max_attempts: None,
            no_requeue: None,
            on: None,
            require: BTreeMap::new(),
            after: Vec::new(),
            env: BTreeMap::new(),
            cwd: None,
            cancel: false,
            attempts: Vec::new(),
            stdout: None,
            stderr: None,
        }
    }

    fn now() -> SystemTime {
        UNIX_EPOCH + Duration::from_secs(91)
    }

    #[test]
    fn a_table_aligns_its_columns_and_leaves_the_last_as_it_is() {
        let mut second = line("failed", "a\nb");
        (second.worker, second.signal) = (Some("worker-1".parse().unwrap()), Some(9));
        let expected = [
            "TASK             STATE    WORKER    EXIT  AGE    COMMAND",
            "task-0000000003  pending  -         -     1m30s  x",
            "task-0000000003  failed   worker-1  137   1m30s  a\\nb",
        ];
        assert_eq!(list(&[line("pending", "x"), second], now(), None), expected);
        assert_eq!(list(&[], now(), None), ["TASK  STATE  WORKER  EXIT  AGE  COMMAND"]);
    }

    #[test]
    fn a_long_word_in_one_line_does_not_make_all_of_them_long() {
        let lines = list(&[line(&"x".repeat(1_000_000), "a"), line("done", "b")], now(), None);
        assert!(lines.iter().all(|line| line.width() < 400), "{}", lines[1].width());
    }

    #[test]
    fn lines_end_where_the_terminal_does() {
        let lines = list(&[line("pending", &"漢".repeat(100)), line("done", "x")], now(), Some(60));
        assert_eq!(lines[1], "task-0000000003  pending  -       -     1m30s  漢漢漢漢漢漢…");
        assert!(lines.iter().all(|line| line.width() <= 60));
        assert_eq!(cut("abc", 3), "abc");
        assert_eq!(cut("abcd", 3), "ab…");
        assert_eq!(cut("abcd", 0), "…");
    }

    #[test]
    fn the_state_is_coloured_and_nothing_else_changes() {
        let lines = list(&[line("failed", "echo failed"), line("pending", "x"), line("a\u{1b}b", "x")], now(), None);
        let states = ["failed", "pending", "a\u{1b}b"];
        let coloured = painted(lines.clone(), states);
        assert_eq!(coloured[1], "task-0000000003  \u{1b}[31mfailed\u{1b}[0m    -       -     1m30s  echo failed");
        assert_eq!(coloured[2..], lines[2..]);
        let plain = |line: &String| anstream::adapter::strip_str(line).to_string();
        assert_eq!(coloured.iter().map(plain).collect::<Vec<_>>(), lines);
        assert_eq!(painted(Vec::new(), []), Vec::<String>::new());
    }

    #[test]
    fn a_word_made_by_hand_cannot_make_columns() {
        assert_eq!(ended(&line("a\tb\nc", "x")), "task-0000000003\ta\\tb\\nc\t-");
        let mut line = line("failed", "x");
        line.exit_code = Some(3);
        assert_eq!(ended(&line), "task-0000000003\tfailed\t3");
    }

    #[test]
    fn ages_have_two_units() {
        for (seconds, text) in
            [(0, "0s"), (59, "59s"), (60, "1m0s"), (3599, "59m59s"), (7260, "2h1m"), (90_000, "1d1h")]
        {
            assert_eq!(age(Duration::from_secs(seconds)), text);
        }
        assert_eq!(since(now(), i64::MAX), Duration::ZERO);
        assert_eq!(since(now(), -1), Duration::from_secs(91));
    }

    #[test]
    fn times_are_utc_and_never_a_panic() {
        assert_eq!(time(1_500), "1970-01-01T00:00:01.500Z");
        assert_eq!(time(u64::MAX), "18446744073709551615 ms");
        assert_eq!(time(253_402_300_799_999), "9999-12-31T23:59:59.999Z");
        assert_eq!(time(253_402_300_800_000), "253402300800000 ms");
    }

    #[test]
    fn a_task_made_by_hand_is_shown_in_four_lines() {
        let expected = [
            "task: task-0000000003",
            "state: pending",
            "command: cmd",
            "submitted: 1970-01-01T00:00:01.000Z (1m30s ago)",
        ];
        assert_eq!(show(&detail(line("pending", "cmd")), now()), expected);
    }

    #[test]
    fn all_that_is_known_is_shown_and_the_output_last() {
        let mut line = line("failed", "a\nb");
        (line.exit_code, line.attempt, line.worker) = (Some(3), Some(2), Some("w".parse().unwrap()));
        (line.start_ms, line.end_ms, line.reason) = (Some(2_000), Some(3_500), Some("no".into()));
        line.name = Some("n\u{7}".into());
        let attempt = AttemptLine {
            attempt: 1,
            state: Some("lost"),
            worker: Some("v".parse().unwrap()),
            instance: None,
            exit_code: None,
            signal: None,
            reason: "gone".into(),
            recorded_ms: 1_500,
        };
        let stdout = Tail { length: 9, bytes: b"one\n\x1b[2Jtwo\n".to_vec() };
        let detail = TaskDetail {
            key: Some("k\n".into()),
            timeout_ms: Some(90_000),
            retries: Some(2),
            backoff_ms: Some(0),
            priority: Some(-1),
            max_attempts: Some(3),
            no_requeue: Some(true),
            on: Some("w".parse().unwrap()),
            require: BTreeMap::from([("disk".into(), "ssd".into()), ("x".into(), String::new())]),
            after: vec![TaskName::from_number(1), TaskName::from_number(2)],
            env: BTreeMap::from([("A".into(), "b\nc".into())]),
            cwd: Some("/tmp".into()),
            cancel: true,
            attempts: vec![attempt],
            stdout: Some(stdout),
            stderr: Some(Tail { length: 200, bytes: b"x".to_vec() }),
            ..detail(line)
        };
        let expected = [
            "task: task-0000000003",
            "state: failed",
            "reason: no",
            "name: n\\u{7}",
            "command: a\\nb",
            "worker: w",
            "attempt: 2",
            "exit code: 3",
            "submitted: 1970-01-01T00:00:01.000Z (1m30s ago)",
            "started: 1970-01-01T00:00:02.000Z (1m29s ago)",
            "ended: 1970-01-01T00:00:03.500Z (1m27s ago)",
            "took: 1s 500ms",
            "cancellation: asked for",
            "key: k\\n",
            "time limit: 1m 30s",
            "retries: 2",
            "priority: -1",
            "max attempts: 3",
            "no requeue: yes",
            "on: w",
            "require: disk=ssd,x=",
            "after: task-0000000001,task-0000000002",
            "env: A=b\\nc",
            "cwd: /tmp",
            "attempt 1: lost on v at 1970-01-01T00:00:01.500Z: gone",
            "stdout: 9 bytes",
            "  one",
            "  \\u{1b}[2Jtwo",
            "stderr: the last 1 of 200 bytes",
            "  x",
        ];
        assert_eq!(show(&detail, now()), expected);
    }

    #[test]
    fn the_cluster_fits_on_a_screen() {
        let tasks = TaskCounts { pending: 2, done: 40, ..TaskCounts::default() };
        let cluster = ClusterStatus { master: Some("m:1\u{1b}".into()), standby: Vec::new(), workers: 3, tasks };
        let lines = status(&cluster);
        assert_eq!(lines[..5], ["master: m:1\\u{1b}", "standby: none", "workers: 3", "tasks: 42", "  pending: 2"]);
        assert!(!lines.iter().any(|line| line.contains("other")));
        let none = status(&ClusterStatus { master: None, ..cluster });
        assert!(none[0].contains("none"), "{none:?}");
    }

    #[test]
    fn a_worker_out_of_service_says_so() {
        let worker = |instance: Option<u64>, drain, stopping, running| WorkerLine {
            worker: "w".parse().unwrap(),
            address: String::new(),
            slots: 1,
            running,
            labels: BTreeMap::new(),
            instance: instance.map(znode_paths::Instance::from_random),
            drain,
            stopping,
        };
        assert_eq!(worker_state(&worker(Some(1), false, false, 1)), "ok");
        assert_eq!(worker_state(&worker(None, false, false, 1)), "by hand");
        assert_eq!(worker_state(&worker(Some(1), true, false, 1)), "draining");
        assert_eq!(worker_state(&worker(Some(1), true, false, 0)), "drained");
        assert_eq!(worker_state(&worker(Some(1), true, true, 0)), "stopping");
        let expected = ["WORKER  ADDRESS  SLOTS  RUNNING  STATE    LABELS", "w       -        1      0        drained"];
        assert_eq!(workers(&[worker(Some(1), true, false, 0)], None), expected);
    }

    proptest! {
        #[test]
        fn no_control_character_gets_through(state in ".{0,20}", command in "(.|[\u{0}-\u{9f}]){0,80}", width in 0_usize..200) {
            for text in list(&[line(&state, &command)], now(), Some(width)).into_iter().chain(show(&detail(line(&state, &command)), now())) {
                prop_assert!(!text.chars().any(char::is_control), "{text:?}");
            }
        }

        #[test]
        fn no_line_is_wider_than_the_terminal(command in ".{0,80}", width in 1_usize..120) {
            for text in list(&[line("done", &command)], now(), Some(width)) {
                prop_assert!(text.width() <= width, "{text:?}");
            }
        }
    }
}
