//! `docs/operations.md` explains every line that a daemon or a client logs as a warning or an error, and no others.

use std::{collections::BTreeSet, fs, path::Path};

/// What such a line begins with, up to the first thing that differs from time to time.
fn logged(level: &str) -> BTreeSet<String> {
    let mut lines = BTreeSet::new();
    let crates = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    let mut folders: Vec<_> =
        fs::read_dir(crates).expect("it is there").map(|entry| entry.expect("it is there")).collect();
    folders.retain(|entry| entry.file_name() != "e2e");
    let mut left: Vec<_> = folders.into_iter().map(|entry| entry.path().join("src")).collect();
    while let Some(path) = left.pop() {
        if path.is_dir() {
            left.extend(fs::read_dir(&path).expect("it is there").map(|entry| entry.expect("it is there").path()));
            continue;
        }
        let source = fs::read_to_string(&path).expect("sources are text");
        for after in source.split(&format!("log::{level}!(")).skip(1) {
            let text = after.split('"').nth(1).expect("a text follows");
            lines.insert(text.split('{').next().expect("there is one").to_owned());
        }
    }
    lines
}

/// The first cells of the table below this heading, up to the first `…`.
fn explained(document: &str, heading: &str) -> BTreeSet<String> {
    let section = document.split(&format!("\n### {heading}\n")).nth(1).expect("the heading is there");
    let section = section.split("\n#").next().expect("there is one");
    let cells = section.lines().filter_map(|line| line.strip_prefix("| `")?.split('`').next());
    cells.map(|cell| cell.split('…').next().expect("there is one").to_owned()).collect()
}

#[test]
fn every_warning_and_error_is_explained() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs/operations.md");
    let document = fs::read_to_string(path).expect("it is there");
    for (level, heading) in [("warn", "Warnings"), ("error", "Errors")] {
        let (logged, explained) = (logged(level), explained(&document, heading));
        let missing: Vec<_> = logged.difference(&explained).collect();
        let stale: Vec<_> = explained.difference(&logged).collect();
        assert!(missing.is_empty() && stale.is_empty(), "{heading}: not explained {missing:#?}, not logged {stale:#?}");
    }
}
